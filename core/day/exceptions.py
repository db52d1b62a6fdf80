"""The queue of exceptions, and adjustments: postings that two people must agree to.

An exception's key is the sequence of the event that it came up in and its place there, so the queue is in the order of the
journal, and what one file showed stands together."""

import unicodedata
from enum import IntEnum
from typing import Final

from yikatong.core import limits
from yikatong.core.change import Change, answered
from yikatong.core.day.positions import FEES
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory
from yikatong.core.paging import kept, key_of, page
from yikatong.core.types import NONE, PURSE_PREFIX, DocumentKind, PostingKind, Result, wire
from yikatong.ext.engine import is_card_number
from yikatong.v1 import exception_service_pb2, reconciliation_service_pb2

LOSSES: Final = "losses"
"""What the city has written off."""

CARD_PREFIX: Final = "card:"
_OPENED_WHEN_NEEDED: Final = (FEES, LOSSES)
_EXCEPTION_KEY_BYTES: Final = 12
_EVENT_KEY_BYTES: Final = 8
_parse_exception = exception_service_pb2.Exception.FromString
_parse_adjustment = exception_service_pb2.Adjustment.FromString


class ExceptionState(IntEnum):
    """Where work on an exception stands."""

    OPEN = 1
    ASSIGNED = 2
    RESOLVED = 3
    WRITTEN_OFF = 4


class ExceptionEvent(IntEnum):
    """What people do with an exception."""

    ASSIGN = 1
    RESOLVE = 2
    WRITE_OFF = 3


EXCEPTION_TRANSITIONS: Final[dict[tuple[ExceptionState, ExceptionEvent], ExceptionState]] = {
    (ExceptionState.OPEN, ExceptionEvent.ASSIGN): ExceptionState.ASSIGNED,
    (ExceptionState.OPEN, ExceptionEvent.RESOLVE): ExceptionState.RESOLVED,
    (ExceptionState.OPEN, ExceptionEvent.WRITE_OFF): ExceptionState.WRITTEN_OFF,
    (ExceptionState.ASSIGNED, ExceptionEvent.ASSIGN): ExceptionState.ASSIGNED,
    (ExceptionState.ASSIGNED, ExceptionEvent.RESOLVE): ExceptionState.RESOLVED,
    (ExceptionState.ASSIGNED, ExceptionEvent.WRITE_OFF): ExceptionState.WRITTEN_OFF,
}
"""What may happen in which state, and what comes of it."""


class AdjustmentState(IntEnum):
    """What became of a proposal."""

    PROPOSED = 1
    APPROVED = 2
    REJECTED = 3


class AdjustmentEvent(IntEnum):
    """What people do with a proposal."""

    APPROVE = 1
    REJECT = 2


ADJUSTMENT_TRANSITIONS: Final[dict[tuple[AdjustmentState, AdjustmentEvent], AdjustmentState]] = {
    (AdjustmentState.PROPOSED, AdjustmentEvent.APPROVE): AdjustmentState.APPROVED,
    (AdjustmentState.PROPOSED, AdjustmentEvent.REJECT): AdjustmentState.REJECTED,
}
"""What may happen in which state, and what comes of it."""


# ---- what requests have in common ----


def check_actor(field: str, actor_id: str) -> None:
    """Raises InvalidRequest when this names nobody."""
    well_formed = 1 <= len(actor_id) <= limits.ACTOR_CHARACTERS_MAX and actor_id.isprintable() and actor_id.strip() == actor_id
    if not well_formed:
        reason = f"1 to {limits.ACTOR_CHARACTERS_MAX} printable characters without blanks around them are wanted"
        raise InvalidRequest(field, reason)


def same_actor(one: str, other: str) -> bool:
    """Whether two ids name one person; writing it otherwise makes nobody another."""
    return unicodedata.normalize("NFKC", one).casefold() == unicodedata.normalize("NFKC", other).casefold()


def check_text(field: str, text: str, *, wanted: bool) -> None:
    """Raises InvalidRequest when a note is too long, or missing where one is wanted."""
    if wanted and not text.strip():
        raise InvalidRequest(field, "is wanted")
    if len(text) > limits.NOTE_CHARACTERS_MAX:
        raise InvalidRequest(field, f"at most {limits.NOTE_CHARACTERS_MAX} characters are taken")


def note(actor_id: str, time_us: int, text: str) -> exception_service_pb2.Note:
    return exception_service_pb2.Note(actor_id=actor_id, time_us=time_us, text=text)


# ---- exceptions ----


