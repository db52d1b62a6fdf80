"""The native tap port: the same answers as the service port, and gRPC as clients expect it."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from city import new_card, new_terminal
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from yikatong.bench.certificates import make_certificates
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core import limits
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.service import SERVICES
from yikatong.core.types import Result
from yikatong.v1 import account_service_pb2, card_service_pb2, tap_service_pb2

AUTHORIZE = "/yikatong.v1.TapService/AuthorizeTap"
SUBMIT = "/yikatong.v1.TapService/SubmitTaps"
BALANCE = "/yikatong.v1.AccountService/GetBalance"
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture(scope="module")
def taps(server: EmbeddedServer) -> Iterator[Connection]:
    """A connection to the tap port."""
    assert server.tap_address, "this build has no tap port: libnghttp2-dev is missing"
    with Connection(server.tap_address) as made:
        yield made


def raw(connection: Connection, path: str, request: bytes) -> tuple[object, ...]:
    """All of an answer: code, message, status details, response bytes."""
    try:
        response = connection.channel.unary_unary(path)(request, timeout=10)
    except grpc.RpcError as error:
        details = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
        return error.code(), error.details(), details, b""
    return grpc.StatusCode.OK, "", [], response


def test_answers_equal_the_service_ports_byte_for_byte(connection: Connection, taps: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set), new_terminal(connection)
    good = [terminal.present(card, amount) for amount in (100, 200, 0)]
    good[1].transfer.last_line = 7
    forged = terminal.present(card, 5)
    forged.mac = bytes(4)
    conflicting = tap_service_pb2.Tap()
    conflicting.CopyFrom(good[0])
    conflicting.amount_fen = 1
    connection.taps.SubmitTaps(tap_service_pb2.SubmitTapsRequest(taps=good))  # from now on these are repeats, on both ports
    malformed = [tap_service_pb2.Tap(), tap_service_pb2.Tap(card_number="1"), tap_service_pb2.Tap(card_number="x" * 30)]
    corpus: list[tuple[str, bytes]] = [
        *((AUTHORIZE, tap_service_pb2.AuthorizeTapRequest(tap=tap).SerializeToString()) for tap in [*good, *malformed]),
        (SUBMIT, tap_service_pb2.SubmitTapsRequest(taps=good * 100).SerializeToString()),
        (SUBMIT, tap_service_pb2.SubmitTapsRequest(taps=good * 2731).SerializeToString()),  # 8,193
        (SUBMIT, tap_service_pb2.SubmitTapsRequest().SerializeToString()),
        *((path, rubbish) for path in (AUTHORIZE, SUBMIT, BALANCE) for rubbish in (b"\xff", b"\x0a\x7f", b"\x00", b"\x0b")),
        (AUTHORIZE, tap_service_pb2.AuthorizeTapRequest(tap=good[0]).SerializeToString() * 2),
        (BALANCE, account_service_pb2.GetBalanceRequest(card_number=card.card_number).SerializeToString()),
        (BALANCE, account_service_pb2.GetBalanceRequest(card_number="404").SerializeToString()),
        (BALANCE, account_service_pb2.GetBalanceRequest(card_number="卡").SerializeToString()),
        (HEALTH, health_pb2.HealthCheckRequest().SerializeToString()),
        (HEALTH, health_pb2.HealthCheckRequest(service=SERVICES[0]).SerializeToString()),
    ]
    for path, request in corpus:
        assert raw(taps, path, request) == raw(connection, path, request), (path, request[:50])
    for tap in (forged, conflicting):  # these are journalled each time: all but the sequence is the same
        answers = [new.authorize(port, tap) for new in [terminal] for port in (connection, taps)]
        for answer in answers:
            answer.sequence = 0
        assert answers[0] == answers[1]


def test_other_methods_name_the_service_port(server: EmbeddedServer, taps: Connection) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        taps.cards.GetCard(card_service_pb2.GetCardRequest(card_number="1"))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert server.address in caught.value.details()


def test_unknown_service_of_health(taps: Connection) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(taps.channel).Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_aio_client(server: EmbeddedServer, connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set, 10_000), new_terminal(connection)
    sent = [terminal.present(card, 1) for _ in range(500)]

    async def run() -> list[bytes]:
        async with grpc.aio.insecure_channel(server.tap_address or "") as channel:
            method = channel.unary_unary(AUTHORIZE)
            requests = (tap_service_pb2.AuthorizeTapRequest(tap=tap).SerializeToString() for tap in sent)
            return await asyncio.gather(*(method(request, timeout=20) for request in requests))

    outcomes = [tap_service_pb2.AuthorizeTapResponse.FromString(response).outcome for response in asyncio.run(run())]
    assert all(outcome.result == Result.ACCEPTED and not outcome.duplicate for outcome in outcomes)
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
    assert balance.balance_fen == 9_500


def framed(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


def curl(server: EmbeddedServer, path: str, body: bytes, *arguments: str, tmp_path: Path) -> tuple[str, bytes]:
    """Headers and trailers, and the body, as curl's HTTP/2 gets them."""
    (tmp_path / "request").write_bytes(body)
    command = [
        "curl", "--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "10",
        "--dump-header", str(tmp_path / "headers"),
        "--data-binary", f"@{tmp_path / 'request'}", "--output", str(tmp_path / "body"), "-H", "te: trailers", *arguments,
        f"http://{server.tap_address}{path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    body_path = tmp_path / "body"
    return (tmp_path / "headers").read_text().lower(), body_path.read_bytes() if body_path.exists() else b""


GRPC = ("-H", "content-type: application/grpc")
CURL = [
    # path, body, more arguments, what the headers and trailers must hold
    (HEALTH, framed(b""), GRPC, ["http/2 200", "grpc-status: 0"]),
    (HEALTH, framed(b""), ("-H", "content-type: application/grpc+proto"), ["grpc-status: 0"]),
    (HEALTH, framed(b""), ("-H", "content-type: application/grpc;charset=utf-8"), ["grpc-status: 0"]),
    (HEALTH, framed(b""), ("-H", "content-type: application/json"), ["http/2 415"]),
    (HEALTH, framed(b""), ("-H", "content-type: application/grpc-web"), ["http/2 415"]),
    (HEALTH, framed(b""), ("-H", "content-type: application/grpc", "-X", "PUT"), ["http/2 405"]),
    ("/no/such", framed(b""), GRPC, ["grpc-status: 12", "service port"]),
    (HEALTH, framed(b"", 1), (*GRPC, "-H", "grpc-encoding: gzip"), ["grpc-status: 12", "identity"]),
    (HEALTH, framed(b"", 1), GRPC, ["grpc-status: 13"]),
    (HEALTH, framed(b"")[:3], GRPC, ["grpc-status: 13"]),
    (HEALTH, framed(b"") + framed(b""), GRPC, ["grpc-status: 13", "one message"]),
    (HEALTH, framed(b""), (*GRPC, "-H", "grpc-timeout: 5S"), ["grpc-status: 0"]),
    (HEALTH, framed(b""), (*GRPC, "-H", "grpc-timeout: 0m"), ["grpc-status: 4"]),
    (HEALTH, framed(b""), (*GRPC, "-H", "grpc-timeout: soon"), ["grpc-status: 13", "grpc-timeout"]),
    (HEALTH, framed(b""), (*GRPC, "-H", "x: " + "y" * 20_000), ["grpc-status: 8", "metadata"]),
    (HEALTH, framed(health_pb2.HealthCheckRequest(service="卡%").SerializeToString()), GRPC, ["grpc-status: 5", "%e5%8d%a1%25"]),
]


@pytest.mark.parametrize(("path", "body", "arguments", "holds"), CURL, ids=range(len(CURL)))
def test_as_curl_sees_it(
    server: EmbeddedServer, tmp_path: Path, path: str, body: bytes, arguments: tuple[str, ...], holds: list[str]
) -> None:
    headers, _ = curl(server, path, body, *arguments, tmp_path=tmp_path)
    for text in holds:
        assert text in headers


def test_h2load_gets_only_good_answers(server: EmbeddedServer, connection: Connection, key_set: KeySet, tmp_path: Path) -> None:
    card, terminal = new_card(connection, key_set), new_terminal(connection)
    request = tap_service_pb2.AuthorizeTapRequest(tap=terminal.present(card, 1)).SerializeToString()
    (tmp_path / "request").write_bytes(framed(request))
    command = [
        "h2load", "-n", "5000", "-c", "32", "-m", "8", "-d", str(tmp_path / "request"), "-H", "content-type: application/grpc",
        "-H", "te: trailers", f"http://{server.tap_address}{AUTHORIZE}",
    ]  # fmt: skip
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "5000 succeeded, 0 failed, 0 errored, 0 timeout" in printed
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
    assert balance.balance_fen == 9_999  # one tap, many repeats


def test_a_deadline_that_is_over_is_not_executed(
    taps: Connection, connection: Connection, key_set: KeySet, server: EmbeddedServer, tmp_path: Path
) -> None:
    card, terminal = new_card(connection, key_set, 1_000), new_terminal(connection)
    tap = terminal.present(card, 100)
    body = framed(tap_service_pb2.AuthorizeTapRequest(tap=tap).SerializeToString())
    headers, _ = curl(server, AUTHORIZE, body, *GRPC, "-H", "grpc-timeout: 0n", tmp_path=tmp_path)
    assert "grpc-status: 4" in headers
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
    assert balance.balance_fen == 1_000
    assert not terminal.authorize(taps, tap).duplicate


def test_cancelled_calls_do_no_harm(taps: Connection, connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set, 10_000), new_terminal(connection)
    method = taps.channel.unary_unary(AUTHORIZE)
    sent = [terminal.present(card, 1) for _ in range(300)]
    futures = [method.future(tap_service_pb2.AuthorizeTapRequest(tap=tap).SerializeToString(), timeout=10) for tap in sent]
    for future in futures[::2]:
        future.cancel()
    for future in futures[1::2]:
        assert tap_service_pb2.AuthorizeTapResponse.FromString(future.result()).outcome.result == Result.ACCEPTED
    # Cancelled or not, each counts once.
    outcomes = connection.taps.SubmitTaps(tap_service_pb2.SubmitTapsRequest(taps=sent)).outcomes
    assert all(outcome.result == Result.ACCEPTED for outcome in outcomes)
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
    assert balance.balance_fen == 9_700


def test_full_batches_both_ways(taps: Connection, connection: Connection, key_set: KeySet) -> None:
    """Flow control: requests of a megabyte and answers of a quarter, several at a time on one connection."""
    card, terminal = new_card(connection, key_set, 1_000_000), new_terminal(connection)
    batches = [[terminal.present(card, 1) for _ in range(limits.REQUEST_ITEMS_MAX)] for _ in range(2)]
    requests = [tap_service_pb2.SubmitTapsRequest(taps=batch).SerializeToString() for batch in batches]
    futures = [taps.channel.unary_unary(SUBMIT).future(request, timeout=60) for request in requests * 3]
    answers = [tap_service_pb2.SubmitTapsResponse.FromString(future.result()) for future in futures]
    assert all(len(answer.outcomes) == limits.REQUEST_ITEMS_MAX for answer in answers)
    assert sum(not outcome.duplicate for answer in answers for outcome in answer.outcomes) == 2 * limits.REQUEST_ITEMS_MAX
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
    assert balance.balance_fen == 1_000_000 - 2 * limits.REQUEST_ITEMS_MAX


def test_an_oversize_message_is_told_and_the_connection_goes_on(server: EmbeddedServer) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.tap_address or "", options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(SUBMIT)(bytes(limits.REQUEST_BYTES_MAX + 1), timeout=10)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert channel.unary_unary(HEALTH)(b"", timeout=10)


def test_keepalive_pings_are_answered(server: EmbeddedServer) -> None:
    options = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 500), ("grpc.keepalive_permit_without_calls", 1)]
    with grpc.insecure_channel(server.tap_address or "", options) as channel:
        assert channel.unary_unary(HEALTH)(b"", timeout=10)
    ping = b"\0\0\x08\x06\0\0\0\0\0" + b"12345678"
    with socket.create_connection(tuple((server.tap_address or "").split(":"))) as peer:  # type: ignore[arg-type]
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" + ping)
        got, deadline = b"", time.monotonic() + 5
        while b"\0\0\x08\x06\x01\0\0\0\0" + b"12345678" not in got:
            assert time.monotonic() < deadline, got
            got += peer.recv(4096)


