"""The journal written out as Parquet or CSV, and hot copies of a data directory."""

import shutil
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from yikatong.core import types
from yikatong.core.access import export_permits
from yikatong.core.day.windows import settlement_days
from yikatong.core.errors import DataError
from yikatong.core.identity.person_keys import FILE as PERSON_KEYS
from yikatong.core.journal import Entry, Journal, JournalReader
from yikatong.core.memory import EngineSettings, Memory
from yikatong.core.store import DataDirectory
from yikatong.v1 import journal_pb2, tap_service_pb2

Progress = Callable[[int, int], None]

SCHEMA: Final = pa.schema(
    [
        ("sequence", pa.uint64()),
        ("journal_time", pa.timestamp("us", tz="UTC")),
        ("kind", pa.string()),
        ("result", pa.string()),
        ("settlement_date", pa.date32()),
        ("event", pa.string()),
        ("reason", pa.string()),
        ("card_number", pa.string()),
        ("terminal_number", pa.string()),
        ("operator", pa.string()),
        ("amount_fen", pa.int64()),
        ("balance_after_fen", pa.int64()),
        ("debit_account", pa.uint32()),
        ("credit_account", pa.uint32()),
        ("tap_amount_fen", pa.uint32()),
        ("amount_due_fen", pa.uint32()),
        ("local_time", pa.timestamp("s")),
        ("atc", pa.uint16()),
        ("terminal_sequence", pa.uint32()),
        ("profile", pa.uint8()),
        ("transaction_type", pa.uint8()),
        ("tap_kind", pa.uint8()),
        ("line", pa.uint32()),
        ("stop", pa.uint32()),
        ("rider", pa.uint8()),
        ("city", pa.uint16()),
        ("industry", pa.uint8()),
        ("key_version", pa.uint8()),
        ("chip_balance_before_fen", pa.uint32()),
        ("chip_balance_after_fen", pa.uint32()),
        ("stored", pa.bool_()),
        ("test", pa.bool_()),
        ("fraud", pa.bool_()),
    ]
)
"""Columns of an export, one row a journal record. Columns of taps are null in other rows; `event` is the name of an event, and
`reason` why a posting that follows one was made. Times are UTC, but `local_time` is
the terminal's (UTC+8)."""

Array = npt.NDArray[Any]


class _Names:
    """Card, terminal and operator names by slot and account, as arrays."""

    def __init__(self, memory: Memory) -> None:
        engine = memory.engine
        counts = engine.counts
        cards = [engine.card(slot) for slot in range(counts["cards"])]
        self.cards = np.array([card["card_number"] for card in cards], object)
        self.card_accounts = np.array([card["account"] for card in cards], np.int64)
        terminals = [engine.terminal(slot) for slot in range(counts["terminals"])]
        self.terminals = np.array([terminal["terminal_number"].hex() for terminal in terminals], object)
        self.operators = np.array([memory.account_operators[terminal["account"]] for terminal in terminals], object)
        self.operator_of_account = memory.account_operators


def _named(slots: Array, names: Array) -> Array:
    """Names of slots; None where there is no slot."""
    named = np.full(len(slots), None, object)
    known = slots < len(names)
    named[known] = names[slots[known]]
    return named


