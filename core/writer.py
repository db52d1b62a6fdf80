"""The one writer: gathers what is asked into groups, decides each group, and lets its answers out when it is durable.

Two threads in a row, so that one group is decided while the one before it is on its way to disk:

    submit → [queue] → decide (taps, commands) → [in flight] → append to journal, answer

A small group, when nothing is in flight, is committed where it was decided: handing it to the other thread would take longer
than what it lets overlap. A third thread writes checkpoints. If a group cannot be made durable nothing of it is acknowledged;
what memory ran ahead of the disk is thrown away and rebuilt, and the core serves again once a probe has reached the disk."""

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from yikatong.core import limits
from yikatong.core.commands import Command
from yikatong.core.errors import (
    DataError,
    DeadlineOver,
    Full,
    Overloaded,
    Unavailable,
    YikatongError,
)
from yikatong.core.in_flight import InFlight
from yikatong.core.journal import Group, Journal, join
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.keys.provider import KeyProvider, TapKey
from yikatong.core.late import Corrections, price_again
from yikatong.core.memory import EngineSettings, Memory, Photograph, Progress
from yikatong.core.store import DataDirectory
from yikatong.core.tap import TapRules, run_calls, run_taps
from yikatong.ext.engine import Calls, EngineFull

log = logging.getLogger(__name__)

GATHER_SHARE: Final = 1 / 3  # of the last commit's time: how long the next may wait for more to go with it
GATHER_S_MAX: Final = 0.003
SMALL_RECORDS_MAX: Final = 128  # decided in a fraction of a commit's time: little would overlap
REBUILD_PAUSE_S: Final = 1.0  # between two tries to reach a disk that takes no writes


class Phase(Enum):
    """What the core is doing."""

    STARTING = "starting"
    SERVING = "serving"
    REBUILDING = "rebuilding"
    STOPPED = "stopped"


@dataclass(slots=True)
class Work:
    """One call: a tap request (`request` bytes) or a command; or a batch of calls that the tap port gathered. `deliver` gets
    it back with `response` or `error` set; the answers to `calls` are inside them."""

    request: bytes = b""
    calls: Calls | None = None
    stored: bool = False
    command: Command | None = None
    bound: int = 0  # whose taps the caller may bring (core/access/callers.py, bound_of); of `calls`, it is in them
    deadline: float | None = None  # time.monotonic() after which it is not begun any more
    tag: Any = None  # the submitter's own
    response: Any = None
    error: YikatongError | None = None


def _is_request(work: Work) -> bool:
    return work.command is None and work.calls is None


def _queued_bytes(work: Work) -> int:
    return (len(work.request) if work.calls is None else work.calls.bytes) + 64


class Observer:
    """What the metrics want to know; every method may be called from the core's threads."""

    def on_taps(self, outcomes: npt.NDArray[np.void]) -> None:
        """A batch of taps was decided (outcomes: array of ext.engine.OUTCOME)."""

    def on_corrections(self, corrections: Corrections) -> None:
        """Cards with late taps were priced again; often none."""

    def on_commit(self, records: int, seconds: float, sequence: int) -> None:
        """A group became durable; `sequence` is its last."""

    def on_checkpoint(self, sequence: int, seconds: float, imbalance_fen: int) -> None:
        """A checkpoint became durable."""

    def on_phase(self, phase: Phase) -> None:
        """The core entered a phase."""


