"""`yikatong cards apply`: a file in either encoding, a server that is killed in the middle, and the same file again."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from people import citizen_number

from yikatong.clients import applications
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.errors import FileFault
from yikatong.core.types import Result
from yikatong.v1 import issuance_service_pb2 as pb


def row(serial: int, birth: str = "19850521", name: str = "李雷") -> str:
    return f"{name},{citizen_number(serial, birth=birth)},441602,源城区"


def command(server: EmbeddedServer, file: Path) -> list[str]:
    return [sys.executable, "-m", "yikatong.core.cli", "cards", "apply", "--server", server.address, str(file)]


def run(server: EmbeddedServer, file: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command(server, file), *more], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_file_again_is_the_same_batch(server: EmbeddedServer, tmp_path: Path, codec: str) -> None:
    birth = {"utf-8": "19850101", "utf-8-sig": "19850102", "gb18030": "19850103"}[codec]
    lines = [
        "name,citizen_number,district,address",
        *(row(serial, birth) for serial in range(1, 6)),
        row(7, birth, ""),
        row(1, birth),
    ]
    file, failed = tmp_path / "school.csv", tmp_path / "failed.csv"
    file.write_bytes("\r\n".join(lines).encode(codec))
    first = run(server, file, "--failed", str(failed))
    assert first.returncode == 1
    assert "5 of 7 rows accepted" in first.stdout
    with failed.open(encoding="utf-8") as written:
        told = [(each["line"], each["result"], each["field"]) for each in csv.DictReader(written)]
    assert told == [("7", "ROW_INVALID", "name"), ("8", "APPLICATION_OPEN", "citizen_number")]
    again = run(server, file)
    assert again.stdout == first.stdout
    assert "Traceback" not in first.stderr + again.stderr


def test_wrong_files_say_where(server: EmbeddedServer, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    for content, text in ((b"name,citizen_number,district\n", "x.csv:2"), (b"\xff\xff\n1", "x.csv:1"),
                          (b"name,age\na,1", "columns[1]")):  # fmt: skip
        file.write_bytes(content)
        done = run(server, file)
        assert (done.returncode, text in done.stderr) == (1, True), done.stderr
        assert "Traceback" not in done.stderr
    with pytest.raises(FileFault):
        applications.read_file(tmp_path / "none.csv")


def test_killed_in_the_middle(tmp_path: Path, key_file: Path) -> None:
    """The server dies while a file comes in; started again, the same file goes on, and every row was done once."""
    file = tmp_path / "company.csv"
    file.write_text("name,citizen_number,district,address\n" + "\n".join(row(serial) for serial in range(1, 301)))
    server = EmbeddedServer(tmp_path / "data", key_file, environment={"YIKATONG_FAILPOINT": "journal-after-commit:4:kill"})
    sending = subprocess.Popen(command(server, file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        server.process.wait(60)  # by the failpoint's hand
    finally:
        sending.kill()
        sending.wait()
        server.process.kill()
    with EmbeddedServer(tmp_path / "data", key_file) as again:
        batch_id = applications.read_file(file).batch_id
        with Connection(again.address) as connection:
            before = connection.issuance.GetBatch(pb.GetBatchRequest(batch_id=batch_id)).batch
            assert 0 < before.rows_done < 300
            done = run(again, file)
            assert "300 of 300 rows accepted" in done.stdout, done.stderr
            found = list(applications.rows(connection, batch_id))
            assert [each.line for each in found] == list(range(2, 302))
            assert {each.result for each in found} == {Result.ACCEPTED}
            assert len({each.application_id for each in found}) == 300
