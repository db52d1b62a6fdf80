"""The load generator: it counts right, sees what is wrong, hides no waiting, and outlives its server."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import pytest

from yikatong.bench import load_cli
from yikatong.bench.certificates import make_certificates
from yikatong.bench.load_cli import Fleet, load_command
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.keys.key_sets import KeySet, make_test_keys
from yikatong.v1 import result_pb2, tap_service_pb2

load = pytest.importorskip("yikatong.bench.load", reason="built where nghttp2 is there")

Outcome = tap_service_pb2.TapOutcome
ACCEPTED = Outcome(result=result_pb2.RESULT_ACCEPTED, charged_fen=200, sequence=300)


def quiet(*_: object) -> None:
    pass


def answer(*outcomes: Outcome) -> bytes:
    return tap_service_pb2.SubmitTapsResponse(outcomes=outcomes).SerializeToString()


def tap_requests(n: int, taps: int = 1) -> list[bytes]:
    """Requests that only stubs take."""
    return [tap_service_pb2.SubmitTapsRequest(taps=[tap_service_pb2.Tap(atc=i + 1)] * taps).SerializeToString() for i in range(n)]


@contextlib.contextmanager
def stub(
    handler: Callable[[bytes, Any], bytes], credentials: grpc.ServerCredentials | None = None, workers: int = 4, port: int = 0
) -> Iterator[str]:
    """A server that answers AuthorizeTap and SubmitTaps with `handler`; ends gracefully."""
    server = grpc.server(ThreadPoolExecutor(workers), options=[("grpc.so_reuseport", 0)])
    method = grpc.unary_unary_rpc_method_handler(handler)
    handlers = {"AuthorizeTap": method, "SubmitTaps": method}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("yikatong.v1.TapService", handlers)])
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(5).wait()


@pytest.fixture(scope="module")
def fleet(connection: Connection, key_set: KeySet) -> Fleet:
    """Cards and terminals that the module's server knows."""
    made = Fleet(key_set, 500)
    made.register(connection, quiet)
    return made


# ---- histogram ----


def test_percentiles_are_numpys() -> None:
    random = np.random.default_rng(1)
    times_ns = np.clip(random.lognormal(13, 2.5, 200_000), 1, 1e11).astype(np.uint64)
    histogram = load.Histogram()
    histogram.record(times_ns)
    assert len(histogram) == len(times_ns)
    assert histogram.max_ms == times_ns.max() / 1e6
    assert histogram.mean_ms == pytest.approx(times_ns.mean() / 1e6)
    for percent in (0, 1, 25, 50, 90, 99, 99.9, 99.99, 100):
        exact_ms = np.percentile(times_ns, percent, method="inverted_cdf") / 1e6
        assert exact_ms <= histogram.percentile_ms(percent) <= exact_ms * 1.001
    counts, upper_ns = histogram.buckets()
    assert counts.sum() == len(times_ns)
    assert (np.diff(upper_ns.astype(np.int64)) > 0).all()


def test_every_time_falls_into_a_bucket_that_is_narrow_enough() -> None:
    edges = [2**k + d for k in range(37) for d in (-1, 0, 1)]
    for ns in [ns for ns in edges if 0 <= ns <= 10**11]:
        histogram = load.Histogram()
        histogram.record([ns])
        counts, upper_ns = histogram.buckets()
        assert counts.tolist() == [1]
        assert ns <= upper_ns[0] <= ns + ns // 1000
    histogram.record([2**63])
    assert histogram.max_ms == 100_000


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert np.isnan(load.Histogram().percentile_ms(50))
    assert np.isnan(load.Histogram().max_ms)


def test_histograms_add_up() -> None:
    one, other = load.Histogram(), load.Histogram()
    one.record([1_000_000] * 3)
    other.record([9_000_000])
    one.add(other)
    assert (len(one), one.max_ms, one.mean_ms) == (4, 9, 3)


# ---- a real server ----


