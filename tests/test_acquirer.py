"""The acquirer's till: what a bad line, a full queue, a killed process and a killed server do to it."""

import random
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import acquirer_child
import grpc
import pytest
from city import new_card
from payments import ACQUIRER, Desk, request_id

from yikatong.clients.acquirer import METHODS, Acquirer, AnswerUnknown, Failed, QueueFull, QueueInUse, RetryRules
from yikatong.clients.connection import Connection, call
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.acquiring import authorizations
from yikatong.core.acquiring.authorization import State
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import Result
from yikatong.v1 import account_service_pb2, merchant_service_pb2
from yikatong.v1 import authorization_service_pb2 as pb

CHILD = Path(acquirer_child.__file__)
RULES = RetryRules(attempts_max=6, pause_s=1.0, pause_s_max=8.0, call_s=5.0, queue_max=10, kept_max=20)


class LineError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str = "the line is bad") -> None:
        super().__init__(details)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class Line:
    """A connection whose server is a core in this process, and which loses what a list says: "ok", "lost" (the request did not
    arrive), "mute" (it did, the answer did not), or a gRPC code's name. After the list's end all goes through."""

    def __init__(self, desk: Desk) -> None:
        self.authorizations = self
        self.script: list[str] = []
        self.sent: list[tuple[str, Any]] = []
        self._desk = desk
        self._commands = {
            "Authorize": partial(authorizations.authorize, desk.rules),
            "IncrementAuthorization": partial(authorizations.increment_authorization, desk.rules),
            "Capture": authorizations.capture,
            "VoidAuthorization": authorizations.void_authorization,
            "Refund": authorizations.refund,
            "ReverseTransaction": authorizations.reverse_transaction,
        }
        assert self._commands.keys() == METHODS.keys()

    def __getattr__(self, method: str) -> Any:
        return lambda request, timeout: self._call(method, request)

    def _call(self, method: str, request: Any) -> Any:
        self.sent.append((method, request))
        fate = self.script.pop(0) if self.script else "ok"
        if fate == "lost":
            raise LineError(grpc.StatusCode.UNAVAILABLE)
        if fate not in ("ok", "mute"):
            raise LineError(grpc.StatusCode[fate])
        try:
            response = self._desk.ask(self._commands[method], request)
        except (InvalidRequest, NotFound) as error:
            raise LineError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        if fate == "mute":
            raise LineError(grpc.StatusCode.DEADLINE_EXCEEDED)
        return response


class Shop:
    """A till on such a line, with a clock of its own. `restart` is what a kill leaves: the file."""

    def __init__(self, folder: Path, rules: RetryRules = RULES) -> None:
        self.desk = Desk(folder / "data")
        self.desk.register_merchants()
        self.desk.card("100", 1_000)
        self.line = Line(self.desk)
        self.file = folder / "till.db"
        self.rules = rules
        self.now_s = 2_000_000.0
        self.pauses: list[float] = []
        self.till = self._open()

    def _open(self) -> Acquirer:
        return Acquirer(
            self.line, ACQUIRER, self.file, self.rules, clock=lambda: self.now_s, sleep=self._sleep, chance=lambda: 0.5  # type: ignore[arg-type]
        )  # fmt: skip

    def _sleep(self, pause_s: float) -> None:
        assert pause_s >= 0
        self.pauses.append(pause_s)
        self.now_s += pause_s

    def restart(self) -> None:
        self.till.close()
        self.till = self._open()

    def authorize(self, name: str, fen: int, **fields: Any) -> Any:
        fields.setdefault("request_id", request_id(name))
        return self.till.authorize("shop", "5999", fields.pop("card", "100"), fen, **fields)


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    made = Shop(tmp_path)
    with made.desk:
        yield made
        made.till.close()


# ---- one line after another ----


def test_a_payment_on_a_good_line(shop: Shop) -> None:
    assert shop.authorize("a", 400).result == Result.ACCEPTED
    captured = shop.till.capture(request_id("a"), 300, final=True)
    assert shop.desk.payable_fen() == 0  # stored, not sent
    assert shop.till.send() == 0
    kept = shop.till.find(captured)
    assert kept is not None
    assert (kept.state, kept.attempts, kept.response.captured_fen) == ("done", 1, 300)
    refunded = shop.till.refund(request_id("a"), 100)
    assert shop.till.drain(10) == 0
    assert shop.till.find(refunded).response.refunded_fen == 100  # type: ignore[union-attr]
    assert (shop.desk.payable_fen(), shop.desk.available_fen("100")) == (200, 800)