@dataclass(frozen=True)
class CoreSettings:
    """Settings of the core; see core/limits.py for reasons and defaults."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    taps: TapRules = field(default_factory=TapRules)
    checkpoint_s: float = limits.CHECKPOINT_S
    checkpoint_records: int = limits.CHECKPOINT_RECORDS


@dataclass(slots=True)
class _Decided:
    """A group on its way to disk, with the work that waits for it; or a photograph that waits until all before it is durable."""

    group: Group | None
    works: list[Work]
    photograph: Photograph | None = None
    last: bool = False  # the writer has ended


class Core:
    """Opens the data directory, restores, and serves until closed. Raises DataError when the directory cannot be used."""

    def __init__(
        self,
        directory: DataDirectory,
        keys: Sequence[KeySet | TapKey],
        settings: CoreSettings,
        deliver: Callable[[list[Work]], None],
        observer: Observer | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        progress: Progress = lambda done, total: None,
        provider: KeyProvider | None = None,
    ) -> None:
        self._directory = directory
        self._keys = keys
        self._provider = provider
        self._settings = settings
        self._deliver = deliver
        self._observer = observer or Observer()
        self._clock_ns = clock_ns
        self._phase = Phase.STARTING
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._queue_bytes = 0
        self._queue_lock = threading.Lock()
        self._in_flight: InFlight[_Decided] = InFlight(limits.IN_FLIGHT_RECORDS_MAX)
        self._commit_fault: Exception | None = None  # set by the journal's thread, cleared by a rebuild
        self._settling: queue.SimpleQueue[tuple[Photograph, bool]] = queue.SimpleQueue()
        self._checkpointing = False
        self._checkpoint_thread: threading.Thread | None = None
        self.journal, self._memory = self._open(progress)
        self._last_time_us = self.journal.last_time_us
        self._checkpoint_due = time.monotonic() + settings.checkpoint_s
        self._checkpoint_rested = 0.0  # time.monotonic() before which records alone make none due
        self._observer.on_commit(0, 0.0, self.journal.next_sequence - 1)
        self._observer.on_checkpoint(self._memory.checkpoint_sequence, 0.0, self._memory.engine.imbalance_fen())
        self._enter(Phase.SERVING)
        self._journal_thread = threading.Thread(target=self._run_journal, name="journal", daemon=True)
        self._writer_thread = threading.Thread(target=self._run_writer, name="writer", daemon=True)
        self._journal_thread.start()
        self._writer_thread.start()

    def _open(self, progress: Progress = lambda done, total: None) -> tuple[Journal, Memory]:
        journal = Journal(self._directory.journal)
        memory = Memory(self._directory, journal, self._keys, self._settings.engine, self._provider)
        memory.restore(progress)
        memory.tariffs.adopt(memory, max(self._clock_ns() // 1000, journal.last_time_us))
        return journal, memory

    # ---- any thread ----

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def memory_bytes(self) -> dict[str, int]:
        """What the engine holds, by kind."""
        sizes: dict[str, int] = self._memory.engine.memory_bytes()
        return sizes

    @property
    def deny_list(self) -> tuple[int, int]:
        """How many cards are on the deny list, and its version."""
        return self._memory.engine.denied_cards, self._memory.engine.deny_version

    @property
    def last_time_us(self) -> int:
        """The newest group's journal time, microseconds since 1970, UTC."""
        return self._last_time_us

    def set_keys(self, keys: Sequence[KeySet | TapKey]) -> None:
        """Prove taps by these masters from the next group on, and after a rebuild. Raises Overloaded or Unavailable."""
        self._keys = keys
        self.submit(Work(command=lambda memory, _: memory.set_keys(keys), tag=lambda work: None))

    def submit(self, work: Work) -> None:
        """Queue work; `deliver` will get it. Raises Overloaded or Unavailable at once instead."""
        if self._phase is not Phase.SERVING:
            raise Unavailable(f"the core is {self._phase.value}")
        with self._queue_lock:
            if self._queue_bytes + _queued_bytes(work) > limits.QUEUE_BYTES_MAX:
                raise Overloaded("too much is waiting for the writer")
            self._queue_bytes += _queued_bytes(work)
        self._queue.put(work)

    def close(self) -> None:
        """Finish what was submitted, write a checkpoint, and stop. The data directory stays open."""
        if self._phase is Phase.STOPPED:
            return
        self._enter(Phase.STOPPED)
        self._queue.put(None)
        self._writer_thread.join()
        self._journal_thread.join()
        if self._checkpoint_thread:
            self._checkpoint_thread.join()
        self._settle_checkpoint()
        if self._commit_fault is None:
            self._final_checkpoint()
        late: list[Work] = []
        with contextlib.suppress(queue.Empty):
            while (work := self._queue.get_nowait()) is not None:
                late.append(work)  # submitted in the very moment of closing
        self._fail(late)
        self._memory.close()

    # ---- the writer's thread ----

    def _enter(self, phase: Phase) -> None:
        if self._phase is Phase.STOPPED:
            return  # nothing leads out of it
        self._phase = phase
        self._observer.on_phase(phase)

    def _run_writer(self) -> None:
        waiting: deque[Work] = deque()
        taken: list[Work] = []  # what the group in the making holds
        closing = False
        while waiting or self._memory.late or not closing:
            closing = self._gather(waiting, closing)
            try:
                self._settle_checkpoint()
                if self._commit_fault is not None:
                    self._fail(waiting)
                    self._rebuild()
                    continue
                if waiting or self._memory.late:
                    time_us = self._decide(waiting, taken)
                    self._send(taken, time_us)
                self._maybe_checkpoint()
            except Exception as fault:
                # Whatever it was, memory may be half-way through something: what is on disk is what counts.
                log.exception("a group could not be decided")
                self._commit_fault = fault
                self._fail(taken)
        self._in_flight.put(_Decided(None, [], last=True), 0)

    def _gather(self, waiting: deque[Work], closing: bool) -> bool:
        """Take what is queued, and wait for the first of it; True once the queue was closed."""
        with contextlib.suppress(queue.Empty):
            if not waiting and not closing and not self._memory.late:
                pause_s = max(0.05, min(1.0, self._checkpoint_due - time.monotonic()))
                if (work := self._queue.get(timeout=pause_s)) is None:
                    return True
                waiting.append(work)
            while len(waiting) < limits.GROUP_TAPS_MAX:
                if (work := self._queue.get_nowait()) is None:
                    return True
                waiting.append(work)
        return closing

    def _decide(self, waiting: deque[Work], taken: list[Work]) -> int:
        """Move work from the front of what waits into the group, in order: first commands, then one batch of taps. What does
        not fit stays waiting. Returns the group's journal time."""
        self._last_time_us = time_us = max(self._clock_ns() // 1000, self._last_time_us)
        now = time.monotonic()
        engine = self._memory.engine
        if self._memory.late:  # left over from the group before
            self._observer.on_corrections(price_again(self._memory, time_us))
            if self._memory.late:
                return time_us
        while waiting and waiting[0].command is not None:
            if len(taken) >= limits.REQUEST_ITEMS_MAX or engine.pending_records >= limits.REQUEST_ITEMS_MAX:
                return time_us  # a registration may be thousands of records: the rest is the next group's
            work = waiting.popleft()
            taken.append(work)
            if not self._is_late(work, now):
                self._command(work, time_us)
        if engine.pending_records >= limits.REQUEST_ITEMS_MAX:
            return time_us
        batch: list[Work] = []
        while waiting and _is_request(waiting[0]) and len(batch) < limits.GROUP_TAPS_MAX:
            work = waiting.popleft()
            taken.append(work)
            if not self._is_late(work, now):
                batch.append(work)
        if not batch and waiting and waiting[0].calls is not None:
            self._calls(waiting, taken, time_us, now)
        if batch:
            self._taps(batch, waiting, taken, time_us)
        return time_us

    def _calls(self, waiting: deque[Work], taken: list[Work], time_us: int, now: float) -> None:
        """Batches of the tap port, as many as are sure to fit."""
        batch: list[Calls] = []
        room = limits.GROUP_TAPS_MAX
        while waiting and (calls := waiting[0].calls) is not None:
            room -= limits.REQUEST_ITEMS_MAX if calls.taps_max is None else calls.taps_max
            if room < 0:
                break
            batch.append(calls)
            taken.append(waiting.popleft())
        outcomes, corrections = run_calls(self._memory, batch, time_us, self._settings.taps, now)
        self._observer.on_taps(outcomes)
        self._observer.on_corrections(corrections)

    def _taps(self, batch: list[Work], waiting: deque[Work], taken: list[Work], time_us: int) -> None:
        bounds = [work.bound for work in batch]
        result = run_taps(
            self._memory,
            [work.request for work in batch],
            [work.stored for work in batch],
            time_us,
            self._settings.taps,
            bounds if any(bounds) else None,
        )
        self._observer.on_taps(result.outcomes)
        self._observer.on_corrections(result.corrections)
        left: list[Work] = []
        for work, response in zip(batch, result.responses, strict=True):
            if response is None:
                left.append(work)
            elif isinstance(response, YikatongError):
                work.error = response
            else:
                work.response = response
        if left:
            kept = {id(work) for work in left}
            taken[:] = [work for work in taken if id(work) not in kept]
            waiting.extendleft(reversed(left))

    def _is_late(self, work: Work, now: float) -> bool:
        if work.deadline is not None and work.deadline < now:
            work.error = DeadlineOver("the deadline had passed before the work began")
            return True
        return False

    def _command(self, work: Work, time_us: int) -> None:
        """An error that a command raises before it has written anything is its caller's alone."""
        assert work.command is not None
        first = self._memory.engine.next_sequence
        try:
            work.response = work.command(self._memory, time_us)
        except YikatongError as error:
            if self._memory.engine.next_sequence != first:
                raise
            work.error = error
        except EngineFull as error:
            work.error = Full(str(error))

    def _send(self, taken: list[Work], time_us: int) -> None:
        """Hand the group to the journal's thread, or commit it here."""
        first_sequence, count, records, payloads = self._memory.engine.take_group()
        group = Group(first_sequence, count, records, payloads, time_us) if count else None
        works = list(taken)
        taken.clear()
        self._release(works)
        decided = _Decided(group, works)
        if count <= SMALL_RECORDS_MAX and self._in_flight.is_empty():
            self._commit([decided])  # the journal's thread has nothing to do, and gets nothing before this returns
        else:
            self._in_flight.put(decided, count)

    def _release(self, works: Iterable[Work]) -> None:
        with self._queue_lock:
            self._queue_bytes -= sum(_queued_bytes(work) for work in works)

    def _fail(self, works: deque[Work] | list[Work]) -> None:
        """Nothing of these was done."""
        failed = list(works)
        works.clear()
        self._release(failed)
        for work in failed:
            work.response, work.error = None, Unavailable("the journal could not be written; nothing was done")
        if failed:
            self._deliver(failed)

    def _rebuild(self) -> None:
        """Throw memory away and restore it from disk, as at a start; then try whether the disk takes writes."""
        self._enter(Phase.REBUILDING)
        self._in_flight.join()  # what was decided on top of the failed group has been refused too
        if self._checkpoint_thread:
            self._checkpoint_thread.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self._settling.get_nowait()
        self._checkpointing = False
        try:
            self._memory.close()
            self._directory.reopen()
            self.journal, self._memory = self._open()
            self.journal.probe()
        except (DataError, MemoryError, EngineFull) as error:
            log.error("still not serving: %s", error)
            time.sleep(REBUILD_PAUSE_S)
            return
        self._last_time_us = max(self._last_time_us, self.journal.last_time_us)
        self._commit_fault = None
        self._enter(Phase.SERVING)
        log.info("rebuilt at sequence %d; serving again", self.journal.next_sequence - 1)

    # ---- the journal's thread, and the writer's for small groups; never both at once ----

    def _run_journal(self) -> None:
        """Whatever was decided while a commit was on its way to disk goes there together with the next one."""
        last_s, last_records = 0.0, 0
        closing = False
        while not closing:
            batch, at_once = self._in_flight.take()
            if at_once and last_s:
                # Under load: those that were just answered are about to ask again. A short wait lets them ride along, where
                # otherwise they would wait for the whole of the next commit. A lone tap is never there at once.
                batch += self._in_flight.take_more(last_records, min(last_s * GATHER_SHARE, GATHER_S_MAX))
            try:
                begun = time.perf_counter()
                for is_photograph, part in itertools.groupby(batch, lambda decided: decided.photograph is not None):
                    decided = list(part)
                    if not is_photograph:
                        last_records = self._commit(decided)
                    elif decided[0].photograph is not None:
                        self._start_checkpoint(decided[0].photograph)
                last_s = time.perf_counter() - begun
                closing = batch[-1].last
            finally:
                self._in_flight.done()

    def _commit(self, batch: list[_Decided]) -> int:
        """Append what was decided, and let its answers out; returns how many records were appended."""
        groups = [decided.group for decided in batch if decided.group is not None]
        records = sum(group.count for group in groups)
        if self._commit_fault is None and groups:
            begun = time.perf_counter()
            try:
                self.journal.append(*join(groups))
            except Exception as fault:  # whatever it was: it is not known to be on disk
                log.error("the journal could not be written: %s", fault)
                self._commit_fault = fault
                self._enter(Phase.REBUILDING)  # before anybody hears of it
            else:
                self._observer.on_commit(records, time.perf_counter() - begun, self.journal.next_sequence - 1)
        works = [work for decided in batch for work in decided.works]
        if self._commit_fault is not None:
            # Reads of these groups may have seen what is not durable: they are refused with them.
            for work in works:
                work.response, work.error = None, Unavailable("the journal could not be written; nothing was done")
        if works:
            self._deliver(works)
        return records

    # ---- checkpoints ----

    def _maybe_checkpoint(self) -> None:
        since = self._memory.engine.next_sequence - 1 - self._memory.checkpoint_sequence
        if self._memory.late:
            return
        if self._checkpointing or since == 0:
            if since == 0:
                self._checkpoint_due = time.monotonic() + self._settings.checkpoint_s
            return
        records = self._settings.checkpoint_records
        rested = time.monotonic() >= self._checkpoint_rested or since >= limits.CHECKPOINT_DELAY_TIMES * records
        if (since >= records and rested) or time.monotonic() >= self._checkpoint_due:
            self._checkpointing = True
            self._checkpoint_due = time.monotonic() + self._settings.checkpoint_s
            self._imbalance_fen = self._memory.engine.imbalance_fen()
            # Behind all groups that it stands for, so that they are durable when it is written.
            self._in_flight.put(_Decided(None, [], self._memory.photograph()), 0)

    def _start_checkpoint(self, photograph: Photograph) -> None:
        if self._commit_fault is not None:
            return
        assert self.journal.next_sequence == photograph.sequence + 1
        self._checkpoint_thread = threading.Thread(
            target=self._write_checkpoint, args=(photograph, self.journal.head), name="checkpoint", daemon=True
        )
        self._checkpoint_thread.start()

    def _write_checkpoint(self, photograph: Photograph, head: bytes) -> None:
        begun = time.perf_counter()
        try:
            self._memory.write_checkpoint(photograph, head)
        except Exception as error:
            level = logging.ERROR if isinstance(error, DataError) else logging.CRITICAL
            log.log(level, "the checkpoint at sequence %d was not written: %s", photograph.sequence, error)
            self._settling.put((photograph, False))
        else:
            seconds = time.perf_counter() - begun
            self._checkpoint_rested = time.monotonic() + limits.CHECKPOINT_REST_TIMES * seconds
            self._observer.on_checkpoint(photograph.sequence, seconds, self._imbalance_fen)
            self._settling.put((photograph, True))

    def _settle_checkpoint(self) -> None:
        with contextlib.suppress(queue.Empty):
            photograph, written = self._settling.get_nowait()
            self._memory.settle_checkpoint(photograph, written)
            self._checkpointing = False

    def _final_checkpoint(self) -> None:
        if self._memory.engine.next_sequence - 1 == self._memory.checkpoint_sequence:
            return
        self._imbalance_fen = self._memory.engine.imbalance_fen()
        self._write_checkpoint(self._memory.photograph(), self.journal.head)
        self._settle_checkpoint()
