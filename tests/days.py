"""Random days of a small city, with everything that moves money and everything that breaks, held against the auditor.

The workload is the city's life: taps online and stored, again, late, grey, torn, forged; top-ups, lost cards, purses, payments
with all that undoes them; disputes, exceptions, adjustments. Nights clear, settle, pay and seal what days left, some of them
late, some broken off. The faults lose memory, fail commits and checkpoints, and cut off clearing and settling between steps;
who got no answer asks again. The auditor (auditor.py) shares no code with the engine and reads the journal alone.

    python tests/days.py --seed 7 --days 100             replays one run
    python tests/days.py --seed 0 --count 100 --days 100 --jobs 2   ten thousand days"""

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from auditor import Auditor, Books, audit, windows_of
from day_city import AGREEMENTS, OPERATORS, City
from harness import DAY_S, START_S, authorize_request, failing, limited, local_time_of, submit_request
from payments import ACQUIRER, MERCHANTS, OTHER_ACQUIRER, Desk, request_id
from tariffs import CITY as TARIFF
from tariffs import parse

from yikatong.core import commands
from yikatong.core.acquiring import authorizations, merchants
from yikatong.core.cards import deny_list
from yikatong.core.check import check
from yikatong.core.day import day, disputes, exceptions, payments
from yikatong.core.day.bank_file import BankEntry, BankStatus, bank_csv
from yikatong.core.day.reconcile import InstructionState
from yikatong.core.day.windows import window_document
from yikatong.core.errors import CommitFailed, NotFound
from yikatong.core.rules.compile import Compiled, compile_tariffs
from yikatong.core.rules.tariff import TariffSet
from yikatong.core.types import DocumentKind, PostingKind, RecordKind, Result, WindowState
from yikatong.v1 import account_service_pb2, deny_list_service_pb2, merchant_service_pb2, tap_service_pb2
from yikatong.v1 import clearing_service_pb2 as clearing
from yikatong.v1 import exception_service_pb2 as queue
from yikatong.v1 import reconciliation_service_pb2 as bank
from yikatong.v1 import settlement_service_pb2 as settlement

DAYS = 100
AUDITED_EVERY = 20  # days
CARDS = 6
LIMITS = {"RING_RECORDS": 512, "GROUP_TAPS_MAX": 32, "REQUEST_ITEMS_MAX": 32}
PARTIES = {"operator:next-city": "city:4403"}
COMMIT_FAILPOINTS = ("journal-before-append", "journal-after-append", "journal-before-commit", "journal-after-commit")
CHECKPOINT_FAILPOINTS = ("checkpoint-before-write", "checkpoint-middle", "checkpoint-before-commit")
CUTS = {
    "clear": ("clear-planned", "clear-tallied", "clear-kept", "clear-posted"),
    "settle": ("settle-written", "settle-issued"),
    "seal": ("seal-made", "seal-kept"),
}
PURSE, ACCOUNT = tap_service_pb2.PROFILE_PURSE, tap_service_pb2.PROFILE_ACCOUNT
REASONS = (deny_list_service_pb2.DENY_REASON_LOSS, deny_list_service_pb2.DENY_REASON_FROZEN)
KIOSK = "kiosk"  # a merchant that is settled with the bus company
SETTLED_TERMS = """
[[agreement]]
participant = "{participant}"
from = 2025-01-01
name = "{participant}"
bank_code = "105598000001"
account_number = "4400123457{number}"
category = "5999"
appeal_days = 30
deny_list_hours = 24
fee = {fee}
debit_cap = {{ amount_fen = 100, action = "warn" }}
"""
TERMS = AGREEMENTS + "".join(
    SETTLED_TERMS.format(participant=f"acquirer:{name}", number=number, fee=fee)
    for number, name, fee in (
        (10, ACQUIRER, '{ rate_bp = 60, minimum_fen = 1, refunds = "returned" }'),
        (11, OTHER_ACQUIRER, '{ rate_permille = 4, per = "window" }'),
    )
)
# Nobody may owe anything: clearing is refused where somebody does, and the city then relents.
STRICT_TERMS = TERMS.replace('action = "warn"', 'action = "block"').replace("amount_fen = 100,", "amount_fen = 0,")


class DaysFailed(AssertionError):
    """A day did not end balanced; the message says how to replay it."""


@cache
def tariff() -> Compiled:
    text = TARIFF.replace("2026-01-01\nuntil = 2026-12-31", "2025-01-01\nuntil = 2099-12-31")
    return compile_tariffs(
        TariffSet([parse(text.replace("industries = [20]", "industries = [9]").replace('"northern"', '"bus"'))])
    )


@contextmanager
def cut_off(name: str) -> Iterator[None]:
    """A step of the day is cut off at a named place."""

    def failpoint(passed: str) -> None:
        if passed == name:
            raise OSError(f"cut off ({name})")

    original = day.failpoint
    day.failpoint = failpoint
    try:
        yield
    finally:
        day.failpoint = original


class Counters(Desk):
    """The acquirers' desk, in a city that is there already."""

    def __init__(self, city: City) -> None:
        self.core = city
        self.rules = self.rules_of_city()

    @staticmethod
    @cache
    def rules_of_city() -> Any:
        from payments import rules_of

        return rules_of()


