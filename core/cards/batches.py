"""Batches of applications: a file of up to 100,000 people, uploaded in parts of whole lines, each row done exactly once.

Nothing of a file is kept but its rows' results: what is personal in it is sealed with the person. A part is read beside the
writer; its rows are done BATCH_ROWS_AT_ONCE at a time, each such slice in one change with the batch's new state. After a crash
the batch says how far it is, and a part that comes again is taken up from there.

Documents of kind APPLICATION_BATCH:
    "b", batch id (16)             → Batch
    "r", batch id (16), line (4)   → BatchRow"""

import csv
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from yikatong.core import limits
from yikatong.core.access import audit
from yikatong.core.access.callers import Caller
from yikatong.core.cards import issuance
from yikatong.core.change import Change, answered
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.identity import persons
from yikatong.core.identity.identifiers import is_within
from yikatong.core.identity.persons import PersonData
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.memory import Memory
from yikatong.core.paging import page_size, page_token, parse_page_token
from yikatong.core.rules.card_rules import CardRules
from yikatong.core.types import DocumentKind, Result, wire
from yikatong.ext.engine import settlement_date
from yikatong.v1 import access_pb2
from yikatong.v1 import issuance_service_pb2 as pb

BATCH_ID_BYTES: Final = 16
FIRST_LINE: Final = 2  # the first is that of the columns
WANTED: Final = ("name", "citizen_number", "district")
COLUMNS: Final = (*WANTED, "phone", "address")
KINDS: Final = (issuance.ORDINARY, issuance.EXPEDITED, issuance.INSTANT)
CODECS: Final = {pb.BATCH_ENCODING_UTF8: "utf-8", pb.BATCH_ENCODING_GB18030: "gb18030"}
_BATCH, _ROW = b"b", b"r"


class Row(NamedTuple):
    """A line of a file: a person's data, or the field that is at fault and why."""

    line: int
    data: PersonData
    field: str = ""
    reason: str = ""


# ---- files ----


def read_rows(batch: pb.Batch, first_line: int, content: bytes) -> list[Row]:
    """The rows of a part. Raises InvalidRequest where it is none of this batch; a row that cannot be read is a row at fault."""
    if not 1 <= len(content) <= limits.BATCH_BYTES_MAX:
        raise InvalidRequest("content", f"1 to {limits.BATCH_BYTES_MAX} bytes are wanted")
    lines = content.removesuffix(b"\n").split(b"\n")
    last = first_line + len(lines) - 1
    if not FIRST_LINE <= first_line <= last < FIRST_LINE + batch.rows_total:
        raise InvalidRequest("first_line", f"lines {first_line} to {last} are not all among the batch's {batch.rows_total} rows")
    codec = CODECS[batch.encoding]
    return [_read_row(line, raw.removesuffix(b"\r"), codec, batch.columns) for line, raw in enumerate(lines, first_line)]


def _read_row(line: int, raw: bytes, codec: str, columns: Sequence[str]) -> Row:
    if len(raw) > limits.BATCH_LINE_BYTES_MAX:
        return Row(line, PersonData(), "", f"a line has at most {limits.BATCH_LINE_BYTES_MAX} bytes")
    try:
        text = raw.decode(codec)
        values = next(csv.reader([text], strict=True), [])
    except UnicodeDecodeError:
        return Row(line, PersonData(), "", f"is not {codec.upper()}")
    except csv.Error:
        return Row(line, PersonData(), "", "is not CSV: a quote is open, or does not end its field")
    if len(values) != len(columns):
        return Row(line, PersonData(), "", f"{len(columns)} fields are wanted, and there are {len(values)}")
    return Row(line, PersonData(**{column: value.strip() for column, value in zip(columns, values, strict=True)}))


# ---- documents ----


def _load(memory: Memory, batch_id: bytes) -> pb.Batch | None:
    value = memory.documents.get(DocumentKind.APPLICATION_BATCH, _BATCH + batch_id)
    return None if value is None else pb.Batch.FromString(value)


