"""The first stage of a day: who is owed what for one settlement date, from the journal alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from yikatong.core import types
from yikatong.core.commands import Names
from yikatong.core.journal import JournalReader

UTC8_S = 8 * 3_600


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


def day_of(date: int) -> int:
    """Days from 1970-01-01 to a date YYYYMMDD."""
    year, month, day = date // 10000, date // 100 % 100, date % 100
    return int(np.datetime64(f"{year:04d}-{month:02d}-{day:02d}", "D").astype(np.int64))


def settlement_days(records: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Settlement day of each journal record; those of format 1 state none, theirs is the UTC+8 day of their time."""
    stated = records["settlement_day"].astype(np.int64)
    return np.where(stated != 0, stated, (records["time_us"] // 1_000_000 + UTC8_S) // 86_400)


def first_sequence_on(reader: JournalReader, day: int) -> int:
    """First sequence of the first journal value that holds records of a settlement day or later: it never goes back along the
    journal."""
    last = reader.last()
    low, high = 1, last.first_sequence + last.count if last else 1
    while low < high:
        middle = (low + high) // 2
        entry = reader.entry(middle)
        assert entry is not None
        if int(settlement_days(entry.array[-1:])[0]) < day:
            low = entry.first_sequence + entry.count
        else:
            high = entry.first_sequence
    return low


def clear(reader: JournalReader, names: Names, date: int, sequence_first: int = 0, sequence_last: int = 0) -> Cleared:
    """Taps and money per operator of one settlement date; with bounds, only records of that range (0: no bound)."""
    terminal_accounts = np.array(names.account_of_terminal, np.int64)
    accounts = max(names.operator_of_account, default=0) + 1
    taps, test_taps, amounts = (np.zeros(accounts, np.int64) for _ in range(3))
    sequence, day = 0, day_of(date)
    for entry in reader.entries(max(first_sequence_on(reader, day), sequence_first)):
        records = entry.array
        days = settlement_days(records)
        if int(days[0]) > day or (sequence_last and entry.first_sequence > sequence_last):
            break
        sequence = entry.first_sequence + int((days <= day).sum()) - 1
        wanted = (records["kind"] == types.RecordKind.TAP) & (days == day) & (records["sequence"] >= sequence_first)
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
