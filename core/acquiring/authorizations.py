"""Authorisations: money held for a merchant, captured, let go, given back; and each of these undone.

Commands, as core/commands.py describes them; those that need the rules take them first. The journal's time is the only clock: an
authorisation whose time is over counts as expired from that very microsecond, whenever `expire_due` gets to it."""

import itertools
import weakref
import zlib
from collections.abc import Callable, Sequence
from enum import Enum, IntEnum, auto
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.acquiring import purses
from yikatong.core.acquiring.merchants import CATEGORY_WANTED, PARTY_ID_WANTED, account_name, find_merchant, is_party_id
from yikatong.core.acquiring.paying import Part, Refusal, Source, split, split_as_asked, take_in_order, take_in_reverse
from yikatong.core.acquiring.spending import Counters, rooms, uses_of
from yikatong.core.cards import card_state
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory
from yikatong.core.paging import page_size, page_token, parse_page_token
from yikatong.core.rules.purse_rules import BANK, GENERAL, PurseRules, is_category
from yikatong.core.types import NONE, DocumentKind, PostingKind, RecordKind, Result, wire
from yikatong.ext.engine import is_card_number, settlement_date
from yikatong.v1 import authorization_service_pb2 as pb
from yikatong.v1 import journal_pb2

Authorization = pb.Authorization
Response = TypeVar("Response", bound=Message)
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

_LAST_ID: Final = (1 << 64) - 1


class _Asked(NamedTuple):
    """What an earlier request did."""

    authorization_id: int  # 0: nothing was kept
    operation: int  # its place in `operations`, from 1 on; 0: it was declined
    acquirer_id: str


def _id_key(authorization_id: int) -> bytes:
    return authorization_id.to_bytes(8, "big")


def load(memory: Memory, authorization_id: int) -> Authorization | None:
    """An authorisation as it was last written: one whose time is over may still show its hold."""
    value = memory.documents.get(DocumentKind.AUTHORIZATION, _id_key(authorization_id))
    return None if value is None else Authorization.FromString(value)


def _asked(memory: Memory, request_id: bytes) -> _Asked | None:
    value = memory.documents.get(DocumentKind.AUTHORIZATION_REQUEST, request_id)
    if value is None:
        return None
    return _Asked(int.from_bytes(value[:8], "big"), int.from_bytes(value[8:12], "big"), value[12:].decode())


def _keep_asked(change: Change, request_id: bytes, asked: _Asked) -> None:
    value = _id_key(asked.authorization_id) + asked.operation.to_bytes(4, "big") + asked.acquirer_id.encode()
    change.put(DocumentKind.AUTHORIZATION_REQUEST, request_id, value)


def _list_of_card(card: int) -> bytes:
    return b"c" + card.to_bytes(4, "big")


def _list_of_acquirer(acquirer_id: str) -> bytes:
    return b"a" + acquirer_id.encode() + b":"


def _list_of_merchant(acquirer_id: str, merchant_id: str) -> bytes:
    return b"m" + f"{acquirer_id}:{merchant_id}:".encode()


def _expiry_key(authorization: Authorization) -> bytes:
    return authorization.expires_time_us.to_bytes(8, "big") + _id_key(authorization.authorization_id)


# ---- one authorisation, worked on in one change ----


class _Work:
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
        self.change.put(DocumentKind.AUTHORIZATION, _id_key(own.authorization_id), value)


def _held(authorization: Authorization) -> list[int]:
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
    _expire(memory, [authorization_id for _, authorization_id in due], time_us)
    _SWEPT[memory] = due[-1][0] if len(due) == limits.EXPIRIES_MAX else time_us + 1
    return len(due)


_SWEPT: Final[weakref.WeakKeyDictionary[Memory, int]] = weakref.WeakKeyDictionary()
"""Time before which nothing is left to expire, by memory: nothing is ever held until a time that is over. It spares looking
again through what was expired since the last checkpoint; a memory that was restored begins at 0."""


