"""Riders drawn at random, their taps, and what these cost by the plain twin: beside the engine, sharing the vocabulary only."""

import datetime
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from harness import CHINA, ISSUER, KEY_SETS, Harness, local_time_of
from tariffs import CITY, parse

from yikatong.clients.card import sign
from yikatong.core import commands
from yikatong.core.rules import fares as twin
from yikatong.core.rules.compile import compile_tariffs
from yikatong.core.rules.fares import Outcome, TapKind
from yikatong.core.rules.tariff import TariffSet
from yikatong.ext import fares as native
from yikatong.v1 import card_service_pb2, tap_service_pb2

Tap = tap_service_pb2.Tap
ENTRY, EXIT, SINGLE, CHECK = TapKind
# Industry codes of taps end at 9; the night bus costs the same wherever one got on, the day bus what the terminal states.
TARIFF = CITY.replace("industries = [20]", "industries = [9]")
COMPILED = compile_tariffs(TariffSet([parse(TARIFF)]))
OPERATORS = ("northern", "southern")
FIRST_DAY = datetime.datetime(2026, 1, 20, tzinfo=CHINA)  # so that days to come pass the end of a month
FUNDS_FEN = 10_000_000


class Rider(NamedTuple):
    card: str
    rider: int
    rider_until: int = 0  # dates YYYYMMDD
    pass_id: str = ""
    pass_until: int = 0


RIDERS = [
    Rider("3104416000000017", 1),
    Rider("3104416000000025", 0),
    Rider("3104416000000033", 2),
    Rider("3104416000000041", 2, 20260205),
    Rider("3104416000000058", 3),
    Rider("3104416000000066", 7),
    Rider("3104416000000074", 1, 0, "culture", 20260210),
    Rider("3104416000000082", 5, 0, "culture"),
]


def terminal_number(at: int) -> bytes:
    return (0x590000000100 + at).to_bytes(6, "big")


