"""CardLifeService: loss, freezes, the end of a card."""

import functools
from typing import Final

from yikatong.core.cards import card_actions
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import card_life_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["CardLifeService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "ReportLoss": host.command_by(functools.partial(card_actions.report_loss, host.card_rules.temporary_loss_s)),
        "LiftLoss": host.command_by(card_actions.lift_loss),
        "FreezeCard": host.command_by(card_actions.freeze_card),
        "UnfreezeCard": host.command_by(card_actions.unfreeze_card),
        "CancelCard": host.command_by(card_actions.cancel_card),
        "GetCardStatus": host.command_by(card_actions.get_card_status),
    }
