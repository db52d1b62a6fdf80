"""Payments, exceptions, adjustments and disputes over the ledger: nothing is posted twice, half, or by one person alone, and a
restart changes nothing."""

import itertools
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from city import new_card, new_terminal
from harness import START_S, Harness, local_time_of, make_tap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from yikatong.clients.connection import Connection
from yikatong.core import files, limits
from yikatong.core.change import Change
from yikatong.core.check import check
from yikatong.core.day import disputes, exceptions, participant_files, payments, reconcile, settle, statement
from yikatong.core.day.bank_file import BankEntry, BankStatus, bank_csv
from yikatong.core.day.disputes import DisputeEvent, DisputeState
from yikatong.core.day.exceptions import AdjustmentEvent, AdjustmentState, ExceptionEvent, ExceptionState
from yikatong.core.day.positions import Line, LineKind, Netted, Payee, Position
from yikatong.core.day.tap_file import Taps, tap_csv
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.memory import EngineSettings
from yikatong.core.types import DocumentKind, PostingKind, RecordKind, Result
from yikatong.v1 import clearing_service_pb2
from yikatong.v1 import exception_service_pb2 as pb
from yikatong.v1 import reconciliation_service_pb2 as rec

DATE = 20250101
DAY_S = 86_400
TERMINAL = bytes.fromhex("00000000012a")
BANK = payments.BANK_ACCOUNT


def request_id() -> bytes:
    return secrets.token_bytes(16)


def balance_fen(core: Harness, name: str) -> int:
    account = core.memory.account(name)
    return 0 if account is None else int(core.engine.balance_fen(account))


def count_records(core: Harness) -> int:
    return int(core.engine.next_sequence)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path / "data") as made:
        made.register_card("100")
        made.register_terminal(TERMINAL, "bus")
        made.top_up("100", 10_000)
        yield made
        assert made.engine.imbalance_fen() == 0
    check(tmp_path / "data", EngineSettings(cards_max=100_000, terminals_max=10_000))


def charge(core: Harness, atc: int = 1, amount_fen: int = 300) -> int:
    """A tap of card 100; its sequence."""
    tap = make_tap(card_number="100", atc=atc, amount_fen=amount_fen, terminal_number=TERMINAL, terminal_sequence=atc)
    outcome = core.authorize(tap)
    assert outcome.result == Result.ACCEPTED
    return int(outcome.sequence)


# ---- payments ----

PAYEES = {
    name: Payee(name, name, "102598000000", f"{at}234") for at, name in enumerate(("float", "operator:bus", "city:5840"), 6)
}
BUS, CITY = (settle.instruction_id(DATE, name) for name in ("operator:bus", "city:5840"))


def issue(core: Harness) -> None:
    """A window in which the bus company is owed 300 fen and another city owes 45; charged first, so that the ledger agrees."""
    netted = Netted(DATE, 1, 9, (
        Position("city:5840", (Line(LineKind.INTER_CITY, 1, -45),)),
        Position("float", (Line(LineKind.TAPS, 1, -255),)),
        Position("operator:bus", (Line(LineKind.TAPS, 1, 300),)),
    ))  # fmt: skip
    change = Change(core.memory, core.now_us)
    payments.issue(core.memory, change, settle.instructions(netted, PAYEES), PAYEES, core.now_us)
    change.commit("issued")
    core.take()
    core.commit()


def says(order: str, amount: int, status: str, booked: int, at_us: int) -> BankEntry:
    return BankEntry(
        0, order, amount, BankStatus(status), booked, at_us // 1_000_000 * 1_000_000, "AC04" * (status == "RETURNED")
    )


def booked(core: Harness, request: rec.IngestBankFileRequest) -> Any:
    """What the service does with a bank file."""
    bank = payments.read_bank_file(request)
    return core.ask(lambda memory, message, time_us: payments.ingest_bank_file(memory, message, bank, time_us), request)


def ingest(core: Harness, statement_id: str, *rows: tuple[str, int, str, int], account: str = "6234", **fields: Any) -> Any:
    entries = [says(*row, core.now_us) for row in rows]
    raw = bank_csv(statement_id, account, 1_000_000, entries)
    request = rec.IngestBankFileRequest(**({"request_id": request_id(), "name": "bank.csv", "content": raw} | fields))
    return booked(core, request)


def states(core: Harness) -> dict[str, int]:
    request = rec.ListInstructionsRequest(settlement_date=DATE)
    return {each.instruction_id: each.state for each in core.command(payments.list_instructions, request).instructions}


def queue(core: Harness, **fields: Any) -> list[pb.Exception]:
    return list(core.command(exceptions.list_exceptions, pb.ListExceptionsRequest(**fields)).exceptions)


def test_paid_returned_and_paid_again(core: Harness):
    charge(core)
    issue(core)
    assert states(core) == {BUS: 1, CITY: 1}
    assert not payments.all_settled(core.memory, DATE)
    # The bank pays the one and draws the other.
    answer = ingest(core, "B-1", (BUS, 300, "PAID", -300), (CITY, -45, "PAID", 45))
    assert (answer.result, answer.paid, answer.returned, answer.differences, answer.posted_fen) == (1, 2, 0, 0, 255)
    assert (balance_fen(core, "operator:bus"), balance_fen(core, "city:5840"), balance_fen(core, BANK)) == (0, 45, 255)
    assert payments.all_settled(core.memory, DATE)
    # The payment comes back: a new posting, the old one stays.
    answer = ingest(core, "B-2", (BUS, 300, "RETURNED", 300))
    assert (answer.returned, answer.posted_fen) == (1, -300)
    assert (balance_fen(core, "operator:bus"), balance_fen(core, BANK)) == (300, -45)
    assert not payments.all_settled(core.memory, DATE)
    # It is given to the bank anew, and arrives.
    again = core.ask(payments.reissue_instruction, rec.ReissueInstructionRequest(request_id=request_id(), instruction_id=BUS))
    assert (again.result, again.instruction.attempt, again.instruction.amount_fen) == (1, 1, 300)
    new = again.instruction.instruction_id
    assert new == settle.instruction_id(DATE, "operator:bus", 1)
    refused = core.ask(payments.reissue_instruction, rec.ReissueInstructionRequest(request_id=request_id(), instruction_id=BUS))
    assert refused.result == Result.WRONG_STATE
    ingest(core, "B-3", (new, 300, "PAID", -300))
    core.restart()
    assert states(core) == {BUS: 5, new: 2, CITY: 2}
    assert payments.all_settled(core.memory, DATE)
    assert (balance_fen(core, "operator:bus"), balance_fen(core, BANK)) == (0, 255)
    assert queue(core) == []
    with core.journal.read() as reader:
        kinds = Counter(
            int(record["transaction_type"])
            for entry in reader.entries()
            for record in entry.array[entry.array["kind"] == RecordKind.POSTING]
        )
    assert kinds == {PostingKind.PAYMENT: 3, PostingKind.PAYMENT_RETURN: 1}