def start(tmp_path: Path, key_file: Path, *arguments: str) -> EmbeddedServer:
    return EmbeddedServer(tmp_path / "data", key_file, *arguments)


def test_sigterm_says_goaway_and_finishes_calls(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    with start(tmp_path, key_file) as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set), new_terminal(connection)
        with Connection(server.tap_address or "") as taps:
            method = taps.channel.unary_unary(AUTHORIZE)
            requests = [tap_service_pb2.AuthorizeTapRequest(tap=terminal.present(card, 1)) for _ in range(200)]
            futures = [method.future(request.SerializeToString(), timeout=10, wait_for_ready=False) for request in requests]
            os.kill(server.process.pid, signal.SIGTERM)
            answers = [tap_service_pb2.AuthorizeTapResponse.FromString(future.result()).outcome for future in futures]
            assert all(answer.result == Result.ACCEPTED for answer in answers)
            assert server.process.wait(timeout=20) == 0
            with pytest.raises(grpc.RpcError):
                method(requests[0].SerializeToString(), timeout=2)


def test_old_connections_are_asked_to_go_and_nobody_notices(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    with start(tmp_path, key_file, "--connection-age-s", "1") as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set), new_terminal(connection)
        with Connection(server.tap_address or "") as taps:
            end = time.monotonic() + 4
            count = 0
            while time.monotonic() < end:
                assert terminal.authorize(taps, terminal.present(card, 1)).result == Result.ACCEPTED
                count += 1
                time.sleep(0.01)
        assert count > 20
        assert _opened(server) >= 3  # the client has connected anew, more than once


