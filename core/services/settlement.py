"""SettlementService: how a day is paid, its files, seal and receipts."""

import asyncio
import functools
from typing import Final

from yikatong.core.access import access
from yikatong.core.access.callers import Caller, current
from yikatong.core.day import settle
from yikatong.core.day.day import Day
from yikatong.core.errors import Forbidden
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import settlement_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["SettlementService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "SettleWindow": host.of_day(Day.settle),
        "AbortWindow": host.of_day(Day.abort),
        "ResumeWindow": host.of_day(Day.resume),
        "ListSettlementFiles": host.of_bank(functools.partial(list_settlement_files, host)),
        "GetSettlementFile": host.of_bank(functools.partial(get_settlement_file, host)),
        "GetReport": host.of_day(Day.get_report),
        "SealWindow": host.of_day(Day.seal),
        "GetSeal": host.of_day(Day.get_seal),
        "GetReceipt": host.of_day(Day.get_receipt),
    }


async def list_settlement_files(
    host: Host, request: pb.ListSettlementFilesRequest, deadline: float | None
) -> pb.ListSettlementFilesResponse:
    """SettlementService.ListSettlementFiles."""
    del deadline
    caller = current()
    response = await asyncio.to_thread(host.day.list_files, request)
    return pb.ListSettlementFilesResponse(files=[file for file in response.files if may_fetch(caller, file.name)])


async def get_settlement_file(
    host: Host, request: pb.GetSettlementFileRequest, deadline: float | None
) -> pb.GetSettlementFileResponse:
    """SettlementService.GetSettlementFile."""
    del deadline
    if not may_fetch(current(), request.name):
        raise Forbidden("own", "not the caller's own, or not there")
    return await asyncio.to_thread(host.day.get_file, request)


def may_fetch(caller: Caller, name: str) -> bool:
    """Whether a settlement file is a caller's: the statements of an acquirer, and what the bank is told to do."""
    if caller.role == access.ACQUIRER:
        stems = (settle.file_stem(participant) for participant in access.participants_of(caller.name))
        return name.startswith(tuple(stem + "." for stem in stems))
    return caller.role != access.BANK or name.startswith(("payments.", "claims."))
