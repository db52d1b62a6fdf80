"""The deny list: versions, in full and as changes, as terminals fetch it."""

import random
import secrets
import time
import urllib.request
from pathlib import Path

import pytest
from city import new_card, new_terminal
from harness import Harness, make_tap

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.clients.terminal import Terminal
from yikatong.core import limits
from yikatong.core.cards.deny_list import allow_card, deny_card, get_deny_list
from yikatong.core.errors import InvalidRequest
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import Result
from yikatong.v1 import deny_list_service_pb2 as protos

LOSS, FROZEN, DEBT = protos.DENY_REASON_LOSS, protos.DENY_REASON_FROZEN, protos.DENY_REASON_DEBT
FULL, DELTA = protos.GetDenyListResponse.KIND_FULL, protos.GetDenyListResponse.KIND_DELTA


def deny(core: Harness, card_number: str, reason: int = LOSS) -> protos.DenyCardResponse:
    request = protos.DenyCardRequest(request_id=secrets.token_bytes(16), card_number=card_number, reason=reason)
    return core.ask(deny_card, request)


def allow(core: Harness, card_number: str, reason: int = LOSS) -> protos.AllowCardResponse:
    request = protos.AllowCardRequest(request_id=secrets.token_bytes(16), card_number=card_number, reason=reason)
    return core.ask(allow_card, request)


def fetch(core: Harness, version: int = 0, page_size: int = 0) -> tuple[int, dict[str, list[int]], int]:
    """Kind, entries and version of a list, over all pages."""
    entries: dict[str, list[int]] = {}
    token, at = "", 0
    while True:
        request = protos.GetDenyListRequest(version=version, page_size=page_size, page_token=token)
        page = core.ask(get_deny_list, request)
        entries |= {entry.card_number: list(entry.reasons) for entry in page.entries}
        at, token = at or page.version, page.next_page_token
        if not token:
            return page.kind, entries, at


