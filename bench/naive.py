"""What one would write first: the protobuf runtime, OpenSSL's SM4 one tap at a time, balances in a dict. A baseline."""

from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import SM4

from yikatong.clients.card import card_serial, mac_message
from yikatong.core.keys.key_sets import KeySet
from yikatong.v1 import tap_service_pb2


class NaiveCore:
    """Purses of `cards` cards, each with the same balance."""

    def __init__(self, key_set: KeySet, cards: int, balance_fen: int, card_number: Callable[[int], str]) -> None:
        self._parent = Cipher(SM4(key_set.parent()), modes.ECB()).encryptor()
        self._balances = {card_number(i): balance_fen for i in range(cards)}
        self._owed_fen = 0
        self._seen: dict[tuple[str, int], tap_service_pb2.TapOutcome] = {}
        self._sequence = 0

    def _mac(self, tap: tap_service_pb2.Tap) -> bytes:
        factor = card_serial(tap.card_number)
        card_key = self._parent.update(factor + bytes(byte ^ 0xFF for byte in factor))
        padded = mac_message(tap)[:22] + b"\x80" + bytes(9)
        return Cipher(SM4(card_key), modes.CBC(bytes(16))).encryptor().update(padded)[-16:-12]

    def submit(self, request: bytes) -> int:
        """Book a SubmitTapsRequest; returns how many taps were accepted."""
        response = tap_service_pb2.SubmitTapsResponse()
        for tap in tap_service_pb2.SubmitTapsRequest.FromString(request).taps:
            outcome = response.outcomes.add()
            if (tap.card_number, tap.atc) in self._seen:
                outcome.CopyFrom(self._seen[tap.card_number, tap.atc])
                outcome.duplicate = True
                continue
            if self._mac(tap) != tap.mac:
                outcome.result = 50  # type: ignore[assignment]
                continue
            self._sequence += 1
            self._balances[tap.card_number] -= tap.amount_fen
            self._owed_fen += tap.amount_fen
            outcome.result, outcome.charged_fen = 1, tap.amount_fen  # type: ignore[assignment]
            outcome.balance_after_fen, outcome.sequence = self._balances[tap.card_number], self._sequence
            self._seen[tap.card_number, tap.atc] = outcome
        return len(response.outcomes) if response.SerializeToString() else 0