def find_batch(memory: Memory, batch_id: bytes, caller: Caller) -> pb.Batch:
    """A batch of the caller's; operators of this core see all. Raises NotFound."""
    batch = _load(memory, batch_id)
    if batch is None or (batch.caller != str(caller) and caller.role != access_pb2.ROLE_OPERATOR):
        raise NotFound("batch", batch_id.hex())
    return batch


# ---- rpcs ----


def open_batch(memory: Memory, request: pb.OpenBatchRequest, time_us: int, caller: Caller) -> pb.OpenBatchResponse:
    """IssuanceService.OpenBatch."""
    if request.kind not in KINDS:
        raise InvalidRequest("kind", "ORDINARY, EXPEDITED or INSTANT is wanted")
    if request.encoding not in CODECS:
        raise InvalidRequest("encoding", "UTF8 or GB18030 is wanted")
    for at, column in enumerate(request.columns):
        if column not in COLUMNS or column in request.columns[:at]:
            raise InvalidRequest(f"columns[{at}]", f"one of {', '.join(COLUMNS)} is wanted, each once")
    if missing := [column for column in WANTED if column not in request.columns]:
        raise InvalidRequest("columns", f"{', '.join(missing)} is missing")
    if not 1 <= request.rows_total <= limits.BATCH_ROWS_MAX:
        raise InvalidRequest("rows_total", f"1 to {limits.BATCH_ROWS_MAX} is wanted")
    if (again := answered(memory, request, pb.OpenBatchResponse)) is not None:
        return again
    batch = pb.Batch(
        batch_id=request.request_id,
        kind=request.kind,
        encoding=request.encoding,
        columns=request.columns,
        rows_total=request.rows_total,
        caller=str(caller),
    )
    change = Change(memory, time_us)
    _keep(change, batch)
    response = pb.OpenBatchResponse(result=wire(Result.ACCEPTED), batch_id=batch.batch_id)
    return change.answer(request, response, "batch-opened")


def _keep(change: Change, batch: pb.Batch) -> None:
    change.put(DocumentKind.APPLICATION_BATCH, _BATCH + batch.batch_id, batch.SerializeToString(deterministic=True))


def upload(
    rules: CardRules, provider: KeyProvider, request: pb.UploadBatchRowsRequest, caller: Caller, ask: Callable[[Any], Any]
) -> pb.UploadBatchRowsResponse:
    """IssuanceService.UploadBatchRows, on a thread of its own; `ask(command)` runs `command(memory, time_us)` on the writer's,
    and returns its answer once that is durable."""
    batch = ask(lambda memory, _: find_batch(memory, request.batch_id, caller))
    rows = read_rows(batch, request.first_line, request.content)
    for at in range(0, len(rows), limits.BATCH_ROWS_AT_ONCE):
        part = rows[at : at + limits.BATCH_ROWS_AT_ONCE]
        if part[-1].line < FIRST_LINE + batch.rows_done:
            continue
        batch = ask(lambda memory, time_us, part=part: do_rows(rules, provider, memory, request.batch_id, part, time_us, caller))
    return pb.UploadBatchRowsResponse(batch=batch)


