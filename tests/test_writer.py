"""The writer with all its threads: whichever of them commits a group, and however often the disk fails, what was acknowledged is
there afterwards, in the order of the answers, and what was refused is not."""

import queue
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import KEY_SETS, START_S, Harness, local_time_of, make_tap, submit_request

from yikatong.core import journal, writer
from yikatong.core.change import Change
from yikatong.core.errors import Damaged, Unavailable
from yikatong.core.memory import EngineSettings, Memory
from yikatong.core.store import DataDirectory
from yikatong.core.types import DocumentKind, Result
from yikatong.core.writer import Core, CoreSettings, Observer, Phase, Work
from yikatong.v1 import tap_service_pb2

THREADS, ROUNDS = 4, 60
NOW_S = START_S + 3_600


def card_of(thread: int) -> str:
    return f"31044160000{thread:05d}"


class Rider(threading.Thread):
    """Taps one card, a request at a time, of one tap or several; keeps what became of each."""

    def __init__(self, core: Core, number: int) -> None:
        super().__init__()
        self.core, self.number, self.chance = core, number, random.Random(number)
        self.acknowledged: list[tuple[tap_service_pb2.Tap, tap_service_pb2.TapOutcome]] = []
        self.refused: list[tap_service_pb2.Tap] = []
        self.atc = 0

    def _next_taps(self) -> list[tap_service_pb2.Tap]:
        taps = []
        for _ in range(self.chance.choice((1, 1, 1, 9))):
            self.atc += 1
            taps.append(
                make_tap(
                    card_number=card_of(self.number), atc=self.atc, terminal_sequence=self.atc, amount_fen=1, amount_due_fen=1,
                    terminal_number=bytes([1, 2, 3, 4, 5, self.number]), local_time=local_time_of(START_S + self.atc),
                )
            )  # fmt: skip
        return taps

    def run(self) -> None:
        for _ in range(ROUNDS):
            taps = self._next_taps()
            done: queue.SimpleQueue[Work] = queue.SimpleQueue()
            work = Work(request=submit_request(taps), stored=True, tag=done)
            try:
                self.core.submit(work)
                done.get(timeout=60)
            except Unavailable as error:
                work.error = error
            if work.error is None:
                outcomes = tap_service_pb2.SubmitTapsResponse.FromString(work.response).outcomes
                self.acknowledged += zip(taps, outcomes, strict=True)
            else:
                assert isinstance(work.error, Unavailable)
                self.refused += taps
                time.sleep(0.02)


class Watch(Observer):
    """Which threads committed."""

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.rebuilt = 0

    def on_commit(self, records: int, seconds: float, sequence: int) -> None:
        if records:
            self.threads.add(threading.current_thread().name)

    def on_phase(self, phase: Phase) -> None:
        self.rebuilt += phase is Phase.REBUILDING


@pytest.mark.parametrize(
    ("small_records_max", "committers"), [(0, {"journal"}), (4, {"journal", "writer"}), (100_000, {"journal", "writer"})]
)
def test_what_was_acknowledged_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_records_max: int, committers: set[str]
) -> None:
    with Harness(tmp_path) as core:
        for i in range(THREADS):
            core.register_card(card_of(i))
            core.top_up(card_of(i), 1_000_000)
            core.register_terminal(bytes([1, 2, 3, 4, 5, i]))
    monkeypatch.setattr(writer, "SMALL_RECORDS_MAX", small_records_max)
    monkeypatch.setattr(writer, "REBUILD_PAUSE_S", 0.01)
    chance = random.Random(small_records_max)
    failures = 0

    def failpoint(name: str) -> None:
        nonlocal failures
        if name in ("journal-before-append", "journal-after-append") and chance.random() < 0.03:
            failures += 1
            raise OSError("no space left on device")

    watch = Watch()
    settings = CoreSettings(engine=EngineSettings(cards_max=100, terminals_max=100), checkpoint_s=0.02)
    with DataDirectory(tmp_path) as directory, monkeypatch.context() as failing:
        failing.setattr(journal, "failpoint", failpoint)
        threaded = Core(
            directory, KEY_SETS, settings, lambda works: [work.tag.put(work) for work in works], watch,
            clock_ns=lambda: NOW_S * 1_000_000_000,
        )  # fmt: skip
        riders = [Rider(threaded, i) for i in range(THREADS)]
        for rider in riders:
            rider.start()
        for rider in riders:
            rider.join()
        threaded.close()
    assert watch.threads <= committers
    assert committers - {"journal"} <= watch.threads
    assert failures
    assert watch.rebuilt
    with Harness(tmp_path) as core:
        core.now_us = NOW_S * 1_000_000
        for rider in riders:
            assert rider.acknowledged
            assert [outcome.sequence for _, outcome in rider.acknowledged] == sorted(
                outcome.sequence for _, outcome in rider.acknowledged
            )
            for tap, outcome in rider.acknowledged:
                again = core.authorize(tap)
                assert again.duplicate
                again.duplicate = False
                assert again == outcome
            for tap in rider.refused:
                again = core.authorize(tap)
                assert (again.result, again.duplicate) == (Result.ACCEPTED, False)
        assert core.engine.imbalance_fen() == 0


def test_an_error_before_anything_was_written_is_its_callers_alone(tmp_path: Path) -> None:
    """Of whatever kind: nobody else is refused, and memory stays. One after a write has it rebuilt."""
    with Harness(tmp_path) as core:
        core.register_card(card_of(0))
    watch = Watch()
    settings = CoreSettings(engine=EngineSettings(cards_max=100, terminals_max=100))

    def damaged(memory: Memory, time_us: int) -> None:
        raise Damaged("a file beside the journal is gone")

    def half_done(memory: Memory, time_us: int) -> None:
        change = Change(memory, time_us)
        change.put(DocumentKind.MERCHANT, b"m", b"")
        change.commit("test")
        raise Damaged("after it had written")

    with DataDirectory(tmp_path) as directory:
        threaded = Core(directory, KEY_SETS, settings, lambda works: [work.tag.put(work) for work in works], watch)

        def ask(command: Any) -> Work:
            done: queue.SimpleQueue[Work] = queue.SimpleQueue()
            threaded.submit(Work(command=command, tag=done))
            return done.get(timeout=30)

        assert isinstance(ask(damaged).error, Damaged)
        assert ask(lambda memory, _: int(memory.engine.find_card(card_of(0)))).response == 0
        assert watch.rebuilt == 0
        assert isinstance(ask(half_done).error, Unavailable)
        while not watch.rebuilt or threaded.phase is not Phase.SERVING:
            time.sleep(0.01)
        assert watch.rebuilt == 1
        assert ask(lambda memory, _: memory.documents.get(DocumentKind.MERCHANT, b"m")).response is None
        threaded.close()