def test_reasons_add_up_and_go_one_by_one(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        core.register_terminal(make_tap(card_number="100").terminal_number)
        core.top_up("100", 1_000)
        assert list(deny(core, "100", LOSS).reasons) == [LOSS]
        assert core.authorize(make_tap(card_number="100", atc=1, terminal_sequence=1)).result == Result.CARD_DENIED
        assert list(deny(core, "100", FROZEN).reasons) == [LOSS, FROZEN]
        assert list(allow(core, "100", LOSS).reasons) == [FROZEN]
        assert core.authorize(make_tap(card_number="100", atc=2, terminal_sequence=2)).result == Result.CARD_DENIED
        core.restart()
        assert list(allow(core, "100", FROZEN).reasons) == []
        assert core.authorize(make_tap(card_number="100", atc=3, terminal_sequence=3)).result == Result.ACCEPTED
        assert deny(core, "999").result == Result.UNKNOWN_CARD
        assert allow(core, "999").result == Result.UNKNOWN_CARD


def test_bad_input_names_the_field(tmp_path: Path) -> None:
    good = {"request_id": bytes(16), "card_number": "100", "reason": LOSS}
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        for field, value in (
            ("request_id", b"x"), ("card_number", "x"), ("reason", 0), ("reason", DEBT), ("reason", 99),
            ("reported_time_us", -1), ("reported_time_us", core.now_us + 10**12),
        ):  # fmt: skip
            with pytest.raises(InvalidRequest) as caught:
                core.ask(deny_card, protos.DenyCardRequest(**(good | {field: value})))
            assert caught.value.field == field
        for field, value in (
            ("version", 10**6), ("page_size", -1), ("page_size", limits.DENY_PAGE_SIZE_MAX + 1), ("page_token", "x"),
        ):  # fmt: skip
            with pytest.raises(InvalidRequest) as caught:
                core.ask(get_deny_list, protos.GetDenyListRequest(**{field: value}))
            assert caught.value.field == field


@pytest.mark.parametrize("seed", range(10))
def test_full_and_delta_agree(seed: int, tmp_path: Path) -> None:
    """Whoever has any version and applies the changes has the list; restarts and checkpoints in between change nothing."""
    chance = random.Random(seed)
    cards = [str(number) for number in range(100, 130)]
    listed: dict[str, set[int]] = {card: set() for card in cards}
    versions: list[tuple[int, dict[str, list[int]]]] = []
    with Harness(tmp_path / "data") as core:
        for card in cards:
            core.register_card(card)
        for _ in range(80):
            card, reason = chance.choice(cards), chance.choice((LOSS, FROZEN))
            if chance.random() < 0.6:
                deny(core, card, reason)
                listed[card].add(reason)
            else:
                allow(core, card, reason)
                listed[card].discard(reason)
            if chance.random() < 0.1:
                chance.choice((core.restart, core.checkpoint, core.rebuild))()
            expected = {card: sorted(reasons) for card, reasons in listed.items() if reasons}
            kind, full, version = fetch(core, page_size=chance.choice((0, 1, 3)))
            assert (kind, full) == (FULL, expected)
            assert core.engine.denied_cards == len(expected)
            versions.append((version, full))
            old_version, old = chance.choice(versions)
            kind, changes, now = fetch(core, old_version, chance.choice((0, 1, 3)))
            if old_version:
                assert kind == DELTA
                assert {card: reasons for card, reasons in (old | changes).items() if reasons} == expected
            assert now == version


def test_who_is_too_far_behind_gets_it_in_full(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        for card in ("100", "101"):
            core.register_card(card)
        deny(core, "101")
        old = fetch(core)[2]
        core.engine.restore_denials(b"", old + 1, core.engine.deny_version)  # as if so much had changed since
        deny(core, "100")
        assert fetch(core, old)[:2] == (FULL, {"100": [LOSS], "101": [LOSS]})


def test_terminals_fetch_changes_and_metrics_tell_how_long_it_took(
    server: EmbeddedServer, connection: Connection, key_set: KeySet
) -> None:
    terminal: Terminal = new_terminal(connection)
    cards = [new_card(connection, key_set, 1_000) for _ in range(5)]
    numbers = [card.card_number for card in cards]

    def ask(card_number: str, request_id: bytes = b"") -> protos.DenyCardResponse:
        return connection.deny_list.DenyCard(
            protos.DenyCardRequest(
                request_id=request_id or secrets.token_bytes(16), card_number=card_number, reason=LOSS,
                reported_time_us=int((time.time() - 30) * 1e6),
            )
        )  # fmt: skip

    for number in numbers[:3]:
        assert ask(number).result == Result.ACCEPTED
    terminal.fetch_deny_list(connection, page_size=2)
    assert set(numbers[:3]) <= terminal.denied
    assert terminal.fetch_deny_list(connection) == 0
    once = secrets.token_bytes(16)
    first = ask(numbers[3], once)
    connection.deny_list.AllowCard(
        protos.AllowCardRequest(request_id=secrets.token_bytes(16), card_number=numbers[0], reason=LOSS)
    )
    assert terminal.fetch_deny_list(connection, page_size=1) == 2
    assert {number for number in numbers if number in terminal.denied} == set(numbers[1:4])
    outcome = terminal.authorize(connection, terminal.present(cards[3], 1))
    assert outcome.result == Result.CARD_DENIED
    # A stored tap that the balance does not cover puts its card onto the list too.
    terminal.store(terminal.present(cards[4], 5_000))
    assert terminal.upload(connection)[0][1].result == Result.DEBT_BOOKED
    assert terminal.fetch_deny_list(connection) == 1
    assert numbers[4] in terminal.denied
    assert ask(numbers[3], once).result == Result.CONFLICT  # the same id, but reported at another time
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as response:
        text = response.read().decode()
    told = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("yikatong_deny")
    }
    assert told["yikatong_deny_list_cards"] >= 4
    assert told["yikatong_deny_list_version"] > first.sequence
    assert told["yikatong_deny_list_delay_seconds_count"] == 4
    assert 120 <= told["yikatong_deny_list_delay_seconds_sum"] < 150
    assert told["yikatong_deny_list_fetch_seconds_count"] >= 2
