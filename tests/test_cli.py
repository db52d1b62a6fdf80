"""The commands as a user runs them: replay, check, export, backup, demo, serve with TLS."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pyarrow.csv
import pyarrow.parquet
import pytest
from city import new_card, new_terminal
from conftest import SHARED_TAPS

from yikatong.bench.certificates import make_certificates
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer, ServerFailed
from yikatong.clients.replay import file_totals
from yikatong.clients.taps_csv import read_records
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import Result
from yikatong.v1 import account_service_pb2

HEADER = "deal_date,close_date,card_no,deal_value,deal_type,company_name,car_no,station,conn_mark,deal_money,equ_no"
GOOD = [
    '"2018-08-31 22:14:50","2018-09-01 00:00:00",CBEHFCFCG,0,地铁入站,地铁五号线,IGT-105,布吉,0,0,263032105',
    '"2018-08-31 23:11:06","2018-09-01 00:00:00",FFHEDIBCC,700,地铁出站,地铁五号线,OGT-101,长龙,0,665,263031101',
    '"2018-08-31 23:12:00","2018-09-01 00:00:00",AAHEDIBC,200,巴士,华程交通,粤B1,M1,1,120,223012034',
    '"2018-09-01 05:00:00","2018-09-01 00:00:00",FFHEDIBCC,200,巴士,华程交通,粤B1,M1,0,160,223012034',
]
REPEATED = GOOD[1].replace("665", "600")  # the same card, time and terminal: the first counts
BROKEN = [
    GOOD[0].replace("CBEHFCFCG", "CBEHFCFCK"),
    GOOD[0].replace("2018-08-31", "2018-02-30"),
    GOOD[0].replace(",0,263032105", ",-5,263032105"),
    GOOD[0].replace("地铁入站", "火车"),
    GOOD[0] + ",more",
    "\x00\x01rubbish",
]


def yikatong(*arguments: str | Path, ok: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    command = [sys.executable, "-m", "yikatong.core.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=cwd)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([HEADER, *lines]) + "\n", "utf-8")
    return path


def replay(file: Path, *arguments: str | Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(yikatong("replay", file, "--json", "-", *arguments).stdout)
    return result


def test_replay_counts_to_the_fen_and_again_changes_nothing(tmp_path: Path) -> None:
    file, data = write(tmp_path / "taps.csv", *GOOD, REPEATED), tmp_path / "data"
    first = replay(file, "--data", data)
    assert first["operators"] == [
        {"operator": "华程交通", "taps": 2, "amount_fen": 280},
        {"operator": "地铁五号线", "taps": 2, "amount_fen": 665},
    ]
    assert (first["records"], first["accepted"], first["duplicates"], first["rejected"]) == (5, 4, 1, {})
    assert (first["total_fen"], first["balanced"], first["agrees_with_file"]) == (945, True, True)
    again = replay(file, "--data", data)
    assert (again["accepted"], again["duplicates"]) == (0, 5)
    assert (again["operators"], again["total_fen"]) == (first["operators"], 945)
    assert again["journal_records"] == first["journal_records"]
    assert "sound" in yikatong("check", "--data", data).stdout
    # Another day's file for the same cards and terminals goes on counting where the chips stand.
    other = write(tmp_path / "other.csv", GOOD[1].replace("23:11:06", "23:59:59"), GOOD[3])
    second = replay(other, "--data", data)
    assert (second["accepted"], second["duplicates"], second["total_fen"]) == (1, 1, 825)


def test_replay_of_the_published_records(tmp_path: Path) -> None:
    """Reads the shared file where there is one; a sample of its form is in the tests above."""
    if not SHARED_TAPS.exists():
        pytest.skip("the published records are not here")
    result = replay(SHARED_TAPS, "--data", tmp_path / "data")
    with SHARED_TAPS.open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    amounts: dict[str, int] = {}
    for row in rows:
        amounts[row["company_name"]] = amounts.get(row["company_name"], 0) + int(row["deal_money"])
    assert {operator["operator"]: operator["amount_fen"] for operator in result["operators"]} == amounts
    assert (result["records"], result["accepted"], result["total_fen"]) == (len(rows), len(rows), sum(amounts.values()))


def test_replay_skips_broken_lines_and_says_which(tmp_path: Path) -> None:
    file = write(tmp_path / "taps.csv", GOOD[0], *BROKEN, GOOD[1])
    done = yikatong("replay", file, "--json", "-")
    result = json.loads(done.stdout)
    assert (result["records"], result["accepted"], result["skipped"]) == (2, 2, len(BROKEN))
    for line in range(3, 3 + len(BROKEN)):
        assert f"taps.csv:{line}: " in done.stderr
    for column in ("card_no", "deal_date", "deal_money", "deal_type"):
        assert column in done.stderr or "does not match format" in done.stderr or "day is out of range" in done.stderr


def test_replay_strict_does_nothing_at_all(tmp_path: Path) -> None:
    file = write(tmp_path / "taps.csv", GOOD[0], BROKEN[0])
    done = yikatong("replay", file, "--data", tmp_path / "data", "--strict", ok=False)
    assert "taps.csv:3: card_no" in done.stderr
    assert "nothing was done" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "the header lacks"), (b"a,b\n1,2\n", "the header lacks"), (None, "No such file")]
)
def test_replay_of_something_else(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "x.csv").write_bytes(content)
    assert says in yikatong("replay", tmp_path / "x.csv", ok=False).stderr


def test_replay_against_a_server(tmp_path: Path, server: EmbeddedServer, key_file: Path) -> None:
    file = write(tmp_path / "taps.csv", *GOOD)
    result = replay(file, "--server", server.address, "--keys", key_file)
    assert (result["accepted"] + result["duplicates"], result["agrees_with_file"]) == (4, True)
    assert "needs --keys" in yikatong("replay", file, "--server", server.address, ok=False).stderr
    refused = yikatong("replay", file, "--server", "127.0.0.1:1", "--keys", key_file, ok=False)
    assert "UNAVAILABLE" in refused.stderr


def test_equipment_of_two_companies_is_two_terminals(tmp_path: Path) -> None:
    lines = [GOOD[2], GOOD[3].replace("华程交通", "金华南巴士")]
    result = replay(write(tmp_path / "taps.csv", *lines))
    assert result["agrees_with_file"]
    assert [operator["amount_fen"] for operator in result["operators"]] == [120, 160]


def test_reading_records() -> None:
    """Letters are digits; repeated records count once, as the first says."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        records, broken = read_records(write(Path(folder) / "x.csv", *GOOD, REPEATED, BROKEN[0]))
    assert [record.card_number for record in records][:3] == ["214752526", "557438122", "00743812"]
    assert [line.line for line in broken] == [7]
    assert file_totals(records) == [("华程交通", 2, 280), ("地铁五号线", 2, 665)]


