"""What netting hands to settlement: who is owed what for one window, line by line.

A participant is named by its role and its name in that role: "operator:…" is owed for taps, "acquirer:…" for captures,
"city:NNNN" is another city (clearing-centre code), "subsidy:…" bears concessions, "fees" earns fees, "float" is where the
cards' money lies and pays the rest. Amounts are positive where the participant is owed, negative where it owes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from yikatong.core.errors import Damaged
from yikatong.core.types import PostingKind

FLOAT: Final = "float"
FEES: Final = "fees"


class LineKind(StrEnum):
    """Why a participant is owed money, or owes it."""

    TAPS = "taps"  # what cards paid at its terminals
    CAPTURES = "captures"  # what was captured for it
    REFUNDS = "refunds"  # what it gave back
    CORRECTIONS = "corrections"  # fares of late taps, priced again
    CONCESSIONS = "concessions"  # fares that riders did not pay and somebody else bears
    SPLITS = "splits"  # its part of transfers that several operators carried
    INTER_CITY = "inter-city"  # taps of other cities' cards here, and of ours there
    FEES = "fees"
    LIABILITY = "liability"  # taps that it must bear itself
    HELD = "held"  # taps that are kept back until somebody has looked at them
    ADJUSTMENTS = "adjustments"  # of exceptions, after the window that they came from
    DISPUTES = "disputes"


LINES: Final[dict[str, LineKind | None]] = {
    "CAPTURE": LineKind.CAPTURES,
    "REFUND": LineKind.REFUNDS,
    "CAPTURE_REVERSAL": LineKind.CAPTURES,
    "REFUND_REVERSAL": LineKind.REFUNDS,
    "PURSE_FUNDING": None,
    "PURSE_RETURN": None,
    "CORRECTION": LineKind.CORRECTIONS,
    "ADJUSTMENT": LineKind.ADJUSTMENTS,
    "DISPUTE": LineKind.DISPUTES,
    "PAYMENT": None,
    "PAYMENT_RETURN": None,
    "SETTLEMENT": None,
    "FEE": None,
    "SUBSIDY": None,
    "SPLIT": None,
    "INTER_CITY": None,
    "LIABILITY": None,
    "HELD": None,
    "GREY": None,
    "REPLACEMENT": None,
    "LOAD": None,
    "LOAD_RETURN": None,
    "CHIP_OPENING": None,
    "NONE": None,
}
"""The line on which a posting of a kind (by PostingKind's name) stands in the positions of the window that it lies in, for
whichever of its two accounts are participants'. None: it carries out what an earlier window came to, or moves money
between purses of one person or onto a chip of theirs, so it stands in no position."""


def line_of(kind: int) -> LineKind | None:
    """The line of a posting kind. Raises Damaged for one that LINES does not name: its money would be in no position."""
    name = next((member.name for member in PostingKind if member == kind), str(kind))
    if name not in LINES:
        raise Damaged(f"postings of kind {name} have no line in a position (core/day/positions.py)")
    return LINES[name]


@dataclass(frozen=True)
class Line:
    """One part of a position: how many records, and what they come to."""

    kind: LineKind
    count: int
    amount_fen: int


@dataclass(frozen=True)
class Position:
    """What one participant is owed (positive) or owes (negative) for a window."""

    participant: str
    lines: tuple[Line, ...]

    @property
    def net_fen(self) -> int:
        return sum(line.amount_fen for line in self.lines)


@dataclass(frozen=True)
class Netted:
    """One window, netted: its settlement date (YYYYMMDD), the journal records it holds (first and last sequence), and the
    positions of all participants in order of name, which sum to zero."""

    settlement_date: int
    first_sequence: int
    last_sequence: int
    positions: tuple[Position, ...]


@dataclass(frozen=True)
class Payee:
    """Where a participant's money goes to."""

    participant: str
    name: str  # of the account's holder, as the bank knows it
    bank_code: str  # CNAPS code, 12 digits
    account_number: str  # 1 to 32 digits
