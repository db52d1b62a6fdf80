"""Documents: what services remember beside the ledger, each a serialized message under a kind and a key.

They change only by events of the journal. What changed since the last checkpoint is in memory, the rest in the state file; both
are read as one, in order of key."""

from collections.abc import Iterator
from typing import Final

from sortedcontainers import SortedDict

from yikatong.core.store import Reader, Writer
from yikatong.core.types import DocumentKind

Layer = SortedDict[bytes, bytes | None]  # full key → value; None: deleted

DATABASE: Final = "documents"


def full_key(kind: DocumentKind, key: bytes) -> bytes:
    """The key in the state file: the kind in one byte, then the key."""
    return bytes([kind]) + key


class Documents:
    """Only the writer's thread may use it, but for `save`."""

    def __init__(self) -> None:
        self._young: Layer = SortedDict()  # since the last checkpoint
        self._frozen: Layer = SortedDict()  # between a photograph and its checkpoint's end
        self._state: Reader | None = None

    def get(self, kind: DocumentKind, key: bytes) -> bytes | None:
        full = full_key(kind, key)
        for layer in (self._young, self._frozen):
            if full in layer:
                return layer[full]
        value = None if self._state is None else self._state.get(DATABASE, full)
        return None if value is None else bytes(value)

    def scan(self, kind: DocumentKind, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from `start` up to but not including `end`, in order of key. Nothing may be put meanwhile."""
        low = full_key(kind, start)
        high = full_key(kind, end) if end is not None else bytes([kind + 1])
        young: SortedDict[bytes, bytes | None] = SortedDict()
        for layer in (self._frozen, self._young):
            young.update((key, layer[key]) for key in layer.irange(low, high, inclusive=(True, False)))
        waiting = iter(young.items())
        newer = next(waiting, None)
        for key, value in self._state.items(DATABASE, low) if self._state is not None else ():
            if key >= high:
                break
            while newer is not None and newer[0] < key:
                if newer[1] is not None:
                    yield newer[0][1:], newer[1]
                newer = next(waiting, None)
            if newer is not None and newer[0] == key:
                if newer[1] is not None:
                    yield newer[0][1:], newer[1]
                newer = next(waiting, None)
            else:
                yield key[1:], bytes(value)
        while newer is not None:
            if newer[1] is not None:
                yield newer[0][1:], newer[1]
            newer = next(waiting, None)

    def apply(self, kind: int, key: bytes, value: bytes | None) -> None:
        """Put a document, or with None delete it: what an event of the journal says."""
        self._young[bytes([kind]) + key] = value

    # ---- checkpoints ----

    def look_at(self, state: Reader) -> None:
        """The state file as it is now."""
        self._state = state

    def freeze(self) -> Layer:
        """What a checkpoint will save; to be ended by `settle`."""
        self._frozen, self._young = self._young, SortedDict()
        return self._frozen

    def settle(self, written: bool) -> None:
        """The checkpoint is on disk, or came to nothing."""
        if not written:
            self._frozen.update(self._young)
            self._young = self._frozen
        self._frozen = SortedDict()


def save(writer: Writer, layer: Layer) -> None:
    """Any thread: write what `freeze` returned."""
    for key, value in layer.items():
        if value is None:
            writer.delete(DATABASE, key)
        else:
            writer.put(DATABASE, key, value)
