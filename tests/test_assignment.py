"""Cards that were registered in bulk become persons': who may have which, what goes along, and what ends."""

import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from auditor import audit
from card_desk import CardDesk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from people import new_id

from yikatong.core.access.audit import list_accesses
from yikatong.core.access.callers import LOCAL, Caller, parse_identity
from yikatong.core.cards import assignment, card_life, e_cards, issuance
from yikatong.core.cards.card_life import State
from yikatong.core.cards.device_proof import activation_proof
from yikatong.core.cards.riding import Riding
from yikatong.core.errors import InvalidRequest
from yikatong.core.identity import persons
from yikatong.core.types import Deny, Result
from yikatong.v1 import audit_service_pb2, e_card_service_pb2, person_service_pb2
from yikatong.v1 import issuance_service_pb2 as pb

WHY = {"purpose": "registration at the counter", "legal_basis": "consent"}
CARD = "3104416000000017"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[CardDesk]:
    made = CardDesk(tmp_path / "data")
    yield made
    made.close()


def assign(desk: CardDesk, card_number: str, person_id: bytes, caller: Caller = LOCAL, **fields: Any) -> pb.AssignCardResponse:
    request = pb.AssignCardRequest(
        **({"request_id": new_id(), "card_number": card_number, "person_id": person_id} | WHY | fields)
    )
    answer: pb.AssignCardResponse = desk.ask(assignment.assign_card, request, caller=caller)
    return answer


def concede(desk: CardDesk, person_id: bytes, rider: int, until: int = 0) -> None:
    concession = person_service_pb2.Concession(rider=rider, valid_until=until, proof_reference="P1")
    request = person_service_pb2.SetConcessionRequest(request_id=new_id(), person_id=person_id, concession=concession)
    assert desk.ask(persons.set_concession, request).result == Result.ACCEPTED


def issue_e_card(desk: CardDesk, card_number: str) -> Any:
    request = e_card_service_pb2.IssueECardRequest(request_id=new_id(), card_number=card_number)
    return desk.core.ask(functools.partial(e_cards.issue_e_card, desk.provider), request)


def activate(desk: CardDesk, card_number: str) -> bytes:
    """A device that shows the card's e-card."""
    asked = e_card_service_pb2.StartActivationRequest(request_id=new_id(), card_number=card_number)
    started = desk.core.ask(functools.partial(e_cards.start_activation, desk.provider), asked)
    device_id, public_key = new_id(), b"\2" + bytes(range(32))
    request = e_card_service_pb2.ActivateDeviceRequest(
        request_id=new_id(), code=started.code, device_id=device_id, public_key=public_key,
        proof=activation_proof(started.activation_secret, started.code, device_id, public_key),
    )  # fmt: skip
    assert desk.core.ask(functools.partial(e_cards.activate_device, desk.provider, 2), request).result == Result.ACCEPTED
    return device_id


def test_what_the_card_has_stays_and_the_concession_is_the_persons(desk: CardDesk) -> None:
    slot, person_id = desk.register(CARD), desk.new_person()
    desk.core.top_up(CARD, 4_200)
    desk.change(lambda change: change.entitle(slot, Riding(5).entitlement(1, 0)))  # as SetEntitlement would
    concede(desk, person_id, 3, 20991231)
    request_id = new_id()
    answer = assign(desk, CARD, person_id, request_id=request_id)
    assert answer.result == Result.ACCEPTED
    for again in (desk.core.restart, desk.core.checkpoint, desk.core.restart):
        again()
        card = desk.core.engine.card(slot)
        assert (card["rider"], card["rider_until"], card["pass_number"]) == (3, persons.day_of(20991231), 1)
        assert desk.core.balance(CARD).balance_fen == 4_200
        assert persons.cards_of(desk.memory, person_id) == [slot]
        repeated = assign(desk, CARD, person_id, request_id=request_id)
        assert (repeated.result, repeated.duplicate, repeated.sequence) == (Result.ACCEPTED, True, answer.sequence)
    concede(desk, person_id, 1)
    assert desk.core.engine.card(slot)["rider"] == 1
    request = audit_service_pb2.ListAccessesRequest(person_id=person_id, **WHY)
    listed = desk.ask(list_accesses, request, persons.person_of_card)
    noted = [access for access in listed.accesses if access.action == "IssuanceService.AssignCard"]
    assert [(access.purpose, access.legal_basis) for access in noted] == [(WHY["purpose"], WHY["legal_basis"])]


def test_an_e_card_that_anybody_may_hold_ends_and_the_person_gets_one(desk: CardDesk) -> None:
    desk.register(CARD)
    person_id = desk.new_person()
    number = issue_e_card(desk, CARD).e_card.e_card_number
    device_id = activate(desk, CARD)
    with pytest.raises(InvalidRequest, match="e-card"):
        assign(desk, number, person_id)
    answer = assign(desk, CARD, person_id)
    device = e_cards.find_device(desk.memory, device_id)
    assert device is not None
    assert device.revoked_time_us
    assert issue_e_card(desk, CARD).result == Result.ACCEPTED
    again = e_cards.find_device(desk.memory, device_id)
    assert again is not None
    assert again.revoked_time_us == device.revoked_time_us
    assert activate(desk, CARD) != device_id
    assert answer.sequence < desk.core.journal.next_sequence