def test_a_statement_is_booked_once(core: Harness):
    charge(core)
    issue(core)
    entries = [says(BUS, 300, "PAID", -300, core.now_us)]
    request = rec.IngestBankFileRequest(request_id=request_id(), name="b", content=bank_csv("B-1", "6234", 0, entries))
    first = booked(core, request)
    for _ in range(2):
        for repeated in (request, rec.IngestBankFileRequest(request_id=request_id(), name="b2", content=request.content)):
            again = booked(core, repeated)
            assert again.duplicate
            again.duplicate = False
            assert again == first
        core.restart()
    other = ingest(core, "B-1", (BUS, 300, "RETURNED", 300))
    assert other.result == Result.CONFLICT
    assert balance_fen(core, "operator:bus") == 0
    # The same entry in another statement is a difference, not a posting.
    assert ingest(core, "B-2", (BUS, 300, "PAID", -300)).differences == 1
    assert balance_fen(core, BANK) == 300
    (told,) = queue(core)
    assert (told.difference.kind, told.difference.instruction_id, told.difference.line) == (rec.Difference.KIND_DUPLICATE, BUS, 9)


@pytest.mark.parametrize(
    ("rows", "account", "said"),
    [
        ([(BUS, 300, "PAID", -300), ("20250101-0000000000000000-0", 1, "PAID", -1)], "6234", "bank.csv:10: instruction_id"),
        ([(BUS, 300, "PAID", -300), (BUS, 300, "PAID", -300)], "6234", "bank.csv:10: instruction_id"),
        ([(BUS, 300, "PAID", -300)], "6235", "bank.csv:4: account"),
    ],
)
def test_a_bank_file_is_booked_whole_or_not_at_all(core: Harness, rows, account, said):
    charge(core)
    issue(core)
    before = count_records(core)
    with pytest.raises(InvalidRequest) as caught:
        ingest(core, "B-1", *rows, account=account)
    assert caught.value.field == "content"
    assert said in caught.value.reason
    with pytest.raises(InvalidRequest, match=r"bank\.csv:9: .* TOTAL|bank.csv:"):
        ingest(core, "B-1", content=bank_csv("B-1", "6234", 0, [says(BUS, 300, "PAID", -300, 0)]).replace(b"-3.00", b"-3.01"))
    assert count_records(core) == before
    assert states(core) == {BUS: 1, CITY: 1}
    assert balance_fen(core, "operator:bus") == 300


def test_what_the_bank_says_otherwise_becomes_an_exception(core: Harness):
    charge(core)
    issue(core)
    answer = ingest(core, "B-1", (BUS, 301, "PAID", -301))
    assert (answer.unknown, answer.differences, answer.posted_fen) == (1, 1, 0)
    assert states(core)[BUS] == rec.Instruction.STATE_UNKNOWN
    # What it says nothing of is missing once it is due, and that is told once.
    core.pass_time(limits.PAYMENT_DUE_DAYS * DAY_S + 1)
    answer = ingest(core, "B-2", (BUS, 300, "PAID", -300))
    assert (answer.paid, answer.differences) == (1, 2)  # and that one came late
    assert ingest(core, "B-3").differences == 0
    found = [(each.difference.kind, each.difference.instruction_id) for each in queue(core)]
    late = rec.Difference.KIND_LATE
    assert found == [(rec.Difference.KIND_AMOUNT, BUS), (late, BUS), (rec.Difference.KIND_MISSING_THERE, CITY)]
    listed = core.command(exceptions.list_differences, rec.ListDifferencesRequest(sequence=answer.sequence))
    assert [each.kind for each in listed.differences] == [late, rec.Difference.KIND_MISSING_THERE]


def test_issued_again_or_taken_back(core: Harness):
    charge(core)
    issue(core)
    issue(core)  # the same once more changes nothing
    change = Change(core.memory, core.now_us)
    with pytest.raises(InvalidRequest, match="given to the bank"):
        payments.issue(core.memory, change, [settle.Instruction(BUS, DATE, "operator:bus", 301)], PAYEES, core.now_us)
    assert payments.withdraw(core.memory, change, DATE)
    change.commit("taken-back")
    core.take()
    core.commit()
    assert states(core) == {}
    issue(core)
    ingest(core, "B-1", (BUS, 300, "UNKNOWN", 0))
    assert not payments.withdraw(core.memory, Change(core.memory, core.now_us), DATE)
    assert states(core) == {BUS: 4, CITY: 1}


ROWS = st.lists(
    st.tuples(st.sampled_from([0, 1]), st.sampled_from(["PAID", "RETURNED", "UNKNOWN"]), st.sampled_from([0, 0, 0, 1])),
    max_size=2,
    unique_by=lambda row: row[0],
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=8), st.data())
def test_any_statements_leave_the_money_where_the_bank_has_it(tmp_path_factory, statements, data):
    """What has been posted is what the instructions that stand as paid come to, whatever the bank says, in any order and more
    than once; what was not posted became an exception."""
    with Harness(tmp_path_factory.mktemp("books") / "data") as core:
        core.register_card("100")
        core.register_terminal(TERMINAL, "bus")
        core.top_up("100", 10_000)
        charge(core)
        issue(core)
        amounts = {BUS: 300, CITY: -45}
        orders = [BUS, CITY]
        for number, rows in enumerate(statements):
            if data.draw(st.integers(0, 3)) == 0:
                core.restart()
            before = states(core)
            entries = []
            for which, status, off in rows:
                order = orders[which]
                booked_fen = {"PAID": -amounts[order], "UNKNOWN": 0}.get(status)
                if booked_fen is None:
                    booked_fen = amounts[order] if before[order] == rec.Instruction.STATE_PAID else 0
                entries.append((order, amounts[order] + off, status, booked_fen))
            answer = ingest(core, f"B-{number}", *entries)
            after = states(core)
            assert answer.paid + answer.returned + answer.unknown + answer.differences >= len(entries)
            for which, status, off in rows:
                order = orders[which]
                if off:
                    assert after[order] == (4 if before[order] in (1, 4) else before[order])
                else:
                    wanted = LIFE_WORDS[before[order]][status]
                    assert after[order] == (before[order] if wanted is None else rec.Instruction.State.Value(f"STATE_{wanted}"))
            paid = {order: amount for order, amount in amounts.items() if after[order] == rec.Instruction.STATE_PAID}
            assert balance_fen(core, BANK) == sum(paid.values())
            assert balance_fen(core, "operator:bus") == 300 - paid.get(BUS, 0)
            assert balance_fen(core, "city:5840") == -paid.get(CITY, 0)
            assert core.engine.imbalance_fen() == 0


