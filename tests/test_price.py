"""Fares: tables of rides, and the native evaluator against its plain twin on random tariffs and rides."""

import datetime
import itertools
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tariffs import CITY, city, parse, tariff_sets

from yikatong.core.rules import fares as twin
from yikatong.core.rules.compile import Compiled, compile_tariffs, explain
from yikatong.core.rules.fares import Outcome, Ride, Rides, TapKind
from yikatong.core.rules.tariff import RIDERS, TariffSet, cap_slots
from yikatong.ext import fares as native

ENTRY, EXIT, SINGLE, CHECK = TapKind
METRO, BUS, COACH, MUSEUM = 1, 2, 8, 20


def at(text: str) -> int:
    """Local seconds of a date and time of 2026, "01-31 07:30"; of "2025-…" as it stands."""
    full = text if text.startswith("20") else f"2026-{text}"
    return int((datetime.datetime.fromisoformat(full.replace(" ", "T")) - datetime.datetime(1970, 1, 1)).total_seconds())


def native_ride(rides: list[Ride]) -> np.ndarray:
    made = np.zeros(len(rides), native.RIDE)
    for row, ride in zip(made, rides, strict=True):
        for name in native.RIDE.names or ():
            if name != "reserved":
                row[name] = getattr(ride, "pass_number" if name == "pass" else name)
    return made


def as_twin(rides: np.void) -> Rides:
    """A card's native memory in the twin's form."""
    values = {name: rides[name].item() for name in ("entry_s", "entry_line", "last_start_s", "last_end_s", "last_line", "day")}
    values |= {name: rides[name].item() for name in ("month_rides", "last_network", "chain")}
    place = rides["entry_place"].item()
    return Rides(**values, entry_stop=place & 0xFFFFFF, entry_network=place >> 24, spent_fen=tuple(rides["spent_fen"].tolist()))


@dataclass
class Both:
    """Prices by both evaluators and holds them against each other, ride by ride."""

    compiled: Compiled
    rides: Rides = field(default_factory=Rides)
    memory: np.ndarray = field(default_factory=lambda: np.zeros(1, native.RIDES))

    def price(self, ride: Ride) -> tuple[twin.Fare, list[tuple[str, int]]]:
        tariffs = self.compiled.tariffs
        plain = twin.price(tariffs, self.rides, ride)
        fare = self.compiled.evaluator.price(self.memory, np.zeros(1, np.uint32), native_ride([ride]))[0]
        assert (fare["outcome"], fare["charged_fen"], fare["marks"]) == (plain.outcome, plain.charged_fen, plain.marks)
        explanation = explain(self.compiled, fare)
        assert explanation == [
            (tariffs.rules[rule], amount) for rule, amount in [(plain.base_rule, plain.base_fen), *plain.adjustments]
        ]
        assert sum(amount for _, amount in explanation) == fare["charged_fen"] >= 0
        self.rides = twin.rides_after(self.rides, ride, plain.charged_fen, plain.marks)
        assert as_twin(self.memory[0]) == self.rides
        return plain, explanation


def priced(rows: list[tuple[Ride, int]], tariffs: TariffSet | None = None) -> list[list[tuple[str, int]]]:
    """Price rides of one card in turn; each must be charged what its row says. The explanations come back, less the version."""
    both = Both(compile_tariffs(tariffs or city()))
    explanations = []
    for ride, charged_fen in rows:
        fare, explanation = both.price(ride)
        assert fare.charged_fen == charged_fen, (ride, explanation)
        explanations.append([(rule.partition("/")[2].partition("/")[2], amount) for rule, amount in explanation])
    return explanations


def test_sizes_agree_with_the_header() -> None:
    assert {name: getattr(native, name).itemsize for name in native.SIZES} == native.SIZES


# ---- tables: time, kind, industry, line, stop, nominal, and what is charged ----


def ride(time: str, kind: TapKind, industry: int, line: int = 0, stop: int = 0, nominal_fen: int = 0, **more: int) -> Ride:
    return Ride(at(time), kind, industry, line, stop, nominal_fen, **more)


