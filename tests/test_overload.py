"""Twice of what the tap port can do, for 20 seconds: what is too much is refused at once, what was taken is answered, and
afterwards all is as before."""

import urllib.request
from pathlib import Path

from yikatong.bench import load
from yikatong.bench.served import served
from yikatong.bench.taps import AMOUNT_FEN, bench_key_set, random_taps
from yikatong.core import limits

CARDS, TERMINALS = 20_000, 20
SECONDS = 20
RATE_MAX = 150_000  # as much as the generator is asked for
WARM_TAPS = 60_000


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is its own, not pages of files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def gauge(address: str, name: str) -> float:
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " ")))


def test_twice_the_capacity() -> None:
    with served(3 * CARDS, TERMINALS, lambda *_: None) as (server, _, _):
        assert server.tap_address

        def closed(start: int, card_first: int) -> load.Result:
            taps = random_taps(WARM_TAPS, CARDS, TERMINALS, bench_key_set(), seed=6, start=start, card_first=card_first)
            return load.run(server.tap_address, taps.framed(), connections=64, streams=8, charged_fen=AMOUNT_FEN)

        before = closed(0, 0)
        assert (before.ok, before.wrong, before.refused) == (WARM_TAPS, 0, 0)
        rate = min(2 * before.rate, RATE_MAX)
        offered = int(rate * SECONDS)
        flood = random_taps(offered, CARDS, TERMINALS, bench_key_set(), seed=6, start=WARM_TAPS, card_first=CARDS).framed()
        memory_before = anonymous_bytes(server.process.pid)
        during = load.run(
            server.tap_address, flood, connections=64, streams=256, rate=rate, seconds=SECONDS, charged_fen=AMOUNT_FEN, drain_s=30
        )
        assert (during.wrong, during.failed, during.unanswered) == (0, 0, 0), during.first_wrong + during.first_lost
        assert during.ok > 0
        assert during.ok + during.refused == during.sent
        # Queues are bounded, so memory is: calls of 2 KiB, and 64 bytes a tap until the next checkpoint.
        assert anonymous_bytes(server.process.pid) - memory_before < (256 << 20) + 80 * during.ok
        assert gauge(server.metrics_address, "yikatong_tap_calls_in_flight") == 0
        assert gauge(server.metrics_address, "yikatong_tap_refused_overload_total") == during.refused
        if during.refused:  # a refusal waits for nothing, while what was taken waits its turn
            assert during.refused_latency.percentile_ms(50) <= during.latency.max_ms
        after = closed(WARM_TAPS + offered, 2 * CARDS)
        assert (after.ok, after.wrong, after.refused) == (WARM_TAPS, 0, 0)


def test_past_the_bound_calls_are_refused_at_once() -> None:
    """More calls at a time than the tap port lets wait, all sent together: some must be refused, with RetryInfo."""
    with served(1_000, 10, lambda *_: None) as (server, _, _):
        assert server.tap_address
        taps = random_taps(20_000, 1_000, 10, bench_key_set(), seed=7).framed()
        result = load.run(server.tap_address, taps, connections=64, streams=256, charged_fen=AMOUNT_FEN)
        assert limits.TAP_CALLS_MAX < 64 * 256
        assert result.refused > 0
        assert (result.wrong, result.failed, result.ok + result.refused) == (0, 0, 20_000)
        assert gauge(server.metrics_address, "yikatong_tap_refused_overload_total") == result.refused
