"""An auditor of a data directory: it shares no code with the engine. It reads journal.mdb with its own eyes (the format as
core/journal.py and ext/types.h describe it), keeps its own books, and says what does not add up.

Run it by hand: python tests/auditor.py DATA"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import lmdb

from yikatong.v1 import clearing_service_pb2, journal_pb2

HEADER = Struct("<8sHHxxxxQIIq32s32s24x")
RECORD = Struct("<QqQqqqIIIIIIIIIII4sIIIHBBBBBBBBBBHBBHBB")
assert RECORD.size == 128
TAP, TOP_UP, CARD, TERMINAL, OPERATOR, ACCOUNT, POSTING, HOLD, EVENT, DENY_LIST = range(1, 11)
LINKED, COUNTED = 64, 16
NONE = 0xFFFFFFFF
ACCEPTED, DEBT_BOOKED = 1, 2
OPENS = (CARD, OPERATOR, ACCOUNT)
WINDOW_DOCUMENT = 30  # DocumentKind.WINDOW


class Record(NamedTuple):
    """One journal record; fields as in ext/types.h."""

    sequence: int
    time_us: int
    card_previous: int
    amount_fen: int
    debit_after_fen: int
    credit_after_fen: int
    debit_account: int
    credit_account: int
    card: int
    terminal: int
    terminal_sequence: int
    tap_amount_fen: int
    amount_due_fen: int
    local_date: int
    local_time: int
    line: int
    stop: int
    mac: bytes
    chip_before_fen: int
    chip_after_fen: int
    payload_place: int
    atc: int
    kind: int
    result: int
    profile: int
    transaction_type: int
    tap_kind: int
    flags: int
    algorithm_id: int
    key_version: int
    key_index: int
    rider: int
    city: int
    industry: int
    direction: int
    settlement_day: int
    deny_reasons: int
    reserved: int


class Unsound(AssertionError):
    """What the auditor found."""


def require(holds: bool, text: str) -> None:
    if not holds:
        raise Unsound(text)


@dataclass
class Books:
    """What the journal comes to. Accounts by number; `names` of operators ("operator:…") and of named accounts."""

    balances: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    held: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    names: dict[int, str] = field(default_factory=dict)
    purses: dict[int, int] = field(default_factory=dict)  # card slot → account
    documents: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    records: int = 0
    accounts: int = 1
    # Per settlement day: what each account gained by the records of that day, without the postings that clearing made of it.
    moved: defaultdict[int, defaultdict[int, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    taps: set[tuple[int, int]] = field(default_factory=set)  # (card, ATC) used up

    def balance_of(self, name: str) -> int:
        return sum(balance for account, balance in self.balances.items() if self.names.get(account) == name)


def records_of(path: Path) -> Iterator[tuple[list[Record], bytes]]:
    """Each group commit: its records, and the bytes of its payloads."""
    environment = lmdb.open(str(path / "journal.mdb"), subdir=False, readonly=True, lock=False, max_dbs=4)
    try:
        groups = environment.open_db(b"groups", create=False)
        with environment.begin() as transaction:
            for key, value in transaction.cursor(db=groups):
                magic, version, header_bytes, first, count, payload_bytes, _, _, _ = HEADER.unpack(value[: HEADER.size])
                require(magic == b"YKTJRNL\n" and version <= 2, f"sequence {first}: not a journal value")
                require(int.from_bytes(key, "big") == first, f"sequence {first}: under another key")
                body = value[header_bytes:]
                require(len(body) == count * 128 + payload_bytes, f"sequence {first}: a wrong length")
                yield [Record(*RECORD.unpack_from(body, i * 128)) for i in range(count)], body[count * 128 :]
    finally:
        environment.close()


def payload_of(record: Record, payloads: bytes) -> bytes:
    at, length, shift = record.payload_place - 1, 0, 0
    while True:
        byte = payloads[at]
        at += 1
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return payloads[at : at + length]


def audit(path: Path) -> Books:
    """Raises Unsound for the first thing that does not add up."""
    books = Books()
    day = 0
    for records, payloads in records_of(path):
        require(not records[-1].flags & LINKED or records[-1].kind == TAP, f"{records[-1].sequence}: linked to another commit")
        for record in records:
            books.records += 1
            where = f"record {record.sequence}"
            require(record.sequence == books.records, f"{where} comes as number {books.records}")
            require(record.settlement_day >= day, f"{where}: its settlement day goes back")
            day = record.settlement_day
            _book(books, record, payloads, where)
    require(sum(books.balances.values()) == 0, "the accounts do not sum to zero")
    return books


def _book(books: Books, record: Record, payloads: bytes, where: str) -> None:
    if record.kind in OPENS:
        account = record.debit_account if record.kind == CARD else record.credit_account
        require(account == books.accounts, f"{where}: opens account {account}, {books.accounts} is next")
        books.accounts += 1
        if record.kind == CARD:
            books.purses[record.card] = account
        else:
            prefix = "operator:" if record.kind == OPERATOR else ""
            books.names[account] = prefix + payload_of(record, payloads).decode()
    elif record.kind == EVENT:
        for document in journal_pb2.Event.FromString(payload_of(record, payloads)).documents:
            if document.deleted:
                books.documents.pop((document.kind, document.key), None)
            else:
                books.documents[document.kind, document.key] = document.value
    elif record.kind == HOLD:
        books.held[record.debit_account] += record.amount_fen
        require(books.held[record.debit_account] == record.credit_after_fen, f"{where}: states another sum of holds")
        require(record.credit_after_fen >= 0, f"{where}: less than nothing is held")
    elif record.kind in (TAP, TOP_UP, POSTING):
        _move(books, record, where)
    else:
        require(record.kind in (TERMINAL, DENY_LIST) or record.kind > DENY_LIST, f"{where}: kind {record.kind}")


def _move(books: Books, record: Record, where: str) -> None:
    if record.kind == TAP:
        if record.flags & COUNTED:
            require((record.card, record.atc) not in books.taps, f"{where}: a card's counter was used up before")
            books.taps.add((record.card, record.atc))
        charged = record.result in (ACCEPTED, DEBT_BOOKED)
        require(charged == (record.credit_account != NONE), f"{where}: money and result do not agree")
        if not charged:
            return
        require(record.debit_account == books.purses[record.card], f"{where}: another purse than the card's pays")
    debit, credit = record.debit_account, record.credit_account
    require(debit != credit and max(debit, credit) < books.accounts, f"{where}: from {debit} to {credit}")
    require(record.amount_fen >= 0, f"{where}: a negative amount")
    books.balances[debit] -= record.amount_fen
    books.balances[credit] += record.amount_fen
    require(books.balances[debit] == record.debit_after_fen, f"{where}: states another balance of the debit side")
    require(books.balances[credit] == record.credit_after_fen, f"{where}: states another balance of the credit side")
    if books.names.get(debit, "").startswith("purse:"):
        require(books.balances[debit] >= books.held[debit], f"{where}: a restricted purse paid what it did not have")
    if record.kind == TAP and record.result == ACCEPTED and not record.flags & 1 and record.amount_fen:
        require(books.balances[debit] >= books.held[debit], f"{where}: an online tap beyond what was available")
    for account, amount in ((debit, -record.amount_fen), (credit, record.amount_fen)):
        books.moved[record.settlement_day][account] += amount


def windows_of(books: Books) -> list[Any]:
    """The windows' documents, by date."""
    found = [
        clearing_service_pb2.WindowDocument.FromString(value)
        for (kind, _), value in sorted(books.documents.items())
        if kind == WINDOW_DOCUMENT
    ]
    for window in found:
        require(
            sum(position.net_fen for position in window.positions) == 0,
            f"window {window.window.settlement_date}: its positions do not sum to zero",
        )
    return found


if __name__ == "__main__":
    audited = audit(Path(sys.argv[1]))
    print(f"{audited.records:,} records, {audited.accounts:,} accounts: sound")