def open_exception(
    change: Change,
    at: int,
    source: reconciliation_service_pb2.Difference | exception_service_pb2.ClearingCase,
    time_us: int,
) -> str:
    """Put a new exception into the queue with a change that is not committed yet, as its `at`-th (from 0); returns its id."""
    key = change.sequence.to_bytes(_EVENT_KEY_BYTES, "big") + at.to_bytes(4, "big")
    made = exception_service_pb2.Exception(exception_id=key.hex(), state=wire(ExceptionState.OPEN), opened_us=time_us)
    if isinstance(source, exception_service_pb2.ClearingCase):
        made.clearing.CopyFrom(source)
    else:
        made.difference.CopyFrom(source)
    change.put(DocumentKind.EXCEPTION, key, made.SerializeToString(deterministic=True))
    return made.exception_id


def _exception(memory: Memory, exception_id: str) -> exception_service_pb2.Exception:
    key = key_of("exception_id", exception_id, _EXCEPTION_KEY_BYTES)
    return kept(memory, DocumentKind.EXCEPTION, _parse_exception, "exception", key, exception_id)


def advance(
    change: Change,
    exception: exception_service_pb2.Exception,
    event: ExceptionEvent,
    said: exception_service_pb2.Note,
) -> bool:
    """Bring an exception to its next state, with a note. False where that cannot be."""
    after = EXCEPTION_TRANSITIONS.get((ExceptionState(exception.state), event))
    if after is None:
        return False
    exception.state = wire(after)
    if after in (ExceptionState.RESOLVED, ExceptionState.WRITTEN_OFF):
        exception.closed_us = said.time_us
    if len(exception.notes) < limits.NOTES_MAX or exception.closed_us:
        exception.notes.append(said)
    change.put(DocumentKind.EXCEPTION, bytes.fromhex(exception.exception_id), exception.SerializeToString(deterministic=True))
    return True


def of_event(memory: Memory, sequence: int) -> list[exception_service_pb2.Exception]:
    """Exceptions that came up in one event."""
    prefix = sequence.to_bytes(_EVENT_KEY_BYTES, "big")
    end = (sequence + 1).to_bytes(_EVENT_KEY_BYTES, "big")
    return [_parse_exception(value) for _, value in memory.documents.scan(DocumentKind.EXCEPTION, prefix, end)]


def list_exceptions(
    memory: Memory, request: exception_service_pb2.ListExceptionsRequest, _: int
) -> exception_service_pb2.ListExceptionsResponse:
    """ExceptionService.ListExceptions."""

    def wanted(exception: exception_service_pb2.Exception) -> bool:
        return (not request.state or exception.state == request.state) and (
            not request.assigned_to or exception.assigned_to == request.assigned_to
        )

    found, token = page(
        memory, DocumentKind.EXCEPTION, _parse_exception, size=request.page_size, token=request.page_token, wanted=wanted
    )
    return exception_service_pb2.ListExceptionsResponse(exceptions=found, next_page_token=token)


def list_differences(
    memory: Memory, request: reconciliation_service_pb2.ListDifferencesRequest, _: int
) -> reconciliation_service_pb2.ListDifferencesResponse:
    """ReconciliationService.ListDifferences."""
    found, token = page(
        memory, DocumentKind.EXCEPTION, _parse_exception, size=request.page_size, token=request.page_token,
        prefix=request.sequence.to_bytes(_EVENT_KEY_BYTES, "big"),
    )  # fmt: skip
    return reconciliation_service_pb2.ListDifferencesResponse(
        differences=[exception.difference for exception in found], next_page_token=token
    )


def get_exception(
    memory: Memory, request: exception_service_pb2.GetExceptionRequest, _: int
) -> exception_service_pb2.GetExceptionResponse:
    """ExceptionService.GetException."""
    return exception_service_pb2.GetExceptionResponse(exception=_exception(memory, request.exception_id))


def assign_exception(
    memory: Memory, request: exception_service_pb2.AssignExceptionRequest, time_us: int
) -> exception_service_pb2.AssignExceptionResponse:
    """ExceptionService.AssignException."""
    response_type = exception_service_pb2.AssignExceptionResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    check_actor("actor_id", request.actor_id)
    check_actor("assigned_to", request.assigned_to)
    check_text("note", request.note, wanted=False)
    exception = _exception(memory, request.exception_id)
    if len(exception.notes) >= limits.NOTES_MAX:
        raise InvalidRequest("note", f"there are {limits.NOTES_MAX} already: it can only be closed")
    change = Change(memory, time_us)
    exception.assigned_to = request.assigned_to
    said = note(request.actor_id, time_us, request.note or f"→ {request.assigned_to}")
    if not advance(change, exception, ExceptionEvent.ASSIGN, said):
        return change.answer(request, response_type(result=wire(Result.WRONG_STATE)), "exception-refused")
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), exception=exception), "exception-assigned")


