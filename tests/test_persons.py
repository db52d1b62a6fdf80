"""Persons: registered once, found by number, shown masked, put right, erased; what the disk holds of them, and what not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Harness
from people import citizen_number, keys, new_id, person, provider

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.access.callers import LOCAL, Caller
from yikatong.core.change import Change
from yikatong.core.errors import CommitFailed, InvalidRequest
from yikatong.core.identity import persons
from yikatong.core.keys.provider import KeyUnknown, SealedDataWrong
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.types import Deny, DocumentKind, Result
from yikatong.v1 import access_pb2, card_service_pb2, journal_pb2
from yikatong.v1 import person_service_pb2 as pb

WHY = {"purpose": "card issue", "legal_basis": "Social Insurance Law, article 58"}
HRSS = Caller(access_pb2.ROLE_DEPARTMENT, "hrss", "441602")
ELSEWHERE = Caller(access_pb2.ROLE_DEPARTMENT, "hrss", "441621")
CITY = Caller(access_pb2.ROLE_DEPARTMENT, "hrss", "441600")


class Desk:
    """A core and the keys of persons."""

    def __init__(self, path: Path) -> None:
        self.core = Harness(path)
        self.provider = provider()

    def ask(self, command: Any, request: Any, caller: Caller = LOCAL, *, keyed: bool = True) -> Any:
        before = (self.provider,) if keyed else ()
        return self.core.ask(lambda memory, message, time_us: command(*before, memory, message, time_us, caller), request)

    def register(self, data: pb.PersonData, caller: Caller = LOCAL, request_id: bytes = b"") -> Any:
        return self.ask(persons.register_person, pb.RegisterPersonRequest(request_id=request_id or new_id(), data=data), caller)

    def correct(self, person_id: bytes, data: pb.PersonData, caller: Caller = LOCAL) -> Any:
        request = pb.CorrectPersonRequest(request_id=new_id(), person_id=person_id, data=data, **WHY)
        return self.ask(persons.correct_person, request, caller)

    def erase(self, person_id: bytes, caller: Caller = LOCAL, request_id: bytes = b"") -> Any:
        request = pb.ErasePersonRequest(request_id=request_id or new_id(), person_id=person_id, **WHY)
        return self.ask(persons.erase_person, request, caller, keyed=False)

    def get(self, caller: Caller = LOCAL, view: int = pb.PERSON_VIEW_FULL, **key: Any) -> Any:
        return self.ask(persons.get_person, pb.GetPersonRequest(view=view, **WHY, **key), caller)

    def concede(self, person_id: bytes, caller: Caller = LOCAL, **fields: Any) -> Any:
        concession = pb.Concession(**({"rider": 3, "proof_reference": "S-1"} | fields))
        request = pb.SetConcessionRequest(request_id=new_id(), person_id=person_id, concession=concession)
        return self.ask(persons.set_concession, request, caller, keyed=False)

    def due(self, until: int, caller: Caller = LOCAL, **fields: Any) -> Any:
        request = pb.ListConcessionsDueRequest(until=until, **WHY, **fields)
        return self.ask(persons.list_concessions_due, request, caller, keyed=False)

    def destroy_dropped(self) -> int:
        def ask(command: Any) -> Any:
            return self.core.ask(lambda memory, _, time_us: command(memory, time_us), None)

        return persons.destroy_dropped_keys(ask)

    def give(self, person_id: bytes, card_number: str) -> int:
        self.core.register_card(card_number)
        slot = self.core.engine.find_card(card_number)
        change = Change(self.core.memory, self.core.now_us)
        persons.give_card(change, person_id, slot)
        change.commit("given")
        self.core.take()
        self.core.commit()
        return slot

    def cancel(self, slot: int) -> None:
        change = Change(self.core.memory, self.core.now_us)
        change.deny(slot, Deny.CANCELLED)
        change.commit("cancelled")
        self.core.take()
        self.core.commit()

    def notes(self, person_id: bytes) -> list[journal_pb2.Access]:
        found = self.core.memory.documents.scan(DocumentKind.ACCESS, person_id, person_id + b"\xff" * 9)
        return [journal_pb2.Access.FromString(value) for _, value in found][::-1]  # oldest first

    def on_disk(self) -> bytes:
        self.core.checkpoint()
        return b"".join(path.read_bytes() for path in sorted(self.core.path.iterdir()) if path.is_file())


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "data")
    yield made
    made.core.close()


def test_registered_once_and_found_again(desk: Desk) -> None:
    first = desk.register(person(1))
    assert first.result == Result.ACCEPTED
    assert first.person_id == first.sequence.to_bytes(8, "big") + bytes(8)
    again = desk.register(person(1, name="别人"))
    assert (again.result, again.person_id) == (Result.PERSON_EXISTS, first.person_id)
    assert desk.register(person(2)).result == Result.ACCEPTED
    for restart in (lambda: None, desk.core.checkpoint, desk.core.restart):
        restart()
        memory = desk.core.memory
        assert persons.find(memory, desk.provider, citizen_number(1)) == first.person_id
        assert persons.find(memory, desk.provider, citizen_number(3)) is None
        known = persons.show(memory, desk.provider, first.person_id)
        assert known is not None
        assert known[1:] == ("王小明1", citizen_number(1), 19900307, "13800138000", "河源市源城区东城路1号", "441602")
        assert "王" not in repr(known)


def test_a_request_again_is_answered_again(desk: Desk) -> None:
    once = new_id()
    first, again = desk.register(person(1), request_id=once), desk.register(person(1), request_id=once)
    assert (again.person_id, again.duplicate, again.sequence) == (first.person_id, True, first.sequence)
    assert desk.register(person(2), request_id=once).result == Result.CONFLICT
    assert (desk.core.path / "person_keys").stat().st_size == 64


BAD = [
    ("name", ""), ("name", " 王"), ("name", "王\n"), ("name", "王" * 65), ("citizen_number", "110105194912310021"),
    ("phone", "1380013800a"), ("phone", "123"), ("phone", "1--380013"), ("phone", "１３８００１３８０００"),
    ("address", "路" * 201), ("address", "a\x00"), ("district", "4416"), ("district", "041602"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD, ids=[f"{field}-{at}" for at, (field, _) in enumerate(BAD)])
def test_bad_data_names_the_field(desk: Desk, field: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        desk.register(person(1, **{field: value}))
    assert caught.value.field == f"data.{field}"
    assert value not in str(caught.value) or not value  # an error ends in logs
    assert desk.core.engine.next_sequence == 1


def test_masks() -> None:
    assert [persons.mask_name(name) for name in ("王小明", "王", "欧阳修", "欧阳", "司马相如", "A")] == [
        "王*", "王*", "欧阳*", "欧*", "司马*", "A*",
    ]  # fmt: skip
    number = citizen_number(1)
    assert persons.mask_citizen_number(number) == number[0] + "*" * 15 + number[-2:]
    assert persons.mask_citizen_number(number, clerk=True) == number[:6] + "*" * 8 + number[-4:]


def test_views_show_what_they_may_and_each_is_noted(desk: Desk) -> None:
    person_id = desk.register(person(1), HRSS).person_id
    number = citizen_number(1)
    public = desk.get(HRSS, pb.PERSON_VIEW_UNSPECIFIED, citizen_number=number).person
    assert (public.data.name, public.data.citizen_number) == ("王*", persons.mask_citizen_number(number))
    assert (public.data.phone, public.data.address, public.birth_date) == ("", "", 0)
    clerk = desk.get(HRSS, pb.PERSON_VIEW_CLERK, person_id=person_id).person
    assert clerk.data.citizen_number == number[:6] + "********" + number[-4:]
    full = desk.get(HRSS, person_id=person_id).person
    assert full.data == person(1)
    assert full.birth_date == 19900307
    notes = desk.notes(person_id)
    assert [note.action for note in notes] == ["PersonService.RegisterPerson"] + ["PersonService.GetPerson"] * 3
    assert notes[3].purpose == WHY["purpose"]
    assert {"name", "citizen_number", "phone", "address", "birth_date"} <= set(notes[3].fields)
    assert "phone" not in notes[1].fields
    with pytest.raises(InvalidRequest, match="purpose"):
        desk.ask(persons.get_person, pb.GetPersonRequest(person_id=person_id, view=pb.PERSON_VIEW_FULL))
    for fields, field in (
        ({}, "key"), ({"person_id": b"x"}, "person_id"), ({"card_number": "x"}, "card_number"),
        ({"citizen_number": "x"}, "citizen_number"), ({"person_id": person_id, "view": 9}, "view"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest, match=field):
            desk.ask(persons.get_person, pb.GetPersonRequest(**fields))


def test_who_is_kept_to_a_district_sees_nobody_else(desk: Desk) -> None:
    person_id = desk.register(person(1), CITY).person_id
    for caller, result in ((HRSS, Result.ACCEPTED), (CITY, Result.ACCEPTED), (ELSEWHERE, Result.PERSON_UNKNOWN)):
        assert desk.get(caller, person_id=person_id).result == result
        assert desk.get(caller, citizen_number=citizen_number(1)).result == result
        assert desk.concede(person_id, caller).result == result
    known = desk.register(person(1, district="441621"), ELSEWHERE)
    assert (known.result, known.person_id) == (Result.PERSON_EXISTS, b"")
    assert desk.correct(person_id, person(1, district="441621"), ELSEWHERE).result == Result.PERSON_UNKNOWN
    assert desk.erase(person_id, ELSEWHERE).result == Result.PERSON_UNKNOWN
    with pytest.raises(InvalidRequest, match=r"data\.district"):
        desk.register(person(2), ELSEWHERE)


def test_nothing_of_a_person_is_on_disk_in_the_clear(desk: Desk) -> None:
    data = person(1, name="欧阳阿福", phone="13912345678", address="源城区长堤路88号")
    person_id = desk.register(data).person_id
    desk.get(person_id=person_id)
    desk.get(citizen_number=data.citizen_number)
    desk.correct(person_id, person(1, name="欧阳阿寿"))
    written = desk.on_disk()
    assert person_id in written  # what is looked for would be found
    for text in ("欧阳", "阿福", "阿寿", "13912345678", "长堤路", data.citizen_number):
        for codec in ("utf-8", "gb18030", "utf-16-le"):
            assert text.encode(codec) not in written


def test_a_correction_destroys_what_was_wrong(desk: Desk) -> None:
    person_id = desk.register(person(1)).person_id
    desk.register(person(2))
    before = persons.load(desk.core.memory, person_id)
    assert before is not None
    assert desk.correct(person_id, person(2)).result == Result.PERSON_EXISTS
    assert desk.correct(bytes(16), person(3)).result == Result.PERSON_UNKNOWN
    assert desk.correct(person_id, person(4, phone="")).result == Result.ACCEPTED
    assert list(desk.notes(person_id)[-1].fields) == ["name", "citizen_number", "phone"]
    memory = desk.core.memory
    assert persons.find(memory, desk.provider, citizen_number(1)) is None
    assert persons.find(memory, desk.provider, citizen_number(4)) == person_id
    assert memory.person_keys.get(desk.provider, person_id, before.key_slot)
    assert [desk.destroy_dropped(), desk.destroy_dropped()] == [1, 0]
    with pytest.raises(SealedDataWrong):
        memory.person_keys.get(desk.provider, person_id, before.key_slot)
    assert persons.show(memory, desk.provider, person_id).name == "王小明4"  # type: ignore[union-attr]


def test_what_an_old_key_sealed_is_opened_and_sealed_anew_when_written(desk: Desk) -> None:
    old, new = dict(keys(1)), dict(keys(2))
    desk.provider = SoftwareProvider(old)
    people = [desk.register(person(serial)).person_id for serial in (1, 2)]
    desk.provider = SoftwareProvider(old | new)
    assert desk.register(person(1)).result == Result.PERSON_EXISTS
    assert desk.get(person_id=people[0]).person.data == person(1)
    assert desk.correct(people[0], person(1, phone="")).result == Result.ACCEPTED
    desk.provider = SoftwareProvider(new)
    assert desk.get(citizen_number=citizen_number(1)).person.data == person(1, phone="")
    with pytest.raises(KeyUnknown):
        desk.get(person_id=people[1])


def test_erased_is_erased(desk: Desk) -> None:
    person_id = desk.register(person(1)).person_id
    slot = desk.give(person_id, "100")
    assert persons.person_of_card(desk.core.memory, slot) == person_id
    assert desk.erase(person_id).result == Result.PERSON_IN_USE
    desk.core.top_up("100", 5)
    desk.cancel(slot)
    assert desk.erase(person_id).result == Result.PERSON_IN_USE
    change = Change(desk.core.memory, desk.core.now_us)
    change.move(desk.core.engine.card(slot)["account"], 0, 5, 11)  # type: ignore[arg-type]
    change.commit("paid out")
    desk.core.take()
    desk.core.commit()
    kept = persons.load(desk.core.memory, person_id)
    assert kept is not None
    stolen = (desk.core.path / "person_keys").read_bytes()
    once = new_id()
    assert desk.erase(person_id, request_id=once).result == Result.ACCEPTED
    assert desk.erase(person_id, request_id=once).duplicate
    desk.core.restart()  # killed before the key was destroyed: it is found again
    assert desk.destroy_dropped() == 1
    assert not any((desk.core.path / "person_keys").read_bytes())
    assert any(stolen)
    memory = desk.core.memory
    assert persons.find(memory, desk.provider, citizen_number(1)) is None
    assert persons.show(memory, desk.provider, person_id) is None
    # The journal still has the ciphertext, and the master does not open it.
    with pytest.raises(SealedDataWrong):
        memory.person_keys.get(desk.provider, person_id, kept.key_slot)
    left = desk.get(person_id=person_id).person
    assert (left.erased, left.data.name, list(left.card_numbers)) == (True, "", ["100"])
    assert desk.erase(person_id).result == Result.PERSON_UNKNOWN
    assert desk.correct(person_id, person(1)).result == Result.PERSON_UNKNOWN
    assert desk.concede(person_id).result == Result.PERSON_UNKNOWN
    assert [note.action for note in desk.notes(person_id)][-2:] == ["PersonService.ErasePerson", "PersonService.GetPerson"]
    assert desk.register(person(1)).person_id not in (b"", person_id)


def test_a_full_disk_registers_nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yikatong.core.identity.person_keys.os.pwrite", lambda *_: 10)
    with pytest.raises(CommitFailed, match="person_keys"):
        desk.register(person(1))
    monkeypatch.undo()
    desk.core.rebuild()
    assert persons.find(desk.core.memory, desk.provider, citizen_number(1)) is None
    (desk.core.path / "person_keys").write_bytes(b"torn")
    person_id = desk.register(person(1)).person_id
    assert desk.get(person_id=person_id).person.data == person(1)


def test_a_key_belongs_to_one_person(desk: Desk) -> None:
    first, second = (desk.register(person(serial)).person_id for serial in (1, 2))
    file = desk.core.path / "person_keys"
    raw = file.read_bytes()
    file.write_bytes(raw[64:] + raw[:64])
    for person_id in (first, second):
        with pytest.raises(SealedDataWrong):
            persons.show(desk.core.memory, desk.provider, person_id)
    file.write_bytes(raw[:16] + raw[80:128] + raw[64:])  # another's wrapped key under one's own name
    with pytest.raises(SealedDataWrong):
        persons.show(desk.core.memory, desk.provider, first)


def test_concessions_are_on_all_cards_and_end(desk: Desk) -> None:
    person_id = desk.register(person(1)).person_id
    slots = [desk.give(person_id, number) for number in ("100", "101")]
    kept = card_service_pb2.Card(card_number="200", issuer_id=bytes(8), rider=1).SerializeToString()
    e_card = desk.core.engine.add_card("200", bytes(8), 1, 0, desk.core.now_us, kept, twin=slots[0])
    desk.core.take()
    desk.core.commit()
    assert persons.person_of_card(desk.core.memory, e_card) == person_id
    desk.cancel(slots[1])
    assert desk.concede(person_id, valid_until=20301231).result == Result.ACCEPTED
    for restart in (lambda: None, desk.core.restart):
        restart()
        riders = [desk.core.engine.card(slot)["rider"] for slot in (*slots, e_card)]
        assert riders == [3, 1, 3]
        assert desk.core.engine.card(e_card)["rider_until"] == (2030 - 1970) * 365 + 15 + 365 - 1
    other = desk.register(person(2)).person_id
    desk.concede(other, valid_until=20290101)
    assert [each.person_id for each in desk.due(20301230).due] == [other]
    assert [each.person_id for each in desk.due(20301231).due] == [other, person_id]
    page = desk.due(20301231, page_size=1)
    assert [each.person_id for each in desk.due(20301231, page_size=1, page_token=page.next_page_token).due] == [person_id]
    assert not desk.due(20301231, ELSEWHERE).due
    assert desk.notes(other)[-1].action == "PersonService.ListConcessionsDue"
    assert desk.concede(person_id, rider=1, proof_reference="").result == Result.ACCEPTED
    assert desk.core.engine.card(slots[0])["rider"] == 1
    assert [each.person_id for each in desk.due(20301231).due] == [other]
    for field, value in (("rider", 99), ("valid_until", 20200101), ("valid_until", 20301301), ("valid_from", 20990101),
                         ("proof_reference", "")):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            desk.concede(person_id, **{field: value})
        assert caught.value.field == f"concession.{field}"


def test_over_grpc(server: EmbeddedServer, connection: Connection) -> None:
    service = connection.persons
    person_id = service.RegisterPerson(pb.RegisterPersonRequest(request_id=new_id(), data=person(700))).person_id
    shown = service.GetPerson(pb.GetPersonRequest(citizen_number=citizen_number(700), **WHY))
    assert shown.person.data.name == "王*"
    file = server.data / "person_keys"
    assert any(file.read_bytes())
    erased = service.ErasePerson(pb.ErasePersonRequest(request_id=new_id(), person_id=person_id, **WHY))
    assert erased.result == Result.ACCEPTED
    assert not any(file.read_bytes())  # before the answer came
    assert service.GetPerson(pb.GetPersonRequest(person_id=person_id, **WHY)).person.erased