def test_nominal_fares_in_tiers() -> None:
    """80 % up to 300 fen, 75 % of the part above; half a fen up."""
    for nominal_fen, charged_fen in [(0, 0), (1, 1), (2, 2), (3, 2), (200, 160), (300, 240), (302, 242), (400, 315), (1000, 765)]:
        explanation = priced([(ride("03-02 08:00", SINGLE, BUS, 1, 0, nominal_fen), charged_fen)])[0]
        assert explanation[0] == ("leg/bus", nominal_fen)
        assert sum(amount for _, amount in explanation) == charged_fen


def test_zones_by_entry_and_exit() -> None:
    rows = [
        (ride("03-02 08:00", ENTRY, METRO, 1, 3), 0),
        (ride("03-02 08:30", EXIT, METRO, 2, 9), 200),
        (ride("03-03 08:00", ENTRY, METRO, 1, 3), 0),
        (ride("03-03 08:30", EXIT, METRO, 2, 7), 500),
        (ride("03-04 08:00", ENTRY, METRO, 1, 8), 0),
        (ride("03-04 08:30", EXIT, METRO, 2, 6), 300),
    ]
    assert priced(rows)[1] == [("leg/metro", 200)]


def test_missing_exit_and_missing_entry() -> None:
    rows = [
        (ride("03-02 08:00", EXIT, METRO, 1, 3), 900),
        (ride("03-03 08:00", ENTRY, METRO, 1, 3), 0),
        (ride("03-03 09:00", ENTRY, METRO, 1, 3), 700),  # the first entry never got its exit
        (ride("03-03 09:10", CHECK, METRO, 1, 3), 0),
        (ride("03-03 12:00", EXIT, METRO, 1, 3), 200),  # at the last minute that a journey may take
        (ride("03-04 08:00", ENTRY, METRO, 1, 3), 0),
        (ride("03-04 11:01", EXIT, METRO, 1, 3), 1000),  # too late: 900 + 700, and the cap of the day
        (ride("03-05 08:00", ENTRY, METRO, 1, 3), 0),
        (ride("03-05 08:30", SINGLE, BUS, 1, 0, 100), 80),  # a single tap says nothing about the journey
        (ride("03-05 09:00", EXIT, METRO, 1, 99), 0),  # a stop of no area is not priced and changes nothing
        (ride("03-05 09:00", EXIT, METRO, 1, 9), 181),  # 200, and a transfer from the bus: 905 permille
        (ride("03-06 08:00", ENTRY, METRO, 1, 77), 0),
        (ride("03-06 08:30", EXIT, METRO, 1, 3), 900),  # an entry at a stop of no area is none
    ]
    told = priced(rows)
    assert told[2] == [("leg/metro", 0), ("missing_exit/metro", 700)]
    assert told[6] == [("missing_entry/metro", 900), ("missing_exit/metro", 700), ("cap/day", -600)]
    assert told[12] == [("missing_entry/metro", 900)]


def test_an_exit_in_the_second_of_its_entry() -> None:
    rows = [
        (ride("03-02 08:00", ENTRY, METRO, 1, 3), 0),
        (ride("03-02 08:00", EXIT, METRO, 1, 3), 200),
        (ride("03-02 08:00", ENTRY, METRO, 1, 3), 0),  # nothing is open any more
    ]
    assert priced(rows)[2] == [("leg/metro", 0)]


def test_exit_elsewhere_closes_the_entry() -> None:
    rows = [
        (ride("03-02 08:00", ENTRY, METRO, 1, 3), 0),
        (ride("03-02 08:30", EXIT, COACH, 1, 2), 3700),  # no entry of the coach, no exit of the metro
        (ride("03-02 08:40", EXIT, METRO, 1, 3), 900),
    ]
    assert priced(rows)[1] == [("missing_entry/coach", 3000), ("missing_exit/metro", 700)]


def test_distance_tiers() -> None:
    for day, (start, end, charged_fen) in enumerate([(1, 1, 1000), (1, 2, 1500), (2, 3, 1500), (3, 1, 2500)], 2):
        rows = [
            (ride(f"03-0{day} 08:00", ENTRY, COACH, 1, start), 0),
            (ride(f"03-0{day} 09:00", EXIT, COACH, 1, end), charged_fen),
        ]
        priced(rows)
    both = Both(compile_tariffs(city()))
    assert both.price(ride("03-02 08:00", EXIT, COACH, 1, 9))[0].outcome == Outcome.UNKNOWN_STOP
    priced([(ride("03-02 08:00", SINGLE, COACH, 1, 1), 3000)])  # a single tap has no entry