def test_closed_loop(server: EmbeddedServer, fleet: Fleet) -> None:
    requests = fleet.requests(2_000, 0, quiet)
    result = load.run(server.address, requests, connections=4, streams=8, charged_fen=200)
    assert (result.sent, result.ok, result.taps) == (2_000, 2_000, 2_000)
    assert (result.wrong, result.refused, result.failed, result.unanswered, result.unsent, result.error) == (0, 0, 0, 0, 0, "")
    assert result.statuses.tolist() == [2_000] + [0] * 16
    assert result.results[1] == result.results.sum() == 2_000
    assert len(result.latency) == 2_000
    assert result.series["sent"].sum() == result.series["ok"].sum() == 2_000
    assert result.series["max_ns"].max() / 1e6 == result.latency.max_ms
    assert result.rate == result.taps_rate == 2_000 / result.elapsed_s

    again = load.run(server.address, requests, connections=4, streams=8)
    assert (again.ok, again.wrong) == (0, 2_000)
    assert "duplicate 1" in again.first_wrong


@pytest.mark.parametrize("exponential", [False, True])
def test_open_loop(server: EmbeddedServer, fleet: Fleet, exponential: bool) -> None:
    result = load.run(
        server.address, fleet.requests(600, 0, quiet), connections=3, rate=400, exponential=exponential, seed=7, seconds=1
    )
    assert result.ok == result.sent == len(result.lag)
    assert result.sent + result.unsent == 400 if not exponential else 300 < result.sent + result.unsent < 500
    assert result.elapsed_s >= 1


def test_batches(server: EmbeddedServer, fleet: Fleet) -> None:
    result = load.run(
        server.address, fleet.requests(8_000, 1_000, quiet), path="/yikatong.v1.TapService/SubmitTaps", connections=2, streams=2,
        charged_fen=200,
    )  # fmt: skip
    assert (result.ok, result.taps, result.results[1], result.wrong) == (8, 8_000, 8_000, 0)


def test_other_methods(server: EmbeddedServer) -> None:
    health = load.run(server.address, [b""] * 50, path="/grpc.health.v1.Health/Check", check="any", connections=2)
    assert (health.ok, health.wrong) == (50, 0)
    missing = load.run(server.address, [b""] * 50, path="/yikatong.v1.TapService/Nothing", check="any", connections=2)
    assert (missing.ok, missing.wrong, missing.statuses[12]) == (0, 50, 50)
    assert "grpc-status 12" in missing.first_wrong


def test_taps_survive_a_killed_server(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    """What is sent again after the server was killed is accepted once."""
    with EmbeddedServer(tmp_path / "data", key_file) as first, Connection(first.address) as connection:
        fleet = Fleet(key_set, 200)
        fleet.register(connection, quiet)
        revived: list[EmbeddedServer] = []

        def restart(done: int, _total: int) -> None:
            if done < 300 or revived:
                return
            first.kill()
            port = first.address.rpartition(":")[2]
            revived.append(EmbeddedServer(tmp_path / "data", key_file, "--service-port", port))

        requests = fleet.requests(3_000, 0, quiet)
        with contextlib.ExitStack() as stack:
            result = load.run(first.address, requests, connections=4, streams=8, resend=True, connect_s=30, progress=restart)
            stack.enter_context(revived[0])
            assert (result.ok, result.wrong, result.failed, result.unanswered) == (3_000, 0, 0, 0), result
            assert result.reconnects == 4
            assert result.first_lost


# ---- wrong answers ----


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (answer(Outcome(result=1, charged_fen=199)), "charged_fen 199"),
        (answer(Outcome(result=1, charged_fen=-200)), "charged_fen -200"),
        (answer(Outcome(result=50)), "result 50"),
        (answer(Outcome(result=1, charged_fen=200, duplicate=True)), "duplicate 1"),
        (answer(), "1 taps, but 0 outcomes"),
        (answer(ACCEPTED, ACCEPTED), "1 taps, but 2 outcomes"),
        (answer(ACCEPTED)[:-1], "no protobuf message"),
        (b"\x0a\x05\x08\x01", "no protobuf message"),
        (b"\x0b", "no protobuf message"),
    ],
)
def test_wrong_answers_are_seen(response: bytes, text: str) -> None:
    with stub(lambda *_: response) as address:
        result = load.run(address, tap_requests(20), connections=1, charged_fen=200)
    assert (result.ok, result.wrong, result.taps) == (0, 20, 0)
    assert text in result.first_wrong
    assert result.statuses[0] == 20


