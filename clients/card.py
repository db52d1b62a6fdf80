"""Simulated chips: what a card answers when it is presented, with the MAC that proves it.

For demos, replays, load tests and tests. A real card's keys never leave its chip; here they are derived from the test masters."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from yikatong.core.keys.key_sets import KeySet
from yikatong.ext import sm4
from yikatong.v1 import tap_service_pb2

Bytes = npt.NDArray[np.uint8]


def _bcd(value: int, size: int) -> bytes:
    return bytes.fromhex(f"{value:0{2 * size}d}")


def card_serial(card_number: str) -> bytes:
    """The last 16 digits, left-padded with zeros, as packed BCD: 8 bytes (profile.md, "Keys")."""
    return bytes.fromhex(card_number[-16:].rjust(16, "0"))


def mac_message(tap: tap_service_pb2.Tap) -> bytes:
    """The 32 bytes that profile 2's MAC covers; the first 22 are what profile 1's TAC covers (profile.md)."""
    date, time = divmod(tap.local_time, 1_000_000)
    return b"".join(
        (
            tap.amount_fen.to_bytes(4, "big"),
            tap.transaction_type.to_bytes(1, "big"),
            tap.terminal_number,
            tap.terminal_sequence.to_bytes(4, "big"),
            _bcd(date, 4),
            _bcd(time, 3),
            tap.atc.to_bytes(2, "big"),
            int(tap.kind).to_bytes(1, "big"),
            tap.line.to_bytes(4, "big"),
            tap.stop.to_bytes(3, "big"),
        )
    )


def sign(taps: Sequence[tap_service_pb2.Tap], key_sets: Sequence[KeySet]) -> None:
    """Set each tap's MAC, as its card would. Raises KeyError for a tap whose issuer, key version and index no key set has."""
    if not taps:
        return
    places = {key_set[:3]: i for i, key_set in enumerate(key_sets)}
    parents = np.frombuffer(b"".join(key_set.parent() for key_set in key_sets), np.uint8).reshape(-1, 16)
    indices = np.array([places[tap.issuer_id, tap.key_version, tap.key_index] for tap in taps], np.int32)
    profiles = np.array([tap.profile for tap in taps], np.uint8)
    serials = np.frombuffer(b"".join(card_serial(tap.card_number) for tap in taps), np.uint8).reshape(-1, 8)
    messages = np.frombuffer(b"".join(mac_message(tap) for tap in taps), np.uint8).reshape(-1, 32)
    atcs = np.array([tap.atc for tap in taps], np.uint16)
    macs: Bytes = sm4.compute_macs(parents, indices, profiles, serials, messages, atcs)
    for tap, mac in zip(taps, macs, strict=True):
        tap.mac = mac.tobytes()


class SimulatedCard:
    """One chip: it counts its taps and keeps its own idea of the purse."""

    def __init__(self, card_number: str, key_set: KeySet, balance_fen: int = 0) -> None:
        self.card_number = card_number
        self.key_set = key_set
        self.balance_fen = balance_fen
        self.atc = 0

    def tap(
        self, terminal_number: bytes, terminal_sequence: int, local_time: int, amount_fen: int, **fields: object
    ) -> tap_service_pb2.Tap:
        """The next tap of this card, proved: profile 1 unless `fields` say otherwise (any field of Tap)."""
        self.atc += 1
        values: dict[str, object] = {
            "card_number": self.card_number,
            "issuer_id": self.key_set.issuer_id,
            "profile": tap_service_pb2.PROFILE_PURSE,
            "algorithm_id": 4,
            "key_version": self.key_set.key_version,
            "key_index": self.key_set.key_index,
            "transaction_type": 6,
            "amount_fen": amount_fen,
            "amount_due_fen": amount_fen,
            "chip_balance_before_fen": max(self.balance_fen, 0),
            "chip_balance_after_fen": max(self.balance_fen - amount_fen, 0),
            "atc": self.atc,
            "terminal_number": terminal_number,
            "terminal_sequence": terminal_sequence,
            "local_time": local_time,
            "kind": tap_service_pb2.TAP_KIND_SINGLE,
        }
        tap = tap_service_pb2.Tap(**(values | fields))  # type: ignore[arg-type]
        self.balance_fen -= amount_fen
        sign([tap], [self.key_set])
        return tap