def _expire(memory: Memory, due: Sequence[int], time_us: int) -> None:
    if not due:
        return
    change = Change(memory, time_us)
    counters = Counters(memory)
    for authorization_id in due:
        authorization = load(memory, authorization_id)
        assert authorization is not None
        work = _Work(memory, change, authorization, time_us, counters)
        _expire_now(work)
        work.put()
    counters.put(change)
    change.commit("authorizations-expired")


def _expire_now(work: _Work) -> None:
    amounts = _held(work.authorization)
    work.let_go(amounts)
    work.go(Event.EXPIRE)
    work.record(pb.AUTHORIZATION_OPERATION_KIND_EXPIRE, b"", work.legs(amounts))


def swept(command: Callable[[Memory, Any, int], Response]) -> Callable[[Memory, Any, int], Response]:
    """A command before which is expired what is due."""

    def run(memory: Memory, request: Any, time_us: int) -> Response:
        expire_due(memory, time_us)
        return command(memory, request, time_us)

    return run


# ---- requests ----


class _Malformed(NamedTuple):
    result: Result
    field: str
    reason: str


def _malformed_legs(legs: Sequence[pb.Leg], amount_fen: int) -> _Malformed | None:
    if not 1 <= amount_fen <= limits.AUTHORIZATION_FEN_MAX:
        return _Malformed(Result.MALFORMED_AMOUNT, "amount_fen", f"1 to {limits.AUTHORIZATION_FEN_MAX} is wanted")
    if len(legs) > limits.LEGS_MAX:
        return _Malformed(Result.MALFORMED_AMOUNT, "legs", f"at most {limits.LEGS_MAX} are taken")
    for at, leg in enumerate(legs):
        if not purses.is_payer(leg.purse):
            reason = f'a purse, "{GENERAL}", or "{purses.BANK_PREFIX}" and a bank is wanted'
            return _Malformed(Result.MALFORMED_KIND, f"legs[{at}].purse", reason)
        if any(leg.purse == other.purse for other in legs[:at]):
            return _Malformed(Result.MALFORMED_KIND, f"legs[{at}].purse", "stands there twice")
        if leg.amount_fen < 1:
            return _Malformed(Result.MALFORMED_AMOUNT, f"legs[{at}].amount_fen", "1 fen or more is wanted")
    if legs and sum(leg.amount_fen for leg in legs) != amount_fen:
        return _Malformed(Result.MALFORMED_AMOUNT, "legs", f"they must add up to amount_fen, {amount_fen}")
    return None


def _malformed_authorize(request: pb.AuthorizeRequest) -> _Malformed | None:
    if len(request.request_id) != 16:
        return _Malformed(Result.MALFORMED_REQUEST_ID, "request_id", "16 bytes are wanted")
    for field in ("acquirer_id", "merchant_id"):
        if not is_party_id(getattr(request, field)):
            return _Malformed(Result.MALFORMED_OPERATOR, field, PARTY_ID_WANTED)
    if not is_category(request.merchant_category):
        return _Malformed(Result.MALFORMED_KIND, "merchant_category", CATEGORY_WANTED)
    if not is_card_number(request.card_number):
        return _Malformed(Result.MALFORMED_CARD_NUMBER, "card_number", CARD_NUMBER_WANTED)
    if request.timeout_s > limits.HOLD_S_MAX:
        return _Malformed(Result.MALFORMED_TIME, "timeout_s", f"at most {limits.HOLD_S_MAX} is wanted")
    return _malformed_legs(request.legs, request.amount_fen)


def _check_ids(request: Any) -> None:
    if len(request.request_id) != 16:
        raise InvalidRequest("request_id", "16 bytes are wanted")
    if not is_party_id(request.acquirer_id):
        raise InvalidRequest("acquirer_id", PARTY_ID_WANTED)


