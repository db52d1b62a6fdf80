"""LoadService: money goes onto the chip (圈存)."""

import functools
from typing import Final

from yikatong.core.cards import loads
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import load_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["LoadService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    if (provider := host.provider) is None:
        return {}
    return {
        "StartLoad": host.command(functools.partial(loads.start_load, provider)),
        "ConfirmLoad": host.command(functools.partial(loads.confirm_load, provider)),
        "ChallengeChip": host.command(functools.partial(loads.challenge_chip, provider)),
        "ReturnLoad": host.command(functools.partial(loads.return_load, provider)),
        "GetLoad": host.command(loads.get_load),
    }
