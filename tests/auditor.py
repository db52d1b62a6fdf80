"""An auditor of a data directory: it shares no code with the engine. It reads journal.mdb with its own eyes (the format as
core/journal.py and ext/types.h describe it), keeps its own books, and says what does not add up.

Of each record: the chain of digests, numbers and days in order, accounts opened in order, the balances that it states, links
between the records of one event, each card's list. Of money: no counter pays twice, no restricted purse pays what it has not, a
capture takes what was held and a refund what was captured, a dispute gives back what was charged at most, two people agree to
an adjustment, and the bank's word moves money once for each instruction. Of each window that is cleared: its positions sum to
zero and are what its records moved, by participant.

Run it by hand: python tests/auditor.py DATA"""

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import lmdb

from yikatong.v1 import (
    authorization_service_pb2,
    clearing_service_pb2,
    exception_service_pb2,
    journal_pb2,
    merchant_service_pb2,
    reconciliation_service_pb2,
)

# magic, version, header bytes, first sequence, count, payload bytes, time in µs, SM3 of the header before, SHA-256 of the body
HEADER = Struct("<8sHHxxxxQIIq32s32s24x")
RECORD = Struct("<QqQqqqIIIIIIIIIII4sIIIHBBBBBBBBBBHBBHBB")
assert HEADER.size == RECORD.size == 128
NONE = 0xFFFFFFFF
TAP, TOP_UP, CARD, TERMINAL, OPERATOR, ACCOUNT, POSTING, HOLD, EVENT, DENY_LIST, ENTITLEMENT, RIDES = range(1, 13)
OPENS = (CARD, OPERATOR, ACCOUNT)
STEPS = (ACCOUNT, POSTING, HOLD, DENY_LIST, ENTITLEMENT, RIDES)  # records that an event makes, and only an event
STORED, COUNTED, LINKED = 1, 16, 64
ACCEPTED, DEBT_BOOKED, GREY, TORN = 1, 2, 4, 5

# Why a posting moved money.
CAPTURE, REFUND, CAPTURE_REVERSAL, REFUND_REVERSAL, PURSE_FUNDING, PURSE_RETURN = range(10, 16)
CORRECTION = 20
FEE, SUBSIDY, SPLIT, INTER_CITY, LIABILITY, HELD, GREY_PROVED = range(31, 38)
ADJUSTMENT, DISPUTE, PAYMENT, PAYMENT_RETURN = range(40, 44)
OF_PAYMENTS = (CAPTURE, REFUND, CAPTURE_REVERSAL, REFUND_REVERSAL)
OF_CLEARING = (FEE, SUBSIDY, SPLIT, INTER_CITY, LIABILITY, HELD, GREY_PROVED)
OF_THE_BANK = (PAYMENT, PAYMENT_RETURN)
OF_WINDOWS = (*OF_PAYMENTS, PURSE_FUNDING, PURSE_RETURN, CORRECTION, ADJUSTMENT, DISPUTE)
"""Postings that belong to the window in which they stand; those of clearing belong to the window that was cleared, and the bank's
carry out what positions came to."""

# Documents, by kind.
AUTHORIZATIONS, MERCHANTS, WINDOWS, GREYS, INSTRUCTIONS, ADJUSTMENTS, DISPUTES = 10, 15, 30, 31, 40, 43, 44
ISSUED, PAID, RETURNED, UNKNOWN, REISSUED = range(1, 6)  # instructions
OPEN, CLOSED, CLEARED, SETTLED, ABORTED = range(1, 6)  # windows
MAY_FOLLOW = {
    OPEN: (CLOSED,),
    CLOSED: (CLEARED,),
    CLEARED: (CLEARED, SETTLED, ABORTED),
    SETTLED: (SETTLED, ABORTED),
    ABORTED: (CLEARED,),
}
BANK = "bank:settlement"
FLOAT, FEES = "float", "fees"


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
    fare_flags: int


class Unsound(AssertionError):
    """What the auditor found."""


def require(holds: bool, text: str) -> None:
    if not holds:
        raise Unsound(text)


def day_of(day: int) -> int:
    """Days since 1970-01-01 as a date YYYYMMDD."""
    return int(f"{date(1970, 1, 1) + timedelta(day):%Y%m%d}")


