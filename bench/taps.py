"""Workloads: cards, terminals and valid taps by the million, made in arrays. Serialised with the protobuf runtime once, as a
template of fixed length whose fields are then filled in."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from yikatong.core.keys.key_sets import KeySet
from yikatong.ext import sm4
from yikatong.v1 import card_service_pb2, tap_service_pb2, terminal_service_pb2

ISSUER_ID: Final = bytes.fromhex("5980000100000000")
LOCAL_TIME: Final = 20250101083015
AMOUNT_FEN: Final = 200
CARD_DIGITS: Final = 16
LINE, STOP = 0x0FFFFFFF, 0x1FFFFF
PLACE: Final = bytes([tap_service_pb2.TAP_KIND_SINGLE]) + LINE.to_bytes(4, "big") + STOP.to_bytes(3, "big")
"""What the MAC of profile 2 covers at the end."""

Bytes = npt.NDArray[np.uint8]


def bench_key_set() -> KeySet:
    """The worked example of profile.md: TAC master, two levels."""
    return KeySet(ISSUER_ID, 1, 1, 2, bytes.fromhex("fedcba98765432100123456789abcdef"))


def card_number(i: int) -> str:
    return f"4416{i:012d}"


def terminal_number(i: int) -> bytes:
    return (0x590000000000 + i).to_bytes(6, "big")


def register_card_requests(cards: int, batch: int) -> list[card_service_pb2.RegisterCardsRequest]:
    """RegisterCardsRequest for `cards` cards, `batch` in each."""
    return [
        card_service_pb2.RegisterCardsRequest(
            cards=[
                card_service_pb2.Card(card_number=card_number(i), issuer_id=ISSUER_ID)
                for i in range(start, min(start + batch, cards))
            ]
        )
        for start in range(0, cards, batch)
    ]


def register_terminal_requests(
    terminals: int, batch: int, operators: int = 10
) -> list[terminal_service_pb2.RegisterTerminalsRequest]:
    """RegisterTerminalsRequest for `terminals` bus terminals of ten operators, or of so many."""
    return [
        terminal_service_pb2.RegisterTerminalsRequest(
            terminals=[
                terminal_service_pb2.Terminal(
                    terminal_number=terminal_number(i),
                    operator_id=f"operator {i % operators}",
                    kind=terminal_service_pb2.TERMINAL_KIND_BUS,
                )
                for i in range(start, min(start + batch, terminals))
            ]
        )
        for start in range(0, terminals, batch)
    ]


def _big_endian(values: npt.NDArray[np.int64], size: int) -> Bytes:
    return np.ascontiguousarray(values.astype(">u8")).view(np.uint8).reshape(-1, 8)[:, 8 - size :]


def _digits(values: npt.NDArray[np.int64], size: int) -> Bytes:
    """ASCII digits, left-padded with zeros."""
    out = np.empty((len(values), size), np.uint8)
    rest = values.copy()
    for place in range(size - 1, -1, -1):
        rest, out[:, place] = np.divmod(rest, 10)
    return out + ord("0")


def _varint(values: npt.NDArray[np.int64], size: int) -> Bytes:
    """Varints of a fixed length: values below 2^(7 size), none below 2^(7 (size - 1))."""
    out = np.empty((len(values), size), np.uint8)
    for place in range(size):
        out[:, place] = values >> 7 * place & 0x7F | (0x80 if place < size - 1 else 0)
    return out


@dataclass(frozen=True)
class Taps:
    """Serialised `Tap` messages of one length: array (n, length) of bytes. All are valid and distinct."""

    messages: Bytes

    def __len__(self) -> int:
        return len(self.messages)

    def submit_requests(self, batch: int) -> list[bytes]:
        """SubmitTapsRequest messages of `batch` taps each."""
        framed = self.framed()
        return [framed[start : start + batch].tobytes() for start in range(0, len(framed), batch)]

    def framed(self) -> Bytes:
        """AuthorizeTapRequest messages as an array (n, length): field 1, length (one byte of varint), message. A run of rows is a
        SubmitTapsRequest."""
        n, length = self.messages.shape
        assert length < 128
        head = np.frombuffer(bytes([1 << 3 | 2, length]), np.uint8)
        return np.hstack([np.broadcast_to(head, (n, 2)), self.messages])


def _template(key_set: KeySet, profile: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """One serialised tap with marks, and where (offset, size) each varying field stands in it."""
    tap = tap_service_pb2.Tap(
        card_number="9" * CARD_DIGITS, issuer_id=key_set.issuer_id, profile=tap_service_pb2.Profile.Name(profile), algorithm_id=4,
        key_version=key_set.key_version, key_index=key_set.key_index, transaction_type=6, amount_fen=AMOUNT_FEN,
        amount_due_fen=AMOUNT_FEN, chip_balance_before_fen=5000, chip_balance_after_fen=4800, atc=0x4000,
        terminal_number=b"\xfe" * 6, terminal_sequence=0x0FEDCBA1, local_time=LOCAL_TIME, mac=b"\xfd" * 4,
        kind=tap_service_pb2.TAP_KIND_SINGLE, line=LINE, stop=STOP, direction=tap_service_pb2.DIRECTION_UP,
        city=5980, industry=2,
        rider=tap_service_pb2.RIDER_ORDINARY,
    )  # fmt: skip
    data = tap.SerializeToString(deterministic=True)
    marks = {
        "card": b"9" * CARD_DIGITS,
        "atc": b"\x60\x80\x80\x01",
        "terminal": b"\xfe" * 6,
        "sequence": b"\x70" + bytes(_varint(np.array([0x0FEDCBA1]), 4)[0]),
        "mac": b"\xfd" * 4,
    }
    places = {}
    for name, mark in marks.items():
        assert data.count(mark) == 1, name
        places[name] = (data.index(mark), len(mark))
    return data, places


def make_taps(
    card: npt.NDArray[np.int64], atc: npt.NDArray[np.int64], terminal: npt.NDArray[np.int64], sequence: npt.NDArray[np.int64],
    key_set: KeySet, profile: int = 1,
) -> Taps:  # fmt: skip
    """Taps of card number i, ATC (16,384 to 65,535), terminal i and terminal sequence (below 2^28, at least 2^21), one a row."""
    data, places = _template(key_set, profile)
    n = len(card)
    messages = np.tile(np.frombuffer(data, np.uint8), (n, 1))

    def put(name: str, values: Bytes, skip: int = 0) -> None:
        at, size = places[name]
        messages[:, at + skip : at + size] = values

    digits = np.hstack([np.broadcast_to(np.frombuffer(b"4416", np.uint8), (n, 4)), _digits(card, 12)])
    terminals = _big_endian(0x590000000000 + terminal, 6)
    put("card", digits)
    put("atc", _varint(atc, 3), skip=1)
    put("terminal", terminals)
    put("sequence", _varint(sequence, 4), skip=1)
    serials = (digits[:, 0::2] - ord("0") << 4 | digits[:, 1::2] - ord("0")).astype(np.uint8)
    fixed = lambda raw: np.broadcast_to(np.frombuffer(raw, np.uint8), (n, len(raw)))  # noqa: E731
    mac_messages = np.hstack(
        [
            fixed(AMOUNT_FEN.to_bytes(4, "big") + b"\x06"), terminals, _big_endian(sequence, 4),
            fixed(bytes.fromhex(f"{LOCAL_TIME:014d}")), _big_endian(atc, 2), fixed(PLACE),
        ]
    )  # fmt: skip
    if profile == 1:
        mac_messages[:, 22:] = 0
    parents = np.frombuffer(key_set.parent(), np.uint8).reshape(1, 16)
    macs = sm4.compute_macs(
        parents,
        np.zeros(n, np.int32),
        np.full(n, profile, np.uint8),
        serials,
        np.ascontiguousarray(mac_messages),
        atc.astype(np.uint16),
    )
    put("mac", macs)
    return Taps(messages)


ATC_FIRST: Final = 1 << 14  # so that the varint has three bytes
SEQUENCE_FIRST: Final = 1 << 21


def random_taps(
    n: int, cards: int, terminals: int, key_set: KeySet, seed: int, start: int = 0, card_first: int = 0, profile: int = 1
) -> Taps:
    """`n` valid taps of random cards (`cards` of them, from number `card_first` on) at random terminals, in an order in which
    every counter goes up. `start` taps have been made before, of the same cards in batches of this size, or of others."""
    random = np.random.default_rng([seed, start])
    card = card_first + random.integers(0, cards, n)
    terminal = random.integers(0, terminals, n)
    # A card's ATC and a terminal's sequence only need to go up: the place in the stream is a number that does, for terminals;
    # for cards, whose counter is small, their how-many-th tap of this stream is counted.
    order = np.argsort(card, kind="stable")
    ordered = card[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    ranks = np.empty(n, np.int64)
    ranks[order] = np.arange(n) - np.maximum.accumulate(np.where(first, np.arange(n), 0))
    atc = ATC_FIRST + start // max(n, 1) * 64 + ranks
    return make_taps(card, atc, terminal, SEQUENCE_FIRST + start + np.arange(n), key_set, profile)
