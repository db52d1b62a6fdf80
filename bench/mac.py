"""bench mac: card key derived and TAC checked (profile 1, one level), on one core, against OpenSSL and gmssl.

Measured and baseline take turns, so that a machine that slows down slows both, and the medians are compared. A number
includes all that the caller of the Python function waits for: reading the jobs from memory and writing the verdicts.
"""

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from yikatong.bench.result import BenchResult, Progress, machine, median, timed
from yikatong.ext import sm4, sm4_twin

SEED = 20250101
TURN_S = 0.1  # a turn is cut to about this long, so that slow runners do not hold up the others
TURNS_MIN = 3

Array = npt.NDArray[Any]


class Runner:
    """One way to prove jobs: how many of them it gets in a turn, and the rates of its turns."""

    def __init__(self, name: str, verify: Callable[[Array], Array], jobs: Array) -> None:
        self.name = name
        self.verify = verify
        self.jobs = jobs[:256]
        while (turn_s := timed(self._prove)) < TURN_S / 4 and len(self.jobs) < len(jobs):
            self.jobs = jobs[: len(self.jobs) * 4]
        self.jobs = jobs[: int(len(self.jobs) * TURN_S / turn_s)]
        self.rates: list[float] = []

    def _prove(self) -> None:
        if not self.verify(self.jobs).all():
            raise RuntimeError(f"{self.name} does not prove MACs that {sm4.available_paths()[0]} made")

    def take_turn(self) -> None:
        self.rates.append(len(self.jobs) / timed(self._prove))

    @property
    def rate(self) -> float:
        return median(self.rates)


def make_jobs(taps: int) -> tuple[Array, Array]:
    """One parent key, and that many random profile-1 taps with their MACs, made on the fastest path."""
    random = np.random.default_rng(SEED)
    parents = random.integers(0, 256, (1, 16), np.uint8)
    jobs = sm4.make_jobs(
        np.zeros(taps, np.int32),
        np.ones(taps, np.uint8),
        random.integers(0, 256, (taps, 8), np.uint8),
        random.integers(0, 256, (taps, 32), np.uint8),
        np.zeros(taps, np.uint16),
    )
    sm4.force_path(sm4.available_paths()[0])
    jobs["mac"] = sm4.compute_jobs(parents, jobs)
    return parents, jobs


def on_path(path: str, parents: Array) -> Callable[[Array], Array]:
    def verify(jobs: Array) -> Array:
        sm4.force_path(path)
        return sm4.verify_jobs(parents, jobs)

    return verify


def baselines(parents: Array, jobs: Array) -> list[Runner]:
    """OpenSSL where it can be loaded, and gmssl. Both must prove the very MACs that a native path made."""
    runners = [Runner("gmssl (pure Python)", lambda some: sm4_twin.verify_jobs(parents, some), jobs)]
    try:
        from yikatong.bench import openssl_mac
    except ImportError:
        return runners
    name = f"{openssl_mac.version()}, EVP in C, one tap at a time, contexts reused"
    return [Runner(name, lambda some: openssl_mac.verify_jobs(parents, some)[1], jobs), *runners]


def run(taps: int = 1_000_000, seconds: float = 3.0, *, progress: Progress = lambda *_: None) -> list[BenchResult]:
    """Measure all paths that this machine can run and the baselines, in turns, for about `seconds` in all and at least
    three turns each. One result for each path and baseline, in taps per second on one core; the hash is of all MACs.
    Raises RuntimeError where a path or a baseline does not prove the MACs that another one made."""
    chosen = sm4.path()
    parents, jobs = make_jobs(taps)
    measured = [Runner(path, on_path(path, parents), jobs) for path in sm4.available_paths()]
    compared = baselines(parents, jobs)
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        end = time.perf_counter() + seconds
        while len(measured[0].rates) < TURNS_MIN or time.perf_counter() < end:
            for runner in [*measured, *compared]:
                runner.take_turn()
            left_s = max(end - time.perf_counter(), 0.0)
            progress("proving taps", int(100 * (1 - left_s / seconds)) if seconds else 100, 100)
    finally:
        os.sched_setaffinity(0, affinity)
        sm4.force_path(chosen)

    result_hash = hashlib.sha256(jobs["mac"].tobytes()).hexdigest()
    return [
        BenchResult(
            name=f"mac {path.name}",
            value=path.rate,
            unit="taps/s",
            baseline=baseline.name,
            baseline_value=baseline.rate,
            ratio=path.rate / baseline.rate,
            conditions={
                "path": path.name,
                "work": "derive the card key (one level) and verify the TAC (profile 1, 22 bytes)",
                "parents": len(parents),
                **machine(),
                "cores": 1,
                "taps": len(path.jobs),
                "baseline_taps": len(baseline.jobs),
                "turns": len(path.rates),
                "durability": "none",
            },
            result_hash=result_hash,
        )
        for path in measured
        for baseline in compared
    ]
