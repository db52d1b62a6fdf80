"""Taps that come late: after later ones of their card were priced, against a memory of rides that did not know of them.

A late tap is charged provisionally, as if nothing had gone before it. Right after its batch its card is priced again from that
tap on, in the order of local time and card counter; each difference is a correction between purse and operator. So whatever order
a card's taps arrive in, they end at the same charges and the same memory of rides.

Nothing is kept for this but the journal: the card's records are walked back to all that the late tap could stand on. A correction
is a record of the card too, and tells what the tap's own record would say now."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from yikatong.core import limits, types
from yikatong.core.change import Change
from yikatong.core.errors import Damaged
from yikatong.core.memory import Memory
from yikatong.core.rules.compile import Compiled
from yikatong.core.rules.fares import Outcome, TapKind
from yikatong.core.tariffs import priced_tap
from yikatong.core.types import RECORD, RecordKind
from yikatong.ext import fares
from yikatong.ext.engine import CORRECTION, NOTE, local_seconds
from yikatong.v1 import journal_pb2

EVENT: Final = "late-taps"
UTC8_S: Final = 8 * 3_600
RIDE_KINDS: Final = (TapKind.ENTRY, TapKind.EXIT, TapKind.SINGLE)
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


@dataclass(slots=True)
class _Tap:
    """A priced tap of the card: its record, the pass that it was priced with (the journal's number), and what holds of it now."""

    record: Any
    local_s: int
    pass_number: int
    charged_fen: int
    base_fen: int
    rule: int
    marks: int

    @property
    def place(self) -> tuple[int, int]:
        return self.local_s, int(self.record["atc"])


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
        corrections = _price_card(memory, card, place, time_us, corrections)
        del memory.late[card]
    return corrections


def _price_card(memory: Memory, card: int, place: tuple[int, int], time_us: int, corrections: Corrections) -> Corrections:
    compiled = memory.tariffs.compiled
    assert compiled is not None
    purse = int(memory.engine.card(card)["account"])
    # 1. The card's priced taps, as far back as the late one can reach, in their right order.
    taps = sorted(_walk(memory, card, purse, place[0] - WALKED_S), key=lambda tap: tap.place)
    earlier = [tap for tap in taps if tap.place < place]
    later = taps[len(earlier) :]
    # 2. The memory of rides as it was before it.
    rides = np.zeros(1, fares.RIDES)
    fares.rides_after(rides, _done(earlier))
    # 3. Everything from it on, priced anew; this brings the memory up to date too.
    priced = compiled.evaluator.price(rides, np.zeros(len(later), np.uint32), _rides(memory, compiled, later))
    newest = max(tap.place for tap in later if int(tap.record["tap_kind"]) in RIDE_KINDS)
    rides["newest_s"], rides["newest_atc"] = newest
    # 4. What differs is posted, all of it together.
    change = Change(memory, time_us)
    for tap, fare in zip(later, priced, strict=True):
        outcome = int(fare["outcome"])
        if outcome not in (Outcome.PRICED, Outcome.UNKNOWN_STOP):
            continue  # the tariff that priced it is not there any more
        charged_fen = int(fare["charged_fen"]) if outcome == Outcome.PRICED else int(tap.record["tap_amount_fen"])
        rule = int(memory.tariffs.rule_numbers[int(fare["base_rule"])])
        base_fen, marks = int(fare["base_fen"]), int(fare["marks"])
        if (charged_fen, base_fen, rule, marks) == (tap.charged_fen, tap.base_fen, tap.rule, tap.marks):
            continue
        operator = int(memory.engine.terminal(int(tap.record["terminal"]))["account"])
        facts = _facts(tap, base_fen, rule, marks) + _explanation(memory, fare)
        change.correct(card, purse, operator, charged_fen - tap.charged_fen, facts)
        corrections = corrections.plus(charged_fen - tap.charged_fen)
    change.remember_rides(card, rides.tobytes())
    change.commit(EVENT)
    return corrections._replace(cards=corrections.cards + 1)


# ---- what the journal says of the card ----


def _walk(memory: Memory, card: int, purse: int, from_local_s: int) -> list[_Tap]:
    """The card's priced taps from a local time on, each as it stands after its corrections.

    No tap's local time is later than its journal time, but for what its terminal's clock may be ahead: so the walk has an end."""
    until_us = (from_local_s - UTC8_S - limits.CLOCK_AHEAD_S_MAX) * 1_000_000
    newest: dict[int, Any] = {}  # by ATC, the newest correction
    change_fen: dict[int, int] = {}
    taps = []
    for record, pass_number in _records(memory, card, until_us):
        atc = int(record["atc"])
        if record["kind"] == RecordKind.POSTING:
            newest.setdefault(atc, record)
            amount_fen = int(record["amount_fen"])
            change_fen[atc] = change_fen.get(atc, 0) + (amount_fen if record["debit_account"] == purse else -amount_fen)
            continue
        local_s = local_seconds(int(record["local_date"]), int(record["local_time"])) + UTC8_S
        if local_s < from_local_s:
            continue
        facts = newest.get(atc, record)
        charged_fen = int(record["amount_fen"]) + change_fen.get(atc, 0)
        taps.append(
            _Tap(
                record, local_s, pass_number, charged_fen, int(facts["base_fen"]), int(facts["fare_rule"]),
                int(facts["fare_marks"]),
            )
        )  # fmt: skip
    return taps


def _records(memory: Memory, card: int, until_us: int) -> list[tuple[Any, int]]:
    """The card's records of priced taps and of corrections from a journal time on, newest first, each with the number of the pass
    that was good; those at hand, and then those on disk."""
    records, notes, sequence = memory.engine.priced_records(card, until_us)
    passes = np.frombuffer(notes, NOTE)["pass_number"].tolist()
    found: list[tuple[Any, int]] = list(zip(np.frombuffer(records, RECORD), passes, strict=True))
    if not sequence:
        return found
    with memory.journal.read() as reader:
        entry = None
        while sequence:
            if entry is None or sequence < entry.first_sequence:
                entry = reader.entry(sequence)
                if entry is None:
                    raise Damaged(f"journal: record {sequence} is missing")
            record = entry.array[sequence - entry.first_sequence]
            if int(record["time_us"]) < until_us:
                break
            if record["flags"] & types.Flag.PRICED:
                pass_number = priced_tap(entry, record).pass_number if record["kind"] == RecordKind.TAP else 0
                found.append((record.copy(), pass_number))
            sequence = int(record["card_previous"])
    return found


# ---- as the evaluator reads and writes it ----


def _done(taps: list[_Tap]) -> Array:
    done = np.zeros(len(taps), fares.RIDE_DONE)
    for row, tap in zip(done, taps, strict=True):
        row["local_s"], row["line"], row["stop"] = tap.local_s, tap.record["line"], tap.record["stop"]
        row["kind"], row["marks"], row["charged_fen"] = tap.record["tap_kind"], tap.marks, tap.charged_fen
    return done


def _rides(memory: Memory, compiled: Compiled, taps: list[_Tap]) -> Array:
    """Operators are asked by the terminal; rider category and pass are those that the taps were priced with at first."""
    rides = np.zeros(len(taps), fares.RIDE)
    for row, tap in zip(rides, taps, strict=True):
        record, flags = tap.record, int(tap.record["fare_flags"])
        row["local_s"], row["line"], row["stop"] = tap.local_s, record["line"], record["stop"]
        row["industry"], row["kind"] = record["industry"], record["tap_kind"]
        row["nominal_fen"] = record["amount_due_fen"] or record["tap_amount_fen"]
        row["operator_number"] = memory.engine.terminal(int(record["terminal"]))["operator_number"]
        row["rider"], row["stated"] = flags >> types.FARE_RIDER_SHIFT & 7, flags & types.FareFlag.STATED
        row["pass"] = compiled.tariffs.pass_number.get(memory.tariffs.pass_ids.get(tap.pass_number, ""), 0)
    return rides


def _facts(tap: _Tap, base_fen: int, rule: int, marks: int) -> bytes:
    facts = np.zeros(1, CORRECTION)
    for name in ("terminal", "terminal_sequence", "local_date", "local_time", "line", "stop", "atc", "tap_kind"):
        facts[name] = tap.record[name]
    facts["fare_flags"] = int(tap.record["fare_flags"]) & ~int(types.FareFlag.PROVISIONAL)
    facts["base_fen"], facts["fare_rule"], facts["fare_marks"] = base_fen, rule, marks
    return facts.tobytes()


def _explanation(memory: Memory, fare: Any) -> bytes:
    adjustments = fare["adjustments"][: int(fare["adjustment_count"])]
    kept = journal_pb2.PricedTap(
        rules=[int(memory.tariffs.rule_numbers[rule]) for rule in adjustments["rule"].tolist()],
        amounts_fen=adjustments["amount_fen"].tolist(),
    )
    return kept.SerializeToString(deterministic=True)