def _check_legs(request: Any) -> None:
    if malformed := _malformed_legs(request.legs, request.amount_fen):
        raise InvalidRequest(malformed.field, malformed.reason)


def _seen(memory: Memory, request: Any, response: type[Response], time_us: int) -> Response | None:
    """The answer for a request that came before, or that was reversed, before it came or since."""
    again: Any = answered(memory, request, response)
    if again is not None and again.result == Result.CONFLICT and not again.duplicate:
        return again  # type: ignore[no-any-return]
    reversal = memory.documents.get(DocumentKind.AUTHORIZATION_REVERSAL, request.request_id + request.acquirer_id.encode())
    if reversal is None:
        return again  # type: ignore[no-any-return]
    refused: Any = response()
    refused.result = wire(Result.REVERSED)
    if again is None:
        return Change(memory, time_us).answer(request, refused, "authorization-reversed-before")  # type: ignore[no-any-return]
    refused.duplicate, refused.sequence = True, again.sequence
    return refused  # type: ignore[no-any-return]


# ---- authorise ----


def authorize(rules: PurseRules, memory: Memory, request: pb.AuthorizeRequest, time_us: int) -> pb.AuthorizeResponse:
    """AuthorizationService.Authorize."""
    if malformed := _malformed_authorize(request):
        raise InvalidRequest(malformed.field, malformed.reason)
    return _authorize(rules, memory, request, time_us)


def batch_authorize(
    rules: PurseRules, memory: Memory, request: pb.BatchAuthorizeRequest, time_us: int
) -> pb.BatchAuthorizeResponse:
    """A part of AuthorizationService.BatchAuthorize: AUTHORIZE_ITEMS_MAX at a time, so that taps need not wait for all."""
    response = pb.BatchAuthorizeResponse()
    for item in request.requests:
        if malformed := _malformed_authorize(item):
            response.responses.add(result=wire(malformed.result), invalid_field=malformed.field)
            continue
        try:
            response.responses.append(_authorize(rules, memory, item, time_us))
        except InvalidRequest as error:
            response.responses.add(result=wire(Result.MALFORMED_KIND), invalid_field=error.field)
    return response


def _authorize(rules: PurseRules, memory: Memory, request: pb.AuthorizeRequest, time_us: int) -> pb.AuthorizeResponse:
    """The request is well-formed."""
    if (again := _seen(memory, request, pb.AuthorizeResponse, time_us)) is not None:
        return again
    change = Change(memory, time_us)
    response = pb.AuthorizeResponse()
    card = int(memory.engine.find_card(request.card_number))
    merchant = find_merchant(memory, request.acquirer_id, request.merchant_id)
    if card == NONE or merchant is None:
        response.result = wire(Result.UNKNOWN_CARD if card == NONE else Result.MERCHANT_UNKNOWN)
        _keep_asked(change, request.request_id, _Asked(0, 0, request.acquirer_id))
        return change.answer(request, response, "authorization-declined")
    if merchant.merchant_category != request.merchant_category:
        raise InvalidRequest("merchant_category", f"the merchant is registered with {merchant.merchant_category}")

    authorization = Authorization(
        authorization_id=change.sequence,
        state=wire(State.DECLINED),  # until it is held
        acquirer_id=request.acquirer_id,
        merchant_id=request.merchant_id,
        merchant_category=request.merchant_category,
        card_number=request.card_number,
        authorized_fen=request.amount_fen,
        created_time_us=time_us,
        expires_time_us=time_us + (request.timeout_s or limits.HOLD_S_DEFAULT) * S_US,
        offline=request.offline,
        request_id=request.request_id,
    )
    counters = Counters(memory)
    work = _Work(memory, change, authorization, time_us, counters)
    paid = _who_pays(rules, work, request.amount_fen, request.legs)
    operation = 0
    if isinstance(paid, Refusal):
        authorization.result, authorization.limit_id = wire(paid.result), paid.limit_id
    else:
        authorization.state, authorization.result = wire(State.HELD), wire(Result.ACCEPTED)
        work.hold(paid.parts, paid.uses)
        response.legs.extend(paid.legs)
        operation = work.record(pb.AUTHORIZATION_OPERATION_KIND_AUTHORIZE, request.request_id, paid.legs)
        response.expires_time_us = authorization.expires_time_us
    work.put()
    counters.put(change)
    for listing in (
        _list_of_card(card),
        _list_of_acquirer(request.acquirer_id),
        _list_of_merchant(request.acquirer_id, request.merchant_id),
    ):
        change.put(DocumentKind.AUTHORIZATION_LIST, listing + _id_key(_LAST_ID - authorization.authorization_id), b"")
    _keep_asked(change, request.request_id, _Asked(authorization.authorization_id, operation, request.acquirer_id))
    response.result, response.limit_id = authorization.result, authorization.limit_id
    response.authorization_id, response.state = authorization.authorization_id, authorization.state
    response.available_after_fen = work.available_after_fen
    return change.answer(request, response, "authorization-made" if operation else "authorization-declined")


