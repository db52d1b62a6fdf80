"""The sixth stage of a tap: the journal, append-only, one value per group commit. It is the truth.

A value is a header and a body. The body holds `count` records of 128 bytes (types.RECORD) and behind them the payloads:
length-prefixed protobuf messages that records point to. The header holds SHA-256 of the body and SM3 of the header before, so
that the last header vouches for all of it. (SHA-256 for the body because processors have instructions for it and the body is
megabytes; SM3, GB/T 32905, for the chain that is signed and shown to others.)"""

import ctypes
import hashlib
import mmap
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from yikatong.core import types
from yikatong.core.errors import CommitFailed, Damaged, NewerFormat
from yikatong.core.failpoints import failpoint
from yikatong.core.store import Reader, Store
from yikatong.ext.engine import settlement_date

MAGIC: Final = b"YKTJRNL\n"
FORMAT: Final = 5
# All older ones are read as they are: 1 had no events and no settlement days, 2 no fares, 3 no event digests, 4 no category that
# begins on a day.
FORMAT_EVENT_DIGESTS: Final = 4
# magic, format, header bytes, first sequence, count, payload bytes, time in µs, SM3 of the header before, SHA-256 of the body
HEADER: Final = struct.Struct("<8sHHxxxxQIIq32s32s24x")
GENESIS: Final = bytes(32)  # stands for the header before the first
RECORD_BYTES: Final = types.RECORD.itemsize

assert HEADER.size == 128

PAGE_BYTES: Final = mmap.PAGESIZE
MADV_DONTNEED: Final = 4
_MADVISE: Final = ctypes.CDLL(None).madvise if sys.platform == "linux" else None


# A copy of an empty digest costs a tenth of asking OpenSSL for the algorithm anew, which a commit would do several times.
_SHA256: Final = hashlib.sha256()
_SM3: Final = hashlib.new("sm3") if "sm3" in hashlib.algorithms_available else None


def sm3(data: bytes | memoryview) -> bytes:
    """SM3 digest (GB/T 32905), 32 bytes: OpenSSL's where Python was built with it, else gmssl's."""
    if _SM3 is None:
        from gmssl import sm3 as gmssl_sm3

        return bytes.fromhex(gmssl_sm3.sm3_hash(list(data)))
    digest = _SM3.copy()
    digest.update(data)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Group:
    """What one group commit makes durable."""

    first_sequence: int
    count: int
    records: bytes
    payloads: bytes
    time_us: int


def join(groups: Sequence[Group]) -> list[Group]:
    """The same records in fewer groups, as far as their settlement dates agree and no payload would move."""
    joined: list[list[Group]] = []
    for group in groups:
        open_ = joined[-1] if joined else []
        same_day = open_ and settlement_date(open_[0].time_us) == settlement_date(group.time_us)
        if same_day and not (group.payloads and any(other.payloads for other in open_)):
            open_.append(group)
        else:
            joined.append([group])
    return [
        part[0]
        if len(part) == 1
        else Group(
            part[0].first_sequence,
            sum(group.count for group in part),
            b"".join(group.records for group in part),
            b"".join(group.payloads for group in part),
            part[-1].time_us,
        )
        for part in joined
    ]


