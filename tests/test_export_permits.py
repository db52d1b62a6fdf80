"""An export of a data directory that has callers takes two operators, and one permit is one export, whatever is cut off."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_port import ServicePort, department, operator

from yikatong.core import limits
from yikatong.core.access import export_permits
from yikatong.core.change import Change
from yikatong.core.errors import Forbidden, InvalidRequest
from yikatong.core.journal import sm3
from yikatong.core.types import DocumentKind, Result
from yikatong.v1 import export_service_pb2 as pb

LI, WANG = operator("li"), operator("wang")
PERMIT = "ExportService/PermitExport"
PURPOSE = "年度审计 2026"
CLI = (sys.executable, "-m", "yikatong.core.cli")


@pytest.fixture
def port(tmp_path: Path, key_file: Path) -> Iterator[ServicePort]:
    with ServicePort(tmp_path / "data", key_file) as made:
        made.ask(export_permits.want)
        yield made


def permit(port: ServicePort, form: int = pb.EXPORT_FORMAT_CSV) -> str:
    """As two operators make one; its id."""
    asked = pb.PermitExportRequest(request_id=os.urandom(16), format=form, purpose=PURPOSE)
    proposed = port.call(PERMIT, asked, caller=LI)
    assert proposed.result == Result.APPROVAL_PENDING
    assert not proposed.permit.permit_id
    digest = sm3(asked.SerializeToString())
    fields = {"approval_id": proposed.approval_id, "request_digest": digest}
    assert port.call("ApprovalService/ApproveRequest", caller=LI, **fields).result == Result.SAME_ACTOR
    assert port.call("ApprovalService/ApproveRequest", caller=WANG, **fields).executed_result == Result.ACCEPTED
    done = port.call(PERMIT, asked, caller=LI)
    assert (done.result, done.duplicate, done.permit.purpose) == (Result.ACCEPTED, True, PURPOSE)
    return str(done.permit.permit_id)


def run(tmp_path: Path, permit_id: str = "", form: str = "csv", name: str = "journal", says: str = "") -> Path:
    """As a user exports; with `says` it is refused with these words, and there is no file."""
    out = tmp_path / f"{name}.{form}"
    words = [*CLI, "export", "--data", tmp_path / "data", "--format", form, "--out", out, "--permit", permit_id]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if says:
        assert done.returncode == 1
        assert says in done.stderr
        assert not out.exists()
    else:
        assert done.returncode == 0, done.stderr
    return out


def log(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "data" / export_permits.LOG).read_text().splitlines()]


def test_one_permit_is_one_export(port: ServicePort, tmp_path: Path) -> None:
    run(tmp_path, says="permit: an export of this data directory takes two operators")
    permit_id = permit(port)
    out = run(tmp_path, permit_id)
    assert "export-permitted" in out.read_text()
    run(tmp_path, permit_id, name="again", says=f"permit: {permit_id} was used")
    assert [(line["permit"], line["step"]) for line in log(tmp_path)] == [(permit_id, "begun"), (permit_id, "done")]
    second = permit(port, pb.EXPORT_FORMAT_PARQUET)
    run(tmp_path, second, "parquet")
    listed = port.call("ExportService/ListExportPermits", caller=WANG).permits
    assert [each.permit_id for each in listed] == [second, permit_id]
    assert not list(tmp_path.glob("again*"))


def test_permits_that_do_not_do(port: ServicePort, tmp_path: Path) -> None:
    permit_id = permit(port)
    run(tmp_path, permit_id, "parquet", says=f"permit: {permit_id} is not for parquet")
    run(tmp_path, "nonsense", says="permit: 16 hex digits are wanted")
    run(tmp_path, "0123456789abcdef", says="there is no permit 0123456789abcdef")

    def let_expire(memory: Any, time_us: int) -> None:
        (kept,) = export_permits.list_export_permits(memory, pb.ListExportPermitsRequest(), time_us).permits
        assert kept.expires_us == kept.permitted_us + limits.EXPORT_PERMIT_S * 1_000_000
        kept.expires_us = time_us
        change = Change(memory, time_us)
        change.put(DocumentKind.EXPORT_PERMIT, b"p" + bytes.fromhex(permit_id), kept.SerializeToString())
        change.commit("test")

    port.ask(let_expire)
    run(tmp_path, permit_id, says=f"permit: {permit_id} is over")
    assert not (tmp_path / "data" / export_permits.LOG).exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"format": pb.EXPORT_FORMAT_UNSPECIFIED, "purpose": PURPOSE},
        {"format": pb.EXPORT_FORMAT_CSV, "purpose": ""},
        {"format": pb.EXPORT_FORMAT_CSV, "purpose": "x" * (limits.PURPOSE_CHARACTERS_MAX + 1)},
        {"format": pb.EXPORT_FORMAT_CSV, "purpose": "a\nb"},
    ],
)
def test_requests_that_cannot_be(port: ServicePort, fields: dict[str, Any]) -> None:
    message = pb.PermitExportRequest(request_id=bytes(16), **fields)
    with pytest.raises(InvalidRequest, match=r"^(format|purpose): "):
        port.ask(lambda memory, time_us: export_permits.permit_export(memory, message, time_us))


def test_only_operators(port: ServicePort) -> None:
    with pytest.raises(Forbidden):
        port.call("ExportService/ListExportPermits", caller=department("hrss"))


def test_a_directory_that_never_had_callers(tmp_path: Path, key_file: Path) -> None:
    with ServicePort(tmp_path / "data", key_file) as port:
        run(tmp_path)
        run(tmp_path, "0123456789abcdef", name="other", says="there is no permit")
        port.ask(export_permits.want)
        before = port.core.journal.next_sequence
        port.ask(export_permits.want)
        assert port.core.journal.next_sequence == before
    run(tmp_path, name="later", says="takes two operators")


def test_cut_off_and_done_again(port: ServicePort, tmp_path: Path) -> None:
    """Killed while the file is being written: what stands there is no export, and the permit is good for another try."""
    permit_id = permit(port)
    script = (
        "import os, signal, sys; from pathlib import Path; from yikatong.core import export; "
        "export._batches = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
        "export.export(Path(sys.argv[1]), Path(sys.argv[2]), 'csv', export.EngineSettings(), permit=sys.argv[3])"
    )
    child = subprocess.run([sys.executable, "-c", script, tmp_path / "data", tmp_path / "journal.csv", permit_id], check=False)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "journal.csv").exists()
    with (tmp_path / "data" / export_permits.LOG).open("ab") as file:
        file.write(b'{"permit": "' + permit_id.encode() + b'", "step": "do')  # a line that the crash cut off
    run(tmp_path, permit_id)
    assert [line["step"] for line in log(tmp_path)] == ["begun", "begun", "done"]
    run(tmp_path, permit_id, name="again", says="was used")


def test_two_at_once(port: ServicePort, tmp_path: Path) -> None:
    permit_id = permit(port)
    with export_permits._log(tmp_path / "data" / export_permits.LOG):
        run(tmp_path, permit_id, says="another export is under way")
    run(tmp_path, permit_id)
