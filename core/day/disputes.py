"""Disputes: a cardholder wants a charge back, the operator answers, the city decides. Deadlines run on journal time.

A refund is a new posting from whoever bears it to the account that was charged; the charge itself stays as it was."""

from enum import IntEnum
from typing import Any, Final

from yikatong.core import limits, types
from yikatong.core.acquiring.authorization import captured_leg, give_back
from yikatong.core.acquiring.purses import closed_funder
from yikatong.core.change import Change, answered
from yikatong.core.day.exceptions import check_actor, check_text, note
from yikatong.core.day.positions import FEES
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.late import priced_records
from yikatong.core.memory import Memory
from yikatong.core.paging import kept, key_of, page
from yikatong.core.types import NONE, DocumentKind, Flag, PostingKind, RecordKind, Result, wire
from yikatong.ext.engine import is_card_number
from yikatong.v1 import exception_service_pb2

DAY_US: Final = 86_400_000_000
_KEY_BYTES: Final = 8
_DIGEST_BYTES: Final = 32
_CHARGES: Final = ("CAPTURE", "CORRECTION")  # kinds of posting that are charges
_parse = exception_service_pb2.Dispute.FromString


class DisputeState(IntEnum):
    """Where a dispute stands."""

    OPEN = 1
    ACCEPTED = 2  # the operator admits it
    CONTESTED = 3
    LAPSED = 4  # the operator said nothing in time
    REFUNDED_BY_OPERATOR = 5
    REFUNDED_BY_CITY = 6
    REJECTED = 7
    WITHDRAWN = 8


class DisputeEvent(IntEnum):
    """What happens to a dispute."""

    ACCEPT = 1
    CONTEST = 2
    LAPSE = 3
    REFUND_BY_OPERATOR = 4
    REFUND_BY_CITY = 5
    REJECT = 6
    WITHDRAW = 7


_S, _E = DisputeState, DisputeEvent

TRANSITIONS: Final[dict[tuple[DisputeState, DisputeEvent], DisputeState]] = {
    (_S.OPEN, _E.ACCEPT): _S.ACCEPTED,
    (_S.OPEN, _E.CONTEST): _S.CONTESTED,
    (_S.OPEN, _E.LAPSE): _S.LAPSED,
    (_S.OPEN, _E.WITHDRAW): _S.WITHDRAWN,
    (_S.ACCEPTED, _E.REFUND_BY_OPERATOR): _S.REFUNDED_BY_OPERATOR,
    (_S.ACCEPTED, _E.REFUND_BY_CITY): _S.REFUNDED_BY_CITY,
    (_S.ACCEPTED, _E.WITHDRAW): _S.WITHDRAWN,
    (_S.CONTESTED, _E.REFUND_BY_OPERATOR): _S.REFUNDED_BY_OPERATOR,
    (_S.CONTESTED, _E.REFUND_BY_CITY): _S.REFUNDED_BY_CITY,
    (_S.CONTESTED, _E.REJECT): _S.REJECTED,
    (_S.CONTESTED, _E.WITHDRAW): _S.WITHDRAWN,
    (_S.LAPSED, _E.REFUND_BY_OPERATOR): _S.REFUNDED_BY_OPERATOR,
    (_S.LAPSED, _E.REFUND_BY_CITY): _S.REFUNDED_BY_CITY,
    (_S.LAPSED, _E.REJECT): _S.REJECTED,
    (_S.LAPSED, _E.WITHDRAW): _S.WITHDRAWN,
}
"""What may happen in which state, and what comes of it. What the operator admits cannot be rejected any more."""

CLOSED: Final = (_S.REFUNDED_BY_OPERATOR, _S.REFUNDED_BY_CITY, _S.REJECTED, _S.WITHDRAWN)


def lapsed(dispute: exception_service_pb2.Dispute, time_us: int) -> exception_service_pb2.Dispute:
    """The dispute as it is at a journal time: one that the operator let pass has lapsed. Changed in place."""
    if time_us > dispute.respond_by_us:
        dispute.state = wire(TRANSITIONS.get((_S(dispute.state), _E.LAPSE), dispute.state))
    return dispute


def _dispute(memory: Memory, dispute_id: str, time_us: int) -> exception_service_pb2.Dispute:
    key = key_of("dispute_id", dispute_id, _KEY_BYTES)
    return lapsed(kept(memory, DocumentKind.DISPUTE, _parse, "dispute", key, dispute_id), time_us)