class _Paid(NamedTuple):
    parts: list[Part]
    uses: list[pb.LimitUse]

    @property
    def legs(self) -> list[pb.Leg]:
        return [pb.Leg(purse=part.purse, amount_fen=part.amount_fen) for part in self.parts]


def _who_pays(rules: PurseRules, work: _Work, amount_fen: int, asked: Sequence[pb.Leg]) -> _Paid | Refusal:
    """The card's state, then its purses, then limits and money."""
    memory, card, own = work.memory, work.card, work.authorization
    date = settlement_date(work.time_us)
    if refused := card_state.paying_refusal(memory, card, work.time_us):
        return Refusal(refused)
    overdraft = rules.overdraft(own.merchant_category) if own.offline else None
    already = [Part(leg.purse, leg.purse_kind, leg.held_fen + leg.captured_fen) for leg in own.legs]
    found = rooms(memory, rules, card, own.merchant_category, work.time_us, already)
    if asked:
        sources: dict[str, Source] = {}
        for leg in asked:
            source = purses.named_source(memory, rules, card, own.card_number, own.merchant_category, date, overdraft, leg.purse)
            if isinstance(source, Result):
                return Refusal(source)
            sources[leg.purse] = source
        parts = split_as_asked([(leg.purse, leg.amount_fen) for leg in asked], sources, found)
    else:
        order = purses.paying_order(memory, rules, card, own.card_number, own.merchant_category, date, overdraft)
        parts = split(amount_fen, order, found)
    return parts if isinstance(parts, Refusal) else _Paid(parts, uses_of(parts, found, work.time_us))


# ---- what follows it ----


class _Done(NamedTuple):
    """An event was carried out: what it is called, and what it moved."""

    kind: pb.AuthorizationOperationKind
    legs: list[pb.Leg]


def _operate(
    memory: Memory,
    request: Any,
    response: type[Response],
    time_us: int,
    act: Callable[[_Work], _Done | Refusal],
) -> Response:
    """Find the authorisation that a request names, let `act` work on it, and answer. A refusal leaves it as it was."""
    if (again := _seen(memory, request, response, time_us)) is not None:
        return again
    authorization = _find(memory, request, time_us)
    change = Change(memory, time_us)
    answer: Any = response()
    if authorization is None:
        answer.result = wire(Result.AUTHORIZATION_UNKNOWN)
        _keep_asked(change, request.request_id, _Asked(0, 0, request.acquirer_id))
        return change.answer(request, answer, "authorization-unknown")  # type: ignore[no-any-return]
    if len(authorization.operations) >= limits.OPERATIONS_MAX:
        raise InvalidRequest("authorization_id", f"it has seen {limits.OPERATIONS_MAX} operations and takes no more")
    counters = Counters(memory)
    work = _Work(memory, change, authorization, time_us, counters)
    done = act(work)
    operation = 0
    if isinstance(done, Refusal):
        answer.result = wire(done.result)
        if done.limit_id:
            answer.limit_id = done.limit_id
    else:
        answer.result = wire(Result.ACCEPTED)
        answer.legs.extend(done.legs)
        operation = work.record(done.kind, request.request_id, done.legs)
        work.put()
        counters.put(change)
    _keep_asked(change, request.request_id, _Asked(authorization.authorization_id, operation, request.acquirer_id))
    _fill(answer, work)
    name = "refused" if isinstance(done, Refusal) else pb.AuthorizationOperationKind.Name(done.kind).rpartition("_")[2].lower()
    return change.answer(request, answer, f"authorization-{name}")  # type: ignore[no-any-return]


