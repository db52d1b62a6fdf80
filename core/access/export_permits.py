"""Bulk exports need two operators: `yikatong export` writes the journal out only by a permit (ExportService) that one asked for
and another approved, good for one export.

An export that was killed between its file's end and the line in exports.log may be done again, and a copy of the directory
without that log knows of no use. A data directory that was ever served to callers with certificates wants permits, and says so
itself. In one that never was, there is nobody yet who could be told apart. Whoever can read the directory's files needs no export
to read them: who that is, is the machine's own business."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from yikatong.core import limits
from yikatong.core.change import Change, answered
from yikatong.core.errors import Damaged, DataError, InvalidRequest
from yikatong.core.memory import Memory
from yikatong.core.messages import check_line
from yikatong.core.paging import kept, key_of, page
from yikatong.core.types import DocumentKind, Result, wire
from yikatong.v1 import export_service_pb2 as pb

LOG: Final = "exports.log"
FORMATS: Final = {"parquet": pb.EXPORT_FORMAT_PARQUET, "csv": pb.EXPORT_FORMAT_CSV}
US: Final = 1_000_000
_WANTED: Final = b"w"
_PERMIT: Final = b"p"
_KEY_BYTES: Final = 8
_LAST: Final = (1 << 64) - 1
_parse = pb.ExportPermit.FromString


def are_wanted(memory: Memory) -> bool:
    """Whether this data directory was ever served to callers with certificates."""
    return memory.documents.get(DocumentKind.EXPORT_PERMIT, _WANTED) is not None


def want(memory: Memory, time_us: int) -> None:
    """From now on an export of this data directory wants a permit."""
    if not are_wanted(memory):
        change = Change(memory, time_us)
        change.put(DocumentKind.EXPORT_PERMIT, _WANTED, b"")
        change.commit("export-permits-wanted")


# ---- ExportService ----


def permit_export(memory: Memory, request: pb.PermitExportRequest, time_us: int) -> pb.PermitExportResponse:
    """ExportService.PermitExport, once two operators want it."""
    if request.format not in FORMATS.values():
        raise InvalidRequest("format", f"{' or '.join(FORMATS)} is wanted")
    check_line("purpose", request.purpose)
    if (again := answered(memory, request, pb.PermitExportResponse)) is not None:
        return again
    change = Change(memory, time_us)
    key = (_LAST - change.sequence).to_bytes(_KEY_BYTES, "big")  # newest first
    permit = pb.ExportPermit(
        permit_id=key.hex(), format=request.format, purpose=request.purpose, permitted_us=time_us,
        expires_us=time_us + limits.EXPORT_PERMIT_S * US,
    )  # fmt: skip
    change.put(DocumentKind.EXPORT_PERMIT, _PERMIT + key, permit.SerializeToString(deterministic=True))
    response = pb.PermitExportResponse(result=wire(Result.ACCEPTED), permit=permit)
    return change.answer(request, response, "export-permitted")


def list_export_permits(memory: Memory, request: pb.ListExportPermitsRequest, _: int) -> pb.ListExportPermitsResponse:
    """ExportService.ListExportPermits."""
    found, token = page(
        memory, DocumentKind.EXPORT_PERMIT, _parse, size=request.page_size, token=request.page_token, prefix=_PERMIT
    )  # fmt: skip
    return pb.ListExportPermitsResponse(permits=found, next_page_token=token)


# ---- using one ----


@contextlib.contextmanager
def using(memory: Memory, path: Path, permit_id: str, form: str, out: Path, now_us: int) -> Iterator[None]:
    """Around an export of the data directory at `path` to `out`: refuse it without a permit where one is wanted; write into
    exports.log that it began and, once `out` is whole, that it was done. One that was cut off may be done again.

    Raises InvalidRequest (permit): none, another format's, over, or used; DataError where the log cannot be written, or another
    export is under way."""
    if not permit_id and not are_wanted(memory):
        yield
        return
    permit = _permit(memory, permit_id, form, now_us)
    with _log(path / LOG) as log:
        if any(line["permit"] == permit.permit_id and line["step"] == "done" for line in _lines(log, path / LOG)):
            raise InvalidRequest("permit", f"{permit_id} was used: one permit is one export")
        _write(log, path / LOG, {"permit": permit.permit_id, "step": "begun", "out": str(out), "purpose": permit.purpose})
        yield
        with out.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _write(log, path / LOG, {"permit": permit.permit_id, "step": "done", "out": str(out), "sha256": digest})


def _permit(memory: Memory, permit_id: str, form: str, now_us: int) -> pb.ExportPermit:
    if not permit_id:
        raise InvalidRequest("permit", "an export of this data directory takes two operators: see `yikatong approvals export`")
    key = key_of("permit", permit_id, _KEY_BYTES)
    permit = kept(memory, DocumentKind.EXPORT_PERMIT, _parse, "permit", _PERMIT + key, permit_id)
    if permit.format != FORMATS[form]:
        raise InvalidRequest("permit", f"{permit_id} is not for {form}")
    if now_us >= permit.expires_us:
        raise InvalidRequest("permit", f"{permit_id} is over")
    return permit


@contextlib.contextmanager
def _log(path: Path) -> Iterator[int]:
    """The log's descriptor; this process alone has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise DataError(f"{path}: another export is under way") from error
    finally:
        os.close(descriptor)


def _lines(descriptor: int, path: Path) -> list[dict[str, Any]]:
    """What stands there; a last line that was cut off by a crash did not become one."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, size, 0)
    whole, _, cut = text.rpartition(b"\n")
    if cut:
        os.ftruncate(descriptor, size - len(cut))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise Damaged(f"{path}: it holds a line that is not JSON") from error


def _write(descriptor: int, path: Path, line: dict[str, Any]) -> None:
    """Add a line, durably."""
    try:
        os.write(descriptor, json.dumps({"time_us": time.time_ns() // 1_000} | line, ensure_ascii=False).encode() + b"\n")
        os.fsync(descriptor)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
