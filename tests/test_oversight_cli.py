"""The commands of who watches, as a user runs them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from city import new_card

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.keys.key_sets import KeySet
from yikatong.v1 import card_service_pb2, lockout_service_pb2, lockout_service_pb2_grpc


def yikatong(*arguments: Any, code: int = 0) -> str:
    command = [sys.executable, "-m", "yikatong.core.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"COLUMNS": "250", "PATH": ""})
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def card(connection: Connection, key_set: KeySet) -> str:
    made = new_card(connection, key_set, rider=3).card_number
    connection.cards.GetCard(card_service_pb2.GetCardRequest(card_number=made))
    return str(made)


def test_the_trail_at_a_server(server: EmbeddedServer, card: str) -> None:
    found = yikatong("audit", "--server", server.address, "--card", card, "--purpose", "asked by its holder")
    assert "CardService.GetCard" in found
    assert "yikatong:operator:local" in found
    found = yikatong("audit", "--server", server.address, "--caller", "yikatong:operator:local", "--purpose", "year's end")
    assert "AuditService.ListAccesses" in found
    assert "asked by its holder" in found
    assert "no such" not in yikatong("audit", "--server", server.address, "--person", "00" * 16, "--purpose", "x")


def test_the_trail_of_a_data_directory(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    with EmbeddedServer(tmp_path / "data", key_file) as server, Connection(server.address) as connection:
        card = new_card(connection, key_set, rider=3).card_number
        connection.cards.GetCard(card_service_pb2.GetCardRequest(card_number=card))
    for _ in range(2):
        found = yikatong("audit", "--data", tmp_path / "data", "--card", card, "--purpose", "x")
        assert "rider" in found
    assert found.count("AuditService.ListAccesses") == 1  # the first time itself
    assert "0 windows sealed" in yikatong("check", "--data", tmp_path / "data")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--card", "1"], 2, "either --data or --server"),
        (["--card", "1", "--person", "00", "--data", "x"], 2, "one of --card"),
        (["--card", "1", "--data", "nowhere"], 2, "there is no folder"),
        (["--person", "xx", "--data", "."], 1, "--person: hexadecimal digits"),
    ],
)
def test_wrong_usage_of_audit(arguments: list[str], code: int, told: str) -> None:
    assert told in yikatong("audit", "--purpose", "x", *arguments, code=code)


def test_approvals(server: EmbeddedServer, connection: Connection) -> None:
    lockouts = lockout_service_pb2_grpc.LockoutServiceStub(connection.channel)
    request = lockout_service_pb2.LiftLockoutRequest(request_id=b"approvals-by-cli", subject="card:1", reason="李雷 called")
    held = lockouts.LiftLockout(request)
    at = ("--server", server.address)
    assert held.approval_id in yikatong("approvals", "list", *at)
    shown = yikatong("approvals", "show", *at, held.approval_id)
    assert "李雷 called" in shown
    digest = shown.rpartition("digest ")[2].strip()
    assert "SAME_ACTOR" in yikatong("approvals", "approve", *at, held.approval_id, "--digest", digest, code=1)
    assert "rejected" in yikatong("approvals", "reject", *at, held.approval_id)
    assert "WRONG_STATE" in yikatong("approvals", "reject", *at, held.approval_id, code=1)
    assert "hexadecimal" in yikatong("approvals", "approve", *at, held.approval_id, "--digest", "x", code=1)
    assert "approval_id" in yikatong("approvals", "show", *at, "nonsense", code=1)
