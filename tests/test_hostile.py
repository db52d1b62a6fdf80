"""The tap port under hostile peers: each is bounded, told off or sent away, and the others are served meanwhile.

Against a real server over sockets, while a bystander taps on; and the time limits without sockets, on a clock of the test's."""

import contextlib
import itertools
import resource
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from city import new_card, new_terminal
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, ResponseReceived, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hpack import Decoder, Encoder

from yikatong.bench.certificates import make_certificates
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core import limits
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import Result
from yikatong.ext import transport
from yikatong.v1 import tap_service_pb2

AUTHORIZE = "/yikatong.v1.TapService/AuthorizeTap"
SUBMIT = "/yikatong.v1.TapService/SubmitTaps"
HEALTH = "/grpc.health.v1.Health/Check"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
ANSWER_S_MAX = 5.0  # the bystander's deadline: a validator at a gate waits no longer
ATTACK_S = 0.7  # how long a flood is kept up, if the server lets it
MARGIN_BYTES = 64 << 20  # besides what limits allow: allocators' slack, Python, and the journal's pages that were touched


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


def setting(name: int, value: int) -> bytes:
    return struct.pack(">HI", name, value)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def request_head(path: str = HEALTH, **changes: str | None) -> list[tuple[str, str]]:
    """Headers of a call; `changes` by name with _ for : and -, None takes one out."""
    head = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "tap", "content-type": "application/grpc"}
    head["te"] = "trailers"
    for name, value in changes.items():
        name = name.replace("_", ":", 1) if name.startswith("_") else name.replace("_", "-")
        if value is None:
            del head[name]
        else:
            head[name] = value
    return list(head.items())


GREETING = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)


class Peer:
    """A socket that speaks any frames, and reads what the server says of them."""

    def __init__(self, address: str, greeting: bytes = GREETING, receive_bytes: int = 0) -> None:
        host, port = address.split(":")
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.connect((host, int(port)))
        self.encoder, self.decoder = Encoder(), Decoder()
        self.unread = b""
        self.send(greeting)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """False: the server has closed the connection."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def headers(self, stream: int, head: list[tuple[str, str]] | None = None, flags: int = END_HEADERS) -> bytes:
        return frame(HEADERS, flags, stream, self.encoder.encode(request_head() if head is None else head))

    def call(self, stream: int, path: str = HEALTH, message: bytes = b"") -> bytes:
        """A whole, good request; longer messages go in several frames."""
        body = framed(message)
        pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)]
        frames = [frame(DATA, END_STREAM if piece is pieces[-1] else 0, stream, piece) for piece in pieces]
        return self.headers(stream, request_head(path)) + b"".join(frames)

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What the server sends, until it closes. The greeting has acknowledged its SETTINGS in advance."""
        while True:
            while len(self.unread) >= 9:
                length = int.from_bytes(self.unread[:3], "big")
                if len(self.unread) < 9 + length:
                    break
                kind, flags, stream = struct.unpack(">BBI", self.unread[3:9])
                payload, self.unread = self.unread[9 : 9 + length], self.unread[9 + length :]
                yield kind, flags, stream, payload
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return
            if not data:
                return
            self.unread += data

    def verdict(self, stream: int = 1) -> str:
        """What becomes of a stream, or of the connection if that ends before."""
        for kind, _, of, payload in self.frames():
            if kind == GOAWAY:
                return f"GOAWAY {ErrorCodes(struct.unpack('>I', payload[4:8])[0]).name}"
            if kind == RST_STREAM and of == stream:
                return f"RST_STREAM {ErrorCodes(struct.unpack('>I', payload)[0]).name}"
            if kind == HEADERS:
                head = dict(self.decoder.decode(payload))
                if of == stream and "grpc-status" in head:
                    return f"status {head['grpc-status']}"
                if of == stream and head[":status"] != "200":
                    return f"HTTP {head[':status']}"
        return "closed"

    def is_closed(self) -> bool:
        """Whether the server closes, within 10 s."""
        try:
            for _ in self.frames():
                pass
        except TimeoutError:
            return False
        return True


# ---- the bystander and the server ----