# ---- check, export, backup ----


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replayed")
    replay(write(folder / "taps.csv", *GOOD), "--data", folder / "data")
    return folder / "data"


def test_check_names_what_is_missing(tmp_path: Path) -> None:
    assert "no such data directory" in yikatong("check", "--data", tmp_path / "none", ok=False).stderr
    (tmp_path / "empty").mkdir()
    assert "state.mdb" in yikatong("check", "--data", tmp_path / "empty", ok=False).stderr


def test_export_both_ways_says_the_same(replayed: Path, tmp_path: Path) -> None:
    yikatong("export", "--data", replayed, "--format", "csv", "--out", tmp_path / "journal.csv")
    yikatong("export", "--data", replayed, "--format", "parquet", "--out", tmp_path / "journal.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "journal.parquet")
    with (tmp_path / "journal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sequence"]) for row in rows] == table["sequence"].to_pylist() == list(range(1, len(rows) + 1))
    for name in ("kind", "result", "card_number", "operator"):
        assert [row[name] or None for row in rows] == table[name].to_pylist()
    taps = [row for row in table.to_pylist() if row["kind"] == "TAP"]
    assert [(tap["card_number"], tap["operator"], tap["amount_fen"], tap["atc"], str(tap["local_time"])) for tap in taps] == [
        ("214752526", "地铁五号线", 0, 1, "2018-08-31 22:14:50"),
        ("557438122", "地铁五号线", 665, 1, "2018-08-31 23:11:06"),
        ("00743812", "华程交通", 120, 1, "2018-08-31 23:12:00"),
        ("557438122", "华程交通", 160, 2, "2018-09-01 05:00:00"),
    ]


def test_export_to_nowhere_leaves_nothing(replayed: Path, tmp_path: Path) -> None:
    done = yikatong("export", "--data", replayed, "--format", "csv", "--out", tmp_path / "none/x.csv", ok=False)
    assert "none/x.csv" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_backup_of_a_running_server_serves(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    with EmbeddedServer(data, key_file, "--checkpoint-s", "0.1") as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set, 1_000), new_terminal(connection)
        outcome = terminal.authorize(connection, terminal.present(card, 300))
        time.sleep(0.3)  # a checkpoint, and then more behind it
        tap = terminal.present(card, 50)
        later = terminal.authorize(connection, tap)
        yikatong("backup", "--data", data, "--to", copy)
        assert "already there" in yikatong("backup", "--data", data, "--to", copy, ok=False).stderr
        terminal.authorize(connection, terminal.present(card, 7))
        assert "sound" in yikatong("check", "--data", data).stdout  # also while it serves
    assert "sound" in yikatong("check", "--data", copy).stdout
    with EmbeddedServer(copy, key_file) as server, Connection(server.address) as connection:
        balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
        assert balance.balance_fen == 650
        again = terminal.authorize(connection, tap)
        assert (again.duplicate, again.sequence) == (True, later.sequence)
        assert outcome.sequence < later.sequence


