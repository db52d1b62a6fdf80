"""Clearing: tables of what each tap comes to, and random journals against a clearer in plain Python."""

import datetime
import itertools

import numpy as np
import pytest
from clearing_oracle import Oracle, Records, make_records
from hypothesis import given, settings
from hypothesis import strategies as st

from yikatong.core import limits
from yikatong.core.day.clear import NO_OPERATOR, Terms, Window, chunks, clear_window, seconds_since_2000
from yikatong.core.day.continuity import ROW, CardStates
from yikatong.core.rules.agreements import Agreement, CapAction, Fee, Per
from yikatong.core.types import NONE, ClearingOutcome, Flag, RecordKind, Result
from yikatong.v1 import clearing_service_pb2

DATE = 20260110
FIRST, LAST = datetime.date(2026, 1, 1), datetime.date(2026, 12, 31)
CITY = 5980


def agreement(**said: object) -> Agreement:
    values: dict[str, object] = {
        "participant": "operator:x", "first": FIRST, "last": LAST, "payee": None, "category": "4131", "appeal_days": 3,
        "deny_list_hours": 24, "tap_fen_max": 900, "fee": Fee(), "concession_city": 1, "concession_operator": 1,
        "debit_cap_fen": None, "debit_cap_action": CapAction.WARN, "city": 0,
    }  # fmt: skip
    return Agreement(**(values | said))  # type: ignore[arg-type]


AGREEMENTS = [
    agreement(),
    agreement(fee=Fee(150, 1, 7), tap_fen_max=700, appeal_days=2),
    agreement(fee=Fee(60, per=Per.WINDOW), city=4403, deny_list_hours=1),
]
OPERATOR_OF_TERMINAL = [0, 1, 2, 1]
TERMS = Terms(
    ["operator:a", "operator:b", "operator:c"], AGREEMENTS, {100: 0, 101: 1, 102: 2},
    np.array(OPERATOR_OF_TERMINAL, np.uint16), CITY, {(0, 1): 3600, (1, 0): 3600},
)  # fmt: skip


def denied(since_s: dict[int, int]):
    return lambda records: np.array([since_s.get(int(card), 0) for card in records["card"]], np.int64)


def window_of(records: np.ndarray, date: int = DATE, first: int = 1) -> Window:
    return Window(date, first, len(records))


def tap(result: Result = Result.ACCEPTED, **said: int) -> dict[str, int]:
    """A tap of 200 fen of card 0, at the first operator, in profile 2 unless a chip balance is given."""
    charged = result in (Result.ACCEPTED, Result.DEBT_BOOKED)
    values = {
        "kind": RecordKind.TAP, "result": result, "card": 0, "terminal": 0, "atc": 1, "tap_amount_fen": 200,
        "amount_due_fen": 200, "local_date": DATE, "local_time": 83000, "profile": 1 if "chip_before_fen" in said else 2,
        "city": CITY,
        "flags": Flag.STORED | (Flag.COUNTED if charged or result == Result.TEST else 0),
    }  # fmt: skip
    if charged:
        values |= {"amount_fen": said.get("tap_amount_fen", 200), "debit_account": 1, "credit_account": 100}
    return values | said


def balance(before: int, amount: int = 200, after: int | None = None, **said: int) -> dict[str, int]:
    return {
        "chip_before_fen": before, "tap_amount_fen": amount, "chip_after_fen": before - amount if after is None else after,
    } | said  # fmt: skip


