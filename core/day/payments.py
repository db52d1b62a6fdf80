"""Payment instructions as the ledger keeps them: given to the bank, and booked as its return files say."""

import datetime
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from yikatong.core import limits
from yikatong.core.change import Change, answered
from yikatong.core.day import exceptions
from yikatong.core.day.bank_file import BankFile, read_bank_csv
from yikatong.core.day.positions import FLOAT, Payee
from yikatong.core.day.reconcile import (
    TRANSITIONS,
    BankDifference,
    InstructionEvent,
    InstructionState,
    Known,
    overdue,
    reconcile_bank,
)
from yikatong.core.day.settle import Instruction, instruction_id
from yikatong.core.day.statement import Payment
from yikatong.core.day.windows import WindowEvent, advance
from yikatong.core.errors import InvalidRequest
from yikatong.core.files import UTC8, FileError, parse_date
from yikatong.core.memory import OPERATOR_PREFIX, Memory
from yikatong.core.paging import kept, page
from yikatong.core.types import DocumentKind, PostingKind, Result, wire
from yikatong.v1 import journal_pb2, reconciliation_service_pb2

BANK_ACCOUNT: Final = "bank:settlement"
"""What the settlement account at the bank has paid out (positive) or taken in."""

DAY_US: Final = 86_400_000_000
_parse = reconciliation_service_pb2.Instruction.FromString


def _put(change: Change, instruction: reconciliation_service_pb2.Instruction) -> None:
    change.put(DocumentKind.INSTRUCTION, instruction.instruction_id.encode(), instruction.SerializeToString(deterministic=True))


def payment_of(instruction: reconciliation_service_pb2.Instruction) -> Payment:
    """An instruction as reports show it."""
    known = _known(instruction)
    return Payment(known.instruction, known.state, instruction.booked_us, instruction.reason)


def _known(instruction: reconciliation_service_pb2.Instruction) -> Known:
    ours = Instruction(
        instruction.instruction_id,
        instruction.settlement_date,
        instruction.participant,
        instruction.amount_fen,
        instruction.attempt,
    )
    return Known(ours, InstructionState(instruction.state), instruction.due_us)


def _of_date(memory: Memory, date: int) -> Iterable[reconciliation_service_pb2.Instruction]:
    prefix = f"{date}-".encode()
    for key, value in memory.documents.scan(DocumentKind.INSTRUCTION, prefix):
        if not key.startswith(prefix):
            return
        yield _parse(value)


# ---- for the command that settles a window ----


def issue(memory: Memory, change: Change, orders: Iterable[Instruction], payees: Mapping[str, Payee], time_us: int) -> None:
    """Put a window's instructions (settle.instructions), as given to the bank at this journal time. What was issued already with
    the same content stays as it is; other content raises InvalidRequest, since the bank may have it."""
    for order in orders:
        made = reconciliation_service_pb2.Instruction(
            instruction_id=order.instruction_id,
            settlement_date=order.settlement_date,
            participant=order.participant,
            amount_fen=order.amount_fen,
            attempt=order.attempt,
            state=wire(InstructionState.ISSUED),
            issued_us=time_us,
            due_us=time_us + limits.PAYMENT_DUE_DAYS * DAY_US,
            from_account=payees[FLOAT].account_number,
        )
        value = memory.documents.get(DocumentKind.INSTRUCTION, order.instruction_id.encode())
        if value is None:
            _put(change, made)
            continue
        there = _parse(value)
        if (there.participant, there.amount_fen) != (made.participant, made.amount_fen):
            raise InvalidRequest("positions", f"{order.instruction_id} was given to the bank with {there.amount_fen} fen")


def withdraw(memory: Memory, change: Change, date: int) -> bool:
    """Take back a window's instructions, when it is aborted before its files went to the bank. False, and nothing is taken
    back, once the bank has said something of one of them."""
    there = list(_of_date(memory, date))
    if any(InstructionState(instruction.state) is not InstructionState.ISSUED or instruction.attempt for instruction in there):
        return False
    for instruction in there:
        change.delete(DocumentKind.INSTRUCTION, instruction.instruction_id.encode())
    return True


def all_settled(
    memory: Memory, date: int, changed: Mapping[str, reconciliation_service_pb2.Instruction] = MappingProxyType({})
) -> bool:
    """Whether everything that a window gave to the bank has been paid, be it at a later attempt; `changed` are instructions, by
    id, as a change in the making leaves them."""
    settled = (InstructionState.PAID, InstructionState.REISSUED)
    now = (changed.get(instruction.instruction_id, instruction) for instruction in _of_date(memory, date))
    return all(InstructionState(instruction.state) in settled for instruction in now)


def instructions_of(memory: Memory, date: int) -> list[reconciliation_service_pb2.Instruction]:
    """All instructions of a window, in order of id."""
    return list(_of_date(memory, date))