def test_one_wrong_tap_of_a_batch_is_seen() -> None:
    with stub(lambda *_: answer(*[ACCEPTED] * 99, Outcome(result=70))) as address:
        result = load.run(address, tap_requests(3, taps=100), connections=1, charged_fen=200)
    assert (result.ok, result.wrong, result.results[1], result.results[70]) == (0, 3, 297, 3)
    assert "outcome 99: result 70" in result.first_wrong


def test_refused_and_failing_calls_are_told_apart() -> None:
    def handler(request: bytes, context: grpc.ServicerContext) -> bytes:
        match tap_service_pb2.SubmitTapsRequest.FromString(request).taps[0].atc % 3:
            case 0:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later")
            case 1:
                context.abort(grpc.StatusCode.INTERNAL, "out of ink")
        return answer(ACCEPTED)

    with stub(handler) as address:
        result = load.run(address, tap_requests(90), connections=2, charged_fen=200)
    assert (result.ok, result.refused, result.wrong) == (30, 30, 30)
    assert (result.statuses[0], result.statuses[8], result.statuses[13]) == (30, 30, 30)
    assert (len(result.latency), len(result.refused_latency)) == (30, 30)
    assert "out of ink" in result.first_wrong


# ---- time ----


def stalling(at: int) -> Callable[[bytes, Any], bytes]:
    """Answers at once, but for the request with this number, which takes 300 ms; with one worker all wait with it."""

    def handler(request: bytes, _: grpc.ServicerContext) -> bytes:
        if tap_service_pb2.SubmitTapsRequest.FromString(request).taps[0].atc == at:
            time.sleep(0.3)
        return answer(ACCEPTED)

    return handler


def test_a_stall_is_felt_by_all_that_were_due_in_it() -> None:
    """Coordinated omission: a closed loop waits politely with the server and sees one slow answer; at a rate, all are counted."""
    with stub(stalling(at=150), workers=1) as address:
        closed = load.run(address, tap_requests(400), connections=1, streams=1)
        at_rate = load.run(address, tap_requests(400), connections=1, streams=1, rate=400)
    for result in (closed, at_rate):
        assert (result.ok, result.wrong) == (400, 0)
        assert result.latency.max_ms >= 300
    slow = [
        int(counts[upper_ns > 50_000_000].sum()) for counts, upper_ns in (closed.latency.buckets(), at_rate.latency.buckets())
    ]
    # 250 ms of the stall at 400 a second are 100 requests.
    assert slow[1] >= 90
    assert slow[0] < slow[1] / 2
    assert at_rate.latency.percentile_ms(99) >= 200
    # One stream: all but the first waited in the generator.
    assert at_rate.lag.percentile_ms(99) >= 200


def test_what_is_not_answered_is_counted() -> None:
    go = threading.Event()

    def handler(*_: object) -> bytes:
        go.wait(20)
        return answer(ACCEPTED)

    with stub(handler) as address:
        try:
            closed = load.run(address, tap_requests(20), connections=2, streams=4, drain_s=0.3)
            at_rate = load.run(address, tap_requests(50), connections=2, streams=4, rate=100, seconds=0.3, drain_s=0.2)
        finally:
            go.set()
    assert (closed.sent, closed.unanswered, closed.ok) == (8, 8, 0)
    assert "no answer" in closed.error
    assert (at_rate.sent, at_rate.unanswered, at_rate.ok) == (8, 8, 0)
    assert at_rate.sent + at_rate.unsent == 30


def test_seconds_bound_repeated_requests() -> None:
    with stub(lambda *_: answer(ACCEPTED)) as address:
        result = load.run(address, tap_requests(7), connections=2, repeat=True, seconds=0.5)
    assert result.ok == result.sent > 7
    assert result.elapsed_s >= 0.5
    assert len(result.series) in range(5, 20)