FATES = """
line                           | answer   | attempts | pauses
ok                             | ACCEPTED |        1 |
lost                           | ACCEPTED |        2 | 1
mute                           | ACCEPTED |        2 | 1
lost mute lost                 | ACCEPTED |        4 | 1 2 4
RESOURCE_EXHAUSTED INTERNAL    | ACCEPTED |        3 | 1 2
mute mute mute mute            | ACCEPTED |        5 | 1 2 4 8
lost lost lost lost lost lost lost | ACCEPTED |    8 | 1 2 4 8 8 8 8
"""


@pytest.mark.parametrize("row", FATES.strip().splitlines()[1:])
def test_online_on_a_bad_line(shop: Shop, row: str) -> None:
    line, answer, attempts, pauses = (cell.strip() for cell in row.split("|"))
    shop.line.script = line.split()
    response = shop.authorize("a", 400, deadline_s=100)
    assert Result(response.result).name == answer
    assert shop.till.find(request_id("a")).attempts == int(attempts)  # type: ignore[union-attr]
    assert shop.pauses == [float(pause) for pause in pauses.split()]
    assert shop.desk.available_fen("100") == 600
    assert len({request.request_id for _, request in shop.line.sent}) == 1


def test_a_decline_is_an_answer(shop: Shop) -> None:
    assert shop.authorize("a", 1_001).result == Result.INSUFFICIENT_FUNDS
    captured = shop.till.capture(request_id("a"), 1_001)
    assert shop.till.send() == 0
    assert shop.till.find(captured).response.result == Result.AUTHORIZATION_NOT_HELD  # type: ignore[union-attr]
    assert shop.till.failed() == []


@pytest.mark.parametrize("fate", ["lost", "mute"])
def test_no_answer_by_the_deadline_is_reversed(shop: Shop, fate: str) -> None:
    shop.line.script = [fate] * 3 + ["lost"]
    with pytest.raises(AnswerUnknown, match="within 5 s"):
        shop.authorize("a", 400, deadline_s=5)
    assert shop.desk.available_fen("100") == (1_000 if fate == "lost" else 600)
    assert shop.till.waiting() == 1
    with pytest.raises(AnswerUnknown):
        shop.authorize("a", 400)  # asking again does not make it
    assert shop.till.drain(100) == 0
    assert shop.desk.available_fen("100") == 1_000
    method, request = shop.line.sent[-1]
    assert (method, request.original_request_id) == ("ReverseTransaction", request_id("a"))
    assert shop.desk.authorize("a", 400).result in (Result.REVERSED, Result.CONFLICT)  # the original, late


def test_a_killed_till_reverses_what_it_waited_for(shop: Shop) -> None:
    shop.line.script = ["mute"]

    def die(_: float) -> None:
        raise KeyboardInterrupt

    shop.till._sleep = die
    with pytest.raises(KeyboardInterrupt):
        shop.authorize("a", 400)
    shop.till.capture(request_id("a"), 400)  # whatever comes behind it
    assert shop.desk.available_fen("100") == 600
    shop.restart()
    assert shop.till.drain(100) == 0
    assert shop.desk.available_fen("100") == 1_000
    assert shop.till.find(request_id("a")).state == "reversed"  # type: ignore[union-attr]


def test_what_the_server_refuses_is_kept_with_the_reason(shop: Shop) -> None:
    with pytest.raises(Failed, match="amount_fen: 1 to"):
        shop.authorize("a", 0)
    shop.authorize("b", 400)
    first = shop.till.refund(request_id("b"), 100, legs=[pb.Leg(purse="general", amount_fen=99)])
    second = shop.till.capture(request_id("b"), 100)  # is not held up by it
    assert shop.till.send() == 0
    failed = shop.till.failed()
    assert [(each.method, each.request_id) for each in failed] == [("Authorize", request_id("a")), ("Refund", first)]
    assert failed[1].reason == "INVALID_ARGUMENT: legs: they must add up to amount_fen, 100"
    assert shop.till.find(second).state == "done"  # type: ignore[union-attr]
    shop.restart()
    assert len(shop.till.failed()) == 2


def test_attempts_are_bounded_and_nothing_is_thrown_away(shop: Shop) -> None:
    shop.authorize("a", 400)
    captured = shop.till.capture(request_id("a"), 400)
    shop.line.script = ["lost"] * 6
    assert shop.till.drain(1_000) == 0
    (failed,) = shop.till.failed()
    assert failed.reason == "no answer in 6 attempts; the last: UNAVAILABLE: the line is bad"
    assert shop.pauses == [1, 2, 4, 8, 8]
    shop.till.retry(captured)
    assert shop.till.drain(1_000) == 0
    assert shop.till.failed() == []
    assert shop.desk.payable_fen() == 400