def _advance(
    change: Change, dispute: exception_service_pb2.Dispute, event: DisputeEvent, said: exception_service_pb2.Note
) -> bool:
    """Bring a dispute to its next state, with a note where there is one. False where that cannot be."""
    after = TRANSITIONS.get((_S(dispute.state), event))
    if after is None:
        return False
    dispute.state = wire(after)
    if said.text:
        dispute.notes.append(said)
    if after in CLOSED:
        dispute.closed_us = said.time_us
    _put(change, dispute)
    return True


def _put(change: Change, dispute: exception_service_pb2.Dispute) -> None:
    change.put(DocumentKind.DISPUTE, bytes.fromhex(dispute.dispute_id), dispute.SerializeToString(deterministic=True))


def _check_evidence(evidence: Any, there: int = 0) -> None:
    if len(evidence) > limits.EVIDENCE_MAX:
        raise InvalidRequest("evidence", f"at most {limits.EVIDENCE_MAX} are taken in one request")
    if there + len(evidence) > limits.EVIDENCE_ALL_MAX:
        raise InvalidRequest("evidence", f"at most {limits.EVIDENCE_ALL_MAX} are kept for one dispute")
    for at, piece in enumerate(evidence):
        check_actor(f"evidence[{at}].actor_id", piece.actor_id)
        check_text(f"evidence[{at}].description", piece.description, wanted=False)
        if len(piece.digest) != _DIGEST_BYTES:
            raise InvalidRequest(f"evidence[{at}].digest", f"{_DIGEST_BYTES} bytes are wanted")


def _charge(memory: Memory, sequence: int, card: int) -> Any:
    """The journal record of a charge of a card. Raises NotFound."""
    charge: Any = None
    if 1 <= sequence < memory.engine.next_sequence:
        with memory.journal.read() as reader:
            located = reader.record(sequence)
            charge = None if located is None else located[1][0].copy()
    if charge is None or not _is_charge(memory, charge, card):
        raise NotFound("charge", f"of this card at sequence {sequence}")
    return charge


def _is_charge(memory: Memory, record: Any, card: int) -> bool:
    """Whether a journal record took money from one of a card's purses for a ride or a purchase."""
    known = memory.engine.card(card)
    purses = {account for _, account in memory.named_accounts(f"{types.PURSE_PREFIX}{known['card_number']}:")}
    own = {int(known["account"]), *purses} | ({int(known["chip_account"])} if known["chip_account"] else set())
    if int(record["card"]) != card or int(record["debit_account"]) not in own:
        return False
    if record["kind"] == RecordKind.TAP:
        return bool(record["result"] in types.CHARGED and record["amount_fen"])
    return bool(record["kind"] == RecordKind.POSTING and PostingKind(int(record["transaction_type"])).name in _CHARGES)


def _is_capture(charge: Any) -> bool:
    return bool(charge["kind"] == RecordKind.POSTING and charge["transaction_type"] == PostingKind.CAPTURE)


def left_fen(memory: Memory, charge: Any) -> int:
    """What can still be given back of a charge: of a capture, what was not refunded or reversed since; of a fare, what it came to
    with its corrections."""
    amount_fen = int(charge["amount_fen"])
    if not _is_capture(charge):
        return min(amount_fen, _fare_fen(memory, charge)) if charge["flags"] & Flag.PRICED else amount_fen
    _, leg = captured_leg(memory, int(charge["sequence"]))
    return min(amount_fen, leg.captured_fen - leg.refunded_fen)


def _fare_fen(memory: Memory, charge: Any) -> int:
    """What the fare of a priced tap, or of the tap that a correction is of, comes to by now."""
    card = int(charge["card"])
    since_us = int(charge["time_us"]) if charge["kind"] == RecordKind.TAP else 0  # its corrections come after it
    records, _ = priced_records(memory, card, since_us)
    own = records[records["atc"] == charge["atc"]]
    taken = own["debit_account"] == memory.engine.card(card)["account"]
    return int(own["amount_fen"][taken].sum()) - int(own["amount_fen"][~taken].sum())


# ---- ExceptionService ----


