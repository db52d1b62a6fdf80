"""Reconciliation: files that are wrong are refused whole, with line and field; files that differ are told apart from the
journal difference by difference, and nothing else is told."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yikatong.core import files
from yikatong.core.day import reconcile
from yikatong.core.day.bank_file import BankEntry, BankStatus, bank_csv, read_bank_csv
from yikatong.core.day.reconcile import DifferenceKind, InstructionEvent, InstructionState, Known, OwnTaps
from yikatong.core.day.settle import Instruction, instruction_id
from yikatong.core.day.tap_file import Taps, read_tap_csv, tap_csv
from yikatong.core.files import FileError

BOOKED_AT_US = 1_769_882_400_000_000  # 2026-02-01T02:00:00+08:00
DUE_US = BOOKED_AT_US + 1_000_000


def signed_again(raw: bytes, old: bytes, new: bytes) -> bytes:
    """The file with something replaced, and a digest that agrees with it."""
    assert old in raw
    return files.with_digest(raw[: raw.index(b"DIGEST")].replace(old, new, 1))


# ---- bank return files ----

BUS, CITY, FEES = (instruction_id(20260131, name) for name in ("operator:bus", "city:5840", "fees"))


def entry(order: str, amount_fen: int, status: BankStatus, booked_fen: int, at_us: int = BOOKED_AT_US) -> BankEntry:
    return BankEntry(0, order, amount_fen, status, booked_fen, at_us, "AC04 账户已销户" if status is BankStatus.RETURNED else "")


def bank_example(encoding: str = "UTF-8") -> bytes:
    entries = [
        entry(BUS, 207_000, BankStatus.PAID, -207_000),
        entry(CITY, -4500, BankStatus.UNKNOWN, 0),
        entry(FEES, 600, BankStatus.RETURNED, 0),
    ]
    return bank_csv("B-1", "6222", 1_000_000, entries, encoding)


@pytest.mark.parametrize("encoding", ["UTF-8", "GB18030"])
def test_bank_file_reads_back(encoding):
    raw = bank_example(encoding)
    for content in (raw, raw[: raw.index(b"DIGEST")]):  # the digest may be left out
        read = read_bank_csv("bank.csv", content)
        assert (read.statement_id, read.account_number, read.opening_fen, read.closing_fen) == ("B-1", "6222", 1_000_000, 793_000)
        assert [entry.line for entry in read.entries] == [9, 10, 11]
        assert read.entries[2].reason == "AC04 账户已销户"
        assert read.entries[0].booked_at_us == BOOKED_AT_US


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        # operation on the file                      line and field that are told
        (b"yikatong-bank-1", b"yikatong-bank-2", 2, "format"),
        (b"statement_id,B-1", b"statement_id,", 3, "statement_id"),
        (b"account,6222", b"account,6222x", 4, "account"),
        (b"currency,CNY", b"currency,HKD", 5, "currency"),
        (b"opening_balance,10000.00", b"opening_balance,10000", 6, "opening_balance"),
        (b"closing_balance,7930.00", b"closing_balance,7930.01", 7, "closing_balance"),
        (b"COLUMNS,instruction_id", b"COLUMNS,id", 8, "COLUMNS"),
        (b",2070.00,PAID", b",0.00,PAID", 9, "amount"),
        (b",2070.00,PAID", b",2070.001,PAID", 9, "amount"),
        (b",2070.00,PAID", b",2070.00,paid", 9, "status"),
        (b"+08:00,\nENTRY", b"+00:00,\nENTRY", 9, "booked_at"),
        (b"UNKNOWN,0.00", b"UNKNOWN,45.00", 10, "booked"),
        (b",AC04 \xe8\xb4\xa6\xe6\x88\xb7\xe5\xb7\xb2\xe9\x94\x80\xe6\x88\xb7\n", b",\n", 11, "reason"),
        (FEES.encode(), BUS.encode(), 11, "instruction_id"),
        (b"\xe8\xb4\xa6", b"\xb4\xa6", 11, ""),
        (b"TOTAL,3,", b"TOTAL,2,", 12, "count"),
        (b"TOTAL,3,2031.00", b"TOTAL,3,2031.01", 12, "amount"),
        (b"2031.00,-2070.00", b"2031.00,-2070.01", 12, "booked"),
        (b"TOTAL,3,2031.00,-2070.00\n", b"TOTAL,3,2031.00\n", 12, "TOTAL"),
    ],
)
def test_bank_file_that_is_wrong(old, new, line, field):
    with pytest.raises(FileError) as caught:
        read_bank_csv("bank.csv", signed_again(bank_example(), old, new))
    assert (caught.value.file, caught.value.line, caught.value.field) == ("bank.csv", line, field)


@pytest.mark.parametrize("encoding", ["UTF-8", "GB18030"])
def test_bank_file_with_a_wrong_digest_or_in_another_encoding(encoding):
    raw = bank_example(encoding)
    with pytest.raises(FileError) as caught:
        read_bank_csv("bank.csv", raw.replace(b"B-1", b"B-2"))
    assert (caught.value.line, caught.value.field) == (13, "DIGEST")
    other = {"UTF-8": "GB18030", "GB18030": "UTF-8"}[encoding]
    with pytest.raises(FileError) as caught:
        read_bank_csv("bank.csv", signed_again(raw, f"encoding,{encoding}".encode(), f"encoding,{other}".encode()))
    assert caught.value.line == 11


@given(st.data())
def test_any_byte_of_a_bank_file_altered_is_found(data):
    raw = bytearray(bank_example(data.draw(st.sampled_from(["UTF-8", "GB18030"]))))
    at = data.draw(st.integers(0, len(raw) - 2))  # the last byte is the end of the last line, which says nothing
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FileError):
        read_bank_csv("bank.csv", bytes(raw))


CELL = st.sampled_from(["", "0", "-0", "-0.00", "1e5", "9" * 40, "PAID", "\0", '"', "\u2028", "0001-01-01T00:00:00+08:00", "=1"])


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 8), CELL | st.text(max_size=8)), min_size=1, max_size=6))
def test_a_bank_file_with_any_cells_is_read_or_refused(edits):
    """With a digest that agrees, so that it is the fields that are looked at; nothing but FileError is raised."""
    lines = [line.split(",") for line in bank_example().decode().splitlines()[:-1]]
    for line, cell, text in edits:
        cells = lines[line % len(lines)]
        cells[cell % len(cells)] = text
    raw = "".join(",".join(cells) + "\n" for cells in lines).encode("utf-8", "surrogatepass")
    for content in (files.with_digest(raw), raw):
        try:
            read = read_bank_csv("bank.csv", content)
        except FileError as error:
            assert error.line >= 1
        else:
            assert read.opening_fen + sum(entry.booked_fen for entry in read.entries) == read.closing_fen


# ---- the life of an instruction ----

LIFE = {
    #                            PAID        RETURNED    UNKNOWN    REISSUE
    InstructionState.ISSUED:   ("PAID",     "RETURNED", "UNKNOWN", None),
    InstructionState.PAID:     (None,       "RETURNED", None,      None),
    InstructionState.RETURNED: (None,       None,       None,      "REISSUED"),
    InstructionState.UNKNOWN:  ("PAID",     "RETURNED", "UNKNOWN", None),
    InstructionState.REISSUED: (None,       None,       None,      None),
}  # fmt: skip


def test_life_of_an_instruction():
    """Every pair of state and event."""
    for (state, row), (at, event) in itertools.product(LIFE.items(), enumerate(InstructionEvent)):
        after = reconcile.TRANSITIONS.get((state, event))
        assert (after and after.name) == row[at], (state, event)
    assert set(LIFE) == set(InstructionState)
    assert len(reconcile.TRANSITIONS) == sum(name is not None for row in LIFE.values() for name in row)


S, D = InstructionState, DifferenceKind


@pytest.mark.parametrize(
    ("state", "amount", "status", "booked", "late", "after", "posted", "difference"),
    [
        # state     entry: amount, status, booked     late   after        posted  difference
        (S.ISSUED,   1000, "PAID",     -1000, False, S.PAID,      1000, None),
        (S.ISSUED,   1000, "PAID",     -1000, True,  S.PAID,      1000, D.LATE),
        (S.ISSUED,   1001, "PAID",     -1001, False, S.UNKNOWN,      0, D.AMOUNT),
        (S.ISSUED,   1000, "PAID",      -999, False, S.UNKNOWN,      0, D.AMOUNT),
        (S.ISSUED,   1000, "RETURNED",     0, False, S.RETURNED,     0, None),
        (S.ISSUED,   1000, "RETURNED",  1000, False, S.UNKNOWN,      0, D.AMOUNT),
        (S.ISSUED,   1000, "UNKNOWN",      0, False, S.UNKNOWN,      0, None),
        (S.UNKNOWN,  1000, "PAID",     -1000, False, S.PAID,      1000, None),
        (S.UNKNOWN,  1000, "UNKNOWN",      0, False, S.UNKNOWN,      0, None),
        (S.PAID,     1000, "RETURNED",  1000, True,  S.RETURNED, -1000, None),
        (S.PAID,     1000, "RETURNED",   999, False, None,           0, D.AMOUNT),
        (S.PAID,     1000, "PAID",     -1000, False, None,           0, D.DUPLICATE),
        (S.PAID,     1000, "UNKNOWN",      0, False, None,           0, D.MISSING_THERE),
        (S.RETURNED, 1000, "RETURNED",  1000, False, None,           0, D.DUPLICATE),
        (S.RETURNED, 1000, "PAID",     -1000, False, None,           0, D.MISSING_HERE),
        (S.REISSUED, 1000, "PAID",     -1000, False, None,           0, D.MISSING_HERE),
        (S.REISSUED, 1000, "UNKNOWN",      0, False, None,           0, D.MISSING_THERE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1], ids=["payment", "claim"])
def test_what_the_bank_says_of_an_instruction(sign, state, amount, status, booked, late, after, posted, difference):
    order = Instruction(BUS, 20260131, "operator:bus", sign * 1000)
    booked_at_us = DUE_US + 1_000_000 if late else BOOKED_AT_US
    raw = bank_csv("B-1", "6222", 0, [entry(BUS, sign * amount, BankStatus(status), sign * booked, booked_at_us)])
    steps, differences = reconcile.reconcile_bank(read_bank_csv("b", raw), {BUS: Known(order, state, DUE_US)})
    assert [(step.state, step.posted_fen) for step in steps] == ([] if after is None else [(after, sign * posted)])
    assert [found.kind for found in differences] == ([] if difference is None else [difference])
    assert all((found.instruction_id, found.line) == (BUS, 9) for found in differences)


def test_an_instruction_that_was_never_given_refuses_the_file():
    known = {BUS: Known(Instruction(BUS, 20260131, "operator:bus", 207_000), S.ISSUED, DUE_US)}
    with pytest.raises(FileError) as caught:
        reconcile.reconcile_bank(read_bank_csv("bank.csv", bank_example()), known)
    assert (caught.value.line, caught.value.field) == (10, "instruction_id")


def test_what_the_bank_says_nothing_of_is_missing_once_it_is_due():
    named = read_bank_csv("b", bank_example())
    metro = instruction_id(20260131, "operator:metro")
    known = [
        Known(Instruction(order, 20260131, "", 5), state, DUE_US)
        for order, state in ((BUS, S.ISSUED), (metro, S.ISSUED), (metro, S.PAID), (metro, S.UNKNOWN))
    ]
    assert reconcile.overdue(known, named, DUE_US) == []
    missing = reconcile.overdue(known, named, DUE_US + 1)
    assert [(found.kind, found.instruction_id, found.own_fen) for found in missing] == [(D.MISSING_THERE, metro, 5)]


# ---- participants' tap files ----


def taps_of(rows: list[tuple[int, int, int, int]]) -> Taps:
    """Columns of (terminal number, sequence, fen, local time)."""
    terminals = sorted({row[0] for row in rows})
    return Taps(
        np.array(terminals, np.uint64),
        np.array([terminals.index(row[0]) for row in rows], np.uint32),
        np.array([row[1] for row in rows], np.uint32),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.uint64),
    )


def rows_of(taps: Taps) -> list[tuple[int, int, int, int]]:
    columns = (taps.terminals[taps.terminal], taps.sequence, taps.amount_fen, taps.local_time)
    return list(zip(*(column.tolist() for column in columns), strict=True))


EXAMPLE = [
    (0x12A, 7, 200, 20260131083015),
    (0xFFFFFFFFFFFF, 0, 0, 20260131000000),
    (0x12A, 4294967295, 4294967295, 20240229235959),
]


def tap_example(encoding: str = "UTF-8") -> bytes:
    return tap_csv("operator:河源", 20260131, taps_of(EXAMPLE), encoding)


@pytest.mark.parametrize("encoding", ["UTF-8", "GB18030"])
def test_tap_file_reads_back(encoding):
    raw = tap_example(encoding)
    for content in (raw, raw[: raw.index(b"DIGEST")], memoryview(raw)):
        read = read_tap_csv("t", content)
        assert (read.participant, read.settlement_date, read.first_line) == ("operator:河源", 20260131, 6)
        assert rows_of(read.taps) == EXAMPLE
    empty = read_tap_csv("t", tap_csv("operator:河源", 20260131, taps_of([]), encoding))
    assert len(empty.taps) == 0


ROW = b"00000000012a,7,200,20260131083015\n"


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        # operation on the file                                       line and field that are told
        (b"encoding,UTF-8", b"encoding,utf-8", 1, "encoding"),
        (b"yikatong-taps-1", b"yikatong-taps-2", 2, "format"),
        ("河源".encode(), "河源".encode("gb18030"), 3, "participant"),
        (b"date,20260131", b"date,20260132", 4, "settlement_date"),
        (b"COLUMNS,terminal_number", b"COLUMNS,terminal", 5, "COLUMNS"),
        (ROW, ROW.replace(b"12a", b"12A"), 6, "terminal_number"),
        (ROW, ROW.replace(b"00000000012a", b"0000000012a"), 6, "terminal_number"),
        (ROW, ROW.replace(b",7,", b",,"), 6, "terminal_sequence"),
        (ROW, ROW.replace(b",7,", b",07,"), 6, "terminal_sequence"),
        (ROW, ROW.replace(b",7,", b", 7,"), 6, "terminal_sequence"),
        (ROW, ROW.replace(b",7,", b",0x7,"), 6, "terminal_sequence"),
        (b",4294967295,4294967295,", b",4294967296,4294967295,", 8, "terminal_sequence"),
        (b",4294967295,4294967295,", b",4294967295,4294967296,", 8, "amount_fen"),
        (ROW, ROW.replace(b",200,", b",-200,"), 6, "amount_fen"),
        (ROW, ROW.replace(b",200,", b",2.00,"), 6, "amount_fen"),
        (ROW, ROW.replace(b",200,", b',"200",'), 6, "amount_fen"),
        (ROW, ROW.replace(b"0131083015", b"0131083060"), 6, "local_time"),
        (ROW, ROW.replace(b"0131083015", b"0229083015"), 6, "local_time"),
        (ROW, ROW.replace(b"20260131083015", b"2026-01-31T08:30:15"), 6, "local_time"),
        (ROW, ROW.replace(b"\n", b",x\n"), 6, ""),
        (ROW, b"\n" + ROW, 6, ""),
        (ROW, ROW.replace(b"\n", b"\r\n"), 6, "local_time"),
        (ROW, ROW.replace(b"12a", b"\xff2a"), 6, "terminal_number"),
        (ROW, b"", 8, "count"),
        (b"TOTAL,3,4294967495", b"TOTAL,3,4294967494", 9, "amount_fen"),
        (b"TOTAL,3,4294967495", b"TOTAL,03,4294967495", 9, "count"),
        (b"TOTAL,3,4294967495\n", b"", 0, "TOTAL"),
    ],
)
def test_tap_file_that_is_wrong(old, new, line, field):
    with pytest.raises(FileError) as caught:
        read_tap_csv("taps.csv", signed_again(tap_example(), old, new))
    assert (caught.value.file, caught.value.line, caught.value.field) == ("taps.csv", line, field)


@given(st.data())
def test_any_byte_of_a_tap_file_altered_is_found(data):
    raw = bytearray(tap_example())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FileError):
        read_tap_csv("taps.csv", bytes(raw))


@given(st.text("0123456789abcdef,\n\r\"' +-.xTOAL", max_size=80))
def test_nonsense_is_refused_or_read_as_it_stands(body):
    """pyarrow is lenient; what is taken is written again as exactly the bytes that were read."""
    raw = tap_example()
    start, end = raw.index(b"00000000012a"), raw.index(b"TOTAL")
    changed = signed_again(raw, raw[start:end], body.encode())
    try:
        read = read_tap_csv("taps.csv", changed)
    except FileError:
        return
    assert tap_csv(read.participant, read.settlement_date, read.taps) == changed


# ---- the journal against a participant's file ----

DAY = 20260131
TIMES = [DAY * 1_000_000 + clock for clock in (0, 83015, 83016, 235959)]
TAP = st.tuples(st.sampled_from([1, 2, 0xFFFFFFFFFFFF]), st.integers(0, 12) | st.just(2**32 - 1))


@st.composite
def books(draw):
    """A journal (tap → fen, time, window), a file's rows, and what differs: made by editing the file that agrees."""
    keys = draw(st.lists(TAP, unique=True, max_size=25))
    windows = st.sampled_from([DAY, DAY, DAY, DAY + 1, DAY - 1])
    journal = {key: (draw(st.integers(0, 3)), draw(st.sampled_from(TIMES)), draw(windows)) for key in keys}
    rows = [(*key, fen, time) for key, (fen, time, window) in journal.items() if window == DAY]
    rows = draw(st.permutations(rows))
    edits = {}
    for at, row in enumerate(rows):
        edit = draw(st.sampled_from(["", "", "", "leave out", "amount", "time", "amount and time"]))
        key, fen, time = row[:2], row[2], row[3]
        if edit == "leave out":
            edits[key] = [D.MISSING_THERE]
            rows[at] = None
            continue
        if "amount" in edit:
            fen += draw(st.integers(1, 5))
            edits.setdefault(key, []).append(D.AMOUNT)
        if "time" in edit:
            time = next(other for other in TIMES if other != time)
            edits.setdefault(key, []).append(D.TIME)
        rows[at] = (*key, fen, time)
    rows = [row for row in rows if row]
    for key, (fen, time, window) in journal.items():  # what the journal has in another window
        if window != DAY and draw(st.booleans()):
            rows.insert(draw(st.integers(0, len(rows))), (*key, fen, time))
            edits[key] = [D.LATE]
    for key in draw(st.lists(TAP, unique=True, max_size=4)):  # what the journal has not at all
        if key not in journal:
            rows.insert(draw(st.integers(0, len(rows))), (*key, 1, TIMES[0]))
            edits[key] = [D.MISSING_HERE]
    for at in sorted(draw(st.sets(st.integers(0, max(0, len(rows) - 1)), max_size=4)), reverse=True):
        if rows:  # once more, somewhere behind
            rows.insert(draw(st.integers(at + 1, len(rows))), rows[at])
            edits.setdefault(rows[at][:2], []).append(D.DUPLICATE)
    return journal, rows, edits


