"""The server is killed for real (SIGKILL to a child process) at every named failpoint, and started again: exactly what was
acknowledged is there. And the ways in which a data directory can be unusable: each a clear error, and nothing lost."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from city import new_card, new_terminal, top_up

from yikatong.clients.card import SimulatedCard
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer, ServerFailed
from yikatong.clients.terminal import Terminal
from yikatong.core import failpoints
from yikatong.core.check import check
from yikatong.core.journal import FORMAT, HEADER, Journal
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.memory import EngineSettings
from yikatong.core.store import JOURNAL, Store
from yikatong.core.types import Result
from yikatong.v1 import account_service_pb2, clearing_service_pb2, tap_service_pb2

FUNDS_FEN = 100_000
Acknowledged = list[tuple[tap_service_pb2.Tap, tap_service_pb2.TapOutcome]]


def balance_fen(connection: Connection, card: SimulatedCard) -> int:
    request = account_service_pb2.GetBalanceRequest(card_number=card.card_number)
    return connection.accounts.GetBalance(request).balance_fen


def tap_until_gone(
    connection: Connection, card: SimulatedCard, terminal: Terminal
) -> tuple[Acknowledged, list[tap_service_pb2.Tap]]:
    """Tap one by one until the server is gone: what was acknowledged, and the tap that had no answer."""
    acknowledged: Acknowledged = []
    for _ in range(500):
        tap = terminal.present(card, 7)
        try:
            acknowledged.append((tap, terminal.authorize(connection, tap)))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            return acknowledged, [tap]
    raise AssertionError("the failpoint was never passed")


@pytest.mark.parametrize("name", failpoints.NAMES)
def test_killed_at(name: str, tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set, FUNDS_FEN), new_terminal(connection)
    hit = "30" if name.startswith("journal") else "2"
    armed = {"YIKATONG_FAILPOINT": f"{name}:{hit}"}
    with (
        EmbeddedServer(data, key_file, "--checkpoint-s", "0.05", environment=armed) as server,
        Connection(server.address) as connection,
    ):
        acknowledged, unanswered = tap_until_gone(connection, card, terminal)
        assert server.process.wait(timeout=10) == -signal.SIGKILL
    assert acknowledged
    check(data, EngineSettings())
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        assert_as_acknowledged(connection, acknowledged)
        # The tap without an answer is wholly there or not at all; sent again, it counts once.
        left_fen = FUNDS_FEN - 7 * len(acknowledged)
        assert balance_fen(connection, card) in (left_fen, left_fen - 7)
        outcome = terminal.authorize(connection, unanswered[0])
        assert (outcome.result, outcome.balance_after_fen) == (Result.ACCEPTED, left_fen - 7)
        if name == "journal-after-commit":
            assert outcome.duplicate  # it had become durable
        if name in ("journal-before-append", "journal-after-append", "journal-before-commit"):
            assert not outcome.duplicate  # it had not
        books = connection.clearing.GetTrialBalance(clearing_service_pb2.GetTrialBalanceRequest())
        assert books.imbalance_fen == 0
    check(data, EngineSettings())


def assert_as_acknowledged(connection: Connection, acknowledged: Acknowledged) -> None:
    request = tap_service_pb2.SubmitTapsRequest(taps=[tap for tap, _ in acknowledged])
    for (_, before), after in zip(acknowledged, connection.taps.SubmitTaps(request).outcomes, strict=True):
        assert after.duplicate
        after.duplicate = False
        assert after == before


def test_killed_under_load_again_and_again(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        pairs = [(new_card(connection, key_set, FUNDS_FEN), new_terminal(connection)) for _ in range(6)]
    acknowledged: Acknowledged = []
    for _ in range(3):
        with EmbeddedServer(data, key_file, "--checkpoint-s", "0.05") as server:
            threads = [
                threading.Thread(target=_tap_on, args=(server.address, card, terminal, acknowledged)) for card, terminal in pairs
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.7)
            server.kill()
            for thread in threads:
                thread.join()
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        assert len(acknowledged) > 50
        assert_as_acknowledged(connection, acknowledged)
    check(data, EngineSettings())


def _tap_on(address: str, card: SimulatedCard, terminal: Terminal, acknowledged: Acknowledged) -> None:
    with Connection(address) as connection, contextlib.suppress(grpc.RpcError):
        while True:
            tap = terminal.present(card, 1)
            acknowledged.append((tap, terminal.authorize(connection, tap)))


def test_top_ups_are_known_after_a_crash(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(data, key_file, "--checkpoint-s", "0.05") as server, Connection(server.address) as connection:
        card = new_card(connection, key_set, 0)
        first = top_up(connection, card.card_number, 500, bytes(16))
        time.sleep(0.3)  # a checkpoint takes it
        second = top_up(connection, card.card_number, 60, bytes(range(16)))
        server.kill()
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        for request_id, amount_fen, before in ((bytes(16), 500, first), (bytes(range(16)), 60, second)):
            again = top_up(connection, card.card_number, amount_fen, request_id)
            assert (again.duplicate, again.sequence, again.balance_after_fen) == (True, before.sequence, before.balance_after_fen)
        assert balance_fen(connection, card) == 560


# ---- directories that cannot be used ----


def test_a_second_process_is_refused(tmp_path: Path, key_file: Path) -> None:
    with EmbeddedServer(tmp_path / "data", key_file) as server, Connection(server.address) as connection:
        ready = (tmp_path / "data/ready.json").read_text()
        with pytest.raises(ServerFailed, match="another process serves from this data directory"):
            EmbeddedServer(tmp_path / "data", key_file)
        (tmp_path / "data/ready.json").write_text(ready)
        connection.clearing.GetTrialBalance(clearing_service_pb2.GetTrialBalanceRequest())  # the first is unharmed


@pytest.fixture
def small(tmp_path: Path, key_file: Path, key_set: KeySet) -> tuple[Path, SimulatedCard, Terminal, Acknowledged]:
    """A data directory with a few acknowledged taps, its server stopped."""
    data = tmp_path / "data"
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set, FUNDS_FEN), new_terminal(connection)
        taps = [terminal.present(card, 7) for _ in range(5)]
        acknowledged = [(tap, terminal.authorize(connection, tap)) for tap in taps]
    return data, card, terminal, acknowledged


def rewrite(data: Path, which: int, change: object) -> int:
    """Change one journal value in the file; returns its first sequence."""
    store = Store(data, JOURNAL, readonly=False)
    with store.read() as reader:
        values = [(key, bytes(value)) for key, value in reader.items("groups")]
    key, value = values[which]
    with store.write() as writer:
        writer.put("groups", key, change(bytearray(value)))  # type: ignore[operator]
    store.close()
    return int.from_bytes(key, "big")


def flip(place: int) -> object:
    def change(value: bytearray) -> bytes:
        value[place] ^= 1
        return bytes(value)

    return change


def newer(value: bytearray) -> bytes:
    value[8:10] = (FORMAT + 1).to_bytes(2, "little")
    return bytes(value)


DAMAGE = [
    # what happens to a value, which value, and what must be said
    ("a bit of a record", -1, flip(HEADER.size + 30), "body is not what was written"),
    ("a bit of an old record", 2, flip(HEADER.size + 30), "body is not what was written"),
    ("a bit of the chain", -1, flip(60), "hash chain is broken"),
    ("a bit of an old header's time", 2, flip(32), "hash chain is broken"),
    ("the magic", -1, flip(0), "does not begin as a journal value does"),
    ("cut short", -1, lambda value: bytes(value[:-1]), "does not agree with its key and length"),
    ("cut to nothing", -1, lambda value: b"", "less than a header"),
    ("a newer format", -1, newer, f"format {FORMAT + 1}; this program knows formats up to {FORMAT}"),
]


@pytest.mark.parametrize(("which", "change", "says"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_damaged_journal_is_told_and_left_alone(
    small: tuple[Path, SimulatedCard, Terminal, Acknowledged], key_file: Path, which: int, change: object, says: str
) -> None:
    data = small[0]
    (data / "state.mdb").unlink()  # so that the whole journal is replayed, not only its tail
    sequence = rewrite(data, which, change)
    before = (data / "journal.mdb").read_bytes()
    with pytest.raises(ServerFailed, match=says) as caught:
        EmbeddedServer(data, key_file)
    assert "Traceback" not in str(caught.value)
    found = subprocess.run(
        [sys.executable, "-m", "yikatong.core.cli", "check", "--data", str(data)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert says in found.stderr
    assert str(sequence) in found.stderr or "chain" in says
    assert (data / "journal.mdb").read_bytes() == before


def test_a_damaged_state_is_told_and_rebuilt_from_the_journal(
    small: tuple[Path, SimulatedCard, Terminal, Acknowledged], key_file: Path
) -> None:
    data, card, _, acknowledged = small
    store = Store(data, "state", readonly=False)
    with store.read() as reader:
        key, value = next((key, bytearray(value)) for key, value in reader.items("accounts"))
    value[100] ^= 1
    with store.write() as writer:
        writer.put("accounts", key, bytes(value))
    store.close()
    with pytest.raises(ServerFailed, match="page 0 of accounts is not what was written; without this file"):
        EmbeddedServer(data, key_file)
    (data / "state.mdb").unlink()
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        assert_as_acknowledged(connection, acknowledged)
        assert balance_fen(connection, card) == FUNDS_FEN - 35


def test_a_state_of_another_journal_is_refused(
    small: tuple[Path, SimulatedCard, Terminal, Acknowledged], tmp_path: Path, key_file: Path, key_set: KeySet
) -> None:
    data = small[0]
    other = tmp_path / "other"
    with EmbeddedServer(other, key_file) as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set), new_terminal(connection)
        for _ in range(5):
            terminal.authorize(connection, terminal.present(card, 7))
    shutil.copy(other / "state.mdb", data / "state.mdb")
    with pytest.raises(ServerFailed, match="of another journal than this one"):
        EmbeddedServer(data, key_file)


def test_a_journal_that_was_cut_off_is_refused(small: tuple[Path, SimulatedCard, Terminal, Acknowledged], key_file: Path) -> None:
    data = small[0]
    store = Store(data, JOURNAL, readonly=False)
    with store.read() as reader:
        last = reader.last("groups")
        assert last is not None
    with store.write() as writer:
        writer.delete("groups", last[0])
    store.close()
    with pytest.raises(ServerFailed, match=r"stands for sequence .*, which is not in the journal"):
        EmbeddedServer(data, key_file)


# ---- a disk that takes no more ----


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    """A limit on file size makes the kernel refuse writes, as a full disk does; lifted, the same process serves again."""
    data = tmp_path / "data"
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set, FUNDS_FEN), new_terminal(connection)
        acknowledged = [(tap, terminal.authorize(connection, tap)) for tap in [terminal.present(card, 7)]]
        size = (data / "journal.mdb").stat().st_size
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        refused: list[tap_service_pb2.Tap] = []
        for _ in range(200):
            tap = terminal.present(card, 7)
            try:
                acknowledged.append((tap, terminal.authorize(connection, tap)))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE
                refused.append(tap)
                break
        assert refused, "the limit was never reached"
        assert _health(connection) == "NOT_SERVING"
        with pytest.raises(grpc.RpcError) as caught:
            terminal.authorize(connection, refused[0])
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        deadline = time.monotonic() + 20
        while _health(connection) != "SERVING" and time.monotonic() < deadline:
            time.sleep(0.1)
        outcome = terminal.authorize(connection, refused[0])
        assert (outcome.result, outcome.duplicate) == (Result.ACCEPTED, False)
        acknowledged.append((refused[0], outcome))
        assert_as_acknowledged(connection, acknowledged)
        assert balance_fen(connection, card) == FUNDS_FEN - 7 * len(acknowledged)
    check(data, EngineSettings())


def _health(connection: Connection) -> str:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(connection.channel)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(stub.Check(health_pb2.HealthCheckRequest()).status)


def test_a_checkpoint_that_cannot_be_written_harms_nobody(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    data = tmp_path / "data"
    armed = {"YIKATONG_FAILPOINT": "checkpoint-middle:1:error"}
    with (
        EmbeddedServer(data, key_file, "--checkpoint-s", "0.05", environment=armed) as server,
        Connection(server.address) as connection,
    ):
        card, terminal = new_card(connection, key_set, FUNDS_FEN), new_terminal(connection)
        acknowledged = []
        for _ in range(20):
            tap = terminal.present(card, 7)
            acknowledged.append((tap, terminal.authorize(connection, tap)))
            time.sleep(0.02)
        assert_as_acknowledged(connection, acknowledged)
        assert "was not written" in server.log_path.read_text()
        assert server.stop() == 0
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        assert_as_acknowledged(connection, acknowledged)
    check(data, EngineSettings())


# ---- an orderly end ----


def test_sigterm_drains(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    data = tmp_path / "data"
    with EmbeddedServer(data, key_file, "--json-logs") as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set, FUNDS_FEN), new_terminal(connection)
        stream = health_pb2_grpc.HealthStub(connection.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
        taps = [terminal.present(card, 1) for _ in range(200)]
        futures = [connection.taps.AuthorizeTap.future(tap_service_pb2.AuthorizeTapRequest(tap=tap)) for tap in taps]
        os.kill(server.process.pid, signal.SIGTERM)
        assert next(stream).status == health_pb2.HealthCheckResponse.NOT_SERVING
        answers = [future.result().outcome for future in futures]
        assert all(answer.result == Result.ACCEPTED for answer in answers)
        assert server.process.wait(timeout=20) == 0
        log = [json.loads(line) for line in server.log_path.read_text().splitlines()]
        assert [entry["message"] for entry in log][-2:] == ["draining", "stopped"]
        assert all({"time", "level", "logger", "message"} <= set(entry) for entry in log)
    store = Store(data, "state", readonly=True)
    with store.read() as reader:
        meta = json.loads(bytes(reader.get("meta", b"checkpoint") or b""))
    store.close()
    journal_store = Store(data, JOURNAL, readonly=True)
    assert meta["sequence"] == Journal(journal_store).next_sequence - 1  # the last checkpoint stands for all of it
    journal_store.close()
