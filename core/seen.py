"""Card counters and terminal sequences from before the last checkpoint: sorted segments in the state file.

The engine asks here only when a counter goes back, which a tap seldom does. A segment is all keys of one or more checkpoints in
order, then the journal sequence under each; searching is a binary search in the mapped file. A tap of a month ago, or of
years ago, is found like one of yesterday."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from yikatong.core import limits
from yikatong.core.store import Reader, Writer

CARDS: Final = b"c"
TERMINALS: Final = b"t"

Keys = npt.NDArray[np.uint64]


class Segment(NamedTuple):
    """Sorted keys and the journal sequence under each; views into the state file."""

    name: bytes
    keys: Keys
    sequences: Keys


def _name(kind: bytes, number: int) -> bytes:
    return kind + number.to_bytes(8, "big")


def _parse(name: bytes, value: memoryview) -> Segment:
    numbers = np.frombuffer(value, np.uint64)
    half = len(numbers) // 2
    return Segment(name, numbers[:half], numbers[half:])


class Segments:
    """All segments of one picture of the state file."""

    def __init__(self, reader: Reader) -> None:
        self._kinds: dict[bytes, list[Segment]] = {CARDS: [], TERMINALS: []}
        for name, value in reader.items("segments"):
            self._kinds[name[:1]].append(_parse(name, value))

    def find(self, kind: bytes, keys: Sequence[int]) -> list[int]:
        """Journal sequence under each key; 0 where it was never seen."""
        wanted = np.array(keys, np.uint64)
        found = np.zeros(len(wanted), np.uint64)
        for segment in reversed(self._kinds[kind]):  # newest first: what comes back comes back soon
            if not len(segment.keys):
                continue
            at = np.minimum(np.searchsorted(segment.keys, wanted), len(segment.keys) - 1)
            hit = segment.keys[at] == wanted
            found[hit] = segment.sequences[at[hit]]
        return [int(sequence) for sequence in found]


def _next_number(writer: Writer, existing: list[bytes]) -> int:
    return max((int.from_bytes(name[1:], "big") for name in existing), default=0) + 1


def add_segment(writer: Writer, segments: Segments | None, kind: bytes, keys: Keys, sequences: Keys) -> None:
    """Add a checkpoint's counters (sorted by key). Segments of like size are merged, so that there are only some dozen."""
    if not len(keys):
        return
    existing = list(segments._kinds[kind]) if segments else []
    number = _next_number(writer, [segment.name for segment in existing])
    while True:
        # As long as the newest few are no larger than what is to be written, they become one with it.
        like = [segment for segment in existing[-(limits.SEGMENTS_MERGE - 1) :] if len(segment.keys) <= 2 * len(keys)]
        if len(like) < limits.SEGMENTS_MERGE - 1 or len(keys) > limits.SEGMENT_KEYS_MAX:
            break
        keys = np.concatenate([keys, *(segment.keys for segment in like)])
        sequences = np.concatenate([sequences, *(segment.sequences for segment in like)])
        order = np.argsort(keys)
        keys, sequences = keys[order], sequences[order]
        for segment in like:
            writer.delete("segments", segment.name)
            existing.remove(segment)
    # One array rather than bytes: numpy copies without the GIL, and this may be many megabytes.
    writer.put("segments", _name(kind, number), np.concatenate([keys, sequences]).view(np.uint8).data)
