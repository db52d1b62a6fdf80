"""The demo's chapter of one card: played on a server of its own, in which everything must hold, and again, in which it cannot."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from yikatong.clients import demo_card
from yikatong.clients.connection import Connection, call
from yikatong.clients.demo_card import RideCodeIssuer, card_chapter, draw, make_issuer, read_drawing
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import Result
from yikatong.v1 import account_service_pb2, clearing_service_pb2

OPERATORS = "Heyuan Bus", "Metro Line 1"


@pytest.fixture
def issuer(tmp_path: Path, key_file: Path) -> RideCodeIssuer:
    return make_issuer(tmp_path, key_file)


@pytest.fixture
def connection(tmp_path: Path, key_file: Path, issuer: RideCodeIssuer) -> Iterator[Connection]:
    with EmbeddedServer(tmp_path / "data", key_file, *issuer.arguments) as server, Connection(server.address) as connected:
        yield connected


def test_the_chapter_holds_and_a_second_time_it_does_not(
    connection: Connection, issuer: RideCodeIssuer, key_set: KeySet, tmp_path: Path
) -> None:
    told: list[tuple[bool, str, str]] = []

    def tell(*said: object) -> None:
        told.append(said)  # type: ignore[arg-type]

    out = io.StringIO()
    console = Console(file=out, width=100, height=50)
    rides = card_chapter(console, connection, tmp_path, key_set, issuer, OPERATORS, tell)
    assert [no for holds, _, no in told if not holds] == []
    assert len(told) > 40
    # A small symbol and a large one are on the screen, and the table of what became of the cards.
    assert sum(set(line) <= set(" ▀▄█") and len(line) > 20 for line in out.getvalue().splitlines()) > 40
    assert [line.split()[-3:] for line in out.getvalue().splitlines() if "44168888" in line] == [
        ["CANCELLED", "CARD_DENIED", "0.00"],
        ["ENABLED", "ACCEPTED", "37.00"],
    ]
    # What it says of its rides is what the core has of them.
    accepted = [ride.outcome for ride in rides if ride.outcome.result == Result.ACCEPTED]
    assert [outcome.charged_fen for outcome in accepted] == [200, 300, 300, 300, 200]
    left = account_service_pb2.GetBalanceRequest(card_number=demo_card.NEW_CARD_NUMBER)
    assert call(connection.accounts.GetBalance, left).balance_fen == 5_000 - 1_300
    assert call(connection.clearing.GetTrialBalance, clearing_service_pb2.GetTrialBalanceRequest()).imbalance_fen == 0

    told.clear()
    assert card_chapter(console, connection, tmp_path, key_set, issuer, OPERATORS, tell) == []
    ((holds, _, no),) = told
    assert not holds
    assert "PERSON_EXISTS" in no


@given(st.one_of(st.binary(min_size=1, max_size=400), st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", min_size=1, max_size=34)))
def test_what_is_drawn_can_be_read(code: str | bytes) -> None:
    assert read_drawing(draw(code)) == (code.encode() if isinstance(code, str) else code)


def test_without_a_decoder_and_without_room_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key_set: KeySet) -> None:
    monkeypatch.setitem(sys.modules, "zxingcpp", None)
    out = io.StringIO()
    console = Console(file=out, width=24, height=50)
    told: list[bool] = []
    chapter = demo_card._Chapter(
        console,
        None,
        tmp_path,
        key_set,
        RideCodeIssuer((), {}),
        OPERATORS,
        lambda holds, *_: told.append(holds),  # type: ignore[arg-type]
    )
    assert chapter.scan("ride code", b"\x81\x00") == b"\x81\x00"
    assert "too large" in out.getvalue()
    assert "no decoder" in " ".join(out.getvalue().split())
    assert "█" not in out.getvalue()
    assert told == []
