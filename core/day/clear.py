"""The first stage of a day: what of one window clears and what does not, from the journal alone.

The window's records are read once, in chunks that the cache holds, every check on all taps of a chunk at a time. What a tap
alone can show is decided there, and the money is added up. What only a card's taps side by side show is found by
continuity.py. Of the checks that profile.md orders, the tap path has made the first ones already; its result says which.

Money that a card was charged is the operator's unless the tap is one that the operator must bear (DENIED_LIABLE) or is kept
back (AMOUNT_OVER_LIMIT, LATE). Gaps are looked into and do not stop money: the card has proved the tap itself."""

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from yikatong.core import limits, types
from yikatong.core.day.continuity import FINDING, ROW, CardStates, Continuity, Found, Mark, Pool, joined, pick
from yikatong.core.day.positions import LineKind, line_of
from yikatong.core.errors import Damaged
from yikatong.core.journal import JournalReader
from yikatong.core.rules.agreements import Agreement, Per, Refunds
from yikatong.core.types import ClearingOutcome, Flag, RecordKind, Result

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]

EXCEPTION: Final = np.dtype(
    [
        ("sequence", "<u8"), ("amount_fen", "<i8"), ("detail", "<i8"), ("card", "<u4"), ("terminal", "<u4"),
        ("operator", "<u2"), ("outcome", "u1"), ("reserved", "u1"),
    ]
)  # fmt: skip
"""One row of a window's queue. `operator` is a place in Tally.operators, or NO_OPERATOR."""

# Plain numbers: an enum's would widen every array that they meet.
TAP, POSTING = int(RecordKind.TAP), int(RecordKind.POSTING)
DEBT_BOOKED = int(Result.DEBT_BOOKED)
STORED, DENIED, COUNTED, FRAUD = int(Flag.STORED), int(Flag.DENIED), int(Flag.COUNTED), int(Flag.FRAUD)
FLAG_GREY = int(Flag.GREY)
CLEARED, DEBT = int(ClearingOutcome.CLEARED), int(ClearingOutcome.DEBT)
DUPLICATE = int(ClearingOutcome.DUPLICATE)
TORN, GREY = int(ClearingOutcome.TORN), int(ClearingOutcome.GREY)
SEQUENCE_REUSED, LATE = int(ClearingOutcome.SEQUENCE_REUSED), int(ClearingOutcome.LATE)
DENIED_LIABLE, AMOUNT_OVER_LIMIT = int(ClearingOutcome.DENIED_LIABLE), int(ClearingOutcome.AMOUNT_OVER_LIMIT)

NO_OPERATOR: Final = 0xFFFF

_BY_RESULT: Final = {
    Result.ACCEPTED: ClearingOutcome.CLEARED,
    Result.DEBT_BOOKED: ClearingOutcome.DEBT,
    Result.TEST: ClearingOutcome.TEST,
    Result.UNKNOWN_KEY: ClearingOutcome.FORMAT,
    Result.KEY_RETIRED: ClearingOutcome.FORMAT,
    Result.ALGORITHM_UNSUPPORTED: ClearingOutcome.FORMAT,
    Result.CONFLICT: ClearingOutcome.SEQUENCE_REUSED,
    Result.UNKNOWN_TERMINAL: ClearingOutcome.TERMINAL_UNKNOWN,
    Result.ISSUER_MISMATCH: ClearingOutcome.ISSUER_MISMATCH,
    Result.UNKNOWN_CARD: ClearingOutcome.CARD_UNKNOWN,
    Result.CARD_EXPIRED: ClearingOutcome.CARD_EXPIRED,
    Result.MAC_MISMATCH: ClearingOutcome.MAC_WRONG,
    Result.GREY: ClearingOutcome.GREY,
    Result.TORN: ClearingOutcome.TORN,
}
"""What the tap path's result comes to. The others are declines: where the terminal asked at once nothing happened; where it
had let the rider in before, somebody must look at it."""

NOT_QUEUED: Final = (ClearingOutcome.CLEARED, ClearingOutcome.TEST, ClearingOutcome.DECLINED)


def _outcomes() -> Array:
    """Outcome by [stored, result]."""
    table = np.zeros((2, 256), np.uint8)
    table[0], table[1] = ClearingOutcome.DECLINED, ClearingOutcome.REFUSED
    for result, outcome in _BY_RESULT.items():
        table[:, result] = outcome
    table[1, Result.CARD_DENIED] = ClearingOutcome.DENIED_LIABLE
    return table


