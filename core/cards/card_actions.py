"""What is done to cards after they were made: loss, freezes, the end. Commands, as core/command.py describes them, that take the
caller last; card_life.py says what each leads to."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.access import audit
from yikatong.core.access.callers import Caller
from yikatong.core.cards import card_life, card_links, card_state
from yikatong.core.cards.card_life import CardLife, Event, State
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.identity import persons
from yikatong.core.memory import Memory
from yikatong.core.messages import check_line
from yikatong.core.types import NONE, Result, wire
from yikatong.ext.engine import is_card_number
from yikatong.v1 import access_pb2
from yikatong.v1 import card_life_service_pb2 as pb

Response = TypeVar("Response", bound=Message)


def find(memory: Memory, card_number: str, caller: Caller) -> int | None:
    """Slot of the card of that number, or of the card whose e-card it is; None where there is none that the caller may see."""
    if not is_card_number(card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    slot = int(memory.engine.find_card(card_number))
    if slot == NONE:
        return None
    card = card_links.card_of(memory, slot)
    person_id = persons.person_of_card(memory, card)
    if person_id is not None and not persons.is_visible(caller, persons.load(memory, person_id)):
        return None
    return card


def _act(
    memory: Memory,
    request: Any,
    response: type[Response],
    time_us: int,
    caller: Caller,
    act: Callable[[Change, int, CardLife, Any], Event | Result | None],
) -> Response:
    """Find the card that a request names, ask `act` which event comes to it, and answer. None: the document alone has changed."""
    if not is_card_number(request.card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    if (again := answered(memory, request, response)) is not None:
        return again
    change = Change(memory, time_us)
    answer: Any = response()
    card = find(memory, request.card_number, caller)
    if card is None:
        answer.result = wire(Result.UNKNOWN_CARD)
        return change.answer(request, answer, "card-unknown")  # type: ignore[no-any-return]
    life = card_life.at(memory, card, time_us)
    event = act(change, card, life, answer)
    if isinstance(event, Event) and (no := card_life.refused(life, event)):
        event = no
    if isinstance(event, Result):
        answer = response(result=wire(event), state=wire(card_life.at(memory, card, time_us).state))
        return change.answer(request, answer, "card-action-refused")  # type: ignore[no-any-return]
    if event is None:
        card_life.write(memory, change, card, life)
    else:
        card_life.go(memory, change, card, life, event)
    if (person_id := persons.person_of_card(memory, card)) is not None:
        audit.note(change, caller, f"CardLifeService.{response.DESCRIPTOR.name.removesuffix('Response')}", person_id)
    answer.result, answer.state = wire(Result.ACCEPTED), life.state
    return change.answer(request, answer, f"card-{State(life.state).name.lower().replace('_', '-')}")  # type: ignore[no-any-return]


def report_loss(
    temporary_s: int, memory: Memory, request: pb.ReportLossRequest, time_us: int, caller: Caller
) -> pb.ReportLossResponse:
    """CardLifeService.ReportLoss: a temporary one lifts itself after `temporary_s`."""

    def act(change: Change, card: int, life: CardLife, answer: pb.ReportLossResponse) -> Event:
        del change, card
        if request.final:
            life.lifts_time_us = 0
            return Event.LOSE
        event = Event.LOSE_TEMPORARILY
        if card_life.refused(life, event) is None:
            life.lifts_time_us = answer.lifts_time_us = time_us + temporary_s * 1_000_000
        return event

    return _act(memory, request, pb.ReportLossResponse, time_us, caller, act)


def lift_loss(memory: Memory, request: pb.LiftLossRequest, time_us: int, caller: Caller) -> pb.LiftLossResponse:
    """CardLifeService.LiftLoss."""
    return _act(memory, request, pb.LiftLossResponse, time_us, caller, lambda *_: Event.LIFT_LOSS)


def freeze_card(memory: Memory, request: pb.FreezeCardRequest, time_us: int, caller: Caller) -> pb.FreezeCardResponse:
    """CardLifeService.FreezeCard."""
    check_line("reason", request.reason)

    def act(change: Change, card: int, life: CardLife, answer: pb.FreezeCardResponse) -> Event:
        del card
        if len(life.freezes) >= limits.FREEZES_MAX:
            raise InvalidRequest("card_number", f"{limits.FREEZES_MAX} freezes are in force")
        answer.freeze_id = change.sequence
        life.freezes.add(freeze_id=change.sequence, by=str(caller), reason=request.reason, time_us=time_us)
        return Event.FREEZE

    return _act(memory, request, pb.FreezeCardResponse, time_us, caller, act)


def unfreeze_card(memory: Memory, request: pb.UnfreezeCardRequest, time_us: int, caller: Caller) -> pb.UnfreezeCardResponse:
    """CardLifeService.UnfreezeCard."""

    def act(change: Change, card: int, life: CardLife, answer: pb.UnfreezeCardResponse) -> Event | Result | None:
        del change, card, answer
        freeze = next((freeze for freeze in life.freezes if freeze.freeze_id == request.freeze_id), None)
        if freeze is None:
            return Result.WRONG_STATE
        if freeze.by != str(caller) and caller.role != access_pb2.ROLE_OPERATOR:
            return Result.FREEZE_NOT_OWN
        life.freezes.remove(freeze)
        return None if life.freezes else Event.UNFREEZE

    return _act(memory, request, pb.UnfreezeCardResponse, time_us, caller, act)


def cancel_card(memory: Memory, request: pb.CancelCardRequest, time_us: int, caller: Caller) -> pb.CancelCardResponse:
    """CardLifeService.CancelCard."""
    return _act(memory, request, pb.CancelCardResponse, time_us, caller, lambda *_: Event.CANCEL)


def get_card_status(memory: Memory, request: pb.GetCardStatusRequest, time_us: int, caller: Caller) -> pb.GetCardStatusResponse:
    """CardLifeService.GetCardStatus."""
    card = find(memory, request.card_number, caller)
    if card is None:
        raise NotFound("card", request.card_number)
    life = card_life.at(memory, card, time_us)
    asked = int(memory.engine.find_card(request.card_number))
    response = pb.GetCardStatusResponse(
        state=life.state,
        since_time_us=life.since_time_us,
        lifts_time_us=life.lifts_time_us,
        freezes=life.freezes if caller.role != access_pb2.ROLE_BANK else [],
        usable=wire(card_state.refusal(memory, asked, time_us) or Result.ACCEPTED),
    )
    if (heir := card_links.heir_of(memory, card)) is not None:
        response.replaced_by = memory.engine.card(heir)["card_number"]
    if response.freezes and (person_id := persons.person_of_card(memory, card)) is not None:
        change = Change(memory, time_us)
        audit.note(change, caller, "CardLifeService.GetCardStatus", person_id, fields=["freezes"])
        change.commit("freezes-shown")
    return response