def _fill(answer: Any, work: _Work) -> None:
    """Where the authorisation stands, as far as this response tells it."""
    own = work.authorization
    answer.authorization_id, answer.state, answer.available_after_fen = own.authorization_id, own.state, work.available_after_fen
    for field in ("held_fen", "captured_fen", "refunded_fen", "expires_time_us"):
        if field in answer.DESCRIPTOR.fields_by_name:
            setattr(answer, field, getattr(own, field))


def _check_key(request: Any) -> None:
    key = request.WhichOneof("key")
    if key is None:
        raise InvalidRequest("key", "authorization_id or authorize_request_id is wanted")
    if key == "authorize_request_id" and len(request.authorize_request_id) != 16:
        raise InvalidRequest("authorize_request_id", "16 bytes are wanted")


def _find(memory: Memory, request: Any, time_us: int) -> Authorization | None:
    """The acquirer's authorisation that a request names, expired if its time is over."""
    authorization_id = request.authorization_id
    by_request = request.WhichOneof("key") == "authorize_request_id"
    if by_request:
        asked = _asked(memory, request.authorize_request_id)
        authorization_id = asked.authorization_id if asked else 0
    found = _fresh(memory, [authorization_id], time_us)
    if not found or found[0].acquirer_id != request.acquirer_id:
        return None
    if by_request and found[0].request_id != request.authorize_request_id:
        return None  # the id of something that was done to it
    return found[0]


def _fresh(memory: Memory, ids: Sequence[int], time_us: int) -> list[Authorization]:
    """Those authorisations that there are, those among them expired whose time is over."""
    found = [authorization for each in ids if (authorization := load(memory, each)) is not None]
    over = [authorization.authorization_id for authorization in found if is_over(authorization, time_us)]
    if not over:
        return found
    _expire(memory, over, time_us)
    return [authorization for each in ids if (authorization := load(memory, each)) is not None]


def _refused(work: _Work, event: Event) -> Refusal | None:
    outcome = TRANSITIONS[work.state, event]
    return None if isinstance(outcome, State) else Refusal(outcome)


def increment_authorization(
    rules: PurseRules, memory: Memory, request: pb.IncrementAuthorizationRequest, time_us: int
) -> pb.IncrementAuthorizationResponse:
    """AuthorizationService.IncrementAuthorization."""
    _check_ids(request)
    _check_key(request)
    _check_legs(request)
    if request.timeout_s > limits.HOLD_S_MAX:
        raise InvalidRequest("timeout_s", f"at most {limits.HOLD_S_MAX} is wanted")

    def act(work: _Work) -> _Done | Refusal:
        if refusal := _refused(work, Event.INCREMENT):
            return refusal
        if work.authorization.authorized_fen + request.amount_fen > limits.AUTHORIZATION_FEN_MAX:
            raise InvalidRequest("amount_fen", f"an authorisation holds {limits.AUTHORIZATION_FEN_MAX} fen at most")
        paid = _who_pays(rules, work, request.amount_fen, request.legs)
        if isinstance(paid, Refusal):
            return paid
        work.hold(paid.parts, paid.uses)
        work.go(Event.INCREMENT)
        if request.timeout_s:
            work.authorization.expires_time_us = time_us + request.timeout_s * S_US
        return _Done(pb.AUTHORIZATION_OPERATION_KIND_INCREMENT, paid.legs)

    return _operate(memory, request, pb.IncrementAuthorizationResponse, time_us, act)


