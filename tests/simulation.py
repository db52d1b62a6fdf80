"""A seeded simulation: workload, auditor, faults.

The workload makes what cards, terminals and callers send: good taps and bad ones, repeats, forgeries, top-ups. The
auditor predicts every answer and every balance with a model in plain dicts that shares nothing with the engine but the
vocabulary and the protos. The faults lose memory between groups, fail commits at every step, and break checkpoints
half-way.

    python tests/simulation.py --seed 7 --steps 60             replays one run
    python tests/simulation.py --seed 0 --count 5000 --jobs 2  looks for a seed that fails
"""

import argparse
import random
import sys
import tempfile
import traceback
from collections import Counter, deque
from dataclasses import dataclass, field, fields
from datetime import datetime
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

from harness import (
    CHINA,
    DAY_S,
    ISSUER,
    KEY_SETS,
    OTHER_ISSUER,
    Harness,
    authorize_request,
    failing,
    form_fault,
    limited,
    local_time_of,
    reference_mac,
    submit_request,
)

from yikatong.clients.card import sign
from yikatong.core import commands
from yikatong.core.check import check
from yikatong.core.errors import CommitFailed, InvalidRequest, NotFound
from yikatong.core.types import Result
from yikatong.v1 import account_service_pb2, card_service_pb2, tap_service_pb2, terminal_service_pb2

STEPS = 60
GRACE_S = DAY_S
# Small, so that batches overflow and repeated taps fall out of the ring. The ring still holds what two groups on their
# way to disk and one in the making can hold, as core/limits.py demands of the real ones.
LIMITS = {"GROUP_TAPS_MAX": 16, "REQUEST_ITEMS_MAX": 16, "RING_RECORDS": 128}

COMMIT_FAILPOINTS = ("journal-before-append", "journal-after-append", "journal-before-commit", "journal-after-commit")
CHECKPOINT_FAILPOINTS = ("checkpoint-before-write", "checkpoint-middle", "checkpoint-before-commit")

Tap = tap_service_pb2.Tap
TapOutcome = tap_service_pb2.TapOutcome
Transaction = account_service_pb2.Transaction


# ---- the model ----


class ModelCard(NamedTuple):
    issuer_id: bytes
    rider: int
    expires: int
    balance_fen: int = 0
    denied_since_s: int = 0
    atc_next: int = 0
    transactions: tuple[Transaction, ...] = ()


class ModelTerminal(NamedTuple):
    operator_id: str
    kind: int


class ModelTopUp(NamedTuple):
    card_number: str
    amount_fen: int
    balance_after_fen: int
    sequence: int