def test_time_bands_and_kinds_of_day() -> None:
    rows = [
        ("03-02 05:29:59", 333),  # a Monday
        ("03-02 05:30:00", 160),
        ("03-02 22:59:59", 160),
        ("03-02 23:00:00", 333),
        ("03-01 12:00:00", 160),  # a Sunday
        ("10-01 12:00:00", 333),  # a holiday
        ("10-10 12:00:00", 160),  # a working Saturday
    ]
    for time, charged_fen in rows:
        priced([(ride(time, SINGLE, BUS, 1, 0, 200), charged_fen)])


def test_the_first_rule_that_fits() -> None:
    compiled = compile_tariffs(city())
    northern = compiled.operator_number("northern")
    assert (northern, compiled.operator_number("southern")) == (1, 0)
    rows = [(7, northern, "express"), (100, northern, "express"), (199, northern, "express"), (200, northern, "bus"),
            (8, northern, "bus"), (7, 0, "bus"), (150, 9, "bus")]  # fmt: skip
    for line, operator, rule in rows:
        explanation = priced([(ride("03-02 08:00", SINGLE, BUS, line, 0, 100, operator_number=operator), 80)])[0]
        assert explanation[0] == (f"leg/{rule}", 100)


@pytest.mark.parametrize(
    ("time", "industry", "outcome"),
    [
        ("2025-12-31 23:59:59", BUS, Outcome.NO_TARIFF),
        ("2027-01-01 00:00:00", BUS, Outcome.NO_TARIFF),
        ("2026-03-02 08:00:00", 5, Outcome.NO_RULE),
        ("2026-03-02 08:00:00", 255, Outcome.NO_RULE),
    ],
)
def test_not_priced(time: str, industry: int, outcome: Outcome) -> None:
    both = Both(compile_tariffs(city()))
    both.price(ride("03-02 07:00", ENTRY, METRO, 1, 3))
    before = both.rides
    fare, explanation = both.price(ride(time, SINGLE, industry, 1, 0, 100))
    assert (fare.outcome, fare.charged_fen, explanation, both.rides) == (outcome, 0, [("", 0)], before)


def test_riders() -> None:
    student, senior, worker = RIDERS["student"], RIDERS["senior"], RIDERS["model_worker"]
    march_3 = at("03-03 00:00") // 86_400

    def bus(time: str, rider: int, **more: int) -> Ride:
        return ride(time, SINGLE, BUS, 1, 0, 200, rider=rider, **more)

    told = priced([(bus("03-02 08:00", student), 80), (bus("03-03 08:00", student), 80), (bus("03-04 08:00", student), 80),
                   (bus("03-05 08:00", student), 160), (bus("04-01 08:00", student), 80)])  # fmt: skip
    assert told[0] == [("leg/bus", 200), ("rates/bus", -40), ("rider/student", -80)]
    assert told[3] == [("leg/bus", 200), ("rates/bus", -40)]
    assert priced([(bus("03-02 08:00", senior), 0)]) == [[("leg/bus", 200), ("rider/senior", -200)]]
    priced([(bus("03-03 23:00:00", senior, rider_until=march_3), 0), (bus("03-04 08:00", senior, rider_until=march_3), 160)])
    priced([(bus("03-02 08:00", worker), 180), (replace(bus("03-02 08:30", worker), line=2), 180)])  # no transfer for them
    for nobody in (0, 9, 200):
        priced([(bus("03-02 08:00", nobody), 160)])
    # Free riders are not charged what they forgot either.
    priced(
        [(ride("03-02 08:00", ENTRY, METRO, 1, 3, rider=senior), 0), (ride("03-02 09:00", ENTRY, METRO, 1, 3, rider=senior), 0)]
    )
    priced(
        [
            (ride("03-02 08:00", ENTRY, METRO, 1, 3, rider=student), 0),
            (ride("03-02 09:00", ENTRY, METRO, 1, 3, rider=student), 350),
        ]
    )