@dataclass(frozen=True, slots=True)
class Entry:
    """One journal value, read back. `records` and `payloads` are views into the file, good until the reader is closed."""

    first_sequence: int
    count: int
    time_us: int
    previous: bytes
    digest: bytes
    header: bytes
    records: memoryview
    payloads: memoryview

    @property
    def array(self) -> npt.NDArray[np.void]:
        """Records as an array of types.RECORD, without copying."""
        return np.frombuffer(self.records, types.RECORD)

    def payload(self, place: int) -> bytes:
        """The message at a record's `payload_place`."""
        at = place - 1
        length = shift = 0
        while True:
            byte = self.payloads[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        return bytes(self.payloads[at : at + length])

    def verify(self) -> None:
        """Raises Damaged when the body is not what the header says."""
        body = hashlib.sha256(self.records)
        body.update(self.payloads)
        if body.digest() != self.digest:
            raise Damaged(f"journal value at sequence {self.first_sequence}: its body is not what was written (SHA-256 differs)")

    def verify_events(self) -> None:
        """Raises Damaged when an event is not the one that its record, which the seal is over, holds the digest of."""
        array = self.array
        if int.from_bytes(self.header[8:10], "little") < FORMAT_EVENT_DIGESTS:
            return
        for at in np.flatnonzero(array["kind"] == types.RecordKind.EVENT).tolist():
            if sm3(self.payload(int(array["payload_place"][at]))) != array["event_digest"][at].tobytes():
                raise Damaged(f"journal record {self.first_sequence + at}: its event is not what was written (SM3 differs)")


def key_of(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


def parse(key: bytes, value: memoryview) -> Entry:
    """Raises NewerFormat or Damaged, naming the sequence."""
    place = f"journal value at sequence {int.from_bytes(key, 'big')}"
    if len(value) < HEADER.size:
        raise Damaged(f"{place}: {len(value)} bytes are less than a header")
    header = bytes(value[: HEADER.size])
    magic, version, header_bytes, first, count, payload_bytes, time_us, previous, digest = HEADER.unpack(header)
    if magic != MAGIC:
        raise Damaged(f"{place}: it does not begin as a journal value does")
    if version > FORMAT:
        raise NewerFormat(f"{place}: it has format {version}; this program knows formats up to {FORMAT}")
    records_end = header_bytes + count * RECORD_BYTES
    if version < 1 or header_bytes != HEADER.size or key != key_of(first) or len(value) != records_end + payload_bytes:
        raise Damaged(f"{place}: its header does not agree with its key and length")
    return Entry(first, count, time_us, previous, digest, header, value[header_bytes:records_end], value[records_end:])


class JournalReader:
    """A picture of the journal that does not change."""

    def __init__(self, store: Store) -> None:
        self._reader: Reader = store.read()

    def entries(self, first_sequence: int = 1) -> Iterator[Entry]:
        """Values in order, beginning with the one that holds `first_sequence`."""
        start = self._reader.at_or_before("groups", key_of(first_sequence))
        for key, value in self._reader.items("groups", start[0] if start else b""):
            entry = parse(key, value)
            if entry.first_sequence + entry.count > first_sequence:
                yield entry

    def let_go(self, entry: Entry) -> None:
        """Take the whole pages of an entry's records out of this process's memory; the kernel keeps them cached, and they are
        there again when they are touched. Whoever reads a whole day would otherwise hold it until somebody needs the room."""
        if _MADVISE is not None:
            address = np.frombuffer(entry.records, np.uint8).ctypes.data
            start, end = (-(-address // PAGE_BYTES) * PAGE_BYTES, (address + entry.records.nbytes) // PAGE_BYTES * PAGE_BYTES)
            if start < end:
                _MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)

    def entry(self, sequence: int) -> Entry | None:
        """The value that holds a sequence."""
        found = self._reader.at_or_before("groups", key_of(sequence))
        if found is None:
            return None
        entry = parse(*found)
        return entry if sequence < entry.first_sequence + entry.count else None

    def record(self, sequence: int) -> tuple[Entry, npt.NDArray[np.void]] | None:
        """The value and, in an array of one, the record of a sequence."""
        entry = self.entry(sequence)
        if entry is None:
            return None
        at = sequence - entry.first_sequence
        return entry, entry.array[at : at + 1]

    def records(self, sequences: list[int]) -> bytes:
        """Records of sorted sequences, as bytes in that order. Raises Damaged when one is missing."""
        parts = []
        entry: Entry | None = None
        for sequence in sequences:
            if entry is None or sequence >= entry.first_sequence + entry.count:
                entry = self.entry(sequence)
                if entry is None:
                    raise Damaged(f"journal: record {sequence} is missing")
            at = (sequence - entry.first_sequence) * RECORD_BYTES
            parts.append(entry.records[at : at + RECORD_BYTES])
        return b"".join(parts)

    def last(self) -> Entry | None:
        found = self._reader.last("groups")
        return parse(*found) if found else None

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> "JournalReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Journal:
    """The journal's end, for its one writer."""

    def __init__(self, store: Store) -> None:
        self.store = store
        with self.read() as reader:
            last = reader.last()
            if last:
                last.verify()
            self.next_sequence = last.first_sequence + last.count if last else 1
            self.head = sm3(last.header) if last else GENESIS
            self.last_time_us = last.time_us if last else 0

    def read(self) -> JournalReader:
        return JournalReader(self.store)

    def append(self, *groups: Group) -> None:
        """Make groups durable, all or none: when this returns, they are on disk. Raises CommitFailed; then nothing of them is."""
        head, next_sequence = self.head, self.next_sequence
        with self.store.write("journal") as writer:
            for group in groups:
                # 1. It must follow on what is there: the sequence number is the fence against a second writer.
                if group.first_sequence != next_sequence:
                    raise CommitFailed(f"group at sequence {group.first_sequence} does not follow {next_sequence - 1}")
                # 2. Chain it to the header before.
                digest = _SHA256.copy()
                digest.update(group.records)
                digest.update(group.payloads)
                header = HEADER.pack(
                    MAGIC, FORMAT, HEADER.size, group.first_sequence, group.count, len(group.payloads), group.time_us, head,
                    digest.digest(),
                )  # fmt: skip
                # 3. Append it as one value.
                failpoint("journal-before-append")
                writer.append_parts("groups", key_of(group.first_sequence), header, group.records, group.payloads)
                failpoint("journal-after-append")
                head, next_sequence = sm3(header), next_sequence + group.count
        # 4. Leaving the block committed and synced them. Only now does the end move.
        self.head, self.next_sequence = head, next_sequence
        self.last_time_us = groups[-1].time_us

    def probe(self) -> None:
        """Write and sync something that means nothing, to learn whether the disk takes writes. Raises CommitFailed."""
        with self.store.write() as writer:
            writer.put("probe", b"probe", bytes(1 << 16))
