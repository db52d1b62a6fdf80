"""One authorisation: its life cycle, how it is kept, what can be done to it within one change, and how it expires.

The journal's time is the only clock: an authorisation whose time is over counts as expired from that very microsecond, whenever
`expire_due` gets to it."""

import itertools
import weakref
from collections.abc import Sequence
from enum import Enum, IntEnum, auto
from typing import Final, NamedTuple

from yikatong.core import limits
from yikatong.core.acquiring import purses
from yikatong.core.acquiring.merchants import account_name
from yikatong.core.acquiring.paying import Part
from yikatong.core.acquiring.spending import Counters
from yikatong.core.change import Change
from yikatong.core.memory import Memory
from yikatong.core.rules.purse_rules import BANK
from yikatong.core.types import DocumentKind, PostingKind, RecordKind, Result, wire
from yikatong.v1 import authorization_service_pb2 as pb
from yikatong.v1 import journal_pb2

Authorization = pb.Authorization
S_US: Final = 1_000_000


# ---- the life cycle ----


class State(IntEnum):
    """Where an authorisation stands (AuthorizationState of the proto)."""

    HELD = 1
    PARTIALLY_CAPTURED = 2
    CAPTURED = 3
    VOIDED = 4
    EXPIRED = 5
    DECLINED = 6
    REVERSED = 7


class Event(Enum):
    """What can come to it."""

    INCREMENT = auto()
    CAPTURE = auto()  # a part, and more may follow
    CAPTURE_FINAL = auto()  # all that is on hold, or a last part
    VOID = auto()
    EXPIRE = auto()
    REFUND = auto()
    REVERSE = auto()  # of the Authorize itself
    REVERSE_INCREMENT = auto()
    REVERSE_CAPTURE = auto()  # other captures remain
    REVERSE_LAST_CAPTURE = auto()  # nothing is captured any more
    REVERSE_REFUND = auto()


_EVENTS: Final = tuple(Event)
_NOT_HELD, _OVER, _GONE, _NO_WAY, _NO_MONEY = (
    Result.AUTHORIZATION_NOT_HELD,
    Result.AUTHORIZATION_EXPIRED,
    Result.REVERSED,
    Result.NOT_REVERSIBLE,
    Result.REFUND_ABOVE_CAPTURE,
)
_H, _P, _C, _V, _E, _D, _R = State

# One row for each state, one column for each event: the state after it, or why it is refused.
_TABLE: Final[dict[State, tuple[State | Result, ...]]] = {
    #    INCREMENT  CAPTURE    C._FINAL   VOID       EXPIRE     REFUND     REVERSE   R._INCREM. R._CAPTURE R._LAST_C. R._REFUND
    _H: (_H,        _P,        _C,        _V,        _E,        _NO_MONEY, _R,       _H,        _NO_WAY,   _NO_WAY,   _NO_WAY),
    _P: (_P,        _P,        _C,        _C,        _E,        _P,        _NO_WAY,  _P,        _P,        _H,        _P),
    _C: (_NOT_HELD, _NOT_HELD, _NOT_HELD, _NOT_HELD, _NOT_HELD, _C,        _NO_WAY,  _NO_WAY,   _P,        _H,        _C),
    _V: (_NOT_HELD, _NOT_HELD, _NOT_HELD, _NOT_HELD, _NOT_HELD, _NO_MONEY, _V,       _V,        _NO_WAY,   _NO_WAY,   _NO_WAY),
    _E: (_OVER,     _OVER,     _OVER,     _OVER,     _OVER,     _E,        _E,       _E,        _E,        _E,        _E),
    _D: (_NOT_HELD, _NOT_HELD, _NOT_HELD, _NOT_HELD, _NOT_HELD, _NO_MONEY, _D,       _NO_WAY,   _NO_WAY,   _NO_WAY,   _NO_WAY),
    _R: (_GONE,     _GONE,     _GONE,     _GONE,     _GONE,     _GONE,     _R,       _R,        _NO_WAY,   _NO_WAY,   _NO_WAY),
}  # fmt: skip

TRANSITIONS: Final[dict[tuple[State, Event], State | Result]] = {
    (state, event): outcome for state, row in _TABLE.items() for event, outcome in zip(_EVENTS, row, strict=True)
}
OPEN: Final = (State.HELD, State.PARTIALLY_CAPTURED)
"""The states in which something is on hold."""


def is_open(authorization: Authorization) -> bool:
    """Whether something is on hold."""
    return State(authorization.state) in OPEN


