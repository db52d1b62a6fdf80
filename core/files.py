"""Files that other parties get and send: written whole or not at all, read strictly.

A file is CSV whose rows say in their first cell what they are:

    HEADER,encoding,UTF-8                    always first; UTF-8 or GB18030, which all that follows is encoded in
    HEADER,<name>,<value>                    in the order that the kind of file gives
    COLUMNS,<column>,<column>,…
    <ROW>,<value>,<value>,…                  the rows themselves, LINE or ENTRY or what the kind of file says
    TOTAL,<how many rows>,<sum>,…
    DIGEST,SM3,<64 hex digits>               over all bytes before this line

Lines end in LF (CR LF is read too). Times are UTC+8, `2026-01-31T08:30:15+08:00`; amounts are yuan with two decimals or fen, as
the column's name says. What is wrong is told with file, line and field, and then nothing of the file counts."""

import csv
import datetime
import io
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from yikatong.core.errors import DataError, FileFault
from yikatong.core.journal import sm3

Value = TypeVar("Value")

CODECS: Final = {"UTF-8": "utf-8", "GB18030": "gb18030"}
"""The encodings of files, as their first line names them."""

UTC8: Final = datetime.timezone(datetime.timedelta(hours=8))
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+08:00", re.ASCII)
_DIGEST: Final = re.compile(rb"DIGEST,SM3,([0-9a-f]{64})\r?\n?")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")


class FileError(FileFault):
    """A participant's or a bank's file is not what it should be. Nothing of it counts."""


# ---- single values ----


def local_time(time_us: int) -> str:
    """A time in µs since 1970 as it stands in files: UTC+8, to the second."""
    return (_EPOCH + datetime.timedelta(seconds=time_us // 1_000_000)).astimezone(UTC8).isoformat()


def parse_local_time(text: str) -> int:
    """The time in µs of what `local_time` writes. Raises ValueError."""
    if not _TIME.fullmatch(text):
        raise ValueError(f"a time like 2026-01-31T08:30:15+08:00 is wanted, not {text!r}")
    return (datetime.datetime.fromisoformat(text) - _EPOCH) // datetime.timedelta(microseconds=1)


def parse_integer(text: str) -> int:
    """An integer without leading zeros, of up to 18 digits. Raises ValueError."""
    if not _INTEGER.fullmatch(text) or text == "-0":
        raise ValueError(f"an integer is wanted, not {text!r}")
    return int(text)


def parse_count(text: str) -> int:
    """An integer that is not negative. Raises ValueError."""
    if (value := parse_integer(text)) < 0:
        raise ValueError(f"a number from 0 on is wanted, not {text!r}")
    return value


def parse_date(text: str) -> int:
    """A date YYYYMMDD that exists. Raises ValueError."""
    if not re.fullmatch(r"20\d{6}", text, re.ASCII):
        raise ValueError(f"a date like 20260131 is wanted, not {text!r}")
    try:
        datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError as error:
        raise ValueError(f"there is no day {text}") from error
    return int(text)


def among(words: Mapping[str, Value]) -> Callable[[str], Value]:
    """A parser of one of some words."""

    def parse(text: str) -> Value:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)} is wanted, not {text!r}")
        return words[text]

    return parse


def text_of(length_max: int, pattern: str = ".+") -> Callable[[str], str]:
    """A parser of printable text of 1 (or 0, where the pattern allows it) to `length_max` characters."""
    wanted = re.compile(pattern)

    def parse(text: str) -> str:
        if len(text) > length_max or not wanted.fullmatch(text) or not text.isprintable():
            raise ValueError(f"up to {length_max} printable characters are wanted, not {text[: length_max + 1]!r}")
        return text

    return parse


# ---- writing ----


def build(
    encoding: str,
    headers: Sequence[tuple[str, object]],
    tag: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    total: Sequence[object],
) -> bytes:
    """The bytes of a file, its digest included. `total` begins behind the number of rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("HEADER", "encoding", encoding))
    writer.writerows(("HEADER", name, value) for name, value in headers)
    writer.writerow(("COLUMNS", *columns))
    writer.writerows((tag, *row) for row in rows)
    writer.writerow(("TOTAL", len(rows), *total))
    return with_digest(text.getvalue().encode(CODECS[encoding]))


def with_digest(body: bytes) -> bytes:
    """A file's bytes with the line of their digest behind them."""
    return body + b"DIGEST,SM3,%s\n" % sm3(body).hex().encode()


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder with these files, all or nothing, durable when this returns. Where it is there already with the same
    content nothing is done; with other content it is left alone and DataError names the file."""
    if target.exists():
        _compare_folder(target, files)
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        # 1. What a kill left of an earlier attempt goes.
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True, mode=0o700)
        # 2. All files are written, then synced: the first sync takes most of the others along.
        for name, content in files.items():
            (partial / name).write_bytes(content)
        for name in files:
            _sync(partial / name)
        _sync(partial)
        # 3. They get their name at once.
        partial.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise DataError(f"{target}: {error.strerror}") from error


def _compare_folder(target: Path, files: Mapping[str, bytes]) -> None:
    try:
        there = {path.name: path.read_bytes() for path in target.iterdir()}
    except OSError as error:
        raise DataError(f"{target}: {error.strerror}") from error
    for name in sorted({*there, *files}):
        if there.get(name) != files.get(name):
            raise DataError(f"{target / name}: is already there, or missing there, with other content; nothing was written")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading ----


class Row:
    """One row: its line, and its cells by name."""

    def __init__(self, file: str, line: int, cells: dict[str, str]) -> None:
        self._file = file
        self.line = line
        self._cells = cells

    def get(self, field: str, parse: Callable[[str], Value]) -> Value:
        """A cell, parsed. Raises FileError with the parser's reason."""
        try:
            return parse(self._cells[field])
        except ValueError as error:
            self.fail(field, str(error))

    def fail(self, field: str, reason: str) -> NoReturn:
        raise FileError(self._file, self.line, field, reason)


