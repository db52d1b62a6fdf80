"""How a person gets a card: the steps of an application as a table, their time limits, and what each does.

A card is registered in the engine when production tells its number, and refused everywhere until it is picked up. The bank
account is bound and activated beside all this and holds nothing up. Commands are as core/commands.py describes them; they take
rules and keys first where they need them, and the caller last.

Documents of kind APPLICATION:
    "a", id (12)                        → Application
    "o", person id (16)                 → id of the application that is under way
    "p", person id (16), id (12)        → nothing; all applications of a person
    "d", last day (4), id (12)          → nothing; those whose step has a limit"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, IntEnum, auto
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.access import audit
from yikatong.core.access.callers import Caller
from yikatong.core.acquiring.merchants import PARTY_ID_WANTED, is_party_id
from yikatong.core.cards import card_life, card_links, replacement
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.identity import persons
from yikatong.core.identity.identifiers import card_identifier_fault, social_card_number_fault
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.memory import Memory
from yikatong.core.messages import check_line
from yikatong.core.paging import page_size, page_token, parse_page_token
from yikatong.core.rules.card_rules import CardRules
from yikatong.core.types import NONE, DocumentKind, Result, wire
from yikatong.ext.engine import EngineFull, is_card_number, local_seconds, settlement_date
from yikatong.v1 import access_pb2, card_service_pb2, tap_service_pb2
from yikatong.v1 import issuance_service_pb2 as pb

Application = pb.Application
Response = TypeVar("Response", bound=Message)
APPLICATION_ID_BYTES: Final = 12
_APPLICATION, _OF_PERSON, _DUE = b"a", b"p", b"d"

ORDINARY, NEWBORN, INSTANT, EXPEDITED, REPLACEMENT, RENEWAL = (
    pb.APPLICATION_KIND_ORDINARY,
    pb.APPLICATION_KIND_NEWBORN,
    pb.APPLICATION_KIND_INSTANT,
    pb.APPLICATION_KIND_EXPEDITED,
    pb.APPLICATION_KIND_REPLACEMENT,
    pb.APPLICATION_KIND_RENEWAL,
)
KIND_NAMES: Final = {number: name.removeprefix("APPLICATION_KIND_").lower() for name, number in pb.ApplicationKind.items()}


class Step(IntEnum):
    """Where an application stands (ApplicationStep of the proto)."""

    APPLIED = 1
    CHECKED = 2
    BATCHED = 3
    AT_BANK = 4
    BANK_DONE = 5
    AT_FACTORY = 6
    FACTORY_DONE = 7
    AT_INITIALISATION = 8
    PRODUCED = 9
    DELIVERED = 10
    ENABLED = 11
    REJECTED = 12
    WITHDRAWN = 13


class Event(Enum):
    """What can come to it."""

    CHECK = auto()
    REJECT = auto()
    BATCH = auto()
    TO_BANK = auto()
    FROM_BANK = auto()
    TO_FACTORY = auto()
    FROM_FACTORY = auto()
    TO_INITIALISATION = auto()
    PRODUCE = auto()
    DELIVER = auto()
    PICK_UP = auto()
    WITHDRAW = auto()


_WAYS: Final = (
    (Step.APPLIED, Event.CHECK, Step.CHECKED),
    (Step.APPLIED, Event.REJECT, Step.REJECTED),
    (Step.CHECKED, Event.BATCH, Step.BATCHED),
    (Step.BATCHED, Event.TO_BANK, Step.AT_BANK),
    (Step.AT_BANK, Event.FROM_BANK, Step.BANK_DONE),
    (Step.BANK_DONE, Event.TO_FACTORY, Step.AT_FACTORY),
    (Step.AT_FACTORY, Event.FROM_FACTORY, Step.FACTORY_DONE),
    (Step.FACTORY_DONE, Event.TO_INITIALISATION, Step.AT_INITIALISATION),
    (Step.AT_INITIALISATION, Event.PRODUCE, Step.PRODUCED),
    (Step.PRODUCED, Event.DELIVER, Step.DELIVERED),
    (Step.DELIVERED, Event.DELIVER, Step.DELIVERED),  # the mail brought it back, and it waits at a counter
    (Step.DELIVERED, Event.PICK_UP, Step.ENABLED),
    (Step.APPLIED, Event.WITHDRAW, Step.WITHDRAWN),
    (Step.CHECKED, Event.WITHDRAW, Step.WITHDRAWN),
    (Step.BATCHED, Event.WITHDRAW, Step.WITHDRAWN),  # what is under the machines comes out of them first
    (Step.PRODUCED, Event.WITHDRAW, Step.WITHDRAWN),
    (Step.DELIVERED, Event.WITHDRAW, Step.WITHDRAWN),
)
_AT_THE_COUNTER: Final = (
    (Step.CHECKED, Event.PRODUCE, Step.PRODUCED),
    (Step.PRODUCED, Event.PICK_UP, Step.ENABLED),
)
TRANSITIONS: Final = {(step, event): after for step, event, after in _WAYS}
"""Where each event leads from each step; a pair that is not there is refused (WRONG_STATE)."""
INSTANT_TRANSITIONS: Final = TRANSITIONS | {(step, event): after for step, event, after in _AT_THE_COUNTER}
"""The same for instant issue, which has no production."""

PRODUCTION: Final = {
    Step.BATCHED: Event.BATCH,
    Step.AT_BANK: Event.TO_BANK,
    Step.BANK_DONE: Event.FROM_BANK,
    Step.AT_FACTORY: Event.TO_FACTORY,
    Step.FACTORY_DONE: Event.FROM_FACTORY,
    Step.AT_INITIALISATION: Event.TO_INITIALISATION,
}
"""The steps that AdvanceApplications brings about."""

OVER: Final = (Step.ENABLED, Step.REJECTED, Step.WITHDRAWN)


def after(application: Application, event: Event) -> Step | None:
    """Where an event leads; None: it is refused."""
    table = INSTANT_TRANSITIONS if application.kind == INSTANT else TRANSITIONS
    return table.get((Step(application.step), event))


# ---- documents ----


def load(memory: Memory, application_id: bytes) -> Application | None:
    value = memory.documents.get(DocumentKind.APPLICATION, _APPLICATION + application_id)
    return None if value is None else Application.FromString(value)


def open_application(memory: Memory, person_id: bytes) -> bytes | None:
    """Id of the application of a person that is under way."""
    return memory.documents.get(DocumentKind.APPLICATION, persons.OPEN_APPLICATION + person_id)


def _due_key(application: Application) -> bytes:
    return _DUE + application.due.to_bytes(4, "big") + application.application_id


def go(rules: CardRules, change: Change, application: Application, step: Step) -> None:
    """Put an application into a step, with the limit that it has there."""
    if application.due:
        change.delete(DocumentKind.APPLICATION, _due_key(application))
    today = settlement_date(change.time_us)
    application.step, application.step_time_us = wire(step), change.time_us
    application.due = rules.due(
        KIND_NAMES[application.kind], step.name.lower(), settlement_date(application.applied_time_us), today
    )
    if application.due:
        change.put(DocumentKind.APPLICATION, _due_key(application), b"")
    if step in OVER:
        change.delete(DocumentKind.APPLICATION, persons.OPEN_APPLICATION + application.person_id)
    keep(change, application)


def keep(change: Change, application: Application) -> None:
    value = application.SerializeToString(deterministic=True)
    change.put(DocumentKind.APPLICATION, _APPLICATION + application.application_id, value)


def add(rules: CardRules, change: Change, place: int, application: Application) -> bytes:
    """Begin an application: its id. `place` tells those of one change apart."""
    application.application_id = change.sequence.to_bytes(8, "big") + place.to_bytes(4, "big")
    application.applied_time_us = change.time_us
    change.put(DocumentKind.APPLICATION, persons.OPEN_APPLICATION + application.person_id, application.application_id)
    change.put(DocumentKind.APPLICATION, _OF_PERSON + application.person_id + application.application_id, b"")
    go(rules, change, application, Step.APPLIED)
    return application.application_id


# ---- applying ----


def application_refused(memory: Memory, person_id: bytes, time_us: int, replaced: int = NONE) -> Result | None:
    """Why a registered person gets no further card: one is under way, or there is one that this one does not replace (slot)."""
    if open_application(memory, person_id) is not None:
        return Result.APPLICATION_OPEN
    for slot in persons.cards_of(memory, person_id):
        if slot != replaced and card_life.State(card_life.at(memory, slot, time_us).state) is not card_life.State.CANCELLED:
            return Result.CARD_PRESENT
    return None


def _is_registered(memory: Memory, person_id: bytes) -> bool:
    document = persons.load(memory, person_id)
    return document is not None and not document.erased


def _check_kind(request: pb.ApplyForCardRequest) -> None:
    if request.kind not in KIND_NAMES or not request.kind:
        raise InvalidRequest("kind", "is none of the kinds")
    if bool(request.guardian_person_id) != (request.kind == NEWBORN):
        raise InvalidRequest("guardian_person_id", "is wanted for a newborn, and for nobody else")
    if request.guardian_person_id == request.person_id:
        raise InvalidRequest("guardian_person_id", "is the newborn's own")
    replaces = request.kind in (REPLACEMENT, RENEWAL)
    if bool(request.old_card_number) != replaces:
        raise InvalidRequest("old_card_number", "is wanted where a card is replaced or renewed, and nowhere else")
    if replaces and not is_card_number(request.old_card_number):
        raise InvalidRequest("old_card_number", CARD_NUMBER_WANTED)


def apply_for_card(
    rules: CardRules, provider: KeyProvider, memory: Memory, request: pb.ApplyForCardRequest, time_us: int, caller: Caller
) -> pb.ApplyForCardResponse:
    """IssuanceService.ApplyForCard."""
    _check_kind(request)
    if (again := answered(memory, request, pb.ApplyForCardResponse)) is not None:
        return again
    change = Change(memory, time_us)
    response = pb.ApplyForCardResponse()
    if result := _apply_refused(provider, memory, request, time_us, caller):
        response.result = wire(result)
        return change.answer(request, response, "application-declined")
    application = Application(
        person_id=request.person_id,
        kind=request.kind,
        guardian_person_id=request.guardian_person_id,
        old_card_number=request.old_card_number,
    )
    response.application_id = add(rules, change, 0, application)
    audit.note(change, caller, "IssuanceService.ApplyForCard", request.person_id)
    response.result, response.due = wire(Result.ACCEPTED), application.due
    return change.answer(request, response, "application-made")


def _apply_refused(
    provider: KeyProvider, memory: Memory, request: pb.ApplyForCardRequest, time_us: int, caller: Caller
) -> Result | None:
    if not _is_registered(memory, request.person_id) or not persons.is_visible(caller, persons.load(memory, request.person_id)):
        return Result.PERSON_UNKNOWN
    if request.kind == NEWBORN:
        if not _is_registered(memory, request.guardian_person_id):
            return Result.PERSON_UNKNOWN
        known = persons.show(memory, provider, request.person_id)
        assert known is not None
        if settlement_date(time_us) - known.birth_date >= 10_000:
            raise InvalidRequest("kind", "the person is older than a year")
    if not request.old_card_number:
        return application_refused(memory, request.person_id, time_us)
    slot = int(memory.engine.find_card(request.old_card_number))
    if slot == NONE:
        return Result.UNKNOWN_CARD
    if card_links.card_of(memory, slot) != slot or persons.person_of_card(memory, slot) != request.person_id:
        return Result.CARD_NOT_OWN
    if refused := card_life.refused(card_life.at(memory, slot, time_us), card_life.Event.REPLACE):
        return refused
    return application_refused(memory, request.person_id, time_us, slot)


# ---- steps ----


def _find(memory: Memory, application_id: bytes, caller: Caller) -> Application | None:
    """An application that the caller may see."""
    application = load(memory, application_id)
    if application is None or not persons.is_visible(caller, persons.load(memory, application.person_id)):
        return None
    return application


def _act(
    rules: CardRules,
    memory: Memory,
    request: Any,
    response: type[Response],
    time_us: int,
    caller: Caller,
    act: Callable[[Change, Application, Any], Event | Result],
) -> Response:
    """Find the application that a request names, let `act` say which event comes to it (what `act` puts with the change stands or
    falls with it), and answer."""
    if (again := answered(memory, request, response)) is not None:
        return again
    application = _find(memory, request.application_id, caller)
    change = Change(memory, time_us)
    answer: Any = response()
    if application is None:
        answer.result = wire(Result.APPLICATION_UNKNOWN)
        return change.answer(request, answer, "application-unknown")  # type: ignore[no-any-return]
    event = act(change, application, answer)
    step = after(application, event) if isinstance(event, Event) else None
    if step is None:
        before = load(memory, request.application_id)
        assert before is not None
        answer = response(result=wire(event if isinstance(event, Result) else Result.WRONG_STATE), step=before.step)
        return Change(memory, time_us).answer(request, answer, "application-refused")  # type: ignore[no-any-return]
    go(rules, change, application, step)
    audit.note(change, caller, f"IssuanceService.{response.DESCRIPTOR.name.removesuffix('Response')}", application.person_id)
    answer.result, answer.step = wire(Result.ACCEPTED), wire(step)
    return change.answer(request, answer, f"application-{step.name.lower().replace('_', '-')}")  # type: ignore[no-any-return]


def check_application(
    rules: CardRules, memory: Memory, request: pb.CheckApplicationRequest, time_us: int, caller: Caller
) -> pb.CheckApplicationResponse:
    """IssuanceService.CheckApplication."""
    check_line("rejected", request.rejected, least=0)

    def act(_: Change, application: Application, __: Any) -> Event:
        application.reason = request.rejected
        return Event.REJECT if request.rejected else Event.CHECK

    return _act(rules, memory, request, pb.CheckApplicationResponse, time_us, caller, act)


def deliver_card(
    rules: CardRules, memory: Memory, request: pb.DeliverCardRequest, time_us: int, caller: Caller
) -> pb.DeliverCardResponse:
    """IssuanceService.DeliverCard."""
    way = request.WhichOneof("way")
    if way is None or not is_party_id(getattr(request, way)):
        raise InvalidRequest(way or "way", PARTY_ID_WANTED if way else "outlet_id or tracking_number is wanted")

    def act(_: Change, application: Application, __: Any) -> Event:
        application.outlet_id, application.tracking_number = request.outlet_id, request.tracking_number
        return Event.DELIVER

    return _act(rules, memory, request, pb.DeliverCardResponse, time_us, caller, act)


def pick_up_card(
    rules: CardRules, memory: Memory, request: pb.PickUpCardRequest, time_us: int, caller: Caller
) -> pb.PickUpCardResponse:
    """IssuanceService.PickUpCard."""

    def act(change: Change, application: Application, answer: pb.PickUpCardResponse) -> Event | Result:
        if after(application, Event.PICK_UP) is None:
            return Result.WRONG_STATE
        if request.picked_up_by_person_id != (application.guardian_person_id or application.person_id):
            return Result.CARD_NOT_OWN
        card = int(memory.engine.find_card(application.card_number))
        answer.card_number = application.card_number
        life = card_life.at(memory, card, time_us)
        if refused := card_life.refused(life, card_life.Event.ENABLE):
            return refused
        if not application.old_card_number:
            persons.entitle(memory, change, card, application.person_id)
            card_life.go(memory, change, card, life, card_life.Event.ENABLE)
            return Event.PICK_UP
        moved = replacement.replace(memory, change, int(memory.engine.find_card(application.old_card_number)), card)
        if isinstance(moved, Result):
            return moved
        answer.moved_fen = moved
        return Event.PICK_UP

    return _act(rules, memory, request, pb.PickUpCardResponse, time_us, caller, act)


def withdraw_application(
    rules: CardRules, memory: Memory, request: pb.WithdrawApplicationRequest, time_us: int, caller: Caller
) -> pb.WithdrawApplicationResponse:
    """IssuanceService.WithdrawApplication."""
    check_line("reason", request.reason)

    def act(change: Change, application: Application, _: Any) -> Event:
        if application.card_number and after(application, Event.WITHDRAW) is not None:
            card = int(memory.engine.find_card(application.card_number))
            life = card_life.at(memory, card, time_us)
            if card_life.refused(life, card_life.Event.CANCEL) is None:  # else it was cancelled before
                card_life.go(memory, change, card, life, card_life.Event.CANCEL)
        application.reason = request.reason
        return Event.WITHDRAW

    return _act(rules, memory, request, pb.WithdrawApplicationResponse, time_us, caller, act)


def set_bank_account(
    memory: Memory, request: pb.SetBankAccountRequest, time_us: int, caller: Caller
) -> pb.SetBankAccountResponse:
    """IssuanceService.SetBankAccount: beside the steps, which do not ask for it."""
    if not is_party_id(request.bank_id):
        raise InvalidRequest("bank_id", PARTY_ID_WANTED)
    if request.state not in (pb.BANK_ACCOUNT_STATE_BOUND, pb.BANK_ACCOUNT_STATE_ACTIVATED):
        raise InvalidRequest("state", "BOUND or ACTIVATED is wanted")
    if caller.role == access_pb2.ROLE_BANK and caller.name != request.bank_id:
        raise InvalidRequest("bank_id", f"{caller.name} is wanted")
    if (again := answered(memory, request, pb.SetBankAccountResponse)) is not None:
        return again
    application = _find(memory, request.application_id, caller)
    change = Change(memory, time_us)
    if application is None:
        response = pb.SetBankAccountResponse(result=wire(Result.APPLICATION_UNKNOWN))
        return change.answer(request, response, "application-unknown")
    bound = application.bank_account == pb.BANK_ACCOUNT_STATE_BOUND and application.bank_id == request.bank_id
    none = application.bank_account == pb.BANK_ACCOUNT_STATE_UNSPECIFIED
    given_up = Step(application.step) in (Step.REJECTED, Step.WITHDRAWN)
    if given_up or not (none if request.state == pb.BANK_ACCOUNT_STATE_BOUND else bound):
        response = pb.SetBankAccountResponse(result=wire(Result.WRONG_STATE))
        return change.answer(request, response, "bank-account-refused")
    application.bank_id, application.bank_account = request.bank_id, request.state
    keep(change, application)
    audit.note(change, caller, "IssuanceService.SetBankAccount", application.person_id)
    return change.answer(request, pb.SetBankAccountResponse(result=wire(Result.ACCEPTED)), "bank-account-set")


# ---- many at a time ----


def _check_many(field: str, ids: Iterable[bytes], count: int) -> None:
    if not 1 <= count <= limits.ISSUANCE_ITEMS_MAX:
        raise InvalidRequest(field, f"1 to {limits.ISSUANCE_ITEMS_MAX} are wanted")
    if len(set(ids)) != count:
        raise InvalidRequest(field, "an application stands there twice")


def advance_applications(
    rules: CardRules, memory: Memory, request: pb.AdvanceApplicationsRequest, time_us: int, caller: Caller
) -> pb.AdvanceApplicationsResponse:
    """IssuanceService.AdvanceApplications."""
    _check_many("application_ids", request.application_ids, len(request.application_ids))
    if int(request.step) not in PRODUCTION:
        raise InvalidRequest("step", "BATCHED to AT_INITIALISATION is wanted")
    if (again := answered(memory, request, pb.AdvanceApplicationsResponse)) is not None:
        return again
    step = Step(request.step)
    change = Change(memory, time_us)
    response = pb.AdvanceApplicationsResponse(result=wire(Result.ACCEPTED))
    for application_id in request.application_ids:
        application = _find(memory, application_id, caller)
        if application is None:
            response.results.append(wire(Result.APPLICATION_UNKNOWN))
        elif after(application, PRODUCTION[step]) is None:
            response.results.append(wire(Result.WRONG_STATE))
        else:
            go(rules, change, application, step)
            response.results.append(wire(Result.ACCEPTED))
    return change.answer(request, response, "applications-advanced")


def _check_produced(at: int, card: pb.ReportProducedRequest.Produced) -> None:
    place = f"cards[{at}]"
    if not is_card_number(card.card_number):
        raise InvalidRequest(f"{place}.card_number", CARD_NUMBER_WANTED)
    if len(card.issuer_id) != 8:
        raise InvalidRequest(f"{place}.issuer_id", "8 bytes are wanted")
    if card.expires and local_seconds(card.expires, 0) < 0:
        raise InvalidRequest(f"{place}.expires", "a date YYYYMMDD of 2000 to 2099 is wanted")
    if fault := social_card_number_fault(card.social_card_number):
        raise InvalidRequest(f"{place}.social_card_number", fault)
    if fault := card_identifier_fault(card.card_identifier):
        raise InvalidRequest(f"{place}.card_identifier", fault)


class _Made(NamedTuple):
    """A card to be registered, and its application."""

    card: pb.ReportProducedRequest.Produced
    application: Application


def report_produced(
    rules: CardRules, memory: Memory, request: pb.ReportProducedRequest, time_us: int, caller: Caller
) -> pb.ReportProducedResponse:
    """IssuanceService.ReportProduced. The cards are registered right before the change that says that they are not enabled, in
    the same group commit: nobody ever sees them without it."""
    _check_many("cards", (card.application_id for card in request.cards), len(request.cards))
    for at, card in enumerate(request.cards):
        _check_produced(at, card)
    if (again := answered(memory, request, pb.ReportProducedResponse)) is not None:
        return again
    engine = memory.engine
    if min(engine.room["cards"], engine.room["accounts"]) < len(request.cards):
        raise EngineFull("the configured number of cards is reached")
    response = pb.ReportProducedResponse(result=wire(Result.ACCEPTED))
    made: list[_Made] = []
    numbers: set[str] = set()
    for card in request.cards:
        application = _find(memory, card.application_id, caller)
        if application is None:
            result = Result.APPLICATION_UNKNOWN
        elif after(application, Event.PRODUCE) is None:
            result = Result.WRONG_STATE
        elif card.card_number in numbers or engine.find_card(card.card_number) != NONE:
            result = Result.CONFLICT
        else:
            numbers.add(card.card_number)
            made.append(_Made(card, application))
            result = Result.ACCEPTED
        response.results.append(wire(result))
    slots = [_register(memory, each.card, time_us) for each in made]
    change = Change(memory, time_us)
    for slot, (card, application) in zip(slots, made, strict=True):
        card_life.begin(memory, change, slot)
        persons.give_card(change, application.person_id, slot)
        application.card_number, application.social_card_number = card.card_number, card.social_card_number
        application.card_identifier = card.card_identifier
        go(rules, change, application, Step.PRODUCED)
    return change.answer(request, response, "cards-produced")


def _register(memory: Memory, produced: pb.ReportProducedRequest.Produced, time_us: int) -> int:
    card = card_service_pb2.Card(
        card_number=produced.card_number,
        issuer_id=produced.issuer_id,
        rider=tap_service_pb2.RIDER_ORDINARY,
        expires=produced.expires,
    )
    payload = card.SerializeToString(deterministic=True)
    return int(memory.engine.add_card(card.card_number, card.issuer_id, card.rider, card.expires, time_us, payload))


# ---- reads ----


def get_application(memory: Memory, request: pb.GetApplicationRequest, time_us: int, caller: Caller) -> pb.GetApplicationResponse:
    """IssuanceService.GetApplication."""
    del time_us
    application = _find(memory, request.application_id, caller)
    if application is None:
        raise NotFound("application", request.application_id.hex())
    return pb.GetApplicationResponse(application=application)


def _overdue(memory: Memory, today: int, start: bytes = _DUE) -> Iterator[tuple[bytes, Application]]:
    """Applications whose last day is over, the longest over first, from a key on."""
    for key, _ in memory.documents.scan(DocumentKind.APPLICATION, start, _DUE + today.to_bytes(4, "big")):
        application = load(memory, key[5:])
        assert application is not None
        yield key, application


def list_overdue(memory: Memory, request: pb.ListOverdueRequest, time_us: int, caller: Caller) -> pb.ListOverdueResponse:
    """IssuanceService.ListOverdue."""
    if request.step not in pb.ApplicationStep.values():
        raise InvalidRequest("step", "is none of the steps")
    size = page_size(request.page_size)
    of = b"overdue" + bytes([request.step])
    start = _DUE + parse_page_token(request.page_token, of, 4 + APPLICATION_ID_BYTES) if request.page_token else _DUE
    response = pb.ListOverdueResponse()
    for looked_at, (key, application) in enumerate(_overdue(memory, settlement_date(time_us), start)):
        if len(response.applications) == size or looked_at == limits.SCAN_DOCUMENTS_MAX:
            response.next_page_token = page_token(key[1:], of)
            break
        if request.step in (0, application.step) and persons.is_visible(caller, persons.load(memory, application.person_id)):
            response.applications.append(application)
    return response


def count_overdue(memory: Memory, time_us: int) -> dict[Step, int]:
    """How many applications are overdue in each step that has a limit, up to OVERDUE_COUNTED_MAX together."""
    counts = {step: 0 for step in Step if step < Step.DELIVERED}
    for _, application in itertools.islice(_overdue(memory, settlement_date(time_us)), limits.OVERDUE_COUNTED_MAX):
        counts[Step(application.step)] += 1
    return counts