def capture(memory: Memory, request: pb.CaptureRequest, time_us: int) -> pb.CaptureResponse:
    """AuthorizationService.Capture."""
    _check_ids(request)
    _check_key(request)
    if not 1 <= request.amount_fen <= limits.AUTHORIZATION_FEN_MAX:
        raise InvalidRequest("amount_fen", f"1 to {limits.AUTHORIZATION_FEN_MAX} is wanted")

    def act(work: _Work) -> _Done | Refusal:
        held = _held(work.authorization)
        event = Event.CAPTURE_FINAL if request.final or request.amount_fen == sum(held) else Event.CAPTURE
        if refusal := _refused(work, event):
            return refusal
        if request.amount_fen > sum(held):
            return Refusal(Result.CAPTURE_ABOVE_HOLD)
        amounts = take_in_order(request.amount_fen, held)
        work.capture(amounts)
        if event is Event.CAPTURE_FINAL:
            work.let_go(_held(work.authorization))
        work.go(event)
        return _Done(pb.AUTHORIZATION_OPERATION_KIND_CAPTURE, work.legs(amounts))

    return _operate(memory, request, pb.CaptureResponse, time_us, act)


def void_authorization(memory: Memory, request: pb.VoidAuthorizationRequest, time_us: int) -> pb.VoidAuthorizationResponse:
    """AuthorizationService.VoidAuthorization."""
    _check_ids(request)
    _check_key(request)

    def act(work: _Work) -> _Done | Refusal:
        if refusal := _refused(work, Event.VOID):
            return refusal
        amounts = _held(work.authorization)
        work.let_go(amounts)
        work.go(Event.VOID)
        return _Done(pb.AUTHORIZATION_OPERATION_KIND_VOID, work.legs(amounts))

    return _operate(memory, request, pb.VoidAuthorizationResponse, time_us, act)


def refund(memory: Memory, request: pb.RefundRequest, time_us: int) -> pb.RefundResponse:
    """AuthorizationService.Refund."""
    _check_ids(request)
    _check_key(request)
    _check_legs(request)

    def act(work: _Work) -> _Done | Refusal:
        if refusal := _refused(work, Event.REFUND):
            return refusal
        refundable = [leg.captured_fen - leg.refunded_fen for leg in work.authorization.legs]
        if request.amount_fen > sum(refundable):
            return Refusal(Result.REFUND_ABOVE_CAPTURE)
        if request.legs:
            asked = {leg.purse: leg.amount_fen for leg in request.legs}
            amounts = [asked.pop(leg.purse, 0) for leg in work.authorization.legs]
            if asked or any(fen > left for fen, left in zip(amounts, refundable, strict=True)):
                return Refusal(Result.REFUND_ABOVE_CAPTURE)
        else:
            amounts = take_in_reverse(request.amount_fen, refundable)
        work.refund(amounts)
        work.go(Event.REFUND)
        return _Done(pb.AUTHORIZATION_OPERATION_KIND_REFUND, work.legs(amounts))

    return _operate(memory, request, pb.RefundResponse, time_us, act)


# ---- reversal ----