class Bystander:
    """A well-behaved client on a connection of its own: taps again and again, and each answer must be right and in time."""

    def __init__(self, server: EmbeddedServer, connection: Connection, key_set: KeySet) -> None:
        self.card, self.terminal = new_card(connection, key_set, 10_000_000), new_terminal(connection, "bystander")
        self.latencies_s: list[float] = []
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._address = server.tap_address or ""
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with Connection(self._address) as taps:
                while not self._stopping.wait(0.002):
                    request = tap_service_pb2.AuthorizeTapRequest(tap=self.terminal.present(self.card, 1))
                    begun = time.monotonic()
                    outcome = taps.taps.AuthorizeTap(request, timeout=ANSWER_S_MAX).outcome
                    self.latencies_s.append(time.monotonic() - begun)
                    assert (outcome.result, outcome.charged_fen, outcome.duplicate) == (Result.ACCEPTED, 1, False)
        except BaseException as failure:
            self.failure = failure

    def __enter__(self) -> "Bystander":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def median_of(self, count: int) -> float:
        """Median latency of the next calls."""
        first, end = len(self.latencies_s), time.monotonic() + 2 * ANSWER_S_MAX
        while len(self.latencies_s) < first + count and self.failure is None and time.monotonic() < end:
            time.sleep(0.005)
        latest = sorted(self.latencies_s[first:])
        assert self.failure is None, self.failure
        assert latest, "the bystander got no answer"
        return latest[len(latest) // 2]


@pytest.fixture(scope="module")
def calm(server: EmbeddedServer, connection: Connection, key_set: KeySet) -> Iterator[tuple[Bystander, float]]:
    """The bystander, and its median before anything happened."""
    with Bystander(server, connection, key_set) as bystander:
        yield bystander, bystander.median_of(100)


def resident_bytes(server: EmbeddedServer) -> int:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the server has ended")


@pytest.fixture
def attacked(
    server: EmbeddedServer, calm: tuple[Bystander, float], record_property: Callable[[str, object], None]
) -> Iterator[str]:
    """The tap port's address. Afterwards: everybody else was served all the time, and the memory is what it was."""
    bystander, median_s = calm
    resident = resident_bytes(server)
    first = len(bystander.latencies_s)
    assert server.tap_address
    yield server.tap_address
    if len(bystander.latencies_s) < first + 10:
        bystander.median_of(10)
    assert bystander.failure is None, bystander.failure
    during = sorted(bystander.latencies_s[first:])
    record_property("median_before_ms", round(median_s * 1e3, 2))
    record_property("median_under_ms", round(during[len(during) // 2] * 1e3, 2))
    record_property("slowest_ms", round(during[-1] * 1e3, 2))
    assert server.process.poll() is None
    record_property("growth_mib", round((resident_bytes(server) - resident) / 2**20, 1))
    assert resident_bytes(server) < resident + MARGIN_BYTES
    assert "Traceback" not in server.log_path.read_text()


def hold_served(address: str) -> None:
    with Peer(address) as peer:
        peer.send(peer.call(1))
        assert peer.verdict() == "status 0"


# ---- one offence each ----

Attack = Callable[[Peer], bytes]


def _many_headers(peer: Peer) -> bytes:
    """One header list of 200 KiB, in CONTINUATIONs."""
    block = peer.encoder.encode([*request_head(), *((f"x-{i}", "~" * 1000) for i in range(200))], huffman=False)
    pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    frames = [frame(CONTINUATION, END_HEADERS if piece is pieces[-1] else 0, 1, piece) for piece in pieces[1:]]
    return frame(HEADERS, 0, 1, pieces[0]) + b"".join(frames)


def _hpack_bomb(peer: Peer, stream: int = 1) -> bytes:
    """A header of 4 KB in HPACK's table, and 15,000 bytes that each stand for it."""
    head = Encoder().encode([(name, value, True) for name, value in request_head()])  # never put into the table
    entry = b"\x40" + b"\x01x" + b"\x7f" + b"\xc1\x1e" + b"a" * 4032  # literal with indexing, 4,032 bytes
    first = frame(HEADERS, END_HEADERS | END_STREAM, stream, head + entry)
    block = head + b"\xbe" * 12_000
    return first + frame(HEADERS, END_HEADERS | END_STREAM, stream + 2, block)


def _mostly_padding(peer: Peer) -> bytes:
    """A byte and 255 of padding in each frame."""
    pieces = [frame(DATA, PADDED, 1, b"\xff" + framed(b"")[at : at + 1] + bytes(255)) for at in range(5)]
    return peer.headers(1) + b"".join(pieces) + frame(DATA, END_STREAM, 1)


def _body(body: bytes, flags: int = END_STREAM, **changes: str) -> Attack:
    return lambda peer: peer.headers(1, request_head(**changes)) + frame(DATA, flags, 1, body)


def _settings(name: int, value: int) -> Attack:
    return lambda peer: frame(SETTINGS, 0, 0, setting(name, value))


OFFENCES: list[tuple[str, Attack, str, bool]] = [
    # what the peer sends, what it is told, whether the connection goes on
    ("HTTP/1.1", lambda p: b"GET / HTTP/1.1\r\nHost: tap\r\n\r\n" * 2, "GOAWAY FRAME_SIZE_ERROR", False),
    ("upper case", lambda p: p.headers(1, [*request_head(), ("X-Card", "1")], 5), "RST_STREAM PROTOCOL_ERROR", True),
    ("no :path", lambda p: p.headers(1, request_head(_path=None), 5), "RST_STREAM PROTOCOL_ERROR", True),
    ("no :method", lambda p: p.headers(1, request_head(_method=None), 5), "RST_STREAM PROTOCOL_ERROR", True),
    ("no :scheme", lambda p: p.headers(1, request_head(_scheme=None), 5), "RST_STREAM PROTOCOL_ERROR", True),
    (":path twice", lambda p: p.headers(1, [(":path", "/"), *request_head()], 5), "RST_STREAM PROTOCOL_ERROR", True),
    ("connection header", lambda p: p.headers(1, request_head(connection="close"), 5), "RST_STREAM PROTOCOL_ERROR", True),
    ("line feed in a value", lambda p: p.headers(1, request_head(x="a\nb"), 5), "RST_STREAM PROTOCOL_ERROR", True),
    ("a response's header", lambda p: p.headers(1, [*request_head(), (":status", "200")], 5), "RST_STREAM PROTOCOL_ERROR", True),
    ("HEADERS on stream 0", lambda p: p.headers(0), "GOAWAY PROTOCOL_ERROR", False),
    ("HEADERS on stream 2", lambda p: p.headers(2), "GOAWAY PROTOCOL_ERROR", False),
    ("HPACK garbage", lambda p: frame(HEADERS, END_HEADERS, 1, b"\xff" * 40), "GOAWAY COMPRESSION_ERROR", False),
    ("HPACK table too large", lambda p: frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\x7f"), "GOAWAY COMPRESSION_ERROR", False),
    ("headers of 17 KiB", lambda p: p.headers(1, request_head(x="a" * (17 << 10)), 5), "status 8", True),
    ("headers of 200 KiB", _many_headers, "RST_STREAM INTERNAL_ERROR", False),
    ("a byte for 4 KB", _hpack_bomb, "RST_STREAM INTERNAL_ERROR", True),
    ("CONTINUATION alone", lambda p: frame(CONTINUATION, END_HEADERS, 1), "GOAWAY PROTOCOL_ERROR", False),
    ("PING among CONTINUATIONs", lambda p: p.headers(1, flags=0) + frame(PING, 0, 0, bytes(8)), "GOAWAY PROTOCOL_ERROR", False),
    ("frame of 16,385", lambda p: p.headers(1) + frame(DATA, 0, 1, bytes(16385)), "GOAWAY FRAME_SIZE_ERROR", False),
    ("frame of 16 MiB", lambda p: p.headers(1) + b"\xff\xff\xff\0\0\0\0\0\1", "GOAWAY FRAME_SIZE_ERROR", False),
    ("DATA on stream 0", lambda p: frame(DATA, 0, 0, b"x"), "GOAWAY PROTOCOL_ERROR", False),
    ("DATA on an idle stream", lambda p: frame(DATA, 0, 1, b"x"), "GOAWAY PROTOCOL_ERROR", False),
    ("padding beyond the frame", lambda p: p.headers(1) + frame(DATA, PADDED, 1, b"\xff123"), "GOAWAY PROTOCOL_ERROR", False),
    ("PUSH_PROMISE", lambda p: p.headers(1) + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), "GOAWAY PROTOCOL_ERROR", False),
    ("WINDOW_UPDATE of 0", lambda p: p.headers(1) + window_update(0, 0), "GOAWAY PROTOCOL_ERROR", False),
    ("… of a stream", lambda p: p.headers(1) + window_update(1, 0), "GOAWAY PROTOCOL_ERROR", False),
    ("window overflow", lambda p: window_update(0, (1 << 31) - 1), "GOAWAY FLOW_CONTROL_ERROR", False),
    ("… of a stream", lambda p: p.headers(1) + window_update(1, (1 << 31) - 1), "RST_STREAM FLOW_CONTROL_ERROR", True),
    ("WINDOW_UPDATE, 3 bytes", lambda p: frame(WINDOW_UPDATE, 0, 0, b"123"), "GOAWAY FRAME_SIZE_ERROR", False),
    ("initial window of 2^31", _settings(4, 1 << 31), "GOAWAY FLOW_CONTROL_ERROR", False),
    ("frames of 0 bytes", _settings(5, 0), "GOAWAY PROTOCOL_ERROR", False),
    ("frames of 2^32 bytes", _settings(5, (1 << 32) - 1), "GOAWAY PROTOCOL_ERROR", False),
    ("push of 2", _settings(2, 2), "GOAWAY PROTOCOL_ERROR", False),
    ("SETTINGS of 5 bytes", lambda p: frame(SETTINGS, 0, 0, b"12345"), "GOAWAY FRAME_SIZE_ERROR", False),
    ("SETTINGS on a stream", lambda p: p.headers(1) + frame(SETTINGS, 0, 1), "GOAWAY PROTOCOL_ERROR", False),
    ("2,000 settings at once", lambda p: frame(SETTINGS, 0, 0, setting(99, 1) * 2000), "GOAWAY ENHANCE_YOUR_CALM", False),
    ("ACK of nothing", lambda p: frame(SETTINGS, ACK, 0) * 3, "GOAWAY PROTOCOL_ERROR", False),
    (
        "huge but lawful settings",
        lambda p: frame(SETTINGS, 0, 0, setting(1, (1 << 32) - 1) + setting(4, (1 << 31) - 1)) + p.call(1),
        "status 0",
        True,
    ),
    ("PING of 7 bytes", lambda p: frame(PING, 0, 0, bytes(7)), "GOAWAY FRAME_SIZE_ERROR", False),
    ("PING on a stream", lambda p: p.headers(1) + frame(PING, 0, 1, bytes(8)), "GOAWAY PROTOCOL_ERROR", False),
    ("depends on itself", lambda p: frame(PRIORITY, 0, 1, b"\0\0\0\1\x10"), "GOAWAY PROTOCOL_ERROR", False),
    ("RST_STREAM of an idle one", lambda p: frame(RST_STREAM, 0, 1, bytes(4)), "GOAWAY PROTOCOL_ERROR", False),
    ("stream number goes back", lambda p: p.call(5) + p.call(3) + p.call(7), "status 0", True),
    ("GET", lambda p: p.headers(1, request_head(_method="GET"), 5), "HTTP 405", True),
    ("not gRPC", lambda p: p.headers(1, request_head(content_type="text/html"), 5), "HTTP 415", True),
    ("no message", lambda p: p.headers(1, flags=5), "status 13", True),
    ("claims 4 GiB", _body(framed(b"x", length=(1 << 32) - 1), 0), "status 8", True),
    ("claims 4 MiB + 1", _body(framed(b"x", length=limits.REQUEST_BYTES_MAX + 1), 0), "status 8", True),
    ("claims more than it sends", _body(framed(b"x", length=2)), "status 13", True),
    ("sends more than it claims", _body(framed(b"xyz", length=2)), "status 13", True),
    ("compressed, not announced", _body(framed(b"x", 1)), "status 13", True),
    ("compressed", _body(framed(b"x", 1), grpc_encoding="gzip"), "status 12", True),
    ("frame flag 77", _body(framed(b"", 77)), "status 13", True),
    ("trailers", lambda p: p.headers(1) + frame(DATA, 0, 1, framed(b"")) + p.headers(1, [("x", "y")], 5), "status 0", True),
    (
        "trailers without an end",
        lambda p: p.headers(1) + frame(DATA, 0, 1, framed(b"")) + p.headers(1, [("x", "y")]),
        "RST_STREAM PROTOCOL_ERROR",
        True,
    ),
    ("mostly padding", _mostly_padding, "status 0", True),
    ("unknown frames", lambda p: frame(0x77, 0xFF, 0, bytes(99)) + frame(0xFE, 0, 1, bytes(9)) + p.call(1), "status 0", True),
]


def test_each_offence_is_told_off(attacked: str) -> None:
    for name, attack, verdict, goes_on in OFFENCES:
        with Peer(attacked) as peer:
            peer.send(attack(peer))
            told = peer.verdict({"a byte for 4 KB": 3, "stream number goes back": 7}.get(name, 1))
            assert told.startswith(verdict), f"{name}: {told}"
            if goes_on:
                peer.send(peer.call(99))
                assert peer.verdict(99) == "status 0", name
            else:
                assert peer.is_closed(), name


def test_a_wrong_preface_is_closed(attacked: str) -> None:
    for greeting in (
        b"GET / HTTP/1.1\r\nHost: tap\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        PREFACE[:-2] + b"XX" + frame(SETTINGS, 0, 0),
        PREFACE + frame(PING, 0, 0, bytes(8)),  # SETTINGS must be first
        bytes.fromhex("16030100c8010000c40303") + bytes(200),  # a TLS handshake
        bytes(1000),
    ):
        with Peer(attacked, greeting) as peer:
            assert peer.is_closed(), greeting


def test_data_on_a_closed_stream(attacked: str) -> None:
    with Peer(attacked) as peer:
        peer.send(peer.call(1))
        assert peer.verdict() == "status 0"
        peer.send(frame(DATA, 0, 1, b"late") + peer.call(3))
        assert peer.verdict(3) == "status 0"  # as after an answer that came before the request's end


def test_requests_cut_anywhere(attacked: str) -> None:
    """Every prefix of a request, then silence, a reset or a close; and a request that comes byte by byte."""
    with Peer(attacked) as peer:
        whole = peer.call(1)
    for cut in range(0, len(whole), 3):
        with Peer(attacked) as peer:
            peer.send(whole[:cut])
    with Peer(attacked, b"") as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in PREFACE + frame(SETTINGS, 0, 0) + whole:
            peer.send(bytes([byte]))
        assert peer.verdict() == "status 0"
    with Peer(attacked) as peer:
        for stream in range(1, 201, 2):
            peer.send(peer.headers(stream, request_head(SUBMIT)) + frame(DATA, 0, stream, framed(bytes(1000), length=2_000_000)))
            peer.send(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
        peer.send(peer.call(999))
        assert peer.verdict(999) == "status 0"


# ---- floods ----


def _half_open_and_reset(peer: Peer) -> Iterator[bytes]:
    for stream in itertools.count(1, 2):
        yield peer.headers(stream) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def _ask_and_reset(peer: Peer) -> Iterator[bytes]:
    """Rapid reset as it was used: whole requests, so that each makes work."""
    tap = tap_service_pb2.AuthorizeTapRequest(tap=tap_service_pb2.Tap(card_number="1")).SerializeToString()
    for stream in itertools.count(1, 2):
        yield peer.call(stream, AUTHORIZE, tap) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def _make_it_reset(peer: Peer) -> Iterator[bytes]:
    """The same, but the server is led to do the reset."""
    tap = tap_service_pb2.AuthorizeTapRequest(tap=tap_service_pb2.Tap(card_number="1")).SerializeToString()
    for stream in itertools.count(1, 2):
        yield peer.call(stream, AUTHORIZE, tap) + window_update(stream, (1 << 31) - 1)


def _malformed(peer: Peer) -> Iterator[bytes]:
    for stream in itertools.count(1, 2):
        yield peer.headers(stream, request_head(_path=None), END_HEADERS | END_STREAM)


def _bombs(peer: Peer) -> Iterator[bytes]:
    yield _hpack_bomb(peer)
    block = Encoder().encode([(name, value, True) for name, value in request_head()]) + b"\xbe" * 16_000
    for stream in itertools.count(5, 2):
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, block)


def _endless_headers(peer: Peer) -> Iterator[bytes]:
    yield peer.headers(1, flags=0)
    while True:
        yield frame(CONTINUATION, 0, 1, b"\x40\x01x\x01y" * 10)


def _to_the_closed(peer: Peer) -> Iterator[bytes]:
    """Requests whose numbers were passed over: nghttp2 ignores them in silence."""
    yield peer.call(1_000_001)
    yield from (frame(HEADERS, END_HEADERS, stream, b"\x82\x84") for stream in itertools.count(1, 2))


def _over_and_over(data: bytes) -> Callable[[Peer], Iterator[bytes]]:
    return lambda peer: itertools.repeat(data)


def _on_a_stream(data: bytes) -> Callable[[Peer], Iterator[bytes]]:
    return lambda peer: itertools.chain([peer.headers(1)], itertools.repeat(data))


FLOODS: list[tuple[str, Callable[[Peer], Iterator[bytes]]]] = [
    ("pings", _over_and_over(frame(PING, 0, 0, bytes(8)))),
    ("ping answers", _over_and_over(frame(PING, ACK, 0, bytes(8)))),
    ("settings", _over_and_over(frame(SETTINGS, 0, 0, setting(4, 1) + setting(4, 65535)))),
    ("priorities", _over_and_over(frame(PRIORITY, 0, 7, b"\0\0\0\x05\x10"))),
    ("window updates", _over_and_over(window_update(0, 1))),
    ("unknown frames", _over_and_over(frame(0x77, 0, 0))),
    ("empty data", _on_a_stream(frame(DATA, 0, 1))),
    ("data that is padding", _on_a_stream(frame(DATA, PADDED, 1, b"\x08" + bytes(8)))),
    ("requests on closed streams", _to_the_closed),
    ("data on a closed stream", lambda peer: itertools.chain([peer.call(1)], itertools.repeat(frame(DATA, 0, 1, b"x")))),
    ("resets", _half_open_and_reset),
    ("rapid resets", _ask_and_reset),
    ("provoked resets", _make_it_reset),
    ("malformed requests", _malformed),
    ("HPACK bombs", _bombs),
    ("CONTINUATION", _endless_headers),
]


@pytest.mark.parametrize("flood", [flood for _, flood in FLOODS], ids=[name for name, _ in FLOODS])
def test_a_flood_is_sent_away(attacked: str, flood: Callable[[Peer], Iterator[bytes]]) -> None:
    """Again and again on new connections; each is told to calm down, after no more than credit and buffers let through."""
    end, rounds = time.monotonic() + ATTACK_S, 0
    while rounds < 2 or time.monotonic() < end:
        rounds += 1
        with Peer(attacked) as peer:
            steps = flood(peer)
            for _ in range(5_000):
                burst = b"".join(itertools.islice(steps, 100))
                if not peer.send(burst) or (select.select([peer.socket], [], [], 0)[0] and _says_goaway(peer)):
                    break
            assert peer.is_closed(), "half a million frames, and the server still listens"
    hold_served(attacked)


def _says_goaway(peer: Peer) -> bool:
    """Read what there is, without waiting."""
    peer.socket.settimeout(0.2)
    try:
        data = peer.socket.recv(1 << 16)
    except (TimeoutError, ConnectionResetError):
        data = b""
    peer.socket.settimeout(10)
    peer.unread = b""
    return not data or b"\0\0\x08\x07\0\0\0\0\0" in data


# ---- what piles up ----


def test_thousands_of_half_open_requests(attacked: str) -> None:
    """20 connections with as many requests as they may open, none of which goes on; one more each is refused."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            peer = stack.enter_context(Peer(attacked, PREFACE + frame(SETTINGS, 0, 0)))  # it has not heard how many it may open
            streams = range(1, 2 * limits.TAP_STREAMS_MAX, 2)
            peer.send(b"".join(peer.headers(stream) for stream in streams))
            peer.send(peer.headers(2 * limits.TAP_STREAMS_MAX + 1))
            assert peer.verdict(2 * limits.TAP_STREAMS_MAX + 1) == "RST_STREAM REFUSED_STREAM"
        hold_served(attacked)


def test_bodies_that_never_end(attacked: str, server: EmbeddedServer) -> None:
    """A connection that fills its share is refused more, and what it holds is given back when it goes."""
    resident = resident_bytes(server)
    with Peer(attacked) as peer:
        # They take 1.25 MiB each, so that the last of them are beyond the connection's share.
        part = frame(DATA, 0, 0, bytes(16384))
        head = frame(DATA, 0, 0, framed(bytes(16379), length=limits.REQUEST_BYTES_MAX))
        told = []
        for stream in range(1, 81, 2):
            number = struct.pack(">I", stream)
            body = head + part * 63
            pieces = [body[at : at + 5] + number + body[at + 9 : at + 9 + 16384] for at in range(0, len(body), 9 + 16384)]
            peer.send(peer.headers(stream, request_head(SUBMIT)) + b"".join(pieces))
        peer.send(peer.call(99))
        for kind, flags, stream, payload in peer.frames():
            if kind == HEADERS:
                status = dict(peer.decoder.decode(payload)).get("grpc-status")
                told.append((stream, status))
                if stream == 99 and flags & END_STREAM:
                    break
        assert {stream for stream, status in told if status == "8"}, "all had room"
        assert (99, "0") in told, "a small request has room"
    assert resident_bytes(server) < resident + limits.TAP_BUFFERED_BYTES_MAX // 8 + MARGIN_BYTES


def submit_of(taps: int, card_number: str = "") -> bytes:
    """Malformed taps make the longest answers for what they cost; those of nothing, many times their own size."""
    return tap_service_pb2.SubmitTapsRequest(taps=[tap_service_pb2.Tap(card_number=card_number)] * taps).SerializeToString()


def test_answers_that_a_zero_window_holds_back(attacked: str, server: EmbeddedServer) -> None:
    """h2 as a client with a window of 0: answers wait, and do so in bounds; when the window opens they come, whole."""
    host, port = attacked.split(":")
    resident = resident_bytes(server)
    request = framed(submit_of(limits.REQUEST_ITEMS_MAX))
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        client.initiate_connection()
        client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        sizes: dict[int, int] = {}
        statuses: dict[int, str] = {}

        def exchange() -> None:
            if data := client.data_to_send():
                wire.sendall(data)
            for event in client.receive_data(wire.recv(1 << 16)):
                if isinstance(event, DataReceived):
                    sizes[event.stream_id] = sizes.get(event.stream_id, 0) + len(event.data)
                    client.increment_flow_control_window(event.flow_controlled_length)
                elif isinstance(event, (TrailersReceived, ResponseReceived)):
                    head = dict(event.headers)
                    if "grpc-status" in head:
                        statuses[event.stream_id] = head["grpc-status"]
                assert not isinstance(event, StreamReset)

        streams = []
        for _ in range(40):
            stream = client.get_next_available_stream_id()
            client.send_headers(stream, request_head(SUBMIT))
            streams.append(stream)
            body = request
            while body:
                room = min(client.local_flow_control_window(stream), client.max_outbound_frame_size, len(body))
                if room == 0:
                    exchange()
                    continue
                client.send_data(stream, body[:room], end_stream=room == len(body))
                body = body[room:]
            wire.sendall(client.data_to_send())
        hold_served(attacked)
        client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
        while len(statuses) < len(streams):
            exchange()
    assert set(statuses.values()) <= {"0", "8"}
    answered = [stream for stream in streams if statuses[stream] == "0"]
    assert answered
    assert len({sizes[stream] for stream in answered}) == 1
    assert resident_bytes(server) < resident + limits.TAP_BUFFERED_BYTES_MAX // 8 + 2 * MARGIN_BYTES


def test_answers_that_are_never_read(attacked: str, server: EmbeddedServer) -> None:
    """Sockets that ask for megabytes and read nothing are not listened to any more: the kernel stops them, not our memory."""
    resident = resident_bytes(server)
    request = submit_of(limits.REQUEST_ITEMS_MAX, "9" * 100)
    with contextlib.ExitStack() as stack:
        stopped = 0
        for _ in range(4):
            peer = stack.enter_context(Peer(attacked, receive_bytes=4096))
            peer.send(frame(SETTINGS, 0, 0, setting(4, (1 << 31) - 1)) + window_update(0, (1 << 31) - 1 - 65535))
            peer.socket.settimeout(0.5)
            try:
                for stream in range(1, 2 * limits.TAP_STREAMS_MAX, 2):
                    peer.send(peer.call(stream, SUBMIT, request))
            except TimeoutError:
                stopped += 1
        hold_served(attacked)
        assert stopped == 4
        assert resident_bytes(server) < resident + limits.TAP_BUFFERED_BYTES_MAX + MARGIN_BYTES


def test_a_compressed_bomb_is_not_inflated(attacked: str, server: EmbeddedServer) -> None:
    import zlib

    resident = resident_bytes(server)
    squeezer = zlib.compressobj(9, wbits=31)
    bomb = squeezer.compress(bytes(256 << 20)) + squeezer.flush()
    with Peer(attacked) as peer:
        body = framed(bomb, 1)
        for stream in range(1, 21, 2):
            peer.send(peer.headers(stream, request_head(SUBMIT, grpc_encoding="gzip")))
            for at in range(0, len(body), 16384):
                peer.send(frame(DATA, END_STREAM if at + 16384 >= len(body) else 0, stream, body[at : at + 16384]))
            assert peer.verdict(stream) == "status 12"
    assert resident_bytes(server) < resident + MARGIN_BYTES


def test_two_thousand_idle_connections(attacked: str, server: EmbeddedServer) -> None:
    """They cost some kilobytes each: what nghttp2 and the event loop keep, and no buffers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resident = resident_bytes(server)
    count = min(2_000, hard - 200)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        peers = [stack.enter_context(Peer(attacked)) for _ in range(count)]
        for peer in peers[:: count // 10]:
            peer.send(peer.call(1))
            assert peer.verdict() == "status 0"
        assert resident_bytes(server) < resident + count * 32_768


def test_more_connections_than_there_is_room_for() -> None:
    port = Port(connections_max=2)
    first, second = port.connect(), port.connect()
    third = port.connect()
    assert (first.aborted, second.aborted, third.aborted) == (False, False, True)
    third.protocol.connection_lost(None)
    second.protocol.connection_lost(None)
    assert not port.connect().aborted
    assert port.transport.counts()["connections_refused"] == 1


# ---- TLS ----


def test_tls_garbage_and_handshakes_that_never_end(tmp_path: Path, key_file: Path, key_set: KeySet) -> None:
    """The one test that waits for limits in real time: of silent peers, in the clear and in TLS."""
    make_certificates(tmp_path)
    pem = {"certificate": "server.pem", "key": "server.key"}
    arguments = [word for name, file in pem.items() for word in (f"--tls-{name}", str(tmp_path / file))]
    with EmbeddedServer(tmp_path / "data", key_file, *arguments, insecure=False) as server, contextlib.ExitStack() as stack:
        assert server.tap_address
        host, port = server.tap_address.split(":")
        secure = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        secure.check_hostname = False
        secure.set_alpn_protocols(["h2"])
        silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(50)]
        half = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(50)]
        for wire in half:
            wire.sendall(bytes.fromhex("16030100c8010000c40303") + bytes(32))  # the beginning of a ClientHello
        speechless = stack.enter_context(secure.wrap_socket(socket.create_connection((host, int(port)))))
        with (
            Connection(server.tap_address, ca=tmp_path / "ca.pem") as taps,
            Connection(server.address, ca=tmp_path / "ca.pem") as connection,
        ):
            card, terminal = new_card(connection, key_set), new_terminal(connection)
            for garbage in (
                bytes(3000),
                b"\x16\x03\x01\xff\xff" + bytes(3000),
                PREFACE + frame(SETTINGS, 0, 0),
                b"GET / HTTP/1.1\r\n\r\n",
            ):
                with Peer(server.tap_address, garbage) as peer:
                    assert peer.is_closed(), garbage[:20]
                assert terminal.authorize(taps, terminal.present(card, 1)).result == Result.ACCEPTED
            # Another protocol in good TLS, or none: nobody to talk to.
            secure.set_alpn_protocols(["http/1.1"])
            with contextlib.suppress(ssl.SSLError, ConnectionError), socket.create_connection((host, int(port))) as wire:
                wire.settimeout(10)
                with secure.wrap_socket(wire) as other:
                    assert other.recv(1) == b""
            wait_s = max(limits.TAP_HANDSHAKE_S_MAX, limits.TAP_PREFACE_S_MAX) + 8
            for wire in [*silent, *half, speechless]:
                wire.settimeout(wait_s)
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    while wire.recv(4096):
                        pass
            assert terminal.authorize(taps, terminal.present(card, 1)).result == Result.ACCEPTED
        assert "Traceback" not in server.log_path.read_text()


# ---- limits of time and room, without sockets ----


class Socket:
    """What the transport is given for a socket: keeps what is written."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.written = bytearray()
        self.aborted = self.closed = False
        self.reading = True

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def feed(self, data: bytes) -> None:
        view = self.protocol.get_buffer(-1)
        for at in range(0, len(data), 4096):
            piece = data[at : at + 4096]
            view[: len(piece)] = piece
            self.protocol.buffer_updated(len(piece))

    def said(self) -> list[tuple[int, int, int, bytes]]:
        """Frames that were written since the last call of this."""
        peer = Peer.__new__(Peer)
        peer.unread, peer.socket = bytes(self.written), SimpleNamespace(recv=lambda n: b"")  # type: ignore[assignment]
        self.written.clear()
        return list(peer.frames())


class Port:
    """A transport with one method, on a loop that only collects; calls are kept in `calls` until the test answers them."""

    made: ClassVar[list["Port"]] = []

    def __init__(self, **changed: int) -> None:
        second = 1_000_000
        bounds = {
            "message_bytes_max": 4096, "buffered_bytes_max": 1 << 20, "connection_bytes_max": 1 << 19, "calls_max": 100,
            "streams_max": 100, "header_bytes_max": 8192, "control_frames_max": 100, "resets_max": 100,
            "request_us_max": 30 * second, "response_us_max": 60 * second, "idle_us_max": 40 * second, "age_us_max": 0,
            "age_grace_us": 10 * second, "preface_us_max": 10 * second, "connections_max": 100,
        }  # fmt: skip
        self.pending: list[Callable[[], None]] = []
        self.calls: list[Any] = []
        self.handled: list[int] = []
        loop = SimpleNamespace(call_soon=self.pending.append)
        refusal = transport.Failure(12, "not here", b"")
        self.transport = transport.Transport(
            loop, bounds | changed, None, self.calls.append,
            lambda method, code, seconds: self.handled.append(code), refusal, transport.Failure(8, "too much", b"x"),
        )  # fmt: skip
        self.transport.register(HEALTH)
        self.encoders: dict[Socket, Peer] = {}
        Port.made.append(self)

    def connect(self, greeting: bytes = PREFACE + frame(SETTINGS, 0, 0)) -> Socket:
        made = Socket(self.transport.protocol())
        made.protocol.connection_made(made)
        if greeting and not made.aborted:
            made.feed(greeting)
        peer = Peer.__new__(Peer)
        peer.encoder = Encoder()
        self.encoders[made] = peer
        return made

    def ask(self, wire: Socket, stream: int, message: bytes = b"") -> None:
        wire.feed(self.encoders[wire].call(stream, HEALTH, message))
        self.turn()

    def begin(self, wire: Socket, stream: int) -> None:
        wire.feed(self.encoders[wire].headers(stream) + frame(DATA, 0, stream, framed(b"x", length=1000)))

    def turn(self) -> None:
        while self.pending:
            self.pending.pop(0)()

    def after(self, seconds: float) -> None:
        self.transport.tick(time.monotonic() + seconds)

    def close(self) -> None:
        for wire in self.encoders:
            wire.protocol.connection_lost(None)
        for call in self.calls:
            with contextlib.suppress(RuntimeError):  # it was answered
                call.answer(b"")
        counts = self.transport.counts()
        assert (counts["connections_open"], counts["calls_in_flight"], counts["buffered_bytes"]) == (0, 0, 0)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Whatever a test did to a transport without sockets, nothing is held when its connections have gone."""
    yield
    while Port.made:
        Port.made.pop().close()


CANCELLED = struct.pack(">I", 8)


def test_a_slow_sender_is_cut_off() -> None:
    port = Port()
    wire = port.connect()
    port.begin(wire, 1)
    wire.said()
    port.after(29)
    assert not any(kind == RST_STREAM for kind, *_ in wire.said())
    port.after(31)
    assert (RST_STREAM, 0, 1, CANCELLED) in wire.said()
    port.ask(wire, 3)  # the connection goes on
    port.calls.pop().answer(b"")
    assert any(kind == DATA and stream == 3 for kind, _, stream, _ in wire.said())
    assert not wire.aborted


def test_an_answer_that_is_not_taken_is_dropped() -> None:
    port = Port()
    wire = port.connect(PREFACE + frame(SETTINGS, 0, 0, setting(4, 0)))
    port.ask(wire, 1)
    port.calls.pop().answer(bytes(100_000))
    assert port.transport.counts()["buffered_bytes"] > 100_000
    port.after(59)
    assert not any(kind == RST_STREAM for kind, *_ in wire.said())
    port.after(61)
    assert (RST_STREAM, 0, 1, CANCELLED) in wire.said()
    assert port.transport.counts()["buffered_bytes"] == 0


def test_who_says_nothing_at_all_is_closed() -> None:
    port = Port()
    silent, half = port.connect(b""), port.connect(PREFACE[:-1])
    port.after(9)
    assert not silent.aborted
    port.after(11)
    assert silent.aborted
    assert half.aborted


def test_who_does_not_answer_a_ping_is_closed() -> None:
    port = Port(idle_us_max=10**12)
    wire = port.connect()
    wire.said()
    port.after(61)
    assert any(kind == PING for kind, *_ in wire.said())
    assert not wire.aborted
    port.after(81)
    assert wire.aborted


def test_idle_and_old_connections_are_asked_to_go() -> None:
    for port in (Port(), Port(idle_us_max=10**12, age_us_max=40_000_000)):
        wire = port.connect()
        wire.said()
        port.after(39)
        assert not any(kind == GOAWAY for kind, *_ in wire.said())
        port.after(41)
        port.after(42)
        assert [payload[4:] for kind, _, _, payload in wire.said() if kind == GOAWAY] == [bytes(4)] * 2  # a notice, then for good
        assert wire.closed


def test_answers_nobody_takes_fill_no_more_than_their_room() -> None:
    port = Port()
    hogs = [port.connect(PREFACE + frame(SETTINGS, 0, 0, setting(4, 0))) for _ in range(4)]
    for stream in range(1, 21, 2):
        for hog in hogs:
            port.ask(hog, stream)
    assert len(port.calls) == 40
    while port.calls:
        port.calls.pop().answer(bytes(50_000))
    assert port.transport.counts()["buffered_bytes"] <= 1 << 20
    assert port.transport.counts()["refused_overload"] == 20
    # A small request of somebody else has room all the same.
    other = port.connect()
    port.ask(other, 1)
    port.calls.pop().answer(b"small")
    assert any(kind == DATA and payload.endswith(b"small") for kind, _, _, payload in other.said())
    for hog in hogs:
        hog.protocol.connection_lost(None)
    assert port.transport.counts()["buffered_bytes"] == 0


def test_a_connection_over_its_share_is_refused_more() -> None:
    port = Port(connection_bytes_max=10_000)
    hog, other = port.connect(PREFACE + frame(SETTINGS, 0, 0, setting(4, 0))), port.connect()
    port.ask(hog, 1)
    port.calls.pop().answer(bytes(20_000))
    hog.said()
    port.ask(hog, 3)
    assert not port.calls
    assert [stream for kind, _, stream, _ in hog.said() if kind == HEADERS] == [3]
    port.ask(other, 1)
    assert len(port.calls) == 1


def test_who_does_not_read_is_not_read() -> None:
    port = Port()
    wire = port.connect()
    wire.feed(frame(SETTINGS, 0, 0, setting(4, (1 << 31) - 1)) + window_update(0, 1 << 30))
    wire.protocol.pause_writing()
    assert not wire.reading
    wire.said()
    port.ask(wire, 1)
    port.calls.pop().answer(bytes(100_000))
    assert not wire.written
    wire.protocol.resume_writing()
    assert wire.reading
    assert len(wire.written) > 100_000


def test_who_takes_long_answers_may_open_windows() -> None:
    """Clients that send two WINDOW_UPDATEs for each frame they get are no flood, however much they asked for before."""
    port = Port(control_frames_max=20)
    wire = port.connect()
    streams = range(1, 21, 2)
    for stream in streams:
        port.ask(wire, stream)
    taken = dict.fromkeys(streams, 0)
    for call in port.calls:
        call.answer(bytes(50_000))
    while said := wire.said():
        assert not any(kind == GOAWAY for kind, *_ in said)
        for kind, _, stream, payload in said:
            if kind == DATA and payload:
                taken[stream] += len(payload)
                wire.feed(window_update(0, len(payload)) + window_update(stream, len(payload)))
    assert set(taken.values()) == {50_005}


def test_answers_to_who_has_gone() -> None:
    """Calls whose connection was lost, or reset, are answered into the void; nothing is left of them."""
    port = Port()
    gone, cancelled = port.connect(), port.connect()
    for stream in range(1, 21, 2):
        port.ask(gone, stream, bytes(1000))
        port.ask(cancelled, stream, bytes(1000))
        cancelled.feed(frame(RST_STREAM, 0, stream, CANCELLED))
    gone.protocol.connection_lost(None)
    assert port.transport.counts()["calls_in_flight"] == 20
    for number, call in enumerate(port.calls):
        if number % 2:
            call.answer(b"late")
        else:
            call.fail(transport.Failure(14, "late", b""))
        with pytest.raises(RuntimeError):
            call.answer(b"twice")
    counts = port.transport.counts()
    assert (counts["calls_in_flight"], counts["buffered_bytes"], counts["connections_open"]) == (0, 0, 1)


def test_more_than_may_wait_is_refused_at_once() -> None:
    port = Port(calls_max=5)
    wire = port.connect()
    for stream in range(1, 21, 2):
        port.ask(wire, stream)
    assert len(port.calls) == 5
    assert port.transport.take_refused() == [(0, 8, 5)]


def test_nothing_is_read_after_an_offence() -> None:
    """When nghttp2 1.52 is told in a callback to end the session, it reads on, and the next bad frame ends the process."""
    port = Port(control_frames_max=3, resets_max=2)
    begun = Peer.__new__(Peer)
    begun.encoder = Encoder()
    for flood in (frame(PING, 0, 0, bytes(8)) * 5, begun.headers(1) + frame(DATA, 0, 1) * 5):
        wire = port.connect()
        wire.feed(flood + frame(SETTINGS, 0, 0, b"12345") + frame(DATA, 0, 0, b"x"))
        said = [payload[4:8] for kind, _, _, payload in wire.said() if kind == GOAWAY]
        assert said == [struct.pack(">I", ErrorCodes.ENHANCE_YOUR_CALM)]
        assert wire.closed
    assert port.transport.counts()["connections_closed_for_abuse"] == 2
