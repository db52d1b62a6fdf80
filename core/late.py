"""Taps that come late: after later ones of their card were priced, against a memory of rides that did not know of them.

A late tap is charged provisionally, as if nothing had gone before it. Right after its batch its card is priced again from that
tap on, in the order of local time and card counter; each difference is a correction between purse and operator. So whatever order
a card's taps arrive in, they end at the same charges and the same memory of rides.

A tap that is only a little late is done with by what the engine has at hand (ext/late.c). For the others nothing is kept but the
journal: the card's records are walked back to all that the late tap could stand on. A correction is a record of the card too, and
tells what the tap's own record would say now."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from yikatong.core import limits, types
from yikatong.core.change import Change
from yikatong.core.errors import Damaged
from yikatong.core.journal import sm3
from yikatong.core.memory import Memory
from yikatong.core.rules.compile import Compiled
from yikatong.core.rules.fares import Outcome, TapKind
from yikatong.core.tariffs import priced_tap
from yikatong.core.types import RECORD, RecordKind
from yikatong.ext import fares
from yikatong.ext.engine import CORRECTION, NOTE, local_seconds
from yikatong.v1 import journal_pb2

EVENT: Final = "late-taps"
EVENT_BYTES: Final = journal_pb2.Event(name=EVENT).SerializeToString(deterministic=True)
EVENT_DIGEST: Final = sm3(EVENT_BYTES)
UTC8_S: Final = 8 * 3_600
RIDE_KINDS: Final = tuple(map(int, (TapKind.ENTRY, TapKind.EXIT, TapKind.SINGLE)))
PRICED, UNKNOWN_STOP = int(Outcome.PRICED), int(Outcome.UNKNOWN_STOP)
TAP, POSTING, PRICED_FLAG = int(RecordKind.TAP), int(RecordKind.POSTING), int(types.Flag.PRICED)  # members of an enum cost time
COLUMNS: Final = (
    "kind", "atc", "tap_kind", "line", "stop", "industry", "terminal", "amount_due_fen", "tap_amount_fen", "fare_flags",
    "amount_fen", "debit_account", "local_date", "local_time", "base_fen", "fare_rule", "fare_marks",
)  # fmt: skip
WALKED_S: Final = limits.RIDES_KEPT_S + limits.JOURNEY_MINUTES_MAX * 60
"""How far before a late tap its card's memory is made again from: what is remembered at the tap, and the oldest exit's entry."""

Array = npt.NDArray[Any]


class Corrections(NamedTuple):
    """What was corrected: cards that were priced again, and corrections that took money or gave it back, and how much."""

    cards: int = 0
    taken: int = 0
    taken_fen: int = 0
    given: int = 0
    given_fen: int = 0

    def plus(self, change_fen: int) -> "Corrections":
        """With one more correction."""
        if change_fen > 0:
            return self._replace(taken=self.taken + 1, taken_fen=self.taken_fen + change_fen)
        return self._replace(given=self.given + 1, given_fen=self.given_fen - change_fen) if change_fen else self

    def plus_all(self, others: tuple[int, ...]) -> "Corrections":
        """With those of others."""
        return Corrections(*map(sum, zip(self, others, strict=True)))


class _Tap(NamedTuple):
    """A priced tap of the card: what its record says, the pass that it was priced with (the journal's number), and what holds of
    it now."""

    local_s: int
    atc: int
    kind: int
    line: int
    stop: int
    industry: int
    terminal: int
    nominal_fen: int
    stated_fen: int  # by the terminal, as what to charge
    flags: int
    pass_number: int
    charged_fen: int
    base_fen: int
    rule: int
    marks: int
    record: Any

    @property
    def place(self) -> tuple[int, int]:
        return self[:2]


def note_late(memory: Memory) -> None:
    """Remember which cards must be priced again, and from which tap on."""
    for card, local_s, atc in memory.engine.take_late():
        memory.late[card] = min(memory.late.get(card, (local_s, atc)), (local_s, atc))


def price_again(memory: Memory, time_us: int) -> Corrections:
    """Price cards with late taps again, into the group in the making: all of them, or as many as fit; the others stay in
    `memory.late` for the next group."""
    corrections = Corrections()
    while memory.late and memory.engine.pending_records < limits.LATE_RECORDS_MAX:
        card, place = next(iter(memory.late.items()))
        corrections = corrections.plus_all(
            _price_at_hand(memory, card, place, time_us) or _price_from_journal(memory, card, place, time_us)
        )
        del memory.late[card]
    return corrections


def _price_at_hand(memory: Memory, card: int, place: tuple[int, int], time_us: int) -> Corrections | None:
    """By what the engine remembers; None where that does not reach."""
    done = memory.engine.price_late(card, *place, time_us, EVENT_BYTES, EVENT_DIGEST)
    return done and Corrections(1, *done)


def _price_from_journal(memory: Memory, card: int, place: tuple[int, int], time_us: int) -> Corrections:
    corrections = Corrections(cards=1)
    compiled = memory.tariffs.compiled
    assert compiled is not None
    purse = int(memory.engine.card(card)["account"])
    # 1. The card's priced taps, as far back as the late one can reach, in their right order.
    taps = _walk(memory, card, purse, place[0] - WALKED_S)
    earlier = [tap for tap in taps if tap.place < place]
    later = taps[len(earlier) :]
    # 2. The memory of rides as it was before it.
    rides = np.zeros(1, fares.RIDES)
    fares.rides_after(rides, _done(earlier))
    # 3. Everything from it on, priced anew; this brings the memory up to date too.
    priced = compiled.evaluator.price(rides, np.zeros(len(later), np.uint32), _rides(memory, compiled, later))
    rides["newest_s"], rides["newest_atc"] = max(tap.place for tap in later if tap.kind in RIDE_KINDS)
    # 4. What differs is posted, all of it together.
    change = Change(memory, time_us)
    columns = zip(*(priced[name].tolist() for name in ("outcome", "charged_fen", "base_fen", "base_rule", "marks")), strict=True)
    for at, (tap, (outcome, charged_fen, base_fen, base_rule, marks)) in enumerate(zip(later, columns, strict=True)):
        if outcome == UNKNOWN_STOP:
            charged_fen = tap.stated_fen
        elif outcome != PRICED:
            continue  # the tariff that priced it is not there any more
        rule = int(memory.tariffs.rule_numbers[base_rule])
        if (charged_fen, base_fen, rule, marks) == (tap.charged_fen, tap.base_fen, tap.rule, tap.marks):
            continue
        operator = int(memory.engine.terminal(tap.terminal)["account"])
        facts = _facts(tap, base_fen, rule, marks) + _explanation(memory, priced[at])
        change.correct(card, purse, operator, charged_fen - tap.charged_fen, facts)
        corrections = corrections.plus(charged_fen - tap.charged_fen)
    change.remember_rides(card, rides.tobytes())
    change.commit(EVENT)
    return corrections


# ---- what the journal says of the card ----


def _walk(memory: Memory, card: int, purse: int, from_local_s: int) -> list[_Tap]:
    """The card's priced taps from a local time on, in their right order, each as it stands after its corrections.

    No tap's local time is later than its journal time, but for what its terminal's clock may be ahead: so the walk has an end."""
    until_us = (from_local_s - UTC8_S - limits.CLOCK_AHEAD_S_MAX) * 1_000_000
    newest: dict[int, tuple[int, int, int]] = {}  # by ATC: base, rule and marks of the newest correction
    change_fen: dict[int, int] = {}
    records, passes = priced_records(memory, card, until_us)
    taps = []
    columns = zip(*(records[name].tolist() for name in COLUMNS), strict=True)
    for record, pass_number, row in zip(records, passes, columns, strict=True):
        (
            kind, atc, tap_kind, line, stop, industry, terminal, due_fen, stated_fen, flags, amount_fen, debit, date, time,
            base_fen, rule, marks,
        ) = row  # fmt: skip
        if kind == POSTING:
            newest.setdefault(atc, (base_fen, rule, marks))
            change_fen[atc] = change_fen.get(atc, 0) + (amount_fen if debit == purse else -amount_fen)
            continue
        local_s = local_seconds(date, time) + UTC8_S
        if local_s < from_local_s:
            continue
        charged_fen = amount_fen + change_fen.get(atc, 0)
        base_fen, rule, marks = newest.get(atc, (base_fen, rule, marks))
        taps.append(
            _Tap(
                local_s, atc, tap_kind, line, stop, industry, terminal, due_fen or stated_fen, stated_fen, flags, pass_number,
                charged_fen, base_fen, rule, marks, record,
            )
        )  # fmt: skip
    taps.sort(key=lambda tap: tap.place)
    return taps


def priced_records(memory: Memory, card: int, until_us: int) -> tuple[Array, list[int]]:
    """The card's records of priced taps and of corrections from a journal time on, newest first, and for each the number of the
    pass that was good; those at hand, and then those on disk."""
    at_hand, notes, sequence = memory.engine.priced_records(card, until_us)
    records, passes = np.frombuffer(at_hand, RECORD), np.frombuffer(notes, NOTE)["pass_number"].tolist()
    if not sequence:
        return records, passes
    found: list[bytes] = []
    with memory.journal.read() as reader:
        entry = None
        while sequence:
            if entry is None or sequence < entry.first_sequence:
                entry = reader.entry(sequence)
                if entry is None:
                    raise Damaged(f"journal: record {sequence} is missing")
                array = entry.array
            record = array[sequence - entry.first_sequence]
            if record["time_us"] < until_us:
                break
            if record["flags"] & PRICED_FLAG:
                found.append(record.tobytes())
                passes.append(priced_tap(entry, record).pass_number if record["kind"] == TAP else 0)
            sequence = int(record["card_previous"])
    return np.concatenate([records, np.frombuffer(b"".join(found), RECORD)]), passes


# ---- as the evaluator reads and writes it ----


def _done(taps: list[_Tap]) -> Array:
    done = np.zeros(len(taps), fares.RIDE_DONE)
    for name in ("local_s", "line", "stop", "kind", "marks", "charged_fen"):
        done[name] = [getattr(tap, name) for tap in taps]
    return done


def _rides(memory: Memory, compiled: Compiled, taps: list[_Tap]) -> Array:
    """Operators are asked by the terminal; rider category and pass are those that the taps were priced with at first."""
    rides = np.zeros(len(taps), fares.RIDE)
    for name in ("local_s", "line", "stop", "kind", "industry", "nominal_fen"):
        rides[name] = [getattr(tap, name) for tap in taps]
    flags = np.array([tap.flags for tap in taps], np.uint8)
    rides["rider"], rides["stated"] = flags >> types.FARE_RIDER_SHIFT & 7, flags & int(types.FareFlag.STATED)
    operators = {terminal: memory.engine.terminal(terminal)["operator_number"] for terminal in {tap.terminal for tap in taps}}
    rides["operator_number"] = [operators[tap.terminal] for tap in taps]
    numbers = {0: 0} | {
        number: compiled.tariffs.pass_number.get(memory.tariffs.pass_ids.get(number, ""), 0)
        for number in {tap.pass_number for tap in taps}
    }
    rides["pass"] = [numbers[tap.pass_number] for tap in taps]
    return rides


def _facts(tap: _Tap, base_fen: int, rule: int, marks: int) -> bytes:
    facts = np.zeros(1, CORRECTION)
    for name in ("terminal", "terminal_sequence", "local_date", "local_time", "line", "stop", "atc", "tap_kind"):
        facts[name] = tap.record[name]
    facts["fare_flags"] = tap.flags & ~int(types.FareFlag.PROVISIONAL)
    facts["base_fen"], facts["fare_rule"], facts["fare_marks"] = base_fen, rule, marks
    return facts.tobytes()


def _explanation(memory: Memory, fare: Any) -> bytes:
    adjustments = fare["adjustments"][: int(fare["adjustment_count"])]
    kept = journal_pb2.PricedTap(
        rules=[int(memory.tariffs.rule_numbers[rule]) for rule in adjustments["rule"].tolist()],
        amounts_fen=adjustments["amount_fen"].tolist(),
    )
    return kept.SerializeToString(deterministic=True)
