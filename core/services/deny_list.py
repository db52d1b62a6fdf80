"""DenyListService: which cards terminals refuse."""

import functools
import time
from typing import Final

from yikatong.core.cards import deny_list
from yikatong.core.services.host import Host, Methods
from yikatong.core.types import Result, wire
from yikatong.core.writer import Work
from yikatong.v1 import deny_list_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["DenyListService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "DenyCard": functools.partial(deny_card, host),
        "AllowCard": host.command(deny_list.allow_card),
        "GetDenyList": functools.partial(get_deny_list, host),
    }


async def deny_card(host: Host, request: pb.DenyCardRequest, deadline: float | None) -> pb.DenyCardResponse:
    """DenyListService.DenyCard."""
    arrived_s = time.time()
    response: pb.DenyCardResponse = await host.submit(
        Work(command=lambda memory, time_us: deny_list.deny_card(memory, request, time_us), deadline=deadline)
    )
    if response.result == wire(Result.ACCEPTED) and not response.duplicate:
        reported_s = request.reported_time_us / 1e6 if request.reported_time_us else arrived_s
        host.metrics.on_card_denied(time.time() - reported_s)
    return response


async def get_deny_list(host: Host, request: pb.GetDenyListRequest, deadline: float | None) -> pb.GetDenyListResponse:
    """DenyListService.GetDenyList."""
    response: pb.GetDenyListResponse = await host.submit(
        Work(command=lambda memory, time_us: deny_list.get_deny_list(memory, request, time_us), deadline=deadline)
    )
    if response.kind == deny_list.DELTA:
        now_s = time.time()
        host.metrics.on_denials_fetched([now_s - entry.denied_since_s for entry in response.entries if entry.reasons])
    return response