def parties_of(memory: Memory, dispute_id: str) -> tuple[tuple[str, ...], str]:
    """Who was paid what a dispute is about (an operator's id, or an acquirer's), and the card that paid. Raises NotFound or
    InvalidRequest."""
    dispute = _dispute(memory, dispute_id, 0)
    charge = _charge(memory, dispute.journal_sequence, int(memory.engine.find_card(dispute.card_number)))
    if _is_capture(charge):
        authorization, _ = captured_leg(memory, int(charge["sequence"]))
        return (authorization.acquirer_id,), dispute.card_number
    paid = [name for name, account in memory.operator_accounts.items() if account == int(charge["credit_account"])]
    return tuple(paid), dispute.card_number


def open_dispute(
    memory: Memory, request: exception_service_pb2.OpenDisputeRequest, time_us: int
) -> exception_service_pb2.OpenDisputeResponse:
    """ExceptionService.OpenDispute."""
    response_type = exception_service_pb2.OpenDisputeResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    # 1. The request is well-formed.
    check_actor("actor_id", request.actor_id)
    check_text("note", request.note, wanted=False)
    _check_evidence(request.evidence)
    if request.reason not in exception_service_pb2.Dispute.Reason.values() or not request.reason:
        raise InvalidRequest("reason", "one of REASON_… is wanted")
    if request.disputed_fen < 1:
        raise InvalidRequest("disputed_fen", "1 up to what was charged is wanted")
    if not is_card_number(request.card_number):
        raise InvalidRequest("card_number", "1 to 20 digits are wanted")
    card = int(memory.engine.find_card(request.card_number))
    if card == NONE:
        raise NotFound("card", request.card_number)
    charge = _charge(memory, request.journal_sequence, card)
    # 2. The charge can be disputed, still and not already.
    charge_key = request.journal_sequence.to_bytes(_KEY_BYTES, "big")
    change = Change(memory, time_us)
    refusal = None
    if memory.documents.get(DocumentKind.DISPUTED_CHARGE, charge_key) is not None:
        refusal = Result.ALREADY_DISPUTED
    elif time_us > int(charge["time_us"]) + limits.DISPUTE_OPEN_DAYS * DAY_US:
        refusal = Result.DEADLINE_PASSED
    elif request.disputed_fen > left_fen(memory, charge):
        refusal = Result.ABOVE_CHARGE
    if refusal is not None:
        return change.answer(request, response_type(result=wire(refusal)), "dispute-refused")
    # 3. It is open.
    key = change.sequence.to_bytes(_KEY_BYTES, "big")
    dispute = exception_service_pb2.Dispute(
        dispute_id=key.hex(),
        state=wire(DisputeState.OPEN),
        card_number=request.card_number,
        journal_sequence=request.journal_sequence,
        charged_fen=int(charge["amount_fen"]),
        disputed_fen=request.disputed_fen,
        reason=request.reason,
        evidence=request.evidence,
        notes=[note(request.actor_id, time_us, request.note)] if request.note else [],
        opened_us=time_us,
        respond_by_us=time_us + limits.DISPUTE_RESPOND_DAYS * DAY_US,
        decide_by_us=time_us + limits.DISPUTE_DECIDE_DAYS * DAY_US,
    )
    _put(change, dispute)
    change.put(DocumentKind.DISPUTED_CHARGE, charge_key, key)
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), dispute=dispute), "dispute-opened")


def respond_to_dispute(
    memory: Memory, request: exception_service_pb2.RespondToDisputeRequest, time_us: int
) -> exception_service_pb2.RespondToDisputeResponse:
    """ExceptionService.RespondToDispute."""
    response_type = exception_service_pb2.RespondToDisputeResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    check_actor("actor_id", request.actor_id)
    check_text("note", request.note, wanted=False)
    dispute = _dispute(memory, request.dispute_id, time_us)
    _check_evidence(request.evidence, len(dispute.evidence))
    change = Change(memory, time_us)
    if _S(dispute.state) is _S.LAPSED:
        return change.answer(request, response_type(result=wire(Result.DEADLINE_PASSED)), "dispute-refused")
    dispute.evidence.extend(request.evidence)
    event = DisputeEvent.ACCEPT if request.accept else DisputeEvent.CONTEST
    if not _advance(change, dispute, event, note(request.actor_id, time_us, request.note)):
        return change.answer(request, response_type(result=wire(Result.WRONG_STATE)), "dispute-refused")
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), dispute=dispute), "dispute-answered")


_DECISIONS: Final = {
    int(_S.REFUNDED_BY_OPERATOR): _E.REFUND_BY_OPERATOR,
    int(_S.REFUNDED_BY_CITY): _E.REFUND_BY_CITY,
    int(_S.REJECTED): _E.REJECT,
}


