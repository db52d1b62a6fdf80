"""Verify a data directory without trusting the engine: the hash chain, every balance against its postings, the sum of all."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from yikatong.core import types
from yikatong.core.day.seal import verify_seals
from yikatong.core.errors import Damaged
from yikatong.core.journal import GENESIS, Journal, JournalReader, sm3
from yikatong.core.memory import EngineSettings, Memory
from yikatong.core.sm2 import PublicKey
from yikatong.core.store import DataDirectory
from yikatong.ext.engine import audit

Progress = Callable[[int, int], None]
Balances = npt.NDArray[np.int64]
OPENING: Final = (types.RecordKind.CARD, types.RecordKind.OPERATOR, types.RecordKind.ACCOUNT)
"""Records that open an account."""


@dataclass(frozen=True)
class CheckReport:
    """What a data directory holds, all of it verified."""

    records: int
    groups: int
    cards: int
    terminals: int
    operators: int
    accounts: int
    turnover_fen: int
    seals: int  # of windows, each over the records that are there
    head: str  # SM3 of the last header, which vouches for all before it


def check(
    path: Path,
    settings: EngineSettings,
    progress: Progress = lambda done, total: None,
    seal_key: PublicKey | None = None,
) -> CheckReport:
    """Verify everything, signatures of seals where there is a key for it; raises Damaged (or another DataError) naming the first
    fault. A server may be running meanwhile."""
    with DataDirectory(path, readonly=True) as directory:
        memory = Memory(directory, Journal(directory.journal), [], settings)
        try:
            memory.restore()
            # The journal may have grown since: it is audited up to where the memory stands.
            records = memory.engine.next_sequence - 1
            with JournalReader(directory.journal) as reader:
                balances, held, report = _audit_journal(reader, records, progress)
                seals = [bytes(seal) for _, seal in memory.documents.scan(types.DocumentKind.SEAL)]
                verify_seals(reader, seals, seal_key)
            _compare(memory.engine.balances_fen(), balances)
            _compare_holds(memory.engine.holds_fen(), held)
        finally:
            memory.close()
        return replace(report, seals=len(seals))


def _compare(state: Balances, sums: Balances) -> None:
    if len(state) != len(sums):
        raise Damaged(f"the state has {len(state)} accounts, the journal opened {len(sums)}")
    wrong = np.flatnonzero(state != sums)
    if len(wrong):
        account = int(wrong[0])
        raise Damaged(f"account {account}: its balance is {state[account]} fen, its postings sum to {sums[account]} fen")
    if imbalance := int(sums.sum()):
        raise Damaged(f"the books do not balance: all accounts sum to {imbalance} fen")


def _compare_holds(state: Balances, sums: Balances) -> None:
    wrong = np.flatnonzero(state != sums)
    if len(wrong):
        account = int(wrong[0])
        raise Damaged(f"account {account}: {state[account]} fen of it are held, its holds sum to {sums[account]} fen")


def _is_twin(records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Which of them register an e-card: it has its card's account."""
    twins: npt.NDArray[np.bool_] = (records["kind"] == types.RecordKind.CARD) & (records["terminal_sequence"] != 0)
    return twins


def _audit_journal(reader: JournalReader, until: int, progress: Progress) -> tuple[Balances, Balances, CheckReport]:
    """Walk the journal up to a sequence; the balances and holds that its records make, by account, and what it holds."""
    balances = np.zeros(1, np.int64)  # the funding account is there from the start
    held = np.zeros(1, np.int64)
    previous, next_sequence, groups, turnover_fen, time_us = GENESIS, 1, 0, 0, 0
    counts = dict.fromkeys(types.RecordKind, 0)
    for entry in reader.entries():
        if next_sequence > until:
            break
        place = f"journal value at sequence {entry.first_sequence}"
        if entry.first_sequence != next_sequence:
            raise Damaged(f"journal: records {next_sequence} to {entry.first_sequence - 1} are missing")
        if entry.previous != previous:
            raise Damaged(f"{place}: the hash chain is broken before it (SM3 of the header before differs)")
        if entry.time_us < time_us:
            raise Damaged(f"{place}: its time is before that of the value before it")
        entry.verify()
        entry.verify_events()
        records = entry.array
        if not np.array_equal(records["sequence"], np.arange(next_sequence, next_sequence + entry.count, dtype=np.uint64)):
            raise Damaged(f"{place}: its records are not numbered in sequence")
        opened = int((np.isin(records["kind"], OPENING) & ~_is_twin(records)).sum())
        if opened:
            balances, held = (np.concatenate([sums, np.zeros(opened, np.int64)]) for sums in (balances, held))
        if (at := audit(balances, np.frombuffer(entry.records, np.uint8))) >= 0:
            raise Damaged(f"journal record {next_sequence + at}: the balances that it states are not the sums of the postings")
        holds = records[records["kind"] == types.RecordKind.HOLD]
        np.add.at(held, holds["debit_account"], holds["amount_fen"])
        for kind in counts:
            counts[kind] += int((records["kind"] == kind).sum())
        turnover_fen += int(records["amount_fen"][records["kind"] != types.RecordKind.HOLD].sum())
        previous, time_us = sm3(entry.header), entry.time_us
        next_sequence += entry.count
        groups += 1
        progress(next_sequence - 1, until)
    return (
        balances,
        held,
        CheckReport(
            records=next_sequence - 1,
            groups=groups,
            cards=counts[types.RecordKind.CARD],
            terminals=counts[types.RecordKind.TERMINAL],
            operators=counts[types.RecordKind.OPERATOR],
            accounts=len(balances),
            turnover_fen=turnover_fen,
            seals=0,
            head=previous.hex(),
        ),
    )
