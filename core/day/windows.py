"""Windows: the records of one settlement date, a range of the journal, and how a window's life goes.

A record's settlement day never goes back along the journal, so each date's records lie side by side: no record is in two windows,
and none in none."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from yikatong.core.change import Change
from yikatong.core.errors import Damaged
from yikatong.core.journal import JournalReader
from yikatong.core.memory import Memory
from yikatong.core.types import DocumentKind, Result, WindowState, wire
from yikatong.v1 import clearing_service_pb2

UTC8_S: Final = 8 * 3_600


class WindowEvent(IntEnum):
    """What can be asked of a window."""

    CLOSE = 1
    CLEAR = 2
    SETTLE = 3
    ABORT = 4
    RESUME = 5


TRANSITIONS: Final[dict[tuple[WindowState, WindowEvent], WindowState]] = {
    (WindowState.OPEN, WindowEvent.CLOSE): WindowState.CLOSED,
    (WindowState.CLOSED, WindowEvent.CLEAR): WindowState.CLEARED,
    (WindowState.CLEARED, WindowEvent.SETTLE): WindowState.SETTLED,
    (WindowState.CLEARED, WindowEvent.ABORT): WindowState.ABORTED,
    (WindowState.SETTLED, WindowEvent.ABORT): WindowState.ABORTED,
    (WindowState.ABORTED, WindowEvent.RESUME): WindowState.CLEARED,
}

IN_THE_WAY: Final = {
    WindowState.OPEN: Result.WINDOW_OPEN,
    WindowState.CLOSED: Result.WINDOW_CLOSED,
    WindowState.CLEARED: Result.WINDOW_CLEARED,
    WindowState.SETTLED: Result.WINDOW_SETTLED,
    WindowState.ABORTED: Result.WINDOW_ABORTED,
}
"""The code of a refusal: the state from which what was asked does not lead on."""


def after(state: WindowState, event: WindowEvent) -> WindowState | Result:
    """The state that an event leads to, or the code with which it is refused."""
    return TRANSITIONS.get((state, event)) or IN_THE_WAY[state]


@dataclass(frozen=True)
class Range:
    """First and last sequence of a settlement date (YYYYMMDD)."""

    date: int
    first_sequence: int
    last_sequence: int


# ---- dates and where they lie in the journal ----


def day_of(date: int) -> int:
    """Days from 1970-01-01 to a date YYYYMMDD."""
    year, month, day = date // 10000, date // 100 % 100, date % 100
    return int(np.datetime64(f"{year:04d}-{month:02d}-{day:02d}", "D").astype(np.int64))


def settlement_days(records: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Settlement day of each journal record; those of format 1 state none, theirs is the UTC+8 day of their time."""
    stated = records["settlement_day"].astype(np.int64)
    return np.where(stated != 0, stated, (records["time_us"] // 1_000_000 + UTC8_S) // 86_400)


def date_of_day(day: int) -> int:
    """The date YYYYMMDD of a number of days since 1970-01-01."""
    return int(str(np.datetime64(day, "D")).replace("-", ""))


def first_sequence_on(reader: JournalReader, day: int) -> int:
    """First sequence of the first journal value that holds records of a settlement day or later: it never goes back along the
    journal."""
    last = reader.last()
    low, high = 1, last.first_sequence + last.count if last else 1
    while low < high:
        middle = (low + high) // 2
        entry = reader.entry(middle)
        assert entry is not None
        if int(settlement_days(entry.array[-1:])[0]) < day:
            low = entry.first_sequence + entry.count
        else:
            high = entry.first_sequence
    return low


def first_record_on(reader: JournalReader, day: int) -> int:
    """First sequence of a settlement day or later, to the record: one value may hold the end of a day and the next one's
    beginning. One more than the last where there is none."""
    sequence = first_sequence_on(reader, day)
    entry = reader.entry(sequence)
    if entry is None:
        return sequence
    return entry.first_sequence + int((settlement_days(entry.array) < day).sum())


def find_window(reader: JournalReader, date: int) -> Range | None:
    """The records of a settlement date, or None where there are none."""
    day = day_of(date)
    first, end = first_record_on(reader, day), first_record_on(reader, day + 1)
    return Range(date, first, end - 1) if first < end else None


def windows_from(reader: JournalReader, date: int) -> Iterator[Range]:
    """The windows of a date and of those after it, in order. Dates without records have none."""
    last = reader.last()
    sequence = first_record_on(reader, day_of(date))
    while last is not None and sequence < last.first_sequence + last.count:
        found = reader.record(sequence)
        assert found is not None
        day = int(settlement_days(found[1])[0])
        end = first_record_on(reader, day + 1)
        yield Range(date_of_day(day), sequence, end - 1)
        sequence = end


FIRST_DATE: Final = 19700101


def prove_membership(reader: JournalReader) -> list[Range]:
    """All windows of a journal, after looking at every record: each is in exactly one window, the one of its settlement day, and
    the windows follow on each other without a gap. Raises Damaged naming the first record that is not."""
    windows = list(windows_from(reader, FIRST_DATE))
    place, expected = 0, 1
    for entry in reader.entries():
        days: npt.NDArray[np.int64] = settlement_days(entry.array)
        for sequence, day in zip(range(entry.first_sequence, entry.first_sequence + entry.count), days.tolist(), strict=True):
            while place < len(windows) and sequence > windows[place].last_sequence:
                place += 1
            window = windows[place] if place < len(windows) else None
            if sequence != expected or window is None or not window.first_sequence <= sequence or day_of(window.date) != day:
                raise Damaged(f"journal record {sequence} of {date_of_day(day)} is in no window of its date")
            expected += 1
    return windows


# ---- what is kept of a window: on the writer's thread ----


def window_key(date: int) -> bytes:
    """The key of documents that belong to a settlement date."""
    return date.to_bytes(4, "big")


def window_document(memory: Memory, date: int) -> clearing_service_pb2.WindowDocument:
    """What is kept of the window of a settlement date; OPEN where nothing is."""
    kept = memory.documents.get(DocumentKind.WINDOW, window_key(date))
    if kept is None:
        window = clearing_service_pb2.ClearingWindow(settlement_date=date, state=wire(WindowState.OPEN))
        return clearing_service_pb2.WindowDocument(window=window)
    return clearing_service_pb2.WindowDocument.FromString(kept)


def put_window(change: Change, document: clearing_service_pb2.WindowDocument) -> None:
    change.put(DocumentKind.WINDOW, window_key(document.window.settlement_date), document.SerializeToString(deterministic=True))


def advance(memory: Memory, change: Change, date: int, event: WindowEvent) -> Result:
    """Take a window on within a change that its caller commits: SETTLE, ABORT or RESUME. ACCEPTED, or the code of the refusal,
    and then nothing was added to the change."""
    document = window_document(memory, date)
    state = after(WindowState(document.window.state), event)
    if isinstance(state, Result):
        return state
    if document.window.seal_digest:
        return Result.WINDOW_SEALED
    document.window.state = wire(state)
    put_window(change, document)
    return Result.ACCEPTED