ONLINE = {"flags": 0}
TABLE = [
    # what, taps, outcomes in order of sequence
    ("charged", [tap()], "CLEARED"),
    ("debt", [tap(Result.DEBT_BOOKED)], "DEBT"),
    ("test", [tap(Result.TEST)], "TEST"),
    ("declined online", [tap(Result.INSUFFICIENT_FUNDS, **ONLINE), tap(Result.CARD_DENIED, **ONLINE)], "DECLINED DECLINED"),
    ("stored and refused", [tap(Result.INSUFFICIENT_FUNDS)], "REFUSED"),
    ("no such key or algorithm", [tap(Result.UNKNOWN_KEY), tap(Result.ALGORITHM_UNSUPPORTED)], "FORMAT FORMAT"),
    ("one counter twice", [tap(), tap(Result.CONFLICT, flags=Flag.FRAUD)], "CLEARED FRAUD"),
    ("one terminal sequence twice", [tap(Result.CONFLICT)], "SEQUENCE_REUSED"),
    ("unknown terminal", [tap(Result.UNKNOWN_TERMINAL, terminal=NONE)], "TERMINAL_UNKNOWN"),
    ("other issuer", [tap(Result.ISSUER_MISMATCH)], "ISSUER_MISMATCH"),
    ("unknown card", [tap(Result.UNKNOWN_CARD, card=NONE)], "CARD_UNKNOWN"),
    ("expired", [tap(Result.CARD_EXPIRED)], "CARD_EXPIRED"),
    ("wrong MAC", [tap(Result.MAC_MISMATCH)], "MAC_WRONG"),
    ("stored, refused as denied", [tap(Result.CARD_DENIED)], "DENIED_LIABLE"),
    ("denied, the list could be there", [tap(card=7, local_time=83001, flags=Flag.STORED | Flag.DENIED)], "DENIED_LIABLE"),
    ("denied, the list could not", [tap(card=7, local_time=83000, flags=Flag.STORED | Flag.DENIED)], "CLEARED"),
    ("denied no more", [tap(card=8, local_time=83001, flags=Flag.STORED | Flag.DENIED)], "CLEARED"),
    ("too much in one tap", [tap(tap_amount_fen=900), tap(tap_amount_fen=901, atc=2)], "CLEARED AMOUNT_OVER_LIMIT"),
    ("late", [tap(local_date=20260107), tap(local_date=20260106, atc=2)], "CLEARED LATE"),
    ("over the limit comes before late", [tap(local_date=20260106, tap_amount_fen=901)], "AMOUNT_OVER_LIMIT"),
    ("balances join", [tap(**balance(900)), tap(**balance(700, atc=2))], "CLEARED CLEARED"),
    ("in any order of arrival", [tap(**balance(700, atc=2)), tap(**balance(900))], "CLEARED CLEARED"),
    ("balances do not join", [tap(**balance(900)), tap(**balance(701, atc=2))], "CLEARED BALANCE_GAP"),
    ("a record contradicts itself", [tap(**balance(900, after=701))], "BALANCE_GAP"),
    ("no balance between", [tap(**balance(900)), tap(atc=2), tap(**balance(100, 50, atc=3))], "CLEARED CLEARED CLEARED"),
    ("a counter is missing", [tap(), tap(atc=3)], "CLEARED ATC_GAP"),
    ("it was a test", [tap(), tap(Result.TEST, atc=2), tap(atc=3)], "CLEARED TEST CLEARED"),
    ("it was grey", [tap(), tap(Result.GREY, atc=2), tap(atc=3)], "CLEARED GREY CLEARED"),
    ("grey, alone", [tap(Result.GREY, **balance(900))], "GREY"),
    ("grey, of no card", [tap(Result.GREY, card=NONE)], "GREY"),
    ("grey, paid", [tap(Result.GREY, **balance(900)), tap(**balance(700, atc=2))], "GREY_PROVED CLEARED"),
    ("grey, not paid", [tap(Result.GREY, **balance(900)), tap(**balance(900, atc=2))], "GREY_DISPROVED CLEARED"),
    ("grey, neither", [tap(Result.GREY, **balance(900)), tap(**balance(800, atc=2))], "GREY CLEARED"),
    ("grey, another missing", [tap(Result.GREY, **balance(900)), tap(**balance(700, atc=3))], "GREY CLEARED"),
    ("grey, the next one unproved", [tap(Result.GREY, **balance(900)), tap(Result.MAC_MISMATCH, **balance(700, atc=2))],
     "GREY MAC_WRONG"),
    ("torn, paid", [tap(Result.TORN, **balance(900)), tap(**balance(700, atc=2))], "GREY_PROVED CLEARED"),
    ("torn, alone", [tap(Result.TORN, **balance(900))], "TORN"),
    ("two grey in a row", [tap(Result.GREY, **balance(900)), tap(Result.GREY, **balance(700, atc=2)), tap(**balance(700, atc=3))],
     "GREY_PROVED GREY_DISPROVED CLEARED"),
    ("grey twice", [tap(Result.GREY), tap(Result.GREY)], "GREY DUPLICATE"),
    ("grey, and then whole", [tap(Result.GREY), tap()], "DUPLICATE CLEARED"),
    ("other cards do not matter", [tap(**balance(900)), tap(**balance(5, 5, atc=2, card=1))], "CLEARED CLEARED"),
]  # fmt: skip


