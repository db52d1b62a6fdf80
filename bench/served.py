"""A server of its own for the benches that go over gRPC, filled with cards and terminals, and the checks at the end."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from yikatong.bench.certificates import make_certificates
from yikatong.bench.result import Progress
from yikatong.bench.taps import (
    bench_key_set,
    card_number,
    register_card_requests,
    register_terminal_requests,
)
from yikatong.clients.connection import Connection, call
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.keys import key_sets
from yikatong.v1 import account_service_pb2, clearing_service_pb2

BATCH = 8_192
FUNDS_FEN = 1_000_000


def fill(connection: Connection, cards: int, terminals: int, progress: Progress) -> None:
    """Register and fund cards, and register terminals; may be done again against the same server."""
    for request in register_terminal_requests(terminals, BATCH):
        call(connection.terminals.RegisterTerminals, request)
    for done, batch in enumerate(register_card_requests(cards, BATCH)):
        call(connection.cards.RegisterCards, batch)
        top_ups = [
            account_service_pb2.TopUpRequest(
                request_id=(done * BATCH + i).to_bytes(16, "big"), card_number=card_number(done * BATCH + i), amount_fen=FUNDS_FEN
            )
            for i in range(len(batch.cards))
        ]
        call(connection.accounts.BatchTopUp, account_service_pb2.BatchTopUpRequest(requests=top_ups))
        progress("registering and funding cards", done * BATCH + len(batch.cards), cards)


@contextlib.contextmanager
def served(
    cards: int, terminals: int, progress: Progress, *arguments: str, mtls: bool = False
) -> Iterator[tuple[EmbeddedServer, Connection, Path]]:
    """A filled server, a connection, and a folder for more (with `mtls`, ca.pem, client.pem and client.key in it); afterwards the
    books are asked for and must balance."""
    with tempfile.TemporaryDirectory(prefix="yikatong-bench-") as name:
        folder = Path(name)
        key_sets.write(folder / "keys.toml", bench_key_set(), "The worked example of profile.md, for benches.")
        files: dict[str, Path] = {}
        if mtls:
            make_certificates(folder)
            pem = {"certificate": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
            arguments += tuple(word for setting, file in pem.items() for word in (f"--tls-{setting}", str(folder / file)))
            files = {"ca": folder / "ca.pem", "certificate": folder / "client.pem", "key": folder / "client.key"}
        with (
            EmbeddedServer(folder / "data", folder / "keys.toml", *arguments, insecure=not mtls) as server,
            Connection(server.address, **files) as connection,
        ):
            fill(connection, cards, terminals, progress)
            yield server, connection, folder
            books = call(connection.clearing.GetTrialBalance, clearing_service_pb2.GetTrialBalanceRequest())
            if books.imbalance_fen:
                raise AssertionError(f"the books are out by {books.imbalance_fen} fen")
