"""Counter and balance continuity: each card's taps side by side, in the order in which the card counted them.

Clearing hands in its taps as they stand in the journal (`add`), as rows of ROW; they are kept in a temporary file, split by
card, so that memory stays bounded however large the window is. `run` then sorts one part after the other by card and ATC, on
two cores, and finds what only neighbours show: gaps, what became of grey and torn records, and transfers between operators.
What a card's last tap left is carried to the next window (`CardStates`)."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from yikatong.core import limits
from yikatong.core.types import ClearingOutcome

Array = npt.NDArray[Any]


class Mark:
    """What a row is. Plain numbers: an enum's would widen every array that they meet."""

    COUNTED = 1  # the card has proved itself: what the tap says of the card is true
    CLEARED = 2  # money moved and stays with the operator
    PENDING = 4  # a grey or torn record: did the card pay?
    BALANCES = 8  # it states the chip's balances (profile 1)
    TORN = 16  # of the pending ones
    PROVED = 32  # of the pending ones: the card did pay, and there was no room for the posting yet


ROW: Final = np.dtype(
    [
        ("sequence", "<u8"), ("card", "<u4"), ("tap_amount_fen", "<u4"), ("before_fen", "<u4"), ("after_fen", "<u4"),
        ("charged_fen", "<u4"), ("local_s", "<u4"), ("atc", "<u2"), ("operator", "<u2"), ("marks", "u1"),
    ],
    align=True,
)  # fmt: skip
"""One tap as continuity needs it. `operator` is a place in the caller's list; `local_s` are seconds of local time since 2000."""

CARD: Final = np.dtype([("atc", "<i4"), ("before_fen", "<u4"), ("after_fen", "<u4"), ("stated", "u1")], align=True)
"""A card's newest tap, by card slot: its ATC (-1: none was seen), the chip's balances, and whether they were stated."""

FINDING: Final = np.dtype([("sequence", "<u8"), ("outcome", "u1"), ("detail", "<i8")])
"""What neighbours show of one tap. `detail` is the difference of balances in fen (BALANCE_GAP), or how many counters are
missing before it (ATC_GAP)."""


@dataclass
class Pool:
    """Transfers between two operators, by their places: taps, and what each of the two took."""

    taps: int = 0
    first_fen: int = 0
    second_fen: int = 0


@dataclass
class Found:
    """What continuity found in a window. `proved`, `disproved` and `pending` are arrays of ROW."""

    findings: list[Array] = field(default_factory=list)
    proved: list[Array] = field(default_factory=list)
    disproved: list[Array] = field(default_factory=list)
    pending: list[Array] = field(default_factory=list)
    pools: dict[tuple[int, int], Pool] = field(default_factory=dict)


def pick(rows: Array, which: Array) -> Array:
    """Rows by a mask or by places. Indexing structured rows copies field by field, some ten times slower than `take` does."""
    picked: Array = np.take(rows, np.flatnonzero(which) if which.dtype == bool else which)
    return picked


