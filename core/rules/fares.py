"""The fare evaluator in plain Python: the twin of ext/price.c, which tests hold against each other.

It works from the tariff itself, not from the compiled tables, with calendar dates in place of day numbers; so it checks the
compiler too."""

import datetime
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from yikatong.core import limits
from yikatong.core.rules.tariff import (
    PERIODS,
    RIDER_ORDINARY,
    RIDERS,
    STOP_MAX,
    U32_MAX,
    Concession,
    DayKind,
    LegRule,
    Network,
    Pass,
    Product,
    Span,
    Tariff,
    TariffSet,
    TransferRule,
    cap_slots,
)

EPOCH: Final = datetime.datetime(1970, 1, 1)
SLOT_PERIOD: Final = {slot: period for period in PERIODS for slot in cap_slots(period)}


class TapKind(IntEnum):
    """As in the protos."""

    ENTRY = 1
    EXIT = 2
    SINGLE = 3
    CHECK = 4


class Outcome(IntEnum):
    """What became of pricing one tap."""

    PRICED = 1
    NO_TARIFF = 2
    NO_RULE = 3
    UNKNOWN_STOP = 4


@dataclass(frozen=True, slots=True)
class Ride:
    """One tap to be priced; yk_ride. Local time in seconds since 1970, days since 1970."""

    local_s: int
    kind: int
    industry: int
    line: int = 0
    stop: int = 0
    nominal_fen: int = 0
    rider: int = RIDER_ORDINARY
    rider_until: int = 0
    pass_number: int = 0
    pass_until: int = 0
    operator_number: int = 0
    stated: bool = False


@dataclass(frozen=True, slots=True)
class Rides:
    """A card's memory; yk_rides. Networks are 1 + their number, 0 being none."""

    entry_s: int = 0
    entry_line: int = 0
    entry_stop: int = 0
    entry_network: int = 0
    last_start_s: int = 0
    last_end_s: int = 0
    last_line: int = 0
    last_network: int = 0
    chain: int = 0
    spent_fen: tuple[int, ...] = (0,) * len(SLOT_PERIOD)
    day: int = 0
    month_rides: int = 0


@dataclass
class Fare:
    """What a tap costs and why: the base and signed adjustments, each with its rule's number."""

    outcome: Outcome
    base_fen: int = 0
    base_rule: int = 0
    adjustments: list[tuple[int, int]] = field(default_factory=list)  # rule, fen
    network: int = 0
    caps: frozenset[int] = frozenset()
    concession: bool = False
    transfer: bool = False
    matched: bool = False

    @property
    def charged_fen(self) -> int:
        return self.base_fen + sum(amount_fen for _, amount_fen in self.adjustments)

    @property
    def marks(self) -> int:
        """The two bytes of the ride's record; YK_MARK_…"""
        slots = sum(1 << slot for slot in self.caps)
        return slots | self.concession << 7 | self.network << 8 | self.transfer << 13 | self.matched << 14

    def adjust(self, rule: int, amount_fen: int) -> None:
        if amount_fen:
            self.adjustments.append((rule, amount_fen))


def _date(day: int) -> datetime.date:
    return EPOCH.date() + datetime.timedelta(days=day)


def _period(slot: int, day: int) -> tuple[int, ...]:
    date = _date(day)
    if SLOT_PERIOD[slot] == "day":
        return (day,)
    return date.isocalendar()[:2] if SLOT_PERIOD[slot] == "week" else (date.year, date.month)


def _month(day: int) -> tuple[int, int]:
    return _date(day).year, _date(day).month


def _within(spans: tuple[Span, ...], number: int) -> bool:
    return any(first <= number <= last for first, last in spans)