class Days:
    """One city's days."""

    def __init__(self, seed: int, path: Path, priced: bool) -> None:
        self.chance = random.Random(seed)
        self.seed, self.path = seed, path
        settings = {"cards_max": 100, "terminals_max": 20, "hash_seed": seed, "stored_grace_s": 2 * DAY_S}
        self.city = City(path, TERMS, **settings, **({"tariffs": tariff()} if priced else {}))  # type: ignore[arg-type]
        self.priced = priced
        self.desk = Counters(self.city)
        self.seen: Counter[str] = Counter()  # what happened, to show that the workload reaches everything
        self.named = 0
        self.today = -1
        self.rider = 0
        self.idle_until = 0  # nights before this day go by without clearing
        self.open_dates: list[int] = []  # not sealed yet
        self.cleared: deque[int] = deque(maxlen=4)
        self.given = 0  # bank statements
        self.late: list[tuple[int, Any]] = []  # taps that terminals still keep, and the day on which they come
        self.proved: deque[tuple[Any, Any]] = deque(maxlen=100)  # taps that used up their counters, with what they were answered
        self.acknowledged: dict[int, tuple[str, int, int, int, int]] = {}  # taps by sequence, as Books.tap_at has them
        self.asked: deque[tuple[str, Callable[[], Any], Any]] = deque(maxlen=60)
        self.payments: deque[tuple[str, str]] = deque(maxlen=8)  # name and acquirer
        self.accepted: dict[str, str] = {}  # every authorisation that was acknowledged as held: name → acquirer
        self.operations: deque[tuple[str, str]] = deque(maxlen=12)  # what can be reversed
        self.reversed_before: list[tuple[str, str]] = []
        self.purses: list[tuple[str, str]] = []
        self.charges: deque[tuple[str, int, int]] = deque(maxlen=30)  # card, sequence, fen
        self.disputes: list[str] = []
        self.adjustments: list[tuple[str, str]] = []  # id, who proposed it
        self.auditor = Auditor(path, PARTIES)
        self._open()

    def _open(self) -> None:
        city = self.city
        for card in range(4, CARDS):
            city.chips.append(100_000)
            city.atcs.append(0)
            city.register_card(city.card(card), rider=card - 2)
            city.top_up(city.card(card), 3_000)
        register = merchant_service_pb2.RegisterMerchantsRequest()
        for acquirer in (ACQUIRER, OTHER_ACQUIRER):
            for name, category in MERCHANTS.items():
                register.merchants.add(acquirer_id=acquirer, merchant_id=name, merchant_category=category)
        register.merchants.add(
            acquirer_id=OTHER_ACQUIRER, merchant_id=KIOSK, merchant_category="5999", participant="operator:bus"
        )
        for answer in city.ask(merchants.register_merchants, register).registrations:
            assert answer.result == Result.ACCEPTED

    # ---- asking, whatever breaks ----

    def name(self) -> str:
        self.named += 1
        return f"{self.seed}-{self.named}"

    def request_id(self) -> bytes:
        return request_id(self.name())

    def sure(self, what: str, ask: Callable[[], Any]) -> Any:
        """The answer to a request, which breaks now and then and is asked again; and again after that, which changes nothing."""
        chance = self.chance
        if chance.random() < 0.03:
            failpoint = chance.choice(COMMIT_FAILPOINTS)
            try:
                with failing(failpoint):
                    answer = ask()
            except CommitFailed:
                self.seen[failpoint] += 1
                self.city.rebuild()
                answer = ask()
        elif what in CUTS and chance.random() < 0.15:
            name = chance.choice(CUTS[what])
            try:
                with cut_off(name):
                    answer = ask()
            except OSError:
                self.seen[name] += 1
                if chance.random() < 0.5:
                    self.city.restart()
                answer = ask()
        else:
            answer = ask()
        self.seen[f"{what} {Result(answer.result).name}"] += 1
        if answer.sequence:
            if chance.random() < 0.1:
                self._again(what, ask, answer)
            self.asked.append((what, ask, answer))
        return answer

    def _again(self, what: str, ask: Callable[[], Any], answer: Any) -> None:
        self.desk.sweep()
        before = self.city.engine.next_sequence
        again = ask()
        assert self.city.engine.next_sequence == before, f"{what}: asked again, it changed something"
        assert again.duplicate, f"{what}: asked again, it does not say so:\n{again}"
        if again.result != Result.REVERSED:
            assert again.result == answer.result, f"{what}: answered {answer}, asked again {again}"
            assert again.sequence == answer.sequence
        self.seen["asked again"] += 1

    # ---- taps ----

    def new_tap(self) -> Any:
        """The next tap of some card, honest."""
        chance, city = self.chance, self.city
        card, operator = self._rider(), chance.choice(OPERATORS)
        amount_fen = chance.choice((0, 100, 200, 200, 350, 900, 5_200))
        fields: dict[str, Any] = {"city": chance.choice((5980, 5980, 5980, 0, 4401)), "industry": chance.choice((1, 2))}
        if chance.random() < 0.3:
            fields["amount_due_fen"] = amount_fen + chance.choice((50, 150))
        if operator == "next-city":
            fields["city"] = 4403
        if chance.random() < (0.9 if card % 2 else 0.1):  # mostly a card stays with one profile
            industry = chance.choice((1, 1, 2))
            kind = chance.choice((1, 2)) if industry == 1 else 3
            fields |= {"profile": ACCOUNT, "chip_balance_before_fen": 0, "chip_balance_after_fen": 0, "kind": kind}
            fields |= {"industry": industry, "line": chance.choice((1, 7, 150)), "stop": chance.choice((1, 2, 6, 77))}
            city.chips[card] += amount_fen  # the chip's purse has no part in it
        elif chance.random() < 0.03:
            fields["chip_balance_before_fen"] = city.chips[card] + 7  # a gap
        if chance.random() < 0.05:
            fields["test"] = True
        if city.chips[card] < 10_000:
            city.chips[card] += 100_000
        if chance.random() < 0.04:
            city.atcs[card] += 1  # a tap that never comes
        return city.make(card, operator, amount_fen, **fields)

    def _rider(self) -> int:
        """Mostly the one who rode last, so that there are transfers, and fares that late taps change."""
        if self.chance.random() < 0.4:
            self.rider = self.chance.randrange(CARDS)
        return self.rider

    def tap(self) -> None:
        chance, city = self.chance, self.city
        tap = self.new_tap()
        what = chance.random()
        if what < 0.35:
            self.send([tap], stored=False)
        elif what < 0.6:
            self.send([tap, *(self.new_tap() for _ in range(chance.randrange(3)))], stored=True)
        elif what < 0.8:
            self.late.append((self.today + chance.choice((0, 0, 1, 1, 2, 3, 6)), tap))
        elif what < 0.9 and tap.profile == PURSE and not tap.test:
            # The terminal did not see the card's answer. Whether the card paid, its next record shows, if it comes.
            unseen = tap_service_pb2.Tap()
            unseen.CopyFrom(tap)
            unseen.mac, unseen.grey = (b"\xff" * 4, False) if chance.random() < 0.3 else (chance.randbytes(4), True)
            if chance.random() < 0.4:
                city.chips[int(tap.card_number[-2:])] += tap.amount_fen
            elif chance.random() < 0.2:
                self.late.append((self.today + chance.randrange(3), tap))  # the whole record turns up
            self.send([unseen] * chance.choice((1, 1, 2)), stored=True)
        elif what < 0.95:
            forged = tap_service_pb2.Tap()
            forged.CopyFrom(tap)
            forged.mac = chance.randbytes(4)
            self.send([forged], stored=chance.random() < 0.5)
            city.chips[int(tap.card_number[-2:])] += tap.amount_fen if tap.profile == PURSE else 0
        elif self.proved:
            known, answer = chance.choice(self.proved)
            if chance.random() < 0.5:  # a cloned card: its counter at another terminal
                tap.atc, tap.card_number = known.atc, known.card_number
                self.send([tap], stored=True)
            before = city.engine.next_sequence
            (again,) = self.send([known], stored=chance.random() < 0.5)
            assert again.duplicate, again
            assert (again.sequence, again.result) == (answer.sequence, answer.result)
            assert city.engine.next_sequence == before

    def send_late(self, all_of_it: bool = False) -> None:
        """Terminals come home: what they kept arrives, out of order."""
        due = [tap for when, tap in self.late if when <= self.today or all_of_it]
        self.late = [] if all_of_it else [(when, tap) for when, tap in self.late if when > self.today]
        self.chance.shuffle(due)
        while due:
            size = self.chance.randrange(1, 6)
            self.send(due[:size], stored=True)
            due = due[size:]
            self.seen["late taps"] += 1

    def send(self, taps: list[Any], *, stored: bool) -> list[Any]:
        """Until it is answered."""
        city, chance = self.city, self.chance
        requests = [submit_request(taps)] if stored else [authorize_request(tap) for tap in taps]
        fault = chance.random()
        if fault < 0.02:  # all is lost before it is on disk
            city.decide(requests, [stored] * len(requests))
            if chance.random() < 0.5:
                city.take()
            city.restart()
            self.seen["kill"] += 1
        elif fault < 0.04:
            city.decide(requests, [stored] * len(requests))
            city.take()
            failpoint = chance.choice(COMMIT_FAILPOINTS)
            try:
                with failing(failpoint):
                    city.commit()
            except CommitFailed:
                self.seen[failpoint] += 1
                city.rebuild()
        responses = city.run(requests, [stored] * len(requests)).responses
        if stored:
            outcomes = list(tap_service_pb2.SubmitTapsResponse.FromString(responses[0]).outcomes)  # type: ignore[arg-type]
        else:
            outcomes = [tap_service_pb2.AuthorizeTapResponse.FromString(each).outcome for each in responses]  # type: ignore[arg-type]
        for tap, outcome in zip(taps, outcomes, strict=True):
            self._answered(tap, outcome)
        return outcomes

    def _answered(self, tap: Any, outcome: Any) -> None:
        result = Result(outcome.result)
        self.seen[f"tap {result.name}{' again' if outcome.duplicate else ''}"] += 1
        assert outcome.sequence, f"a tap was not journalled:\n{tap}{outcome}"
        charged = result in (Result.ACCEPTED, Result.DEBT_BOOKED)
        if not charged:
            assert outcome.charged_fen == 0
        elif not self.priced or tap.profile == PURSE:
            assert outcome.charged_fen == tap.amount_fen, f"{tap.amount_fen} fen were to be charged, not {outcome}"
        told = (tap.card_number, tap.atc, tap.terminal_sequence, outcome.result, outcome.charged_fen)
        assert self.acknowledged.setdefault(outcome.sequence, told) == told
        if result in (Result.ACCEPTED, Result.DEBT_BOOKED, Result.TEST, Result.CARD_DENIED, Result.INSUFFICIENT_FUNDS):
            self.proved.append((tap, outcome))
        if charged and outcome.charged_fen:
            self.charges.append((tap.card_number, outcome.sequence, outcome.charged_fen))

    # ---- cards and purses ----

    def any_card(self) -> str:
        return self.city.card(self.chance.randrange(CARDS))

    def card(self) -> None:
        chance, city = self.chance, self.city
        number = self.any_card()
        match chance.choice(("top-up", "top-up", "top-up", "deny", "allow", "allow", "open", "fund", "fund", "close")):
            case "top-up":
                top_up = account_service_pb2.TopUpRequest(
                    request_id=self.request_id(), card_number=number, amount_fen=chance.choice((500, 1_000, 5_000))
                )
                self.sure("top-up", lambda: city.ask(commands.top_up, top_up))
            case "deny":
                deny = deny_list_service_pb2.DenyCardRequest(
                    request_id=self.request_id(), card_number=number, reason=chance.choice(REASONS)
                )
                self.sure("deny", lambda: city.ask(deny_list.deny_card, deny))
            case "allow":
                for reason in REASONS:
                    for card in range(CARDS):
                        if city.engine.card(card)["deny_reasons"]:
                            allow = deny_list_service_pb2.AllowCardRequest(
                                request_id=self.request_id(), card_number=city.card(card), reason=reason
                            )
                            self.sure("allow", lambda allow=allow: city.ask(deny_list.allow_card, allow))
            case "open":
                mine = [purse for card, purse in self.purses if card == number]
                if len(mine) < 3:
                    purse, kind, name = f"p{self.named}", chance.choice(("meal", "culture", "any", "any")), self.name()
                    answer = self.sure("open purse", partial(self.desk.open_purse, name, number, purse, kind))
                    if answer.result == Result.ACCEPTED:
                        self.purses.append((number, purse))
                        self.fund(number, purse)
            case "fund" if self.purses:
                self.fund(*chance.choice(self.purses))
            case "close" if self.purses:
                (number, purse), name = chance.choice(self.purses), self.name()
                answer = self.sure("close purse", partial(self.desk.close_purse, name, number, purse))
                if answer.result == Result.ACCEPTED:
                    self.purses.remove((number, purse))

    def fund(self, number: str, purse: str) -> None:
        fen = self.chance.choice((100, 400))
        self.sure("fund purse", partial(self.desk.fund_purse, self.name(), number, purse, fen))

    # ---- payments ----

    def authorize(self, name: str, acquirer: str) -> None:
        chance, desk = self.chance, self.desk
        merchant = chance.choice((*MERCHANTS, KIOSK)) if acquirer == OTHER_ACQUIRER else chance.choice(tuple(MERCHANTS))
        fen, card = chance.choice((50, 120, 300, 700, 4_500)), self.any_card()
        legs = ""
        own = [purse for number, purse in self.purses if number == card]
        if fen > 100 and chance.random() < 0.3:
            other = chance.choice([*own, "bank:icbc"])
            legs = f"{other}={fen // 3}+general={fen - fen // 3}"
        fields: dict[str, Any] = {
            "card": card, "merchant": merchant, "acquirer_id": acquirer, "legs": legs, "offline": chance.random() < 0.2,
            "timeout": chance.choice((600, DAY_S, 5 * DAY_S, 20 * DAY_S)),
        }  # fmt: skip
        answer = self.sure("authorize", lambda: desk.authorize(name, fen, **fields))
        if answer.result == Result.ACCEPTED:
            assert sum(leg.amount_fen for leg in answer.legs) == fen
            self.payments.append((name, acquirer))
            self.accepted[name] = acquirer
            if chance.random() < 0.5:
                self.follow(chance.choice(("capture", "capture", "capture", "void", "increment")), name, acquirer)
                self.follow(chance.choice(("capture", "refund", "refund", "reverse")), name, acquirer)
        self.operations.append((name, acquirer))

    def pay(self) -> None:
        chance = self.chance
        acquirer = chance.choice((ACQUIRER, ACQUIRER, OTHER_ACQUIRER))
        what = chance.choice(
            ("authorize",) * 4 + ("increment",) + ("capture",) * 4 + ("void",) + ("refund",) * 3 + ("reverse",) * 3
        )
        if what == "authorize" or not self.payments:
            self.authorize(self.name(), acquirer)
        else:
            self.follow(what, *chance.choice(self.payments))

    def follow(self, what: str, of: str, acquirer: str) -> None:
        """Something that comes after an authorisation."""
        chance, desk, name = self.chance, self.desk, self.name()
        fen = chance.choice((30, 50, 120, 300))
        ask: Callable[[], Any]
        match what:
            case "increment":
                ask = partial(desk.increment, name, of, fen, acquirer=acquirer)
            case "capture":
                if chance.random() < 0.4:
                    fen = desk.get(of, acquirer).held_fen or fen
                ask = partial(desk.capture, name, of, fen, final=chance.random() < 0.3, acquirer=acquirer)
            case "void":
                ask = partial(desk.void, name, of, acquirer=acquirer)
            case "refund":
                ask = partial(desk.refund, name, of, fen, acquirer=acquirer)
            case _:
                self.reverse(name)
                self.operations.append((name, acquirer))
                return
        answer = self.sure(what, ask)
        if answer.result == Result.ACCEPTED:
            assert what == "void" or sum(leg.amount_fen for leg in answer.legs) == fen, f"{what} of {fen} fen:\n{answer}"
            if what == "capture":
                self._charged(of, acquirer, answer)
        self.operations.append((name, acquirer))

    def _charged(self, of: str, acquirer: str, answer: Any) -> None:
        """A capture of a purse can be disputed: it stands behind the hold that it lets go."""
        record = self.city.record(answer.sequence + 2)
        assert (record["kind"], record["transaction_type"]) == (RecordKind.POSTING, PostingKind.CAPTURE)
        self.charges.append((self.desk.get(of, acquirer).card_number, int(record["sequence"]), int(record["amount_fen"])))

    def reverse(self, name: str) -> None:
        chance, desk = self.chance, self.desk
        if chance.random() < 0.25:  # before the original comes
            original, acquirer = self.name(), ACQUIRER
            self.reversed_before.append((original, acquirer))
            self.seen["reversed before it came"] += 1
        elif self.reversed_before and chance.random() < 0.5:
            original, acquirer = self.reversed_before.pop()
            answer = self.sure(
                "late original", lambda: desk.authorize(original, 50, card=self.city.card(0), acquirer_id=acquirer)
            )
            assert answer.result == Result.REVERSED
            return
        elif self.operations:
            original, acquirer = chance.choice(self.operations)
        else:
            return
        self.sure("reverse", lambda: desk.reverse(name, original, acquirer=acquirer))

    # ---- what people decide ----

    def dispute(self) -> None:
        chance, city = self.chance, self.city
        what = chance.choice(("open", "open", "respond", "respond", "decide", "decide", "decide", "withdraw"))
        if what == "open" and self.charges:
            number, sequence, fen = chance.choice(self.charges)
            request = queue.OpenDisputeRequest(
                request_id=self.request_id(), card_number=number, journal_sequence=sequence, reason=1, actor_id="rider",
                disputed_fen=chance.choice((fen, fen, max(fen // 2, 1), fen + 1)),
            )  # fmt: skip
            try:
                answer = self.sure("dispute", lambda: city.ask(disputes.open_dispute, request))
            except NotFound:  # the bank's money, not the card's
                self.seen["dispute of no charge"] += 1
                return
            if answer.result == Result.ACCEPTED:
                self.disputes.append(answer.dispute.dispute_id)
        elif what != "open" and self.disputes:
            which = chance.choice(self.disputes)
            if what == "respond":
                respond = queue.RespondToDisputeRequest(
                    request_id=self.request_id(), dispute_id=which, actor_id="operator", accept=chance.random() < 0.5
                )
                self.sure("respond", lambda: city.ask(disputes.respond_to_dispute, respond))
            elif what == "decide":
                decide = queue.DecideDisputeRequest(
                    request_id=self.request_id(), dispute_id=which, actor_id="city", note="so", outcome=chance.choice((5, 6, 7))
                )
                self.sure("decide", lambda: city.ask(disputes.decide_dispute, decide))
            else:
                withdraw = queue.WithdrawDisputeRequest(request_id=self.request_id(), dispute_id=which, actor_id="rider")
                self.sure("withdraw", lambda: city.ask(disputes.withdraw_dispute, withdraw))
            self.disputes = self.disputes[-12:]

    def adjust(self) -> None:
        chance, city = self.chance, self.city
        if not self.adjustments or chance.random() < 0.5:
            sides = [f"card:{self.any_card()}", "operator:bus", "operator:metro", "operator:next-city", "fees", "losses"]
            sides += [
                name for name in ("held", f"acquirer:{ACQUIRER}:shop", "subsidy:city") if city.memory.account(name) is not None
            ]
            legs = []
            for _ in range(chance.choice((1, 1, 2))):
                debit, credit = chance.sample(sides, 2)
                legs.append(queue.AdjustmentLeg(debit_account=debit, credit_account=credit, amount_fen=chance.randrange(1, 400)))
            open_ones = self.exceptions()
            propose = queue.ProposeAdjustmentRequest(
                request_id=self.request_id(), actor_id=chance.choice(("li", "wang")), reason="so", legs=legs,
                exception_id=chance.choice(open_ones).exception_id if open_ones and chance.random() < 0.5 else "",
            )  # fmt: skip
            answer = self.sure("propose", lambda: city.ask(exceptions.propose_adjustment, propose))
            if answer.result == Result.ACCEPTED:
                self.adjustments.append((answer.adjustment.adjustment_id, propose.actor_id))
            return
        which, by = chance.choice(self.adjustments)
        if chance.random() < 0.15:
            reject = queue.RejectAdjustmentRequest(request_id=self.request_id(), adjustment_id=which, actor_id=by)
            self.sure("reject", lambda: city.ask(exceptions.reject_adjustment, reject))
        else:
            actor = chance.choice(("li", "wang", "WANG"))
            approve = queue.ApproveAdjustmentRequest(request_id=self.request_id(), adjustment_id=which, actor_id=actor)
            answer = self.sure("approve", lambda: city.ask(exceptions.approve_adjustment, approve))
            assert answer.result != Result.ACCEPTED or actor.lower() != by
        self.adjustments = self.adjustments[-8:]

    def exceptions(self) -> list[Any]:
        return list(self.city.command(exceptions.list_exceptions, queue.ListExceptionsRequest(state=1, page_size=5)).exceptions)

    def work_queue(self) -> None:
        chance, city = self.chance, self.city
        if self.cleared:
            date = chance.choice(self.cleared)
            rows = city.day.list_exceptions(clearing.ListClearingExceptionsRequest(settlement_date=date, page_size=5)).exceptions
            for row in rows[:2]:
                take = queue.TakeUpExceptionRequest(
                    request_id=self.request_id(), settlement_date=date, journal_sequence=row.sequence
                )
                answer = self.sure("take up", lambda take=take: city.day.take_up(take))
                assert answer.exception_id
                assert answer.duplicate or not row.exception_id
        for each in self.exceptions()[:2]:
            if chance.random() < 0.5:
                assign = queue.AssignExceptionRequest(
                    request_id=self.request_id(), exception_id=each.exception_id, actor_id="li", assigned_to="wang"
                )
                self.sure("assign", lambda assign=assign: city.ask(exceptions.assign_exception, assign))
            else:
                resolve = queue.ResolveExceptionRequest(
                    request_id=self.request_id(),
                    exception_id=each.exception_id,
                    actor_id="li",
                    note="so",
                    state=chance.choice((3, 4)),
                )
                self.sure("resolve", lambda resolve=resolve: city.ask(exceptions.resolve_exception, resolve))

    # ---- nights ----

    def state(self, date: int) -> tuple[WindowState, bool]:
        window = window_document(self.city.memory, date).window
        return WindowState(window.state), bool(window.seal_digest)

    def night(self) -> None:
        """Take on the windows of days that are not sealed yet; on idle nights nobody does, and they pile up."""
        chance = self.chance
        if self.today < self.idle_until:
            return
        if chance.random() < 0.06:
            self.idle_until = self.today + chance.randrange(2, 7)
        if chance.random() < 0.03 and self.open_dates and self.state(self.open_dates[-1])[0] is not WindowState.OPEN:
            self.open_dates.append(self.date(self.today + 1))  # tomorrow's is closed before it has begun
        for date in list(self.open_dates):
            if chance.random() < 0.1:
                continue  # so that the next one is asked for out of turn
            for _ in range(chance.choice((1, 3, 6, 6))):
                if not self.take_on(date):
                    break

    def take_on(self, date: int) -> bool:
        """One step of a window; whether there may be another."""
        chance, city = self.chance, self.city
        state, sealed = self.state(date)
        match state:
            case WindowState.OPEN:
                close = clearing.CloseWindowRequest(request_id=self.request_id(), settlement_date=date)
                answer = self.sure("close", lambda: city.day.close(close))
                if answer.result == Result.WINDOW_NOT_FOUND and date < self.open_dates[-1]:
                    self.open_dates.remove(date)  # what came on that day went into the next window
            case WindowState.CLOSED:
                return self.clear(date)
            case WindowState.CLEARED:
                orders = city.instructions(date)
                if not orders or chance.random() < 0.1:
                    settle = settlement.SettleWindowRequest(request_id=self.request_id(), settlement_date=date)
                    answer = self.sure("settle", lambda: city.day.settle(settle))
                elif chance.random() < 0.1:
                    return self.abort(date)
                else:
                    self.reissue(orders)
                    return self.bank([date], orders)
            case WindowState.ABORTED:
                resume = settlement.ResumeWindowRequest(request_id=self.request_id(), settlement_date=date)
                answer = self.sure("resume", lambda: city.day.resume(resume))
            case WindowState.SETTLED if sealed:
                self.open_dates.remove(date)
                return False
            case WindowState.SETTLED:
                if chance.random() < 0.08:
                    return self.abort(date)
                orders = city.instructions(date)
                if orders and chance.random() < 0.1:
                    self.bank([date], orders)  # something comes back
                    self.reissue(city.instructions(date))
                seal = settlement.SealWindowRequest(request_id=self.request_id(), settlement_date=date)
                answer = self.sure("seal", lambda: city.day.seal(seal))
        return bool(answer.result == Result.ACCEPTED)

    def clear(self, date: int) -> bool:
        city = self.city
        for terms in (STRICT_TERMS, TERMS) if self.chance.random() < 0.1 else (TERMS,):
            city.text = terms
            clear = clearing.ClearWindowRequest(request_id=self.request_id(), settlement_date=date)
            answer = self.sure("clear", lambda clear=clear: city.day.clear(clear))
            if answer.result == Result.ACCEPTED:
                break
        city.text = TERMS
        if answer.result == Result.ACCEPTED:
            self.cleared.append(date)
        if answer.result == Result.WINDOW_NOT_FOUND:
            self.open_dates.remove(date)  # closed without a record
        return bool(answer.result == Result.ACCEPTED)

    def abort(self, date: int) -> bool:
        abort = settlement.AbortWindowRequest(request_id=self.request_id(), settlement_date=date)
        return bool(self.sure("abort", lambda: self.city.day.abort(abort)).result == Result.ACCEPTED)

    def reissue(self, orders: list[Any]) -> None:
        for order in orders:
            if order.state == InstructionState.RETURNED:
                again = bank.ReissueInstructionRequest(request_id=self.request_id(), instruction_id=order.instruction_id)
                self.sure("reissue", lambda again=again: self.city.ask(payments.reissue_instruction, again))

    def bank(self, dates: list[int], orders: list[Any]) -> bool:
        """What the bank says, right or wrong, of some of the instructions that it was given."""
        chance, city = self.chance, self.city
        if chance.random() < 0.3:  # one file for several windows
            orders = orders + [order for date in self.open_dates if date not in dates for order in city.instructions(date)]
        entries = []
        for order in orders:
            amount_fen, said = order.amount_fen, chance.random()
            going = order.state in (InstructionState.ISSUED, InstructionState.UNKNOWN)
            if said < (0.07 if going else 0.9):
                continue
            if said < 0.85 and going:
                entry = (BankStatus.PAID, amount_fen, -amount_fen)
            elif said < 0.94:
                booked_fen = amount_fen if order.state == InstructionState.PAID else 0
                entry = (BankStatus.RETURNED, amount_fen, booked_fen)
            elif said < 0.97:
                entry = (BankStatus.UNKNOWN, amount_fen, 0)
            elif said < 0.99:
                entry = (BankStatus.PAID, amount_fen, -amount_fen)
            else:
                entry = (BankStatus.PAID, amount_fen + 1, -amount_fen - 1)
            if not entry[1]:
                continue
            booked_at_us = city.now_us // 1_000_000 * 1_000_000
            entries.append(BankEntry(0, order.instruction_id, entry[1], entry[0], entry[2], booked_at_us, "so"))
        if not entries:
            return False
        self.given += 1
        content = bank_csv(f"B-{self.given}", orders[0].from_account, 0, entries)
        request = bank.IngestBankFileRequest(request_id=self.request_id(), name="bank.csv", content=content)
        read = payments.read_bank_file(request)
        self.sure("bank file", lambda: city.ask(partial(_ingest, read), request))
        if chance.random() < 0.1:  # the same statement under another request
            twice = bank.IngestBankFileRequest(request_id=self.request_id(), name="again.csv", content=content)
            before = city.engine.next_sequence
            assert city.ask(partial(_ingest, read), twice).duplicate
            assert city.engine.next_sequence == before
        return True

    # ---- days ----

    @staticmethod
    def date(today: int) -> int:
        return local_time_of(START_S + today * DAY_S) // 1_000_000

    def day(self) -> None:
        """One day and its night."""
        chance, city = self.chance, self.city
        passed = chance.choices((1, 3), (95, 5))[0]  # some days nothing happens but what the night before left to do
        for _ in range(passed):
            self.today += 1
            if (date := self.date(self.today)) not in self.open_dates:
                self.open_dates.append(date)
        city.to_date(self.today)
        self.send_late()
        for _ in range(chance.randrange(4, 12)):
            city.pass_time(chance.choice((0, 1, 60, 600, 1_800)))
            chance.choices(
                (self.tap, self.card, self.pay, self.dispute, self.adjust, self.work_queue, self.trouble, self.repeat),
                (38, 13, 25, 10, 5, 2, 4, 3),
            )[0]()
        self.desk.sweep()
        self.night()
        if chance.random() < 0.3:
            assert city.checkpoint()
        assert city.engine.imbalance_fen() == 0
        self.seen["days"] += 1
        if self.today % AUDITED_EVERY == AUDITED_EVERY - 1:
            self.audit()

    def trouble(self) -> None:
        chance, city = self.chance, self.city
        match chance.choice(("restart", "rebuild", "checkpoint", "checkpoint", "checkpoint fails", "files lost")):
            case "restart":
                city.restart()
            case "rebuild":
                city.rebuild()
            case "checkpoint":
                assert city.checkpoint()
                if chance.random() < 0.5:
                    city.restart()
            case "files lost":
                for path in sorted((self.path / "clearing").glob("*")):
                    if path.is_file() and chance.random() < 0.3:
                        path.unlink()  # what clearing carries on is made anew from the journal
                        self.seen["files lost"] += 1
            case "checkpoint fails":
                failpoint = chance.choice(CHECKPOINT_FAILPOINTS)
                assert not city.checkpoint(failpoint)
                self.seen[failpoint] += 1
                if chance.random() < 0.5:
                    city.restart()

    def repeat(self) -> None:
        """Something that was asked long ago comes again."""
        if self.asked:
            self._again(*self.chance.choice(self.asked))

    # ---- the auditor ----

    def audit(self, whole: bool = False) -> Books:
        """All books against the journal, as the auditor reads it; afterwards the core has been started anew."""
        self.city.close()
        books = audit(self.path, PARTIES) if whole else self.auditor.read_on()
        self.city.directory = type(self.city.directory)(self.path)
        self.city._open()
        compare(books, self.city)
        self._exactly_once(books)
        self.seen["audits"] += 1
        return books

    def _exactly_once(self, books: Books) -> None:
        """What was acknowledged is in the journal as it was told; and nobody has used up a counter but who was told so."""
        slots = {number: self.city.engine.find_card(number) for number in map(self.city.card, range(CARDS))}
        for sequence, (number, *told) in self.acknowledged.items():
            assert books.tap_at.get(sequence) == (slots[number], *told), f"tap {sequence}: {told}, {books.tap_at.get(sequence)}"
        assert set(books.taps.values()) <= set(self.acknowledged)
        kept = Counter(
            authorizations.Authorization.FromString(value).request_id
            for (kind, _), value in books.documents.items()
            if kind == DocumentKind.AUTHORIZATION
        )
        for name in self.accepted:
            assert kept[request_id(name)] == 1, f"authorisation {name} is there {kept[request_id(name)]} times"

    def finish(self) -> Counter[str]:
        """The last taps come in, and all is looked at once more, from the beginning."""
        self.today += 1
        self.city.to_date(self.today)
        self.send_late(all_of_it=True)
        self.desk.sweep()
        self.audit()
        books = self.audit(whole=True)
        for kind in PostingKind:
            if books.kinds[kind]:
                self.seen[f"posted {kind.name}"] += books.kinds[kind]
        assert books.kinds.total() == sum(books.kinds[kind] for kind in PostingKind)
        for window in windows_of(books):
            self.seen[f"windows {WindowState(window.window.state).name}{', sealed' if window.window.seal_digest else ''}"] += 1
            for outcome in window.window.outcomes:
                self.seen[f"cleared as {clearing.ClearingOutcome.Name(outcome.outcome)[17:]}"] += outcome.count
        self.seen["records"] += books.records
        self.city.close()
        assert check(self.path, self.city.settings).records == books.records
        return self.seen


def _ingest(read: Any, memory: Any, request: Any, time_us: int) -> Any:
    return payments.ingest_bank_file(memory, request, read, time_us)


def compare(books: Books, city: City) -> None:
    """The auditor's books are the engine's: every balance, hold and document, and who is denied."""
    engine, memory = city.engine, city.memory
    assert engine.next_sequence - 1 == books.records
    balances, held = engine.balances_fen().tolist(), engine.holds_fen().tolist()
    assert balances == [books.balances[account] for account in range(books.accounts)]
    assert held == [books.held[account] for account in range(books.accounts)]
    for kind in DocumentKind:
        got = dict(memory.documents.scan(kind))
        want = {key: value for (its_kind, key), value in books.documents.items() if its_kind == kind}
        assert got == want, f"documents of kind {kind.name} differ"
    for card, reasons in books.denied.items():
        assert engine.card(card)["deny_reasons"] == reasons, f"card {card}: denied for other reasons"


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder that is gone afterwards; in memory where that can be, since it is not the disk that is tried here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="days-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def simulate(seed: int, days: int = DAYS, progress: Callable[[int], None] = lambda done: None) -> Counter[str]:
    """One run in a directory of its own; what happened in it. Raises DaysFailed. Every other seed charges by a tariff."""
    made: Days | None = None
    with in_memory() as folder, limited(**LIMITS):
        try:
            made = Days(seed, folder / "data", priced=bool(seed % 2))
            for done in range(days):
                made.day()
                progress(done + 1)
            return made.finish()
        except Exception as fault:
            today = made.today if made else -1
            raise DaysFailed(
                f"seed {seed}, day {today}: {type(fault).__name__}: {fault}\n"
                f"replay: python tests/days.py --seed {seed} --days {days}"
            ) from fault
        finally:
            if made is not None:
                made.city.__exit__()


def _simulate(arguments: tuple[int, int]) -> tuple[Counter[str], str]:
    try:
        return simulate(*arguments), ""
    except DaysFailed:
        return Counter(), traceback.format_exc()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the (first) seed")
    parser.add_argument("--days", type=int, default=DAYS, help="days in each run")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    started = time.monotonic()
    work = [(seed, options.days) for seed in range(options.seed, options.seed + options.count)]
    seen: Counter[str] = Counter()
    with Pool(options.jobs) as pool:
        for done, (events, fault) in enumerate(pool.imap_unordered(_simulate, work), 1):
            if fault:
                print(fault)
                return 1
            seen += events
            passed_s = time.monotonic() - started
            print(f"\r{seen['days']:,} of {options.days * options.count:,} days, {passed_s:.0f} s", end="", file=sys.stderr)
            if done == options.count:
                print(file=sys.stderr)
    print(f"{options.count} runs of {options.days} days end balanced, {time.monotonic() - started:.0f} s")
    for name, times in sorted(seen.items()):
        print(f"{times:10,}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
