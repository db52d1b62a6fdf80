"""Batches of applications for cards, as a school or a company sends them: a CSV file, uploaded in parts.

The batch's id comes from the file's own bytes, so the same file sent again goes on where it stopped, and no row is done twice."""

import csv
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from yikatong.clients.connection import Connection, call
from yikatong.core.errors import FileFault, YikatongError
from yikatong.core.types import Result, wire
from yikatong.v1 import issuance_service_pb2 as pb

PART_BYTES: Final = 256 << 10  # some two thousand rows: seconds of work, so that the progress bar moves
PAGE_SIZE: Final = 1_000
CALL_S: Final = 120.0


class ApplicationFile(NamedTuple):
    """A file, read: its columns, and its rows as they stand there."""

    batch_id: bytes
    encoding: int
    columns: list[str]
    lines: list[bytes]


def read_file(path: Path, kind: int = pb.APPLICATION_KIND_ORDINARY) -> ApplicationFile:
    """A file in UTF-8 (with or without a mark) or else in GB 18030, its first line the columns. Raises FileFault."""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise FileFault(str(path), 0, "", error.strerror or "cannot be read") from error
    first, _, rest = raw.partition(b"\n")
    try:
        raw.decode("utf-8")
        encoding, codec = pb.BATCH_ENCODING_UTF8, "utf-8"
    except UnicodeDecodeError:
        encoding, codec = pb.BATCH_ENCODING_GB18030, "gb18030"
    try:
        columns = [column.strip() for column in next(csv.reader([first.decode(codec).rstrip("\r")], strict=True), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileFault(str(path), 1, "", "is no line of columns in UTF-8 or GB 18030") from error
    lines = rest.rstrip(b"\r\n").split(b"\n")
    if not rest.strip():
        raise FileFault(str(path), 2, "", "there is no row")
    return ApplicationFile(hashlib.sha256(bytes([kind]) + raw).digest()[:16], encoding, columns, lines)


def _parts(lines: list[bytes], done: int) -> Iterator[tuple[int, bytes]]:
    """Line number and bytes of each part, from a row on."""
    while done < len(lines):
        size, last = 0, done
        while last < len(lines) and (last == done or size + len(lines[last]) < PART_BYTES):
            size += len(lines[last]) + 1
            last += 1
        yield done + 2, b"\n".join(lines[done:last])
        done = last


def apply_file(
    connection: Connection, path: Path, kind: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> pb.Batch:
    """Apply for cards for the people in a file; the batch as it stands then. Raises FileFault, and grpc.RpcError for what the
    server refuses whole (a column that it does not know)."""
    file = read_file(path, kind)
    opening = pb.OpenBatchRequest(
        request_id=file.batch_id, kind=wire(kind), encoding=wire(file.encoding), columns=file.columns, rows_total=len(file.lines)
    )
    opened = call(connection.issuance.OpenBatch, opening)
    if opened.result != Result.ACCEPTED:
        raise YikatongError(f"{path}: the server answers {Result(opened.result).name}")
    batch: pb.Batch = call(connection.issuance.GetBatch, pb.GetBatchRequest(batch_id=file.batch_id)).batch
    progress(batch.rows_done, batch.rows_total)
    for first_line, content in _parts(file.lines, batch.rows_done):
        request = pb.UploadBatchRowsRequest(batch_id=file.batch_id, first_line=first_line, content=content)
        batch = call(connection.issuance.UploadBatchRows, request, timeout_s=CALL_S).batch
        progress(batch.rows_done, batch.rows_total)
    return batch


def rows(connection: Connection, batch_id: bytes, *, failed_only: bool = False) -> Iterator[pb.BatchRow]:
    """What became of each row, in order."""
    token = ""
    while True:
        request = pb.ListBatchRowsRequest(batch_id=batch_id, failed_only=failed_only, page_size=PAGE_SIZE, page_token=token)
        page = call(connection.issuance.ListBatchRows, request)
        yield from page.rows
        token = page.next_page_token
        if not token:
            return
