"""Late taps priced by what the engine has at hand, against the same priced from the journal: nobody can tell which it was."""

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Harness, limited
from riders import COMPILED, RIDERS, draw_taps, open_city
from test_late_taps import CARD, ENTRY, EXIT, LIMITS, NOON_US, SINGLE, Run, arrivals, metro

from yikatong.core import late
from yikatong.core.check import check
from yikatong.core.memory import EngineSettings, Memory


class Ways:
    """Counts which way cards with late taps are priced; `journal_only` shuts the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_hand = self.from_journal = 0
        self.journal_only = False
        self._at_hand, self._from_journal = late._price_at_hand, late._price_from_journal
        monkeypatch.setattr(late, "_price_at_hand", self.price_at_hand)
        monkeypatch.setattr(late, "_price_from_journal", self.price_from_journal)

    def price_at_hand(self, *arguments: Any) -> late.Corrections | None:
        done = None if self.journal_only else self._at_hand(*arguments)
        self.at_hand += done is not None
        return done

    def price_from_journal(self, memory: Memory, *arguments: Any) -> late.Corrections:
        self.from_journal += 1
        return self._from_journal(memory, *arguments)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


def journal_of(core: Harness) -> list[tuple[bytes, bytes]]:
    with core.journal.read() as reader:
        return [(bytes(entry.records), bytes(entry.payloads)) for entry in reader.entries()]


@pytest.mark.parametrize("seed", range(16))
def test_the_journal_is_the_same(tmp_path: Path, ways: Ways, seed: int) -> None:
    """Byte for byte, with restarts, checkpoints, failed commits, small rings, and cards that wait for the next group."""
    chance = random.Random(seed)
    riders = chance.sample(RIDERS, 2)
    days = chance.choice([1, 3, 40])
    coming = arrivals(chance, draw_taps(chance, riders, 80, days), chance.choice([0.02, 0.2, 3, days]))
    journals, memories = [], []
    with ExitStack() as stack:
        if seed % 3:
            stack.enter_context(limited(**LIMITS))
        if seed % 4 == 1:
            stack.enter_context(limited(LATE_RECORDS_MAX=3))
        for name in ("at hand", "from the journal"):
            ways.journal_only = name != "at hand"
            with Harness(tmp_path / name, tariffs=COMPILED) as core:
                Run(core, random.Random(seed), riders).run(coming)
                journals.append(journal_of(core))
                memories.append([core.engine.rides(core.engine.find_card(rider.card)) for rider in riders])
                core.restart()
                assert memories[-1] == [core.engine.rides(core.engine.find_card(rider.card)) for rider in riders]
            check(tmp_path / name, EngineSettings())
    assert journals[0] == journals[1]
    assert memories[0] == memories[1]


@pytest.fixture
def core(tmp_path: Path) -> Any:
    with Harness(tmp_path, tariffs=COMPILED) as core:
        open_city(core, RIDERS[:1], funds_fen=2_000)
        core.now_us = NOON_US
        yield core


def bus(atc: int, time: str, **fields: Any) -> Any:
    return metro(CARD, atc, SINGLE, time, 9, **({"industry": 2, "amount_fen": 300} | fields))


def test_what_is_only_a_little_late_needs_no_journal(core: Harness, ways: Ways) -> None:
    core.submit(metro(CARD, 1, ENTRY, "20260302080000", 3), metro(CARD, 2, EXIT, "20260302083000", 9))
    core.submit(metro(CARD, 4, EXIT, "20260302093000", 9))
    core.submit(metro(CARD, 3, ENTRY, "20260302090000", 3))
    assert (ways.at_hand, ways.from_journal) == (1, 0)
    assert core.balance(CARD).balance_fen == 2_000 - 200 - 200
    # Again, and past a tap that was late itself; its charge is what its correction says.
    core.submit(bus(6, "20260302094500", line=2), bus(5, "20260302094000"))
    assert (ways.at_hand, ways.from_journal) == (2, 0)


def test_a_restart_leaves_the_journal_only(core: Harness, ways: Ways) -> None:
    """What was remembered before each ride is not in the journal; from the next ride on it is there again."""
    core.submit(metro(CARD, 2, EXIT, "20260302083000", 9))
    core.restart()
    core.submit(metro(CARD, 1, ENTRY, "20260302080000", 3))
    assert (ways.at_hand, ways.from_journal) == (0, 1)
    core.submit(bus(4, "20260302090000"))
    core.submit(bus(3, "20260302085900", line=2))
    assert (ways.at_hand, ways.from_journal) == (1, 1)


def test_nothing_begins_with_a_ride_that_came_while_a_late_one_waited(core: Harness, ways: Ways) -> None:
    """In one batch: a late tap, and one after it whose memory does not know of the late one. Another late tap then lies between
    the newest that this memory knows and the ride: it must not be priced from there."""
    core.submit(bus(2, "20260302090000"))
    core.submit(bus(1, "20260302085000", line=2), bus(4, "20260302100000"))
    assert ways.at_hand == 1
    before = core.balance(CARD).balance_fen
    core.submit(bus(3, "20260302093000", line=2))  # transfers from the first bus, and is one of its own for the last
    assert (ways.at_hand, ways.from_journal) == (2, 0)
    assert core.balance(CARD).balance_fen < before
    with Harness(core.path.parent / "in turn", tariffs=COMPILED) as other:
        open_city(other, RIDERS[:1], funds_fen=2_000)
        other.now_us = NOON_US
        other.submit(bus(1, "20260302085000", line=2), bus(2, "20260302090000"), bus(3, "20260302093000", line=2))
        other.submit(bus(4, "20260302100000"))
        assert core.balance(CARD).balance_fen == other.balance(CARD).balance_fen
        assert core.engine.rides(0) == other.engine.rides(0)


def test_too_many_at_hand_are_left_to_the_journal(core: Harness, ways: Ways) -> None:
    """A card with a hundred rides since then."""
    core.submit(*(bus(2 + i, f"202603021{i // 60}{i % 60:02}00", amount_fen=10) for i in range(100)))
    core.submit(bus(1, "20260302095900", amount_fen=10))
    assert (ways.at_hand, ways.from_journal) == (0, 1)
