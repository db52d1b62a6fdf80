"""A small city whose days are cleared: a harness, agreements, and riders that tap."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness import ISSUER, START_S, Harness, local_time_of, make_tap

from yikatong.clients.bank import return_file
from yikatong.core import types
from yikatong.core.change import Change
from yikatong.core.day import payments
from yikatong.core.day.day import Day, DayRules
from yikatong.core.day.positions import FEES, FLOAT, line_of
from yikatong.core.day.reconcile import InstructionState
from yikatong.core.day.windows import WindowEvent, advance
from yikatong.core.rules.agreements import Agreements
from yikatong.core.rules.source import Source
from yikatong.core.sm2 import PrivateKey
from yikatong.core.types import PostingKind, RecordKind, Result, WindowState
from yikatong.v1 import clearing_service_pb2, reconciliation_service_pb2, settlement_service_pb2

DATE = 20250101  # START_S lies in it
SEAL_KEY = PrivateKey.make()
AGREEMENTS = """
version = "test-1"
city = 5980

[[agreement]]
participant = "operator:bus"
from = 2025-01-01
name = "Bus company"
bank_code = "105598000001"
account_number = "440012345678"
category = "4131"
appeal_days = 3
deny_list_hours = 24
tap_fen_max = 5000
fee = { rate_bp = 70, minimum_fen = 1, cap_fen = 9 }
concessions = { city = 7, operator = 3 }

[[agreement]]
participant = "operator:metro"
from = 2025-01-01
name = "Metro company"
bank_code = "105598000001"
account_number = "440012345679"
category = "4111"
appeal_days = 3
deny_list_hours = 24
fee = { rate_permille = 5, per = "window" }

[[agreement]]
participant = "operator:next-city"
from = 2025-01-01
name = "The next city's clearing centre"
bank_code = "105598000001"
account_number = "440012345680"
category = "4111"
appeal_days = 3
deny_list_hours = 24
city = 4403

[[account]]
participant = "float"
from = 2025-01-01
name = "Float"
bank_code = "105598000001"
account_number = "440012345600"

[[account]]
participant = "fees"
from = 2025-01-01
name = "Fees"
bank_code = "105598000001"
account_number = "440012345601"

[[account]]
participant = "subsidy:city"
from = 2025-01-01
name = "The city's treasury"
bank_code = "105598000001"
account_number = "440012345602"

[[account]]
participant = "city:4403"
from = 2025-01-01
name = "The next city"
bank_code = "105598000001"
account_number = "440012345603"

[[account]]
participant = "city:4401"
from = 2025-01-01
name = "Another city"
bank_code = "105598000001"
account_number = "440012345604"

[[transfer]]
operators = ["operator:bus", "operator:metro"]
from = 2025-01-01
within_minutes = 60
shares = [1, 1]
"""
OPERATORS = ("bus", "metro", "next-city")
MOVED_BY_CLEARING = {
    kind for kind in PostingKind if kind.name in ("FEE", "SUBSIDY", "SPLIT", "INTER_CITY", "LIABILITY", "HELD", "GREY")
}


@cache
def agreements(text: str = AGREEMENTS) -> Agreements:
    return Agreements(Source("agreements.toml", text.encode()))


def _move_on(memory: Any, date: int, event: WindowEvent, time_us: int) -> Result:
    """A window's state goes on by itself, without the files and payments that belong to it."""
    change = Change(memory, time_us)
    result = advance(memory, change, date, event)
    if result is Result.ACCEPTED:
        change.commit(f"window-{event.name.lower()}")
    return result