# ---- documents ----
#
# AUTHORIZATION          id (8)                        → Authorization
# AUTHORIZATION_REQUEST  request id (16)               → id (8), number of the operation from 1 on or 0 (4), acquirer id
# AUTHORIZATION_REVERSAL request id (16), acquirer id  → 1: if that request comes (again), it is answered REVERSED
# AUTHORIZATION_LIST     list, 2⁶⁴ − 1 − id (8)        → nothing; newest first
# AUTHORIZATION_EXPIRY   time in µs (8), id (8)        → nothing; those with something on hold

LAST_ID: Final = (1 << 64) - 1


class Asked(NamedTuple):
    """What an earlier request did."""

    authorization_id: int  # 0: nothing was kept
    operation: int  # its place in `operations`, from 1 on; 0: it was declined
    acquirer_id: str


def id_key(authorization_id: int) -> bytes:
    return authorization_id.to_bytes(8, "big")


def load(memory: Memory, authorization_id: int) -> Authorization | None:
    """An authorisation as it was last written: one whose time is over may still show its hold."""
    value = memory.documents.get(DocumentKind.AUTHORIZATION, id_key(authorization_id))
    return None if value is None else Authorization.FromString(value)


def asked_before(memory: Memory, request_id: bytes) -> Asked | None:
    value = memory.documents.get(DocumentKind.AUTHORIZATION_REQUEST, request_id)
    if value is None:
        return None
    return Asked(int.from_bytes(value[:8], "big"), int.from_bytes(value[8:12], "big"), value[12:].decode())


def keep_asked(change: Change, request_id: bytes, asked: Asked) -> None:
    value = id_key(asked.authorization_id) + asked.operation.to_bytes(4, "big") + asked.acquirer_id.encode()
    change.put(DocumentKind.AUTHORIZATION_REQUEST, request_id, value)


def list_of_card(card: int) -> bytes:
    return b"c" + card.to_bytes(4, "big")


def list_of_acquirer(acquirer_id: str) -> bytes:
    return b"a" + acquirer_id.encode() + b":"


def list_of_merchant(acquirer_id: str, merchant_id: str) -> bytes:
    return b"m" + f"{acquirer_id}:{merchant_id}:".encode()


def _expiry_key(authorization: Authorization) -> bytes:
    return authorization.expires_time_us.to_bytes(8, "big") + id_key(authorization.authorization_id)


# ---- one authorisation, worked on in one change ----


