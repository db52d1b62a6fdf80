"""bench unary: durable AuthorizeTap, one tap a call, through the service port.

Baseline: an empty handler on grpc.aio and uvloop that answers the same bytes, under the same generator. The generator is grpcio
in a process of its own; it takes its share of the machine in both."""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from yikatong.bench.result import BenchResult, Progress, machine, median, percentile
from yikatong.bench.served import served
from yikatong.bench.taps import bench_key_set, random_taps
from yikatong.v1 import result_pb2, tap_service_pb2

CONNECTIONS, STREAMS = 16, 8
METHOD = "/yikatong.v1.TapService/AuthorizeTap"


async def _empty_server() -> None:
    """Serve AuthorizeTap with an answer that says ACCEPTED and nothing else; the port goes to standard output."""

    async def handler(_request: bytes, _context: Any) -> bytes:
        return answer

    outcome = tap_service_pb2.TapOutcome(result=result_pb2.RESULT_ACCEPTED, charged_fen=200, sequence=1)
    answer = tap_service_pb2.AuthorizeTapResponse(outcome=outcome).SerializeToString()
    server = grpc.aio.server()
    handlers = {"AuthorizeTap": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("yikatong.v1.TapService", handlers)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


@contextlib.contextmanager
def _empty() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-m", __name__, "empty"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the empty server did not start")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _generate(address: str, length: int, file: str) -> None:
    """Send the requests (all of one length) in a file, CONNECTIONS × STREAMS at a time, and print what came of it as JSON."""
    data = await asyncio.to_thread(Path(file).read_bytes)
    requests = iter([data[at : at + length] for at in range(0, len(data), length)])
    latencies: list[float] = []
    wrong = 0

    async def stream(method: Any) -> None:
        nonlocal wrong
        for request in requests:
            begun = time.perf_counter()
            outcome = tap_service_pb2.AuthorizeTapResponse.FromString(await method(request, timeout=60)).outcome
            latencies.append(time.perf_counter() - begun)
            wrong += outcome.result != 1 or outcome.duplicate or outcome.charged_fen != 200

    channels = [grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(CONNECTIONS)]
    begun = time.perf_counter()
    await asyncio.gather(*(stream(channel.unary_unary(METHOD)) for channel in channels for _ in range(STREAMS)))
    seconds = time.perf_counter() - begun
    for channel in channels:
        await channel.close()
    print(
        json.dumps(
            {"rate": len(latencies) / seconds, "wrong": wrong, "p50": median(latencies), "p99": percentile(latencies, 0.99)}
        )
    )


def _load(address: str, requests: list[bytes]) -> dict[str, float]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(requests))
        file.flush()
        command = [sys.executable, "-m", __name__, "load", address, str(len(requests[0])), file.name]
        result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if result["wrong"]:
        raise AssertionError(f"{result['wrong']} answers were wrong")
    return result


def run(cards: int = 100_000, taps: int = 30_000, turns: int = 5, *, progress: Progress) -> list[BenchResult]:
    """Taps a second and latency; measured and baseline take turns."""
    terminals = max(cards // 1000, 1)
    requests = random_taps(taps, cards, terminals, bench_key_set(), seed=3).authorize_requests()
    measured, baseline = [], []
    with served(cards, terminals, progress) as (server, _, _), _empty() as empty:
        a_turn = max(len(requests) // turns, 1)
        for turn in range(min(turns, len(requests))):
            part = requests[turn * a_turn : (turn + 1) * a_turn]
            measured.append(_load(server.address, part))
            baseline.append(_load(empty, part))
            progress("tapping", turn + 1, turns)
    value, base = (median([result["rate"] for result in results]) for results in (measured, baseline))
    return [
        {
            "name": "unary", "value": value, "unit": "taps/s",
            "baseline": "empty handler on grpc.aio and uvloop", "baseline_value": base, "ratio": value / base,
            "conditions": machine() | {
                "cards": cards, "taps": taps, "connections": CONNECTIONS, "streams": STREAMS, "durability": "fsync a group",
                "port": "service", "generator": "grpcio, in a process of its own on the same machine",
            },
            "p50_ms": 1e3 * median([result["p50"] for result in measured]),
            "p99_ms": 1e3 * median([result["p99"] for result in measured]),
        }
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "empty":
        uvloop.run(_empty_server())
    else:
        uvloop.run(_generate(sys.argv[2], int(sys.argv[3]), sys.argv[4]))