def test_a_full_queue_takes_nothing_more(shop: Shop) -> None:
    for at in range(4):
        shop.till.advise("shop", "5999", "100", 10 + at)
    for at in range(2):
        shop.till.void(request_id(f"nothing {at}"))
    with pytest.raises(QueueFull, match="10 requests"):
        shop.till.capture(request_id("a"), 1)
    with pytest.raises(QueueFull):
        shop.authorize("a", 1)
    assert shop.line.sent == []
    assert shop.till.drain(10) == 0
    assert shop.authorize("a", 1).result == Result.ACCEPTED
    assert shop.desk.payable_fen() == 46


def test_advice_is_stored_whole_or_not_at_all(shop: Shop) -> None:
    for at in range(9):
        shop.till.void(request_id(f"nothing {at}"))
    with pytest.raises(QueueFull):
        shop.till.advise("shop", "5999", "100", 10)
    assert shop.till.waiting() == 9


def test_advice_again_is_the_same_advice(shop: Shop) -> None:
    for _ in range(3):
        shop.till.advise("shop", "5999", "100", 10, request_id=request_id("sale"))
    assert shop.till.waiting() == 2
    with pytest.raises(ValueError, match="something else"):
        shop.till.advise("shop", "5999", "100", 11, request_id=request_id("sale"))
    shop.till.drain(10)
    shop.till.advise("shop", "5999", "100", 10, request_id=request_id("sale"))
    assert shop.till.waiting() == 0
    assert shop.desk.payable_fen() == 10
    assert shop.desk.get("sale").offline


def test_a_chain_keeps_its_order_and_holds_up_no_other(shop: Shop) -> None:
    for name in ("a", "b"):
        shop.authorize(name, 100)
    shop.line.sent.clear()
    shop.till.capture(request_id("a"), 60)
    shop.till.refund(request_id("a"), 60)
    shop.till.capture(request_id("b"), 70)
    shop.line.script = ["INTERNAL"]
    shop.till.drain(100)
    assert [(method, request.amount_fen) for method, request in shop.line.sent] == [
        ("Capture", 60), ("Capture", 60), ("Refund", 60), ("Capture", 70),
    ] or [(method, request.amount_fen) for method, request in shop.line.sent] == [
        ("Capture", 60), ("Capture", 70), ("Capture", 60), ("Refund", 60),
    ]  # fmt: skip
    assert shop.desk.payable_fen() == 70


def test_while_nothing_gets_through_one_request_finds_out_for_all(shop: Shop) -> None:
    for at in range(5):
        shop.till.advise("shop", "5999", "100", 10 + at)
    shop.line.script = ["lost"] * 3 + ["ok", "lost"]
    assert shop.till.send() == 10
    assert len(shop.line.sent) == 1
    assert shop.till.drain(1_000) == 0
    assert len(shop.line.sent) == 14
    assert shop.pauses == [1, 2, 4, 1]  # the answer between them says that the line is good again
    assert shop.desk.payable_fen() == 60


def test_only_so_much_of_what_was_answered_is_kept(shop: Shop) -> None:
    for at in range(30):
        shop.authorize(f"a{at}", 1)
    assert shop.till.find(request_id("a8")) is None
    assert shop.till.find(request_id("a10")) is not None
    assert shop.authorize("a0", 1).duplicate  # the server remembers it longer


def test_one_process_has_the_file(shop: Shop) -> None:
    with pytest.raises(QueueInUse):
        Acquirer(shop.line, ACQUIRER, shop.file)  # type: ignore[arg-type]


def test_a_clock_set_back_stops_nothing(shop: Shop) -> None:
    shop.till.advise("shop", "5999", "100", 10)
    shop.line.script = ["lost"]
    assert shop.till.send() == 2
    shop.now_s -= 1_000_000
    assert shop.till.send() == 0