def day_of(date: int) -> int:
    """Days since 1970 of a date YYYYMMDD; 0 for 0."""
    return (datetime.date(date // 10_000, date // 100 % 100, date % 100) - datetime.date(1970, 1, 1)).days if date else 0


def wall_clock_s(local_time: int) -> int:
    """Seconds since 1970 of YYYYMMDDhhmmss, as the wall clock counts them."""
    when = datetime.datetime.strptime(str(local_time), "%Y%m%d%H%M%S")
    return int((when - datetime.datetime(1970, 1, 1)).total_seconds())


def draw_taps(chance: random.Random, riders: list[Rider], count: int, days: int) -> list[Tap]:
    """Signed taps of profile 2 in order of time, card counters rising with it: rides that begin and end, some that lack one of
    both, transfers, and now and then several in one second."""
    taps: list[Tap] = []
    sequences: dict[int, int] = defaultdict(int)
    when: dict[str, datetime.datetime] = {}
    atcs: dict[str, int] = defaultdict(int)
    for _ in range(count):
        rider = chance.choice(riders)
        start = when.get(rider.card) or FIRST_DAY + datetime.timedelta(seconds=chance.randrange(days * 86_400) // 4)
        pause_s = chance.choice([0, 1, 600, 1_800, 4_000, 20_000, 80_000, chance.randrange(days * 86_400) // 3])
        now = min(start + datetime.timedelta(seconds=pause_s), FIRST_DAY + datetime.timedelta(days=days))
        when[rider.card] = now
        atcs[rider.card] += chance.choice([1, 1, 1, 3])
        industry = chance.choice([1, 1, 1, 2, 2, 2, 8, 9, 4])
        kind = chance.choice([ENTRY, EXIT, ENTRY, EXIT, CHECK]) if industry in (1, 8) else SINGLE
        at = chance.randrange(4)
        sequences[at] += 1
        nominal_fen = chance.choice([100, 200, 333, 700])
        tap = Tap(
            card_number=rider.card, issuer_id=ISSUER, profile=2, algorithm_id=4, key_version=1, key_index=1, transaction_type=6,
            amount_fen=nominal_fen, amount_due_fen=chance.choice([0, nominal_fen + 100]), atc=atcs[rider.card],
            chip_balance_before_fen=77, chip_balance_after_fen=55,
            terminal_number=terminal_number(at), terminal_sequence=sequences[at], local_time=local_time_of(int(now.timestamp())),
            kind=int(kind), line=chance.choice([1, 2, 7, 150]), stop=chance.choice([1, 2, 3, 6, 7, 9, 77]), city=5980,
            industry=industry, rider=chance.randrange(8), direction=chance.randrange(3),
        )  # fmt: skip
        if chance.random() < 0.15:
            tap.transfer.last_amount_fen = 200
        taps.append(tap)
    taps.sort(key=lambda tap: tap.local_time)
    sign(taps, KEY_SETS)
    return taps


@dataclass
class Twin:
    """What one card's taps cost, one after another."""

    rider: Rider
    rides: twin.Rides = field(default_factory=twin.Rides)

    def ride(self, tap: Tap) -> twin.Ride:
        at = int.from_bytes(tap.terminal_number, "big") - 0x590000000100
        return twin.Ride(
            local_s=wall_clock_s(tap.local_time), kind=tap.kind, industry=tap.industry, line=tap.line, stop=tap.stop,
            nominal_fen=tap.amount_due_fen or tap.amount_fen, rider=self.rider.rider or 1,
            rider_until=day_of(self.rider.rider_until),
            pass_number=COMPILED.tariffs.pass_number.get(self.rider.pass_id, 0), pass_until=day_of(self.rider.pass_until),
            operator_number=COMPILED.operator_number(OPERATORS[at % 2]), stated=tap.HasField("transfer"),
        )  # fmt: skip

    def take(self, tap: Tap) -> tuple[int, twin.Fare]:
        """What the next tap is charged, and why."""
        ride = self.ride(tap)
        fare = twin.price(COMPILED.tariffs, self.rides, ride)
        charged_fen = fare.charged_fen if fare.outcome is Outcome.PRICED else tap.amount_fen
        self.rides = twin.rides_after(self.rides, ride, charged_fen, fare.marks)
        return charged_fen, fare


def in_order(taps: list[Tap]) -> list[Tap]:
    return sorted(taps, key=lambda tap: (tap.local_time, tap.atc))


def fare_message(fare: twin.Fare, provisional: bool = False) -> tap_service_pb2.Fare:
    """The twin's fare as the core should answer it."""
    rules = COMPILED.rules
    message = tap_service_pb2.Fare(
        base_fen=fare.base_fen,
        base_rule=rules[fare.base_rule],
        tariff="city/3" if fare.base_rule else "",
        provisional=provisional,
    )
    for rule, amount_fen in fare.adjustments:
        message.adjustments.add(rule_id=rules[rule], amount_fen=amount_fen)
    return message


def rides_of(core: Harness, card_number: str) -> twin.Rides:
    """A card's memory in the engine, in the twin's form."""
    rides = np.frombuffer(core.engine.rides(core.engine.find_card(card_number)), native.RIDES)[0]
    values: dict[str, Any] = {
        name: rides[name].item()
        for name in (
            "entry_s",
            "entry_line",
            "last_start_s",
            "last_end_s",
            "last_line",
            "day",
            "month_rides",
            "last_network",
            "chain",
        )
    }
    place = rides["entry_place"].item()
    return twin.Rides(
        **values, entry_stop=place & 0xFFFFFF, entry_network=place >> 24, spent_fen=tuple(rides["spent_fen"].tolist())
    )


def open_city(core: Harness, riders: list[Rider] = RIDERS, funds_fen: int = FUNDS_FEN) -> None:
    """Register the riders' cards, funded, and four terminals of two operators."""
    core.now_us = int(FIRST_DAY.timestamp()) * 1_000_000
    for at in range(4):
        core.register_terminal(terminal_number(at), OPERATORS[at % 2])
    for rider in riders:
        card = card_service_pb2.Card(
            card_number=rider.card, issuer_id=ISSUER, rider=rider.rider, rider_until=rider.rider_until, pass_id=rider.pass_id,
            pass_until=rider.pass_until,
        )  # fmt: skip
        registration = core.ask(commands.register_cards, card_service_pb2.RegisterCardsRequest(cards=[card])).registrations[0]
        assert registration.result == 1, registration
        if funds_fen:
            core.top_up(rider.card, funds_fen)