class City(Harness):
    """Cards 0 to 3 with money, a terminal of each operator."""

    def __init__(self, path: Path, text: str = AGREEMENTS, folder: bool = True, **settings: int) -> None:
        super().__init__(path, **settings)
        self.text = text
        self.folder = path / "clearing" if folder else None
        self.sequences: Counter[str] = Counter()
        self.chips = [100_000] * 4
        self.atcs = [0] * 4
        for card in range(4):
            self.register_card(self.card(card))
            self.top_up(self.card(card), 100_000)
        for operator in OPERATORS:
            self.register_terminal(self.terminal(operator), operator)

    @staticmethod
    def card(number: int) -> str:
        return f"31044160000000{number:02d}"

    @staticmethod
    def terminal(operator: str) -> bytes:
        return operator.encode().ljust(6, b".")[:6]

    def make(self, card: int = 0, operator: str = "bus", amount_fen: int = 200, **fields: Any) -> Any:
        """The card's next tap at an operator's terminal, proved."""
        self.atcs[card] += 1
        self.sequences[operator] += 1
        before = self.chips[card]
        self.chips[card] -= amount_fen
        values: dict[str, Any] = {
            "card_number": self.card(card), "issuer_id": ISSUER, "terminal_number": self.terminal(operator),
            "terminal_sequence": self.sequences[operator], "atc": self.atcs[card], "amount_fen": amount_fen,
            "amount_due_fen": amount_fen, "chip_balance_before_fen": before, "chip_balance_after_fen": before - amount_fen,
            "local_time": local_time_of(self.now_s), "city": 5980,
        }  # fmt: skip
        return make_tap(**(values | fields))

    def tap(self, card: int = 0, operator: str = "bus", amount_fen: int = 200, **fields: Any) -> Any:
        """Make a tap and submit it; its outcome."""
        return self.submit(self.make(card, operator, amount_fen, **fields))[0]

    def to_date(self, days: int) -> None:
        """08:30 of the day so many days after the first."""
        self.now_us = max(self.now_us, (START_S + days * 86_400) * 1_000_000)

    # ---- the day ----

    @property
    def day(self) -> Day:
        def ask(command: Any) -> Any:
            return self.ask(lambda memory, _, time_us: command(memory, time_us), None)

        return Day(self.journal.read, ask, DayRules(self.folder, agreements(self.text), SEAL_KEY))

    def request_id(self) -> bytes:
        return b"day-" + self.engine.next_sequence.to_bytes(12, "big")

    def close_window(self, date: int = DATE, request_id: bytes | None = None) -> Any:
        request = clearing_service_pb2.CloseWindowRequest(request_id=request_id or self.request_id(), settlement_date=date)
        return self.day.close(request)

    def clear_window(self, date: int = DATE, request_id: bytes | None = None) -> Any:
        request = clearing_service_pb2.ClearWindowRequest(request_id=request_id or self.request_id(), settlement_date=date)
        return self.day.clear(request)

    def step(self, event: WindowEvent, date: int = DATE) -> Result:
        return self.ask(lambda memory, _, time_us: _move_on(memory, date, event, time_us), None)

    def settle_window(self, date: int = DATE, request_id: bytes | None = None) -> Any:
        request = settlement_service_pb2.SettleWindowRequest(request_id=request_id or self.request_id(), settlement_date=date)
        return self.day.settle(request)

    def instructions(self, date: int = DATE) -> list[Any]:
        return payments.instructions_of(self.memory, date)

    def pay(self, date: int = DATE, returned: Sequence[str] = (), statement_id: str = "", only_open: bool = True) -> Any:
        """What a bank says of a window's instructions that are on their way."""
        on_their_way = [each for each in self.instructions(date) if each.state == InstructionState.ISSUED or not only_open]
        content = return_file(statement_id or f"pay-{self.engine.next_sequence}", on_their_way, self.now_us, returned=returned)
        request = reconciliation_service_pb2.IngestBankFileRequest(request_id=self.request_id(), name="bank.csv", content=content)
        bank = payments.read_bank_file(request)
        return self.ask(lambda memory, asked, time_us: payments.ingest_bank_file(memory, asked, bank, time_us), request)

    def seal_window(self, date: int = DATE, request_id: bytes | None = None) -> Any:
        request = settlement_service_pb2.SealWindowRequest(request_id=request_id or self.request_id(), settlement_date=date)
        return self.day.seal(request)

    def cleared(self, date: int = DATE) -> Any:
        """Close and clear a window; what it came to."""
        assert self.close_window(date).result == Result.ACCEPTED
        response = self.clear_window(date)
        assert response.result == Result.ACCEPTED, response
        return response.window

    def sealed(self, date: int = DATE) -> Any:
        self.cleared(date)
        assert self.step(WindowEvent.SETTLE, date) is Result.ACCEPTED
        response = self.seal_window(date)
        assert response.result == Result.ACCEPTED
        return response.window

    def outcomes(self, window: Any) -> dict[str, tuple[int, int]]:
        return {types.ClearingOutcome(total.outcome).name: (total.count, total.amount_fen) for total in window.outcomes}

    def state(self, date: int = DATE) -> WindowState:
        request = clearing_service_pb2.GetWindowRequest(settlement_date=date)
        return WindowState(self.day.get_window(request).window.state)

    def positions(self, date: int = DATE) -> dict[str, int]:
        return {position.participant: position.net_fen for position in self.day.netted(date).positions}

    def post(self, debit: str, credit: str, amount_fen: int, kind: PostingKind) -> None:
        """A posting between named accounts, as other services make them."""

        def command(memory: Any, _: Any, time_us: int) -> None:
            change = Change(memory, time_us)
            change.move(change.open_account(debit), change.open_account(credit), amount_fen, kind)
            change.commit("test")

        self.ask(command, None)

    # ---- the ledger, as an auditor reads it from the journal ----

    def moved(self, date: int = DATE) -> dict[str, int]:
        """What each participant's account moved by for a window: by the window's own records, but for what carries out earlier
        windows, and by the postings of the event that cleared it."""
        names = {account: f"operator:{name}" for name, account in self.memory.operator_accounts.items()}
        names |= {
            account: name.rpartition(":")[0] if name.count(":") > 1 else name for name, account in self.memory.named_accounts()
        }
        party = {"operator:next-city": "city:4403"}
        sums: Counter[str] = Counter()
        window = next(window for window in self.windows() if window.settlement_date == date)
        clearings = []
        with self.journal.read() as reader:
            for entry in reader.entries():
                for record in entry.array:
                    kind, sequence = int(record["kind"]), int(record["sequence"])
                    if kind == RecordKind.EVENT:
                        event = self.event(entry, record)
                        cleared_here = event.name == "window-cleared" and any(
                            document.kind == types.DocumentKind.WINDOW and document.key == date.to_bytes(4, "big")
                            for document in event.documents
                        )
                        clearings.append(sequence) if cleared_here else None
                    if record["debit_account"] == types.NONE or record["credit_account"] == types.NONE:
                        continue
                    within = window.first_sequence <= sequence <= window.last_sequence
                    why = PostingKind(int(record["transaction_type"])) if kind == RecordKind.POSTING else None
                    own = within and (why is None or line_of(why) is not None)
                    of_clearing = bool(clearings) and why in MOVED_BY_CLEARING and self.event_of(reader, sequence) == clearings[0]
                    if own or of_clearing:
                        for account, sign in ((int(record["debit_account"]), -1), (int(record["credit_account"]), 1)):
                            name = names.get(account, FLOAT)
                            name = party.get(name, name)
                            known = name == FEES or name.startswith(("operator:", "acquirer:", "city:", "subsidy:"))
                            sums[name if known else FLOAT] += sign * int(record["amount_fen"])
        return {name: amount_fen for name, amount_fen in sums.items() if amount_fen}

    @staticmethod
    def event(entry: Any, record: Any) -> Any:
        from yikatong.v1 import journal_pb2

        return journal_pb2.Event.FromString(entry.payload(int(record["payload_place"])))

    def event_of(self, reader: Any, sequence: int) -> int:
        """The event before a posting."""
        while True:
            found = reader.record(sequence)
            if found[1][0]["kind"] == RecordKind.EVENT:
                return sequence
            sequence -= 1

    def windows(self) -> list[Any]:
        return list(self.day.list_windows(clearing_service_pb2.ListWindowsRequest()).windows)
