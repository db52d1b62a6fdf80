"""What netting hands to settlement: who is owed what for one window, line by line.

A participant is named by its role and its name in that role: "operator:…" is owed for taps, "acquirer:…" for captures,
"city:NNNN" is another city (clearing-centre code), "subsidy:…" bears concessions, "fees" earns fees, "float" is where the
cards' money lies and pays the rest. Amounts are positive where the participant is owed, negative where it owes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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
    ADJUSTMENTS = "adjustments"  # of exceptions, after the window that they came from
    DISPUTES = "disputes"


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