def decide_dispute(
    memory: Memory, request: exception_service_pb2.DecideDisputeRequest, time_us: int
) -> exception_service_pb2.DecideDisputeResponse:
    """ExceptionService.DecideDispute."""
    response_type = exception_service_pb2.DecideDisputeResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    check_actor("actor_id", request.actor_id)
    check_text("note", request.note, wanted=True)
    event = _DECISIONS.get(request.outcome)
    if event is None:
        raise InvalidRequest("outcome", "STATE_REFUNDED_BY_OPERATOR, STATE_REFUNDED_BY_CITY or STATE_REJECTED is wanted")
    dispute = _dispute(memory, request.dispute_id, time_us)
    change = Change(memory, time_us)
    refusal = None
    if _S(dispute.state) is _S.OPEN:
        refusal = Result.DEADLINE_RUNNING
    elif (_S(dispute.state), event) not in TRANSITIONS:
        refusal = Result.WRONG_STATE
    elif event is DisputeEvent.REJECT and time_us > dispute.decide_by_us:
        refusal = Result.DEADLINE_PASSED
    elif event is not DisputeEvent.REJECT:
        card = int(memory.engine.find_card(dispute.card_number))
        charge = _charge(memory, dispute.journal_sequence, card)
        if dispute.disputed_fen > left_fen(memory, charge):
            refusal = Result.ABOVE_CHARGE
    if refusal is not None:
        return change.answer(request, response_type(result=wire(refusal)), "dispute-refused")
    if event is not DisputeEvent.REJECT:
        bears = int(charge["credit_account"]) if event is DisputeEvent.REFUND_BY_OPERATOR else change.open_account(FEES)
        known = memory.engine.card(card)
        to = int(charge["debit_account"])
        if to == known["chip_account"]:
            to = int(known["account"])  # it cannot go back onto the chip
        if _is_capture(charge):
            authorization, leg = captured_leg(memory, dispute.journal_sequence)
            give_back(change, authorization, leg, dispute.disputed_fen)
            to = closed_funder(memory, card, leg.purse) or to  # where the rest of a closed purse went
        change.move(bears, to, dispute.disputed_fen, PostingKind.DISPUTE, card=card)
        dispute.posted_sequence = change.sequence
    _advance(change, dispute, event, note(request.actor_id, time_us, request.note))
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), dispute=dispute), "dispute-decided")


def withdraw_dispute(
    memory: Memory, request: exception_service_pb2.WithdrawDisputeRequest, time_us: int
) -> exception_service_pb2.WithdrawDisputeResponse:
    """ExceptionService.WithdrawDispute."""
    response_type = exception_service_pb2.WithdrawDisputeResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    check_actor("actor_id", request.actor_id)
    check_text("note", request.note, wanted=False)
    dispute = _dispute(memory, request.dispute_id, time_us)
    change = Change(memory, time_us)
    if not _advance(change, dispute, DisputeEvent.WITHDRAW, note(request.actor_id, time_us, request.note)):
        return change.answer(request, response_type(result=wire(Result.WRONG_STATE)), "dispute-refused")
    change.delete(DocumentKind.DISPUTED_CHARGE, dispute.journal_sequence.to_bytes(_KEY_BYTES, "big"))
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), dispute=dispute), "dispute-withdrawn")


def get_dispute(
    memory: Memory, request: exception_service_pb2.GetDisputeRequest, time_us: int
) -> exception_service_pb2.GetDisputeResponse:
    """ExceptionService.GetDispute."""
    return exception_service_pb2.GetDisputeResponse(dispute=_dispute(memory, request.dispute_id, time_us))


def list_disputes(
    memory: Memory, request: exception_service_pb2.ListDisputesRequest, time_us: int
) -> exception_service_pb2.ListDisputesResponse:
    """ExceptionService.ListDisputes."""

    def wanted(dispute: exception_service_pb2.Dispute) -> bool:
        return (not request.state or dispute.state == request.state) and (
            not request.card_number or dispute.card_number == request.card_number
        )

    found, token = page(
        memory, DocumentKind.DISPUTE, lambda value: lapsed(_parse(value), time_us), size=request.page_size,
        token=request.page_token, wanted=wanted,
    )  # fmt: skip
    return exception_service_pb2.ListDisputesResponse(disputes=found, next_page_token=token)
