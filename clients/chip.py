"""A simulated chip's purse: what it answers when money is loaded onto it, and what it takes (profile.md, "Profile 1": load).

For demos and tests. It is written for itself, without the core's code for loads: that both agree is a test of both."""

import secrets
from typing import NamedTuple

from yikatong.clients.card import card_serial
from yikatong.clients.connection import Connection, call
from yikatong.core.keys.provider import KeyProvider, KeyReference, Purpose
from yikatong.v1 import load_service_pb2


class _Session(NamedTuple):
    """What INITIALIZE FOR LOAD leaves in the chip until the next one."""

    data: bytes
    amount_fen: int
    transaction_type: int
    terminal_number: bytes


class SimulatedChip:
    """One chip. `keys` are those that its keys were derived from when it was made."""

    def __init__(
        self,
        card_number: str,
        issuer_id: bytes,
        keys: KeyProvider,
        key_version: int = 1,
        key_index: int = 1,
        balance_fen: int = 0,
    ) -> None:
        self.card_number = card_number
        self.balance_fen = balance_fen
        self.online_counter = 0
        self._factors = issuer_id, card_serial(card_number)
        self._keys = keys
        self._load = KeyReference(Purpose.LOAD, key_version, key_index, issuer_id)
        self._tac = KeyReference(Purpose.TAC, key_version, key_index, issuer_id)
        self._session: _Session | None = None

    def initialize_for_load(
        self, amount_fen: int, terminal_number: bytes, transaction_type: int = 1
    ) -> load_service_pb2.ChipAnswer:
        """Begin a load; the one before, if it was not ended, is forgotten."""
        random = secrets.token_bytes(4)
        x = random + self.online_counter.to_bytes(2, "big") + bytes.fromhex("8000")
        data = x + bytes(0xFF - byte for byte in x)
        message = (
            self.balance_fen.to_bytes(4, "big") + amount_fen.to_bytes(4, "big") + bytes([transaction_type]) + terminal_number
        )
        self._session = _Session(data, amount_fen, transaction_type, terminal_number)
        return load_service_pb2.ChipAnswer(
            algorithm_id=4,
            key_version=self._load.key_version,
            key_index=self._load.key_index,
            random=random,
            online_counter=self.online_counter,
            old_balance_fen=self.balance_fen,
            mac1=self._keys.mac(self._load, self._factors, data, message)[:4],
        )

    def credit_for_load(self, local_time: int, mac2: bytes) -> bytes | None:
        """Take the load that was begun, if MAC2 is right: the TAC, 4 bytes; None where the chip refuses."""
        session, self._session = self._session, None
        if session is None:
            return None
        covered = (
            session.amount_fen.to_bytes(4, "big")
            + bytes([session.transaction_type])
            + session.terminal_number
            + bytes.fromhex(f"{local_time:014d}")
        )
        if self._keys.mac(self._load, self._factors, session.data, covered)[:4] != mac2:
            return None
        self.balance_fen += session.amount_fen
        tac = self.balance_fen.to_bytes(4, "big") + self.online_counter.to_bytes(2, "big") + covered
        self.online_counter += 1
        return self._keys.mac(self._tac, self._factors, b"", tac)[:4]


def load_chip(
    connection: Connection, chip: SimulatedChip, terminal_number: bytes, amount_fen: int, *, attempts: int = 3
) -> load_service_pb2.StartLoadResponse:
    """Load money onto the chip at a terminal, and tell the core that it was taken. Raises grpc.RpcError where there was no
    answer: then the next load, or `return_load`, settles it."""
    counter = chip.online_counter
    request = load_service_pb2.StartLoadRequest(
        request_id=secrets.token_bytes(16), card_number=chip.card_number, terminal_number=terminal_number, transaction_type=1,
        amount_fen=amount_fen, chip=chip.initialize_for_load(amount_fen, terminal_number),
    )  # fmt: skip
    started: load_service_pb2.StartLoadResponse = call(connection.loads.StartLoad, request, timeout_s=10, attempts=attempts)
    tac = chip.credit_for_load(started.local_time, started.mac2) if started.mac2 else None
    if tac is not None:
        confirm = load_service_pb2.ConfirmLoadRequest(
            request_id=secrets.token_bytes(16), card_number=chip.card_number, terminal_number=terminal_number,
            online_counter=counter, new_balance_fen=chip.balance_fen, tac=tac,
        )  # fmt: skip
        call(connection.loads.ConfirmLoad, confirm, timeout_s=10, attempts=attempts)
    return started


def return_load(
    connection: Connection, chip: SimulatedChip, terminal_number: bytes, *, attempts: int = 3
) -> load_service_pb2.ReturnLoadResponse:
    """Bring back a load that the chip did not take, by its answer to a challenge."""
    ask = load_service_pb2.ChallengeChipRequest(
        request_id=secrets.token_bytes(16), card_number=chip.card_number, terminal_number=terminal_number
    )
    amount_fen = call(connection.loads.ChallengeChip, ask, timeout_s=10, attempts=attempts).amount_fen
    request = load_service_pb2.ReturnLoadRequest(
        request_id=secrets.token_bytes(16), card_number=chip.card_number, terminal_number=terminal_number, transaction_type=1,
        chip=chip.initialize_for_load(amount_fen, terminal_number),
    )  # fmt: skip
    returned: load_service_pb2.ReturnLoadResponse = call(connection.loads.ReturnLoad, request, timeout_s=10, attempts=attempts)
    return returned
