"""bench bulk: durable SubmitTaps of 8,192 taps each through the service port, every MAC verified.

Baseline: the same number of balance updates in place in LMDB, in durable batches of 1,024, without gRPC and without MACs."""

import hashlib
import time
from collections import deque
from typing import Any

import grpc

from yikatong.bench.inplace import BATCH, InPlaceLedger
from yikatong.bench.result import BenchResult, Progress, machine, median, percentile, timed
from yikatong.bench.served import served
from yikatong.bench.taps import bench_key_set, random_taps
from yikatong.v1 import tap_service_pb2

IN_FLIGHT = 4


def _submit(method: Any, requests: list[bytes]) -> tuple[float, list[float], list[bytes]]:
    """Send all, IN_FLIGHT at a time; seconds in all, seconds of each, and the responses."""
    waiting: deque[tuple[float, Any]] = deque()
    latencies: list[float] = []
    responses: list[bytes] = []
    begun = time.perf_counter()

    def collect() -> None:
        sent, future = waiting.popleft()
        responses.append(future.result())
        latencies.append(time.perf_counter() - sent)

    for request in requests:
        if len(waiting) == IN_FLIGHT:
            collect()
        waiting.append((time.perf_counter(), method.future(request, timeout=60)))
    while waiting:
        collect()
    return time.perf_counter() - begun, latencies, responses


def run(
    cards: int = 1_000_000, taps: int = 2_000_000, batch: int = 8_192, turns: int = 5, *, progress: Progress
) -> list[BenchResult]:
    """Taps a second; every answer is checked, and the books afterwards."""
    terminals = max(cards // 1000, 1)
    requests = random_taps(taps, cards, terminals, bench_key_set(), seed=2).submit_requests(batch)
    rates: list[float] = []
    baselines: list[float] = []
    latencies: list[float] = []
    digest = hashlib.sha256()
    with served(cards, terminals, progress) as (server, _, folder):
        ledger = InPlaceLedger(folder / "inplace", cards)
        options = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20)]
        with grpc.insecure_channel(server.address, options) as channel:
            method = channel.unary_unary("/yikatong.v1.TapService/SubmitTaps")
            a_turn = max(len(requests) // turns, 1)
            for turn in range(min(turns, len(requests))):
                part = requests[turn * a_turn : (turn + 1) * a_turn]
                seconds, times, responses = _submit(method, part)
                count = 0
                for response in responses:
                    outcomes = tap_service_pb2.SubmitTapsResponse.FromString(response).outcomes
                    count += len(outcomes)
                    if any(outcome.result != 1 or outcome.duplicate for outcome in outcomes):
                        raise AssertionError("a valid tap was not accepted")
                    digest.update(b"".join(outcome.charged_fen.to_bytes(4, "big") for outcome in outcomes))
                rates.append(count / seconds)
                latencies.extend(times)
                baselines.append(BATCH / median([timed(ledger.batch) for _ in range(8)]))
                progress("submitting taps", turn + 1, turns)
        ledger.close()
    value, baseline = median(rates), median(baselines)
    return [
        {
            "name": "bulk", "value": value, "unit": "taps/s",
            "baseline": f"LMDB, random in-place updates of {cards} accounts, durable batches of {BATCH}",
            "baseline_value": baseline, "ratio": value / baseline,
            "conditions": machine() | {
                "cards": cards, "taps": taps, "batch": batch, "in_flight": IN_FLIGHT, "durability": "fsync a group",
                "port": "service", "generator": "grpcio on the same machine",
            },
            "result_hash": digest.hexdigest()[:16],
            "p50_ms": 1e3 * median(latencies), "p99_ms": 1e3 * percentile(latencies, 0.99),
        }
    ]  # fmt: skip
