"""TapService: single taps online and batches of stored ones; the engine reads both."""

import asyncio
import functools
from typing import Final

from yikatong.core import commands, queries
from yikatong.core.access.callers import bound_of, current
from yikatong.core.errors import InvalidRequest
from yikatong.core.memory import Memory
from yikatong.core.services.host import Host, Methods, Raw
from yikatong.core.writer import Work
from yikatong.v1 import tap_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["TapService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "AuthorizeTap": Raw(functools.partial(take_taps, host, False)),
        "SubmitTaps": Raw(functools.partial(take_taps, host, True)),
        "GetTap": functools.partial(get_tap, host),
    }


async def take_taps(host: Host, stored: bool, request: bytes, deadline: float | None) -> bytes:
    """TapService.AuthorizeTap, and SubmitTaps of stored ones."""
    work = Work(request=request, stored=stored, bound=bound_of(current()), deadline=deadline)
    response: bytes = await host.submit(work)
    return response


async def get_tap(host: Host, request: pb.GetTapRequest, deadline: float | None) -> pb.GetTapResponse:
    """TapService.GetTap."""
    sequence, rules = await host.ask(lambda memory: (_sequence_of(memory, request), memory.tariffs.rules), deadline)
    response, card, terminal = await asyncio.to_thread(queries.get_tap, host.core.journal, sequence, rules)
    known_card, known_terminal, operator_id = await host.ask(
        lambda memory: commands.card_and_terminal(memory, card, terminal), deadline
    )
    if known_card and not response.tap.card_number:
        response.tap.card_number, response.tap.issuer_id = known_card["card_number"], known_card["issuer_id"]
    if known_terminal:
        response.tap.terminal_number = known_terminal["terminal_number"]
    response.operator_id = operator_id
    return response


def _sequence_of(memory: Memory, request: pb.GetTapRequest) -> int:
    match request.WhichOneof("key"):
        case "sequence":
            if not 1 <= request.sequence < memory.engine.next_sequence:
                raise InvalidRequest("sequence", f"the journal holds 1 to {memory.engine.next_sequence - 1}")
            return request.sequence
        case "card_counter":
            return commands.tap_by_card_counter(memory, request.card_counter.card_number, request.card_counter.atc)
        case "terminal_counter":
            counter = request.terminal_counter
            return commands.tap_by_terminal_counter(memory, counter.terminal_number, counter.terminal_sequence)
        case _:
            raise InvalidRequest("key", "sequence, card_counter or terminal_counter is wanted")
