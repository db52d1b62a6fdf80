"""bench latency: AuthorizeTap on the tap port at half of the rate that it can do, open loop, latency counted from when each tap
was due; without and with checkpoints under way.

Baselines of the same run: the p50 of a bare durable commit (one record); what the disk alone would give, if everything else took
no time; and the same load without checkpoints."""

import urllib.request
from typing import Any

import numpy as np

from yikatong.bench.result import BenchResult, Progress, machine, median, timed
from yikatong.bench.served import served
from yikatong.bench.taps import AMOUNT_FEN, bench_key_set, random_taps
from yikatong.bench.unary import CONNECTIONS, STREAMS, load
from yikatong.core.journal import RECORD_BYTES, Group, Journal
from yikatong.core.store import DataDirectory

GROUP_RECORDS = 64  # about what a commit holds at half load
NO_CHECKPOINTS = ("--checkpoint-s", "86400", "--checkpoint-records", "10000000")


def bare_commit_p50_ms(folder: Any, commits: int = 200) -> float:
    """Median of durable commits of one record each, on the same disk."""
    with DataDirectory(folder) as directory:
        journal = Journal(directory.journal)
        record = bytes(RECORD_BYTES)
        return 1e3 * median(
            [timed(lambda: journal.append(Group(journal.next_sequence, 1, record, b"", 1))) for _ in range(commits)]
        )


def disk_alone_p99_ms(folder: Any, records: int, seconds: float = 2.0) -> float:
    """p99 of taps that come at any time and wait for nothing but the disk: for the rest of the commit that is under way, and for
    their own, of `records` records each, one commit after the other."""
    with DataDirectory(folder) as directory:
        journal = Journal(directory.journal)
        group = bytes(RECORD_BYTES) * records
        took: list[float] = []
        while len(took) < 2 or sum(took) < seconds:
            took.append(timed(lambda: journal.append(Group(journal.next_sequence, records, group, b"", 1))))
    ends = np.cumsum(took)
    arrivals = np.linspace(0, ends[-2], 100_000, endpoint=False)
    under_way = np.searchsorted(ends, arrivals, side="right")
    return 1e3 * float(np.percentile(ends[under_way + 1] - arrivals, 99))


def longest_turn_s(metrics_address: str) -> float:
    """Processor time that the tap port took on its event loop at a time, at most, since it was last asked."""
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("yikatong_tap_longest_turn_seconds ")))


def run(
    cards: int = 1_000_000, seconds: float = 5.0, turns: int = 3, rate_max: float = 100_000, *, progress: Progress
) -> list[BenchResult]:
    """p99 at half load, with and without a checkpoint every second; measured and baselines take turns."""
    terminals = max(cards // 1000, 1)
    closed_taps = int(rate_max * 3)
    open_taps = int(rate_max * seconds)
    made = random_taps((1 + 2 * turns) * closed_taps + turns * 2 * open_taps, cards, terminals, bench_key_set(), seed=4).framed()
    quiet: list[Any] = []
    busy: list[Any] = []
    full_quiet: list[float] = []
    full_busy: list[float] = []
    commits: list[float] = []
    disk_alone: list[float] = []
    used = 0

    def take(n: int) -> Any:
        nonlocal used
        used += n
        return made[used - n : used]

    with (
        served(cards, terminals, progress, *NO_CHECKPOINTS) as (server, _, folder),
        served(cards, terminals, progress, "--checkpoint-s", "1") as (checkpointing, _, _),
    ):
        if server.tap_address is None or checkpointing.tap_address is None:
            raise RuntimeError("this build has no tap port: libnghttp2-dev is missing")
        full = min(load(server.tap_address, take(closed_taps)).rate, rate_max * 2)
        rate = full / 2
        for i in range(turns):
            for address, into in ((server.tap_address, quiet), (checkpointing.tap_address, busy)):
                into.append(load(address, take(int(rate * seconds)), rate=rate, exponential=True, seed=i, charged_fen=AMOUNT_FEN))
            for address, into in ((server.tap_address, full_quiet), (checkpointing.tap_address, full_busy)):
                into.append(load(address, take(closed_taps)).latency.percentile_ms(99))
            commits.append(bare_commit_p50_ms(folder / f"commits-{i}"))
            disk_alone.append(disk_alone_p99_ms(folder / f"disk-{i}", GROUP_RECORDS))
            progress("tapping at half load", i + 1, turns)
        turns_ms = [1e3 * longest_turn_s(each.metrics_address) for each in (server, checkpointing)]
    commit_ms = median(commits)
    p50, p99 = ([result.latency.percentile_ms(percent) for result in quiet] for percent in (50, 99))
    busy_p50, busy_p99 = ([result.latency.percentile_ms(percent) for result in busy] for percent in (50, 99))
    conditions = machine() | {
        "cards": cards, "offered_per_s": round(rate), "full_per_s": round(full), "connections": CONNECTIONS, "streams": STREAMS,
        "durability": "fsync a group", "generator": "native, open loop, exponential gaps, on the same machine",
        "longest_turn_of_the_loop_ms": max(turns_ms),
    }  # fmt: skip
    return [
        {
            "name": "latency, p99 at half load", "value": median(p99), "unit": "ms", "baseline": "p50 of a bare durable commit",
            "baseline_value": commit_ms, "ratio": median(p99) / commit_ms, "conditions": conditions,
            "p50_ms": median(p50), "p99_ms": median(p99),
        },
        {
            "name": "latency, p99 at half load", "value": median(p99), "unit": "ms",
            "baseline": "p99 of the disk alone: the rest of a commit, and the next", "baseline_value": median(disk_alone),
            "ratio": median(p99) / median(disk_alone), "conditions": conditions | {"records_a_commit": GROUP_RECORDS},
            "p50_ms": median(p50), "p99_ms": median(p99),
        },
        {
            "name": "latency, p99 at half load with a checkpoint a second", "value": median(busy_p99), "unit": "ms",
            "baseline": "the same without checkpoints", "baseline_value": median(p99), "ratio": median(busy_p99) / median(p99),
            "conditions": conditions, "p50_ms": median(busy_p50), "p99_ms": median(busy_p99),
        },
        {
            "name": "latency, p99 at full load with a checkpoint a second", "value": median(full_busy), "unit": "ms",
            "baseline": "the same without checkpoints", "baseline_value": median(full_quiet),
            "ratio": median(full_busy) / median(full_quiet),
            "conditions": conditions | {"generator": "native, closed loop, on the same machine"}, "p99_ms": median(full_busy),
        },
    ]  # fmt: skip
