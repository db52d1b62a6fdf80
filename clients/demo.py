"""A city in small: bus validators, metro gates and a museum tap over real gRPC, the server is killed without warning in the
middle, and afterwards everything that was acknowledged is still there and the books balance. A person gets a card, loses it and
gets another: demo_card.py. Then the day is settled: demo_day.py."""

import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from yikatong.clients.card import SimulatedCard
from yikatong.clients.connection import Connection, call
from yikatong.clients.demo_card import card_chapter, make_issuer
from yikatong.clients.demo_day import make_rules, settle_day, shop
from yikatong.clients.embedded import EmbeddedServer
from yikatong.clients.replay import operator_totals, result_name
from yikatong.clients.tables import operator_table, verdict, yuan
from yikatong.clients.terminal import Terminal
from yikatong.core.check import check
from yikatong.core.keys import key_sets
from yikatong.core.memory import EngineSettings
from yikatong.v1 import (
    account_service_pb2,
    card_service_pb2,
    clearing_service_pb2,
    result_pb2,
    tap_service_pb2,
    terminal_service_pb2,
)

CARDS: Final = 400
FUNDS_FEN: Final = 20_000
BUS, METRO, MUSEUM = (
    terminal_service_pb2.TERMINAL_KIND_BUS,
    terminal_service_pb2.TERMINAL_KIND_METRO_GATE,
    terminal_service_pb2.TERMINAL_KIND_MUSEUM,
)
FLEET: Final = [
    ("Heyuan Bus", BUS, 200, 3),
    ("East River Coaches", BUS, 500, 2),
    ("Metro Line 1", METRO, 300, 3),
    ("Heyuan Museum", MUSEUM, 1_000, 1),
]  # operator, kind of terminal, price in fen, terminals
PLACE: Final[dict[int, dict[str, int]]] = {
    BUS: {"industry": 2, "line": 105},
    METRO: {"industry": 1, "line": 1},
    MUSEUM: {"line": 9001},
}

Tap = tap_service_pb2.Tap
Outcome = tap_service_pb2.TapOutcome


@dataclass
class Tally:
    """What one operator's terminals were answered."""

    accepted: int = 0
    amount_fen: int = 0
    duplicates: int = 0
    declined: Counter[str] = field(default_factory=Counter)