# ---- ReconciliationService ----


def list_instructions(
    memory: Memory, request: reconciliation_service_pb2.ListInstructionsRequest, _: int
) -> reconciliation_service_pb2.ListInstructionsResponse:
    """ReconciliationService.ListInstructions."""
    _check_date(request.settlement_date)
    found, token = page(
        memory, DocumentKind.INSTRUCTION, _parse, size=request.page_size, token=request.page_token,
        prefix=f"{request.settlement_date}-".encode(),
        wanted=lambda instruction: not request.state or instruction.state == request.state,
    )  # fmt: skip
    return reconciliation_service_pb2.ListInstructionsResponse(instructions=found, next_page_token=token)


def get_reconciliation(
    memory: Memory, request: reconciliation_service_pb2.GetReconciliationRequest, _: int
) -> reconciliation_service_pb2.GetReconciliationResponse:
    """ReconciliationService.GetReconciliation."""
    _check_date(request.settlement_date)
    books: dict[str, reconciliation_service_pb2.ParticipantBooks] = {}

    def of(participant: str) -> reconciliation_service_pb2.ParticipantBooks:
        return books.setdefault(participant, reconciliation_service_pb2.ParticipantBooks(participant=participant))

    for instruction in _of_date(memory, request.settlement_date):
        state = InstructionState(instruction.state)
        if state is not InstructionState.REISSUED:  # the one that stands in its place counts
            of(instruction.participant).instructed_fen += instruction.amount_fen
        if state is InstructionState.PAID:
            of(instruction.participant).settled_fen += instruction.amount_fen
    prefix = str(request.settlement_date).encode()
    for key, value in memory.documents.scan(DocumentKind.PARTICIPANT_FILES, prefix):
        if not key.startswith(prefix):
            break
        answer = reconciliation_service_pb2.IngestParticipantFileResponse.FromString(
            journal_pb2.ParticipantFiles.FromString(value).response
        )
        row = of(key.removeprefix(prefix).decode())
        row.has_file, row.file_fen, row.journal_fen = True, answer.file_fen, answer.journal_fen
        row.differences = sum(count.count for count in answer.counts)
    for row in books.values():
        row.agrees = row.instructed_fen == row.settled_fen and not row.differences and row.file_fen == row.journal_fen
    return reconciliation_service_pb2.GetReconciliationResponse(
        participants=[books[name] for name in sorted(books)], agrees=all(row.agrees for row in books.values())
    )


def _check_date(date: int) -> None:
    try:
        parse_date(str(date))
    except ValueError as error:
        raise InvalidRequest("settlement_date", f"{date} is no date YYYYMMDD of 2000 to 2099") from error


def reissue_instruction(
    memory: Memory, request: reconciliation_service_pb2.ReissueInstructionRequest, time_us: int
) -> reconciliation_service_pb2.ReissueInstructionResponse:
    """ReconciliationService.ReissueInstruction."""
    response_type = reconciliation_service_pb2.ReissueInstructionResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    key = request.instruction_id.encode()
    if not 1 <= len(key) <= limits.DOCUMENT_KEY_BYTES_MAX:
        raise InvalidRequest("instruction_id", "is wanted")
    old = kept(memory, DocumentKind.INSTRUCTION, _parse, "instruction", key, request.instruction_id)
    change = Change(memory, time_us)
    after = TRANSITIONS.get((InstructionState(old.state), InstructionEvent.REISSUE))
    if after is None:
        return change.answer(request, response_type(result=wire(Result.WRONG_STATE)), "reissue-refused")
    new = reconciliation_service_pb2.Instruction(
        instruction_id=instruction_id(old.settlement_date, old.participant, old.attempt + 1),
        settlement_date=old.settlement_date,
        participant=old.participant,
        amount_fen=old.amount_fen,
        attempt=old.attempt + 1,
        state=wire(InstructionState.ISSUED),
        issued_us=time_us,
        due_us=time_us + limits.PAYMENT_DUE_DAYS * DAY_US,
        from_account=old.from_account,
    )
    old.state = wire(after)
    _put(change, old)
    _put(change, new)
    return change.answer(request, response_type(result=wire(Result.ACCEPTED), instruction=new), "instruction-reissued")


def read_bank_file(request: reconciliation_service_pb2.IngestBankFileRequest) -> BankFile:
    """The file in a request, on any thread. Raises InvalidRequest with its line and field."""
    try:
        return read_bank_csv(request.name, request.content)
    except FileError as error:
        raise InvalidRequest("content", str(error)) from error


