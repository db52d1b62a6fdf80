"""What is decided and on its way to disk: the hand-over between the writer's thread and the journal's.

Bounded in records, not in groups: while a commit is under way everything that is decided gathers here, and goes to disk with the
next commit, all at once."""

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class InFlight(Generic[Item]):
    """One thread puts, one takes; any may join."""

    def __init__(self, records_max: int) -> None:
        self._records_max = records_max
        self._items: deque[tuple[Item, int]] = deque()
        self._records = 0
        self._taken = False  # what was taken is still being worked on
        self._changed = threading.Condition()

    def put(self, item: Item, records: int) -> None:
        """Hand over; waits while too much is waiting already."""
        with self._changed:
            while self._records and self._records + records > self._records_max:
                self._changed.wait()
            self._items.append((item, records))
            self._records += records
            self._changed.notify_all()

    def take(self) -> tuple[list[Item], bool]:
        """All that waits, and whether it was there at once; waits for the first. To be followed by `done`."""
        with self._changed:
            at_once = bool(self._items)
            while not self._items:
                self._changed.wait()
            return self._take_all(), at_once

    def take_more(self, records: int, seconds: float) -> list[Item]:
        """What else comes, for at most `seconds` or until `records` are there."""
        with self._changed:
            self._changed.wait_for(lambda: self._records >= records, seconds)
            return self._take_all()

    def _take_all(self) -> list[Item]:
        items = [item for item, _ in self._items]
        self._items.clear()
        self._records = 0
        self._taken = True
        self._changed.notify_all()
        return items

    def done(self) -> None:
        """What was taken is settled."""
        with self._changed:
            self._taken = False
            self._changed.notify_all()

    def is_empty(self) -> bool:
        """Whether nothing is on its way; for the one who puts, it stays so until it puts."""
        with self._changed:
            return not self._items and not self._taken

    def join(self) -> None:
        """Wait until nothing is on its way."""
        with self._changed:
            while self._items or self._taken:
                self._changed.wait()
