"""Authorisations: money held for a merchant, captured, let go, given back; and each of these undone.

Commands, as core/commands.py describes them; those that need the rules take them first."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.acquiring import purses
from yikatong.core.acquiring.authorization import (
    LAST_ID,
    OPEN,
    S_US,
    TRANSITIONS,
    Asked,
    Authorization,
    Event,
    State,
    Work,
    asked_before,
    expire,
    expire_due,
    expire_now,
    held_by_leg,
    id_key,
    is_over,
    keep_asked,
    list_of_acquirer,
    list_of_card,
    list_of_merchant,
    load,
)
from yikatong.core.acquiring.merchants import CATEGORY_WANTED, PARTY_ID_WANTED, find_merchant, is_party_id
from yikatong.core.acquiring.paying import Part, Refusal, Source, split, split_as_asked, take_in_order, take_in_reverse
from yikatong.core.acquiring.spending import Counters, rooms, uses_of
from yikatong.core.cards import card_state
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory
from yikatong.core.paging import page_size, page_token, parse_page_token
from yikatong.core.rules.purse_rules import GENERAL, PurseRules, is_category
from yikatong.core.types import NONE, DocumentKind, Result, wire
from yikatong.ext.engine import is_card_number, settlement_date
from yikatong.v1 import authorization_service_pb2 as pb

Response = TypeVar("Response", bound=Message)


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
        keep_asked(change, request.request_id, Asked(0, 0, request.acquirer_id))
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
    work = Work(memory, change, authorization, time_us, counters)
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
        list_of_card(card),
        list_of_acquirer(request.acquirer_id),
        list_of_merchant(request.acquirer_id, request.merchant_id),
    ):
        change.put(DocumentKind.AUTHORIZATION_LIST, listing + id_key(LAST_ID - authorization.authorization_id), b"")
    keep_asked(change, request.request_id, Asked(authorization.authorization_id, operation, request.acquirer_id))
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


def _who_pays(rules: PurseRules, work: Work, amount_fen: int, asked: Sequence[pb.Leg]) -> _Paid | Refusal:
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
    act: Callable[[Work], _Done | Refusal],
) -> Response:
    """Find the authorisation that a request names, let `act` work on it, and answer. A refusal leaves it as it was."""
    if (again := _seen(memory, request, response, time_us)) is not None:
        return again
    authorization = _find(memory, request, time_us)
    change = Change(memory, time_us)
    answer: Any = response()
    if authorization is None:
        answer.result = wire(Result.AUTHORIZATION_UNKNOWN)
        keep_asked(change, request.request_id, Asked(0, 0, request.acquirer_id))
        return change.answer(request, answer, "authorization-unknown")  # type: ignore[no-any-return]
    if len(authorization.operations) >= limits.OPERATIONS_MAX:
        raise InvalidRequest("authorization_id", f"it has seen {limits.OPERATIONS_MAX} operations and takes no more")
    counters = Counters(memory)
    work = Work(memory, change, authorization, time_us, counters)
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
    keep_asked(change, request.request_id, Asked(authorization.authorization_id, operation, request.acquirer_id))
    _fill(answer, work)
    name = "refused" if isinstance(done, Refusal) else pb.AuthorizationOperationKind.Name(done.kind).rpartition("_")[2].lower()
    return change.answer(request, answer, f"authorization-{name}")  # type: ignore[no-any-return]


def _fill(answer: Any, work: Work) -> None:
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
        asked = asked_before(memory, request.authorize_request_id)
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
    expire(memory, over, time_us)
    return [authorization for each in ids if (authorization := load(memory, each)) is not None]


def _refused(work: Work, event: Event) -> Refusal | None:
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

    def act(work: Work) -> _Done | Refusal:
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

    def act(work: Work) -> _Done | Refusal:
        held = held_by_leg(work.authorization)
        event = Event.CAPTURE_FINAL if request.final or request.amount_fen == sum(held) else Event.CAPTURE
        if refusal := _refused(work, event):
            return refusal
        if request.amount_fen > sum(held):
            return Refusal(Result.CAPTURE_ABOVE_HOLD)
        amounts = take_in_order(request.amount_fen, held)
        work.capture(amounts)
        if event is Event.CAPTURE_FINAL:
            work.let_go(held_by_leg(work.authorization))
        work.go(event)
        return _Done(pb.AUTHORIZATION_OPERATION_KIND_CAPTURE, work.legs(amounts))

    return _operate(memory, request, pb.CaptureResponse, time_us, act)


def void_authorization(memory: Memory, request: pb.VoidAuthorizationRequest, time_us: int) -> pb.VoidAuthorizationResponse:
    """AuthorizationService.VoidAuthorization."""
    _check_ids(request)
    _check_key(request)

    def act(work: Work) -> _Done | Refusal:
        if refusal := _refused(work, Event.VOID):
            return refusal
        amounts = held_by_leg(work.authorization)
        work.let_go(amounts)
        work.go(Event.VOID)
        return _Done(pb.AUTHORIZATION_OPERATION_KIND_VOID, work.legs(amounts))

    return _operate(memory, request, pb.VoidAuthorizationResponse, time_us, act)


def refund(memory: Memory, request: pb.RefundRequest, time_us: int) -> pb.RefundResponse:
    """AuthorizationService.Refund."""
    _check_ids(request)
    _check_key(request)
    _check_legs(request)

    def act(work: Work) -> _Done | Refusal:
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
    asked = asked_before(memory, request.original_request_id)
    if asked is not None and asked.acquirer_id != request.acquirer_id:
        asked = None
    found = _fresh(memory, [asked.authorization_id], time_us) if asked else []
    change = Change(memory, time_us)
    response = pb.ReverseTransactionResponse(result=wire(Result.ACCEPTED), original_arrived=asked is not None)
    counters = Counters(memory)
    operation = 0
    if asked and found:
        work = Work(memory, change, found[0], time_us, counters)
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
    own = Asked(response.authorization_id, operation, request.acquirer_id)
    keep_asked(change, request.request_id, own)
    return change.answer(request, response, "authorization-reversal")


def _reverse(work: Work, number: int) -> _Done | Refusal | None:
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


def _reverse_authorize(work: Work) -> list[int] | Refusal:
    if refusal := _refused(work, Event.REVERSE):
        return refusal
    if any(leg.captured_fen for leg in work.authorization.legs):
        return Refusal(Result.NOT_REVERSIBLE)
    amounts = held_by_leg(work.authorization)
    work.let_go(amounts)
    work.go(Event.REVERSE)
    return amounts


def _reverse_increment(work: Work, amounts: Sequence[int]) -> list[int] | Refusal:
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
    if not any(held_by_leg(work.authorization)):
        work.go(Event.VOID)
    return list(amounts)


def _reverse_capture(work: Work, amounts: Sequence[int]) -> list[int] | Refusal:
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
        expire_now(work)
    return list(amounts)


def _reverse_refund(work: Work, amounts: Sequence[int]) -> list[int] | Refusal:
    if refusal := _refused(work, Event.REVERSE_REFUND):
        return refusal
    if refused := work.unrefund(amounts):
        return Refusal(refused)
    work.go(Event.REVERSE_REFUND)
    return list(amounts)


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
    newest = int.from_bytes(parse_page_token(request.page_token, mark, 8), "big") if request.page_token else LAST_ID
    ids: list[int] = []
    for key, _ in memory.documents.scan(
        DocumentKind.AUTHORIZATION_LIST, listing + id_key(LAST_ID - newest), listing + b"\xff" * 9
    ):
        ids.append(LAST_ID - int.from_bytes(key[-8:], "big"))
        if len(ids) > size:
            break
    response = pb.ListAuthorizationsResponse(authorizations=_fresh(memory, ids[:size], time_us))
    for authorization in response.authorizations:
        del authorization.operations[:]
        del authorization.limit_uses[:]
    if len(ids) > size:
        response.next_page_token = page_token(id_key(ids[size]), mark)
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
        return list_of_card(card)
    if not is_party_id(request.acquirer_id):
        raise InvalidRequest("acquirer_id", PARTY_ID_WANTED)
    if not request.merchant_id:
        return list_of_acquirer(request.acquirer_id)
    if not is_party_id(request.merchant_id):
        raise InvalidRequest("merchant_id", PARTY_ID_WANTED)
    return list_of_merchant(request.acquirer_id, request.merchant_id)
