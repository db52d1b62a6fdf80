"""The first stage of a day: who is owed what for one settlement date, from the journal alone."""

from dataclasses import dataclass

import numpy as np

from yikatong.core import types
from yikatong.core.commands import Names
from yikatong.core.journal import JournalReader
from yikatong.ext.engine import settlement_date

UTC8_US = 8 * 3_600_000_000


@dataclass(frozen=True)
class OperatorTotal:
    """What one operator is owed for a day."""

    operator_id: str
    taps: int
    amount_fen: int
    test_taps: int


@dataclass(frozen=True)
class Cleared:
    """One settlement date, per operator in order of name."""

    operators: list[OperatorTotal]
    sequence: int  # up to which the journal was read

    @property
    def taps(self) -> int:
        return sum(operator.taps for operator in self.operators)

    @property
    def total_fen(self) -> int:
        return sum(operator.amount_fen for operator in self.operators)


def day_start_us(date: int) -> int:
    """Journal time at which a settlement date (YYYYMMDD, UTC+8) begins."""
    year, month, day = date // 10000, date // 100 % 100, date % 100
    return int(np.datetime64(f"{year:04d}-{month:02d}-{day:02d}", "us").astype(np.int64)) - UTC8_US


def first_sequence_at(reader: JournalReader, time_us: int) -> int:
    """First sequence of the first journal value at or after a journal time; time never goes back along the journal."""
    last = reader.last()
    low, high = 1, last.first_sequence + last.count if last else 1
    while low < high:
        middle = (low + high) // 2
        entry = reader.entry(middle)
        assert entry is not None
        if entry.time_us < time_us:
            low = entry.first_sequence + entry.count
        else:
            high = entry.first_sequence
    return low


def clear(reader: JournalReader, names: Names, date: int, sequence_first: int = 0, sequence_last: int = 0) -> Cleared:
    """Taps and money per operator of one settlement date; with bounds, only records of that range (0: no bound)."""
    terminal_accounts = np.array(names.account_of_terminal, np.int64)
    accounts = max(names.operator_of_account, default=0) + 1
    taps, test_taps, amounts = (np.zeros(accounts, np.int64) for _ in range(3))
    sequence = 0
    for entry in reader.entries(max(first_sequence_at(reader, day_start_us(date)), sequence_first)):
        if settlement_date(entry.time_us) > date or (sequence_last and entry.first_sequence > sequence_last):
            break
        records = entry.array
        sequence = entry.first_sequence + entry.count - 1
        wanted = (records["kind"] == types.RecordKind.TAP) & (records["sequence"] >= sequence_first)
        if sequence_last:
            wanted &= records["sequence"] <= sequence_last
        charged = records[wanted & np.isin(records["result"], types.CHARGED)]
        np.add.at(taps, charged["credit_account"], 1)
        np.add.at(amounts, charged["credit_account"], charged["amount_fen"])
        tests = records[wanted & (records["result"] == types.Result.TEST)]
        np.add.at(test_taps, terminal_accounts[tests["terminal"]], 1)
    operators = [
        OperatorTotal(operator_id, int(taps[account]), int(amounts[account]), int(test_taps[account]))
        for account, operator_id in names.operator_of_account.items()
        if taps[account] or test_taps[account]
    ]
    return Cleared(sorted(operators, key=lambda operator: operator.operator_id), sequence)