LIFE_WORDS = {
    1: {"PAID": "PAID", "RETURNED": "RETURNED", "UNKNOWN": "UNKNOWN"},
    2: {"PAID": None, "RETURNED": "RETURNED", "UNKNOWN": None},
    3: {"PAID": None, "RETURNED": None, "UNKNOWN": None},
    4: {"PAID": "PAID", "RETURNED": "RETURNED", "UNKNOWN": "UNKNOWN"},
}


# ---- participants' files ----


def own_file(core: Harness, date: int, rows: list[tuple[int, int, int]]) -> rec.IngestParticipantFileRequest:
    """The bus company's file: (terminal sequence, fen, local time), all of one terminal."""
    columns = np.array(rows, np.uint64).reshape(-1, 3)
    terminal = np.array([int.from_bytes(TERMINAL, "big")], np.uint64)
    taps = Taps(
        terminal, np.zeros(len(rows), np.uint32), columns[:, 0].astype(np.uint32), columns[:, 1].astype(np.int64), columns[:, 2]
    )
    return rec.IngestParticipantFileRequest(request_id=request_id(), name="own", content=tap_csv("operator:bus", date, taps))


def compare(core: Harness, request: rec.IngestParticipantFileRequest) -> rec.IngestParticipantFileResponse:
    """What the service does with a participant's file, step by step."""
    other = participant_files.read(request)
    before = participant_files.before(core.memory, request, other)
    if not isinstance(before, int):
        return before
    with core.journal.read() as reader:
        own = participant_files.named(core.memory, reconcile.own_taps(reader, before, other.settlement_date))
    differences = reconcile.reconcile_taps(own, other)
    return core.ask(
        lambda memory, message, time_us: participant_files.book(memory, message, other, own, differences, time_us), request
    )


def counted(answer: rec.IngestParticipantFileResponse) -> dict[str, int]:
    return {rec.Difference.Kind.Name(each.kind).removeprefix("KIND_"): each.count for each in answer.counts}


