"""What the core holds in memory, how it is restored from the data directory, and how a checkpoint of it is written."""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from yikatong.core import limits, types
from yikatong.core.documents import Documents, Layer, save
from yikatong.core.errors import Damaged, DataError, NewerFormat
from yikatong.core.failpoints import failpoint
from yikatong.core.identity.person_keys import PersonKeys
from yikatong.core.journal import GENESIS, Entry, Journal, sm3
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.keys.provider import KeyProvider, TapKey
from yikatong.core.rules.compile import Compiled
from yikatong.core.seen import CARDS, TERMINALS, Segments, add_segment
from yikatong.core.store import DataDirectory, Reader
from yikatong.core.tariffs import Tariffs
from yikatong.core.types import DocumentKind
from yikatong.ext.engine import PAGE_BYTES, TABLES, Engine, EngineFault, local_seconds
from yikatong.v1 import account_service_pb2, card_service_pb2, journal_pb2, terminal_service_pb2

FORMAT: Final = 4
# 3 had no category that begins on a day, 2 no memory of rides: both are read as they are; 1 is made anew from the journal.
FORMAT_READ_MIN: Final = 2
REGISTRATIONS: Final = (types.RecordKind.CARD, types.RecordKind.TERMINAL, types.RecordKind.OPERATOR)
OPERATOR_PREFIX: Final = "operator:"
US: Final = 1_000_000
Progress = Callable[[int, int], None]


class TopUpDone(NamedTuple):
    """The answer that a top-up got, under its request id."""

    sequence: int
    card_number: str
    amount_fen: int
    balance_after_fen: int


@dataclass(frozen=True)
class EngineSettings:
    """What shapes the engine; see core/limits.py for reasons and defaults."""

    cards_max: int = limits.CARDS_MAX
    terminals_max: int = limits.TERMINALS_MAX
    stored_grace_s: int = limits.STORED_GRACE_S
    overdraft_fen: int = 0
    tariffs: Compiled | None = None  # what taps are priced by
    hash_seed: int = 0
    taps_expected: int = 0  # between two checkpoints: room that is set aside for their counters


class Photograph(NamedTuple):
    """What a checkpoint is written from. The pages and counters stay in the engine until it is released."""

    sequence: int
    pages: dict[str, int]
    counts: dict[str, int]
    operators: list[str]
    top_ups: dict[bytes, TopUpDone]
    documents: Layer
    settlement_day: int
    denials: tuple[bytes, int, int]  # changes of the deny list, after which sequence all are there, version