@pytest.mark.parametrize(("taps", "outcomes"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_a_tap_comes_to(taps: list[dict[str, int]], outcomes: str) -> None:
    records = make_records(taps)
    since_s = int(datetime.datetime(2026, 1, 9, 0, 30, tzinfo=datetime.UTC).timestamp())  # 08:30 in UTC+8
    tally = clear_window(Records(records), window_of(records), TERMS, 10, CardStates(), np.empty(0, ROW), denied({7: since_s}))
    got = {int(row["sequence"]): ClearingOutcome(row["outcome"]).name for row in tally.exceptions}
    for sequence, outcome in enumerate(outcomes.split(), 1):
        assert got.get(sequence, outcome) == outcome
        assert (sequence in got) == (outcome not in ("CLEARED", "TEST", "DECLINED"))
    for outcome in ClearingOutcome:
        assert tally.counts[outcome] == outcomes.split().count(outcome.name)


def test_outcomes_are_those_of_the_proto() -> None:
    of_proto = {name.removeprefix("CLEARING_OUTCOME_"): number for name, number in clearing_service_pb2.ClearingOutcome.items()}
    assert {"UNSPECIFIED": 0} | {outcome.name: outcome.value for outcome in ClearingOutcome} == of_proto


def test_what_is_carried_is_decided_in_a_later_window() -> None:
    records = make_records([tap(Result.GREY, **balance(900)), tap(card=3), tap(**balance(700, atc=2))])
    states = CardStates()
    first = clear_window(Records(records), Window(DATE, 1, 2), TERMS, 10, states, np.empty(0, ROW), denied({}))
    assert first.pending["sequence"].tolist() == [1]
    second = clear_window(Records(records), Window(DATE + 1, 3, 3), TERMS, 10, states, first.pending, denied({}))
    assert second.proved["sequence"].tolist() == [1]
    assert second.counts[ClearingOutcome.GREY_PROVED] == 1
    assert second.counts[ClearingOutcome.GREY] == 0  # the first window counted it
    assert not len(second.pending)


def test_what_is_carried_too_long_is_given_up() -> None:
    records = make_records([tap(Result.GREY, **balance(900)), {"kind": RecordKind.TOP_UP}])
    states = CardStates()
    tally = clear_window(Records(records), Window(DATE, 1, 1), TERMS, 10, states, np.empty(0, ROW), denied({}))
    for date, pending in ((DATE + 3, 1), (DATE + 4, 0)):
        tally = clear_window(Records(records), Window(date, 2, 2), TERMS, 10, states, tally.pending, denied({}))
        assert len(tally.pending) == pending
    assert tally.exceptions["outcome"].tolist() == [ClearingOutcome.LATE]


@given(st.dates(datetime.date(2000, 1, 1), datetime.date(2099, 12, 31)), st.times())
def test_seconds_since_2000(date: datetime.date, time: datetime.time) -> None:
    time = time.replace(microsecond=0)
    passed = datetime.datetime.combine(date, time) - datetime.datetime(2000, 1, 1)
    numbers = np.array([int(date.strftime("%Y%m%d"))]), np.array([int(time.strftime("%H%M%S"))])
    assert seconds_since_2000(*numbers).tolist() == [passed.total_seconds()]


@given(
    st.integers(0, 40),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 45),
    st.integers(0, 45),
    st.integers(1, 20),
)
def test_chunks_are_the_range_and_nothing_else(count: int, sizes: list[int], first: int, length: int, chunk: int) -> None:
    records = make_records([{} for _ in range(count)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CLEAR_CHUNK_RECORDS", chunk)
        got = [part["sequence"].tolist() for part in chunks(Records(records, sizes), first, first + length - 1)]
    assert list(itertools.chain(*got)) == [sequence for sequence in range(first, first + length) if sequence <= count]
    assert all(len(part) == chunk for part in got[:-1])


# ---- against the oracle ----

CARDS = st.sampled_from([0, 1, 2])
RESULTS = st.sampled_from(
    [Result.ACCEPTED] * 8 + [Result.DEBT_BOOKED, Result.TEST, Result.CONFLICT, Result.MAC_MISMATCH, Result.CARD_DENIED,
     Result.INSUFFICIENT_FUNDS, Result.CARD_EXPIRED] + [Result.GREY] * 3 + [Result.TORN]
)  # fmt: skip


@st.composite
def journals(draw):
    """Records as the engine writes them: a counter of a card is used up once; and where the windows end."""
    rows, used = [], set()
    for _ in range(draw(st.integers(1, 30))):
        card, atc, result = draw(CARDS), draw(st.integers(1, 8)), draw(RESULTS)
        amount = draw(st.sampled_from([0, 100, 200, 800]))
        before = draw(st.sampled_from([0, 200, 300, 400, 500, 800]))
        flags = draw(st.sampled_from([0, Flag.STORED, Flag.STORED, Flag.STORED | Flag.DENIED]))
        if result in (Result.ACCEPTED, Result.DEBT_BOOKED, Result.TEST, Result.CARD_EXPIRED):
            if (card, atc) in used:
                result, flags = Result.CONFLICT, flags | draw(st.sampled_from([0, Flag.FRAUD]))
            else:
                used.add((card, atc))
                flags |= Flag.COUNTED
        rows.append(
            tap(
                result, card=card, atc=atc, terminal=draw(st.integers(0, 3)), tap_amount_fen=amount, chip_before_fen=before,
                chip_after_fen=draw(st.sampled_from([before - amount if before >= amount else 0, before])), flags=flags,
                profile=draw(st.sampled_from([1, 1, 1, 2])), amount_due_fen=draw(st.sampled_from([amount, amount + 100, 0])),
                city=draw(st.sampled_from([CITY, CITY, 0, 4403])),
                local_date=draw(st.sampled_from([DATE, DATE, DATE - 1, DATE - 3])),
                local_time=draw(st.sampled_from([83000, 90000, 101500])),
            )
        )  # fmt: skip
    ends = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=2)) | {len(rows)})
    since_s = {2: int(datetime.datetime(2026, 1, draw(st.integers(5, 10)), tzinfo=datetime.UTC).timestamp())}
    return make_records(rows), ends, since_s