@dataclass
class Model:
    """What the core should hold. All values are immutable, so that a copy of the dicts is a copy of the model."""

    cards: dict[str, ModelCard] = field(default_factory=dict)
    terminals: dict[bytes, ModelTerminal] = field(default_factory=dict)
    operators_fen: dict[str, int] = field(default_factory=dict)
    top_ups: dict[bytes, ModelTopUp] = field(default_factory=dict)
    taps: dict[int, tap_service_pb2.GetTapResponse] = field(default_factory=dict)  # by sequence
    card_counters: dict[tuple[str, int], int] = field(default_factory=dict)  # sequences of proved taps
    terminal_counters: dict[tuple[bytes, int], int] = field(default_factory=dict)
    books: dict[str, int] = field(default_factory=lambda: {"next_sequence": 1, "funded_fen": 0})

    def copy(self) -> "Model":
        return Model(**{each.name: dict(getattr(self, each.name)) for each in fields(self)})

    def _next_sequence(self) -> int:
        self.books["next_sequence"] += 1
        return self.books["next_sequence"] - 1

    def _log(self, card_number: str, **values: Any) -> None:
        card = self.cards[card_number]
        self.cards[card_number] = card._replace(transactions=(*card.transactions, Transaction(**values)))

    # ---- registrations ----

    def register_card(self, card: card_service_pb2.Card, time_us: int) -> tuple[int, bool, int, str]:
        if not (card.card_number.isascii() and card.card_number.isdigit() and len(card.card_number) <= 20):
            return Result.MALFORMED_CARD_NUMBER, False, 0, "card_number"
        if len(card.issuer_id) != 8:
            return Result.MALFORMED_ISSUER_ID, False, 0, "issuer_id"
        if known := self.cards.get(card.card_number):
            same = (known.issuer_id, known.rider, known.expires) == (card.issuer_id, card.rider, card.expires)
            return Result.ACCEPTED if same else Result.CONFLICT, same, 0, ""
        sequence = self._next_sequence()
        self.cards[card.card_number] = ModelCard(card.issuer_id, card.rider, card.expires)
        self._log(
            card.card_number,
            sequence=sequence,
            kind=Transaction.KIND_CARD_REGISTERED,
            result=Result.ACCEPTED,
            journal_time_us=time_us,
        )
        return Result.ACCEPTED, False, sequence, ""

    def register_terminal(self, terminal: terminal_service_pb2.Terminal) -> tuple[int, bool, int, str]:
        if len(terminal.terminal_number) != 6:
            return Result.MALFORMED_TERMINAL, False, 0, "terminal_number"
        if not terminal.operator_id:
            return Result.MALFORMED_OPERATOR, False, 0, "operator_id"
        content = ModelTerminal(terminal.operator_id, terminal.kind)
        if known := self.terminals.get(terminal.terminal_number):
            return Result.ACCEPTED if known == content else Result.CONFLICT, known == content, 0, ""
        if terminal.operator_id not in self.operators_fen:
            self.operators_fen[terminal.operator_id] = 0
            self._next_sequence()  # the operator's account is a record of its own
        self.terminals[terminal.terminal_number] = content
        return Result.ACCEPTED, False, self._next_sequence(), ""

    # ---- top-ups ----

    def top_up(self, request: account_service_pb2.TopUpRequest, time_us: int) -> account_service_pb2.TopUpResponse:
        answer = account_service_pb2.TopUpResponse
        if len(request.request_id) != 16:
            return answer(result=Result.MALFORMED_REQUEST_ID, invalid_field="request_id")
        if not request.card_number.isdigit():
            return answer(result=Result.MALFORMED_CARD_NUMBER, invalid_field="card_number")
        if not 1 <= request.amount_fen <= 100_000_000:
            return answer(result=Result.MALFORMED_AMOUNT, invalid_field="amount_fen")
        if done := self.top_ups.get(request.request_id):
            if (done.card_number, done.amount_fen) != (request.card_number, request.amount_fen):
                return answer(result=Result.CONFLICT)
            return answer(
                result=Result.ACCEPTED,
                duplicate=True,
                balance_after_fen=done.balance_after_fen,
                sequence=done.sequence,
            )
        card = self.cards.get(request.card_number)
        if card is None:
            return answer(result=Result.UNKNOWN_CARD)
        sequence = self._next_sequence()
        balance_fen = card.balance_fen + request.amount_fen
        self.books["funded_fen"] += request.amount_fen
        self.cards[request.card_number] = card._replace(
            balance_fen=balance_fen, denied_since_s=0 if balance_fen >= 0 else card.denied_since_s
        )
        self.top_ups[request.request_id] = ModelTopUp(request.card_number, request.amount_fen, balance_fen, sequence)
        self._log(
            request.card_number,
            sequence=sequence,
            kind=Transaction.KIND_TOP_UP,
            result=Result.ACCEPTED,
            change_fen=request.amount_fen,
            balance_after_fen=balance_fen,
            journal_time_us=time_us,
        )
        return answer(result=Result.ACCEPTED, balance_after_fen=balance_fen, sequence=sequence)

    # ---- taps ----

    def tap(self, tap: Tap, stored: bool, time_us: int) -> TapOutcome:
        """One tap through the order of precedence (docs: what one tap meets)."""
        if fault := form_fault(tap, time_us // 1_000_000):
            return TapOutcome(result=fault[0], invalid_field=fault[1])

        of_card = self.card_counters.get((tap.card_number, tap.atc), 0)
        of_terminal = self.terminal_counters.get((tap.terminal_number, tap.terminal_sequence), 0)
        if of_card or of_terminal:
            earlier = self.taps[of_card or of_terminal]
            if of_card == of_terminal and earlier.tap.mac == tap.mac:
                again = TapOutcome(duplicate=True)
                again.MergeFrom(earlier.outcome)
                return again
            return self._record(
                tap, stored, time_us, TapOutcome(result=Result.CONFLICT, conflicting_sequence=of_card or of_terminal)
            )

        refusal = self._unproved(tap)
        if refusal:
            return self._record(tap, stored, time_us, TapOutcome(result=refusal))

        card, operator_id = self.cards[tap.card_number], self.terminals[tap.terminal_number].operator_id
        result = self._proved(card, tap, stored)
        charged_fen = tap.amount_fen if result in (Result.ACCEPTED, Result.DEBT_BOOKED) else 0
        denied_since_s = card.denied_since_s
        if result == Result.DEBT_BOOKED and not denied_since_s:
            denied_since_s = time_us // 1_000_000
        balance_fen = card.balance_fen - charged_fen
        self.operators_fen[operator_id] += charged_fen
        self.cards[tap.card_number] = card._replace(
            balance_fen=balance_fen, denied_since_s=denied_since_s, atc_next=max(card.atc_next, tap.atc + 1)
        )
        outcome = TapOutcome(result=result, charged_fen=charged_fen, balance_after_fen=balance_fen)
        self._record(tap, stored, time_us, outcome)
        self.card_counters[tap.card_number, tap.atc] = outcome.sequence
        self.terminal_counters[tap.terminal_number, tap.terminal_sequence] = outcome.sequence
        return outcome

    def _unproved(self, tap: Tap) -> Result | None:
        key_set = next((each for each in KEY_SETS if each[:3] == (tap.issuer_id, tap.key_version, tap.key_index)), None)
        if tap.card_number not in self.cards:
            return Result.UNKNOWN_CARD
        if tap.terminal_number not in self.terminals:
            return Result.UNKNOWN_TERMINAL
        if tap.algorithm_id != 4:
            return Result.ALGORITHM_UNSUPPORTED
        if tap.issuer_id != self.cards[tap.card_number].issuer_id:
            return Result.ISSUER_MISMATCH
        if key_set is None:
            return Result.UNKNOWN_KEY
        if tap.mac != reference_mac(tap, key_set):
            if tap.profile == 1 and tap.mac == b"\xff" * 4:
                return Result.TORN
            return Result.GREY if tap.profile == 1 and tap.grey else Result.MAC_MISMATCH
        return None

    @staticmethod
    def _proved(card: ModelCard, tap: Tap, stored: bool) -> Result:
        if card.expires and tap.local_time // 1_000_000 > card.expires:
            return Result.CARD_EXPIRED
        if card.denied_since_s:
            in_good_faith = tap.local_time <= local_time_of(card.denied_since_s + GRACE_S)
            if not (stored and in_good_faith):
                return Result.CARD_DENIED
        if tap.test:
            return Result.TEST
        if tap.amount_fen == 0 or tap.amount_fen <= card.balance_fen:
            return Result.ACCEPTED
        return Result.DEBT_BOOKED if stored else Result.INSUFFICIENT_FUNDS

    def _record(self, tap: Tap, stored: bool, time_us: int, outcome: TapOutcome) -> TapOutcome:
        outcome.sequence = self._next_sequence()
        outcome.settlement_date = int(datetime.fromtimestamp(time_us // 1_000_000, CHINA).strftime("%Y%m%d"))
        terminal = self.terminals.get(tap.terminal_number)
        self.taps[outcome.sequence] = tap_service_pb2.GetTapResponse(
            tap=tap,
            outcome=outcome,
            journal_time_us=time_us,
            stored=stored,
            operator_id=terminal.operator_id if terminal else "",
        )
        if tap.card_number in self.cards:
            self._log(
                tap.card_number,
                sequence=outcome.sequence,
                kind=Transaction.KIND_TAP,
                result=outcome.result,
                change_fen=-outcome.charged_fen,
                balance_after_fen=outcome.balance_after_fen,
                journal_time_us=time_us,
                terminal_sequence=tap.terminal_sequence,
                atc=tap.atc,
                local_time=tap.local_time,
            )
        return outcome


# ---- the workload ----


class TapRequest(NamedTuple):
    """A request as it goes over the wire, and the taps that are in it."""

    stored: bool
    taps: tuple[Tap, ...]
    broken: str = ""  # what is wrong with the request as a whole
    data: bytes = b""


# Digits that are one number but several card numbers, and card numbers that share their card serial.
CARD_NUMBERS = (
    "7", "07", "007", "000000007", "0000000000000007", "00000000000000000007",
    "3104416000000017", "98003104416000000017", "4416000000000001", "441600000000000123", "99999999999999999999",
)  # fmt: skip
TERMINAL_NUMBERS = tuple(bytes.fromhex(text) for text in ("000000000000", "000000000001", "112233445566", "ffffffffffff"))
OPERATORS = ("bus", "metro", "粤运")

MALFORMED: tuple[tuple[str, Any], ...] = (
    ("card_number", ""), ("card_number", "123456789012345678901"), ("card_number", "12a"), ("card_number", "١٢"),
    ("issuer_id", b"1234567"), ("profile", 0), ("profile", 3), ("algorithm_id", 256), ("key_version", 4_000_000_000),
    ("key_index", 256), ("transaction_type", 1), ("transaction_type", 262), ("amount_fen", -1), ("amount_fen", 1 << 32),
    ("amount_due_fen", -1), ("chip_balance_before_fen", 1 << 40), ("chip_balance_after_fen", -(1 << 63)),
    ("atc", 65_536), ("terminal_number", b"12345"), ("local_time", 0), ("local_time", 20250229120000),
    ("local_time", 20250101246000), ("local_time", 20990101000000), ("mac", b"123"), ("kind", 0), ("kind", -1),
    ("kind", 5), ("stop", 1 << 24), ("direction", 3), ("city", 10_000), ("industry", 10), ("rider", 8), ("rider", -1),
)  # fmt: skip


class Workload:
    """What the city sends. It knows what it made, not what became of it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.cards: dict[str, bytes] = {}  # issuer of each card number that was ever asked to be registered
        self.atc: Counter[str] = Counter()
        self.terminal_sequence: Counter[bytes] = Counter()
        self.skipped: list[tuple[str, int]] = []  # card counters left out, to come late
        self.sent: list[Tap] = []
        self.top_ups: list[account_service_pb2.TopUpRequest] = []

    # ---- commands ----

    def card(self, number: str = "") -> card_service_pb2.Card:
        chance = self.chance
        number = number or chance.choice(CARD_NUMBERS)
        issuer_id = self.cards.setdefault(number, chance.choice((ISSUER, ISSUER, OTHER_ISSUER)))
        # Mostly the same content for the same number, so that repeats are duplicates; some cards expire in the course.
        expires = 20250103 if CARD_NUMBERS.index(number) % 4 == 1 else 0
        card = card_service_pb2.Card(card_number=number, issuer_id=issuer_id, rider=1, expires=expires)
        match chance.randrange(12):
            case 0:
                card.rider = chance.randrange(8)
            case 1:
                card.issuer_id = chance.choice((b"", bytes(9)))
            case 2:
                card.card_number = chance.choice(("", "x", "1" * 21))
        return card

    def terminal(self, number: bytes = b"") -> terminal_service_pb2.Terminal:
        chance = self.chance
        number = number or chance.choice(TERMINAL_NUMBERS)
        operator_id = OPERATORS[number[0] % len(OPERATORS)]
        terminal = terminal_service_pb2.Terminal(terminal_number=number, operator_id=operator_id, kind=1)
        match chance.randrange(12):
            case 0:
                terminal.operator_id = chance.choice((*OPERATORS, ""))
            case 1:
                terminal.terminal_number = b"12345"
            case 2:
                terminal.kind = 2
        return terminal

    def top_up(self) -> account_service_pb2.TopUpRequest:
        chance = self.chance
        request = account_service_pb2.TopUpRequest(
            request_id=chance.randbytes(16),
            card_number=chance.choice(CARD_NUMBERS),
            amount_fen=chance.choice((1, 100, 2_000, chance.randrange(1, 50_000), chance.randrange(1, 100_000_001))),
        )
        if self.top_ups and chance.random() < 0.3:
            request.CopyFrom(chance.choice(self.top_ups))
            match chance.randrange(4):
                case 0:
                    request.amount_fen = chance.randrange(1, 5_000)
                case 1:
                    request.card_number = chance.choice(CARD_NUMBERS)
        elif chance.random() < 0.1:
            name, value = chance.choice((("request_id", b""), ("card_number", "x"), ("amount_fen", 0)))
            setattr(request, name, value)
        self.top_ups.append(request)
        return request

    # ---- taps ----

    def request(self, now_s: int) -> TapRequest:
        chance = self.chance
        stored = chance.random() < 0.6
        count = chance.choice((1, 1, 2, 3, 5, 16)) if stored else 1
        taps = tuple(self.tap(now_s) for _ in range(count))
        if chance.random() < 0.05:
            return self._broken(stored, taps)
        return TapRequest(stored, taps, "", submit_request(taps) if stored else authorize_request(taps[0]))

    def _broken(self, stored: bool, taps: tuple[Tap, ...]) -> TapRequest:
        one = authorize_request(taps[0])
        match self.chance.randrange(4):
            case 0:
                return TapRequest(stored, (), "taps", b"")
            case 1:
                return TapRequest(stored, (), "request", one[:-1])
            case 2:
                return TapRequest(False, taps[:1], "tap", one + one)
            case _:
                many = taps[:1] * (LIMITS["REQUEST_ITEMS_MAX"] + 1)
                return TapRequest(True, many, "taps", submit_request(many))

    def tap(self, now_s: int) -> Tap:
        chance = self.chance
        if self.sent and chance.random() < 0.3:
            tap = self._like_one_before(now_s)
        else:
            tap = self._fresh(now_s)
        self.sent.append(tap)
        return tap

    def _fresh(self, now_s: int) -> Tap:
        chance = self.chance
        card_number, terminal_number = chance.choice(CARD_NUMBERS), chance.choice(TERMINAL_NUMBERS)
        if self.skipped and chance.random() < 0.3:
            card_number, atc = self.skipped.pop(chance.randrange(len(self.skipped)))
        else:
            atc = self.atc[card_number]
            if chance.random() < 0.2:
                self.skipped.append((card_number, atc))
                atc += 1
            self.atc[card_number] = atc + 1
            if chance.random() < 0.01:
                atc = 65_535
        terminal_sequence = self.terminal_sequence[terminal_number]
        self.terminal_sequence[terminal_number] += 1
        if chance.random() < 0.01:
            terminal_sequence = (1 << 32) - 1
        issuer_id = self.cards.get(card_number, ISSUER)
        key_set = KEY_SETS[0] if issuer_id == ISSUER else KEY_SETS[1]
        age_s = chance.choice((0, 0, 1, 60, 3_600, DAY_S, 30 * DAY_S, -299))
        tap = Tap(
            card_number=card_number,
            issuer_id=issuer_id,
            profile=chance.choice((1, 2)),
            algorithm_id=4,
            key_version=key_set.key_version,
            key_index=key_set.key_index,
            transaction_type=chance.choice((6, 9)),
            amount_fen=(1 << 32) - 1 if chance.random() < 0.01 else chance.choice((0, 1, 200, chance.randrange(3_000))),
            amount_due_fen=chance.randrange(3_000),
            chip_balance_before_fen=chance.randrange(3_000),
            chip_balance_after_fen=chance.randrange(3_000),
            atc=atc,
            terminal_number=terminal_number,
            terminal_sequence=terminal_sequence,
            local_time=local_time_of(now_s - age_s),
            kind=chance.randrange(1, 5),
            line=chance.getrandbits(32),
            stop=chance.getrandbits(24),
            direction=chance.randrange(3),
            city=5980,
            industry=chance.randrange(10),
            rider=chance.randrange(8),
            test=chance.random() < 0.05,
        )
        if chance.random() < 0.1:
            tap.transfer.last_line = 7
        sign([tap], KEY_SETS)
        if chance.random() < 0.25:
            self._spoil(tap)
        return tap

    def _spoil(self, tap: Tap) -> None:
        """Something is wrong with the tap, after its card has answered."""
        chance = self.chance
        match chance.randrange(9):
            case 0 | 1:
                field, value = chance.choice(MALFORMED)
                setattr(tap, field, value)
            case 2:
                tap.mac = chance.randbytes(4)
            case 3:
                tap.amount_fen ^= 1
            case 7:
                tap.mac = b"\xff" * 4
            case 8:
                tap.grey = True
                tap.mac = chance.choice((bytes(4), tap.mac))
            case 4:
                tap.algorithm_id = 0
            case 5:
                tap.key_version = 9
            case 6:
                tap.issuer_id = OTHER_ISSUER if tap.issuer_id == ISSUER else ISSUER

    def _like_one_before(self, now_s: int) -> Tap:
        """A tap that was sent, again, as it was or nearly so."""
        chance = self.chance
        tap = Tap()
        tap.CopyFrom(chance.choice(self.sent[-60:] if chance.random() < 0.7 else self.sent))
        if form_fault(tap, now_s):
            return tap
        match chance.randrange(10):
            case 0:
                tap.amount_fen = chance.randrange(3_000)  # a cloned card: the same counter, another tap
            case 1:
                tap.terminal_number = chance.choice(TERMINAL_NUMBERS)
            case 2:
                tap.terminal_sequence += 1 if tap.terminal_sequence < 1_000 else -1
            case 3:
                tap.card_number = chance.choice(CARD_NUMBERS)
            case 4:
                tap.mac = chance.randbytes(4)
                return tap
            case 5:
                tap.city = 1  # the MAC does not cover it: still the same tap
                return tap
            case _:
                return tap
        if (tap.issuer_id, tap.key_version, tap.key_index) in {key_set[:3] for key_set in KEY_SETS}:
            sign([tap], KEY_SETS)
        return tap


# ---- the run ----


class SimulationFailed(AssertionError):
    """What went wrong, and the one command that does it again."""


class Simulation:
    """One run: groups of work, each answer held against the model, with faults in between."""

    def __init__(self, seed: int, path: Path) -> None:
        self.chance = random.Random(seed)
        self.path = path
        self.core = Harness(path, stored_grace_s=GRACE_S, cards_max=1_000, terminals_max=1_000, hash_seed=seed)
        self.workload = Workload(self.chance)
        self.model = Model()
        self.before: deque[tuple[int, Model]] = deque()  # of each group that is not durable: first sequence, model before it
        self.unanswered: list[TapRequest] = []  # no room in the batch, or lost with a group: sent again
        self.written: bool | None = None  # what came of the photograph's writing, until it is settled
        self.photographed = False
        self.seen: Counter[str] = Counter()  # what happened, to show that the workload reaches everything
        self._register_cards([self.workload.card(number) for number in CARD_NUMBERS[1:]])
        self._register_terminals([self.workload.terminal(number) for number in TERMINAL_NUMBERS[1:]])
        self.core.take()
        self.core.commit()

    # ---- one group ----

    def step(self) -> None:
        chance = self.chance
        self.core.pass_time(chance.choice((0, 0.001, 1, 30, 3_600, DAY_S)) if chance.random() < 0.3 else 0.001)
        self.before.append((self.model.books["next_sequence"], self.model.copy()))
        for _ in range(chance.choice((0, 0, 1, 2))):
            self._command()
        requests: list[TapRequest] = []
        if chance.random() < 0.9:
            requests = self._taps()
        self.core.take()
        self._equal("next sequence", self.core.engine.next_sequence, self.model.books["next_sequence"])
        self._fault(requests)
        if chance.random() < 0.1:
            self.audit()

    def _command(self) -> None:
        chance, now_us = self.chance, self.core.now_us
        match chance.choice(("cards", "terminals", "top-ups", "top-ups", "top-ups", "top-up", "balance")):
            case "cards":
                self._register_cards([self.workload.card() for _ in range(chance.randrange(1, 5))])
            case "terminals":
                self._register_terminals([self.workload.terminal() for _ in range(chance.randrange(1, 5))])
            case "top-ups":
                top_ups = [self.workload.top_up() for _ in range(chance.randrange(1, 5))]
                request = account_service_pb2.BatchTopUpRequest(requests=top_ups)
                answers = self.core.command(commands.batch_top_up, request).responses
                for top_up, answer in zip(top_ups, answers, strict=True):
                    self._equal("top-up", answer, self.model.top_up(top_up, now_us))
                    self.seen[f"top-up {Result(answer.result).name}"] += 1
                    self.seen["top-up again"] += answer.duplicate
            case "top-up":
                top_up = self.workload.top_up()
                expected = self.model.top_up(top_up, now_us)
                try:
                    answer = self.core.command(commands.top_up, top_up)
                except InvalidRequest as error:
                    self._equal("refused top-up", error.field, expected.invalid_field)
                else:
                    self._equal("top-up", answer, expected)
            case "balance":
                self._audit_card(chance.choice(CARD_NUMBERS))

    def _register_cards(self, cards: list[card_service_pb2.Card]) -> None:
        request = card_service_pb2.RegisterCardsRequest(cards=cards)
        answers = self.core.command(commands.register_cards, request).registrations
        for card, answer in zip(cards, answers, strict=True):
            got = answer.result, answer.duplicate, answer.sequence, answer.invalid_field
            self._equal("registration of a card", got, self.model.register_card(card, self.core.now_us))

    def _register_terminals(self, terminals: list[terminal_service_pb2.Terminal]) -> None:
        request = terminal_service_pb2.RegisterTerminalsRequest(terminals=terminals)
        answers = self.core.command(commands.register_terminals, request).registrations
        for terminal, answer in zip(terminals, answers, strict=True):
            got = answer.result, answer.duplicate, answer.sequence, answer.invalid_field
            self._equal("registration of a terminal", got, self.model.register_terminal(terminal))

    def _taps(self) -> list[TapRequest]:
        """A batch of tap requests; returns those that were decided."""
        requests = self.unanswered
        requests += [self.workload.request(self.core.now_s) for _ in range(self.chance.randrange(1, 5))]
        got = self.core.decide([request.data for request in requests], [request.stored for request in requests]).responses
        room = LIMITS["GROUP_TAPS_MAX"]
        for at, (request, response) in enumerate(zip(requests, got, strict=True)):
            fits = len(request.taps) <= room
            if len(request.taps) > LIMITS["REQUEST_ITEMS_MAX"]:
                fits = room == LIMITS["GROUP_TAPS_MAX"]  # it is refused only where it would have had a batch to itself
            elif request.broken == "tap":
                fits = room > 0
            if not fits:
                self._equal("requests without room", got[at:], [None] * (len(requests) - at))
                self.unanswered = requests[at:]
                self.seen["no room"] += 1
                return requests[:at]
            if request.broken:
                self._equal("refused request", getattr(response, "field", response), request.broken)
                self.seen["broken request"] += 1
                continue
            assert isinstance(response, bytes), response
            room -= len(request.taps)
            self._answers(request, response)
        self.unanswered = []
        return requests

    def _answers(self, request: TapRequest, response: bytes) -> None:
        expected = [self.model.tap(tap, request.stored, self.core.now_us) for tap in request.taps]
        if request.stored:
            whole = tap_service_pb2.SubmitTapsResponse(outcomes=expected)
            outcomes = list(tap_service_pb2.SubmitTapsResponse.FromString(response).outcomes)
        else:
            whole = tap_service_pb2.AuthorizeTapResponse(outcome=expected[0])
            outcomes = [tap_service_pb2.AuthorizeTapResponse.FromString(response).outcome]
        for tap, got, want in zip(request.taps, outcomes, expected, strict=True):
            self._equal(f"answer to {'stored' if request.stored else 'online'} tap\n{tap}", got, want)
            self.seen[Result(got.result).name] += 1
            self.seen["duplicate"] += got.duplicate
        self._equal("bytes of a response", response, whole.SerializeToString(deterministic=True))

    # ---- faults ----

    def _fault(self, requests: list[TapRequest]) -> None:
        """What happens to the group that was just decided, and to the checkpoint that may be on its way."""
        chance = self.chance
        self._checkpoint()
        match chance.choices(("commit", "lag", "fail", "crash"), (70, 20, 5, 5))[0]:
            case "commit":
                self.core.commit()
                self._durable()
            case "lag":
                self.core.commit(keep=2)
                self._durable()
            case "fail":
                self._fail_commit(requests)
            case "crash":
                if chance.random() < 0.5:
                    self.core.commit()  # the answers are lost, what they say is not
                    self._durable()
                self._lose(requests)
                self.core.restart()
                self.seen["crash"] += 1

    def _durable(self) -> None:
        while self.before and self.before[0][0] < self.core.journal.next_sequence:
            self.before.popleft()
        if not self.core.pending:
            self.before.clear()  # groups without a record are nothing to wait for

    def _fail_commit(self, requests: list[TapRequest]) -> None:
        failpoint = self.chance.choice(COMMIT_FAILPOINTS)
        try:
            with failing(failpoint):
                self.core.commit()
        except CommitFailed:
            self.seen[failpoint] += 1
        else:
            self._durable()  # there was nothing to be written
            return
        self._lose(requests, survives=failpoint == "journal-after-commit")
        self.core.rebuild()

    def _lose(self, requests: list[TapRequest], survives: bool = False) -> None:
        """Groups that are not durable are as if they had never been. `survives`: the first of them reached the disk
        although its commit seemed to fail."""
        groups = [group for group in self.core.pending if hasattr(group, "first_sequence")]
        first = groups[0].first_sequence if groups else self.model.books["next_sequence"]
        if survives and groups:
            first += groups[0].count
        for sequence, model in self.before:
            if sequence == first:
                self.model = model
                break
        self.before.clear()
        self.written, self.photographed = None, False
        if self.chance.random() < 0.7:  # callers who got no answer ask again
            self.unanswered = requests + self.unanswered

    def _checkpoint(self) -> None:
        """Any step of a checkpoint may come between any two groups."""
        chance, core = self.chance, self.core
        if not self.photographed:
            if chance.random() < 0.2:
                core.photograph()
                self.photographed = True
        elif core.ready and self.written is None:
            if chance.random() < 0.5:
                failpoints = (chance.choice(CHECKPOINT_FAILPOINTS),) if chance.random() < 0.3 else ()
                self.written = core.write_photograph(*failpoints)
                self.seen[f"checkpoint {'written' if self.written else failpoints[0]}"] += 1
        elif core.ready and chance.random() < 0.7:
            core.settle_photograph(self.written)
            self.written, self.photographed = None, False

    # ---- the auditor ----

    def _equal(self, what: str, got: Any, want: Any) -> None:
        assert got == want, f"{what}: the core says\n{got}\nthe model says\n{want}"

    def _audit_card(self, card_number: str) -> None:
        card = self.model.cards.get(card_number)
        try:
            got = self.core.balance(card_number)
            details = self.core.command(commands.get_card, card_service_pb2.GetCardRequest(card_number=card_number))
        except NotFound:
            assert card is None, f"card {card_number} is missing"
            return
        assert card is not None, f"card {card_number} should not be there"
        self._equal(f"balance of {card_number}", got.balance_fen, card.balance_fen)
        self._equal(f"deny list, {card_number}", (got.denied, details.denied), (bool(card.denied_since_s),) * 2)
        self._equal(f"next ATC of {card_number}", details.atc_next, card.atc_next)

    def audit(self) -> None:
        """All balances, and the places of some taps."""
        for card_number in CARD_NUMBERS:
            self._audit_card(card_number)
        for operator_id, balance_fen in self.model.operators_fen.items():
            self._equal(f"balance of {operator_id}", self.core.operator_balance_fen(operator_id), balance_fen)
        funding_fen = int(self.core.engine.balance_fen(0))
        self._equal("funding", funding_fen, -self.model.books["funded_fen"])
        self._equal("sum of all accounts", self.core.engine.imbalance_fen(), 0)
        counters = list(self.model.card_counters.items())
        for (card_number, atc), sequence in self.chance.sample(counters, min(5, len(counters))):
            self._equal("place", commands.tap_by_card_counter(self.core.memory, card_number, atc), sequence)

    def finish(self) -> None:
        """Everything once more, from the journal and after a restart; and the core's own check of the directory."""
        self.core.commit()
        self._durable()
        self.audit()
        self.core.restart()
        self.audit()
        for card_number, card in self.model.cards.items():
            got = self.core.list_transactions(card_number)
            self._equal(f"transactions of {card_number}", got, list(reversed(card.transactions)))
        for sequence, tap in self.model.taps.items():
            self._equal(f"tap at {sequence}", self.core.get_tap(sequence), tap)
        for (terminal_number, terminal_sequence), sequence in self.model.terminal_counters.items():
            place = commands.tap_by_terminal_counter(self.core.memory, terminal_number, terminal_sequence)
            self._equal("place", place, sequence)
        self.core.close()
        report = check(self.path, self.core.settings)
        got_counts = report.records + 1, report.cards, report.terminals, report.operators
        want_counts = (
            self.model.books["next_sequence"],
            len(self.model.cards),
            len(self.model.terminals),
            len(self.model.operators_fen),
        )
        self._equal("counts", got_counts, want_counts)


def simulate(seed: int, steps: int = STEPS) -> Counter[str]:
    """One run in a directory of its own; what happened in it. Raises SimulationFailed."""
    step = 0
    with tempfile.TemporaryDirectory(prefix="simulation-") as folder, limited(**LIMITS):
        simulation = Simulation(seed, Path(folder) / "data")
        try:
            for step in range(steps):  # noqa: B007 (told on failure)
                simulation.step()
            simulation.finish()
        except Exception as fault:
            raise SimulationFailed(
                f"seed {seed}, step {step}: {type(fault).__name__}: {fault}\n"
                f"replay: python tests/simulation.py --seed {seed} --steps {steps}"
            ) from fault
        finally:
            simulation.core.__exit__()
    return simulation.seen


def _simulate(arguments: tuple[int, int]) -> tuple[Counter[str], str]:
    try:
        return simulate(*arguments), ""
    except SimulationFailed:
        return Counter(), traceback.format_exc()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the (first) seed")
    parser.add_argument("--steps", type=int, default=STEPS, help="groups in each run")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    work = [(seed, options.steps) for seed in range(options.seed, options.seed + options.count)]
    seen: Counter[str] = Counter()
    with Pool(options.jobs) as pool:
        for events, fault in pool.imap_unordered(_simulate, work):
            if fault:
                print(fault)
                return 1
            seen += events
    print(f"{options.count} runs of {options.steps} groups agree with the model")
    for name, times in sorted(seen.items()):
        print(f"{times:10,}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
