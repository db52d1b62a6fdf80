"""CodeService: what a phone shows, and taps by it."""

import asyncio
import functools
import secrets
from collections.abc import Callable
from typing import Any, Final

from yikatong.core import limits
from yikatong.core.access.callers import current
from yikatong.core.cards import codes
from yikatong.core.cards.codes import CodeChecker
from yikatong.core.failpoints import failpoint
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.memory import Memory
from yikatong.core.services.host import Host, Methods
from yikatong.core.types import Result, wire
from yikatong.core.writer import Work
from yikatong.v1 import code_service_pb2 as pb
from yikatong.v1 import tap_service_pb2

SERVICE: Final = pb.DESCRIPTOR.services_by_name["CodeService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    if (provider := host.provider) is None:
        return {}
    return {
        "GetCode": functools.partial(get_code, host, provider),
        "GetRideCode": functools.partial(get_ride_code, host, provider),
        "TapByCode": functools.partial(tap_by_code, host, provider, CodeChecker(host.ride_code_rules)),
    }


async def get_code(host: Host, provider: KeyProvider, request: pb.GetCodeRequest, deadline: float | None) -> pb.GetCodeResponse:
    """CodeService.GetCode."""
    random = secrets.token_bytes(codes.TOKEN_RANDOM_BYTES)
    work = Work(command=lambda memory, time_us: codes.get_code(provider, random, memory, request, time_us), deadline=deadline)
    response: pb.GetCodeResponse = await host.submit(work)
    return response


async def get_ride_code(
    host: Host, provider: KeyProvider, request: pb.GetRideCodeRequest, deadline: float | None
) -> pb.GetRideCodeResponse:
    """CodeService.GetRideCode: the writer says whether, the provider signs beside it."""
    work = Work(command=lambda memory, time_us: codes.grant_ride_code(provider, memory, request, time_us), deadline=deadline)
    grant = await host.submit(work)
    if isinstance(grant, Result):
        return pb.GetRideCodeResponse(result=wire(grant))
    return await asyncio.to_thread(codes.issue_ride_code, provider, host.ride_code_rules, grant)


async def tap_by_code(
    host: Host, provider: KeyProvider, checker: CodeChecker, request: pb.TapByCodeRequest, deadline: float | None
) -> pb.TapByCodeResponse:
    """CodeService.TapByCode: signatures are verified beside the writer, codes reserved on it; what follows is a tap."""
    codes.check_items(request.taps)
    caller = current()
    checked = await asyncio.to_thread(checker.check, request.taps)

    def reserve(part: list[codes.Checked]) -> Callable[[Memory, int], Any]:
        return lambda memory, time_us: codes.reserve(provider, memory, part, request.stored, time_us, caller)

    answers: list[codes.Reserved | tap_service_pb2.TapOutcome] = []
    for at in range(0, len(checked), limits.CODES_AT_ONCE):
        work = Work(command=reserve(checked[at : at + limits.CODES_AT_ONCE]), deadline=deadline)
        answers += await host.submit(work)
    reserved = [each for each in answers if isinstance(each, codes.Reserved)]
    failpoint("code-reserved")
    await asyncio.to_thread(codes.prove, provider, reserved)
    outcomes = iter(await _run_taps(host, [each.tap for each in reserved], stored=request.stored))
    return pb.TapByCodeResponse(outcomes=[next(outcomes) if isinstance(each, codes.Reserved) else each for each in answers])


async def _run_taps(host: Host, taps: list[tap_service_pb2.Tap], *, stored: bool) -> list[tap_service_pb2.TapOutcome]:
    """Taps through the flow of all taps, as if they had come in requests of their own."""
    if not taps:
        return []
    if stored:
        request = tap_service_pb2.SubmitTapsRequest(taps=taps).SerializeToString()
        answer = await host.submit(Work(request=request, stored=True))
        return list(tap_service_pb2.SubmitTapsResponse.FromString(answer).outcomes)
    requests = [tap_service_pb2.AuthorizeTapRequest(tap=tap).SerializeToString() for tap in taps]
    answered = await asyncio.gather(*(host.submit(Work(request=each, stored=False)) for each in requests))
    return [tap_service_pb2.AuthorizeTapResponse.FromString(each).outcome for each in answered]