OUTCOMES: Final = _outcomes()


@dataclass(frozen=True)
class Window:
    """One settlement date (YYYYMMDD) and the journal records it holds: first and last sequence."""

    date: int
    first_sequence: int
    last_sequence: int

    @property
    def records(self) -> int:
        return self.last_sequence - self.first_sequence + 1

    @property
    def day(self) -> datetime.date:
        return date_of(self.date)


def date_of(date: int) -> datetime.date:
    """A settlement date YYYYMMDD."""
    return datetime.date(date // 10000, date // 100 % 100, date % 100)


@dataclass(frozen=True)
class Terms:
    """Whom the window's records may concern, by place: operators and acquirers, and their agreements; the operator of each
    terminal, and whose each account is, since an acquirer's merchants have one each."""

    participants: list[str]  # "operator:…", "acquirer:…"
    agreements: list[Agreement]
    place_of_account: dict[int, int]
    operator_of_terminal: Array  # place by terminal slot, uint16
    city: int  # our own clearing-centre code
    within_s: dict[tuple[int, int], int] = field(default_factory=dict)  # transfers: see Continuity

    def places(self, accounts: Array) -> Array:
        """The place of each account's participant; -1 where it is nobody's here."""
        if not self.place_of_account:
            return np.full(len(accounts), -1)
        known = np.array(sorted(self.place_of_account), np.int64)
        place = np.array([self.place_of_account[int(account)] for account in known], np.int64)
        at = np.minimum(np.searchsorted(known, accounts), len(known) - 1)
        return np.where(known[at] == accounts, place[at], -1)


BY_PLACE: Final = (
    "taps", "taps_fen", "liable", "liable_fen", "held", "held_fen", "cleared", "cleared_fen", "concessions", "concession_fen",
    "fee_fen",
)  # fmt: skip


@dataclass
class Tally:
    """What a window comes to, in arrays by place (Terms.participants).

    `counts` and `amounts_fen` are by outcome (256 places each): amounts are what was charged, or what the tap asked for where
    nothing was. `fee_fen` is the fee for each tap, capture and refund where the agreement wants it so. `foreign` is what cards
    of other cities paid, by (operator, city), and `postings` is what other records of the window moved, by (kind, debit account,
    credit account); both hold (count, amount)."""

    window: Window
    counts: Array
    amounts_fen: Array
    taps: Array  # charged, whatever becomes of the money
    taps_fen: Array
    liable: Array
    liable_fen: Array
    held: Array
    held_fen: Array
    cleared: Array
    cleared_fen: Array
    concessions: Array
    concession_fen: Array
    fee_fen: Array
    foreign: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    postings: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    pools: dict[tuple[int, int], Pool] = field(default_factory=dict)
    proved: Array = field(default_factory=lambda: np.empty(0, ROW))
    pending: Array = field(default_factory=lambda: np.empty(0, ROW))
    exceptions: Array = field(default_factory=lambda: np.empty(0, EXCEPTION))

    @classmethod
    def of(cls, window: Window, places: int) -> "Tally":
        """Nothing yet."""
        by_outcome: dict[str, Any] = {name: np.zeros(256, np.int64) for name in ("counts", "amounts_fen")}
        by_place: dict[str, Any] = {name: np.zeros(places, np.int64) for name in BY_PLACE}
        return cls(window, **by_outcome, **by_place)


# ---- reading the window ----


def chunks(reader: JournalReader, first: int, last: int) -> Iterator[Array]:
    """Records of a range of sequences, in order, in arrays of up to CLEAR_CHUNK_RECORDS that are good until the next is asked
    for. Small group commits are gathered, so that a chunk is worth its vector operations."""
    size = types.RECORD.itemsize
    buffer = bytearray(min(limits.CLEAR_CHUNK_RECORDS, max(last - first + 1, 0)) * size)
    filled = 0
    for entry in reader.entries(first):
        if entry.first_sequence > last:
            break
        start = max(first - entry.first_sequence, 0)
        stop = min(last - entry.first_sequence + 1, entry.count)
        while start < stop:
            take = min(stop - start, len(buffer) // size - filled)
            buffer[filled * size : (filled + take) * size] = entry.records[start * size : (start + take) * size]
            start += take
            filled += take
            if filled * size == len(buffer):
                yield np.frombuffer(buffer, types.RECORD)
                filled = 0
        reader.let_go(entry)
    if filled:
        yield np.frombuffer(buffer, types.RECORD, filled)


def records_at(reader: JournalReader, sequences: Array) -> Array:
    """Records of sorted sequences. Raises Damaged when one is missing."""
    found = np.empty(len(sequences), types.RECORD)
    done = 0
    while done < len(sequences):
        entry = reader.entry(int(sequences[done]))
        if entry is None:
            raise Damaged(f"journal: record {sequences[done]} is missing")
        end = int(np.searchsorted(sequences, entry.first_sequence + entry.count))
        found[done:end] = pick(entry.array, sequences[done:end].astype(np.int64) - entry.first_sequence)
        reader.let_go(entry)
        done = end
    return found


def denied_since(reader: JournalReader, records: Array) -> Array:
    """Since when the card of each record was on the deny list when it was made, Unix seconds: the records of a card name each
    other backwards, and each says whether the card was denied after it."""
    since_s = np.zeros(len(records), np.int64)
    for at, record in enumerate(records):
        since_us, sequence = int(record["time_us"]), int(record["card_previous"])
        while sequence:
            found = reader.record(sequence)
            if found is None:
                raise Damaged(f"journal: record {sequence} is missing")
            before = found[1][0]
            if not before["flags"] & DENIED:
                break
            since_us, sequence = int(before["time_us"]), int(before["card_previous"])
        since_s[at] = since_us // 1_000_000
    return since_s


# ---- seconds of local time ----


def seconds_since_2000(date: Array, time: Array) -> Array:
    """Local dates (YYYYMMDD) and times (hhmmss) as seconds since 2000, uint32: the days are counted from March on, as the
    Julian calendar's reckoners did, so that a leap day ends its year."""
    date, time = date.astype(np.int64), time.astype(np.int64)
    month = date // 100 % 100
    year = date // 10000 - (month <= 2)
    day_of_year = (153 * (month + np.where(month > 2, -3, 9)) + 2) // 5 + date % 100 - 1
    days = year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 730_425
    seconds: Array = days * 86_400 + time // 10000 * 3600 + time // 100 % 100 * 60 + time % 100
    return seconds.astype(np.uint32)


SECONDS_2000_UTC8: Final = 946_684_800 - 8 * 3600
"""Unix seconds of 2000-01-01 00:00 in UTC+8."""


# ---- one chunk at a time ----


def fees(amounts_fen: Array, place: Array, terms: "FeeTerms") -> Array:
    """The fee on each amount, half a fen rounded up, within minimum and cap; 0 where the agreement has no fee by the tap."""
    rate, low, high = terms.rate_bp[place], terms.minimum_fen[place], terms.cap_fen[place]
    fee_fen: Array = np.clip((amounts_fen * rate + 5_000) // 10_000, low, high)
    return fee_fen


class FeeTerms:
    """Fees by the tap, by place."""

    def __init__(self, agreements: list[Agreement]) -> None:
        by_tap = [agreement.fee if agreement.fee.per is Per.TAP else None for agreement in agreements]
        self.rate_bp = np.array([fee.rate_bp if fee else 0 for fee in by_tap], np.int64)
        self.minimum_fen = np.array([fee.minimum_fen if fee else 0 for fee in by_tap], np.int64)
        self.cap_fen = np.array([fee.cap_fen if fee else 0 for fee in by_tap], np.int64)


class SettledGrey:
    """Cards and counters whose debit was settled as a grey record's in an earlier window: `keys` are card slot << 16 | ATC."""

    def __init__(self, keys: Array, cards: int) -> None:
        self.keys = np.sort(keys.astype(np.uint64))
        self.of_card = np.zeros(cards if len(keys) else 0, bool)
        self.of_card[(self.keys >> np.uint64(16)).astype(np.int64)] = True

    def has(self, records: Array) -> Array:
        """Whether each record, of a card that is known, is of one of them."""
        if not len(self.of_card):
            return np.zeros(len(records), bool)
        card = records["card"]
        found: Array = self.of_card[np.minimum(card, len(self.of_card) - 1)]
        if found.any():
            at = np.flatnonzero(found)
            found = found.copy()
            found[at] = np.isin(card[at].astype(np.uint64) << np.uint64(16) | records["atc"][at], self.keys)
        return found


class _Pass:
    """The one pass over the window's records."""

    def __init__(self, window: Window, terms: Terms, continuity: Continuity, settled: "SettledGrey") -> None:
        self.window = window
        self.settled = settled
        self.terms = terms
        self.continuity = continuity
        n = len(terms.participants)
        self.n = n
        self.tally = Tally.of(window, n)
        self.fee_terms = FeeTerms(terms.agreements)
        self.tap_fen_max = np.array([agreement.tap_fen_max for agreement in terms.agreements], np.int64)
        self.earliest = np.array(
            [int((window.day - datetime.timedelta(agreement.appeal_days)).strftime("%Y%m%d")) for agreement in terms.agreements],
            np.uint32,
        )
        self.list_s = np.array([agreement.deny_list_hours * 3600 for agreement in terms.agreements], np.int64)
        self.returns_fee = np.array([agreement.fee.refunds is Refunds.RETURNED for agreement in terms.agreements], bool)
        self.ours = np.array([agreement.city == 0 for agreement in terms.agreements], bool)
        self.exceptions: list[Array] = []
        self.denied: list[Array] = []  # charged though denied: whether in time is known when the cards have been asked for

    def take(self, records: Array) -> None:
        """A chunk of records of all kinds."""
        kind = records["kind"]
        is_tap = kind == TAP
        if np.count_nonzero(is_tap) < len(records):
            self._take_postings(pick(records, kind == POSTING))
            records = pick(records, is_tap)
        if len(records):
            self._take_taps(records)

    def take_denied(self, denied_since_s: Callable[[Array], Array]) -> None:
        """The charged taps of denied cards that were set aside: `denied_since_s` tells since when each one's card was denied
        then (Unix seconds, 0: it was not)."""
        for records in self.denied:
            operator = self.terms.operator_of_terminal[records["terminal"]]
            since = denied_since_s(records).astype(np.int64)
            local = seconds_since_2000(records["local_date"], records["local_time"]).astype(np.int64) + SECONDS_2000_UTC8
            liable = (since > 0) & (local > since + self.list_s[operator])
            self._settle(records, operator, liable)

    def _take_taps(self, records: Array) -> None:
        flags, result = records["flags"], records["result"]
        stored = flags & STORED
        outcome = OUTCOMES[stored, result]
        reused = outcome == SEQUENCE_REUSED
        if reused.any():
            outcome[reused & (flags & FRAUD != 0)] = ClearingOutcome.FRAUD
            outcome[reused & (flags & FLAG_GREY != 0)] = DUPLICATE  # its tap had come whole before
        charged = outcome <= DEBT

        # 1. What was charged is settled, but for stored taps of denied cards, which wait until the cards were asked for.
        doubtful = charged & (stored != 0) & (flags & DENIED != 0)
        if doubtful.any():
            self.denied.append(pick(records, doubtful))
            settled = pick(records, charged & ~doubtful)
        else:
            settled = records if charged.all() else pick(records, charged)
        if len(settled):
            self._settle(settled, self.terms.operator_of_terminal[settled["terminal"]], None)
        if len(settled) == len(records):
            return

        # 2. What was not.
        others = ~charged
        rest, outcome = pick(records, others), outcome[others]
        pending = (outcome == GREY) | (outcome == TORN)
        if pending.any():
            outcome[pending & self.settled.has(rest)] = DUPLICATE
        self._count(outcome, rest["tap_amount_fen"].astype(np.int64))
        pending = (outcome == GREY) | (outcome == TORN)
        queued = ~pending & ~np.isin(outcome, NOT_QUEUED)
        self._queue(pick(rest, queued), outcome[queued])
        for_continuity = (pending | (rest["flags"] & COUNTED != 0)) & (rest["card"] != types.NONE)
        if for_continuity.any():
            rows = self._rows(pick(rest, for_continuity))
            marks = np.where(pending, Mark.PENDING, Mark.COUNTED).astype(np.uint8)
            marks[outcome == TORN] |= Mark.TORN
            rows["marks"] |= marks[for_continuity]
            self.continuity.add(rows)
        lost = pending & (rest["card"] == types.NONE)  # of no card that we know, so no next record will ever decide it
        self._queue(pick(rest, lost), outcome[lost])

    def _settle(self, records: Array, operator: Array, liable: Array | None) -> None:
        """Charged taps: who bears them, and the money."""
        tally, n = self.tally, self.n
        amount_fen = records["amount_fen"].astype(np.int64)
        outcome = np.where(records["result"] == DEBT_BOOKED, DEBT, CLEARED).astype(np.uint8)
        late = records["local_date"] < self.earliest[operator]
        over = amount_fen > self.tap_fen_max[operator]
        outcome[late] = LATE
        outcome[over] = AMOUNT_OVER_LIMIT
        outcome[self.settled.has(records)] = DUPLICATE  # its debit was settled already, as a grey record's
        if liable is not None:
            outcome[liable] = DENIED_LIABLE
        self._count(outcome, amount_fen)
        tally.taps += np.bincount(operator, minlength=n)
        tally.taps_fen += _sums(operator, amount_fen, n)
        clears = outcome <= DEBT
        if not clears.all():
            bears = outcome == DENIED_LIABLE
            waits = ~clears & ~bears
            tally.liable += np.bincount(operator[bears], minlength=n)
            tally.liable_fen += _sums(operator[bears], amount_fen[bears], n)
            tally.held += np.bincount(operator[waits], minlength=n)
            tally.held_fen += _sums(operator[waits], amount_fen[waits], n)
        queued = outcome != CLEARED
        if queued.any():
            self._queue(pick(records, queued), outcome[queued])
        rows = self._rows(records)
        rows["charged_fen"] = amount_fen
        rows["operator"] = operator
        rows["marks"] |= np.where(clears, Mark.COUNTED | Mark.CLEARED, Mark.COUNTED).astype(np.uint8)
        self.continuity.add(rows)

        if not clears.all():
            records, operator, amount_fen = pick(records, clears), operator[clears], amount_fen[clears]
        tally.cleared += np.bincount(operator, minlength=n)
        tally.cleared_fen += _sums(operator, amount_fen, n)
        given_fen = np.maximum(records["amount_due_fen"].astype(np.int64) - amount_fen, 0)
        given = given_fen > 0
        if given.any():
            tally.concessions += np.bincount(operator[given], minlength=n)
            tally.concession_fen += _sums(operator[given], given_fen[given], n)
        tally.fee_fen += _sums(operator, fees(amount_fen, operator, self.fee_terms), n)
        city = records["city"]
        foreign = (city != self.terms.city) & (city != 0)
        if foreign.any():
            foreign &= self.ours[operator]
            self._add_foreign(operator[foreign], city[foreign], amount_fen[foreign])

    def _add_foreign(self, operator: Array, city: Array, amount_fen: Array) -> None:
        codes, which = np.unique(operator.astype(np.int64) << 16 | city, return_inverse=True)
        counts, sums = np.bincount(which, minlength=len(codes)), _sums(which, amount_fen, len(codes))
        for code, count, sum_fen in zip(codes.tolist(), counts.tolist(), sums.tolist(), strict=True):
            pair = (code >> 16, code & 0xFFFF)
            before = self.tally.foreign.get(pair, (0, 0))
            self.tally.foreign[pair] = (before[0] + count, before[1] + sum_fen)

    def _take_postings(self, records: Array) -> None:
        if not len(records):
            return
        keys = np.empty(len(records), np.dtype([("kind", "u1"), ("debit", "<u4"), ("credit", "<u4")]))
        keys["kind"], keys["debit"], keys["credit"] = (
            records["transaction_type"], records["debit_account"], records["credit_account"],
        )  # fmt: skip
        found, which = np.unique(keys, return_inverse=True)
        counts, sums = np.bincount(which, minlength=len(found)), _sums(which, records["amount_fen"], len(found))
        for key, count, sum_fen in zip(found.tolist(), counts.tolist(), sums.tolist(), strict=True):
            before = self.tally.postings.get(key, (0, 0))
            self.tally.postings[key] = (before[0] + count, before[1] + sum_fen)
        line_of_kind = {kind: line_of(kind) for kind in np.unique(keys["kind"]).tolist()}
        for line in (LineKind.CAPTURES, LineKind.REFUNDS):
            kinds = [kind for kind, of in line_of_kind.items() if of is line]
            if kinds:
                bears = pick(records, np.isin(keys["kind"], kinds))
                self._add_fees(bears, line, "credit_account", 1)
                self._add_fees(bears, line, "debit_account", -1)

    def _add_fees(self, records: Array, line: LineKind, account: str, sign: int) -> None:
        """Fees by the transaction on what a participant was given, and back from it on what was taken again: on captures and
        their reversals always, on refunds and theirs where the agreement gives the fee back."""
        place = self.terms.places(records[account])
        known = place >= 0
        if line is LineKind.REFUNDS:
            known[known] = self.returns_fee[place[known]]
        place, amount_fen = place[known], records["amount_fen"][known]
        self.tally.fee_fen += sign * _sums(place, fees(amount_fen, place, self.fee_terms), self.n)

    def _rows(self, records: Array) -> Array:
        rows = np.zeros(len(records), ROW)
        for name in ("sequence", "card", "tap_amount_fen", "atc"):
            rows[name] = records[name]
        rows["before_fen"], rows["after_fen"] = records["chip_before_fen"], records["chip_after_fen"]
        stated = (records["profile"] == 1) & ((records["chip_before_fen"] | records["chip_after_fen"]) != 0)
        rows["marks"][stated] = Mark.BALANCES
        terminal = records["terminal"]
        known = terminal != types.NONE
        rows["operator"] = NO_OPERATOR
        rows["operator"][known] = self.terms.operator_of_terminal[terminal[known]]
        rows["local_s"] = seconds_since_2000(records["local_date"], records["local_time"])
        return rows

    def _count(self, outcome: Array, amount_fen: Array) -> None:
        self.tally.counts += np.bincount(outcome, minlength=256)
        self.tally.amounts_fen += _sums(outcome, amount_fen, 256)

    def _queue(self, records: Array, outcome: Array) -> None:
        if len(records):
            self.exceptions.append(exceptions_of(records, outcome, np.zeros(len(records), np.int64), self.terms))


def _sums(places: Array, amounts_fen: Array, n: int) -> Array:
    """Sums of amounts by place. A chunk's sums stay below 2^53 (limits.py), so adding them up as doubles is exact."""
    return np.bincount(places, weights=amounts_fen, minlength=n).astype(np.int64)


def exceptions_of(records: Array, outcome: Array, detail: Array, terms: Terms) -> Array:
    """Rows of the queue for tap records."""
    rows = np.zeros(len(records), EXCEPTION)
    charged = records["debit_account"] != types.NONE
    rows["sequence"], rows["card"], rows["terminal"] = records["sequence"], records["card"], records["terminal"]
    rows["amount_fen"] = np.where(charged, records["amount_fen"], records["tap_amount_fen"])
    known = records["terminal"] != types.NONE
    rows["operator"] = NO_OPERATOR
    rows["operator"][known] = terms.operator_of_terminal[records["terminal"][known]]
    rows["outcome"], rows["detail"] = outcome, detail
    return rows


# ---- the window ----


def clear_window(
    reader: JournalReader,
    window: Window,
    terms: Terms,
    cards: int,
    states: CardStates,
    carried: Array,
    denied_since_s: Callable[[Array], Array],
    settled: SettledGrey | None = None,
    folder: Path | None = None,
    progress: Progress = lambda done, total: None,
    loaded: Callable[[Array, Array], Array] | None = None,
) -> Tally:
    """Clear one window. `states` are the cards' after the window before, and afterwards those after this one; `carried` are the
    records that were pending then (ROW), and `settled` what was settled of such ones before. `folder` takes the temporary
    files; else the system's does. `loaded` tells whether loads of a chip explain that it has more than it was left with."""
    continuity = Continuity(folder, cards, window.records + len(carried), states, terms.within_s, loaded)
    work = _Pass(window, terms, continuity, settled or SettledGrey(np.empty(0, np.uint64), cards))
    tally = work.tally
    if len(carried):
        carried = carried[np.argsort(carried["sequence"])]
        terminals = records_at(reader, carried["sequence"])["terminal"]
        known = terminals != types.NONE
        carried["operator"][known] = terms.operator_of_terminal[terminals[known]]  # places are each window's own
        decided = carried["marks"] & Mark.PROVED != 0
        waiting = _drop_expired(work, reader, carried[~decided])
        continuity.add(waiting)
        carried = carried[decided]
    total = window.records * 5 // 4  # the last fifth of the bar is continuity
    done = 0
    for records in chunks(reader, window.first_sequence, window.last_sequence):
        work.take(records)
        done += len(records)
        progress(done, total)
    work.take_denied(denied_since_s)
    found = continuity.run(lambda part, parts: progress(done + (total - done) * part // parts, total))
    found.proved.append(carried)
    _take_found(work, reader, found)
    queue = joined(work.exceptions, EXCEPTION)
    tally.exceptions = queue[np.r_[queue["sequence"][1:] != queue["sequence"][:-1], True][: len(queue)]]  # the last word counts
    return tally


def _drop_expired(work: _Pass, reader: JournalReader, carried: Array) -> Array:
    """Records that have been pending for longer than the appeal period are given up: LATE."""
    operator = carried["operator"]
    known = operator != NO_OPERATOR
    appeal_s = np.zeros(len(carried), np.int64)
    appeal_s[known] = np.array([agreement.appeal_days for agreement in work.terms.agreements], np.int64)[operator[known]] * 86_400
    end_s = (work.window.day - datetime.date(2000, 1, 1)).days * 86_400
    expired = carried["local_s"].astype(np.int64) + appeal_s < end_s
    if expired.any():
        _add_exceptions(work, reader, carried["sequence"][expired], LATE, np.zeros(int(expired.sum()), np.int64))
        work._count(np.full(int(expired.sum()), LATE, np.uint8), carried["tap_amount_fen"][expired].astype(np.int64))
    return carried[~expired]


def _add_exceptions(work: _Pass, reader: JournalReader, sequences: Array, outcome: Any, detail: Array) -> Array:
    """Queue taps by sequence (sorted), whose records are fetched again; returns the rows."""
    records = records_at(reader, sequences)
    rows = exceptions_of(records, outcome, detail, work.terms)
    work.exceptions.append(rows)
    return rows


def _take_found(work: _Pass, reader: JournalReader, found: Found) -> None:
    """What continuity found goes into the tally: an outcome found there replaces the one that the tap alone had."""
    tally = work.tally
    first = work.window.first_sequence
    findings = joined(found.findings, FINDING)
    tally.proved, disproved, tally.pending = (joined(rows, ROW) for rows in (found.proved, found.disproved, found.pending))
    tally.pools = found.pools
    room = limits.CLEAR_GREY_MAX
    late = tally.proved[room:]
    late["marks"] |= Mark.PROVED
    tally.pending = joined([tally.pending, late], ROW)
    tally.proved = tally.proved[:room]
    if len(findings):
        rows = _add_exceptions(work, reader, findings["sequence"], findings["outcome"], findings["detail"])
        records = records_at(reader, findings["sequence"])
        before = OUTCOMES[records["flags"] & STORED, records["result"]]
        _replace(tally, rows, before, findings["sequence"] >= first)
    for decided, outcome in ((tally.proved, ClearingOutcome.GREY_PROVED), (disproved, ClearingOutcome.GREY_DISPROVED)):
        if len(decided):
            rows = _add_exceptions(work, reader, decided["sequence"], outcome, np.zeros(len(decided), np.int64))
            before = np.where(decided["marks"] & Mark.TORN, TORN, GREY).astype(np.uint8)
            _replace(tally, rows, before, decided["sequence"] >= first)
    waiting = tally.pending[tally.pending["sequence"] >= first]
    if len(waiting):
        outcome_of = np.where(waiting["marks"] & Mark.TORN, TORN, GREY).astype(np.uint8)
        _add_exceptions(work, reader, waiting["sequence"], outcome_of, np.zeros(len(waiting), np.int64))


def _replace(tally: Tally, rows: Array, before: Array, of_this_window: Array) -> None:
    """Count rows under their new outcome, and those that this window had counted no more under the old one."""
    tally.counts += np.bincount(rows["outcome"], minlength=256)
    tally.amounts_fen += _sums(rows["outcome"], rows["amount_fen"], 256)
    old = before[of_this_window]
    tally.counts -= np.bincount(old, minlength=256)
    tally.amounts_fen -= _sums(old, rows["amount_fen"][of_this_window], 256)