def resolve_exception(
    memory: Memory, request: exception_service_pb2.ResolveExceptionRequest, time_us: int
) -> exception_service_pb2.ResolveExceptionResponse:
    """ExceptionService.ResolveException."""
    response_type = exception_service_pb2.ResolveExceptionResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    check_actor("actor_id", request.actor_id)
    check_text("note", request.note, wanted=True)
    event = {
        int(ExceptionState.RESOLVED): ExceptionEvent.RESOLVE,
        int(ExceptionState.WRITTEN_OFF): ExceptionEvent.WRITE_OFF,
    }.get(request.state)
    if event is None:
        raise InvalidRequest("state", "STATE_RESOLVED or STATE_WRITTEN_OFF is wanted")
    exception = _exception(memory, request.exception_id)
    change = Change(memory, time_us)
    if not advance(change, exception, event, note(request.actor_id, time_us, request.note)):
        return change.answer(request, response_type(result=wire(Result.WRONG_STATE)), "exception-refused")
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), exception=exception), "exception-closed")


# ---- adjustments ----


def _adjustment(memory: Memory, adjustment_id: str) -> exception_service_pb2.Adjustment:
    key = key_of("adjustment_id", adjustment_id, _EVENT_KEY_BYTES)
    return kept(memory, DocumentKind.ADJUSTMENT, _parse_adjustment, "adjustment", key, adjustment_id)


def _put_adjustment(change: Change, adjustment: exception_service_pb2.Adjustment) -> None:
    key = bytes.fromhex(adjustment.adjustment_id)
    change.put(DocumentKind.ADJUSTMENT, key, adjustment.SerializeToString(deterministic=True))


def _account(memory: Memory, field: str, name: str) -> tuple[int | None, int]:
    """The account of a name (None: to be opened when it is needed) and the slot of the card that it belongs to, if to any. Raises
    InvalidRequest or NotFound."""
    if not 1 <= len(name.encode()) <= limits.ACCOUNT_NAME_BYTES_MAX:
        raise InvalidRequest(field, f"1 to {limits.ACCOUNT_NAME_BYTES_MAX} bytes are wanted")
    role, _, rest = name.partition(":")
    card = NONE
    if f"{role}:" in (CARD_PREFIX, PURSE_PREFIX):
        number = rest.partition(":")[0]
        card = int(memory.engine.find_card(number)) if is_card_number(number) else NONE
        if card == NONE:
            raise NotFound("card", number)
    if name.startswith(CARD_PREFIX):
        return int(memory.engine.card(card)["account"]), card
    account = memory.account(name)
    if account is None and name not in _OPENED_WHEN_NEEDED:
        raise NotFound("account", name)
    return account, card


def _check_legs(memory: Memory, legs: list[exception_service_pb2.AdjustmentLeg]) -> None:
    if not 1 <= len(legs) <= limits.ADJUSTMENT_LEGS_MAX:
        raise InvalidRequest("legs", f"1 to {limits.ADJUSTMENT_LEGS_MAX} are wanted")
    for at, leg in enumerate(legs):
        if not 1 <= leg.amount_fen <= limits.ADJUSTMENT_FEN_MAX:
            raise InvalidRequest(f"legs[{at}].amount_fen", f"1 to {limits.ADJUSTMENT_FEN_MAX} is wanted")
        debit, debit_card = _account(memory, f"legs[{at}].debit_account", leg.debit_account)
        credit, credit_card = _account(memory, f"legs[{at}].credit_account", leg.credit_account)
        if leg.debit_account == leg.credit_account or (debit is not None and debit == credit):
            raise InvalidRequest(f"legs[{at}].credit_account", "is the debit account too")
        if debit_card != NONE and credit_card != NONE:
            raise InvalidRequest(f"legs[{at}].credit_account", "a card on one side at most: put a named account between them")


def propose_adjustment(
    memory: Memory, request: exception_service_pb2.ProposeAdjustmentRequest, time_us: int
) -> exception_service_pb2.ProposeAdjustmentResponse:
    """ExceptionService.ProposeAdjustment."""
    response_type = exception_service_pb2.ProposeAdjustmentResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    check_actor("actor_id", request.actor_id)
    check_text("reason", request.reason, wanted=True)
    _check_legs(memory, list(request.legs))
    change = Change(memory, time_us)
    if request.exception_id and _exception(memory, request.exception_id).closed_us:
        return change.answer(request, response_type(result=wire(Result.WRONG_STATE)), "adjustment-refused")
    adjustment = exception_service_pb2.Adjustment(
        adjustment_id=change.sequence.to_bytes(_EVENT_KEY_BYTES, "big").hex(),
        state=wire(AdjustmentState.PROPOSED),
        legs=request.legs,
        reason=request.reason,
        exception_id=request.exception_id,
        proposed_by=request.actor_id,
        proposed_us=time_us,
    )
    _put_adjustment(change, adjustment)
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), adjustment=adjustment), "adjustment-proposed")