def _opened(server: EmbeddedServer) -> int:
    import urllib.request

    text = urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=5).read().decode()
    return int(
        float(next(line.split()[1] for line in text.splitlines() if line.startswith("yikatong_tap_connections_opened_total")))
    )


def test_over_mtls(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    make_certificates(tmp_path)
    pem = {"certificate": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
    arguments = [word for name, file in pem.items() for word in (f"--tls-{name}", str(tmp_path / file))]
    ca, certificate, key = (tmp_path / name for name in ("ca.pem", "client.pem", "client.key"))
    with (
        EmbeddedServer(tmp_path / "data", key_file, *arguments, insecure=False) as server,
        Connection(server.address, ca=ca, certificate=certificate, key=key) as connection,
    ):
        card, terminal = new_card(connection, key_set), new_terminal(connection)
        with Connection(server.tap_address or "", ca=ca, certificate=certificate, key=key) as taps:
            assert terminal.authorize(taps, terminal.present(card, 100)).result == Result.ACCEPTED
            batch = [terminal.present(card, 1) for _ in range(2_000)]
            outcomes = taps.taps.SubmitTaps(tap_service_pb2.SubmitTapsRequest(taps=batch)).outcomes
            assert sum(outcome.result == Result.ACCEPTED for outcome in outcomes) == 2_000
        with Connection(server.tap_address or "", ca=ca) as stranger, pytest.raises(grpc.RpcError) as caught:
            terminal.authorize(stranger, terminal.present(card, 1))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_failed_commit_is_unavailable_and_nothing_is_acknowledged(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        card, terminal = new_card(connection, key_set, 1_000), new_terminal(connection)
    armed = {"YIKATONG_FAILPOINT": "journal-before-commit:3:error"}
    with EmbeddedServer(data, key_file, environment=armed) as server, Connection(server.tap_address or "") as taps:
        acknowledged = 0
        for _ in range(5):
            try:
                terminal.authorize(taps, terminal.present(card, 1))
                acknowledged += 1
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE
                status = rpc_status.from_call(error)  # type: ignore[arg-type]
                assert status is not None
                retry = error_details_pb2.RetryInfo()
                assert any(detail.Unpack(retry) for detail in status.details if detail.Is(retry.DESCRIPTOR))
                break
        assert acknowledged == 2
        server.kill()
    with EmbeddedServer(data, key_file) as server, Connection(server.address) as connection:
        balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
        assert balance.balance_fen == 998


def test_calls_are_counted(server: EmbeddedServer, taps: Connection) -> None:
    import urllib.request

    taps.channel.unary_unary(HEALTH)(b"", timeout=5)
    with pytest.raises(grpc.RpcError):
        taps.channel.unary_unary("/no/such")(b"", timeout=5)
    time.sleep(1.2)  # what the transport itself refuses is counted once a second
    text = urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=5).read().decode()
    started = [line for line in text.splitlines() if line.startswith("grpc_server_started_total")]
    assert any('grpc_method="AuthorizeTap"' in line and not line.endswith(" 0.0") for line in started)
    handled = [line for line in text.splitlines() if line.startswith("grpc_server_handled_total") and "UNIMPLEMENTED" in line]
    assert any(not line.endswith(" 0.0") for line in handled)