def reverse_transaction(memory: Memory, request: pb.ReverseTransactionRequest, time_us: int) -> pb.ReverseTransactionResponse:
    """AuthorizationService.ReverseTransaction."""
    _check_ids(request)
    if len(request.original_request_id) != 16:
        raise InvalidRequest("original_request_id", "16 bytes are wanted")
    if request.original_request_id == request.request_id:
        raise InvalidRequest("original_request_id", "is the reversal's own request id")
    if (again := _seen(memory, request, pb.ReverseTransactionResponse, time_us)) is not None:
        return again
    asked = _asked(memory, request.original_request_id)
    if asked is not None and asked.acquirer_id != request.acquirer_id:
        asked = None
    found = _fresh(memory, [asked.authorization_id], time_us) if asked else []
    change = Change(memory, time_us)
    response = pb.ReverseTransactionResponse(result=wire(Result.ACCEPTED), original_arrived=asked is not None)
    counters = Counters(memory)
    operation = 0
    if asked and found:
        work = _Work(memory, change, found[0], time_us, counters)
        done = _reverse(work, asked.operation)
        if isinstance(done, Refusal):
            response.result = wire(done.result)
        elif done is not None:
            response.legs.extend(done.legs)
            operation = work.record(done.kind, request.request_id, done.legs)
            work.put()
            counters.put(change)
        _fill(response, work)
    if response.result == wire(Result.ACCEPTED):
        key = request.original_request_id + request.acquirer_id.encode()
        change.put(DocumentKind.AUTHORIZATION_REVERSAL, key, b"\1")
    own = _Asked(response.authorization_id, operation, request.acquirer_id)
    _keep_asked(change, request.request_id, own)
    return change.answer(request, response, "authorization-reversal")


def _reverse(work: _Work, number: int) -> _Done | Refusal | None:
    """Undo an operation (its number, from 1 on); None where there is nothing to undo."""
    if not number:
        return None  # it was declined
    operation = work.authorization.operations[number - 1]
    if operation.reversed:
        return None
    by_purse = {leg.purse: leg.amount_fen for leg in operation.legs}
    amounts = [by_purse.get(leg.purse, 0) for leg in work.authorization.legs]
    match operation.kind:
        case pb.AUTHORIZATION_OPERATION_KIND_AUTHORIZE:
            undone = _reverse_authorize(work)
        case pb.AUTHORIZATION_OPERATION_KIND_INCREMENT:
            undone = _reverse_increment(work, amounts)
        case pb.AUTHORIZATION_OPERATION_KIND_CAPTURE:
            undone = _reverse_capture(work, amounts)
        case pb.AUTHORIZATION_OPERATION_KIND_REFUND:
            undone = _reverse_refund(work, amounts)
        case _:
            return Refusal(Result.NOT_REVERSIBLE)
    if isinstance(undone, Refusal):
        return undone
    operation.reversed = True
    return _Done(pb.AUTHORIZATION_OPERATION_KIND_REVERSE, work.legs(undone))


def _reverse_authorize(work: _Work) -> list[int] | Refusal:
    if refusal := _refused(work, Event.REVERSE):
        return refusal
    if any(leg.captured_fen for leg in work.authorization.legs):
        return Refusal(Result.NOT_REVERSIBLE)
    amounts = _held(work.authorization)
    work.let_go(amounts)
    work.go(Event.REVERSE)
    return amounts


def _reverse_increment(work: _Work, amounts: Sequence[int]) -> list[int] | Refusal:
    if refusal := _refused(work, Event.REVERSE_INCREMENT):
        return refusal
    if work.state not in OPEN:
        return [0] * len(amounts)  # it was let go with the rest
    if any(fen > leg.held_fen for leg, fen in zip(work.authorization.legs, amounts, strict=True)):
        return Refusal(Result.NOT_REVERSIBLE)
    work.let_go(amounts)
    for leg, fen in zip(work.authorization.legs, amounts, strict=True):
        leg.authorized_fen -= fen
    work.go(Event.REVERSE_INCREMENT)
    if not any(_held(work.authorization)):
        work.go(Event.VOID)
    return list(amounts)