class Work:
    """What one change does to an authorisation: its legs, the ledger behind them, the limits it uses. `put` hands all of it to
    the change, which the caller commits."""

    def __init__(self, memory: Memory, change: Change, authorization: Authorization, time_us: int, counters: Counters) -> None:
        self.memory = memory
        self.change = change
        self.authorization = authorization
        self.time_us = time_us
        self.counters = counters
        self.card = int(memory.engine.find_card(authorization.card_number))
        self._expiry_before = _expiry_key(authorization) if is_open(authorization) else b""
        self._general = purses.general_account(memory, self.card)
        self._available_fen = purses.available_fen(memory, self._general)

    @property
    def state(self) -> State:
        return State(self.authorization.state)

    @property
    def available_after_fen(self) -> int:
        """Available on the general purse, after the change."""
        return self._available_fen

    def go(self, event: Event) -> None:
        outcome = TRANSITIONS[self.state, event]
        assert isinstance(outcome, State)
        self.authorization.state = wire(outcome)

    def legs(self, amounts: Sequence[int]) -> list[pb.Leg]:
        """Amounts in the order of the authorisation's legs, without those of nothing."""
        own = self.authorization.legs
        return [pb.Leg(purse=leg.purse, amount_fen=fen) for leg, fen in zip(own, amounts, strict=True) if fen]

    # ---- the ledger ----

    def _account(self, purse: str) -> int:
        if purse.startswith(purses.BANK_PREFIX):
            return self.change.open_account(purse)
        account = purses.account_of(self.memory, self.card, self.authorization.card_number, purse)
        assert account is not None
        return account

    def _merchant(self) -> int:
        account = self.memory.account(account_name(self.authorization.acquirer_id, self.authorization.merchant_id))
        assert account is not None
        return account

    def _hold(self, leg: pb.AuthorizationLeg, amount_fen: int) -> None:
        account = self._account(leg.purse)
        self.change.hold(account, amount_fen, self.card)
        leg.held_fen += amount_fen
        self._count_available(account, -amount_fen)

    def _move(self, debit: int, credit: int, amount_fen: int, why: PostingKind) -> None:
        self.change.move(debit, credit, amount_fen, why, self.card)
        self._count_available(debit, -amount_fen)
        self._count_available(credit, amount_fen)

    def _count_available(self, account: int, amount_fen: int) -> None:
        if account == self._general:
            self._available_fen += amount_fen

    def _closed_funder(self, purse_id: str) -> int | None:
        """Where the rest of a purse went that is closed."""
        return purses.closed_funder(self.memory, self.card, purse_id)

    def closed_leg(self, amounts: Sequence[int]) -> bool:
        """Whether a purse with a part in these amounts is closed by now."""
        own = self.authorization.legs
        return any(fen and self._closed_funder(leg.purse) is not None for leg, fen in zip(own, amounts, strict=True))

    # ---- what events do ----

    def hold(self, parts: Sequence[Part], uses: Sequence[pb.LimitUse]) -> None:
        """Hold more: parts join the legs of their purses, or come behind them."""
        for part in parts:
            leg = next((leg for leg in self.authorization.legs if leg.purse == part.purse), None)
            if leg is None:
                leg = self.authorization.legs.add(purse=part.purse, purse_kind=part.kind)
            leg.authorized_fen += part.amount_fen
            self._hold(leg, part.amount_fen)
        for use in uses:
            known = next(
                (
                    known
                    for known in self.authorization.limit_uses
                    if (known.limit_id, known.period, known.purse_kind) == (use.limit_id, use.period, use.purse_kind)
                ),
                None,
            )
            if known is None:
                self.authorization.limit_uses.append(use)
            else:
                known.amount_fen += use.amount_fen
            self.counters.use(self.card, use)

    def let_go(self, amounts: Sequence[int]) -> None:
        """Release so much of each leg's hold, and give back what it used of the limits."""
        for leg, amount_fen in zip(self.authorization.legs, amounts, strict=True):
            if amount_fen:
                self._hold(leg, -amount_fen)
        self._give_back(amounts)

    def _give_back(self, amounts: Sequence[int]) -> None:
        """Newest uses first: an increment of today is let go before the authorisation of yesterday."""
        own = self.authorization.legs
        left: dict[tuple[str, str], int] = {}
        for use in reversed(self.authorization.limit_uses):
            scope = (use.limit_id, use.purse_kind)
            if scope not in left:
                concerned = zip(own, amounts, strict=True)
                left[scope] = sum(fen for leg, fen in concerned if use.purse_kind in ("", leg.purse_kind))
            given_fen = min(left[scope], use.amount_fen)
            left[scope] -= given_fen
            use.amount_fen -= given_fen
            self.counters.give_back(self.card, use.limit_id, use.period, given_fen)
        kept = [use for use in self.authorization.limit_uses if use.amount_fen]
        del self.authorization.limit_uses[:]
        self.authorization.limit_uses.extend(kept)

    def capture(self, amounts: Sequence[int]) -> None:
        merchant = self._merchant()
        for leg, amount_fen in zip(self.authorization.legs, amounts, strict=True):
            if amount_fen:
                self._hold(leg, -amount_fen)
                self._move(self._account(leg.purse), merchant, amount_fen, PostingKind.CAPTURE)
                leg.captured_fen += amount_fen

    def uncapture(self, amounts: Sequence[int]) -> None:
        """Money goes back and on hold again, which it can: it has only just come."""
        merchant = self._merchant()
        for leg, amount_fen in zip(self.authorization.legs, amounts, strict=True):
            if amount_fen:
                self._move(merchant, self._account(leg.purse), amount_fen, PostingKind.CAPTURE_REVERSAL)
                self._hold(leg, amount_fen)
                leg.captured_fen -= amount_fen

    def refund(self, amounts: Sequence[int]) -> None:
        """Refunds of a purse that is closed go where its rest went."""
        merchant = self._merchant()
        for leg, amount_fen in zip(self.authorization.legs, amounts, strict=True):
            if amount_fen:
                account = self._closed_funder(leg.purse) or self._account(leg.purse)
                self._move(merchant, account, amount_fen, PostingKind.REFUND)
                leg.refunded_fen += amount_fen

    def unrefund(self, amounts: Sequence[int]) -> Result | None:
        """Take back what was refunded, or say why not; then nothing was done."""
        taken: list[tuple[pb.AuthorizationLeg, int, int]] = []
        for leg, amount_fen in zip(self.authorization.legs, amounts, strict=True):
            if amount_fen:
                funder = self._closed_funder(leg.purse)
                account = self._account(leg.purse) if funder is None else funder
                unbounded = funder is not None or leg.purse_kind == BANK
                if not unbounded and purses.available_fen(self.memory, account) < amount_fen:
                    return Result.INSUFFICIENT_FUNDS
                taken.append((leg, account, amount_fen))
        merchant = self._merchant()
        for leg, account, amount_fen in taken:
            self._move(account, merchant, amount_fen, PostingKind.REFUND_REVERSAL)
            leg.refunded_fen -= amount_fen
        return None

    def record(self, kind: pb.AuthorizationOperationKind, request_id: bytes, legs: Sequence[pb.Leg]) -> int:
        """Note an operation; returns its number, from 1 on."""
        self.authorization.operations.add(
            kind=kind,
            request_id=request_id,
            amount_fen=sum(leg.amount_fen for leg in legs),
            legs=legs,
            journal_time_us=self.time_us,
            sequence=self.change.sequence,
        )
        return len(self.authorization.operations)

    def put(self) -> None:
        own = self.authorization
        if own.legs:
            own.authorized_fen = sum(leg.authorized_fen for leg in own.legs)
        own.held_fen = sum(leg.held_fen for leg in own.legs)
        own.captured_fen = sum(leg.captured_fen for leg in own.legs)
        own.refunded_fen = sum(leg.refunded_fen for leg in own.legs)
        expiry = _expiry_key(own) if is_open(own) else b""
        if self._expiry_before and self._expiry_before != expiry:
            self.change.delete(DocumentKind.AUTHORIZATION_EXPIRY, self._expiry_before)
        if expiry and self._expiry_before != expiry:
            self.change.put(DocumentKind.AUTHORIZATION_EXPIRY, expiry, b"")
        value = own.SerializeToString(deterministic=True)
        self.change.put(DocumentKind.AUTHORIZATION, id_key(own.authorization_id), value)