class Memory:
    """The engine, and beside it what is too cold for it: operators and the request ids of top-ups.

    Only the writer's thread may use it, but for `write_checkpoint`."""

    def __init__(
        self,
        directory: DataDirectory,
        journal: Journal,
        keys: Sequence[KeySet | TapKey],
        settings: EngineSettings,
        provider: KeyProvider | None = None,
    ) -> None:
        """`provider` is asked about taps under keys that are not to be kept here."""
        self.directory = directory
        self.journal = journal
        self.engine = Engine(
            cards_max=settings.cards_max,
            terminals_max=settings.terminals_max,
            ring_records=limits.RING_RECORDS,
            batch_taps_max=limits.GROUP_TAPS_MAX,
            stored_grace_s=settings.stored_grace_s,
            overdraft_fen=settings.overdraft_fen,
            hash_seed=settings.hash_seed,
            taps_expected=settings.taps_expected,
            accounts_max=settings.cards_max + settings.terminals_max + limits.ACCOUNTS_BESIDE_MAX,
        )
        self.provider = provider
        self.set_keys(keys)
        self.operators: list[str] = []  # in order of opening
        self.operator_accounts: dict[str, int] = {}
        self.account_operators: dict[int, str] = {}
        self.terminal_accounts: list[int] = []  # by terminal slot
        self.top_ups: dict[bytes, TopUpDone] = {}  # since the last checkpoint
        self.top_ups_frozen: dict[bytes, TopUpDone] = {}
        self.documents = Documents()
        self.person_keys = PersonKeys(directory.path)
        self.tariffs = Tariffs(settings.tariffs)
        self.late: dict[int, tuple[int, int]] = {}  # cards to price again, each from a tap on: its local time, its counter
        self.checkpoint_sequence = 0
        self._operators_saved = 0
        self._state: Reader | None = None
        self.segments: Segments | None = None

    def set_keys(self, keys: Sequence[KeySet | TapKey]) -> None:
        """The TAC masters that taps are proved by from now on."""
        tap_keys = [key if isinstance(key, TapKey) else key.tap_key() for key in keys]
        tap_keys.sort(key=lambda key: key.refused)  # the engine walks: dead ones come last
        self.engine.set_keys([(*key[:3], key.parent, key.from_s * US, key.refused_from_s * US, key.refused) for key in tap_keys])
        self.tap_levels = {key[:3]: key.levels for key in tap_keys}

    # ---- operators and request ids ----

    def open_operator(self, operator_id: str, account: int) -> None:
        self.operators.append(operator_id)
        self.operator_accounts[operator_id] = account
        self.account_operators[account] = operator_id

    def find_top_up(self, request_id: bytes) -> TopUpDone | None:
        """The answer under a request id, however old."""
        done = self.top_ups.get(request_id) or self.top_ups_frozen.get(request_id)
        if done is not None or self._state is None:
            return done
        value = self._state.get("requests", request_id)
        if value is None:
            return None
        sequence = int.from_bytes(value, "big")
        with self.journal.read() as reader:
            found = reader.record(sequence)
            if found is None:
                raise Damaged(f"journal: record {sequence} is missing")
            return top_up_of(found[0], found[1][0])

    def account(self, name: str) -> int | None:
        """Number of a named account: an operator's payable ("operator:…") or one that an event opened."""
        if name.startswith(OPERATOR_PREFIX):
            return self.operator_accounts.get(name.removeprefix(OPERATOR_PREFIX))
        value = self.documents.get(DocumentKind.ACCOUNT, name.encode())
        return None if value is None else int.from_bytes(value, "big")

    def named_accounts(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Accounts that events opened, whose names begin so, in order of name."""
        start = prefix.encode()
        for name, account in self.documents.scan(DocumentKind.ACCOUNT, start):
            if not name.startswith(start):
                break
            yield name.decode(), int.from_bytes(account, "big")

    def commit_event(
        self, time_us: int, event: journal_pb2.Event, steps: list[tuple[int, int, int, int, int, int, bytes]]
    ) -> None:
        """Write an event and its steps into the group, and do what it says. Raises EngineFull, and then nothing was written."""
        message = event.SerializeToString(deterministic=True)
        self.engine.commit(time_us, message, sm3(message), steps)
        self.apply_event(event)

    def apply_event(self, event: journal_pb2.Event) -> None:
        """What an event changed beside the ledger."""
        for document in event.documents:
            self.documents.apply(document.kind, document.key, None if document.deleted else document.value)
        if event.closed_settlement_day and event.closed_settlement_day >= self.engine.settlement_day:
            self.engine.settlement_day = event.closed_settlement_day + 1

    # ---- restore ----

    def restore(self, progress: Progress = lambda done, total: None) -> None:
        """Load the last checkpoint and apply the journal's tail. `progress` gets records done and in all.

        Raises Damaged, NewerFormat or DataError, naming the place."""
        with self.directory.state.read() as state:
            meta = _read_meta(state)
        if meta is not None and meta["format"] < FORMAT_READ_MIN:
            if self.directory.readonly:
                raise DataError(f"{self.directory.state.path}: it has an older format; `serve` makes it anew from the journal")
            self.directory.state.empty()
            meta = None
        with self.directory.state.read() as state:
            if meta is not None:
                self._restore_checkpoint(state, meta)
        with self.journal.read() as reader:
            previous = _verify_joint(reader.entry(self.checkpoint_sequence), self.checkpoint_sequence, meta)
            total = self.journal.next_sequence - 1 - self.checkpoint_sequence
            for entry in reader.entries(self.checkpoint_sequence + 1):
                if entry.first_sequence != self.engine.next_sequence:
                    raise Damaged(f"journal: record {self.engine.next_sequence} is missing")
                if entry.previous != previous:
                    raise Damaged(f"journal value at sequence {entry.first_sequence}: the hash chain is broken before it")
                entry.verify()
                try:
                    self._replay(entry)
                except EngineFault as fault:
                    raise Damaged(f"journal value at sequence {entry.first_sequence}: {fault}") from fault
                previous = sm3(entry.header)
                progress(self.engine.next_sequence - 1 - self.checkpoint_sequence, total)
        if (imbalance := self.engine.imbalance_fen()) != 0:
            raise Damaged(f"the books do not balance: all accounts sum to {imbalance} fen")
        self.refresh()
        self.tariffs.look_up(self)

    def _restore_checkpoint(self, state: Reader, meta: dict[str, Any]) -> None:
        for table in TABLES:
            for key, value in state.items(table):
                page = value[:PAGE_BYTES]
                if zlib.crc32(page) != int.from_bytes(value[PAGE_BYTES:], "big"):
                    raise Damaged(
                        f"{self.directory.state.path}: page {int.from_bytes(key, 'big')} of {table} is not what was written; "
                        "without this file the state is rebuilt from the journal"
                    )
                self.engine.restore_page(table, int.from_bytes(key, "big"), page)
        try:
            self.engine.restored(meta["counts"], meta["sequence"])
        except EngineFault as fault:
            raise Damaged(f"{self.directory.state.path}: {fault}") from fault
        for key, value in state.items("operators"):
            self.open_operator(bytes(value).decode(), int.from_bytes(key, "big"))
        self._operators_saved = len(self.operators)
        self.terminal_accounts = [self.engine.terminal(slot)["account"] for slot in range(meta["counts"]["terminals"])]
        self.engine.settlement_day = meta["settlement_day"]
        try:
            self.engine.restore_denials(state.get("meta", b"denials") or b"", meta["denials_after"], meta["deny_version"])
        except EngineFault as fault:
            raise Damaged(f"{self.directory.state.path}: {fault}") from fault
        self.checkpoint_sequence = meta["sequence"]

    def _replay(self, entry: Entry) -> None:
        """Apply the effects of one journal value: runs of taps and top-ups in one go, registrations one by one."""
        array = entry.array
        cold = np.flatnonzero(np.isin(array["kind"], REGISTRATIONS))
        start = 0
        for at in [*cold.tolist(), len(array)]:
            self.engine.replay(entry.records[start * types.RECORD.itemsize : at * types.RECORD.itemsize], entry.payloads)
            if at < len(array):
                self._replay_registration(entry, array[at])
            start = at + 1
        provisional = (array["flags"] & types.Flag.PRICED != 0) & (array["fare_flags"] & types.FareFlag.PROVISIONAL != 0)
        for at in np.flatnonzero(provisional | (array["kind"] == types.RecordKind.RIDES)).tolist():
            self._replay_late(array[at])
        for at in np.flatnonzero(array["kind"] == types.RecordKind.TOP_UP).tolist():
            record = array[at]
            request = account_service_pb2.TopUpRequest.FromString(entry.payload(int(record["payload_place"])))
            self.top_ups[request.request_id] = top_up_of(entry, record)
        for at in np.flatnonzero(array["kind"] == types.RecordKind.EVENT).tolist():
            self.apply_event(journal_pb2.Event.FromString(entry.payload(int(array[at]["payload_place"]))))

    def _replay_late(self, record: Any) -> None:
        """A tap that came late, or the memory of rides of a card that was priced again since."""
        card = int(record["card"])
        if record["kind"] == types.RecordKind.RIDES:
            self.late.pop(card, None)
            return
        local_s = local_seconds(int(record["local_date"]), int(record["local_time"])) + 8 * 3_600
        place = local_s, int(record["atc"])
        self.late[card] = min(self.late.get(card, place), place)

    def _replay_registration(self, entry: Entry, record: Any) -> None:
        payload = entry.payload(int(record["payload_place"]))
        time_us = int(record["time_us"])
        if int(record["sequence"]) != self.engine.next_sequence:
            raise EngineFault(f"record {record['sequence']} does not follow from the ones before it")
        if record["kind"] == types.RecordKind.CARD:
            card = card_service_pb2.Card.FromString(payload)
            twin = int(record["terminal_sequence"])
            slot = self.engine.add_card(
                card.card_number, card.issuer_id, card.rider, card.expires, time_us, payload,
                int(record["rider_until"]), int(record["pass_number"]), int(record["pass_until"]),
                twin - 1 if twin else types.NONE,
                int(record["rider_from"]), int(record["rider_before_until"]), int(record["riders_before"]),
                int(record["before_days"]),
            )  # fmt: skip
            expected = int(record["card"])
        elif record["kind"] == types.RecordKind.TERMINAL:
            terminal = terminal_service_pb2.Terminal.FromString(payload)
            account = int(record["credit_account"])
            slot = self.engine.add_terminal(terminal.terminal_number, terminal.kind, account, time_us, payload)
            self.terminal_accounts.append(account)
            expected = int(record["terminal"])
        elif record["kind"] == types.RecordKind.OPERATOR:
            slot = self.engine.add_operator(time_us, payload)
            self.open_operator(payload.decode(), slot)
            expected = int(record["credit_account"])
        else:
            raise EngineFault(f"record {record['sequence']} is of an unknown kind {record['kind']}")
        self.engine.take_group()  # it is in the journal already
        if slot != expected:
            raise EngineFault(f"record {record['sequence']} does not follow from the ones before it")

    def refresh(self) -> None:
        """Look at the state file as it is now: after a checkpoint, its segments and request ids are found there."""
        if self._state is not None:
            self.segments = None
            self._state.close()
        self._state = self.directory.state.read()
        self.segments = Segments(self._state)
        self.documents.look_at(self._state)

    # ---- checkpoint ----

    def photograph(self) -> Photograph:
        """Freeze what a checkpoint will hold; quick. The writer goes on at once, and later calls `settle_checkpoint`. No
        card may wait for being priced again."""
        assert not self.late
        frozen = self.engine.freeze()
        self.top_ups_frozen, self.top_ups = self.top_ups, {}
        return Photograph(
            frozen["sequence"],
            frozen["pages"],
            frozen["counts"],
            self.operators[self._operators_saved :],
            self.top_ups_frozen,
            self.documents.freeze(),
            self.engine.settlement_day,
            (self.engine.denials().tobytes(), self.engine.denials_after, self.engine.deny_version),
        )

    def write_checkpoint(self, photograph: Photograph, head: bytes) -> None:
        """Any one thread: write a photograph in one transaction. `head` is the digest of the journal header that ends at its
        sequence, which must be durable. Raises CommitFailed; then the state file is as it was."""
        with self.directory.state.read() as reader, self.directory.state.write("checkpoint") as writer:
            failpoint("checkpoint-before-write")
            for table in TABLES:
                for i in range(photograph.pages[table]):
                    page, data = self.engine.frozen_page(table, i)
                    writer.put(table, page.to_bytes(4, "big"), data + zlib.crc32(data).to_bytes(4, "big"))
                failpoint("checkpoint-middle")
            for operator_id in photograph.operators:
                writer.put("operators", self.operator_accounts[operator_id].to_bytes(4, "big"), operator_id.encode())
            save(writer, photograph.documents)
            for request_id, done in photograph.top_ups.items():
                writer.put("requests", request_id, done.sequence.to_bytes(8, "big"))
            card_keys, card_sequences, terminal_keys, terminal_sequences = self.engine.frozen_seen()
            segments = Segments(reader)
            add_segment(writer, segments, CARDS, card_keys, card_sequences)
            add_segment(writer, segments, TERMINALS, terminal_keys, terminal_sequences)
            del segments
            denials, denials_after, deny_version = photograph.denials
            writer.put("meta", b"denials", denials)
            meta = {
                "format": FORMAT, "sequence": photograph.sequence, "head": head.hex(), "counts": photograph.counts,
                "settlement_day": photograph.settlement_day, "denials_after": denials_after, "deny_version": deny_version,
            }  # fmt: skip
            writer.put("meta", b"checkpoint", json.dumps(meta).encode())

    def settle_checkpoint(self, photograph: Photograph, written: bool) -> None:
        """The checkpoint's end, back on the writer's thread."""
        self.documents.settle(written)
        if written:
            self._operators_saved += len(photograph.operators)
            self.checkpoint_sequence = photograph.sequence
            self.refresh()
            self.engine.release()
        else:
            self.engine.thaw()
            self.top_ups = {**self.top_ups_frozen, **self.top_ups}
        self.top_ups_frozen = {}

    def close(self) -> None:
        self.segments = None
        self.person_keys.close()
        if self._state is not None:
            self._state.close()
            self._state = None


def top_up_of(entry: Entry, record: Any) -> TopUpDone:
    """The answer that a top-up record stands for."""
    request = account_service_pb2.TopUpRequest.FromString(entry.payload(int(record["payload_place"])))
    return TopUpDone(int(record["sequence"]), request.card_number, request.amount_fen, int(record["credit_after_fen"]))


def _read_meta(state: Reader) -> dict[str, Any] | None:
    value = state.get("meta", b"checkpoint")
    if value is None:
        return None
    meta: dict[str, Any] = json.loads(bytes(value))
    if meta["format"] > FORMAT:
        raise NewerFormat(f"state: it has format {meta['format']}; this program knows formats up to {FORMAT}")
    return meta


def _verify_joint(entry: Entry | None, sequence: int, meta: dict[str, Any] | None) -> bytes:
    """The state must stand for a place in this very journal; returns the digest of the header there."""
    if meta is None or sequence == 0:
        return GENESIS
    if entry is None:
        raise DataError(f"the state stands for sequence {sequence}, which is not in the journal")
    head = sm3(entry.header)
    if entry.first_sequence + entry.count - 1 != sequence or head.hex() != meta["head"]:
        raise DataError(f"the state stands for sequence {sequence} of another journal than this one")
    return head