def do_rows(
    rules: CardRules, provider: KeyProvider, memory: Memory, batch_id: bytes, rows: Sequence[Row], time_us: int, caller: Caller
) -> pb.Batch:
    """Do the rows of a slice that were not done before, in one change: persons who are new are registered, and all apply. Raises
    InvalidRequest where rows before them are missing."""
    batch = find_batch(memory, batch_id, caller)
    following = FIRST_LINE + batch.rows_done
    rows = [row for row in rows if row.line >= following]
    if not rows:
        return batch
    if rows[0].line != following:
        raise InvalidRequest("first_line", f"line {following} is the next")
    change = Change(memory, time_us)
    today = settlement_date(time_us)
    results = [_refuse(provider, memory, row, today, time_us, caller) for row in rows]
    lines: dict[str, int] = {}
    for at, row in enumerate(rows):
        if results[at].result == wire(Result.ACCEPTED):
            if row.data.citizen_number in lines:
                first = lines[row.data.citizen_number]
                results[at] = _row(row, Result.APPLICATION_OPEN, "citizen_number", f"stands on line {first} too")
            else:
                lines[row.data.citizen_number] = row.line
    accepted = [at for at, result in enumerate(results) if result.result == wire(Result.ACCEPTED)]
    known = {at: persons.find(memory, provider, rows[at].data.citizen_number) for at in accepted}
    new = [at for at in accepted if known[at] is None]
    known |= dict(zip(new, persons.add(provider, memory, change, [rows[at].data for at in new]), strict=True))
    for place, at in enumerate(accepted):
        person_id = known[at]
        assert person_id is not None
        application = pb.Application(person_id=person_id, kind=batch.kind, batch_id=batch_id)
        results[at].application_id = issuance.add(rules, change, place, application)
        audit.note(change, caller, "IssuanceService.UploadBatchRows", person_id)
    for result in results:
        key = _ROW + batch_id + result.line.to_bytes(4, "big")
        change.put(DocumentKind.APPLICATION_BATCH, key, result.SerializeToString(deterministic=True))
    batch.rows_done += len(rows)
    batch.rows_accepted += len(accepted)
    _keep(change, batch)
    change.commit("batch-rows")
    return batch


def _row(row: Row, result: Result, field: str = "", reason: str = "") -> pb.BatchRow:
    return pb.BatchRow(line=row.line, result=wire(result), field=field, reason=reason)


def _refuse(provider: KeyProvider, memory: Memory, row: Row, today: int, time_us: int, caller: Caller) -> pb.BatchRow:
    """A row's result as far as the rows beside it do not matter. Reasons never hold what the row holds."""
    if row.reason:
        return _row(row, Result.ROW_INVALID, row.field, row.reason)
    if fault := persons.data_fault(row.data, today):
        return _row(row, Result.ROW_INVALID, *fault)
    if not is_within(row.data.district, caller.district):
        return _row(row, Result.ROW_INVALID, "district", f"{caller.district} or a part of it is wanted")
    person_id = persons.find(memory, provider, row.data.citizen_number)
    if person_id is None:
        return _row(row, Result.ACCEPTED)
    if not persons.is_visible(caller, persons.load(memory, person_id)):
        return _row(row, Result.PERSON_UNKNOWN, "citizen_number", "is registered in another district")
    if refused := issuance.application_refused(memory, person_id, time_us):
        return _row(row, refused, "citizen_number", "has a card" if refused is Result.CARD_PRESENT else "has applied")
    return _row(row, Result.ACCEPTED)


def get_batch(memory: Memory, request: pb.GetBatchRequest, time_us: int, caller: Caller) -> pb.GetBatchResponse:
    """IssuanceService.GetBatch."""
    del time_us
    return pb.GetBatchResponse(batch=find_batch(memory, request.batch_id, caller))


def list_batch_rows(memory: Memory, request: pb.ListBatchRowsRequest, time_us: int, caller: Caller) -> pb.ListBatchRowsResponse:
    """IssuanceService.ListBatchRows."""
    del time_us
    find_batch(memory, request.batch_id, caller)
    size = page_size(request.page_size)
    of = b"rows" + request.batch_id + bytes([request.failed_only])
    first = _ROW + request.batch_id
    start = first + (parse_page_token(request.page_token, of, 4) if request.page_token else b"")
    response = pb.ListBatchRowsResponse()
    for looked_at, (key, value) in enumerate(memory.documents.scan(DocumentKind.APPLICATION_BATCH, start, first + b"\xff" * 5)):
        if len(response.rows) == size or looked_at == limits.SCAN_DOCUMENTS_MAX:
            response.next_page_token = page_token(key[len(first) :], of)
            break
        row = pb.BatchRow.FromString(value)
        if not (request.failed_only and row.result == wire(Result.ACCEPTED)):
            response.rows.append(row)
    return response