def test_deadlines_are_sent() -> None:
    left_s: list[float | None] = []

    def handler(_: bytes, context: grpc.ServicerContext) -> bytes:
        left_s.append(context.time_remaining())
        return answer(ACCEPTED)

    with stub(handler) as address:
        load.run(address, tap_requests(1), connections=1, grpc_timeout_s=20)
        load.run(address, tap_requests(1), connections=1)
    assert left_s[0] is not None
    assert 10 < left_s[0] <= 20
    assert left_s[1] is None or left_s[1] > 1e6


# ---- connections ----


def test_a_graceful_end_loses_nothing() -> None:
    def handler(*_: object) -> bytes:
        time.sleep(0.002)
        return answer(ACCEPTED)

    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        address = first.enter_context(stub(handler))

        def restart() -> None:
            time.sleep(0.5)
            first.close()
            second.enter_context(stub(handler, port=int(address.rpartition(":")[2])))

        thread = threading.Thread(target=restart)
        thread.start()
        result = load.run(address, tap_requests(400), connections=3, streams=4, rate=250, resend=True, connect_s=10)
        thread.join()
    assert (result.ok, result.wrong, result.failed, result.unanswered) == (400, 0, 0, 0), result
    assert result.reconnects == 3
    assert "GOAWAY" in result.first_lost


def test_a_server_that_stays_away_ends_the_run() -> None:
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(stub(lambda *_: answer(ACCEPTED)))
        timer = threading.Timer(0.3, stack.close)
        timer.start()
        result = load.run(address, tap_requests(1_000), connections=2, rate=100, connect_s=0.5)
        timer.join()
    assert "no connection" in result.error
    assert 0 < result.sent < 1_000
    assert result.sent == result.ok + result.failed + result.wrong + result.unanswered


def test_nobody_there() -> None:
    with pytest.raises(load.LoadFailed, match="refused"):
        load.run("127.0.0.1:1", [b""], connect_s=0.1)
    with pytest.raises(load.LoadFailed):
        load.run("no.such.host.invalid:1", [b""])


