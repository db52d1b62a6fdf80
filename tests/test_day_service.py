"""The day over real gRPC, and by the command line against a server."""

import secrets
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from city import new_card, new_terminal
from day_city import AGREEMENTS

from yikatong.clients.bank import return_file
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer, ServerFailed
from yikatong.core import sm2
from yikatong.core.day.seal import verify_receipt
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import Result, WindowState
from yikatong.v1 import clearing_service_pb2, reconciliation_service_pb2, settlement_service_pb2

CLI = [sys.executable, "-m", "yikatong.core.cli"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "agreements.toml").write_text(AGREEMENTS)
    sm2.make_key_files(tmp_path / "seal.pem", tmp_path / "public.pem")
    return tmp_path


def options(files: Path) -> list[str]:
    return ["--agreements", str(files / "agreements.toml"), "--seal-key", str(files / "seal.pem")]


def test_a_day_over_grpc(files: Path, key_file: Path, key_set: KeySet) -> None:
    data = files / "data"
    with EmbeddedServer(data, key_file, *options(files)) as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set), new_terminal(connection)
        outcome = terminal.authorize(connection, terminal.present(card, 200))
        date = outcome.settlement_date
        done = subprocess.run(
            [*CLI, "day", "close", "--server", server.address, "--date", str(date)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "closed" in done.stdout
        clearing = connection.clearing
        window = clearing.GetWindow(clearing_service_pb2.GetWindowRequest(settlement_date=date)).window
        assert window.state == WindowState.CLOSED
        request = clearing_service_pb2.ClearWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        assert clearing.ClearWindow(request).result == Result.ACCEPTED
        assert clearing.ClearWindow(request).duplicate
        positions = clearing.ListPositions(clearing_service_pb2.ListPositionsRequest(settlement_date=date)).positions
        assert [(position.participant, position.net_fen) for position in positions] == [
            ("fees", 1), ("float", -200), ("operator:bus", 199),
        ]  # fmt: skip
        exceptions = clearing_service_pb2.ListClearingExceptionsRequest(settlement_date=date)
        assert not clearing.ListClearingExceptions(exceptions).exceptions
        again = subprocess.run(
            [*CLI, "day", "close", "--server", server.address, "--date", str(date)], capture_output=True, text=True, check=False
        )
        assert (again.returncode, "WINDOW_CLEARED" in again.stderr) == (1, True)
        seal = settlement_service_pb2.SealWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        assert connection.settlement.SealWindow(seal).result == Result.WINDOW_CLEARED
        settle = [*CLI, "day", "settle", "--data", data, "--date", str(date), "--agreements", str(files / "agreements.toml")]
        done = subprocess.run(settle, capture_output=True, text=True, check=False)
        assert (done.returncode, "another process" in done.stderr) == (1, True)
        with pytest.raises(grpc.RpcError) as caught:
            clearing.GetWindow(clearing_service_pb2.GetWindowRequest(settlement_date=1))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    subprocess.run(settle, check=True, capture_output=True)
    with EmbeddedServer(data, key_file, *options(files)) as server, Connection(server.address) as connection:
        assert connection.settlement.SealWindow(seal).result == Result.WINDOW_CLEARED
        orders = connection.reconciliation.ListInstructions(
            reconciliation_service_pb2.ListInstructionsRequest(settlement_date=date)
        ).instructions
        content = return_file("bank-1", orders, orders[0].issued_us)
        booked = connection.reconciliation.IngestBankFile(
            reconciliation_service_pb2.IngestBankFileRequest(request_id=secrets.token_bytes(16), name="bank.csv", content=content)
        )
        assert booked.paid == len(orders) == 2
        assert connection.settlement.SealWindow(seal).result == Result.ACCEPTED
        receipt = connection.settlement.GetReceipt(settlement_service_pb2.GetReceiptRequest(sequence=outcome.sequence)).receipt
        proved = verify_receipt(receipt, sm2.PublicKey.read(files / "public.pem"))
        assert int(proved.record["sequence"][0]) == outcome.sequence
        windows = connection.clearing.ListWindows(clearing_service_pb2.ListWindowsRequest()).windows
        assert [bool(window.seal_digest) for window in windows] == [True, *[False] * (len(windows) - 1)]


def test_without_agreements_nothing_is_cleared(files: Path, key_file: Path) -> None:
    with EmbeddedServer(files / "data", key_file) as server, Connection(server.address) as connection:
        request = clearing_service_pb2.ClearWindowRequest(request_id=bytes(16), settlement_date=20250101)
        with pytest.raises(grpc.RpcError) as caught:
            connection.clearing.ClearWindow(request)
        assert (caught.value.code(), "agreements" in caught.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, True)


def test_a_wrong_rule_file_keeps_the_server_from_starting(files: Path, key_file: Path) -> None:
    (files / "agreements.toml").write_text(AGREEMENTS.replace("appeal_days = 3", "appeal_days = -3", 1))
    with pytest.raises(ServerFailed, match=r"agreements.toml:12: agreement\[0\].appeal_days"):
        EmbeddedServer(files / "data", key_file, *options(files))
