"""bench bulk: durable SubmitTaps of 8,192 taps each, every MAC verified, on the tap port and on the service port.

Baseline: the same number of balance updates in place in LMDB, in durable batches of 1,024, without gRPC and without MACs. And
taps of profile 2 with a tariff, caps and an overdraft on, against the same without, in turns."""

import tempfile
from pathlib import Path
from typing import Any

from yikatong.bench.inplace import BATCH, InPlaceLedger
from yikatong.bench.result import BenchResult, Progress, machine, median, timed
from yikatong.bench.served import served
from yikatong.bench.taps import AMOUNT_FEN, bench_key_set, random_taps
from yikatong.bench.tariff import CHARGED_FEN, tariff_arguments
from yikatong.bench.unary import load

CONNECTIONS, STREAMS = 4, 1
SUBMIT_TAPS = "/yikatong.v1.TapService/SubmitTaps"


def run(
    cards: int = 1_000_000, taps: int = 2_000_000, batch: int = 8_192, turns: int = 5, *, progress: Progress
) -> list[BenchResult]:
    """Taps a second on each port; every answer is checked, and the books afterwards. Measured and baseline take turns."""
    terminals = max(cards // 1000, 1)
    requests = random_taps(2 * taps, cards, terminals, bench_key_set(), seed=2).submit_requests(batch)
    priced = random_taps(taps, cards, terminals, bench_key_set(), seed=8, start=2 * taps, profile=2).submit_requests(batch)
    results: dict[str, list[Any]] = {"tap port": [], "service port": []}
    rates: dict[str, list[float]] = {"off": [], "on": []}
    baselines: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="yikatong-bench-") as of_tariff,
        served(cards, terminals, progress) as (server, _, folder),
        served(cards, terminals, progress, *tariff_arguments(Path(of_tariff))) as (pricing, _, _),
        served(cards, terminals, progress) as (stating, _, _),  # charges what terminals state
    ):
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
        for turn in range(turns):
            size = max(len(priced) // turns, 1)
            part = priced[turn * size : (turn + 1) * size]
            both = (("off", stating.tap_address, AMOUNT_FEN), ("on", pricing.tap_address, CHARGED_FEN))
            for name, address, charged_fen in both if turn % 2 else both[::-1]:
                if address is not None:
                    run = load(address, part, path=SUBMIT_TAPS, connections=CONNECTIONS, streams=STREAMS, charged_fen=charged_fen)
                    rates[name].append(run.taps_rate)
            progress("submitting taps with a tariff", turn + 1, turns)
        ledger.close()
    baseline = median(baselines)
    conditions = machine() | {
        "cards": cards, "taps": taps, "batch": batch, "connections": CONNECTIONS, "streams": STREAMS,
        "durability": "fsync a group", "generator": "native, closed loop, on the same machine",
    }  # fmt: skip
    results_on: list[BenchResult] = [
        {
            "name": "bulk, tap port, tariffs on", "value": median(rates["on"]), "unit": "taps/s",
            "baseline": "the same taps of profile 2 without a tariff", "baseline_value": median(rates["off"]),
            "ratio": median(rates["on"]) / median(rates["off"]), "conditions": conditions,
        }
    ] if rates["on"] else []  # fmt: skip
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
