"""Participants' own tap files: what a participant believes its terminals took in one window, to be held against the journal.

The form is that of files.py, but that rows have no tag, since there may be ten million of them:

    HEADER,encoding,UTF-8                  or GB18030
    HEADER,format,yikatong-taps-1
    HEADER,participant,operator:bus
    HEADER,settlement_date,20260131        as the answers to the taps said
    COLUMNS,terminal_number,terminal_sequence,amount_fen,local_time
    00000000012a,1,200,20260131083015      12 hex digits, the terminal's counter, what was charged, YYYYMMDDhhmmss (UTC+8)
    TOTAL,<rows>,<sum of amount_fen>
    DIGEST,SM3,…                           may be left out

Lines end in LF. The rows are read by pyarrow, some million a second; only where that finds something wrong are they read again,
one by one, to say where."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from yikatong.core import files, limits
from yikatong.core.files import CODECS, FileError
from yikatong.core.journal import sm3

FORMAT: Final = "yikatong-taps-1"
COLUMNS: Final = ("terminal_number", "terminal_sequence", "amount_fen", "local_time")
_HEADERS: Final = ("encoding", "format", "participant", "settlement_date")
_HEAD_BYTES_MAX: Final = 4_096  # four headers and the columns
_TAIL_BYTES_MAX: Final = 256  # totals and digest
_BLOCK_BYTES: Final = 16 << 20  # what pyarrow reads at once
_ROW: Final = (
    ("terminal_number", re.compile(r"[0-9a-f]{12}"), "12 hex digits are wanted"),
    ("terminal_sequence", re.compile(r"0|[1-9][0-9]{0,9}"), "0 to 4294967295 is wanted"),
    ("amount_fen", re.compile(r"0|[1-9][0-9]{0,9}"), "0 to 4294967295 is wanted"),
    ("local_time", re.compile(r"20[0-9]{12}"), "a time like 20260131083015 is wanted"),
)
_TENS: Final = 10 ** np.arange(1, 10, dtype=np.uint64)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Taps:
    """Taps as columns of equal length; terminals by their place in `terminals`."""

    terminals: Array  # uint64: terminal numbers, 6 bytes each, big-endian
    terminal: Array  # uint32
    sequence: Array  # uint32: the terminal's counter
    amount_fen: Array  # int64
    local_time: Array  # uint64: YYYYMMDDhhmmss

    def __len__(self) -> int:
        return len(self.terminal)


@dataclass(frozen=True)
class TapFile:
    """One participant's taps of one window, in order of the file's lines."""

    name: str
    participant: str
    settlement_date: int
    taps: Taps
    first_line: int  # on which the first tap stands
    digest: bytes  # SM3 of the bytes before the digest's line, or of all where there is none


def tap_csv(participant: str, settlement_date: int, taps: Taps, encoding: str = "UTF-8") -> bytes:
    """A tap file's bytes, for participants that keep their books with our programs."""
    head = "".join(
        f"{line}\n"
        for line in (
            f"HEADER,encoding,{encoding}",
            f"HEADER,format,{FORMAT}",
            f"HEADER,participant,{participant}",
            f"HEADER,settlement_date,{settlement_date}",
            f"COLUMNS,{','.join(COLUMNS)}",
        )
    ).encode(CODECS[encoding])
    names = [f"{number:012x}" for number in taps.terminals.tolist()]
    columns = zip(taps.terminal.tolist(), taps.sequence.tolist(), taps.amount_fen.tolist(), taps.local_time.tolist(), strict=True)
    rows = "".join(f"{names[terminal]},{sequence},{fen},{time}\n" for terminal, sequence, fen, time in columns)
    total = f"TOTAL,{len(taps)},{int(taps.amount_fen.sum())}\n"
    return files.with_digest(head + rows.encode() + total.encode())


def read_tap_csv(name: str, raw: bytes | memoryview) -> TapFile:
    """A participant's tap file, checked: digest where there is one, encoding, every field, totals. That a tap stands there
    twice is for reconciliation to tell. Raises FileError with line and field; then nothing of the file counts."""
    headers, body_start = _head(name, bytes(raw[:_HEAD_BYTES_MAX]))
    body_end, digest_start, total, stated = _tail(name, raw, body_start)
    body = memoryview(raw)[body_start:body_end]
    first_line = len(_HEADERS) + 2
    with ThreadPoolExecutor(1) as beside:  # the digest takes about as long as the rows do
        digest = beside.submit(sm3, memoryview(raw)[:digest_start])
        taps = _rows(name, body, first_line)
        if stated and digest.result().hex() != stated:
            raise FileError(name, first_line + len(taps) + 1, "DIGEST", "the bytes before this line have another SM3 digest")
    for field, text, wanted in zip(("count", "amount_fen"), total, (len(taps), int(taps.amount_fen.sum())), strict=True):
        try:
            agrees = files.parse_count(text) == wanted
        except ValueError:
            agrees = False
        if not agrees:
            raise FileError(name, first_line + len(taps), field, f"the rows come to {wanted}, not {text!r}")
    return TapFile(name, headers["participant"], int(headers["settlement_date"]), taps, first_line, digest.result())


