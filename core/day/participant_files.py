"""A participant's tap file, from its bytes to exceptions: read and compared beside the writer, booked by it.

A participant may send a better file for the same date: what it no longer differs in is resolved, what it still differs in stays
the exception that it was."""

import mmap
from pathlib import Path
from typing import Final

import numpy as np

from yikatong.core import limits
from yikatong.core.change import Change, answered
from yikatong.core.day import reconcile
from yikatong.core.day.exceptions import ExceptionEvent, advance, note, of_event, open_exception
from yikatong.core.day.reconcile import Array, OwnTaps
from yikatong.core.day.tap_file import TapFile, read_tap_csv
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.files import FileError
from yikatong.core.journal import Journal, JournalReader
from yikatong.core.memory import EngineSettings, Memory
from yikatong.core.store import DataDirectory
from yikatong.core.types import DocumentKind, Result, wire
from yikatong.v1 import journal_pb2, reconciliation_service_pb2

Request = reconciliation_service_pb2.IngestParticipantFileRequest
Response = reconciliation_service_pb2.IngestParticipantFileResponse
_BY: Final = "reconciliation"


def read(request: Request) -> TapFile:
    """The file in a request. Raises InvalidRequest with its line and field."""
    try:
        return read_tap_csv(request.name, request.content)
    except FileError as error:
        raise InvalidRequest("content", str(error)) from error


def before(memory: Memory, request: Request, other: TapFile) -> Response | int:
    """The answer that the request or the same file got before; else the account to compare it with. Raises NotFound."""
    if (answer := answered(memory, request, Response)) is not None:
        return answer
    earlier = _earlier(memory, other)
    if earlier.digest == other.digest:
        answer = Response.FromString(earlier.response)
        answer.duplicate = True
        return answer
    account = memory.account(other.participant)
    if account is None:
        raise NotFound("participant", other.participant)
    return account


def named(memory: Memory, own: OwnTaps) -> OwnTaps:
    """The journal's taps with terminal numbers."""
    return reconcile.named(own, lambda slot: bytes(memory.engine.terminal(slot)["terminal_number"]))


def book(memory: Memory, request: Request, other: TapFile, own: OwnTaps, differences: Array, time_us: int) -> Response:
    """Make exceptions of the differences. Beyond DIFFERENCES_MAX of them none is made, and the answer says so."""
    if (answer := answered(memory, request, Response)) is not None:  # another call may have been quicker
        return answer
    change = Change(memory, time_us)
    of_window = own.settlement_date == other.settlement_date
    response = Response(
        result=wire(Result.ACCEPTED),
        file_taps=len(other.taps),
        journal_taps=int(of_window.sum()),
        file_fen=int(other.taps.amount_fen.sum()),
        journal_fen=int(own.taps.amount_fen[of_window].sum()),
    )
    for kind, count in enumerate(np.bincount(differences["kind"]).tolist()):
        if count:
            response.counts.add(kind=wire(kind), count=count)
    if len(differences) > limits.DIFFERENCES_MAX:
        response.result = wire(Result.TOO_MANY_DIFFERENCES)
        return change.answer(request, response, "participant-file-refused")
    told = {
        _identity(message): message
        for message in (reconcile.message_of(difference, other.participant, other.settlement_date) for difference in differences)
    }
    earlier = _earlier(memory, other)
    for sequence in earlier.sequences:
        for exception in of_event(memory, sequence):
            if told.pop(_identity(exception.difference), None) is None:
                gone = note(_BY, time_us, f"{other.name}: no longer differs"[: limits.NOTE_CHARACTERS_MAX])
                advance(change, exception, ExceptionEvent.RESOLVE, gone)
    for at, message in enumerate(told.values()):
        open_exception(change, at, message, time_us)
    response.sequence = change.sequence
    kept = journal_pb2.ParticipantFiles(
        digest=other.digest,
        response=response.SerializeToString(deterministic=True),
        sequences=[*earlier.sequences, *([change.sequence] if told else [])],
    )
    change.put(DocumentKind.PARTICIPANT_FILES, _key(other), kept.SerializeToString(deterministic=True))
    return change.answer(request, response, "participant-file-compared")


def compare_offline(path: Path, file: Path, settings: EngineSettings) -> tuple[TapFile, OwnTaps, Array]:
    """A file of any size, held against a data directory (a server may be running): the file, the journal's taps, and the
    differences. Nothing is booked. Raises FileError, NotFound or DataError."""
    try:
        with file.open("rb") as opened:
            raw = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise FileError(str(file), 0, "", f"cannot be read: {error}") from error
    other = read_tap_csv(str(file), memoryview(raw))
    with DataDirectory(path, readonly=True) as directory:
        memory = Memory(directory, Journal(directory.journal), [], settings)
        try:
            memory.restore()
            account = memory.account(other.participant)
            if account is None:
                raise NotFound("participant", other.participant)
            with JournalReader(directory.journal) as reader:
                own = named(memory, reconcile.own_taps(reader, account, other.settlement_date))
        finally:
            memory.close()
    return other, own, reconcile.reconcile_taps(own, other)


def _key(other: TapFile) -> bytes:
    return f"{other.settlement_date}{other.participant}".encode()


def _earlier(memory: Memory, other: TapFile) -> journal_pb2.ParticipantFiles:
    value = memory.documents.get(DocumentKind.PARTICIPANT_FILES, _key(other))
    return journal_pb2.ParticipantFiles.FromString(value) if value is not None else journal_pb2.ParticipantFiles()


def _identity(difference: reconciliation_service_pb2.Difference) -> bytes:
    """What makes it the same difference in another file. Duplicates of one tap are told apart by their line."""
    same = reconciliation_service_pb2.Difference()
    same.CopyFrom(difference)
    if difference.kind != reconciliation_service_pb2.Difference.KIND_DUPLICATE:
        same.line = 0
    return same.SerializeToString(deterministic=True)