def close_date(core: Harness) -> None:
    change = Change(core.memory, core.now_us)
    change.close_date(max(core.engine.settlement_day, (core.now_s + 8 * 3600) // DAY_S))
    change.commit("closed")
    core.take()
    core.commit()


def test_a_tap_of_another_window_is_late_and_one_further_away_is_missing(core: Harness):
    time = local_time_of(START_S)
    first = charge(core, 1, 100)
    assert core.get_tap(first).outcome.settlement_date == DATE
    close_date(core)
    second = charge(core, 2, 200)
    assert core.get_tap(second).outcome.settlement_date == DATE + 1
    close_date(core)
    charge(core, 3, 300)
    answer = compare(core, own_file(core, DATE, [(1, 100, time), (2, 200, time), (3, 300, time)]))
    assert counted(answer) == {"LATE": 1, "MISSING_HERE": 1}
    assert (answer.file_taps, answer.journal_taps, answer.file_fen, answer.journal_fen) == (3, 1, 600, 100)
    missing, late = [each.difference for each in queue(core)]
    assert (missing.terminal_sequence, missing.journal_sequence, missing.line) == (3, 0, 8)
    assert (late.terminal_sequence, late.journal_sequence, late.own_settlement_date) == (2, second, DATE + 1)
    assert counted(compare(core, own_file(core, DATE + 1, [(2, 200, time)]))) == {}
    assert counted(compare(core, own_file(core, DATE + 2, []))) == {"MISSING_THERE": 1}
    unknown = own_file(core, DATE, [])
    unknown.content = files.with_digest(
        unknown.content[: unknown.content.index(b"DIGEST")].replace(b"operator:bus", b"operator:no")
    )
    with pytest.raises(NotFound):
        compare(core, unknown)


def test_a_file_that_differs_in_everything_makes_no_exceptions(core: Harness, monkeypatch):
    monkeypatch.setattr(limits, "DIFFERENCES_MAX", 5)
    rows = [(number, 1, local_time_of(START_S)) for number in range(6)]
    refused = compare(core, own_file(core, DATE, rows))
    assert (refused.result, counted(refused)) == (Result.TOO_MANY_DIFFERENCES, {"MISSING_HERE": 6})
    assert queue(core) == []
    assert compare(core, own_file(core, DATE, rows[:5])).result == 1
    assert len(queue(core)) == 5


def test_a_file_against_a_data_directory(tmp_path: Path):
    path = tmp_path / "own.csv"
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        core.register_terminal(TERMINAL, "bus")
        core.top_up("100", 10_000)
        sequence = charge(core, 1, 100)
        core.checkpoint()
        charge(core, 2, 200)
        path.write_bytes(own_file(core, DATE, [(1, 101, local_time_of(START_S)), (2, 200, local_time_of(START_S))]).content)
    other, own, differences = participant_files.compare_offline(tmp_path / "data", path, core.settings)
    assert (len(other.taps), len(own.taps)) == (2, 2)
    (only,) = differences
    assert (only["kind"], only["own_fen"], only["other_fen"]) == (reconcile.DifferenceKind.AMOUNT, 100, 101)
    assert only["journal_sequence"] == sequence
    for content in (b"", b"HEADER,encoding,UTF-8\n"):
        path.write_bytes(content)
        with pytest.raises(files.FileError, match=r"own\.csv:"):
            participant_files.compare_offline(tmp_path / "data", path, core.settings)
    path.unlink()
    with pytest.raises(files.FileError, match="cannot be read"):
        participant_files.compare_offline(tmp_path / "data", path, core.settings)


def test_three_books(core: Harness):
    charge(core)

    def books() -> tuple[bool, dict[str, tuple[int, int, bool, int, bool]]]:
        response = core.command(payments.get_reconciliation, rec.GetReconciliationRequest(settlement_date=DATE))
        return response.agrees, {
            row.participant: (row.instructed_fen, row.settled_fen, row.has_file, row.differences, row.agrees)
            for row in response.participants
        }

    assert books() == (True, {})
    issue(core)
    ingest(core, "B-1", (BUS, 300, "RETURNED", 0), (CITY, -45, "PAID", 45))
    assert books() == (False, {"city:5840": (-45, -45, False, 0, True), "operator:bus": (300, 0, False, 0, False)})
    again = core.ask(payments.reissue_instruction, rec.ReissueInstructionRequest(request_id=request_id(), instruction_id=BUS))
    ingest(core, "B-2", (again.instruction.instruction_id, 300, "PAID", -300))
    assert books() == (True, {"city:5840": (-45, -45, False, 0, True), "operator:bus": (300, 300, False, 0, True)})
    compare(core, own_file(core, DATE, [(1, 299, local_time_of(START_S))]))
    assert books()[1]["operator:bus"] == (300, 300, True, 1, False)
    core.restart()
    compare(core, own_file(core, DATE, [(1, 300, local_time_of(START_S))]))
    assert books() == (True, {"city:5840": (-45, -45, False, 0, True), "operator:bus": (300, 300, True, 0, True)})
    with pytest.raises(InvalidRequest):
        core.command(payments.get_reconciliation, rec.GetReconciliationRequest(settlement_date=20250230))


# ---- the queue ----

QUEUE_LIFE = {
    #                         ASSIGN      RESOLVE     WRITE_OFF
    ExceptionState.OPEN:        ("ASSIGNED", "RESOLVED", "WRITTEN_OFF"),
    ExceptionState.ASSIGNED:    ("ASSIGNED", "RESOLVED", "WRITTEN_OFF"),
    ExceptionState.RESOLVED:    (None,       None,       None),
    ExceptionState.WRITTEN_OFF: (None,       None,       None),
}  # fmt: skip
ADJUSTMENT_LIFE = {
    #                           APPROVE     REJECT
    AdjustmentState.PROPOSED: ("APPROVED", "REJECTED"),
    AdjustmentState.APPROVED: (None,       None),
    AdjustmentState.REJECTED: (None,       None),
}  # fmt: skip
_REFUND = ("REFUNDED_BY_OPERATOR", "REFUNDED_BY_CITY")
DISPUTE_LIFE = {
    #                       ACCEPT      CONTEST      LAPSE     REFUND_BY_…    REJECT      WITHDRAW
    DisputeState.OPEN:      ("ACCEPTED", "CONTESTED", "LAPSED", None, None,    None,       "WITHDRAWN"),
    DisputeState.ACCEPTED:  (None,       None,        None,     *_REFUND,      None,       "WITHDRAWN"),
    DisputeState.CONTESTED: (None,       None,        None,     *_REFUND,      "REJECTED", "WITHDRAWN"),
    DisputeState.LAPSED:    (None,       None,        None,     *_REFUND,      "REJECTED", "WITHDRAWN"),
    DisputeState.REFUNDED_BY_OPERATOR: (None,) * 7,
    DisputeState.REFUNDED_BY_CITY: (None,) * 7,
    DisputeState.REJECTED:  (None,) * 7,
    DisputeState.WITHDRAWN: (None,) * 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("life", "transitions", "events"),
    [
        (QUEUE_LIFE, exceptions.EXCEPTION_TRANSITIONS, ExceptionEvent),
        (ADJUSTMENT_LIFE, exceptions.ADJUSTMENT_TRANSITIONS, AdjustmentEvent),
        (DISPUTE_LIFE, disputes.TRANSITIONS, DisputeEvent),
    ],
    ids=["exception", "adjustment", "dispute"],
)
def test_lives(life, transitions, events):
    """Every pair of state and event."""
    for (state, row), (at, event) in itertools.product(life.items(), enumerate(events)):
        after = transitions.get((state, event))
        assert (after and after.name) == row[at], (state, event)
    assert len(transitions) == sum(name is not None for row in life.values() for name in row)


@pytest.mark.parametrize(
    ("states_", "enum"),
    [
        (ExceptionState, pb.Exception.State),
        (AdjustmentState, pb.Adjustment.State),
        (DisputeState, pb.Dispute.State),
        (payments.InstructionState, rec.Instruction.State),
    ],
)
def test_states_are_those_of_the_protos(states_, enum):
    assert {f"STATE_{state.name}": state.value for state in states_} == {name: n for name, n in enum.items() if n}


def put_exceptions(core: Harness, count: int) -> list[str]:
    change = Change(core.memory, core.now_us)
    case = pb.ClearingCase(journal_sequence=5, outcome="BALANCE_GAP", settlement_date=DATE, participant="operator:bus")
    made = [exceptions.open_exception(change, at, case, core.now_us) for at in range(count)]
    change.commit("cleared")
    core.take()
    core.commit()
    return made


def test_queue_is_worked_through(core: Harness):
    one, two, three = put_exceptions(core, 3)
    assert [each.exception_id for each in queue(core)] == [one, two, three]

    def assign(exception_id: str, to: str, note: str = "") -> Any:
        request = pb.AssignExceptionRequest(
            request_id=request_id(), exception_id=exception_id, actor_id="li", assigned_to=to, note=note
        )
        return core.ask(exceptions.assign_exception, request)

    def resolve(exception_id: str, state: Any, note: str = "looked into") -> Any:
        request = pb.ResolveExceptionRequest(
            request_id=request_id(), exception_id=exception_id, actor_id="wang", state=state, note=note
        )
        return core.ask(exceptions.resolve_exception, request)

    assert assign(two, "wang", "yours").result == 1
    assert assign(two, "zhao").result == 1
    assert resolve(two, pb.Exception.STATE_WRITTEN_OFF).exception.closed_us == core.now_us
    assert resolve(one, pb.Exception.STATE_RESOLVED).result == 1
    for closed in (one, two):
        before = core.command(exceptions.get_exception, pb.GetExceptionRequest(exception_id=closed))
        assert assign(closed, "zhao").result == Result.WRONG_STATE
        assert resolve(closed, pb.Exception.STATE_RESOLVED).result == Result.WRONG_STATE
        assert core.command(exceptions.get_exception, pb.GetExceptionRequest(exception_id=closed)) == before
    core.restart()
    assert [(each.exception_id, each.state) for each in queue(core)] == [(one, 3), (two, 4), (three, 1)]
    assert [each.exception_id for each in queue(core, state=pb.Exception.STATE_OPEN)] == [three]
    assert [each.exception_id for each in queue(core, assigned_to="zhao")] == [two]
    assert [(each.actor_id, each.text) for each in queue(core)[1].notes] == [
        ("li", "yours"),
        ("li", "→ zhao"),
        ("wang", "looked into"),
    ]
    for wrong in (
        {"note": ""},
        {"note": "x" * 1001},
        {"state": 1},
        {"actor_id": ""},
        {"actor_id": " li"},
        {"exception_id": "00"},
    ):
        fields = {"exception_id": three, "actor_id": "li", "state": 3, "note": "n", "request_id": request_id()} | wrong
        with pytest.raises(InvalidRequest) as caught:
            core.ask(exceptions.resolve_exception, pb.ResolveExceptionRequest(**fields))
        assert caught.value.field == next(iter(wrong))
    with pytest.raises(NotFound):
        resolve("00" * 12, pb.Exception.STATE_RESOLVED)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_pages(core: Harness, monkeypatch, checkpoint):
    monkeypatch.setattr(limits, "SCAN_DOCUMENTS_MAX", 7)
    made = put_exceptions(core, 10) + put_exceptions(core, 13)
    if checkpoint:
        core.checkpoint()
        core.restart()
    for size in (1, 4, 23, 100):
        found, token, pages = [], "", 0
        while True:
            request = pb.ListExceptionsRequest(page_size=size, page_token=token)
            response = core.command(exceptions.list_exceptions, request)
            found += [each.exception_id for each in response.exceptions]
            pages += 1
            token = response.next_page_token
            if not token:
                break
        assert found == made
        assert pages == -(-23 // min(size, 7))
    first = core.command(exceptions.list_exceptions, pb.ListExceptionsRequest(page_size=1))
    for token in ("x", "AAAA", first.next_page_token[:-4], first.next_page_token + "AAAA"):
        if token.startswith(first.next_page_token[:8]):
            continue  # another key of the same list: it leads somewhere in it, and nowhere else
        with pytest.raises(InvalidRequest, match="page_token"):
            core.command(exceptions.list_exceptions, pb.ListExceptionsRequest(page_token=token))
    with pytest.raises(InvalidRequest, match="page_token"):
        core.command(disputes.list_disputes, pb.ListDisputesRequest(page_token=first.next_page_token))


# ---- adjustments ----


def propose(core: Harness, *legs: tuple[str, str, int], actor: str = "li", exception_id: str = "", **fields: Any) -> Any:
    request = pb.ProposeAdjustmentRequest(
        request_id=request_id(), actor_id=actor, reason="torn card", exception_id=exception_id,
        legs=[pb.AdjustmentLeg(debit_account=d, credit_account=c, amount_fen=fen) for d, c, fen in legs],
    )  # fmt: skip
    for name, value in fields.items():
        setattr(request, name, value)
    return core.ask(exceptions.propose_adjustment, request)


def approve(core: Harness, adjustment_id: str, actor: str = "wang", rid: bytes = b"") -> Any:
    request = pb.ApproveAdjustmentRequest(request_id=rid or request_id(), adjustment_id=adjustment_id, actor_id=actor)
    return core.ask(exceptions.approve_adjustment, request)


def reject(core: Harness, adjustment_id: str, actor: str = "wang") -> Any:
    request = pb.RejectAdjustmentRequest(request_id=request_id(), adjustment_id=adjustment_id, actor_id=actor)
    return core.ask(exceptions.reject_adjustment, request)


def test_four_eyes(core: Harness):
    charge(core)
    (exception_id,) = put_exceptions(core, 1)
    proposed = propose(
        core, ("operator:bus", "card:100", 120), ("fees", "operator:bus", 20), exception_id=exception_id
    ).adjustment
    assert balance_fen(core, "operator:bus") == 300  # nothing has moved
    for same in ("li", "LI", "ｌｉ"):
        assert approve(core, proposed.adjustment_id, same).result == Result.SAME_ACTOR
    rid = request_id()
    approved = approve(core, proposed.adjustment_id, rid=rid)
    assert (approved.result, approved.adjustment.decided_by) == (1, "wang")
    assert approve(core, proposed.adjustment_id, rid=rid).duplicate
    assert approve(core, proposed.adjustment_id, "zhao").result == Result.WRONG_STATE
    assert reject(core, proposed.adjustment_id).result == Result.WRONG_STATE
    core.restart()
    assert (balance_fen(core, "operator:bus"), balance_fen(core, "fees"), core.balance("100").balance_fen) == (200, -20, 9_820)
    resolved = core.command(exceptions.get_exception, pb.GetExceptionRequest(exception_id=exception_id)).exception
    assert resolved.state == pb.Exception.STATE_RESOLVED
    assert propose(core, ("fees", "card:100", 1), exception_id=exception_id).result == Result.WRONG_STATE
    posting = core.record(approved.sequence + 1)  # behind the event
    assert (posting["kind"], posting["transaction_type"]) == (RecordKind.POSTING, PostingKind.ADJUSTMENT)
    moved = core.list_transactions("100")[0]
    assert (moved.change_fen, moved.reason) == (120, "adjustment")


def test_a_rejected_one_moves_nothing(core: Harness):
    proposed = propose(core, ("losses", "card:100", 120)).adjustment.adjustment_id
    assert reject(core, proposed, "li").result == 1  # taken back
    assert approve(core, proposed).result == Result.WRONG_STATE
    got = core.command(exceptions.get_adjustment, pb.GetAdjustmentRequest(adjustment_id=proposed)).adjustment
    assert (got.state, got.decided_by) == (pb.Adjustment.STATE_REJECTED, "li")
    assert core.balance("100").balance_fen == 10_000


def test_a_card_loses_no_more_than_it_has(core: Harness):
    change = Change(core.memory, core.now_us)
    account = core.engine.card(core.engine.find_card("100"))["account"]
    change.hold(account, 500, core.engine.find_card("100"))
    change.commit("held")
    core.take()
    core.commit()
    assert approve(core, propose(core, ("card:100", "fees", 9_501)).adjustment.adjustment_id).result == Result.INSUFFICIENT_FUNDS
    both = propose(core, ("card:100", "fees", 9_501), ("losses", "card:100", 1)).adjustment.adjustment_id
    assert approve(core, both).result == 1
    assert core.balance("100").balance_fen == 500


@pytest.mark.parametrize(
    ("legs", "error", "field"),
    [
        ([], InvalidRequest, "legs"),
        ([("fees", "losses", 1)] * 65, InvalidRequest, "legs"),
        ([("fees", "card:100", 0)], InvalidRequest, "legs[0].amount_fen"),
        ([("fees", "card:100", -5)], InvalidRequest, "legs[0].amount_fen"),
        ([("fees", "card:100", 1), ("fees", "card:100", 100_000_001)], InvalidRequest, "legs[1].amount_fen"),
        ([("fees", "fees", 1)], InvalidRequest, "legs[0].credit_account"),
        ([("card:100", "card:101", 1)], InvalidRequest, "legs[0].credit_account"),
        ([("", "card:100", 1)], InvalidRequest, "legs[0].debit_account"),
        ([("fees", "card:999", 1)], NotFound, "card"),
        ([("fees", "operator:nobody", 1)], NotFound, "account"),
    ],
)
def test_legs_that_cannot_be(core: Harness, legs, error, field):
    core.register_card("101")
    before = count_records(core)
    with pytest.raises(error) as caught:
        propose(core, *legs)
    assert getattr(caught.value, "field", getattr(caught.value, "kind", "")) == field
    assert count_records(core) == before


# ---- figures of a window ----


def test_figures_are_counted_from_the_journal(core: Harness):
    first = charge(core, 1)
    core.pass_time(3_600)
    for atc in (2, 3):
        charge(core, atc)
    declined = core.authorize(
        make_tap(card_number="100", atc=4, amount_fen=99_999, terminal_number=TERMINAL, terminal_sequence=4)
    )
    assert declined.result == Result.INSUFFICIENT_FUNDS
    last = charge(core, 5)
    with core.journal.read() as reader:
        whole = statement.figures_of(reader, 1, last)
        part = statement.figures_of(reader, first + 1, last - 1)
    assert whole.outcomes == {"ACCEPTED": 4, "INSUFFICIENT_FUNDS": 1}
    assert {hour: taps for hour, taps in enumerate(whole.taps_per_hour) if taps} == {8: 1, 9: 3}  # it began at 8:30, UTC+8
    assert part.outcomes == {"ACCEPTED": 2, "INSUFFICIENT_FUNDS": 1}
    assert {hour: taps for hour, taps in enumerate(part.taps_per_hour) if taps} == {9: 2}


# ---- disputes ----


def open_dispute(core: Harness, sequence: int, fen: int = 300, **fields: Any) -> Any:
    request = pb.OpenDisputeRequest(**{
        "request_id": request_id(), "card_number": "100", "journal_sequence": sequence, "disputed_fen": fen,
        "reason": pb.Dispute.REASON_NOT_RECOGNISED, "actor_id": "counter-3", "note": "never rode",
        "evidence": [pb.Evidence(actor_id="counter-3", digest=bytes(32), description="photo")],
    } | fields)  # fmt: skip
    return core.ask(disputes.open_dispute, request)


def respond(core: Harness, dispute_id: str, accept: bool) -> Any:
    request = pb.RespondToDisputeRequest(request_id=request_id(), dispute_id=dispute_id, actor_id="bus", accept=accept)
    return core.ask(disputes.respond_to_dispute, request)


def decide(core: Harness, dispute_id: str, outcome: Any, rid: bytes = b"") -> Any:
    request = pb.DecideDisputeRequest(
        request_id=rid or request_id(), dispute_id=dispute_id, actor_id="city", outcome=outcome, note="decided"
    )
    return core.ask(disputes.decide_dispute, request)


def withdraw(core: Harness, dispute_id: str) -> Any:
    request = pb.WithdrawDisputeRequest(request_id=request_id(), dispute_id=dispute_id, actor_id="counter-3")
    return core.ask(disputes.withdraw_dispute, request)


BY_OPERATOR, BY_CITY = pb.Dispute.STATE_REFUNDED_BY_OPERATOR, pb.Dispute.STATE_REFUNDED_BY_CITY
REJECTED = pb.Dispute.STATE_REJECTED
W, DP, DR = Result.WRONG_STATE, Result.DEADLINE_PASSED, Result.DEADLINE_RUNNING


@pytest.mark.parametrize(
    ("days", "answer", "days_more", "outcome", "result", "bus", "fees"),
    [
        # answer after days, decision days later         result  bus  fees
        (0,    True,  0,    BY_OPERATOR,                  1,     100, 0),
        (0,    True,  0,    BY_CITY,                      1,     300, -200),
        (0,    True,  0,    REJECTED,                     W,     300, 0),
        (6.9,  False, 0,    BY_OPERATOR,                  1,     100, 0),
        (6.9,  False, 0,    BY_CITY,                      1,     300, -200),
        (6.9,  False, 0,    REJECTED,                     1,     300, 0),
        (6.9,  False, 23.2, REJECTED,                     DP,    300, 0),
        (6.9,  False, 23.2, BY_OPERATOR,                  1,     100, 0),
        (0,    None,  6.9,  BY_OPERATOR,                  DR,    300, 0),
        (0,    None,  7.1,  BY_OPERATOR,                  1,     100, 0),
        (0,    None,  7.1,  REJECTED,                     1,     300, 0),
        (0,    None,  30.1, REJECTED,                     DP,    300, 0),
    ],
)  # fmt: skip
def test_dispute_to_its_end(core: Harness, days, answer, days_more, outcome, result, bus, fees):
    sequence = charge(core)
    opened = open_dispute(core, sequence, 200)
    assert (opened.result, opened.dispute.charged_fen, opened.dispute.disputed_fen) == (1, 300, 200)
    dispute_id = opened.dispute.dispute_id
    core.pass_time(days * DAY_S)
    if answer is not None:
        assert respond(core, dispute_id, answer).result == 1
        assert respond(core, dispute_id, answer).result == W
    core.pass_time(days_more * DAY_S)
    rid = request_id()
    decided = decide(core, dispute_id, outcome, rid)
    assert decided.result == result
    again = decide(core, dispute_id, outcome, rid)
    assert again.duplicate
    assert again.result == result
    core.restart()
    assert (balance_fen(core, "operator:bus"), balance_fen(core, "fees")) == (bus, fees)
    assert core.balance("100").balance_fen == 10_000 - bus - fees
    if result == 1:
        assert decide(core, dispute_id, outcome).result == W
        assert withdraw(core, dispute_id).result == W
        got = core.command(disputes.get_dispute, pb.GetDisputeRequest(dispute_id=dispute_id)).dispute
        assert (got.state, got.closed_us) == (outcome, core.now_us)
        assert (got.posted_sequence == decided.sequence) == (outcome != REJECTED)
    assert balance_fen(core, "operator:bus") == bus


def test_too_late_an_answer(core: Harness):
    dispute_id = open_dispute(core, charge(core)).dispute.dispute_id
    core.pass_time(7 * DAY_S)
    assert core.command(disputes.get_dispute, pb.GetDisputeRequest(dispute_id=dispute_id)).dispute.state == pb.Dispute.STATE_OPEN
    core.pass_time(1)
    assert respond(core, dispute_id, False).result == DP
    lapsed = core.command(disputes.list_disputes, pb.ListDisputesRequest(state=pb.Dispute.STATE_LAPSED, card_number="100"))
    assert [each.dispute_id for each in lapsed.disputes] == [dispute_id]
    assert not core.command(disputes.list_disputes, pb.ListDisputesRequest(state=pb.Dispute.STATE_OPEN)).disputes
    assert not core.command(disputes.list_disputes, pb.ListDisputesRequest(card_number="101")).disputes


def test_what_can_be_disputed(core: Harness):
    sequence = charge(core)
    core.register_card("101")
    assert open_dispute(core, sequence, 301).result == Result.ABOVE_CHARGE
    opened = open_dispute(core, sequence)
    assert opened.result == 1
    assert open_dispute(core, sequence).result == Result.ALREADY_DISPUTED
    assert withdraw(core, opened.dispute.dispute_id).result == 1
    assert open_dispute(core, sequence).result == 1
    other = charge(core, atc=2)
    for wrong in (0, 1, 3, other + 1, 2**64 - 1):  # a card, a terminal or a top-up, nothing at all
        with pytest.raises(NotFound):
            open_dispute(core, wrong)
    with pytest.raises(NotFound):
        open_dispute(core, other, card_number="101")
    for field, value in (
        ("disputed_fen", 0), ("reason", 0), ("reason", 99), ("card_number", "x"), ("actor_id", ""), ("note", "x" * 1001),
        ("evidence", [pb.Evidence(actor_id="a", digest=bytes(31))]), ("evidence", [pb.Evidence(digest=bytes(32))] * 17),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            open_dispute(core, other, **{field: value})
        assert caught.value.field.startswith(field)
    core.pass_time(90 * DAY_S + 1)
    assert open_dispute(core, other).result == DP


# ---- all of it at random, against a model that only adds up ----


class Books(RuleBasedStateMachine):
    """Adjustments and disputes in any order, with repeats and restarts; the model knows what has to have moved."""

    path: Path

    @initialize()
    def start(self) -> None:
        self.core = Harness(self.path / secrets.token_hex(8))
        self.core.register_card("100")
        self.core.register_terminal(TERMINAL, "bus")
        self.core.top_up("100", 100_000)
        self.charges = [charge(self.core, atc) for atc in range(1, 6)]
        self.model = Counter({"card:100": 100_000 - 1_500, "operator:bus": 1_500})
        self.proposed: dict[str, tuple[str, list[tuple[str, str, int]]]] = {}
        self.disputes: dict[str, int] = {}
        self.contested: set[str] = set()
        self.done: list[tuple[Any, Any, Any]] = []

    def asked(self, command: Any, request: Any) -> Any:
        response = self.core.ask(command, request)
        self.done.append((command, request, response))
        return response

    def move(self, debit: str, credit: str, fen: int) -> None:
        self.model[debit] -= fen
        self.model[credit] += fen

    @rule(
        legs=st.lists(
            st.tuples(st.sampled_from(["fees", "losses", "operator:bus"]), st.just("card:100"), st.integers(1, 50)), max_size=3
        ),
        turned=st.booleans(),
        actor=st.sampled_from(["li", "wang"]),
    )
    def propose(self, legs: list[tuple[str, str, int]], turned: bool, actor: str) -> None:
        legs = [(c, d, fen) if turned else (d, c, fen) for d, c, fen in legs]
        if legs:
            made = propose(self.core, *legs, actor=actor)
            self.proposed[made.adjustment.adjustment_id] = (actor, legs)

    @precondition(lambda self: self.proposed)
    @rule(data=st.data(), actor=st.sampled_from(["li", "wang"]))
    def approve(self, data: st.DataObject, actor: str) -> None:
        adjustment_id = data.draw(st.sampled_from(sorted(self.proposed)))
        proposer, legs = self.proposed[adjustment_id]
        request = pb.ApproveAdjustmentRequest(request_id=request_id(), adjustment_id=adjustment_id, actor_id=actor)
        response = self.asked(exceptions.approve_adjustment, request)
        if proposer == actor:
            assert response.result == (Result.SAME_ACTOR if legs else Result.WRONG_STATE)
        elif not legs:
            assert response.result == Result.WRONG_STATE
        else:
            assert response.result == Result.ACCEPTED
            for leg in legs:
                self.move(*leg)
            self.proposed[adjustment_id] = ("nobody", [])

    @precondition(lambda self: self.charges)
    @rule(fen=st.integers(1, 300))
    def dispute(self, fen: int) -> None:
        opened = open_dispute(self.core, self.charges.pop(), fen)
        self.disputes[opened.dispute.dispute_id] = fen

    @precondition(lambda self: self.disputes)
    @rule(data=st.data())
    def contest(self, data: st.DataObject) -> None:
        dispute_id = data.draw(st.sampled_from(sorted(self.disputes)))
        if respond(self.core, dispute_id, False).result == Result.ACCEPTED:
            self.contested.add(dispute_id)

    @precondition(lambda self: self.contested)
    @rule(data=st.data(), outcome=st.sampled_from([BY_OPERATOR, BY_CITY, REJECTED]))
    def decide(self, data: st.DataObject, outcome: Any) -> None:
        dispute_id = data.draw(st.sampled_from(sorted(self.contested)))
        request = pb.DecideDisputeRequest(
            request_id=request_id(), dispute_id=dispute_id, actor_id="city", outcome=outcome, note="n"
        )
        assert self.asked(disputes.decide_dispute, request).result == Result.ACCEPTED
        self.contested.discard(dispute_id)
        if outcome != REJECTED:
            bears = "operator:bus" if outcome == BY_OPERATOR else "fees"
            self.move(bears, "card:100", self.disputes[dispute_id])

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        command, request, response = data.draw(st.sampled_from(self.done))
        repeated = self.core.ask(command, request)
        assert repeated.duplicate
        repeated.duplicate = False
        assert repeated == response

    @rule()
    def restart(self) -> None:
        self.core.restart()

    @rule()
    def checkpoint(self) -> None:
        self.core.checkpoint()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "core"):
            return
        for name in ("operator:bus", "fees", "losses"):
            assert balance_fen(self.core, name) == self.model[name], name
        assert self.core.balance("100").balance_fen == self.model["card:100"]
        assert self.core.engine.imbalance_fen() == 0

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.core.close()


def test_books_at_random(tmp_path: Path):
    Books.path = tmp_path
    run_state_machine_as_test(
        Books,
        settings=settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
    )


# ---- over gRPC ----


def test_a_participants_file_over_grpc(connection: Connection, key_set: KeySet):
    """Taps over the wire, the operator's own file with edits, and what comes of them; a better file resolves them."""
    operator = f"bus-{secrets.token_hex(4)}"
    terminals = [new_terminal(connection, operator) for _ in range(2)]
    card = new_card(connection, key_set, 100_000)
    rows = []
    for number in range(8):
        terminal = terminals[number % 2]
        tap = terminal.present(card, 100 + number)
        outcome = terminal.authorize(connection, tap)
        assert outcome.result == 1
        rows.append((int.from_bytes(terminal.terminal_number, "big"), tap.terminal_sequence, 100 + number, tap.local_time))
    date = outcome.settlement_date

    def send(rows: list[tuple[int, int, int, int]], content: bytes = b"", rid: bytes = b"") -> Any:
        numbers = sorted({row[0] for row in rows})
        columns = list(zip(*rows, strict=True))
        taps = Taps(
            np.array(numbers, np.uint64),
            np.array([numbers.index(number) for number in columns[0]], np.uint32),
            np.array(columns[1], np.uint32),
            np.array(columns[2], np.int64),
            np.array(columns[3], np.uint64),
        )
        return connection.reconciliation.IngestParticipantFile(
            rec.IngestParticipantFileRequest(
                request_id=rid or request_id(), name="own.csv", content=content or tap_csv(f"operator:{operator}", date, taps)
            )
        )

    missing, wrong, foreign = rows[0], (*rows[1][:2], 999, rows[1][3]), (rows[2][0], 4_000_000_000, 5, rows[2][3])
    edited = [wrong, *rows[2:], rows[5], foreign]
    rid = request_id()
    answer = send(edited, rid=rid)
    assert (answer.result, answer.file_taps, answer.journal_taps) == (1, 9, 8)
    assert answer.journal_fen == sum(row[2] for row in rows)
    K = rec.Difference
    assert {each.kind: each.count for each in answer.counts} == {
        K.KIND_MISSING_HERE: 1, K.KIND_MISSING_THERE: 1, K.KIND_AMOUNT: 1, K.KIND_DUPLICATE: 1,
    }  # fmt: skip
    assert send(edited, rid=rid).duplicate
    assert send(edited).duplicate  # the same file under another request id
    told = connection.reconciliation.ListDifferences(rec.ListDifferencesRequest(sequence=answer.sequence)).differences
    assert [(each.kind, each.terminal_sequence) for each in told] == [
        (K.KIND_MISSING_HERE, foreign[1]),
        (K.KIND_MISSING_THERE, missing[1]),
        (K.KIND_AMOUNT, wrong[1]),
        (K.KIND_DUPLICATE, rows[5][1]),
    ]
    assert (told[2].own_fen, told[2].other_fen, told[2].line) == (101, 999, 6)
    assert told[1].terminal_number == missing[0].to_bytes(6, "big")

    def open_kinds() -> list[int]:
        found = connection.exceptions.ListExceptions(pb.ListExceptionsRequest(state=pb.Exception.STATE_OPEN, page_size=1000))
        return [each.difference.kind for each in found.exceptions if each.difference.party == f"operator:{operator}"]

    assert open_kinds() == [K.KIND_MISSING_HERE, K.KIND_MISSING_THERE, K.KIND_AMOUNT, K.KIND_DUPLICATE]
    better = send([rows[0], wrong, *rows[2:7]])  # the amount still differs, and now another tap is missing
    assert {each.kind: each.count for each in better.counts} == {K.KIND_MISSING_THERE: 1, K.KIND_AMOUNT: 1}
    assert open_kinds() == [K.KIND_AMOUNT, K.KIND_MISSING_THERE]
    new = connection.reconciliation.ListDifferences(rec.ListDifferencesRequest(sequence=better.sequence)).differences
    assert [(each.kind, each.terminal_sequence) for each in new] == [(K.KIND_MISSING_THERE, rows[7][1])]
    agreed = send(rows)
    assert (agreed.result, list(agreed.counts)) == (1, [])
    assert open_kinds() == []
    books = connection.clearing.GetTrialBalance(clearing_service_pb2.GetTrialBalanceRequest())
    assert books.imbalance_fen == 0
    with pytest.raises(grpc.RpcError) as caught:
        send(rows, content=b"HEADER,encoding,UTF-8\n")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "own.csv:" in caught.value.details()


def test_a_bank_file_over_grpc(connection: Connection):
    """It is refused with its line and field; an empty one is booked, once."""
    request = rec.IngestBankFileRequest(request_id=request_id(), name="b.csv", content=bank_csv(secrets.token_hex(8), "6", 0, []))
    answer = connection.reconciliation.IngestBankFile(request)
    assert (answer.result, answer.paid, answer.duplicate) == (1, 0, False)
    assert connection.reconciliation.IngestBankFile(request).duplicate
    wrong = rec.IngestBankFileRequest(
        request_id=request_id(), name="b.csv", content=request.content.replace(b"opening_balance,0.00", b"opening_balance,0.01")
    )
    with pytest.raises(grpc.RpcError) as caught:
        connection.reconciliation.IngestBankFile(wrong)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "b.csv:10: DIGEST" in caught.value.details()


def test_documents_of_the_books_have_kinds_of_their_own():
    assert len({int(kind) for kind in DocumentKind}) == len(DocumentKind)