def joined(arrays: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    """Arrays behind each other, ordered by sequence."""
    if not arrays:
        return np.empty(0, dtype)
    whole = np.concatenate(arrays)
    return pick(whole, np.argsort(whole["sequence"], kind="stable"))


class CardStates:
    """What each card's newest tap left, in order of card slot; grows with the cards."""

    def __init__(self, states: Array | None = None) -> None:
        self.array = np.empty(0, CARD) if states is None else states

    def reserve(self, cards: int) -> None:
        known = len(self.array)
        if cards > known:
            grown = np.zeros(cards, CARD)
            grown[:known] = self.array
            grown["atc"][known:] = -1
            self.array = grown


class Continuity:
    """The taps of one window, gathered and then compared. `cards` are all there are, `rows_max` bounds how many taps there can
    be; `transfers` says within how many seconds a tap at the second operator continues one at the first, by their places."""

    def __init__(
        self,
        folder: Path | None,
        cards: int,
        rows_max: int,
        states: CardStates,
        transfers: dict[tuple[int, int], int],
        loaded: Callable[[Array, Array], Array] | None = None,
    ) -> None:
        """`loaded` is asked about the few gaps that are left: whether loads of the card (slots) come to that much (fen)."""
        self._parts = max(-(-rows_max // limits.CLEAR_PART_ROWS), 1)
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile(dir=folder) for _ in range(self._parts)]  # noqa: SIM115
        self._states = states
        self._states.reserve(cards)
        self._transfers = transfers
        self._loaded = loaded

    def add(self, rows: Array) -> None:
        """Rows of ROW, in order of sequence."""
        if self._parts == 1:
            self._files[0].write(rows.tobytes())
            return
        part = (rows["card"] % self._parts).astype(np.uint16)
        order = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part, minlength=self._parts)).tolist()
        ordered = pick(rows, order)
        start = 0
        for file, end in zip(self._files, ends, strict=True):
            if end > start:
                file.write(ordered[start:end].tobytes())
            start = end

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Found:
        """Compare neighbours. Afterwards the card states are those after the window, and the files are gone."""
        found = Found()
        with ThreadPoolExecutor(2) as pool:
            for done, part in enumerate(pool.map(self._part, self._files), 1):
                for name in ("findings", "proved", "disproved", "pending"):
                    getattr(found, name).extend(getattr(part, name))
                for pair, sums in part.pools.items():
                    total = found.pools.setdefault(pair, Pool())
                    total.taps += sums.taps
                    total.first_fen += sums.first_fen
                    total.second_fen += sums.second_fen
                progress(done, self._parts)
        return found

    def _part(self, file: IO[bytes]) -> Found:
        file.seek(0)
        rows = np.frombuffer(file.read(), ROW)
        file.close()
        found = Found()
        if len(rows):
            rows = pick(rows, _by_card_and_counter(rows, self._parts))
            rows = self._without_repeats(rows, found)
            self._compare(rows, found)
            if self._transfers:
                self._pool(rows, found)
        return found

    def _without_repeats(self, rows: Array, found: Found) -> Array:
        """A pending record under a counter that another tap has too, or that came twice, says nothing new: DUPLICATE."""
        is_pending = rows["marks"] & Mark.PENDING != 0
        if not is_pending.any():
            return rows
        same = (rows["card"][1:] == rows["card"][:-1]) & (rows["atc"][1:] == rows["atc"][:-1])
        if not same.any():
            return rows
        run = np.cumsum(np.r_[True, ~same]) - 1  # of one card and counter
        has_counted = np.zeros(run[-1] + 1, bool)
        has_counted[run[~is_pending]] = True
        first = np.full(run[-1] + 1, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(first, run, np.where(is_pending, rows["sequence"], np.iinfo(np.uint64).max))
        repeats = is_pending & (has_counted[run] | (rows["sequence"] != first[run]))
        found.findings.append(_findings(pick(rows, repeats), ClearingOutcome.DUPLICATE, 0))
        return pick(rows, ~repeats)

    def _compare(self, rows: Array, found: Found) -> None:
        """Each proved tap with the card's proved tap before it; and pending records with what came next."""
        is_pending = rows["marks"] & Mark.PENDING != 0
        proved = pick(rows, ~is_pending) if is_pending.any() else rows
        pending = pick(rows, is_pending)
        states = self._states.array
        card, atc = proved["card"], proved["atc"].astype(np.int32)
        marks = proved["marks"]
        stated = marks & Mark.BALANCES != 0
        before, after = proved["before_fen"].astype(np.int64), proved["after_fen"].astype(np.int64)

        # 1. The tap before: of this window, or the newest one before it, whichever is nearer.
        n = len(proved)
        same = np.zeros(n, bool)
        same[1:] = card[1:] == card[:-1]
        nearest_atc = np.full(n, -1, np.int32)
        nearest_after = np.zeros(n, np.int64)
        nearest_stated = np.zeros(n, bool)
        nearest_atc[1:] = np.where(same[1:], atc[:-1], -1)
        nearest_after[1:] = after[:-1]
        nearest_stated[1:] = stated[:-1]
        old = pick(states, card)
        from_old = (old["atc"] < atc) & (old["atc"] > nearest_atc)
        nearest_atc = np.where(from_old, old["atc"], nearest_atc)
        nearest_after = np.where(from_old, old["after_fen"], nearest_after)
        nearest_stated = np.where(from_old, old["stated"] != 0, nearest_stated)
        fills_in = old["atc"] > atc  # an older tap that came late: what stands before it was compared already

        # 2. Gaps. A pending record of the card in between fills the counter's gap and excuses the balance.
        missing = np.where((nearest_atc >= 0) & ~fills_in, atc - nearest_atc - 1, 0)
        if len(pending):
            missing -= _pending_between(card, nearest_atc, atc, pending, missing > 0)
        joins = (nearest_atc >= 0) & (atc - nearest_atc == 1) & stated & nearest_stated
        off_by = np.where(joins, before - nearest_after, 0)
        own = np.where(stated, before - proved["tap_amount_fen"] - after, 0)  # the record contradicts itself
        off_by = np.where(off_by == 0, own, off_by)
        counts = marks & Mark.CLEARED != 0
        balance_gap = (off_by != 0) & counts
        more = np.flatnonzero(balance_gap & (off_by > 0) & (own == 0))
        if self._loaded is not None and len(more):
            balance_gap[more[self._loaded(card[more], off_by[more])]] = False
        atc_gap = (missing > 0) & counts & ~balance_gap
        found.findings.append(_findings(pick(proved, balance_gap), ClearingOutcome.BALANCE_GAP, off_by[balance_gap]))
        found.findings.append(_findings(pick(proved, atc_gap), ClearingOutcome.ATC_GAP, missing[atc_gap]))

        # 3. Grey and torn records, each card's from the last to the first: one that is decided bears witness to the one before.
        if len(pending):
            _decide_pending(pending, proved, pick(states, pending["card"]), found, self._loaded)

        # 4. What the newest tap leaves.
        if n:
            last = np.ones(n, bool)
            last[:-1] = card[1:] != card[:-1]
            newer = last & (atc > old["atc"])
            left = np.empty(int(newer.sum()), CARD)
            left["atc"], left["stated"] = atc[newer], stated[newer]
            left["before_fen"], left["after_fen"] = proved["before_fen"][newer], proved["after_fen"][newer]
            states[card[newer]] = left

    def _pool(self, rows: Array, found: Found) -> None:
        """Transfers: two taps of a card in a row at two operators that divide what they take. Each tap is of one transfer at
        most; of a chain the first two go together, then the next two."""
        paid = pick(rows, (rows["marks"] & Mark.CLEARED != 0) & (rows["charged_fen"] > 0))
        if len(paid) < 2:
            return
        first, second = paid[:-1], paid[1:]
        between = np.flatnonzero((first["card"] == second["card"]) & (first["operator"] != second["operator"]))
        if not len(between):
            return
        operators = max(max(pair) for pair in self._transfers) + 1
        within_s = np.full((operators, operators), -1, np.int64)
        for pair, seconds in self._transfers.items():
            within_s[pair] = seconds
        a, b = first["operator"][between].astype(np.int64), second["operator"][between].astype(np.int64)
        known = (a < operators) & (b < operators)
        between, a, b = between[known], a[known], b[known]
        passed_s = second["local_s"][between].astype(np.int64) - first["local_s"][between]
        fits = (passed_s >= 0) & (passed_s <= within_s[a, b])
        between, a, b = between[fits], a[fits], b[fits]
        if not len(between):
            return
        begins = np.r_[True, between[1:] != between[:-1] + 1]
        in_chain = np.arange(len(between)) - np.maximum.accumulate(np.where(begins, np.arange(len(between)), 0))
        taken = in_chain % 2 == 0
        between, a, b = between[taken], a[taken], b[taken]
        pair_of = a * operators + b
        for code in np.unique(pair_of).tolist():
            these = between[pair_of == code]
            found.pools[divmod(code, operators)] = Pool(
                len(these),
                int(first["charged_fen"][these].sum(dtype=np.int64)),
                int(second["charged_fen"][these].sum(dtype=np.int64)),
            )


def _by_card_and_counter(rows: Array, parts: int) -> Array:
    """The order of rows by card, ATC, and then as they came."""
    card, n = rows["card"].astype(np.uint64) // np.uint64(parts), len(rows)
    place_bits = max((n - 1).bit_length(), 1)
    if int(card.max()).bit_length() + 16 + place_bits <= 64:
        # Sorting numbers that end in their own place is some times faster than having their order told.
        keys = (card << np.uint64(16) | rows["atc"]) << np.uint64(place_bits) | np.arange(n, dtype=np.uint64)
        keys.sort()
        places: Array = keys & np.uint64((1 << place_bits) - 1)
        return places.astype(np.int64)
    order: Array = np.argsort(card << np.uint64(16) | rows["atc"], kind="stable")
    return order


def _findings(rows: Array, outcome: ClearingOutcome, detail: Any) -> Array:
    findings = np.empty(len(rows), FINDING)
    findings["sequence"], findings["outcome"], findings["detail"] = rows["sequence"], outcome, detail
    return findings


def _keys(rows: Array) -> Array:
    keys: Array = rows["card"].astype(np.uint64) << np.uint64(16) | rows["atc"]
    return keys


def _pending_between(card: Array, low: Array, high: Array, pending: Array, wanted: Array) -> Array:
    """How many pending records of a card have a counter between two others, where that is wanted."""
    keys = _keys(pending)  # sorted, since the rows are
    counts = np.zeros(len(card), np.int64)
    at = np.flatnonzero(wanted)
    base = card[at].astype(np.uint64) << np.uint64(16)
    begin = np.searchsorted(keys, base | low[at].astype(np.uint64), side="right")
    end = np.searchsorted(keys, base | high[at].astype(np.uint64), side="left")
    counts[at] = end - begin
    return counts


def _decide_pending(
    pending: Array, proved: Array, newest: Array, found: Found, loaded: Callable[[Array, Array], Array] | None
) -> None:
    """The card's record after a pending one shows by its balance whether the card paid. Nothing else does: where that record
    is missing, or states no balance, or fits neither, the record waits on. `newest` are the cards' taps from before the window:
    a pending record may have come later than the one after it."""
    keys, pending_keys = _keys(proved), _keys(pending)
    next_keys = pending_keys + np.uint64(1)
    at = np.searchsorted(keys, next_keys)
    in_reach = at < len(keys)
    witness = np.full(len(pending), -1, np.int64)  # the balance that the next record begins with; -1: not known
    hit = np.zeros(len(pending), bool)
    hit[in_reach] = keys[at[in_reach]] == next_keys[in_reach]
    hit &= pending["atc"] != 0xFFFF  # the next key would be another card's
    stated = np.zeros(len(pending), bool)
    stated[hit] = proved["marks"][at[hit]] & Mark.BALANCES != 0
    witness[stated] = proved["before_fen"][at[stated]]
    from_old = (witness < 0) & (newest["stated"] != 0) & (newest["atc"] == pending["atc"].astype(np.int32) + 1)
    witness[from_old] = newest["before_fen"][from_old]

    verdict = np.zeros(len(pending), np.int8)  # 1: the card paid, -1: it did not
    for i in range(len(pending) - 1, -1, -1):
        row = pending[i]
        if not row["marks"] & Mark.BALANCES:
            continue
        if witness[i] < 0 and i + 1 < len(pending) and pending_keys[i + 1] == next_keys[i] and verdict[i + 1]:
            witness[i] = int(pending["before_fen"][i + 1])  # the next pending record was decided, so its balance is true
        if witness[i] < 0:
            continue
        paid_fen, unpaid_fen = int(row["before_fen"]) - int(row["tap_amount_fen"]), int(row["before_fen"])
        if paid_fen != unpaid_fen:
            verdict[i] = 1 if witness[i] == paid_fen else -1 if witness[i] == unpaid_fen else 0
            if not verdict[i] and loaded is not None and witness[i] > paid_fen:
                # Loaded in between, then: with one of the two balances it joins, or nothing is shown.
                more_fen = witness[i] - np.array([paid_fen, unpaid_fen])
                joins = loaded(np.repeat(row["card"], 2), more_fen) & (more_fen > 0)
                verdict[i] = int(joins[0]) - int(joins[1])
    found.proved.append(pending[verdict > 0])
    found.disproved.append(pending[verdict < 0])
    found.pending.append(pending[verdict == 0])