def ingest_bank_file(
    memory: Memory, request: reconciliation_service_pb2.IngestBankFileRequest, bank: BankFile, time_us: int
) -> reconciliation_service_pb2.IngestBankFileResponse:
    """ReconciliationService.IngestBankFile, for a request whose file has been read."""
    response_type = reconciliation_service_pb2.IngestBankFileResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    if (earlier := _read_before(memory, bank)) is not None:
        return earlier
    try:
        known = _instructions_named(memory, bank)
        steps, differences = reconcile_bank(bank, {name: _known(instruction) for name, instruction in known.items()})
    except FileError as error:
        raise InvalidRequest("content", str(error)) from error
    late = {ours.instruction_id: ours for ours in _recent(memory, time_us) if not ours.overdue_told}
    missing = overdue(map(_known, late.values()), bank, time_us)

    # From here on it succeeds, but for an engine that is full.
    change = Change(memory, time_us)
    account = change.open_account(BANK_ACCOUNT)
    response = response_type(result=wire(Result.ACCEPTED), differences=len(differences) + len(missing))
    for step in steps:
        instruction = known[step.entry.instruction_id]
        payable = _payable(change, memory, instruction.participant)
        why = PostingKind.PAYMENT if step.state is InstructionState.PAID else PostingKind.PAYMENT_RETURN
        debit, credit = (payable, account) if step.posted_fen > 0 else (account, payable)
        change.move(debit, credit, abs(step.posted_fen), why)
        instruction.state, instruction.reason = wire(step.state), step.entry.reason
        instruction.booked_us = 0 if step.state is InstructionState.UNKNOWN else step.entry.booked_at_us
        _put(change, instruction)
        response.posted_fen += step.posted_fen
        response.paid += step.state is InstructionState.PAID
        response.returned += step.state is InstructionState.RETURNED
        response.unknown += step.state is InstructionState.UNKNOWN
    for date in sorted({instruction.settlement_date for instruction in known.values()}):
        if all_settled(memory, date, known):
            advance(memory, change, date, WindowEvent.SETTLE)
    for difference in missing:
        late[difference.instruction_id].overdue_told = True
        _put(change, late[difference.instruction_id])
    for at, difference in enumerate([*differences, *missing]):
        exceptions.open_exception(change, at, _told(difference), time_us)
    response.sequence = change.sequence
    statement = journal_pb2.BankStatement(digest=bank.digest, response=response.SerializeToString(deterministic=True))
    change.put(DocumentKind.BANK_STATEMENT, bank.statement_id.encode(), statement.SerializeToString(deterministic=True))
    return change.answer(request, response, "bank-file-booked")


def _read_before(memory: Memory, bank: BankFile) -> reconciliation_service_pb2.IngestBankFileResponse | None:
    """The answer that the same statement got under another request id; CONFLICT where it had other content."""
    value = memory.documents.get(DocumentKind.BANK_STATEMENT, bank.statement_id.encode())
    if value is None:
        return None
    statement = journal_pb2.BankStatement.FromString(value)
    if statement.digest != bank.digest:
        return reconciliation_service_pb2.IngestBankFileResponse(result=wire(Result.CONFLICT))
    response = reconciliation_service_pb2.IngestBankFileResponse.FromString(statement.response)
    response.duplicate = True
    return response


def _instructions_named(memory: Memory, bank: BankFile) -> dict[str, reconciliation_service_pb2.Instruction]:
    """Instructions that a bank file names and that there are. Raises FileError where one is of another settlement account."""
    known = {}
    for entry in bank.entries:
        value = memory.documents.get(DocumentKind.INSTRUCTION, entry.instruction_id.encode())
        if value is not None:
            known[entry.instruction_id] = _parse(value)
            account = known[entry.instruction_id].from_account
            if account != bank.account_number:
                reason = f"{entry.instruction_id} on line {entry.line} was given for account {account}"
                raise FileError(bank.name, bank.line_of("account"), "account", reason)
    return known


def _recent(memory: Memory, time_us: int) -> Iterable[reconciliation_service_pb2.Instruction]:
    """Instructions of the last OVERDUE_DAYS_MAX settlement dates."""
    today = datetime.datetime.fromtimestamp(time_us // 1_000_000, UTC8).date()
    start = f"{today - datetime.timedelta(days=limits.OVERDUE_DAYS_MAX):%Y%m%d}".encode()
    for _, value in memory.documents.scan(DocumentKind.INSTRUCTION, start):
        yield _parse(value)


def _payable(change: Change, memory: Memory, participant: str) -> int:
    """The account of what a participant is owed."""
    account = memory.account(participant)
    if account is None and participant.startswith(OPERATOR_PREFIX):
        raise InvalidRequest("content", f"{participant} is no operator that is known here")
    return change.open_account(participant)


def _told(difference: BankDifference) -> reconciliation_service_pb2.Difference:
    return reconciliation_service_pb2.Difference(
        kind=wire(difference.kind),
        party="bank",
        line=difference.line,
        own_fen=difference.own_fen,
        other_fen=difference.other_fen,
        instruction_id=difference.instruction_id,
    )
