"""bench unary: durable AuthorizeTap, one tap a call, on the tap port: plaintext, and with mTLS.

Baselines of the same run, under the same generator (native, closed loop): the service port, and the native transport with an
empty handler. Measured and baselines take turns. And taps of profile 2 with a tariff, caps and an overdraft on, against the same
without."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yikatong.bench.result import BenchResult, Progress, machine, median
from yikatong.bench.served import served
from yikatong.bench.taps import AMOUNT_FEN, bench_key_set, random_taps
from yikatong.bench.tariff import CHARGED_FEN, tariff_arguments

CONNECTIONS, STREAMS = 64, 8


@contextlib.contextmanager
def empty_port() -> Iterator[str]:
    """An empty native handler in a process of its own; its address."""
    process = subprocess.Popen([sys.executable, "-m", "yikatong.bench.empty_port"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the empty port did not start")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def load(address: str, requests: Any, **arguments: Any) -> Any:
    """One closed-loop run of the generator; every answer must be right."""
    from yikatong.bench import load as generator

    result = generator.run(
        address, requests, **({"connections": CONNECTIONS, "streams": STREAMS, "charged_fen": AMOUNT_FEN} | arguments)
    )
    if result.wrong or result.failed or result.refused or result.unanswered or result.error:
        raise AssertionError(
            f"{result.wrong} wrong, {result.failed} lost, {result.refused} refused, {result.unanswered} without an answer: "
            f"{result.first_wrong}{result.first_lost}{result.error}"
        )
    return result


def run(
    cards: int = 1_000_000, taps: int = 1_000_000, service_taps: int = 20_000, turns: int = 5, *, progress: Progress
) -> list[BenchResult]:
    """Taps a second and latency, each turn on every port."""
    terminals = max(cards // 1000, 1)
    framed = random_taps(2 * taps + service_taps, cards, terminals, bench_key_set(), seed=3).framed()
    plain, secure, service = framed[:taps], framed[taps : 2 * taps], framed[2 * taps :]
    priced = random_taps(taps, cards, terminals, bench_key_set(), seed=9, start=2 * taps + service_taps, profile=2).framed()
    names = (
        "tap port", "tap port, mTLS", "service port", "empty native handler", "tap port, tariffs on", "the same without a tariff",
    )  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in names}
    p50: dict[str, list[float]] = {name: [] for name in names}
    p99: dict[str, list[float]] = {name: [] for name in names}
    with (
        tempfile.TemporaryDirectory(prefix="yikatong-bench-") as of_tariff,
        served(cards, terminals, progress) as (server, _, _),
        served(cards, terminals, progress, *tariff_arguments(Path(of_tariff))) as (pricing, _, _),
        served(cards, terminals, progress) as (stating, _, _),  # charges what terminals state
        served(cards, terminals, progress, mtls=True) as (secure_server, _, folder),
        empty_port() as empty,
    ):
        tap_address = server.tap_address
        if tap_address is None:
            raise RuntimeError("this build has no tap port: libnghttp2-dev is missing")
        tls = {"ca": folder / "ca.pem", "certificate": folder / "client.pem", "key": folder / "client.key"}

        def turn(name: str, address: str, requests: Any, i: int, **arguments: Any) -> None:
            size = max(len(requests) // turns, 1)
            result = load(address, requests[i * size : (i + 1) * size], **arguments)
            rates[name].append(result.rate)
            p50[name].append(result.latency.percentile_ms(50))
            p99[name].append(result.latency.percentile_ms(99))

        for i in range(turns):
            turn("tap port", tap_address, plain, i)
            turn("tap port, mTLS", secure_server.tap_address, secure, i, **tls)
            turn("service port", server.address, service, i)
            turn("empty native handler", empty, plain, i)
            progress("tapping", i + 1, turns)
        for i in range(turns):
            turn("the same without a tariff", stating.tap_address, priced, i)
            turn("tap port, tariffs on", pricing.tap_address, priced, i, charged_fen=CHARGED_FEN)
            progress("tapping with a tariff", i + 1, turns)
    conditions = machine() | {
        "cards": cards, "taps": taps, "connections": CONNECTIONS, "streams": STREAMS, "durability": "fsync a group",
        "generator": "native, closed loop, on the same machine",
    }  # fmt: skip

    def result(name: str, baseline: str) -> BenchResult:
        value, base = median(rates[name]), median(rates[baseline])
        return {
            "name": f"unary, {name}", "value": value, "unit": "taps/s", "baseline": baseline, "baseline_value": base,
            "ratio": value / base, "conditions": conditions, "p50_ms": median(p50[name]), "p99_ms": median(p99[name]),
        }  # fmt: skip

    return [
        result("tap port", "service port"),
        result("tap port", "empty native handler"),
        result("tap port, mTLS", "tap port"),
        result("service port", "empty native handler"),
        result("tap port, tariffs on", "the same without a tariff"),
    ]