def test_transfers() -> None:
    def bus(time: str, line: int, **more: int) -> Ride:
        return ride(time, SINGLE, BUS, line, 0, 200, **more)

    told = priced([
        (bus("03-02 08:00:00", 1), 160),
        (bus("03-02 08:00:59", 2), 160),  # too soon to be another ride
        (bus("03-02 08:30:00", 3), 60),
        (bus("03-02 08:40:00", 3), 160),  # the same line
        (bus("03-02 09:40:00", 4), 60),
        (bus("03-02 10:40:00", 5), 60),
        (bus("03-02 11:40:00", 6), 160),  # a third in a row
        (bus("03-02 12:40:01", 7), 160),  # too late
        (bus("03-03 12:00:00", 7, stated=1), 60),
        (ride("03-03 12:50", ENTRY, METRO, 1, 3), 0),
        (ride("03-03 13:30", EXIT, METRO, 1, 9), 181),  # 90 minutes from start to end
        (bus("03-03 14:30", 8), 160),  # a third in a row
        (ride("03-04 08:00", ENTRY, METRO, 7, 3), 0),
        (ride("03-04 08:30", EXIT, METRO, 7, 9), 200),
        (bus("03-04 09:30", 7), 60),  # a line's number says nothing in another network
        (ride("03-05 12:00", SINGLE, BUS, 7, 0, 100, stated=1), 0),  # never below nothing
    ])  # fmt: skip
    assert told[2] == [("leg/bus", 200), ("rates/bus", -40), ("transfer/to-bus", -100)]
    assert told[10] == [("leg/metro", 200), ("transfer/to-metro", -19)]
    assert told[-1] == [("leg/bus", 100), ("rates/bus", -20), ("transfer/to-bus", -80)]


def test_caps() -> None:
    def bus(time: str, nominal_fen: int) -> Ride:
        return ride(time, SINGLE, BUS, 1, 0, nominal_fen)

    told = priced([
        (bus("03-02 08:00", 1000), 765),
        (bus("03-02 10:00", 1000), 235),
        (bus("03-02 12:00", 1000), 0),
        (ride("03-02 13:00", SINGLE, MUSEUM), 2000),  # under the cap of the week only
        (bus("03-03 08:00", 2000), 1000),
        (bus("03-04 08:00", 2000), 1000),
        (bus("03-05 08:00", 2000), 1000),
        (bus("03-08 08:00", 2000), 0),  # Sunday: 6,000 have been reached
        (bus("03-09 08:00", 2000), 1000),  # Monday
    ])  # fmt: skip
    assert told[1] == [("leg/bus", 1000), ("rates/bus", -235), ("cap/day", -530)]
    assert told[7][-1][0] == "cap/week"


def test_passes() -> None:
    until = at("03-02 00:00") // 86_400

    def museum(time: str, **more: int) -> Ride:
        return ride(time, SINGLE, MUSEUM, **more)

    told = priced([
        (museum("03-02 10:00", pass_number=1, pass_until=until), 0),
        (museum("03-03 10:00", pass_number=1, pass_until=until), 2000),
        (museum("03-04 10:00", pass_number=1), 0),
        (museum("03-05 10:00", pass_number=2), 2000),
        (ride("03-05 11:00", SINGLE, BUS, 1, 0, 200, pass_number=1), 160),
    ])  # fmt: skip
    assert told[0] == [("leg/museum", 2000), ("pass/culture", -2000)]


def test_rounding_is_as_the_tariff_states() -> None:
    for rounding, unit, charged_fen in [("half_up", 1, 79), ("down", 1, 78), ("half_up", 10, 80), ("down", 10, 70)]:
        text = CITY.replace('"half_up"', f'"{rounding}"').replace("rounding_fen = 1", f"rounding_fen = {unit}")
        priced([(ride("03-02 08:00", SINGLE, BUS, 1, 0, 98), charged_fen)], TariffSet([parse(text.replace("= 800", "= 805"))]))


def test_another_version_from_its_day_on() -> None:
    newer = CITY.replace("version = 3", "version = 4").replace("effective = 2026-01-01", "effective = 2026-03-03")
    newer = newer.replace("rate_permille = 800", "rate_permille = 700")
    older = CITY.replace("until = 2026-12-31\n", "")
    tariffs = TariffSet([parse(newer), parse(older)])
    rows = [(ride("03-02 12:00", SINGLE, BUS, 1, 0, 200), 160), (ride("03-03 12:00", SINGLE, BUS, 1, 0, 200), 140)]
    priced(rows, tariffs)
    # The week's cap goes on over the change.
    assert Both(compile_tariffs(tariffs)).compiled.tariffs.cap_slot[0] == tariffs.cap_slot[1]