class City:
    """Cards, terminals, and everything that the server has acknowledged."""

    def __init__(self, seed: int, key_set: key_sets.KeySet) -> None:
        self.random = random.Random(seed)
        self.cards = [SimulatedCard(f"4416{i:012d}", key_set, FUNDS_FEN) for i in range(CARDS)]
        self.shopper = SimulatedCard(
            "4416999999999998", key_set, FUNDS_FEN
        )  # rides nowhere, so its money is there in the evening
        self.poor = SimulatedCard("4416999999999999", key_set)  # registered, never funded
        self.stranger = SimulatedCard("4416000099990000", key_set)  # not registered
        self.terminals = [
            Terminal((i << 8 | j).to_bytes(6, "big"), kind, operator)
            for i, (operator, kind, _, count) in enumerate(FLEET, 1)
            for j in range(count)
        ]
        self.prices = {operator: price for operator, _, price, _ in FLEET}
        self.lock = threading.Lock()
        self.idle = list(self.cards)
        self.tallies = {operator: Tally() for operator, *_ in FLEET}
        self.acknowledged: list[tuple[Tap, Outcome, str]] = []
        self.dates: set[int] = set()
        self.unanswered = 0

    def open(self, connection: Connection) -> None:
        """Issue cards and terminals, and fund the cards."""
        cards = [*self.cards, self.shopper, self.poor]
        request = card_service_pb2.RegisterCardsRequest(
            cards=[card_service_pb2.Card(card_number=card.card_number, issuer_id=card.key_set.issuer_id) for card in cards]
        )
        call(connection.cards.RegisterCards, request)
        call(
            connection.terminals.RegisterTerminals,
            terminal_service_pb2.RegisterTerminalsRequest(
                terminals=[
                    terminal_service_pb2.Terminal(
                        terminal_number=terminal.terminal_number,
                        operator_id=terminal.operator_id,
                        kind=terminal.kind,  # type: ignore[arg-type]
                    )
                    for terminal in self.terminals
                ]
            ),
        )
        call(
            connection.accounts.BatchTopUp,
            account_service_pb2.BatchTopUpRequest(
                requests=[
                    account_service_pb2.TopUpRequest(
                        request_id=i.to_bytes(16, "big"), card_number=card.card_number, amount_fen=FUNDS_FEN
                    )
                    for i, card in enumerate([*self.cards, self.shopper])
                ]
            ),
        )

    def answered(self, terminal: Terminal, tap: Tap, outcome: Outcome) -> None:
        """The server has acknowledged a tap."""
        with self.lock:
            if outcome.sequence and not outcome.duplicate:
                self.acknowledged.append((tap, outcome, terminal.operator_id))
        self.count(terminal.operator_id, outcome)

    def count(self, operator_id: str, outcome: Outcome) -> None:
        """Add an answer to its operator's."""
        with self.lock:
            tally = self.tallies[operator_id]
            if outcome.settlement_date:
                self.dates.add(outcome.settlement_date)
            if outcome.duplicate:
                tally.duplicates += 1
            elif outcome.result in (result_pb2.RESULT_ACCEPTED, result_pb2.RESULT_DEBT_BOOKED):
                tally.accepted += 1
                tally.amount_fen += outcome.charged_fen
            else:
                tally.declined[result_name(outcome.result)] += 1

    def settled(self, terminal: Terminal, tap: Tap, outcome: Outcome) -> None:
        """A tap that had no answer before the crash was sent again. Marked as a duplicate, it had been durable after all; either
        way it counts once."""
        first = Outcome()
        first.CopyFrom(outcome)
        first.duplicate = False
        self.answered(terminal, tap, first)

    # ---- what riders do ----

    def borrow(self) -> SimulatedCard:
        with self.lock:
            return self.idle.pop(self.random.randrange(len(self.idle)))

    def give_back(self, card: SimulatedCard) -> None:
        with self.lock:
            self.idle.append(card)

    def ride(self, connection: Connection, terminal: Terminal) -> None:
        """One rider. Buses keep their taps and upload them; the others ask online. Raises grpc.RpcError without an answer."""
        card = self.borrow()
        fields = PLACE[terminal.kind]
        try:
            tap = terminal.present(card, self.prices[terminal.operator_id], **fields)
            if terminal.kind == BUS:
                terminal.store(tap)
                if len(terminal.stored) >= 10:
                    for sent, outcome in terminal.upload(connection):
                        self.answered(terminal, sent, outcome)
            else:
                terminal.stored.append(tap)  # until it is answered
                self.answered(terminal, tap, terminal.authorize(connection, tap))
                terminal.stored.remove(tap)
        finally:
            self.give_back(card)

    def trouble(self, connection: Connection) -> list[tuple[str, str]]:
        """The cases that a core must tell apart; returns what was tried and what was answered."""
        gate = next(terminal for terminal in self.terminals if terminal.kind == METRO)
        card = self.borrow()
        shown: list[tuple[str, str]] = []

        def send(what: str, tap: Tap) -> None:
            outcome = gate.authorize(connection, tap)
            self.answered(gate, tap, outcome)
            shown.append((what, result_name(outcome.result) + (" (duplicate)" if outcome.duplicate else "")))

        good = gate.present(card, 300, **PLACE[METRO])
        send("a valid tap", good)
        send("the same tap again", good)
        other = Tap()
        other.CopyFrom(good)
        other.amount_fen, other.mac = 100, bytes(4)
        send("the same counter, other content", other)
        forged = gate.present(card, 300, **PLACE[METRO])
        forged.mac = bytes(byte ^ 0xFF for byte in forged.mac)
        send("a wrong MAC", forged)
        send("an empty purse", gate.present(self.poor, 300, **PLACE[METRO]))
        send("an unknown card", gate.present(self.stranger, 300, **PLACE[METRO]))
        self.give_back(card)
        return shown