def test_afterwards_it_is_a_card_as_any_other(desk: CardDesk) -> None:
    desk.register(CARD)
    person_id = desk.new_person()
    desk.core.top_up(CARD, 700)
    assert assign(desk, CARD, person_id).result == Result.ACCEPTED
    assert desk.apply(person_id).result == Result.CARD_PRESENT
    application = desk.issue(person_id, "200", issuance.REPLACEMENT, pick_up=False, old_card_number=CARD)
    assert desk.pick_up(application).result == Result.ACCEPTED
    assert desk.core.balance("200").balance_fen == 700
    assert (desk.state(CARD), desk.state("200")) == (State.CANCELLED, State.ENABLED)


STATES = {
    "enabled": (lambda desk: None, Result.ACCEPTED),
    "in debt": (lambda desk: desk.change(lambda change: change.deny(desk.slot(CARD), Deny.DEBT)), Result.ACCEPTED),
    "found again": (lambda desk: (desk.lose(CARD), desk.lift(CARD)), Result.ACCEPTED),
    "lost": (lambda desk: desk.lose(CARD), Result.CARD_DENIED),
    "lost for a while": (lambda desk: desk.lose(CARD, final=False), Result.CARD_DENIED),
    "frozen": (lambda desk: desk.freeze(CARD), Result.CARD_DENIED),
    "cancelled": (lambda desk: desk.cancel(CARD), Result.CARD_DENIED),
    "not enabled": (lambda desk: desk.not_enabled(desk.slot(CARD)), Result.CARD_DENIED),
    "expired": (lambda desk: setattr(desk.core, "now_us", desk.core.now_us + 800 * 86_400 * 10**6), Result.CARD_EXPIRED),
}


@pytest.mark.parametrize("name", STATES)
def test_only_a_card_that_is_good(desk: CardDesk, name: str) -> None:
    prepare, result = STATES[name]
    desk.register(CARD, expires=20270101)
    person_id = desk.new_person()
    prepare(desk)  # type: ignore[no-untyped-call]
    before = len(persons.cards_of(desk.memory, person_id))
    assert assign(desk, CARD, person_id).result == result
    assert len(persons.cards_of(desk.memory, person_id)) - before == (result == Result.ACCEPTED)


def test_who_gets_none(desk: CardDesk) -> None:
    for number in (CARD, "200", "300"):
        desk.register(number)
    own, other = (parse_identity(f"yikatong:department:hrss:{district}") for district in ("441602", "110101"))
    first, second, gone = desk.new_person(), desk.new_person(), desk.new_person()
    erased = person_service_pb2.ErasePersonRequest(request_id=new_id(), person_id=gone, **WHY)
    assert desk.ask(persons.erase_person, erased).result == Result.ACCEPTED
    assert assign(desk, "400", first).result == Result.UNKNOWN_CARD
    for nobody in (b"", bytes(16), gone):
        assert assign(desk, CARD, nobody).result == Result.PERSON_UNKNOWN
    assert assign(desk, CARD, first, caller=other).result == Result.PERSON_UNKNOWN
    assert assign(desk, CARD, first, caller=own).result == Result.ACCEPTED
    assert assign(desk, CARD, second).result == Result.CARD_NOT_OWN
    assert assign(desk, CARD, first).result == Result.CARD_PRESENT
    assert assign(desk, "200", first).result == Result.CARD_PRESENT
    elsewhere = desk.new_person(district="110101")
    assert assign(desk, CARD, elsewhere, caller=other).result == Result.UNKNOWN_CARD  # whose it is, is not told
    assert desk.apply(second).result == Result.ACCEPTED
    assert assign(desk, "200", second).result == Result.APPLICATION_OPEN
    desk.cancel(CARD)
    assert assign(desk, "200", first).result == Result.ACCEPTED
    for field, value in (("card_number", "12a"), ("purpose", ""), ("legal_basis", "x" * 201), ("request_id", b"short")):
        with pytest.raises(InvalidRequest, match=field):
            assign(desk, value if field == "card_number" else "300", second, **({} if field == "card_number" else {field: value}))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_nobody_has_two_and_no_card_two_holders(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    chance = random.Random(seed)
    desk = CardDesk(tmp_path_factory.mktemp("assign") / "data")
    try:
        numbers = [str(100 + at) for at in range(6)]
        for number in numbers:
            desk.register(number)
        people = [desk.new_person() for _ in range(4)]
        holder: dict[str, bytes] = {}
        state = dict.fromkeys(numbers, State.ENABLED)
        for _ in range(40):
            number, person_id = chance.choice(numbers), chance.choice(people)
            match chance.choice(["assign", "assign", "assign", "lose", "lift", "cancel", "restart"]):
                case "assign":
                    result = Result(assign(desk, number, person_id).result)
                    has = [each for each, who in holder.items() if who == person_id and state[each] is not State.CANCELLED]
                    if holder.get(number, person_id) != person_id:
                        assert result is Result.CARD_NOT_OWN
                    elif state[number] is not State.ENABLED:
                        assert result is Result.CARD_DENIED
                    elif has:
                        assert result is Result.CARD_PRESENT
                    else:
                        assert result is Result.ACCEPTED
                        holder[number] = person_id
                case "lose" if state[number] is State.ENABLED:
                    desk.lose(number)
                    state[number] = State.LOST
                case "lift" if state[number] is State.LOST:
                    desk.lift(number)
                    state[number] = State.ENABLED
                case "cancel" if chance.random() < 0.5 and state[number] is not State.CANCELLED:
                    desk.cancel(number)
                    state[number] = State.CANCELLED
                case "restart":
                    desk.core.restart()
            for each in numbers:
                assert persons.person_of_card(desk.memory, desk.slot(each)) == holder.get(each)
                assert State(card_life.at(desk.memory, desk.slot(each), desk.core.now_us).state) is state[each]
    finally:
        desk.close()
    audit(desk.core.path)