# ---- properties ----

JANUARY_S = at("01-01 00:00")


@st.composite
def ride_lists(draw: st.DrawFn, sort: bool = True) -> list[Ride]:
    """Rides of one card, closer together than in life, so that they meet every rule."""
    gaps = draw(st.lists(st.sampled_from([0, 1, 60, 599, 1800, 3600, 7200, 20_000, 90_000, 700_000]), min_size=1, max_size=25))
    times = list(itertools.accumulate(gaps, initial=JANUARY_S - 3600))[1:]
    if not sort:
        times = draw(st.permutations(times))
    rider = draw(st.sampled_from([0, 1, 2, 3, 5, 7, 9]))
    until = draw(st.sampled_from([0, JANUARY_S // 86_400 + 5]))
    return [
        Ride(
            time,
            draw(st.sampled_from([ENTRY, EXIT, EXIT, SINGLE, SINGLE, CHECK])),
            draw(st.sampled_from([METRO, METRO, BUS, BUS, COACH, 3])),
            draw(st.integers(1, 4)),
            draw(st.integers(0, 8)),
            draw(st.one_of(st.integers(0, 1500), st.just(0xFFFF_FFFF))),
            rider,
            until,
            draw(st.integers(0, 2)),
            until,
            draw(st.integers(0, 2)),
            draw(st.booleans()),
        )
        for time in times
    ]


RANDOM = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@RANDOM
@given(tariff_sets(), ride_lists())
def test_twin_equals_native_and_caps_hold(tariffs: TariffSet, rides: list[Ride]) -> None:
    both = Both(compile_tariffs(tariffs))
    spent: dict[tuple[object, ...], int] = {}
    for one in rides:
        fare, explanation = both.price(one)
        if fare.outcome != Outcome.PRICED or not fare.network:
            assert fare.charged_fen == 0
            continue
        date = datetime.date(1970, 1, 1) + datetime.timedelta(days=one.local_s // 86_400)
        version = tariffs.in_force(date)
        assert version is not None
        network = next(name for name, number in tariffs.network_number.items() if number + 1 == fare.network)
        for cap in tariffs.tariffs[version].caps.values():
            if network not in cap.networks or len(tariffs.tariffs) > 1:
                continue  # over a change of version a cap's networks may change: what counted before then counts on
            period = {"day": date, "week": date.isocalendar()[:2], "month": (date.year, date.month)}[cap.period]
            total = spent[cap.id, period] = spent.get((cap.id, period), 0) + fare.charged_fen
            assert total <= cap.amount_fen
        senior = one.rider == RIDERS["senior"] and not one.rider_until
        if senior and RIDERS["senior"] in tariffs.tariffs[version].riders and (one.pass_number == 0):
            assert fare.charged_fen == 0
        if fare.charged_fen == 0 and fare.base_fen:
            assert len(explanation) > 1


@RANDOM
@given(tariff_sets(), ride_lists(sort=False))
def test_twin_equals_native_in_any_order(tariffs: TariffSet, rides: list[Ride]) -> None:
    both = Both(compile_tariffs(tariffs))
    for one in rides:
        both.price(one)


@RANDOM
@given(tariff_sets(), ride_lists(), st.randoms(use_true_random=False))
def test_in_order_again_from_a_known_memory(tariffs: TariffSet, rides: list[Ride], random) -> None:
    """Whatever order they arrived in: sorted and priced again from a known memory, they come out the same; and records alone,
    without the tariff, bring the memory back."""
    evaluator = compile_tariffs(tariffs).evaluator
    known = len(rides) // 3
    arrived = rides[known:]
    random.shuffle(arrived)
    assert len({(one.local_s, one) for one in arrived}) <= len(arrived)
    memory = np.zeros(1, native.RIDES)
    zeros = np.zeros(len(rides), np.uint32)
    evaluator.price(memory, zeros[:known], native_ride(rides[:known]))
    straight, again = memory.copy(), memory.copy()
    order = {id(one): place for place, one in enumerate(rides)}
    expected = evaluator.price(straight, zeros[known:], native_ride(rides[known:]))
    ordered = sorted(arrived, key=lambda one: (one.local_s, order[id(one)]))  # the card's counter breaks ties
    assert (evaluator.price(again, zeros[known:], native_ride(ordered)) == expected).all()
    assert (again == straight).all()
    done = np.zeros(len(ordered), native.RIDE_DONE)
    for row, one, fare in zip(done, ordered, expected, strict=True):
        row["local_s"], row["line"], row["stop"], row["kind"] = one.local_s, one.line, one.stop, one.kind
        row["marks"], row["charged_fen"] = fare["marks"], fare["charged_fen"]
    native.rides_after(memory, done)
    assert (memory == straight).all()


@RANDOM
@given(tariff_sets(), st.binary(min_size=64, max_size=64), st.binary(min_size=32, max_size=32))
def test_any_memory_and_any_ride_are_safe(tariffs: TariffSet, memory: bytes, raw: bytes) -> None:
    """Whatever the bytes are: an outcome, an explanation that adds up, and nothing negative."""
    compiled = compile_tariffs(tariffs)
    rides = np.frombuffer(bytearray(memory), native.RIDES)
    ride_array = np.frombuffer(raw, native.RIDE)
    for local_s in (int(ride_array["local_s"][0]), JANUARY_S + int(ride_array["local_s"][0]) % 9_000_000):
        one = ride_array.copy()
        one["local_s"], one["industry"], one["kind"] = local_s, [1, 2, 8][local_s % 3], 1 + local_s % 4
        fare = compiled.evaluator.price(rides.copy(), np.zeros(1, np.uint32), one)[0]
        assert fare["outcome"] in list(Outcome)
        assert fare["charged_fen"] >= 0
        assert sum(amount for _, amount in explain(compiled, fare)) == fare["charged_fen"]


def test_many_cards_at_once_are_as_one_by_one() -> None:
    compiled = compile_tariffs(city())
    rng = np.random.default_rng(5)
    n, cards = 2_000, 40
    ride_array = np.zeros(n, native.RIDE)
    ride_array["local_s"] = np.sort(JANUARY_S + rng.integers(0, 5_000_000, n))
    ride_array["kind"], ride_array["industry"] = rng.integers(1, 5, n), rng.choice([METRO, BUS, COACH], n)
    ride_array["stop"], ride_array["line"], ride_array["nominal_fen"] = rng.integers(0, 10, n), rng.integers(1, 4, n), 300
    card = rng.integers(0, cards, n).astype(np.uint32)
    memory = np.zeros(cards, native.RIDES)
    together = compiled.evaluator.price(memory, card, ride_array)
    for number in range(cards):
        alone = np.zeros(1, native.RIDES)
        own = ride_array[card == number]
        assert (compiled.evaluator.price(alone, np.zeros(len(own), np.uint32), own) == together[card == number]).all()
        assert alone[0] == memory[number]


def test_wrong_arrays_are_refused() -> None:
    evaluator = compile_tariffs(city()).evaluator
    rides, one = np.zeros(1, native.RIDES), np.zeros(1, native.RIDE)
    with pytest.raises(ValueError, match="cards"):
        evaluator.price(rides, np.array([1], np.uint32), one)
    with pytest.raises(ValueError, match="cards"):
        evaluator.price(rides, np.zeros(2, np.uint32), one)
    with pytest.raises(TypeError, match="rides"):
        evaluator.price(np.zeros(64, np.uint8), np.zeros(1, np.uint32), one)


def test_slots_of_periods_are_those_of_the_header() -> None:
    assert [list(cap_slots(period)) for period in ("day", "week", "month")] == [[0, 1, 2], [3, 4], [5, 6]]
    assert native.RIDES["spent_fen"].shape == (7,)


def test_random_bytes_under_sanitizers(tmp_path: Path) -> None:
    """No read outside the tables, no overflow, whatever a card's memory and a ride hold."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip("there is no C compiler")
    program, blob = tmp_path / "soak", tmp_path / "tariff"
    blob.write_bytes(compile_tariffs(city()).blob)
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = Path(__file__).with_name("price_soak.c")
    subprocess.run([compiler, "-std=gnu11", "-O1", "-g", *sanitize, str(source), "-o", str(program)], check=True)
    done = subprocess.run([program, blob, "500000"], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
