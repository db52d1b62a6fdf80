"""ECardService: a card's electronic twin and the devices that show it."""

import functools
from typing import Final

from yikatong.core.cards import e_cards
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import e_card_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ECardService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    if (provider := host.provider) is None:
        return {}
    return {
        "IssueECard": host.command(functools.partial(e_cards.issue_e_card, provider)),
        "StartActivation": host.command(functools.partial(e_cards.start_activation, provider)),
        "ActivateDevice": host.command(functools.partial(e_cards.activate_device, provider, host.e_card_devices_max)),
        "RevokeDevice": host.command(e_cards.revoke_device),
        "ListDevices": host.command(e_cards.list_devices),
        "GetECard": host.command(e_cards.get_e_card),
        "CancelECard": host.command(e_cards.cancel_e_card),
    }
