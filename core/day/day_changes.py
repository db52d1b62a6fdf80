"""What each step of a day changes: commands on the writer's thread, one for each step, all or nothing. day.py calls them."""

from collections.abc import Mapping
from typing import Any, Final

from yikatong.core.change import Change, answered
from yikatong.core.day.clear import Tally
from yikatong.core.day.exceptions import open_exception
from yikatong.core.day.net import Net
from yikatong.core.day.payments import all_settled, instructions_of, issue, withdraw
from yikatong.core.day.positions import Line, LineKind, Netted, Payee, Position
from yikatong.core.day.seal import Sealed, seal_digest
from yikatong.core.day.settle import Instruction
from yikatong.core.day.windows import (
    IN_THE_WAY,
    Range,
    WindowEvent,
    advance,
    after,
    day_of,
    put_window,
    window_document,
    window_key,
)
from yikatong.core.errors import InvalidRequest
from yikatong.core.memory import OPERATOR_PREFIX, Memory
from yikatong.core.types import ClearingOutcome, Deny, DocumentKind, Result, WindowState, wire
from yikatong.ext.engine import NONE, local_seconds
from yikatong.v1 import clearing_service_pb2, exception_service_pb2, settlement_service_pb2


def check_date(date: int) -> int:
    """Raises InvalidRequest unless it is a date YYYYMMDD."""
    if local_seconds(date, 0) < 0:
        raise InvalidRequest("settlement_date", f"{date} is no date YYYYMMDD of 2000 to 2099")
    return date