def held_by_leg(authorization: Authorization) -> list[int]:
    return [leg.held_fen for leg in authorization.legs]


# ---- expiry ----


def is_over(authorization: Authorization, time_us: int) -> bool:
    """Whether something is on hold past its time."""
    return is_open(authorization) and authorization.expires_time_us <= time_us


def expire_due(memory: Memory, time_us: int) -> int:
    """Let go what is on hold past its time, at most EXPIRIES_MAX of it; returns how many authorisations. To be run before each
    command and once a second."""
    start = _SWEPT.get(memory, 0)
    scan = memory.documents.scan(DocumentKind.AUTHORIZATION_EXPIRY, start.to_bytes(8, "big"), (time_us + 1).to_bytes(8, "big"))
    due = [
        (int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")) for key, _ in itertools.islice(scan, limits.EXPIRIES_MAX)
    ]
    expire(memory, [authorization_id for _, authorization_id in due], time_us)
    _SWEPT[memory] = due[-1][0] if len(due) == limits.EXPIRIES_MAX else time_us + 1
    return len(due)


_SWEPT: Final[weakref.WeakKeyDictionary[Memory, int]] = weakref.WeakKeyDictionary()
"""Time before which nothing is left to expire, by memory: nothing is ever held until a time that is over. It spares looking
again through what was expired since the last checkpoint; a memory that was restored begins at 0."""


def expire(memory: Memory, due: Sequence[int], time_us: int) -> None:
    if not due:
        return
    change = Change(memory, time_us)
    counters = Counters(memory)
    for authorization_id in due:
        authorization = load(memory, authorization_id)
        assert authorization is not None
        work = Work(memory, change, authorization, time_us, counters)
        expire_now(work)
        work.put()
    counters.put(change)
    change.commit("authorizations-expired")


def expire_now(work: Work) -> None:
    amounts = held_by_leg(work.authorization)
    work.let_go(amounts)
    work.go(Event.EXPIRE)
    work.record(pb.AUTHORIZATION_OPERATION_KIND_EXPIRE, b"", work.legs(amounts))


# ---- disputes of captures ----


def captured_leg(memory: Memory, sequence: int) -> tuple[Authorization, pb.AuthorizationLeg]:
    """The authorisation that a capture's posting (its sequence, durable) is of, as it stands now, and the leg that paid."""
    with memory.journal.read() as reader:
        found = reader.record(sequence)
        assert found is not None
        entry, at = found[0], sequence - found[0].first_sequence
        account = int(entry.array[at]["debit_account"])
        while entry.array[at]["kind"] != RecordKind.EVENT:  # a change lies in one value of the journal
            at -= 1
        event = journal_pb2.Event.FromString(entry.payload(int(entry.array[at]["payload_place"])))
    key = next(document.key for document in event.documents if document.kind == DocumentKind.AUTHORIZATION)
    authorization = load(memory, int.from_bytes(key, "big"))
    assert authorization is not None
    card, number = int(memory.engine.find_card(authorization.card_number)), authorization.card_number
    leg = next(leg for leg in authorization.legs if purses.account_of(memory, card, number, leg.purse) == account)
    return authorization, leg


def give_back(change: Change, authorization: Authorization, leg: pb.AuthorizationLeg, amount_fen: int) -> None:
    """Count what a dispute gives back as refunded, so that no refund or reversal gives it back once more."""
    leg.refunded_fen += amount_fen
    authorization.refunded_fen += amount_fen
    change.put(
        DocumentKind.AUTHORIZATION, id_key(authorization.authorization_id), authorization.SerializeToString(deterministic=True)
    )
