"""bench bulk: durable SubmitTaps of 8,192 taps each, every MAC verified, on the tap port and on the service port.

Baseline: the same number of balance updates in place in LMDB, in durable batches of 1,024, without gRPC and without MACs. And
taps of profile 2 with a tariff, caps and an overdraft on, against the same without, in turns: each as many taps as two
checkpoints stand for, so that every turn has its share of them, and each after the other server's checkpoints have ended."""

import contextlib
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from yikatong.bench.inplace import BATCH, InPlaceLedger
from yikatong.bench.result import BenchResult, Progress, machine, median, timed
from yikatong.bench.served import served
from yikatong.bench.taps import AMOUNT_FEN, bench_key_set, random_taps
from yikatong.bench.tariff import CHARGED_FEN, tariff_arguments
from yikatong.bench.unary import load
from yikatong.core import limits

CONNECTIONS, STREAMS = 4, 1
SUBMIT_TAPS = "/yikatong.v1.TapService/SubmitTaps"
BY_RECORDS = ("--checkpoint-s", "86400")  # no checkpoint comes by the clock, only by what was written
SETTLE_S_MAX = 120.0


def run(
    cards: int = 1_000_000,
    taps: int = 2_000_000,
    batch: int = 8_192,
    turns: int = 5,
    priced_taps: int = 2 * limits.CHECKPOINT_RECORDS,
    *,
    progress: Progress,
) -> list[BenchResult]:
    """Taps a second on each port; every answer is checked, and the books afterwards. Measured and baseline take turns."""
    terminals = max(cards // 1000, 1)
    requests = random_taps(2 * taps, cards, terminals, bench_key_set(), seed=2).submit_requests(batch)
    results: dict[str, list[Any]] = {"tap port": [], "service port": []}
    baselines: list[float] = []
    with served(cards, terminals, progress) as (server, _, folder):
        ports = {"tap port": server.tap_address, "service port": server.address}
        ledger = InPlaceLedger(folder / "inplace", cards)
        a_turn = max(len(requests) // (2 * turns), 1)
        parts = iter(requests[i : i + a_turn] for i in range(0, len(requests), a_turn))
        for turn in range(turns):
            for name, address in ports.items():
                if address is not None:
                    part = next(parts)
                    results[name].append(load(address, part, path=SUBMIT_TAPS, connections=CONNECTIONS, streams=STREAMS))
            baselines.append(BATCH / median([timed(ledger.batch) for _ in range(8)]))
            progress("submitting taps", turn + 1, turns)
        ledger.close()
    rates = run_with_tariff(cards, priced_taps, batch, turns, progress)
    baseline = median(baselines)
    conditions = machine() | {
        "cards": cards, "taps": taps, "batch": batch, "connections": CONNECTIONS, "streams": STREAMS,
        "durability": "fsync a group", "generator": "native, closed loop, on the same machine",
    }  # fmt: skip
    results_on: list[BenchResult] = [
        {
            "name": "bulk, tap port, tariffs on", "value": median(rates["on"]), "unit": "taps/s",
            "baseline": "the same taps of profile 2 without a tariff", "baseline_value": median(rates["off"]),
            "ratio": median(rates["on"]) / median(rates["off"]),
            "conditions": conditions | {"taps": priced_taps * turns, "checkpoint_every_records": limits.CHECKPOINT_RECORDS},
        }
    ] if rates else []  # fmt: skip
    return [
        {
            "name": f"bulk, {name}", "value": median([run.taps_rate for run in runs]), "unit": "taps/s",
            "baseline": f"LMDB, random in-place updates of {cards} accounts, durable batches of {BATCH}",
            "baseline_value": baseline, "ratio": median([run.taps_rate for run in runs]) / baseline, "conditions": conditions,
            "p50_ms": median([run.latency.percentile_ms(50) for run in runs]),
            "p99_ms": median([run.latency.percentile_ms(99) for run in runs]),
        }
        for name, runs in results.items()
        if runs
    ] + results_on  # fmt: skip


def run_with_tariff(cards: int, taps: int, batch: int, turns: int, progress: Progress) -> dict[str, list[float]]:
    """Taps a second on the tap port with a tariff and without, `taps` in each turn; nothing where there is no tap port."""
    terminals = max(cards // 1000, 1)
    rates: dict[str, list[float]] = {"off": [], "on": []}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yikatong-bench-")))
        pricing, _, _ = stack.enter_context(served(cards, terminals, progress, *BY_RECORDS, *tariff_arguments(folder)))
        stating, _, _ = stack.enter_context(served(cards, terminals, progress, *BY_RECORDS))  # charges what terminals state
        both = (("off", stating, AMOUNT_FEN), ("on", pricing, CHARGED_FEN))
        if pricing.tap_address is None:
            return {}
        for turn in range(turns):
            made = random_taps(taps, cards, terminals, bench_key_set(), seed=8, start=turn * taps, profile=2)
            requests = made.submit_requests(batch)
            for name, server, charged_fen in both if turn % 2 else both[::-1]:
                for each in (pricing, stating):
                    wait_for_checkpoint(each.metrics_address)
                run = load(
                    server.tap_address, requests, path=SUBMIT_TAPS, connections=CONNECTIONS, streams=STREAMS,
                    charged_fen=charged_fen,
                )  # fmt: skip
                rates[name].append(run.taps_rate)
            progress("submitting taps with a tariff", turn + 1, turns)
    return rates


def wait_for_checkpoint(metrics_address: str) -> None:
    """Wait until no checkpoint is due or under way. Raises TimeoutError."""
    until = time.monotonic() + SETTLE_S_MAX
    while time.monotonic() < until:
        with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        lag = next(line.split()[1] for line in lines if line.startswith("yikatong_checkpoint_lag_records "))
        if float(lag) < limits.CHECKPOINT_RECORDS:
            return
        time.sleep(0.05)
    raise TimeoutError(f"a checkpoint took longer than {SETTLE_S_MAX:.0f} s")
