"""The deny list: cards that terminals must refuse, in versions, in full or as changes since a version."""

import struct
from typing import Any, Final

import numpy as np

from yikatong.core import limits
from yikatong.core.cards import card_life, card_links
from yikatong.core.cards.card_life import Event, State
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest
from yikatong.core.memory import Memory
from yikatong.core.paging import page_token, parse_page_token
from yikatong.core.types import NONE, Deny, Result, wire
from yikatong.ext.engine import is_card_number
from yikatong.v1 import deny_list_service_pb2 as protos

REASONS: Final[dict[int, Deny]] = {
    protos.DENY_REASON_DEBT: Deny.DEBT,
    protos.DENY_REASON_LOSS: Deny.LOSS,
    protos.DENY_REASON_FROZEN: Deny.FROZEN,
    protos.DENY_REASON_CANCELLED: Deny.CANCELLED,
    protos.DENY_REASON_NOT_ENABLED: Deny.NOT_ENABLED,
}
FULL, DELTA = protos.GetDenyListResponse.KIND_FULL, protos.GetDenyListResponse.KIND_DELTA


def deny_card(memory: Memory, request: protos.DenyCardRequest, time_us: int) -> protos.DenyCardResponse:
    """DenyListService.DenyCard."""
    reason = _reason(request.card_number, request.reason)
    if not 0 <= request.reported_time_us <= time_us + limits.CLOCK_AHEAD_S * 1_000_000:
        raise InvalidRequest("reported_time_us", "lies in the future")
    if (answer := answered(memory, request, protos.DenyCardResponse)) is not None:
        return answer
    slot = memory.engine.find_card(request.card_number)
    if slot == NONE:
        return protos.DenyCardResponse(result=wire(Result.UNKNOWN_CARD))
    change = Change(memory, time_us)
    result, reasons = _deny(memory, change, slot, reason)
    return change.answer(request, protos.DenyCardResponse(result=wire(result), reasons=reasons_of(reasons)), "card-denied")


def allow_card(memory: Memory, request: protos.AllowCardRequest, time_us: int) -> protos.AllowCardResponse:
    """DenyListService.AllowCard."""
    reason = _reason(request.card_number, request.reason)
    if (answer := answered(memory, request, protos.AllowCardResponse)) is not None:
        return answer
    slot = memory.engine.find_card(request.card_number)
    if slot == NONE:
        return protos.AllowCardResponse(result=wire(Result.UNKNOWN_CARD))
    change = Change(memory, time_us)
    result, reasons = _allow(memory, change, slot, reason)
    return change.answer(request, protos.AllowCardResponse(result=wire(result), reasons=reasons_of(reasons)), "card-allowed")


def _deny(memory: Memory, change: Change, slot: int, reason: Deny) -> tuple[Result, int]:
    """Take a card's life on as a reason says (card_life.py), and its e-card's with it; why the card is on the list then. What
    it says already is said again without harm."""
    reasons = memory.engine.card(slot)["deny_reasons"]
    card = card_links.card_of(memory, slot)
    life = card_life.at(memory, card, change.time_us)
    state = State(life.state)
    if reason is Deny.LOSS:
        event, done = Event.LOSE, state in (State.LOST, State.FROZEN_LOST)
    elif reason is Deny.FROZEN:
        event, done = Event.FREEZE, any(freeze.by == card_life.DENY_LIST for freeze in life.freezes)
    else:
        event, done = Event.CANCEL, state is State.CANCELLED
    if done:
        return Result.ACCEPTED, reasons
    if refused := card_life.refused(life, event):
        return refused, reasons
    if reason is Deny.FROZEN:
        life.freezes.add(freeze_id=change.sequence, by=card_life.DENY_LIST, time_us=change.time_us)
    card_life.go(memory, change, card, life, event)
    return Result.ACCEPTED, card_life.reasons_in(memory, slot, State(life.state))


