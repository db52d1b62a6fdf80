"""bench fares: rides priced by the native evaluator under the packaged tariff, each against its card's memory, on one core,
against the plain Python twin, which must find the very same fares."""

import hashlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from yikatong.bench.result import BenchResult, Progress, machine, median, timed
from yikatong.clients.pricing import DEFAULT_TARIFF
from yikatong.core.rules import fares as twin
from yikatong.core.rules.compile import compile_tariffs
from yikatong.core.rules.tariff import TariffSet
from yikatong.ext import fares

SEED = 20180901
BATCH = 8_192  # as many as one request may hold
DAY_S = 1_535_760_000  # 2018-09-01 by the wall clock
Array = npt.NDArray[Any]


def make_rides(cards: int, rides: int) -> tuple[Array, Array]:
    """A day of metro entries and exits and of bus rides, in order of time, some of them transfers; and whose each is."""
    random = np.random.default_rng(SEED)
    made = np.zeros(rides, fares.RIDE)
    made["local_s"] = np.sort(DAY_S + random.integers(0, 86_400, rides))
    made["kind"] = random.integers(1, 4, rides)
    made["industry"] = np.where(made["kind"] == 3, 2, 1)
    made["line"], made["stop"] = random.integers(1, 500, rides), random.integers(0, 200, rides)
    made["nominal_fen"] = np.where(made["kind"] == 1, 0, random.integers(2, 9, rides) * 100)
    card = random.integers(0, cards, rides).astype(np.uint32)
    made["rider"] = random.choice([1, 1, 1, 1, 2, 3], cards)[card]
    return card, made


def run(
    cards: int = 200_000,
    rides: int = 2_000_000,
    twin_rides: int = 20_000,
    turns: int = 5,
    *,
    progress: Progress = lambda *_: None,
) -> list[BenchResult]:
    """Rides per second. Raises RuntimeError where native evaluator and twin differ in any fare of the twin's rides."""
    compiled = compile_tariffs(TariffSet.read([DEFAULT_TARIFF]))
    card, made = make_rides(cards, rides)
    charged: list[Array] = []

    memory = np.zeros(cards, fares.RIDES)

    def native() -> None:
        charged.clear()
        for at in range(0, rides, BATCH):
            batch = slice(at, at + BATCH)
            charged.append(compiled.evaluator.price(memory, card[batch], made[batch])["charged_fen"])

    plain: list[int] = []

    def plainly() -> None:
        memories: dict[int, twin.Rides] = {}
        names = [name for name in fares.RIDE.names or () if name not in ("pass", "reserved")]
        for number, row in zip(card[:twin_rides].tolist(), made[:twin_rides], strict=True):
            ride = twin.Ride(**{name: row[name].item() for name in names})
            before = memories.get(number, twin.Rides())
            fare = twin.price(compiled.tariffs, before, ride)
            memories[number] = twin.rides_after(before, ride, fare.charged_fen, fare.marks)
            plain.append(fare.charged_fen)

    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        rates, twin_rates = [], []
        for turn in range(turns):
            memory[:] = 0
            rates.append(rides / timed(native))
            plain.clear()
            twin_rates.append(twin_rides / timed(plainly))
            progress("pricing rides", turn + 1, turns)
    finally:
        os.sched_setaffinity(0, affinity)
    all_charged = np.concatenate(charged)
    if all_charged[:twin_rides].tolist() != plain:
        raise RuntimeError("the native evaluator and its twin find different fares")
    rate, twin_rate = median(rates), median(twin_rates)
    return [
        BenchResult(
            name="fares",
            value=rate,
            unit="rides/s",
            baseline="the plain Python twin",
            baseline_value=twin_rate,
            ratio=rate / twin_rate,
            conditions={
                "work": "price a ride under the tariff of Shenzhen and advance the card's memory",
                **machine(),
                "cores": 1,
                "cards": cards,
                "rides": rides,
                "baseline_rides": twin_rides,
                "turns": turns,
                "durability": "none",
            },
            result_hash=hashlib.sha256(all_charged.tobytes()).hexdigest(),
        )
    ]