def sm3(data: bytes) -> bytes:
    if "sm3" in hashlib.algorithms_available:
        return hashlib.new("sm3", data).digest()
    from cryptography.hazmat.primitives import hashes

    digest = hashes.Hash(hashes.SM3())
    digest.update(data)
    return digest.finalize()


@dataclass
class Payment:
    """What the postings of one authorisation come to."""

    held_fen: int = 0
    captured_fen: int = 0
    refunded_fen: int = 0


@dataclass
class Happening:
    """An event and the records that stand or fall with it."""

    sequence: int
    name: str
    documents: dict[tuple[int, bytes], bytes | None]  # None: deleted
    steps: list[Record] = field(default_factory=list)

    def of_kind(self, kind: int) -> dict[bytes, bytes | None]:
        return {key: value for (its_kind, key), value in self.documents.items() if its_kind == kind}

    def postings(self, *why: int) -> list[Record]:
        return [step for step in self.steps if step.kind == POSTING and step.transaction_type in why]


@dataclass
class Books:
    """What the journal comes to. Accounts by number; `names` of operators ("operator:…") and of named accounts."""

    balances: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    held: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    names: dict[int, str] = field(default_factory=dict)
    purses: dict[int, int] = field(default_factory=dict)  # card slot → account
    chips: dict[int, int] = field(default_factory=dict)  # card slot → account of the money on its chip
    documents: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    records: int = 0
    accounts: int = 1
    # Per settlement day: what each account gained by records that belong to that day's window; and its first and last record.
    moved: defaultdict[int, defaultdict[int, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    closed_day: int = -1  # no record after this belongs to it or to a day before
    taps: dict[tuple[int, int], int] = field(default_factory=dict)  # (card, ATC) used up → sequence
    tap_at: dict[int, tuple[int, int, int, int, int]] = field(
        default_factory=dict
    )  # by sequence: card, ATC, terminal sequence, result, fen
    charged: dict[tuple[int, int], int] = field(default_factory=dict)  # of a tap, with what corrected it since
    charges: dict[int, tuple[int, int, bool]] = field(default_factory=dict)  # sequence → amount, who paid, is it a capture?
    unproved: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # grey and torn taps: card, ATC, amount
    settled_greys: set[tuple[int, int]] = field(default_factory=set)
    last_of_card: dict[int, int] = field(default_factory=dict)
    twins: dict[int, int] = field(default_factory=dict)  # card ↔ e-card
    denied: dict[int, int] = field(default_factory=dict)  # card → why it is on the deny list
    payments: defaultdict[bytes, Payment] = field(default_factory=lambda: defaultdict(Payment))
    instructions: defaultdict[int, set[bytes]] = field(default_factory=lambda: defaultdict(set))  # settlement date → ids
    disputed: set[int] = field(default_factory=set)
    windows_cleared: int = 0
    kinds: Counter[int] = field(default_factory=Counter)  # of postings

    def balance_of(self, name: str) -> int:
        return sum(balance for account, balance in self.balances.items() if self.names.get(account) == name)


def records_of(path: Path, after: int = 0, chain: bytes = bytes(32)) -> Iterator[tuple[list[Record], bytes, bytes]]:
    """Each group commit behind a sequence: its records, the bytes of its payloads, and the digest of its header. `chain` is the
    digest of the header before."""
    environment = lmdb.open(str(path / "journal.mdb"), subdir=False, readonly=True, lock=False, max_dbs=4)
    try:
        groups = environment.open_db(b"groups", create=False)
        with environment.begin() as transaction, transaction.cursor(db=groups) as cursor:
            if not cursor.set_range((after + 1).to_bytes(8, "big")):
                return
            for key, value in cursor:
                header, body = value[: HEADER.size], value[HEADER.size :]
                magic, version, header_bytes, first, count, payload_bytes, _, previous, digest = HEADER.unpack(header)
                require(magic == b"YKTJRNL\n" and version <= 5, f"sequence {first}: not a journal value")
                require(int.from_bytes(key, "big") == first, f"sequence {first}: under another key")
                require(header_bytes == HEADER.size, f"sequence {first}: a header of {header_bytes} bytes")
                require(len(body) == count * RECORD.size + payload_bytes, f"sequence {first}: a wrong length")
                require(previous == chain, f"sequence {first}: does not follow on the value before it")
                require(digest == hashlib.sha256(body).digest(), f"sequence {first}: its digest is another")
                chain = sm3(header)
                records = [Record(*RECORD.unpack_from(body, i * RECORD.size)) for i in range(count)]
                for i, record in enumerate(records if version >= 4 else ()):
                    if record.kind == EVENT:
                        vouched = body[i * RECORD.size + 68 :][:32]
                        require(sm3(payload_of(record, body[count * 128 :])) == vouched, f"sequence {first + i}: another event")
                yield records, body[count * 128 :], chain
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


class Auditor:
    """Reads a journal from where it last stopped. `parties` names who is settled with for an account that is another's: cities of
    their own clearing, for the operators that stand for them."""

    def __init__(self, path: Path, parties: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.books = Books()
        self._parties = dict(parties or {})
        self._chain = bytes(32)

    def read_on(self) -> Books:
        """Raises Unsound for the first thing that does not add up. The data directory must not be open in this process."""
        for records, payloads, chain in records_of(self.path, self.books.records, self._chain):
            happening: Happening | None = None
            for record in records:
                happening = self._take(record, payloads, happening)
            require(happening is None, f"record {records[-1].sequence} is linked to another commit")
            self._chain = chain
        self._sums()
        return self.books

    def _sums(self) -> None:
        books = self.books
        require(sum(books.balances.values()) == 0, "the accounts do not sum to zero")
        on_hold = sum(payment.held_fen for payment in books.payments.values())
        require(on_hold == sum(books.held.values()), "what authorisations hold is not what accounts have on hold")

    # ---- one record ----

    def _take(self, record: Record, payloads: bytes, happening: Happening | None) -> Happening | None:
        """Books a record; returns the event that the next one belongs to."""
        books, where = self.books, f"record {record.sequence}"
        books.records += 1
        require(record.sequence == books.records, f"{where} comes as number {books.records}")
        day = record.settlement_day
        require(day >= max(books.ranges, default=0), f"{where}: its settlement day goes back")
        require(day > books.closed_day, f"{where} comes into a window that was closed")
        books.ranges[day] = (books.ranges.get(day, (record.sequence,))[0], record.sequence)
        require((happening is None) == (record.kind not in STEPS), f"{where}: a link to its event is missing, or one too many")
        if record.card != NONE and record.kind != RIDES:
            require(record.card_previous == books.last_of_card.get(record.card, 0), f"{where}: its card's list is broken")
            books.last_of_card[record.card] = record.sequence
            books.denied[record.card] = record.deny_reasons
            if record.card in books.twins:
                books.denied[books.twins[record.card]] = record.deny_reasons
        if record.kind == EVENT:
            event = journal_pb2.Event.FromString(payload_of(record, payloads))
            documents = {(each.kind, each.key): None if each.deleted else each.value for each in event.documents}
            happening = Happening(record.sequence, event.name, documents)
            books.closed_day = max(books.closed_day, event.closed_settlement_day or -1)
        elif record.kind in OPENS:
            self._open(record, payloads, where)
        elif record.kind == HOLD:
            self._hold(record, where)
        elif record.kind == TAP:
            self._tap(record, where)
        elif record.kind == TOP_UP:
            self._move(record, where)
        elif record.kind == POSTING:
            self._post(record, where)
        else:
            require(record.kind in (TERMINAL, DENY_LIST, ENTITLEMENT, RIDES), f"{where}: kind {record.kind}")
        if happening is None:
            require(not record.flags & LINKED, f"{where}: is linked to what follows")
            return None
        if record.kind != EVENT:
            happening.steps.append(record)
        if record.flags & LINKED:
            return happening
        self._happened(happening)
        return None

    def _open(self, record: Record, payloads: bytes, where: str) -> None:
        books = self.books
        account = record.debit_account if record.kind == CARD else record.credit_account
        if record.kind == CARD and record.terminal_sequence:  # an e-card: its card's account
            require(account == books.purses[record.terminal_sequence - 1], f"{where}: another account than its card's")
            require(record.terminal_sequence - 1 not in books.twins, f"{where}: a second e-card")
            books.purses[record.card] = account
            books.twins[record.card], books.twins[record.terminal_sequence - 1] = record.terminal_sequence - 1, record.card
            return
        require(account == books.accounts, f"{where}: opens account {account}, {books.accounts} is next")
        books.accounts += 1
        if record.kind == CARD:
            books.purses[record.card] = account
        else:
            prefix = "operator:" if record.kind == OPERATOR else ""
            books.names[account] = prefix + payload_of(record, payloads).decode()
        if record.kind == ACCOUNT and record.card != NONE:
            books.chips[record.card] = account

    def _hold(self, record: Record, where: str) -> None:
        books, account = self.books, record.debit_account
        books.held[account] += record.amount_fen
        require(books.held[account] == record.credit_after_fen, f"{where}: states another sum of holds")
        require(record.credit_after_fen >= 0, f"{where}: less than nothing is held")
        if record.amount_fen > 0:
            self._restricted(account, where)

    def _restricted(self, account: int, where: str) -> None:
        books = self.books
        if books.names.get(account, "").startswith("purse:"):
            require(books.balances[account] >= books.held[account], f"{where}: a restricted purse paid what it did not have")

    def _tap(self, record: Record, where: str) -> None:
        books = self.books
        if record.flags & COUNTED:
            counter = record.card, record.atc
            require(counter not in books.taps, f"{where}: a card's counter was used up before")
            books.taps[counter] = record.sequence
        amount_fen = record.amount_fen if record.credit_account != NONE else 0
        books.tap_at[record.sequence] = record.card, record.atc, record.terminal_sequence, record.result, amount_fen
        charged = record.result in (ACCEPTED, DEBT_BOOKED)
        require(charged == (record.credit_account != NONE), f"{where}: money and result do not agree")
        if record.result in (GREY, TORN) and record.card != NONE:
            books.unproved[record.sequence] = record.card, record.atc, record.tap_amount_fen
        if not charged:
            return
        require(bool(record.flags & COUNTED), f"{where}: a tap that its card did not prove is charged")
        payers = books.chips if record.profile == 1 and record.card in books.chips else books.purses
        require(record.debit_account == payers[record.card], f"{where}: another purse than the card's pays")
        self._move(record, where)
        if record.result == ACCEPTED and not record.flags & STORED and record.amount_fen:
            purse = record.debit_account
            require(books.balances[purse] >= books.held[purse], f"{where}: an online tap beyond what was available")
        books.charged[record.card, record.atc] = record.amount_fen
        books.charges[record.sequence] = record.amount_fen, record.debit_account, False

    def _post(self, record: Record, where: str) -> None:
        books = self.books
        books.kinds[record.transaction_type] += 1
        self._move(record, where)
        if record.transaction_type == CORRECTION:
            tap, taken = (record.card, record.atc), record.debit_account == books.purses[record.card]
            require(tap in books.charged, f"{where}: corrects a tap that was not charged")
            books.charged[tap] += record.amount_fen if taken else -record.amount_fen
            require(books.charged[tap] >= 0, f"{where}: gives back more than the tap was charged")
        if record.transaction_type in (CAPTURE, CORRECTION):
            capture = record.transaction_type == CAPTURE
            books.charges[record.sequence] = record.amount_fen, record.debit_account, capture

    def _move(self, record: Record, where: str) -> None:
        books = self.books
        debit, credit = record.debit_account, record.credit_account
        require(debit != credit and max(debit, credit) < books.accounts, f"{where}: from {debit} to {credit}")
        require(record.amount_fen >= 0, f"{where}: a negative amount")
        books.balances[debit] -= record.amount_fen
        books.balances[credit] += record.amount_fen
        require(books.balances[debit] == record.debit_after_fen, f"{where}: states another balance of the debit side")
        require(books.balances[credit] == record.credit_after_fen, f"{where}: states another balance of the credit side")
        self._restricted(debit, where)
        if record.kind != POSTING or record.transaction_type in OF_WINDOWS:
            for account, amount in ((debit, -record.amount_fen), (credit, record.amount_fen)):
                books.moved[record.settlement_day][account] += amount

    # ---- one event, with all that belongs to it ----

    def _happened(self, event: Happening) -> None:
        self._payments(event)
        self._bank(event)
        self._disputes(event)
        self._adjustments(event)
        self._windows(event)
        for key, value in event.documents.items():
            if value is None:
                self.books.documents.pop(key, None)
            else:
                self.books.documents[key] = value

    def _payments(self, event: Happening) -> None:
        """Holds and captures are some authorisation's, which says the same of itself as its records do."""
        where = f"event {event.sequence}"
        told = {
            key: authorization_service_pb2.Authorization.FromString(value)
            for key, value in event.of_kind(AUTHORIZATIONS).items()
            if value is not None
        }
        moves = event.postings(*OF_PAYMENTS)
        held_fen = sum(step.amount_fen for step in event.steps if step.kind == HOLD)
        if len(told) == 1:
            (key,) = told
            payment = self.books.payments[key]
            sums = {why: sum(move.amount_fen for move in moves if move.transaction_type == why) for why in OF_PAYMENTS}
            require(sums[CAPTURE] <= payment.held_fen, f"{where}: captures more than was held")
            payment.held_fen += held_fen
            payment.captured_fen += sums[CAPTURE] - sums[CAPTURE_REVERSAL]
            disputed_fen = sum(move.amount_fen for move in event.postings(DISPUTE))  # is given back like a refund
            payment.refunded_fen += sums[REFUND] - sums[REFUND_REVERSAL] + disputed_fen
            require(0 <= payment.refunded_fen <= payment.captured_fen, f"{where}: refunds more than was captured")
        else:  # several whose time is over, or nothing of the kind
            require(not moves, f"{where}: {len(moves)} captures or refunds, of no one authorisation")
            released_fen = sum(self.books.payments[key].held_fen for key in told)
            require(held_fen == -released_fen, f"{where}: what is let go is not what was held")
            for key in told:
                self.books.payments[key].held_fen = 0
        for key, authorization in told.items():
            own = self.books.payments[key]
            stated = Payment(authorization.held_fen, authorization.captured_fen, authorization.refunded_fen)
            require(stated == own, f"{where}: an authorisation states {stated}, its records come to {own}")

    def _bank(self, event: Happening) -> None:
        """Money moves with an instruction that becomes paid, and back with one that was returned; and never else."""
        where = f"event {event.sequence}"
        expected: Counter[tuple[int, str, str, int]] = Counter()
        for key, value in event.of_kind(INSTRUCTIONS).items():
            old = self._kept(reconciliation_service_pb2.Instruction, INSTRUCTIONS, key)
            state = old.state if old is not None else 0
            if value is None:
                require(state == ISSUED, f"{where}: an instruction is forgotten that the bank knows of")
                self.books.instructions[old.settlement_date].discard(key)
                continue
            new = reconciliation_service_pb2.Instruction.FromString(value)
            self.books.instructions[new.settlement_date].add(key)
            if old is None:
                self._issued(event, new, where)
            else:
                same = (old.participant, old.amount_fen) == (new.participant, new.amount_fen)
                require(same, f"{where}: an instruction is changed after it was given")
            if new.state == PAID and state != PAID:
                pair = (new.participant, BANK) if new.amount_fen > 0 else (BANK, new.participant)
                expected[PAYMENT, pair[0], pair[1], abs(new.amount_fen)] += 1
            elif state == PAID and new.state != PAID:
                pair = (BANK, new.participant) if new.amount_fen > 0 else (new.participant, BANK)
                expected[PAYMENT_RETURN, pair[0], pair[1], abs(new.amount_fen)] += 1
        got = Counter(
            (move.transaction_type, self._name(move.debit_account), self._name(move.credit_account), move.amount_fen)
            for move in event.postings(*OF_THE_BANK)
        )
        require(got == expected, f"{where}: the bank's word comes to {dict(expected)}, posted is {dict(got)}")

    def _issued(self, event: Happening, instruction: Any, where: str) -> None:
        """A new instruction is a position of a cleared window, or one that was returned."""
        require(instruction.state == ISSUED, f"{where}: an instruction begins in state {instruction.state}")
        if instruction.attempt:
            before = f"{instruction.instruction_id.rpartition('-')[0]}-{instruction.attempt - 1}".encode()
            value = event.documents.get((INSTRUCTIONS, before))
            require(value is not None, f"{where}: an instruction is given again, and the one before is not put away")
            old = reconciliation_service_pb2.Instruction.FromString(value or b"")
            require((old.state, old.amount_fen) == (REISSUED, instruction.amount_fen), f"{where}: is given again otherwise")
            return
        window = self._kept(clearing_service_pb2.WindowDocument, WINDOWS, instruction.settlement_date.to_bytes(4, "big"))
        require(window is not None and window.window.state == CLEARED, f"{where}: instructions of a window that is not cleared")
        assert window is not None
        nets = {position.participant: position.net_fen for position in window.positions}
        require(nets.get(instruction.participant) == instruction.amount_fen, f"{where}: an instruction is not the position")

    def _disputes(self, event: Happening) -> None:
        where, moves = f"event {event.sequence}", event.postings(DISPUTE)
        decided = [
            dispute
            for value in event.of_kind(DISPUTES).values()
            if value is not None
            for dispute in [exception_service_pb2.Dispute.FromString(value)]
            if dispute.posted_sequence == event.sequence
        ]
        require(len(moves) == len(decided) <= 1, f"{where}: {len(moves)} postings of {len(decided)} disputes")
        for move, dispute in zip(moves, decided, strict=True):
            charge = dispute.journal_sequence
            require(charge in self.books.charges, f"{where}: a dispute of what was no charge")
            require(charge not in self.books.disputed, f"{where}: a charge is given back twice")
            amount_fen, paid_by, is_capture = self.books.charges[charge]
            require(
                is_capture == bool(event.of_kind(AUTHORIZATIONS)), f"{where}: a dispute of which an authorisation knows nothing"
            )
            require(move.amount_fen == dispute.disputed_fen <= amount_fen, f"{where}: a dispute gives back more than the charge")
            closed = self._name(paid_by).startswith("purse:") and self._name(move.credit_account).startswith("funder:")
            require(move.credit_account == paid_by or closed, f"{where}: a dispute gives back to another than who paid")
            self.books.disputed.add(charge)

    def _adjustments(self, event: Happening) -> None:
        where, moves = f"event {event.sequence}", event.postings(ADJUSTMENT)
        legs = []
        for value in event.of_kind(ADJUSTMENTS).values():
            adjustment = exception_service_pb2.Adjustment.FromString(value or b"")
            if adjustment.posted_sequence == event.sequence:
                require(adjustment.decided_by != adjustment.proposed_by, f"{where}: one person alone adjusts")
                legs += [leg.amount_fen for leg in adjustment.legs]
        require([move.amount_fen for move in moves] == legs, f"{where}: what was agreed to is not what was posted")

    # ---- windows ----

    def _windows(self, event: Happening) -> None:
        where, moves = f"event {event.sequence}", event.postings(*OF_CLEARING)
        cleared = False
        for key, value in event.of_kind(WINDOWS).items():
            document = clearing_service_pb2.WindowDocument.FromString(value or b"")
            old = self._kept(clearing_service_pb2.WindowDocument, WINDOWS, key)
            before = old.window.state if old is not None else OPEN
            after = document.window.state
            require(after in MAY_FOLLOW[before], f"{where}: a window goes from state {before} to {after}")
            if (before, after) == (CLOSED, CLEARED):
                cleared = True
                self._cleared(event, document, moves)
            elif old is not None:
                if (before, after) == (CLEARED, SETTLED):
                    self._settled(event, document)
                require(document.positions == old.positions, f"{where}: a cleared window's positions are changed")
        require(cleared or not moves, f"{where}: postings of clearing where no window is cleared")

    def _cleared(self, event: Happening, document: Any, moves: list[Record]) -> None:
        """A window's positions are what its own records moved between participants, whatever they were for, and what the event
        that cleared it has moved to carry out fees, subsidies, splits, other cities' taps, what is kept back, and what grey
        records turned out to be."""
        books, window = self.books, document.window
        where = f"window {window.settlement_date}"
        day = (date(window.settlement_date // 10000, window.settlement_date // 100 % 100, window.settlement_date % 100)
               - date(1970, 1, 1)).days  # fmt: skip
        require(books.closed_day >= day, f"{where}: is cleared while it is open")
        require(books.ranges.get(day) == (window.first_sequence, window.last_sequence), f"{where}: its records are others")
        moved = Counter(books.moved.pop(day, {}))
        for move in moves:
            moved[move.debit_account] -= move.amount_fen
            moved[move.credit_account] += move.amount_fen
        own: Counter[str] = Counter()
        for account, amount_fen in moved.items():
            own[self._participant(account)] += amount_fen
        stated = {position.participant: sum(line.amount_fen for line in position.lines) for position in document.positions}
        require(all(stated[each.participant] == each.net_fen for each in document.positions), f"{where}: lines and nets differ")
        require(sum(stated.values()) == 0, f"{where}: its positions do not sum to zero")
        differences = {name: (stated.get(name, 0), own[name]) for name in {*stated, *own} if stated.get(name, 0) != own[name]}
        require(not differences, f"{where}: its positions are not what moved (stated, moved): {differences}")
        self._greys(event, [move for move in moves if move.transaction_type == GREY_PROVED], where)
        books.windows_cleared += 1

    def _settled(self, event: Happening, document: Any) -> None:
        """A window is settled when the bank has paid all that its positions came to, be it at a later attempt."""
        date, waiting = document.window.settlement_date, set()
        paid = {FLOAT, FEES}  # what stays where it is
        for key in self.books.instructions[date]:
            value = event.documents.get((INSTRUCTIONS, key)) or self.books.documents[INSTRUCTIONS, key]
            instruction = reconciliation_service_pb2.Instruction.FromString(value)
            if instruction.state == PAID:
                paid.add(instruction.participant)
            elif instruction.state != REISSUED:
                waiting.add(instruction.instruction_id)
        require(not waiting, f"window {date}: is settled, and the bank has not paid {waiting}")
        unpaid = {position.participant for position in document.positions if position.net_fen} - paid
        require(not unpaid, f"window {date}: is settled, and nothing was paid for {unpaid}")

    def _greys(self, event: Happening, moves: list[Record], where: str) -> None:
        """A debit that was proved is posted once for its record."""
        expected: Counter[tuple[int, int]] = Counter()
        for key, value in event.of_kind(GREYS).items():
            sequence = int.from_bytes(value or b"", "big")
            require(sequence in self.books.unproved, f"{where}: record {sequence} is no grey one")
            card, atc, amount_fen = self.books.unproved[sequence]
            require(key[4:] == card.to_bytes(4, "big") + atc.to_bytes(2, "big"), f"{where}: a grey record of another card")
            require((card, atc) not in self.books.settled_greys, f"{where}: a grey record is settled twice")
            self.books.settled_greys.add((card, atc))
            expected[self.books.purses[card], amount_fen] += 1
        got = Counter((move.debit_account, move.amount_fen) for move in moves)
        require(got == expected, f"{where}: grey records come to {dict(expected)}, posted is {dict(got)}")

    def _participant(self, account: int) -> str:
        """Who is settled with for an account. Cards' purses, what funds them and what is kept back are the float's."""
        name = self.books.names.get(account, "")
        role, _, rest = name.partition(":")
        if role == "acquirer":
            acquirer, _, merchant = rest.partition(":")
            kept = self._kept(merchant_service_pb2.Merchant, MERCHANTS, f"{acquirer}:{merchant}".encode())
            name = (kept.participant if kept is not None else "") or f"acquirer:{acquirer}"
        elif role not in ("operator", "city", "subsidy") and name != FEES:
            name = FLOAT
        return self._parties.get(name, name)

    def _name(self, account: int) -> str:
        return self.books.names.get(account, f"account {account}")

    def _kept(self, message: Any, kind: int, key: bytes) -> Any:
        value = self.books.documents.get((kind, key))
        return None if value is None else message.FromString(value)


def audit(path: Path, parties: Mapping[str, str] | None = None) -> Books:
    """Raises Unsound for the first thing that does not add up."""
    return Auditor(path, parties).read_on()


def windows_of(books: Books) -> list[Any]:
    """The windows' documents, by date."""
    return [
        clearing_service_pb2.WindowDocument.FromString(value)
        for (kind, _), value in sorted(books.documents.items())
        if kind == WINDOWS
    ]


if __name__ == "__main__":
    audited = audit(Path(sys.argv[1]))
    print(f"{audited.records:,} records, {audited.accounts:,} accounts: sound")