def _allow(memory: Memory, change: Change, slot: int, reason: Deny) -> tuple[Result, int]:
    """The other way. Freezes by others than the deny list stay; a cancelled card stays so."""
    reasons = memory.engine.card(slot)["deny_reasons"]
    if not reasons & reason:
        return Result.ACCEPTED, reasons
    card = card_links.card_of(memory, slot)
    if reason is Deny.LOSS and card_life.is_lifted(memory, card, change.time_us):
        reason = Deny(0)  # of itself: it only remains to be written
    life = card_life.at(memory, card, change.time_us)
    event: Event | None = None
    if reason is Deny.LOSS:
        event = Event.LIFT_LOSS
    elif reason is Deny.FROZEN:
        others = [freeze for freeze in life.freezes if freeze.by != card_life.DENY_LIST]
        if len(others) == len(life.freezes):
            return Result.FREEZE_NOT_OWN, reasons
        del life.freezes[:]
        life.freezes.extend(others)
        event = None if others else Event.UNFREEZE
    elif reason is Deny.CANCELLED:
        return Result.WRONG_STATE, reasons
    if event is None:
        card_life.write(memory, change, card, life)
    elif refused := card_life.refused(life, event):
        return refused, reasons
    else:
        card_life.go(memory, change, card, life, event)
    return Result.ACCEPTED, card_life.reasons_in(memory, slot, State(life.state))


def _reason(card_number: str, reason: int) -> Deny:
    if not is_card_number(card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    if reason not in REASONS or REASONS[reason] in (Deny.DEBT, Deny.NOT_ENABLED):
        raise InvalidRequest("reason", "LOSS, FROZEN or CANCELLED is wanted")
    return REASONS[reason]


def reasons_of(reasons: int) -> list[Any]:
    """A set of types.Deny as the protos have it."""
    return [named for named, reason in REASONS.items() if reasons & reason]


def get_deny_list(memory: Memory, request: protos.GetDenyListRequest, _: int) -> protos.GetDenyListResponse:
    """DenyListService.GetDenyList. A list that takes several pages may change between them: the version is that of the first
    page, so what changed meanwhile comes with the next delta."""
    if not 0 <= request.page_size <= limits.DENY_PAGE_SIZE_MAX:
        raise InvalidRequest("page_size", f"0 to {limits.DENY_PAGE_SIZE_MAX} is wanted")
    size = request.page_size or limits.DENY_PAGE_SIZE_DEFAULT
    engine = memory.engine
    kind, start, version = (
        _parse_token(request.page_token, request.version) if request.page_token else (None, 0, engine.deny_version)
    )
    if request.version > engine.deny_version:
        raise InvalidRequest("version", f"is not one of this list, whose version is {engine.deny_version}")
    if kind is None:
        kind = DELTA if request.version and request.version >= engine.denials_after else FULL
    response = protos.GetDenyListResponse(kind=wire(kind), version=version)
    if kind == FULL:
        slots, following = engine.denied(start, size)
    else:
        if request.version < engine.denials_after:
            raise InvalidRequest("page_token", "so much has changed meanwhile that the list must be fetched in full")
        changes = engine.denials()
        wanted = changes[(changes["sequence"] > max(request.version, start)) & (changes["sequence"] <= version)]
        # A card and its e-card come and go with one sequence: a page ends between sequences.
        end = (
            int(np.searchsorted(wanted["sequence"], wanted["sequence"][size - 1], "right")) if len(wanted) > size else len(wanted)
        )
        slots = list(dict.fromkeys(wanted["card"][:end].tolist()))
        following = int(wanted["sequence"][end - 1]) if len(wanted) > end else 0
    for slot in slots:
        card = engine.card(slot)
        response.entries.add(
            card_number=card["card_number"], reasons=reasons_of(card["deny_reasons"]), denied_since_s=card["denied_since_s"]
        )
    if following:
        response.next_page_token = _token(kind, following, version, request.version)
    return response


_TOKEN: Final = struct.Struct(">BQQ")


def _token(kind: int, start: int, version: int, asked: int) -> str:
    return page_token(_TOKEN.pack(kind, start, version), asked.to_bytes(8, "big"))


def _parse_token(token: str, asked: int) -> tuple[int, int, int]:
    kind, start, version = _TOKEN.unpack(parse_page_token(token, asked.to_bytes(8, "big"), _TOKEN.size))
    return kind, start, version
