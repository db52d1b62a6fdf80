"""A client's connection: channel, stubs, and calls that are tried again while that is safe and sensible."""

import random
import time
from pathlib import Path
from typing import Any, Final, Self

import grpc
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

TRANSIENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
MESSAGE_BYTES_MAX: Final = 4 << 20


class Connection:
    """Stubs of all services at one address: plaintext, or TLS when an authority's PEM file is given (with certificate and key
    for mTLS)."""

    def __init__(self, address: str, *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> None:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
        ]
        if ca is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            credentials = grpc.ssl_channel_credentials(
                ca.read_bytes(), key.read_bytes() if key else None, certificate.read_bytes() if certificate else None
            )
            self.channel = grpc.secure_channel(address, credentials, options)
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


def call(method: Any, request: Any, *, timeout_s: float = 30.0, attempts: int = 8) -> Any:
    """Call a method, and again after a transient error, since every write may be repeated. The pause is what the server asks
    for or doubles from 0.1 s, with jitter; the last error is raised."""
    for attempt in range(attempts):
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() not in TRANSIENT or attempt == attempts - 1:
                raise
            pause_s = retry_delay_s(error) or min(0.1 * 2**attempt, 3.0)
            time.sleep(pause_s * random.uniform(0.5, 1.5))
    raise AssertionError("not reached")