def _head(name: str, start: bytes) -> tuple[dict[str, str], int]:
    """Values of the headers, and where the rows begin."""
    encoding = "UTF-8"
    checks: dict[str, Callable[[str], object]] = {
        "encoding": files.among({name: name for name in CODECS}),
        "format": files.among({FORMAT: FORMAT}),
        "participant": files.text_of(limits.PARTICIPANT_CHARACTERS_MAX),
        "settlement_date": files.parse_date,
    }
    headers: dict[str, str] = {}
    lines = start.split(b"\n")
    if len(lines) < len(_HEADERS) + 2:
        raise FileError(name, len(lines), "", f"HEADER lines and COLUMNS,{','.join(COLUMNS)} are wanted at the beginning")
    for line, (header, content) in enumerate(zip(_HEADERS, lines, strict=False), 1):
        try:
            text = content.decode(CODECS[encoding])
        except UnicodeDecodeError as error:
            raise FileError(name, line, header, f"is not {encoding}") from error
        before = f"HEADER,{header},"
        if not text.startswith(before):
            raise FileError(name, line, header, f"the line {before}… is wanted here")
        try:
            checks[header](text[len(before) :])
        except ValueError as error:
            raise FileError(name, line, header, str(error)) from error
        headers[header] = text[len(before) :]
        encoding = headers["encoding"]
    if lines[len(_HEADERS)] != f"COLUMNS,{','.join(COLUMNS)}".encode():
        raise FileError(name, len(_HEADERS) + 1, "COLUMNS", f"COLUMNS,{','.join(COLUMNS)} is wanted here")
    return headers, sum(len(line) + 1 for line in lines[: len(_HEADERS) + 1])


def _tail(name: str, raw: bytes | memoryview, body_start: int) -> tuple[int, int, list[str], str]:
    """Where the rows end, where the digest's line begins, the cells of TOTAL, and the digest that is stated ("" if none)."""
    start = max(body_start, len(raw) - _TAIL_BYTES_MAX)
    tail = bytes(raw[start:])
    found = re.search(rb"(?:\A|\n)(TOTAL,([0-9]+),([0-9]+)\n)(DIGEST,SM3,([0-9a-f]{64})\n)?\Z", tail)
    if not found:
        raise FileError(name, 0, "TOTAL", "TOTAL,count,amount_fen and, if at all, DIGEST,SM3,… are wanted at the end")
    total = [found[2].decode(), found[3].decode()]
    return start + found.start(1), start + found.end(1), total, (found[5] or b"").decode()


def _rows(name: str, body: memoryview, first_line: int) -> Taps:
    if not len(body):
        empty = np.zeros(0, np.uint64)
        return Taps(empty, empty.astype(np.uint32), empty.astype(np.uint32), empty.astype(np.int64), empty)
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(pa.py_buffer(body)),
            read_options=pyarrow.csv.ReadOptions(column_names=COLUMNS, block_size=_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={
                    "terminal_number": pa.dictionary(pa.int32(), pa.string()),
                    "terminal_sequence": pa.uint32(),
                    "amount_fen": pa.uint32(),
                    "local_time": pa.uint64(),
                },
                null_values=[],
                strings_can_be_null=False,
            ),
        ).unify_dictionaries()
    except pa.ArrowException as error:
        raise _fault(name, body, first_line) from error
    numbers = table["terminal_number"]
    terminals = numbers.chunk(0).dictionary.to_pylist()
    taps = Taps(
        terminals=np.array([int(text, 16) if _ROW[0][1].fullmatch(text) else 0 for text in terminals], np.uint64),
        terminal=np.concatenate([chunk.indices.to_numpy() for chunk in numbers.chunks]).astype(np.uint32),
        sequence=table["terminal_sequence"].to_numpy(),
        amount_fen=table["amount_fen"].to_numpy().astype(np.int64),
        local_time=table["local_time"].to_numpy(),
    )
    # pyarrow takes more than the form allows (blanks, signs, leading zeros, hex): each makes a row longer than it has to be.
    bytes_wanted = len(taps) * (12 + 14 + len(COLUMNS)) + _digits(taps.sequence) + _digits(taps.amount_fen)
    well_formed = all(_ROW[0][1].fullmatch(text) for text in terminals) and bytes_wanted == len(body)
    if not well_formed or not _are_times(taps.local_time):
        raise _fault(name, body, first_line)
    return taps


def _digits(values: Array) -> int:
    """How many decimal digits all values have together."""
    return len(values) + int(sum(np.count_nonzero(values >= ten) for ten in _TENS))


def _are_times(local_time: Array) -> bool:
    """Whether each is a date and time that exists, of 2000 to 2099."""
    date, time = (local_time // 1_000_000).astype(np.uint32), (local_time % 1_000_000).astype(np.uint32)
    if np.any((time >= 240_000) | (time % 10_000 >= 6_000) | (time % 100 >= 60)):
        return False
    # There are few dates, in long runs mostly.
    changes = np.flatnonzero(date[1:] != date[:-1]) + 1
    for day in np.unique(date[np.concatenate([[0], changes])]):
        try:
            files.parse_date(f"{day:08d}")
        except ValueError:
            return False
    return True


def _lines(body: memoryview) -> Iterator[bytes]:
    """Lines without their ends; what follows the last end is a line too, where there is something."""
    rest = b""
    for at in range(0, len(body), _BLOCK_BYTES):
        *lines, rest = (rest + bytes(body[at : at + _BLOCK_BYTES])).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _fault(name: str, body: memoryview, first_line: int) -> FileError:
    """The first row that is wrong."""
    for line, content in enumerate(_lines(body), first_line):
        cells = content.decode("utf-8", "replace").split(",")
        if len(cells) != len(COLUMNS):
            return FileError(name, line, "", f"{len(COLUMNS)} columns are wanted, not {len(cells)}")
        for (field, pattern, wanted), cell in zip(_ROW, cells, strict=True):
            if not pattern.fullmatch(cell) or (field != "local_time" and field != "terminal_number" and int(cell) >> 32):
                return FileError(name, line, field, f"{wanted}, not {cell[:40]!r}")
        if not _are_times(np.array([int(cells[3])], np.uint64)):
            return FileError(name, line, "local_time", f"there is no time {cells[3]}")
    return FileError(name, first_line, "", "cannot be read as rows of taps")