# ---- serve ----


def test_serve_refuses_what_is_unsafe_or_unclear(tmp_path: Path, key_file: Path) -> None:
    rows = [
        (["--data", tmp_path / "d", "--keys", key_file], "tls_certificate: is not set"),
        (["--insecure", "--keys", key_file], "data: is not set"),
        (["--insecure", "--data", tmp_path / "d"], "keys: is not set"),
        (["--insecure", "--host", "0.0.0.0", "--data", tmp_path / "d", "--keys", key_file], "loopback address only"),
        (["--insecure", "--data", tmp_path / "d", "--keys", tmp_path / "none"], "No such file"),
        (["--insecure", "--data", "/proc/none", "--keys", key_file], "/proc/none"),
    ]
    for arguments, says in rows:
        assert says in yikatong("serve", *arguments, ok=False).stderr


def test_serve_refuses_a_port_in_use(tmp_path: Path, server: EmbeddedServer, key_file: Path) -> None:
    port = server.address.partition(":")[2]
    arguments = ["--insecure", "--data", tmp_path / "d", "--keys", key_file, "--service-port", port]
    assert "service_port: cannot listen on" in yikatong("serve", *arguments, ok=False).stderr
    metrics = server.metrics_address.partition(":")[2]
    arguments = ["--insecure", "--data", tmp_path / "d", "--keys", key_file, "--service-port", "0", "--metrics-port", metrics]
    assert "metrics_port" in yikatong("serve", *arguments, ok=False).stderr


def test_serve_over_tls_from_a_configuration_file(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    make_certificates(tmp_path)
    shutil.copy(key_file, tmp_path / "keys.toml")
    (tmp_path / "yikatong.toml").write_text(
        'data = "data"\nkeys = "keys.toml"\ntls_certificate = "server.pem"\ntls_key = "server.key"\ntls_client_ca = "ca.pem"\n'
    )
    ready = tmp_path / "ready.json"
    command = [
        sys.executable,
        "-m",
        "yikatong.core.cli",
        "serve",
        "--config",
        str(tmp_path / "yikatong.toml"),
        "--ready",
        str(ready),
    ]
    environment = {"YIKATONG_SERVICE_PORT": "0", "YIKATONG_TAP_PORT": "0", "YIKATONG_METRICS_PORT": "0", "PATH": ""}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        address = f"127.0.0.1:{json.loads(ready.read_text())['service_port']}"
        ca, certificate, key = (tmp_path / name for name in ("ca.pem", "client.pem", "client.key"))
        with Connection(address, ca=ca, certificate=certificate, key=key) as connection:
            card, terminal = new_card(connection, key_set), new_terminal(connection)
            assert terminal.authorize(connection, terminal.present(card, 100)).result == Result.ACCEPTED
        request = account_service_pb2.GetBalanceRequest(card_number=card.card_number)
        for wrong in (Connection(address, ca=ca), Connection(address)):
            with wrong, pytest.raises(grpc.RpcError) as caught:
                wrong.accounts.GetBalance(request, timeout=5)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "(mTLS)" in log


def test_serve_with_a_key_that_is_not_the_certificates(tmp_path: Path, key_file: Path) -> None:
    make_certificates(tmp_path)
    arguments = ["--tls-certificate", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "client.key")]
    with pytest.raises(ServerFailed, match="tls_key: is not the key of the certificate"):
        EmbeddedServer(tmp_path / "data", key_file, *arguments, insecure=False)


def test_demo_holds_what_it_promises() -> None:
    done = yikatong("demo", "--seconds", "2", "--seed", "7")
    for line in (
        "every case got its own answer", "nothing acknowledged was lost", "the clearing equals what the terminals were answered",
        "the books balance", "hash chain and every balance verified", "MAC_MISMATCH", "INSUFFICIENT_FUNDS", "UNKNOWN_CARD",
        "bytes from the screen", "both at once", "CNY are there, to the fen", "denied liable",
    ):  # fmt: skip
        assert line in done.stdout
    assert "✗" not in done.stdout


def test_serve_without_the_native_transport_says_so_in_one_line(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    """As built on a machine without nghttp2: everything is on the service port."""
    ready = tmp_path / "ready.json"
    without = "import sys; sys.modules['yikatong.ext.transport'] = None; from yikatong.core.cli import main; main()"
    arguments = [
        "serve", "--insecure", "--data", str(tmp_path / "data"), "--keys", str(key_file), "--service-port", "0",
        "--metrics-port", "0", "--ready", str(ready),
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", without, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        ports = json.loads(ready.read_text())
        assert "tap_port" not in ports
        with Connection(f"127.0.0.1:{ports['service_port']}") as connection:
            card, terminal = new_card(connection, key_set), new_terminal(connection)
            assert terminal.authorize(connection, terminal.present(card, 100)).result == Result.ACCEPTED
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert sum("no tap port: this build was made without nghttp2" in line for line in log.splitlines()) == 1