def test_tls(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    pair = [((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())]
    ca = tmp_path / "ca.pem"
    client: dict[str, Any] = {"ca": ca, "certificate": tmp_path / "client.pem", "key": tmp_path / "client.key"}
    requests = tap_requests(100)
    short: dict[str, Any] = {"connections": 2, "connect_s": 1}
    with stub(lambda *_: answer(ACCEPTED), grpc.ssl_server_credentials(pair)) as address:
        assert load.run(address, requests, ca=ca, **short).ok == 100
        assert load.run(address, requests, tls=True, **short).ok == 100
        assert load.run(address, requests, ca=ca, rate=1_000, **short).ok == 100
        with pytest.raises(load.LoadFailed, match="certificate verify failed"):
            load.run(address, requests, ca=tmp_path / "client.pem", **short)
        with pytest.raises(load.LoadFailed, match="mismatch"):
            load.run(address, requests, ca=ca, server_name="example.org", **short)
        with pytest.raises(load.LoadFailed):
            load.run(address, requests, **short)
    mutual = grpc.ssl_server_credentials(pair, ca.read_bytes(), require_client_auth=True)
    with stub(lambda *_: answer(ACCEPTED), mutual) as address:
        assert load.run(address, requests, **client, **short).ok == 100
        with pytest.raises(load.LoadFailed):
            load.run(address, requests, ca=ca, **short)
    with stub(lambda *_: answer(ACCEPTED)) as address, pytest.raises(load.LoadFailed, match="TLS"):
        load.run(address, requests, ca=ca, **short)


@pytest.mark.parametrize("tls", [False, True])
def test_requests_larger_than_every_window(tmp_path: Path, tls: bool) -> None:
    """Uploads that must wait for credit, and answers in many frames."""
    make_certificates(tmp_path)
    pair = [((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())]
    requests = [
        tap_service_pb2.SubmitTapsRequest(taps=[tap_service_pb2.Tap(card_number="9" * 300)] * 8_000).SerializeToString()
    ] * 6
    response = answer(*[ACCEPTED] * 8_000)
    credentials = grpc.ssl_server_credentials(pair) if tls else None
    with stub(lambda *_: response, credentials) as address:
        result = load.run(address, requests, connections=2, streams=3, charged_fen=200, tls=tls)
        early = load.run(address, requests, path="/nobody/Nothing", connections=2, streams=3, tls=tls)
    assert (result.ok, result.taps, result.wrong) == (6, 48_000, 0), result.first_wrong
    assert (early.statuses[12], early.failed, early.unanswered) == (6, 0, 0)


@pytest.mark.parametrize(
    ("requests", "arguments"),
    [
        ([], {}),
        ([b""], {"check": "all"}),
        ([b""], {"connections": 0}),
        ([b""], {"rate": 0}),
        ([b""], {"repeat": True}),
        ([b""], {"key": "a file"}),
        ((b"abc", np.array([0, 2, 4])), {}),
        ((b"abc", np.array([2, 1])), {}),
        (np.zeros((2, 2), np.int32), {}),
    ],
)
def test_arguments_that_make_no_sense(requests: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"wanted|of no use|go up"):
        load.run("127.0.0.1:1", requests, **arguments)


def test_requests_in_every_form() -> None:
    rows = np.frombuffer(b"".join(tap_requests(100)), np.uint8).reshape(100, -1)
    buffer, offsets = load.pack(rows)
    for form in (rows, list(map(bytes, rows)), (buffer, offsets), (buffer.tobytes(), offsets)):
        packed = load.pack(form)
        assert (packed[0] == buffer).all()
        assert (packed[1] == offsets).all()


# ---- the command ----


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        load_command.main([*arguments], standalone_mode=False)
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "way", [["--closed"], ["--rate", "300"], ["--sweep", "2000,4000", "--batch", "100"]], ids=lambda way: way[0]
)
def test_the_command(
    server: EmbeddedServer, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    way: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(load_cli, "PROBE_S", 0.2)
    report = tmp_path / "report.json"
    common = ["--keys", str(key_file), "--cards", "300", "--seconds", "0.5", "--connections", "2", "--json", str(report)]
    assert command(server.address, *common, *way) == 0
    assert "The books balance" in capsys.readouterr().out
    runs = json.loads(report.read_text())
    assert len(runs) == (2 if way[0] == "--sweep" else 1)
    for run in runs:
        assert run["ok"] == run["sent"] > 0
        assert run["wrong"] == 0
        assert sum(count for _, count in run["latency"]["buckets_ms"]) == run["ok"]
        assert sum(run["series_100_ms"]["ok"]) == run["ok"]


def test_the_command_fails_for_wrong_answers(server: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another key: every MAC is wrong."""
    keys = tmp_path / "keys.toml"
    make_test_keys(keys)
    assert command(server.address, "--keys", str(keys), "--cards", "10", "--seconds", "0.2", "--rate", "100") == 1
    assert f"result {result_pb2.RESULT_MAC_MISMATCH}" in capsys.readouterr().out


def test_a_picture(server: EmbeddedServer, key_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    picture = tmp_path / "sweep.png"
    common = ["--keys", str(key_file), "--cards", "300", "--seconds", "0.3", "--sweep", "100,200", "--plot", str(picture)]
    assert command(server.address, *common) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missing_library_is_named(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(click.UsageError, match=r"yikatong\[plot\]"):
        load_command.main(["127.0.0.1:1", "--keys", str(key_file), "--sweep", "1", "--plot", "p.png"], standalone_mode=False)


@pytest.mark.parametrize("way", [[], ["--closed", "--rate", "5"], ["--sweep", "1,x"], ["--closed", "--plot", "p.png"]])
def test_wrong_usage(key_file: Path, way: list[str]) -> None:
    with pytest.raises(click.UsageError):
        load_command.main(["127.0.0.1:1", "--keys", str(key_file), *way], standalone_mode=False)


def test_counters_run_out(key_set: KeySet) -> None:
    fleet = Fleet(key_set, 1)
    fleet.requests(40_000, 0, quiet)
    with pytest.raises(click.UsageError, match="more --cards"):
        fleet.requests(10_000, 0, quiet)