@pytest.mark.parametrize("seed", range(5))
def test_any_line_any_kill_nothing_lost_and_nothing_twice(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    shop = Shop(tmp_path, RULES._replace(attempts_max=1_000, queue_max=1_000))
    shop.desk.core.top_up("100", 100_000)
    made: dict[str, int] = {}
    met: Counter[str] = Counter()
    with shop.desk:
        for at in range(40):
            shop.line.script = chance.choices(["ok", "lost", "mute", "UNAVAILABLE", "INTERNAL"], [6, 2, 2, 1, 1], k=6)
            name, fen = f"p{at}", 10 + at
            try:
                if chance.random() < 0.3:
                    shop.till.advise("shop", "5999", "100", fen, request_id=request_id(name))
                    made[name] = fen
                else:
                    shop.authorize(name, fen, deadline_s=chance.choice([1, 4, 30]))
                    shop.till.capture(request_id(name), fen)
                    made[name] = fen
                    if chance.random() < 0.3:
                        shop.till.refund(request_id(name), 3)
                        made[name] -= 3
                    met["online"] += 1
            except AnswerUnknown:
                met["unknown"] += 1
            if chance.random() < 0.5:
                shop.till.send()
            if chance.random() < 0.3:
                shop.restart()
        shop.line.script = []
        assert shop.till.drain(1_000) == 0
        assert shop.till.failed() == []
        assert shop.desk.payable_fen() == sum(made.values())
        balance_fen, held_fen = shop.desk.account_fen("100")
        assert (balance_fen, held_fen) == (101_000 - sum(made.values()), 0)
        assert met["unknown"]
        assert met["online"]
        shop.till.close()


# ---- real processes ----


@pytest.fixture(scope="module")
def till_card(connection: Connection, key_set: KeySet) -> str:
    request = merchant_service_pb2.RegisterMerchantsRequest(
        merchants=[merchant_service_pb2.Merchant(acquirer_id="till", merchant_id="shop", merchant_category="5999")]
    )
    assert call(connection.merchants.RegisterMerchants, request).registrations[0].result == Result.ACCEPTED
    return new_card(connection, key_set, 1_000_000).card_number


def audit(connection: Connection, card: str, n: int) -> Counter[str]:
    """What became of each payment of the child, as the server knows it; and the sums are right."""
    found: Counter[str] = Counter()
    captured_fen = 0
    for i in range(n):
        request = pb.GetAuthorizationRequest(acquirer_id="till", authorize_request_id=acquirer_child.id_of(f"authorize {i}"))
        try:
            own = connection.authorizations.GetAuthorization(request).authorization
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
            found["reversed before it came"] += 1
            continue
        wanted = State.VOIDED if i % 5 == 3 else State.CAPTURED
        assert own.state in (wanted, State.REVERSED), i
        assert own.captured_fen == (1 + i if own.state == State.CAPTURED else 0)
        captured_fen += own.captured_fen
        found[State(own.state).name] += 1
    merchant = connection.merchants.GetMerchant(merchant_service_pb2.GetMerchantRequest(acquirer_id="till", merchant_id="shop"))
    assert merchant.payable_fen == captured_fen
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card))
    assert (balance.balance_fen, balance.held_fen) == (1_000_000 - captured_fen, 0)
    return found


def start_child(address: str, file: Path, card: str, n: int) -> "subprocess.Popen[str]":
    command = [sys.executable, str(CHILD), address, str(file), card, str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_till_killed_again_and_again_loses_nothing(
    server: EmbeddedServer, connection: Connection, till_card: str, tmp_path: Path
) -> None:
    n, kills = 40, 0
    chance = random.Random(11)
    while True:
        child = start_child(server.address, tmp_path / "till.db", till_card, n)
        assert child.stdout is not None
        drained = False
        until = chance.randrange(2, 16)
        for lines, line in enumerate(child.stdout, 1):
            drained = line.strip() == "drained"
            if kills < 6 and lines == until and not drained:
                child.kill()
                kills += 1
                break
        child.wait()
        child.stdout.close()
        if drained:
            break
        assert kills <= 6
    assert kills == 6
    found = audit(connection, till_card, n)
    # Only what was under way when it was killed may have come to nothing.
    assert found["REVERSED"] + found["reversed before it came"] <= kills
    assert found["VOIDED"] + found["CAPTURED"] >= n - kills


def test_a_server_killed_under_a_till_loses_nothing(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    n = 40
    with EmbeddedServer(tmp_path / "data", key_file) as first:
        port = first.address.rpartition(":")[2]
        with Connection(first.address) as connection:
            request = merchant_service_pb2.RegisterMerchantsRequest(
                merchants=[merchant_service_pb2.Merchant(acquirer_id="till", merchant_id="shop", merchant_category="5999")]
            )
            call(connection.merchants.RegisterMerchants, request)
            card = new_card(connection, key_set, 1_000_000).card_number
        child = start_child(first.address, tmp_path / "till.db", card, n)
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == "12":
                break
        first.kill()
    with EmbeddedServer(tmp_path / "data", key_file, "--service-port", port) as second:
        rest = child.stdout.read()
        child.wait()
        child.stdout.close()
        assert rest.endswith("drained\n")
        with Connection(second.address) as connection:
            call(connection.accounts.GetBalance, account_service_pb2.GetBalanceRequest(card_number=card))
            found = audit(connection, card, n)
    assert found["VOIDED"] + found["CAPTURED"] == n
