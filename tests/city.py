"""A handful of cards and one terminal, registered and funded over gRPC."""

import secrets

from yikatong.clients.card import SimulatedCard
from yikatong.clients.connection import Connection
from yikatong.clients.terminal import Terminal
from yikatong.core.keys.key_sets import KeySet
from yikatong.v1 import account_service_pb2, card_service_pb2, terminal_service_pb2

BUS = terminal_service_pb2.TERMINAL_KIND_BUS


def new_card(connection: Connection, key_set: KeySet, funds_fen: int = 10_000, **fields: object) -> SimulatedCard:
    """A card with a number nobody had before, registered, with money on it."""
    card = SimulatedCard(f"4416{secrets.randbelow(10**12):012d}", key_set, funds_fen)
    message = card_service_pb2.Card(card_number=card.card_number, issuer_id=key_set.issuer_id, **fields)  # type: ignore[arg-type]
    answer = connection.cards.RegisterCards(card_service_pb2.RegisterCardsRequest(cards=[message])).registrations[0]
    assert answer.result == 1
    if funds_fen:
        top_up(connection, card.card_number, funds_fen)
    return card


def top_up(
    connection: Connection, card_number: str, amount_fen: int, request_id: bytes | None = None
) -> account_service_pb2.TopUpResponse:
    """Fund a card."""
    request = account_service_pb2.TopUpRequest(
        request_id=request_id or secrets.token_bytes(16), card_number=card_number, amount_fen=amount_fen
    )
    response: account_service_pb2.TopUpResponse = connection.accounts.TopUp(request)
    return response


def new_terminal(connection: Connection, operator_id: str = "bus", kind: int = BUS) -> Terminal:
    """A terminal with a number nobody had before, registered."""
    terminal = Terminal(secrets.token_bytes(6), kind, operator_id)
    message = terminal_service_pb2.Terminal(
        terminal_number=terminal.terminal_number,
        operator_id=operator_id,
        kind=kind,  # type: ignore[arg-type]
    )
    answer = connection.terminals.RegisterTerminals(terminal_service_pb2.RegisterTerminalsRequest(terminals=[message]))
    assert answer.registrations[0].result == 1
    return terminal