@settings(max_examples=400, deadline=None)
@given(journals(), st.sampled_from([1, 3, 1 << 20]), st.sampled_from([1, 4, 1 << 16]))
def test_random_journals_against_the_oracle(journal, part_rows: int, chunk: int) -> None:
    records, ends, since_s = journal
    oracle = Oracle(AGREEMENTS, OPERATOR_OF_TERMINAL, CITY, TERMS.within_s, since_s)
    states, pending, first = CardStates(), np.empty(0, ROW), 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CLEAR_PART_ROWS", part_rows)
        patch.setattr(limits, "CLEAR_CHUNK_RECORDS", chunk)
        for day, end in enumerate(ends):
            window = Window(DATE + day, first, end)
            tally = clear_window(Records(records), window, TERMS, 3, states, pending, denied(since_s))
            compare(tally, oracle.clear(records[first - 1 : end], window.day), oracle)
            pending, first = tally.pending, end + 1


def compare(tally, answer, oracle) -> None:
    assert {
        int(row["sequence"]): (ClearingOutcome(row["outcome"]).name, int(row["detail"]), int(row["amount_fen"]))
        for row in tally.exceptions
    } == answer.exceptions
    for outcome in ClearingOutcome:
        assert (tally.counts[outcome], tally.amounts_fen[outcome]) == (
            answer.counts[outcome.name],
            answer.amounts_fen[outcome.name],
        )
    for name in ("taps_fen", "liable_fen", "held_fen", "cleared_fen", "concession_fen", "fee_fen"):
        assert getattr(tally, name).tolist() == [getattr(answer, name)[place] for place in range(3)], name
    assert {pair: sum_fen for pair, (_, sum_fen) in tally.foreign.items()} == answer.foreign
    assert {pair: [pool.taps, pool.first_fen, pool.second_fen] for pair, pool in tally.pools.items()} == answer.pools
    assert set(tally.proved["sequence"].tolist()) == answer.proved
    assert tally.pending["sequence"].tolist() == [int(record["sequence"]) for record in oracle.pending]
    assert NO_OPERATOR not in tally.pending["operator"]


CHAINS = [
    # operators by tap, minutes after the first, pools by pair: taps, what the first took, what the second took
    ("a b", "0 60", {(0, 1): (1, 100, 101)}),
    ("a b", "0 61", {}),
    ("a a", "0 1", {}),
    ("a c", "0 1", {}),
    ("a b a", "0 1 2", {(0, 1): (1, 100, 101)}),
    ("a b a b", "0 1 2 3", {(0, 1): (2, 202, 204)}),
    ("a b b a", "0 1 2 3", {(0, 1): (1, 100, 101), (1, 0): (1, 102, 103)}),
    ("a b a b", "0 50 111 120", {(0, 1): (2, 202, 204)}),
    ("a b a b", "0 61 62 63", {(1, 0): (1, 101, 102)}),
]


@pytest.mark.parametrize(("operators", "minutes", "pools"), CHAINS)
def test_transfers(operators: str, minutes: str, pools: dict[tuple[int, int], tuple[int, int, int]]) -> None:
    taps = [
        tap(
            atc=i + 1, terminal="abc".index(operator), tap_amount_fen=100 + i,
            local_time=80000 + minute // 60 * 10000 + minute % 60 * 100,
        )
        for i, (operator, minute) in enumerate(zip(operators.split(), map(int, minutes.split()), strict=True))
    ]  # fmt: skip
    records = make_records(taps)
    tally = clear_window(Records(records), window_of(records), TERMS, 10, CardStates(), np.empty(0, ROW), denied({}))
    assert {pair: (pool.taps, pool.first_fen, pool.second_fen) for pair, pool in tally.pools.items()} == pools