def current_day(memory: Memory, time_us: int) -> int:
    """The settlement day that a record gets at a journal time."""
    return max(int(memory.engine.settlement_day), (time_us // 1_000_000 + 8 * 3600) // 86_400)


def close_window(
    memory: Memory, request: clearing_service_pb2.CloseWindowRequest, time_us: int, *, has_records: bool
) -> clearing_service_pb2.CloseWindowResponse:
    """ClearingService.CloseWindow. `has_records` says whether the journal holds records of that date."""
    response = clearing_service_pb2.CloseWindowResponse
    if (answer := answered(memory, request, response)) is not None:
        return answer
    document = window_document(memory, request.settlement_date)
    state = after(WindowState(document.window.state), WindowEvent.CLOSE)
    if isinstance(state, Result):
        return response(result=wire(state), window=document.window)
    day, today = day_of(request.settlement_date), current_day(memory, time_us)
    if day > today or (day < today and not has_records):
        return response(result=wire(Result.WINDOW_NOT_FOUND))
    document.window.state = wire(state)
    change = Change(memory, time_us)
    put_window(change, document)
    change.close_date(day)
    return change.answer(request, response(result=wire(Result.ACCEPTED), window=document.window), "window-closed")


def post_clearing(
    memory: Memory,
    request: clearing_service_pb2.ClearWindowRequest,
    window: Range,
    tally: Tally,
    netted: Net,
    version: str,
    time_us: int,
) -> clearing_service_pb2.ClearWindowResponse:
    """The one command of clearing: postings, and the window with its positions, all or nothing."""
    response = clearing_service_pb2.ClearWindowResponse
    if (answer := answered(memory, request, response)) is not None:
        return answer
    document = window_document(memory, window.date)
    state = after(WindowState(document.window.state), WindowEvent.CLEAR)
    if isinstance(state, Result):
        return response(result=wire(state), window=document.window)
    change = Change(memory, time_us)
    owing: dict[int, int] = {}
    for movement in netted.movements:
        credit = change.open_account(movement.credit)
        if movement.card < 0:
            change.move(change.open_account(movement.debit), credit, movement.amount_fen, movement.kind)
            continue
        card = memory.engine.card(movement.card)
        change.move(card["chip_account"] or card["account"], credit, movement.amount_fen, movement.kind, movement.card)
        atc = int(tally.proved["atc"][tally.proved["sequence"] == movement.sequence][0])
        key = window_key(window.date) + movement.card.to_bytes(4, "big") + atc.to_bytes(2, "big")
        change.put(DocumentKind.GREY, key, movement.sequence.to_bytes(8, "big"))
        owing[movement.card] = owing.get(movement.card, 0) + movement.amount_fen
    for slot, amount_fen in owing.items():
        card = memory.engine.card(slot)
        if memory.engine.balance_fen(card["chip_account"] or card["account"]) < amount_fen:
            change.deny(slot, card["deny_reasons"] | Deny.DEBT)
    described = document.window
    described.state = wire(state)
    described.first_sequence, described.last_sequence = window.first_sequence, window.last_sequence
    described.agreements_version = version
    for outcome in ClearingOutcome:
        if tally.counts[outcome]:
            described.outcomes.add(
                outcome=wire(outcome), count=int(tally.counts[outcome]), amount_fen=int(tally.amounts_fen[outcome])
            )
    for passed in netted.caps_passed:
        described.caps_passed.add(participant=passed.participant, net_fen=passed.net_fen, cap_fen=passed.cap_fen)
    for position in netted.netted.positions:
        kept = document.positions.add(participant=position.participant, net_fen=position.net_fen)
        for line in position.lines:
            kept.lines.add(kind=line.kind.value, count=line.count, amount_fen=line.amount_fen)
    put_window(change, document)
    return change.answer(request, response(result=wire(Result.ACCEPTED), window=described), "window-cleared")


def netted_of(document: clearing_service_pb2.WindowDocument) -> Netted:
    """Positions as settlement takes them, of a window that was cleared."""
    window = document.window
    return Netted(
        window.settlement_date,
        window.first_sequence,
        window.last_sequence,
        tuple(
            Position(kept.participant, tuple(Line(LineKind(line.kind), line.count, line.amount_fen) for line in kept.lines))
            for kept in document.positions
        ),
    )


def post_settlement(
    memory: Memory,
    request: settlement_service_pb2.SettleWindowRequest,
    orders: list[Instruction],
    payees: Mapping[str, Payee],
    time_us: int,
) -> settlement_service_pb2.SettleWindowResponse:
    """The one command of settling. The window may have been aborted meanwhile."""
    response = settlement_service_pb2.SettleWindowResponse
    if (answer := answered(memory, request, response)) is not None:
        return answer
    date = request.settlement_date
    document = window_document(memory, date)
    if (state := WindowState(document.window.state)) is not WindowState.CLEARED:
        return response(result=wire(IN_THE_WAY[state]), window=document.window)
    change = Change(memory, time_us)
    issue(memory, change, orders, payees, time_us)
    if not orders or (instructions_of(memory, date) and all_settled(memory, date)):
        advance(memory, change, date, WindowEvent.SETTLE)
        document.window.state = wire(WindowState.SETTLED)
    paid = [order.amount_fen for order in orders if order.amount_fen > 0]
    made = response(
        result=wire(Result.ACCEPTED), window=document.window, instructions=len(orders), paid_fen=sum(paid),
        claimed_fen=sum(paid) - sum(order.amount_fen for order in orders),
    )  # fmt: skip
    return change.answer(request, made, "window-settling")


def abort_window(
    memory: Memory, request: settlement_service_pb2.AbortWindowRequest, time_us: int
) -> settlement_service_pb2.AbortWindowResponse:
    response = settlement_service_pb2.AbortWindowResponse
    if (answer := answered(memory, request, response)) is not None:
        return answer
    change = Change(memory, time_us)
    result = advance(memory, change, request.settlement_date, WindowEvent.ABORT)
    document = window_document(memory, request.settlement_date)
    if result is Result.ACCEPTED and not withdraw(memory, change, request.settlement_date):
        result = Result.WRONG_STATE  # the bank has spoken: what was paid is not taken back by forgetting it
    if result is not Result.ACCEPTED:
        return response(result=wire(result), window=document.window)
    document.window.state = wire(WindowState.ABORTED)
    return change.answer(request, response(result=wire(result), window=document.window), "window-aborted")


def resume_window(
    memory: Memory, request: settlement_service_pb2.ResumeWindowRequest, time_us: int
) -> settlement_service_pb2.ResumeWindowResponse:
    response = settlement_service_pb2.ResumeWindowResponse
    if (answer := answered(memory, request, response)) is not None:
        return answer
    change = Change(memory, time_us)
    result = advance(memory, change, request.settlement_date, WindowEvent.RESUME)
    document = window_document(memory, request.settlement_date)
    if result is not Result.ACCEPTED:
        return response(result=wire(result), window=document.window)
    document.window.state = wire(WindowState.CLEARED)
    return change.answer(request, response(result=wire(result), window=document.window), "window-resumed")


def seal_refused(document: clearing_service_pb2.WindowDocument) -> Result | None:
    """Why a window cannot be sealed: it is, or was not settled."""
    if document.window.seal_digest:
        return Result.WINDOW_SEALED
    state = WindowState(document.window.state)
    return None if state is WindowState.SETTLED else IN_THE_WAY[state]


def post_seal(
    memory: Memory, request: settlement_service_pb2.SealWindowRequest, sealed: Sealed, time_us: int
) -> settlement_service_pb2.SealWindowResponse:
    """The one command of sealing. What was sealed may have been aborted meanwhile."""
    response = settlement_service_pb2.SealWindowResponse
    if (answer := answered(memory, request, response)) is not None:
        return answer
    document = window_document(memory, request.settlement_date)
    if (refused := seal_refused(document)) is not None:
        return response(result=wire(refused), window=document.window)
    document.window.seal_digest = seal_digest(sealed.seal)
    change = Change(memory, time_us)
    change.put(DocumentKind.SEAL, window_key(request.settlement_date), sealed.seal)
    change.put(DocumentKind.SEAL_TREE, window_key(request.settlement_date), sealed.subtrees)
    put_window(change, document)
    return change.answer(request, response(result=wire(Result.ACCEPTED), window=document.window), "window-sealed")


def _taken_up_key(date: int, sequence: int) -> bytes:
    return window_key(date) + sequence.to_bytes(8, "big")


def take_up_exception(
    memory: Memory, request: exception_service_pb2.TakeUpExceptionRequest, row: Any, time_us: int
) -> exception_service_pb2.TakeUpExceptionResponse:
    response = exception_service_pb2.TakeUpExceptionResponse
    if (answer := answered(memory, request, response)) is not None:
        return answer
    key = _taken_up_key(request.settlement_date, request.journal_sequence)
    if (taken := memory.documents.get(DocumentKind.TAKEN_UP, key)) is not None:
        return response(result=wire(Result.ACCEPTED), duplicate=True, exception_id=taken.decode())
    found = exception_of(memory, request.settlement_date, row)
    change = Change(memory, time_us)
    case = exception_service_pb2.ClearingCase(
        journal_sequence=found.sequence, outcome=ClearingOutcome(found.outcome).name, settlement_date=request.settlement_date,
        participant=OPERATOR_PREFIX + found.operator_id if found.operator_id else "", amount_fen=found.amount_fen,
    )  # fmt: skip
    exception_id = open_exception(change, 0, case, time_us)
    change.put(DocumentKind.TAKEN_UP, key, exception_id.encode())
    return change.answer(request, response(result=wire(Result.ACCEPTED), exception_id=exception_id), "exception-taken-up")


WHY: Final = {
    ClearingOutcome.DEBT: "the card's balance did not cover it; the rider owes the rest",
    ClearingOutcome.REFUSED: "the rider was let in, and the tap was refused when it was uploaded",
    ClearingOutcome.FORMAT: "its key version or algorithm is not known here",
    ClearingOutcome.DUPLICATE: "the same debit stands in another record",
    ClearingOutcome.FRAUD: "this card counter came before, with another MAC or at another terminal",
    ClearingOutcome.SEQUENCE_REUSED: "this terminal sequence came before, with another tap",
    ClearingOutcome.TERMINAL_UNKNOWN: "no such terminal is registered",
    ClearingOutcome.ISSUER_MISMATCH: "it names another issuer than the card's own",
    ClearingOutcome.CARD_UNKNOWN: "no such card is registered",
    ClearingOutcome.CARD_EXPIRED: "the card had expired",
    ClearingOutcome.MAC_WRONG: "its MAC is not the card's",
    ClearingOutcome.TORN: "the card was torn away; its next record will show whether it paid",
    ClearingOutcome.GREY: "the terminal did not see the card's answer; its next record will show whether it paid",
    ClearingOutcome.GREY_PROVED: "the card's next record shows that it paid; the debit is posted",
    ClearingOutcome.GREY_DISPROVED: "the card's next record shows that it did not pay",
    ClearingOutcome.DENIED_LIABLE: "the card was denied and the terminal must have had the list; the operator bears it",
    ClearingOutcome.AMOUNT_OVER_LIMIT: "it is more than the agreement allows in one tap; kept back",
    ClearingOutcome.BALANCE_GAP: "the chip's balance is off by {detail} fen against the tap before, or its own amount",
    ClearingOutcome.ATC_GAP: "{detail} counters of the card are missing before it; an upload is to be waited for",
    ClearingOutcome.LATE: "it is older than the appeal period; kept back, or given up where nothing was charged",
}
assert set(WHY) == set(ClearingOutcome) - {ClearingOutcome.CLEARED, ClearingOutcome.TEST, ClearingOutcome.DECLINED}


def exception_of(memory: Memory, date: int, row: Any) -> clearing_service_pb2.ClearingException:
    outcome = ClearingOutcome(int(row["outcome"]))
    exception = clearing_service_pb2.ClearingException(
        sequence=int(row["sequence"]), outcome=wire(outcome), amount_fen=int(row["amount_fen"]),
        why=WHY[outcome].format(detail=int(row["detail"])),
    )  # fmt: skip
    if (taken := memory.documents.get(DocumentKind.TAKEN_UP, _taken_up_key(date, int(row["sequence"])))) is not None:
        exception.exception_id = taken.decode()
    if row["card"] != NONE:
        exception.card_number = memory.engine.card(int(row["card"]))["card_number"]
    if row["terminal"] != NONE:
        terminal = memory.engine.terminal(int(row["terminal"]))
        exception.terminal_number = terminal["terminal_number"]
        exception.operator_id = memory.account_operators[terminal["account"]]
    return exception
