"""What a bench says: one measured figure beside a baseline of the same run."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict


class BenchResult(TypedDict):
    """`ratio` is value / baseline_value. `conditions` say what a reader must know to compare; `result_hash` is over what was
    computed, so that two runs can be seen to have done the same work."""

    name: str
    value: float
    unit: str
    baseline: str
    baseline_value: float
    ratio: float
    conditions: dict[str, str | int | float]
    result_hash: NotRequired[str]
    p50_ms: NotRequired[float]
    p99_ms: NotRequired[float]


Progress = Callable[[str, int, int], None]


def machine() -> dict[str, str | int | float]:
    """Processor and cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")), name
        )
    return {"cpu": name, "cores": os.cpu_count() or 0}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def timed(work: Callable[[], object]) -> float:
    """Seconds that a piece of work took."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