@pytest.mark.parametrize("word_bits", [64, 8], ids=["words", "places"])
@settings(max_examples=300)
@given(books())
def test_edits_are_found_as_what_they_are_and_nothing_else(word_bits, made):
    journal, rows, edits = made
    own = OwnTaps(
        taps_of([(*key, fen, time) for key, (fen, time, _) in journal.items()]),
        np.array([window for *_, window in journal.values()], np.uint32),
        np.arange(101, 101 + len(journal), dtype=np.uint64),
    )
    read = read_tap_csv("t", tap_csv("operator:bus", DAY, taps_of(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconcile, "_WORD_BITS", word_bits)
        found = reconcile.reconcile_taps(own, read)
    told = sorted((int(row["terminal_number"]), int(row["terminal_sequence"]), int(row["kind"])) for row in found)
    assert told == sorted((*key, int(kind)) for key, kinds in edits.items() for kind in kinds)
    sequences = dict(zip(journal, range(101, 101 + len(journal)), strict=True))
    for row in found:  # each says where, on either side
        kind, key = row["kind"], (int(row["terminal_number"]), int(row["terminal_sequence"]))
        if kind != D.MISSING_THERE:
            there = rows[row["line"] - read.first_line]
            assert (there[:2], there[2], there[3]) == (key, row["other_fen"], row["other_local_time"])
            first = rows.index(next(candidate for candidate in rows if candidate[:2] == key))
            assert (row["line"] - read.first_line > first) == (kind == D.DUPLICATE)
        if kind not in (D.MISSING_HERE, D.DUPLICATE):
            assert (row["own_fen"], row["own_local_time"], row["settlement_date"]) == journal[key]
            assert row["journal_sequence"] == sequences[key]