def _live(city: City, state: Text) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAVY, title="Taps as they are answered")
    for column in ("operator", "accepted", "CNY", "repeated", "declined"):
        table.add_column(column, justify="left" if column in ("operator", "declined") else "right")
    with city.lock:
        for operator, tally in city.tallies.items():
            declined = ", ".join(f"{count} {name}" for name, count in sorted(tally.declined.items()))
            table.add_row(operator, f"{tally.accepted:,}", yuan(tally.amount_fen), str(tally.duplicates), declined or "—")
    return Group(table, state)


def _tap_until(city: City, address: str, stop: threading.Event) -> list[threading.Thread]:
    """A thread for each terminal; each ends when told to, or when the server is gone."""

    def run(terminal: Terminal) -> None:
        with Connection(address) as connection:
            while not stop.is_set():
                try:
                    city.ride(connection, terminal)
                except grpc.RpcError:
                    return
                time.sleep(0.002)

    threads = [threading.Thread(target=run, args=(terminal,), daemon=True) for terminal in city.terminals]
    for thread in threads:
        thread.start()
    return threads


def _watch(live: Live, city: City, state: Text, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        live.update(_live(city, state))
        time.sleep(0.1)


def _verify_acknowledged(city: City, connection: Connection) -> int:
    """Send every acknowledged tap again: each must be known, with the very answer it had; what was refused is looked up by its
    journal sequence. Returns how many were lost or changed."""
    lost = 0
    repeatable = (result_pb2.RESULT_ACCEPTED, result_pb2.RESULT_DEBT_BOOKED, result_pb2.RESULT_INSUFFICIENT_FUNDS)
    kept = [(tap, outcome) for tap, outcome, _ in city.acknowledged if outcome.result in repeatable]
    for _, outcome, _ in city.acknowledged:
        if outcome.result not in repeatable:
            found = call(connection.taps.GetTap, tap_service_pb2.GetTapRequest(sequence=outcome.sequence))
            lost += found.outcome != outcome
    for start in range(0, len(kept), 1000):
        batch = kept[start : start + 1000]
        request = tap_service_pb2.SubmitTapsRequest(taps=[tap for tap, _ in batch])
        for (_, before), after in zip(batch, call(connection.taps.SubmitTaps, request).outcomes, strict=True):
            known = after.duplicate
            after.duplicate = False
            lost += not (known and after == before)
    return lost


def _expected(city: City) -> list[tuple[str, int, int]]:
    return sorted((operator, tally.accepted, tally.amount_fen) for operator, tally in city.tallies.items() if tally.accepted)


def _cleared(city: City, connection: Connection) -> list[tuple[str, int, int]]:
    requests = [clearing_service_pb2.GetOperatorTotalsRequest(settlement_date=date) for date in city.dates]
    return operator_totals(connection, requests)


def run_demo(console: Console, seconds: float, seed: int | None, keep: Path | None = None) -> int:
    """The whole show; returns the exit status: 0 when all held. `keep` is a folder for the day's papers."""
    seed = random.randrange(1 << 32) if seed is None else seed
    with tempfile.TemporaryDirectory(prefix="yikatong-demo-") as folder:
        data = Path(folder) / "data"
        data.mkdir(mode=0o700)
        key_set = key_sets.make_test_keys(data / "keys.toml")[0]
        city = City(seed, key_set)
        console.print(Panel(f"a city in small: {CARDS} cards, {len(city.terminals)} terminals, seed {seed}", expand=False))
        server = EmbeddedServer(data, data / "keys.toml")
        try:
            return _run(console, city, server, data, seconds, keep)
        finally:
            if server.process.poll() is None:
                server.kill()


def _run(console: Console, city: City, server: EmbeddedServer, data: Path, seconds: float, keep: Path | None) -> int:
    good: list[bool] = []

    def tell(holds: bool, yes: str, no: str) -> None:
        good.append(holds)
        console.print(verdict(holds, yes, no))

    stop = threading.Event()
    state = Text("server: serving", "green")
    with Live(_live(city, state), console=console, refresh_per_second=8) as live:
        with Connection(server.address) as connection:
            city.open(connection)
            shown = city.trouble(connection)
        threads = _tap_until(city, server.address, stop)
        _watch(live, city, state, seconds)
        server.kill()
        state = Text("server: killed without warning (SIGKILL)", "bold red")
        _watch(live, city, state, 1.0)
        stop.set()
        for thread in threads:
            thread.join()
    expected = [
        ("a valid tap", "ACCEPTED"), ("the same tap again", "ACCEPTED (duplicate)"),
        ("the same counter, other content", "CONFLICT"), ("a wrong MAC", "MAC_MISMATCH"),
        ("an empty purse", "INSUFFICIENT_FUNDS"), ("an unknown card", "UNKNOWN_CARD"),
    ]  # fmt: skip
    cases = Table(box=box.SIMPLE_HEAVY, title="Cases to be told apart")
    cases.add_column("what came")
    cases.add_column("answer")
    for what, answer in shown:
        cases.add_row(what, answer)
    console.print(cases)
    tell(shown == expected, "every case got its own answer", f"other answers were expected: {expected}")

    acknowledged, pending = len(city.acknowledged), sum(len(terminal.stored) for terminal in city.terminals)
    rules = make_rules(data, [operator for operator, *_ in FLEET])
    issuer = make_issuer(data, data / "keys.toml")
    begun = time.monotonic()
    server = EmbeddedServer(data, data / "keys.toml", *rules, *issuer.arguments)
    console.print(f"restarted in {time.monotonic() - begun:.2f} s; {acknowledged:,} acknowledged, {pending} without an answer")
    try:
        with Connection(server.address) as connection:
            lost = _verify_acknowledged(city, connection)
            tell(lost == 0, f"nothing acknowledged was lost: {acknowledged:,} taps are there as they were answered",
                 f"{lost} acknowledged taps were lost or changed")  # fmt: skip
            for terminal in city.terminals:  # the terminals send again what had no answer
                for tap, outcome in terminal.upload(connection, attempts=5):
                    city.settled(terminal, tap, outcome)
            stop = threading.Event()
            state = Text("server: serving again", "green")
            with Live(_live(city, state), console=console, refresh_per_second=8) as live:
                threads = _tap_until(city, server.address, stop)
                _watch(live, city, state, seconds / 2)
                stop.set()
                for thread in threads:
                    thread.join()
                for terminal in city.terminals:
                    for tap, outcome in terminal.upload(connection):
                        city.answered(terminal, tap, outcome)
                live.update(_live(city, state))
            for ride in card_chapter(console, connection, data, city.shopper.key_set, issuer, (FLEET[0][0], FLEET[2][0]), tell):
                city.count(*ride)
            cleared = _cleared(city, connection)
            console.print(operator_table("Cleared per operator", cleared))
            tell(cleared == _expected(city), "the clearing equals what the terminals were answered, to the fen",
                 f"the terminals were answered {_expected(city)}")  # fmt: skip
            shop(console, connection, city.shopper.card_number, tell)
            paid = next(outcome for _, outcome, operator in city.acknowledged if outcome.charged_fen and operator == FLEET[0][0])
            kept = settle_day(console, connection, data, FLEET[0][0], paid.sequence, tell)
            books = call(connection.clearing.GetTrialBalance, clearing_service_pb2.GetTrialBalanceRequest())
            tell(books.imbalance_fen == 0, f"the books balance: {books.accounts:,} accounts sum to 0",
                 f"the books are out by {books.imbalance_fen} fen")  # fmt: skip
        tell(server.stop() == 0, "the server drained and stopped", "the server did not stop in order")
    finally:
        if server.process.poll() is None:
            server.kill()
    report = check(data, EngineSettings())
    console.print(verdict(True, f"yikatong check: {report.records:,} records, hash chain and every balance verified", ""))
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for name, content in kept.items():
            (keep / name).write_bytes(content)
        console.print(f"{keep}: {', '.join(sorted(kept))}", highlight=False, soft_wrap=True)
    return 0 if all(good) else 1