class Sheet:
    """A file's bytes, read: its headers, its rows and its totals. Raises FileError."""

    def __init__(
        self,
        name: str,
        raw: bytes,
        *,
        headers: Sequence[str],
        tag: str,
        columns: Sequence[str],
        totals: Sequence[str],
        digest_wanted: bool,
        rows_max: int,
    ) -> None:
        self.name = name
        self.encoding, lines, self.digest = self._lines(raw, digest_wanted)
        expected = [("HEADER", header) for header in ("encoding", *headers)]
        # Headers, each in its place, then the columns.
        if len(lines) < len(expected) + 2:
            raise FileError(name, len(lines) + 1, "", "the file ends too early")
        self.headers: dict[str, Row] = {}
        for line, (wanted, got) in enumerate(zip(expected, lines, strict=False), 1):
            if len(got) != 3 or (got[0], got[1]) != wanted:
                raise FileError(name, line, wanted[1], f"the line HEADER,{wanted[1]},… is wanted here")
            self.headers[wanted[1]] = Row(name, line, {wanted[1]: got[2]})
        at = len(expected)
        if lines[at] != ["COLUMNS", *columns]:
            raise FileError(name, at + 1, "COLUMNS", f"COLUMNS,{','.join(columns)} is wanted here")
        # Rows up to the last line, which has the totals.
        self.rows: list[Row] = []
        for line, got in enumerate(lines[at + 1 : -1], at + 2):
            if not got or got[0] != tag:
                raise FileError(name, line, "", f"a row {tag},… is wanted here")
            if len(got) != len(columns) + 1:
                raise FileError(name, line, "", f"{len(columns)} columns are wanted behind {tag}, not {len(got) - 1}")
            self.rows.append(Row(name, line, dict(zip(columns, got[1:], strict=True))))
        if len(self.rows) > rows_max:
            raise FileError(name, at + 2 + rows_max, "", f"more than {rows_max} rows")
        last = lines[-1]
        if len(last) != len(totals) + 2 or last[0] != "TOTAL":
            raise FileError(name, len(lines), "TOTAL", f"TOTAL,count,{','.join(totals)} is wanted here")
        self.total = Row(name, len(lines), dict(zip(("count", *totals), last[1:], strict=True)))
        if (count := self.total.get("count", parse_count)) != len(self.rows):
            self.total.fail("count", f"there are {len(self.rows)} rows, not {count}")

    def header(self, name: str, parse: Callable[[str], Value]) -> Value:
        return self.headers[name].get(name, parse)

    def _lines(self, raw: bytes, digest_wanted: bool) -> tuple[str, list[list[str]], bytes]:
        name = self.name
        ends = raw.splitlines(keepends=True)
        first = ends[0].rstrip(b"\r\n") if ends else b""
        encoding = first.removeprefix(b"HEADER,encoding,").decode("ascii", "replace")
        if not first.startswith(b"HEADER,encoding,") or encoding not in CODECS:
            raise FileError(name, 1, "encoding", f"HEADER,encoding,… with {' or '.join(CODECS)} is wanted here")
        if digest_wanted or ends[-1].startswith(b"DIGEST,"):
            stated = _DIGEST.fullmatch(ends[-1])
            if not stated:
                raise FileError(name, len(ends), "DIGEST", "the last line must be DIGEST,SM3, and 64 hex digits")
            digest = sm3(raw[: len(raw) - len(ends[-1])])
            if digest.hex() != stated[1].decode():
                raise FileError(name, len(ends), "DIGEST", "the bytes before this line have another SM3 digest")
            ends.pop()
        else:
            digest = sm3(raw)
        lines = []
        # No character of GB 18030 has the byte of a line's end in it, so lines may be split before they are decoded.
        for line, content in enumerate(ends, 1):
            if not content.endswith(b"\n"):
                raise FileError(name, line, "", "the line does not end in LF")
            try:
                text = content.decode(CODECS[encoding])
            except UnicodeDecodeError as error:
                raise FileError(name, line, "", f"is not {encoding}") from error
            try:
                (cells,) = csv.reader([text], strict=True)
            except (csv.Error, ValueError) as error:
                raise FileError(name, line, "", "is not CSV with one row a line") from error
            lines.append(cells)
        return encoding, lines, digest