def _local_time(records: Array, is_tap: Array) -> Any:
    """Date and time columns as seconds since 1970 of local time; null where it is no tap."""
    date, time = records["local_date"].astype(np.int64), records["local_time"].astype(np.int64)
    date = np.where(is_tap, date, 20000101)
    months = (date // 10000 - 1970) * 12 + date // 100 % 100 - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + date % 100 - 1
    seconds = days * 86400 + time // 10000 * 3600 + time // 100 % 100 * 60 + time % 100
    return pa.array(seconds.astype("datetime64[s]"), pa.timestamp("s"), mask=~is_tap)


def _names_of(kinds: type[IntEnum]) -> Array:
    """Names by number; None where a number has none."""
    found = np.full(256, None, object)
    for kind in kinds:
        found[kind] = kind.name
    return found


_NAMES_OF_KIND: Final = _names_of(types.RecordKind)
_NAMES_OF_RESULT: Final = _names_of(types.Result)
_NAMES_OF_REASON: Final = _names_of(types.PostingKind)


def _balances(records: Array, names: _Names) -> tuple[Array, Array]:
    """The balance of each record's card after it, and whether the record states one: a posting may move it either way, or move
    a restricted purse of the card instead."""
    kind, card = records["kind"], records["card"]
    own = np.full(len(records), -1, np.int64)
    known = card < len(names.card_accounts)
    own[known] = names.card_accounts[card[known]]
    credited = records["credit_account"] == own
    balance = np.where(credited, records["credit_after_fen"], records["debit_after_fen"])
    states = (card != types.NONE) & (kind != types.RecordKind.DENY_LIST) & (kind != types.RecordKind.ACCOUNT)
    states &= (kind != types.RecordKind.POSTING) | credited | (records["debit_account"] == own)
    states &= (kind != types.RecordKind.HOLD) | (records["debit_account"] == own)
    return balance, states


def _batch(entry: Entry, names: _Names) -> pa.RecordBatch:
    records = entry.array
    is_tap = records["kind"] == types.RecordKind.TAP
    cards, terminals = _named(records["card"], names.cards), _named(records["terminal"], names.terminals)
    operators = _named(records["terminal"], names.operators)
    priced = records["flags"] & types.Flag.PRICED != 0
    for at in np.flatnonzero(is_tap & ~priced & (records["payload_place"] != 0)):  # what had no slot stands in the kept message
        tap = tap_service_pb2.Tap.FromString(entry.payload(int(records["payload_place"][at])))
        cards[at], terminals[at] = tap.card_number, tap.terminal_number.hex()
    for at in np.flatnonzero(records["kind"] == types.RecordKind.OPERATOR):
        operators[at] = names.operator_of_account[int(records["credit_account"][at])]
    events = np.full(len(records), None, object)
    for at in np.flatnonzero(records["kind"] == types.RecordKind.EVENT):
        events[at] = journal_pb2.Event.FromString(entry.payload(int(records["payload_place"][at]))).name
    is_posting = records["kind"] == types.RecordKind.POSTING
    reasons = np.where(is_posting, _NAMES_OF_REASON[records["transaction_type"]], None)
    balance, has_balance = _balances(records, names)
    columns: dict[str, Any] = {
        "sequence": records["sequence"],
        "journal_time": records["time_us"].astype("datetime64[us]"),
        "kind": _NAMES_OF_KIND[records["kind"]],
        "result": _NAMES_OF_RESULT[records["result"]],
        "settlement_date": pa.array(settlement_days(records).astype("datetime64[D]"), pa.date32()),
        "event": events,
        "reason": reasons,
        "card_number": cards,
        "terminal_number": terminals,
        "operator": operators,
        "amount_fen": records["amount_fen"],
        "balance_after_fen": pa.array(balance, pa.int64(), mask=~has_balance),
        "debit_account": pa.array(records["debit_account"], mask=records["debit_account"] == types.NONE),
        "credit_account": pa.array(records["credit_account"], mask=records["credit_account"] == types.NONE),
        "local_time": _local_time(records, is_tap),
        "chip_balance_before_fen": pa.array(records["chip_before_fen"], mask=~is_tap | priced),
        "chip_balance_after_fen": pa.array(records["chip_after_fen"], mask=~is_tap | priced),
        "stored": pa.array(records["flags"] & types.Flag.STORED != 0, mask=~is_tap),
        "test": pa.array(records["flags"] & types.Flag.TEST != 0, mask=~is_tap),
        "fraud": pa.array(records["flags"] & types.Flag.FRAUD != 0, mask=~is_tap),
    }
    for name in SCHEMA.names:
        if name not in columns:
            columns[name] = pa.array(records[name], mask=~is_tap)
    return pa.RecordBatch.from_arrays(
        [column if isinstance(column, pa.Array) else pa.array(column, field.type) for column, field in
         ((columns[field.name], field) for field in SCHEMA)],
        schema=SCHEMA,
    )  # fmt: skip


def _batches(reader: JournalReader, names: _Names, until: int, progress: Progress) -> Iterator[pa.RecordBatch]:
    for entry in reader.entries():
        if entry.first_sequence > until:
            break
        entry.verify()
        yield _batch(entry, names)
        progress(entry.first_sequence + entry.count - 1, until)


def export(
    path: Path,
    out: Path,
    form: str,
    settings: EngineSettings,
    progress: Progress = lambda done, total: None,
    permit: str = "",
) -> int:
    """Write the journal of a data directory to a file, `form` being "parquet" or "csv"; returns how many records. The file
    appears whole or not at all. A server may be running. `permit` is the id of a permit, where the directory wants one. Raises
    DataError, or InvalidRequest and NotFound about the permit."""
    partial = out.with_name(out.name + ".partial")
    with DataDirectory(path, readonly=True) as directory:
        memory = Memory(directory, Journal(directory.journal), [], settings)
        try:
            memory.restore()
            until = memory.engine.next_sequence - 1
            now_us = max(time.time_ns() // 1_000, memory.journal.last_time_us)
            with (
                export_permits.using(memory, path, permit, form, out, now_us),
                JournalReader(directory.journal) as reader,
            ):
                batches = _batches(reader, _Names(memory), until, progress)
                if form == "parquet":
                    with pa.parquet.ParquetWriter(partial, SCHEMA, compression="zstd") as parquet:
                        for table in _tables(batches):
                            parquet.write_table(table)
                else:
                    with pa.csv.CSVWriter(partial, SCHEMA) as csv:
                        for batch in batches:
                            csv.write_batch(batch)
                partial.replace(out)
        except (OSError, pa.ArrowException) as error:
            partial.unlink(missing_ok=True)
            raise DataError(f"{out}: {error}") from error
        finally:
            memory.close()
        return int(until)


ROW_GROUP_RECORDS: Final = 1 << 18


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches gathered into row groups of a size that readers like."""
    gathered: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        gathered.append(batch)
        rows += batch.num_rows
        if rows >= ROW_GROUP_RECORDS:
            yield pa.Table.from_batches(gathered, SCHEMA)
            gathered, rows = [], 0
    yield pa.Table.from_batches(gathered, SCHEMA)


def backup(path: Path, to: Path) -> None:
    """A hot copy that `serve` starts from. The state is copied first: what it stands for is then in the journal's copy.

    Raises DataError when `to` exists and is not an empty folder, or when a copy fails; then no usable half of it is left."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise DataError(f"{to}: is already there, and not an empty folder")
    with DataDirectory(path, readonly=True) as directory:
        stores = (directory.state, directory.journal)
        partials = [to / f"{store.path.name}.partial" for store in stores]
        try:
            to.mkdir(parents=True, exist_ok=True, mode=0o700)
            for store, partial in zip(stores, partials, strict=True):
                store.copy_to(partial)
            for store, partial in zip(stores, partials, strict=True):
                partial.rename(to / store.path.name)
            if (
                path / PERSON_KEYS
            ).exists():  # last: the keys of all persons that the journal's copy has, but for those erased since
                shutil.copy(path / PERSON_KEYS, to / PERSON_KEYS)
        except OSError as error:
            raise DataError(f"{to}: {error.strerror}") from error
        finally:
            for partial in partials:
                partial.unlink(missing_ok=True)
