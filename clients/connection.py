"""A client's connection: channel, stubs, and calls that are tried again while that is safe and sensible.

What becomes of a failed call follows from its gRPC code:

    UNAVAILABLE, RESOURCE_EXHAUSTED                       nothing was done: again, after the pause that the server asks for
    DEADLINE_EXCEEDED, ABORTED, CANCELLED, INTERNAL,      done or not: again while the caller's own deadline lasts, since every
    UNKNOWN                                               write may be repeated (request ids, a tap's counters)
    all others                                            refused, and it will be again: raised at once

Certificates are read again when their files change; calls that are on their way finish on the connection that they began on."""

import random
import threading
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from yikatong.v1 import (
    account_service_pb2_grpc,
    authorization_service_pb2_grpc,
    card_life_service_pb2_grpc,
    card_service_pb2_grpc,
    clearing_service_pb2_grpc,
    code_service_pb2_grpc,
    deny_list_service_pb2_grpc,
    e_card_service_pb2_grpc,
    exception_service_pb2_grpc,
    identity_service_pb2_grpc,
    issuance_service_pb2_grpc,
    load_service_pb2_grpc,
    merchant_service_pb2_grpc,
    person_service_pb2_grpc,
    purse_service_pb2_grpc,
    reconciliation_service_pb2_grpc,
    settlement_service_pb2_grpc,
    tap_service_pb2_grpc,
    terminal_service_pb2_grpc,
)

MESSAGE_BYTES_MAX: Final = 4 << 20
LOOK_S: Final = 1.0  # how often the files of certificates are looked at, at most
PAUSE_S: Final = 0.1  # before the second attempt; it doubles from there
PAUSE_S_MAX: Final = 3.0
OPTIONS: Final = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
]


class Fate(Enum):
    """What became of a call that failed."""

    NOT_DONE = "nothing was done"
    UNKNOWN = "done or not"
    REFUSED = "it will be refused again"


FATES: Final = {
    grpc.StatusCode.UNAVAILABLE: Fate.NOT_DONE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Fate.NOT_DONE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Fate.UNKNOWN,
    grpc.StatusCode.ABORTED: Fate.UNKNOWN,
    grpc.StatusCode.CANCELLED: Fate.UNKNOWN,
    grpc.StatusCode.INTERNAL: Fate.UNKNOWN,
    grpc.StatusCode.UNKNOWN: Fate.UNKNOWN,
}
"""By gRPC code; all others are REFUSED."""


def fate_of(error: grpc.RpcError) -> Fate:
    """What became of a call that raised this. UNAVAILABLE may also be a connection that broke after the work was done: repeating
    is safe all the same."""
    return FATES.get(error.code(), Fate.REFUSED)


class _Renewed:
    """A channel whose certificate, key and authority are read again when the files change."""

    def __init__(self, address: str, ca: Path, certificate: Path | None, key: Path | None) -> None:
        self._address = address
        self._files = ca, certificate, key
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._looked = time.monotonic()
        self._before: grpc.Channel | None = None
        self._channel = self._open()

    def current(self) -> grpc.Channel:
        """The channel for a call that begins now."""
        if time.monotonic() - self._looked >= LOOK_S:
            with self._lock:
                self._looked = time.monotonic()
                if (stamp := self._look()) != self._stamp and self._belong_together():
                    fresh, self._stamp = self._open(), stamp
                    if self._before is not None:
                        self._before.close()
                    self._before, self._channel = self._channel, fresh
        return self._channel

    def close(self) -> None:
        for channel in (self._before, self._channel):
            if channel is not None:
                channel.close()

    def _open(self) -> grpc.Channel:
        ca, certificate, key = (None if path is None else path.read_bytes() for path in self._files)
        return grpc.secure_channel(self._address, grpc.ssl_channel_credentials(ca, key, certificate), OPTIONS)

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in self._files:
            if path is not None:
                try:
                    status = path.stat()
                except OSError:
                    continue  # between two versions
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)

    def _belong_together(self) -> bool:
        """Whether all files can be read, and the key is the certificate's; one of them may be in the middle of being replaced."""
        ca, certificate, key = self._files
        try:
            x509.load_pem_x509_certificates(ca.read_bytes())
            if certificate is None or key is None:
                return True
            shown = x509.load_pem_x509_certificate(certificate.read_bytes())
            return serialization.load_pem_private_key(key.read_bytes(), None).public_key() == shown.public_key()
        except (OSError, ValueError, TypeError):
            return False