def _reverse_capture(work: _Work, amounts: Sequence[int]) -> list[int] | Refusal:
    """What the capture took is on hold again until the authorisation's time is over; what a final one let go stays so."""
    own = work.authorization
    last = sum(leg.captured_fen for leg in own.legs) == sum(amounts)
    event = Event.REVERSE_LAST_CAPTURE if last else Event.REVERSE_CAPTURE
    if refusal := _refused(work, event):
        return refusal
    if any(fen > leg.captured_fen - leg.refunded_fen for leg, fen in zip(own.legs, amounts, strict=True)):
        return Refusal(Result.NOT_REVERSIBLE)
    if work.closed_leg(amounts):
        return Refusal(Result.NOT_REVERSIBLE)  # nothing can be held on a purse that is closed; a refund can go to its funder
    work.uncapture(amounts)
    work.go(event)
    if work.state is State.EXPIRED:
        work.let_go(amounts)
    elif own.expires_time_us <= work.time_us:
        _expire_now(work)
    return list(amounts)


def _reverse_refund(work: _Work, amounts: Sequence[int]) -> list[int] | Refusal:
    if refusal := _refused(work, Event.REVERSE_REFUND):
        return refusal
    if refused := work.unrefund(amounts):
        return Refusal(refused)
    work.go(Event.REVERSE_REFUND)
    return list(amounts)


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
        DocumentKind.AUTHORIZATION, _id_key(authorization.authorization_id), authorization.SerializeToString(deterministic=True)
    )


# ---- reads ----


def get_authorization(memory: Memory, request: pb.GetAuthorizationRequest, time_us: int) -> pb.GetAuthorizationResponse:
    """AuthorizationService.GetAuthorization."""
    if not is_party_id(request.acquirer_id):
        raise InvalidRequest("acquirer_id", PARTY_ID_WANTED)
    _check_key(request)
    found = _find(memory, request, time_us)
    if found is None:
        by_id = request.WhichOneof("key") == "authorization_id"
        name = str(request.authorization_id) if by_id else f"of request {request.authorize_request_id.hex()}"
        raise NotFound("authorization", f"{name} of acquirer {request.acquirer_id}")
    return pb.GetAuthorizationResponse(authorization=found)


def list_authorizations(memory: Memory, request: pb.ListAuthorizationsRequest, time_us: int) -> pb.ListAuthorizationsResponse:
    """AuthorizationService.ListAuthorizations."""
    size = page_size(request.page_size)
    listing = _listing(memory, request)
    mark = zlib.crc32(listing).to_bytes(4, "big")
    newest = int.from_bytes(parse_page_token(request.page_token, mark, 8), "big") if request.page_token else _LAST_ID
    ids: list[int] = []
    for key, _ in memory.documents.scan(
        DocumentKind.AUTHORIZATION_LIST, listing + _id_key(_LAST_ID - newest), listing + b"\xff" * 9
    ):
        ids.append(_LAST_ID - int.from_bytes(key[-8:], "big"))
        if len(ids) > size:
            break
    response = pb.ListAuthorizationsResponse(authorizations=_fresh(memory, ids[:size], time_us))
    for authorization in response.authorizations:
        del authorization.operations[:]
        del authorization.limit_uses[:]
    if len(ids) > size:
        response.next_page_token = page_token(_id_key(ids[size]), mark)
    return response


def _listing(memory: Memory, request: pb.ListAuthorizationsRequest) -> bytes:
    """The list that a request asks for."""
    if request.card_number:
        if request.acquirer_id or request.merchant_id:
            raise InvalidRequest("card_number", "either a card is wanted, or an acquirer and perhaps a merchant")
        if not is_card_number(request.card_number):
            raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
        card = int(memory.engine.find_card(request.card_number))
        if card == NONE:
            raise NotFound("card", request.card_number)
        return _list_of_card(card)
    if not is_party_id(request.acquirer_id):
        raise InvalidRequest("acquirer_id", PARTY_ID_WANTED)
    if not request.merchant_id:
        return _list_of_acquirer(request.acquirer_id)
    if not is_party_id(request.merchant_id):
        raise InvalidRequest("merchant_id", PARTY_ID_WANTED)
    return _list_of_merchant(request.acquirer_id, request.merchant_id)