class _Pricing:
    """One tap, under the version that is in force."""

    def __init__(self, tariffs: TariffSet, at: int, rides: Rides, ride: Ride) -> None:
        self.tariffs = tariffs
        self.at = at
        self.tariff: Tariff = tariffs.tariffs[at]
        self.rides = rides
        self.ride = ride
        self.when = EPOCH + datetime.timedelta(seconds=ride.local_s)
        self.day = ride.local_s // 86_400

    def rule(self, kind: str, name: str) -> int:
        return self.tariffs.rule_number(self.tariff, kind, name)

    def number(self, network: str) -> int:
        return self.tariffs.network_number[network] + 1

    def round(self, thousandths: int) -> int:
        unit = 1000 * self.tariff.rounding_fen
        return (thousandths + (0 if self.tariff.rounding_down else unit // 2)) // unit * self.tariff.rounding_fen

    def part(self, amount_fen: int, permille: int) -> int:
        return min(self.round(amount_fen * permille), amount_fen)

    def leg(self) -> LegRule | None:
        operator = {number: name for name, number in self.tariffs.operator_number.items()}.get(self.ride.operator_number)
        for leg in self.tariff.leg_rules.values():
            if (
                self.ride.industry in leg.industries
                and (not leg.lines or _within(leg.lines, self.ride.line))
                and (not leg.operators or operator in leg.operators)
            ):
                return leg
        return None

    def product(self, leg: LegRule, start_s: int) -> Product:
        if leg.product is not None:
            return self.tariff.products[leg.product]
        start = EPOCH + datetime.timedelta(seconds=start_s)
        ordinary: DayKind = "weekend" if start.weekday() >= 5 else "weekday"
        kind = self.tariff.special_days.get(start.date(), ordinary)
        second = start_s % 86_400
        name = next(name for window, name in leg.bands if window.day == kind and window.start_s <= second < window.end_s)
        return self.tariff.products[name]

    def area(self, network: str, stop: int) -> str | None:
        for area in self.tariff.areas.values():
            if area.network == network and _within(area.stops, stop):
                return area.id
        return None

    def between(self, product: Product) -> int | None:
        """The fare from the open entry's stop to this; None where the entry's is not known. KeyError where this is not."""
        if product.kind == "zones":
            end = self.area(product.network, self.ride.stop)
            start = self.area(product.network, self.rides.entry_stop)
            if end is None:
                raise KeyError(self.ride.stop)
            return None if start is None else product.cells[start, end]
        end_m, start_m = product.at_m[self.ride.stop], product.at_m.get(self.rides.entry_stop)
        if start_m is None:
            return None
        return next(tier.amount_fen for tier in reversed(product.tiers) if tier.min_m <= abs(end_m - start_m))

    def base(self, leg: LegRule, product: Product, matched: bool) -> tuple[int, int]:
        """Rule and fen. Raises KeyError where the tap's stop is in no area and at no distance."""
        if product.kind == "flat":
            return self.rule("leg", leg.id), product.amount_fen
        if product.kind == "nominal":
            return self.rule("leg", leg.id), self.ride.nominal_fen
        between_fen = self.between(product)
        if matched and between_fen is not None:
            return self.rule("leg", leg.id), between_fen
        return self.rule("missing_entry", leg.network), self.tariff.networks[leg.network].missing_entry_fen or 0

    def concession(self, network: str) -> Concession | None:
        rider = self.ride.rider
        if rider not in RIDERS.values() or (self.ride.rider_until and self.day > self.ride.rider_until):
            rider = RIDER_ORDINARY
        used = self.rides.month_rides if _month(self.day) == _month(self.rides.day) else 0
        for concession in self.tariff.riders.get(rider, ()):
            if network in concession.networks:
                spent = concession.rides_a_month_max and used >= concession.rides_a_month_max
                return None if spent else concession
        return None

    def held_pass(self, network: str) -> Pass | None:
        if self.ride.pass_until and self.day > self.ride.pass_until:
            return None
        for held in self.tariff.passes.values():
            if self.tariffs.pass_number[held.id] == self.ride.pass_number and network in held.networks:
                return held
        return None

    def is_transfer(self, rule: TransferRule, network: str, start_s: int) -> bool:
        last = self.rides
        if network not in rule.to_networks or last.chain >= rule.chain_max:
            return False
        if rule.by_statement and self.ride.stated:
            return True
        if not rule.by_time or last.last_network not in map(self.number, rule.from_networks):
            return False
        if rule.other_line and (last.last_network, last.last_line) == (self.number(network), self.ride.line):
            return False
        waited_s = (start_s if rule.to_start else self.ride.local_s) - (last.last_start_s if rule.from_start else last.last_end_s)
        return rule.min_s <= waited_s <= rule.max_s

    def reduce(self, fare: Fare, product: Product, network: str, start_s: int) -> None:
        held = self.held_pass(network)
        concession = None if held else self.concession(network)
        if held is None and product.rates and (concession is None or concession.of_discounted):
            thousandths = 0
            for rate in product.rates:
                reached_fen = fare.base_fen if rate.max_fen is None else min(fare.base_fen, rate.max_fen)
                thousandths += max(reached_fen - rate.min_fen, 0) * rate.rate_permille
            fare.adjust(self.rule("rates", product.id), self.round(thousandths) - fare.base_fen)
        if held is not None:
            now_fen = self.part(fare.charged_fen, held.rate_permille)
            fare.adjust(self.rule("pass", held.id), now_fen - fare.charged_fen)
        elif concession is not None:
            now_fen = self.part(fare.charged_fen, concession.rate_permille)
            fare.adjust(self.rule("rider", concession.id), now_fen - fare.charged_fen)
            fare.concession = concession.rides_a_month_max > 0
            if not concession.transfers:
                return
        for rule in self.tariff.transfers.values():
            if self.is_transfer(rule, network, start_s):
                fare.transfer = True
                now_fen = max(self.part(fare.charged_fen, rule.rate_permille) - (rule.amount_off_fen or 0), 0)
                fare.adjust(self.rule("transfer", rule.id), now_fen - fare.charged_fen)
                return

    def missing_exit(self, fare: Fare) -> None:
        for network in self.tariff.networks:
            if self.number(network) == self.rides.entry_network:
                held, concession = self.held_pass(network), self.concession(network)
                permille = held.rate_permille if held else concession.rate_permille if concession else 1000
                amount_fen = self.part(self.tariff.networks[network].missing_exit_fen, permille)
                fare.adjust(self.rule("missing_exit", network), amount_fen)

    def caps(self, fare: Fare, network: str) -> None:
        left: list[tuple[int, int]] = []  # fen, rule
        slots = self.tariffs.cap_slot[self.at]
        for cap in self.tariff.caps.values():
            if network in cap.networks:
                slot = slots[cap.id]
                fare.caps |= {slot}
                spent_fen = self.rides.spent_fen[slot] if _period(slot, self.day) == _period(slot, self.rides.day) else 0
                left.append((max(cap.amount_fen - spent_fen, 0), self.rule("cap", cap.id)))
        if left:
            least_fen, rule = min(left, key=lambda row: row[0])
            fare.adjust(rule, min(least_fen - fare.charged_fen, 0))

    def price(self) -> Fare:
        leg = self.leg()
        if leg is None:
            return Fare(Outcome.NO_RULE)
        fare = Fare(Outcome.PRICED, base_rule=self.rule("leg", leg.id))
        if self.ride.kind not in (TapKind.ENTRY, TapKind.EXIT, TapKind.SINGLE):
            return fare
        fare.network = self.number(leg.network)
        network: Network = self.tariff.networks[leg.network]
        opened = self.rides.entry_network != 0 and self.rides.entry_s <= self.ride.local_s
        fare.matched = (
            opened
            and self.ride.kind == TapKind.EXIT
            and self.rides.entry_network == fare.network
            and self.ride.local_s - self.rides.entry_s <= network.journey_s_max
        )
        start_s = self.rides.entry_s if fare.matched else self.ride.local_s
        if self.ride.kind != TapKind.ENTRY:
            product = self.product(leg, start_s)
            try:
                fare.base_rule, fare.base_fen = self.base(leg, product, fare.matched)
            except KeyError:
                return Fare(Outcome.UNKNOWN_STOP)
            self.reduce(fare, product, leg.network, start_s)
        if opened and not fare.matched and self.ride.kind != TapKind.SINGLE:
            self.missing_exit(fare)
        self.caps(fare, leg.network)
        return fare


def _forget(rides: Rides, local_s: int) -> Rides:
    """Without an entry or a last ride that lies too far back."""
    if rides.entry_network and local_s - rides.entry_s > limits.RIDES_KEPT_S:
        rides = replace(rides, entry_s=0, entry_line=0, entry_stop=0, entry_network=0)
    if rides.last_network and local_s - rides.last_end_s > limits.RIDES_KEPT_S:
        rides = replace(rides, last_start_s=0, last_end_s=0, last_line=0, last_network=0, chain=0)
    return rides


def price(tariffs: TariffSet, rides: Rides, ride: Ride) -> Fare:
    """What one tap costs; yk_price."""
    rides = _forget(rides, ride.local_s)
    at = tariffs.in_force(_date(ride.local_s // 86_400))
    return Fare(Outcome.NO_TARIFF) if at is None else _Pricing(tariffs, at, rides, ride).price()


def rides_after(rides: Rides, ride: Ride, charged_fen: int, marks: int) -> Rides:
    """A card's memory after a tap that was booked; yk_rides_after. Of the ride it uses time, kind, line and stop only."""
    network = marks >> 8 & limits.TARIFF_NETWORKS_MAX
    if not network:
        return rides
    day = ride.local_s // 86_400
    spent, month_rides, newest = list(rides.spent_fen), rides.month_rides, max(rides.day, day)
    for slot in SLOT_PERIOD:
        if _period(slot, newest) != _period(slot, rides.day):
            spent[slot] = 0
        if marks >> slot & 1 and _period(slot, day) == _period(slot, newest):
            spent[slot] = min(spent[slot] + max(charged_fen, 0), U32_MAX)
    if _month(newest) != _month(rides.day):
        month_rides = 0
    if marks & 0x80 and _month(day) == _month(newest):
        month_rides = min(month_rides + 1, 0xFFFF)
    rides = replace(rides, spent_fen=tuple(spent), month_rides=month_rides, day=newest)
    if ride.local_s < max(rides.last_end_s, rides.entry_s if rides.entry_network else 0):
        return rides
    rides = _forget(rides, ride.local_s)
    if ride.kind == TapKind.ENTRY:
        return replace(rides, entry_s=ride.local_s, entry_line=ride.line, entry_stop=ride.stop & STOP_MAX, entry_network=network)
    matched, transfer = bool(marks & 0x4000), bool(marks & 0x2000)
    rides = replace(
        rides,
        last_start_s=rides.entry_s if matched else ride.local_s,
        last_end_s=ride.local_s,
        last_line=ride.line,
        last_network=network,
        chain=min(rides.chain + 1, 255) if transfer else 0,
    )
    if ride.kind == TapKind.EXIT:
        rides = replace(rides, entry_s=0, entry_line=0, entry_stop=0, entry_network=0)
    return rides