def approve_adjustment(
    memory: Memory, request: exception_service_pb2.ApproveAdjustmentRequest, time_us: int
) -> exception_service_pb2.ApproveAdjustmentResponse:
    """ExceptionService.ApproveAdjustment."""
    response_type = exception_service_pb2.ApproveAdjustmentResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    check_actor("actor_id", request.actor_id)
    adjustment = _adjustment(memory, request.adjustment_id)
    change = Change(memory, time_us)
    after = ADJUSTMENT_TRANSITIONS.get((AdjustmentState(adjustment.state), AdjustmentEvent.APPROVE))
    refusal = None
    if after is None:
        refusal = Result.WRONG_STATE
    elif same_actor(request.actor_id, adjustment.proposed_by):
        refusal = Result.SAME_ACTOR
    elif not _cards_can_pay(memory, adjustment):
        refusal = Result.INSUFFICIENT_FUNDS
    if refusal is not None:
        return change.answer(request, response_type(result=wire(refusal)), "adjustment-refused")
    for leg in adjustment.legs:
        debit, debit_card = _account(memory, "debit_account", leg.debit_account)
        credit, credit_card = _account(memory, "credit_account", leg.credit_account)
        change.move(
            change.open_account(leg.debit_account) if debit is None else debit,
            change.open_account(leg.credit_account) if credit is None else credit,
            leg.amount_fen,
            PostingKind.ADJUSTMENT,
            card=debit_card if debit_card != NONE else credit_card,
        )
    adjustment.state = wire(AdjustmentState.APPROVED)
    adjustment.decided_by, adjustment.decided_us, adjustment.posted_sequence = request.actor_id, time_us, change.sequence
    _put_adjustment(change, adjustment)
    if adjustment.exception_id:  # somebody may have closed it meanwhile; the postings are right all the same
        said = f"adjustment {adjustment.adjustment_id}: {adjustment.reason}"[: limits.NOTE_CHARACTERS_MAX]
        exception = _exception(memory, adjustment.exception_id)
        advance(change, exception, ExceptionEvent.RESOLVE, note(request.actor_id, time_us, said))
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), adjustment=adjustment), "adjustment-posted")


def _cards_can_pay(memory: Memory, adjustment: exception_service_pb2.Adjustment) -> bool:
    """Whether each card has what it is to lose, holds left alone. What a card gets by other legs counts."""
    change_fen: dict[int, int] = {}
    for leg in adjustment.legs:
        for name, sign in ((leg.debit_account, -1), (leg.credit_account, 1)):
            account, card = _account(memory, "legs", name)
            if card != NONE and account is not None:
                change_fen[account] = change_fen.get(account, 0) + sign * leg.amount_fen
    engine = memory.engine
    return all(
        change >= 0 or engine.balance_fen(account) - engine.held_fen(account) + change >= 0
        for account, change in change_fen.items()
    )


def reject_adjustment(
    memory: Memory, request: exception_service_pb2.RejectAdjustmentRequest, time_us: int
) -> exception_service_pb2.RejectAdjustmentResponse:
    """ExceptionService.RejectAdjustment."""
    response_type = exception_service_pb2.RejectAdjustmentResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    check_actor("actor_id", request.actor_id)
    adjustment = _adjustment(memory, request.adjustment_id)
    change = Change(memory, time_us)
    after = ADJUSTMENT_TRANSITIONS.get((AdjustmentState(adjustment.state), AdjustmentEvent.REJECT))
    if after is None:
        return change.answer(request, response_type(result=wire(Result.WRONG_STATE)), "adjustment-refused")
    adjustment.state, adjustment.decided_by, adjustment.decided_us = wire(after), request.actor_id, time_us
    _put_adjustment(change, adjustment)
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), adjustment=adjustment), "adjustment-rejected")


def get_adjustment(
    memory: Memory, request: exception_service_pb2.GetAdjustmentRequest, _: int
) -> exception_service_pb2.GetAdjustmentResponse:
    """ExceptionService.GetAdjustment."""
    return exception_service_pb2.GetAdjustmentResponse(adjustment=_adjustment(memory, request.adjustment_id))
