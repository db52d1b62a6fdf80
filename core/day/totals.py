"""Taps and money per operator of a settlement date or of any range of the journal, as they stand: to look up, and to reconcile
one upload. Clearing itself is in clear.py."""

from dataclasses import dataclass

import numpy as np

from yikatong.core import types
from yikatong.core.commands import Names
from yikatong.core.day.windows import day_of, first_sequence_on, settlement_days
from yikatong.core.journal import JournalReader


@dataclass(frozen=True)
class OperatorTotal:
    """What one operator is owed for a day."""

    operator_id: str
    taps: int
    amount_fen: int
    test_taps: int


@dataclass(frozen=True)
class Totals:
    """One settlement date, per operator in order of name."""

    operators: list[OperatorTotal]
    sequence: int  # up to which the journal was read

    @property
    def taps(self) -> int:
        return sum(operator.taps for operator in self.operators)

    @property
    def total_fen(self) -> int:
        return sum(operator.amount_fen for operator in self.operators)


def operator_totals(reader: JournalReader, names: Names, date: int, sequence_first: int = 0, sequence_last: int = 0) -> Totals:
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
    return Totals(sorted(operators, key=lambda operator: operator.operator_id), sequence)