class _Method(grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """A method on whatever channel is current when it is called."""

    def __init__(self, channels: _Renewed, make: Callable[[grpc.Channel], Any]) -> None:
        self._channels = channels
        self._make = make
        self._made: tuple[grpc.Channel, Any] | None = None

    def _method(self) -> Any:
        channel = self._channels.current()
        if self._made is None or self._made[0] is not channel:
            self._made = channel, self._make(channel)
        return self._made[1]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._method()(*arguments, **named)

    def with_call(self, *arguments: Any, **named: Any) -> Any:
        return self._method().with_call(*arguments, **named)

    def future(self, *arguments: Any, **named: Any) -> Any:
        return self._method().future(*arguments, **named)


class _Channel(grpc.Channel):
    """What stubs are made on; of streams, a call stays on the channel that was current when the method was looked up."""

    def __init__(self, channels: _Renewed) -> None:
        self._channels = channels

    def unary_unary(self, method: str, *arguments: Any, **named: Any) -> Any:
        return _Method(self._channels, lambda channel: channel.unary_unary(method, *arguments, **named))

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._channels.current().unary_stream(*arguments, **named)

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        return self._channels.current().stream_unary(*arguments, **named)

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._channels.current().stream_stream(*arguments, **named)

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        self._channels.current().subscribe(callback, try_to_connect or False)

    def unsubscribe(self, callback: Any) -> None:
        self._channels.current().unsubscribe(callback)

    def close(self) -> None:
        self._channels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Connection:
    """Stubs of all services at one address: plaintext, or TLS when an authority's PEM file is given (with certificate and key
    for mTLS). Raises OSError when a file cannot be read."""

    def __init__(self, address: str, *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> None:
        self.channel: grpc.Channel
        if ca is None:
            self.channel = grpc.insecure_channel(address, OPTIONS)
        else:
            self.channel = _Channel(_Renewed(address, ca, certificate, key))
        self.taps = tap_service_pb2_grpc.TapServiceStub(self.channel)
        self.accounts = account_service_pb2_grpc.AccountServiceStub(self.channel)
        self.cards = card_service_pb2_grpc.CardServiceStub(self.channel)
        self.terminals = terminal_service_pb2_grpc.TerminalServiceStub(self.channel)
        self.deny_list = deny_list_service_pb2_grpc.DenyListServiceStub(self.channel)
        self.clearing = clearing_service_pb2_grpc.ClearingServiceStub(self.channel)
        self.reconciliation = reconciliation_service_pb2_grpc.ReconciliationServiceStub(self.channel)
        self.exceptions = exception_service_pb2_grpc.ExceptionServiceStub(self.channel)
        self.authorizations = authorization_service_pb2_grpc.AuthorizationServiceStub(self.channel)
        self.merchants = merchant_service_pb2_grpc.MerchantServiceStub(self.channel)
        self.card_life = card_life_service_pb2_grpc.CardLifeServiceStub(self.channel)
        self.issuance = issuance_service_pb2_grpc.IssuanceServiceStub(self.channel)
        self.persons = person_service_pb2_grpc.PersonServiceStub(self.channel)
        self.purses = purse_service_pb2_grpc.PurseServiceStub(self.channel)
        self.e_cards = e_card_service_pb2_grpc.ECardServiceStub(self.channel)
        self.loads = load_service_pb2_grpc.LoadServiceStub(self.channel)
        self.codes = code_service_pb2_grpc.CodeServiceStub(self.channel)
        self.identity = identity_service_pb2_grpc.IdentityServiceStub(self.channel)
        self.settlement = settlement_service_pb2_grpc.SettlementServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def retry_delay_s(error: grpc.RpcError) -> float | None:
    """What the server's RetryInfo asks for, if it says so."""
    status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
    details: list[Any] = list(status.details) if status else []
    for detail in details:
        info = error_details_pb2.RetryInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return float(info.retry_delay.ToMilliseconds()) / 1000
    return None


def call(
    method: Any,
    request: Any,
    *,
    timeout_s: float = 30.0,
    attempts: int = 8,
    deadline_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> Any:
    """Call a method, and again after an error that a repetition may mend (see FATES): so many attempts of `timeout_s` each, or,
    with `deadline_s`, as many as fit in that time. Without it what may have been done is not repeated. The pause is what the
    server asks for or doubles from 0.1 s, with jitter; the last error is raised."""
    end = None if deadline_s is None else clock() + deadline_s
    attempt = 0
    while True:
        try:
            return method(request, timeout=timeout_s if end is None else max(min(timeout_s, end - clock()), 0.001))
        except grpc.RpcError as error:
            fate = fate_of(error)
            pause_s = (retry_delay_s(error) or min(PAUSE_S * 2.0**attempt, PAUSE_S_MAX)) * (0.5 + chance())
            attempt += 1
            if fate is Fate.REFUSED or (end is None and (fate is not Fate.NOT_DONE or attempt >= attempts)):
                raise
            if end is not None and clock() + pause_s >= end:
                raise
            sleep(pause_s)
