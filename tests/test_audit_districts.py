"""Who is kept to a district reads the audit trail of that district's people, by whatever they are named, and of nobody else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from card_desk import CardDesk
from people import new_id, person
from service_port import ServicePort

from yikatong.core.access import audit
from yikatong.core.access.callers import LOCAL, Caller, parse_identity
from yikatong.core.errors import NotFound
from yikatong.core.identity import persons
from yikatong.v1 import audit_service_pb2, person_service_pb2

NEAR, WITHIN, FAR, CITY = (
    parse_identity(f"yikatong:department:hrss{district}") for district in (":441602", ":441600", ":441625", "")
)
CARD, NOBODYS, UNKNOWN = "3104416000000017", "3104416000000025", "3104416000000033"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[CardDesk]:
    made = CardDesk(tmp_path / "data")
    for number in (CARD, NOBODYS):
        made.register(number)
    yield made
    made.close()


@pytest.fixture
def someone(desk: CardDesk) -> bytes:
    """A person of 441602 with a card."""
    request = person_service_pb2.RegisterPersonRequest(request_id=new_id(), data=person(1, district="441602"))
    person_id: bytes = desk.ask(persons.register_person, request, desk.provider).person_id
    desk.change(lambda change: persons.give_card(change, person_id, desk.slot(CARD)))
    return person_id


@pytest.fixture
def read(desk: CardDesk) -> Callable[..., Any]:
    def read(caller: Caller, **subject: Any) -> Any:
        request = audit_service_pb2.ListAccessesRequest(purpose="p", legal_basis="l", **subject)
        return desk.ask(audit.list_accesses, request, persons.person_of_card, caller=caller).accesses

    return read


@pytest.mark.parametrize("caller", [NEAR, WITHIN, CITY, LOCAL])
def test_of_its_own(someone: bytes, read: Callable[..., Any], caller: Caller) -> None:
    for subject in ({"person_id": someone}, {"card_number": CARD}):
        assert read(caller, **subject)[-1].action == "PersonService.RegisterPerson"


def test_of_nobody_elses_and_all_in_the_same_words(desk: CardDesk, someone: bytes, read: Callable[..., Any]) -> None:
    before = desk.core.engine.next_sequence
    subjects = (
        {"person_id": someone},
        {"card_number": CARD},
        {"person_id": bytes(16)},
        {"card_number": NOBODYS},
        {"card_number": UNKNOWN},
    )
    told = set()
    for subject in subjects:
        with pytest.raises(NotFound) as caught:
            read(FAR, **subject)
        told.add(str(caught.value))
    assert len(told) == 1
    assert desk.core.engine.next_sequence == before


def test_who_is_kept_to_none_still_hears_that_there_is_no_card(read: Callable[..., Any]) -> None:
    with pytest.raises(NotFound):
        read(CITY, card_number=UNKNOWN)


def test_a_refusal_is_an_answer_and_disturbs_nobody(tmp_path: Path, key_file: Path) -> None:
    """At the service port: what a command raises that the writer does not expect would make the whole core start anew."""
    with ServicePort(tmp_path / "data", key_file) as port:
        for subject in ({"person_id": bytes(16)}, {"card_number": UNKNOWN}):
            with pytest.raises(NotFound):
                port.call("AuditService/ListAccesses", caller=FAR, purpose="p", legal_basis="l", **subject)
