"""The audit trail: what services show is noted before it is shown, for whom, by whom and what for, and nothing of it can go."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from day_city import DATE, SEAL_KEY, City
from google.protobuf.message_factory import GetMessageClass
from harness import Harness
from service_port import ServicePort, department, operator

from yikatong.core.access import audit, personal
from yikatong.core.access.callers import LOCAL
from yikatong.core.access.oversight import method_of
from yikatong.core.access.personal import NOBODY, Subject
from yikatong.core.change import Change
from yikatong.core.check import check
from yikatong.core.day import merkle
from yikatong.core.day.seal import records_tree, verify_seal
from yikatong.core.day.windows import find_window
from yikatong.core.errors import Damaged, InvalidRequest, NotFound
from yikatong.core.journal import HEADER, sm3
from yikatong.core.memory import EngineSettings
from yikatong.core.metrics import methods_of_protos
from yikatong.core.sm2 import PrivateKey
from yikatong.core.types import KEPT_FOR_GOOD, RECORD, DocumentKind, RecordKind
from yikatong.v1 import (
    approval_service_pb2,
    audit_service_pb2,
    card_service_pb2,
    exception_service_pb2,
    journal_pb2,
    purse_service_pb2,
    settlement_service_pb2,
    tap_service_pb2,
)

CARD = "3104416000000017"
ISSUER = bytes.fromhex("5980000100000000")
PERSON = bytes(range(1, 17))
HRSS = department("hrss")


@pytest.fixture
def port(tmp_path: Path, key_file: Path) -> Any:
    with ServicePort(tmp_path / "data", key_file) as made:
        card = card_service_pb2.Card(card_number=CARD, issuer_id=ISSUER, rider=3)
        made.call("CardService/RegisterCards", cards=[card])
        yield made


def accesses(port: ServicePort, caller: Any = LOCAL, **fields: Any) -> list[Any]:
    fields = fields or {"card_number": CARD}
    return list(port.call("AuditService/ListAccesses", caller=caller, purpose="their own", **fields).accesses)


# ---- what is personal in a message ----

SHOWN = [
    # what a response holds, what the request asked for, whose fields are shown
    (card_service_pb2.GetCardResponse(), None, {}),
    (card_service_pb2.GetCardResponse(card=card_service_pb2.Card(card_number="1")), None, {}),
    (card_service_pb2.GetCardResponse(card=card_service_pb2.Card(card_number="1", rider=3)), None, {"1": {"rider"}}),
    (tap_service_pb2.GetTapResponse(tap=tap_service_pb2.Tap(card_number="7", rider=2, mac=b"1234")), None, {"7": {"rider"}}),
    (exception_service_pb2.GetExceptionResponse(
        exception=exception_service_pb2.Exception(notes=[exception_service_pb2.Note(text="Li was here")])), None, {"": {"text"}}),
    (purse_service_pb2.ListPursesResponse(purses=[purse_service_pb2.Purse(purse_kind="poor")]),
     purse_service_pb2.ListPursesRequest(card_number="9"), {"9": {"purse_kind"}}),
    (approval_service_pb2.GetApprovalResponse(request=b"x"), None, {"": {"request"}}),
]  # fmt: skip


@pytest.mark.parametrize(("response", "asked", "want"), SHOWN, ids=range(len(SHOWN)))
def test_what_a_response_shows_of_whom(response: Any, asked: Any, want: dict[str, set[str]]) -> None:
    found = personal.shown_by_subject(response, asked)
    assert {subject.card_number: names for subject, names in found.items()} == want
    assert personal.shown_fields(response) == sorted({name for names in want.values() for name in names})


def test_what_each_message_shows_is_found_in_every_place() -> None:
    """Every personal field of every response, set alone, is found: repeated, nested, in a oneof."""
    looked_at = 0
    for _, service, name in methods_of_protos():
        output = method_of(f"{service}/{name}").output_type
        for path in _personal_paths(output):
            message = _with_only(output, path)
            assert path[-1].name in personal.shown_fields(message), (output.full_name, [field.name for field in path])
            looked_at += 1
    assert looked_at > 10


def _personal_paths(descriptor: Any, above: tuple[Any, ...] = ()) -> Any:
    for field in descriptor.fields:
        if personal.level_of(field) in personal.ABOUT_SOMEBODY:
            yield (*above, field)
        if field.message_type is not None and field not in above and not field.message_type.GetOptions().map_entry:
            yield from _personal_paths(field.message_type, (*above, field))


def _with_only(descriptor: Any, path: tuple[Any, ...]) -> Any:
    message: Any = GetMessageClass(descriptor)()
    at = message
    for field in path[:-1]:
        at = getattr(at, field.name).add() if field.is_repeated else getattr(at, field.name)
    last = path[-1]
    if last.message_type is not None:
        inner = getattr(at, last.name)
        inner.add() if last.is_repeated else inner.SetInParent()
        return message
    value: Any = {last.CPPTYPE_STRING: "x", last.CPPTYPE_BOOL: True}.get(last.cpp_type, 1)
    value = b"x" if last.type == last.TYPE_BYTES else value
    if last.is_repeated:
        getattr(at, last.name).append(value)
    else:
        setattr(at, last.name, value)
    return message


NO_PURPOSE = {
    # methods that show something about somebody and do not ask what for, and why
    "TapService/GetTap": "the rider category that a tap stated; whoever has the tap's sequence settles or disputes it",
    "CardLifeService/GetCardStatus": "who froze a card and why, to those who serve its holder and never to banks",
    "ECardService/ListDevices": "the devices that a person bound, to the app in the person's hand",
    "IdentityService/RedeemTicket": "what the person consented to, for the purpose that the login began with",
    "CardService/GetCard": "the rider category that a terminal prices by",
    "ExceptionService/*": "notes of operators on their own work, which name people only where they must",
    "PurseService/*": "the kind of a purse, to the department that opened it or whoever pays from it",
}


def test_who_is_shown_somebody_must_say_what_for() -> None:
    """A new method whose response tells who somebody is has a field `purpose`, or stands in the table with a reason."""
    exempt = set()
    for _, service, name in methods_of_protos():
        method = method_of(f"{service}/{name}")
        short = service.removeprefix("yikatong.v1.")
        if not personal.may_show(method.output_type) or "purpose" in method.input_type.fields_by_name:
            continue
        if f"{short}.{name}" in ("TapService.AuthorizeTap", "TapService.SubmitTaps"):
            continue
        entry = next((key for key in (f"{short}/{name}", f"{short}/*") if key in NO_PURPOSE), None)
        assert entry, f"{short}/{name} shows somebody without asking what for"
        exempt.add(entry)
    assert exempt == set(NO_PURPOSE)


# ---- the trail ----


def test_what_is_shown_is_noted_before_it_is_shown(port: ServicePort) -> None:
    before = port.core.journal.next_sequence
    port.call("CardService/GetCard", caller=HRSS, card_number=CARD)
    assert port.core.journal.next_sequence == before + 1  # durable already
    entry = accesses(port)[0]
    assert (entry.caller, entry.action, list(entry.fields)) == ("yikatong:department:hrss", "CardService.GetCard", ["rider"])
    assert (entry.sequence, entry.person_id) == (before, b"")


def test_looking_at_the_trail_is_noted_too(port: ServicePort) -> None:
    assert accesses(port, HRSS) == []
    assert [(entry.caller, entry.action, entry.purpose) for entry in accesses(port)] == [
        ("yikatong:department:hrss", "AuditService.ListAccesses", "their own")
    ]
    watched = port.call(
        "AuditService/ListCallerAccesses",
        audit_service_pb2.ListCallerAccessesRequest(caller=str(HRSS), purpose="yearly"),
        caller=operator("auditor"),
    )
    assert [entry.action for entry in watched.accesses] == ["AuditService.ListAccesses"]
    own = port.call(
        "AuditService/ListCallerAccesses",
        audit_service_pb2.ListCallerAccessesRequest(caller="yikatong:operator:auditor", purpose="who watches them"),
    )
    assert [(entry.action, entry.listed_caller) for entry in own.accesses] == [("AuditService.ListCallerAccesses", str(HRSS))]


def test_newest_first_in_pages(port: ServicePort) -> None:
    for at in range(5):
        port.call("CardService/GetCard", caller=department(f"d{at}"), card_number=CARD)
    callers, token = [], ""
    while True:
        page = port.call("AuditService/ListAccesses", card_number=CARD, purpose="x", page_size=2, page_token=token)
        callers += [entry.caller for entry in page.accesses if entry.action == "CardService.GetCard"]
        if not (token := page.next_page_token):
            break
    assert callers == [f"yikatong:department:d{at}" for at in (4, 3, 2, 1, 0)]


def test_what_a_command_noted_itself_is_not_noted_twice(port: ServicePort) -> None:
    def command(memory: Any, time_us: int) -> list[int]:
        since = memory.engine.next_sequence
        change = Change(memory, time_us)
        audit.note(change, HRSS, "X.Y", PERSON, purpose="p", fields=["name", "phone"])
        change.commit("test")
        counts = []
        for caller, names in ((HRSS, {"name"}), (HRSS, {"name", "address"}), (department("other"), {"name"})):
            before = memory.engine.next_sequence
            audit.note_shown(memory, time_us, caller, "X.Y", "p", "", {PERSON: names}, since)
            counts.append(memory.engine.next_sequence - before)
        return counts

    assert port.ask(command) == [0, 1, 1]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"card_number": CARD}, "purpose"),
        ({"card_number": CARD, "purpose": " "}, "purpose"),
        ({"card_number": CARD, "purpose": "x" * 201}, "purpose"),
        ({"card_number": CARD, "purpose": "a\nb"}, "purpose"),
        ({"card_number": CARD, "purpose": "x", "legal_basis": "x" * 201}, "legal_basis"),
        ({"card_number": "12x", "purpose": "x"}, "card_number"),
        ({"person_id": b"short", "purpose": "x"}, "person_id"),
        ({"purpose": "x"}, "person_id"),
        ({"card_number": CARD, "purpose": "x", "page_token": "nonsense"}, "page_token"),
        ({"card_number": CARD, "purpose": "x", "page_size": 1_001}, "page_size"),
    ],
)
def test_a_bad_question_is_told_which_field(port: ServicePort, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        port.call("AuditService/ListAccesses", **fields)
    assert caught.value.field == field


def test_an_unknown_card_and_a_caller_that_is_none(port: ServicePort) -> None:
    with pytest.raises(NotFound):
        port.call("AuditService/ListAccesses", card_number="99", purpose="x")
    with pytest.raises(InvalidRequest, match="caller"):
        port.call(
            "AuditService/ListCallerAccesses", audit_service_pb2.ListCallerAccessesRequest(caller="hrss", purpose="x")
        )  # fmt: skip


def test_a_persons_entries_stand_under_the_person_whatever_card_was_shown(port: ServicePort) -> None:
    def command(memory: Any, _: int) -> Any:
        shown = {Subject(card_number=CARD): {"rider"}, Subject(person_id=PERSON): {"name"}, Subject(): {"text"}}
        return audit.ids_of(memory, shown, lambda memory, slot: PERSON), audit.ids_of(memory, shown, lambda memory, slot: None)

    known, unknown = port.ask(command)
    assert known == {PERSON: {"name", "rider"}, NOBODY: {"text"}}
    assert len(unknown) == 3
    assert {len(subject) for subject in unknown} == {16}


# ---- append-only, chained, sealed ----


def _note(city: Harness, person: bytes = PERSON, action: str = "PersonService.GetPerson") -> int:
    def command(memory: Any, _: Any, time_us: int) -> int:
        change = Change(memory, time_us)
        audit.note(change, HRSS, action, person, purpose="pension", fields=["name"])
        return change.commit("shown")

    return int(city.ask(command, None))


def test_no_change_can_alter_or_delete_an_entry(tmp_path: Path) -> None:
    with City(tmp_path / "data") as city:
        _note(city)
        for kind in KEPT_FOR_GOOD:
            key, value = next(iter(city.memory.documents.scan(kind)))
            change = Change(city.memory, city.now_us)
            with pytest.raises(ValueError, match="never deleted"):
                change.delete(kind, key)
            with pytest.raises(ValueError, match="never altered"):
                change.put(kind, key, value)


def test_entries_are_there_after_a_restart_and_a_checkpoint(tmp_path: Path) -> None:
    with City(tmp_path / "data") as city:
        sequences = [_note(city) for _ in range(3)]
        city.checkpoint()
        sequences.append(_note(city))
        city.restart()
        found = [journal_pb2.Access.FromString(value) for _, value in city.memory.documents.scan(DocumentKind.ACCESS, PERSON)]
        assert [access.sequence for access in found] == sequences[::-1]


def alter(path: Path, change: Any) -> None:
    """Rewrite every journal value as somebody would who has the disk and knows the format: `change(records, payloads)` alters a
    value's parts, and all digests and the chain are made anew. The state is thrown away, so it is rebuilt from that."""
    previous = bytes(32)
    with lmdb.open(str(path / "journal.mdb"), subdir=False, max_dbs=8) as environment:
        groups = environment.open_db(b"groups")
        with environment.begin(write=True) as transaction:
            values = [(bytes(key), bytes(value)) for key, value in transaction.cursor(groups)]
            for key, value in values:
                header = list(HEADER.unpack(value[: HEADER.size]))
                count = header[4]
                records = np.frombuffer(value[HEADER.size : HEADER.size + count * RECORD.itemsize], RECORD).copy()
                body, payloads = change(records, value[HEADER.size + count * RECORD.itemsize :])
                header[5], header[7] = len(payloads), previous
                header[8] = hashlib.sha256(body.tobytes() + payloads).digest()
                packed = HEADER.pack(*header)
                previous = sm3(packed)
                transaction.put(key, packed + body.tobytes() + payloads, db=groups)
    for name in ("state.mdb", "state.mdb-lock"):
        (path / name).unlink(missing_ok=True)


def hide_purpose(records: Any, payloads: bytes) -> tuple[Any, bytes]:
    return records, payloads.replace(b"pension", b"nothing")


def hide_purpose_and_digest(records: Any, payloads: bytes) -> tuple[Any, bytes]:
    payloads = payloads.replace(b"pension", b"nothing")
    for record in records:
        if record["kind"] == RecordKind.EVENT:
            at, length, shift = int(record["payload_place"]) - 1, 0, 0
            while True:
                byte = payloads[at]
                at += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            record["event_digest"] = np.frombuffer(sm3(payloads[at : at + length]), np.uint8)
    return records, payloads


def drop_events(records: Any, payloads: bytes) -> tuple[Any, bytes]:
    """The entry becomes a record that says nothing."""
    records["kind"][records["kind"] == RecordKind.EVENT] = RecordKind.HOLD
    return records, payloads


@pytest.fixture
def sealed(tmp_path: Path) -> Any:
    """A data directory with a sealed day that holds an entry; its seal."""
    data = tmp_path / "data"
    with City(data) as city:
        city.tap()
        _note(city)
        city.sealed()
        seal = city.day.get_seal(settlement_service_pb2.GetSealRequest(settlement_date=DATE)).seal
    check(data, EngineSettings())
    return data, verify_seal(seal, SEAL_KEY.public_key())["records_root"]


def root_of(data: Path) -> str:
    with Harness(data) as city, city.journal.read() as reader:
        window = find_window(reader, DATE)
        assert window is not None
        return str(merkle.root(records_tree(reader, window)).hex())


def test_an_entry_altered_on_disk_is_found_by_check(sealed: Any) -> None:
    data, root = sealed
    assert root_of(data) == root
    alter(data, hide_purpose)
    root_of(data)  # opening it makes the state anew; that believes the journal
    with pytest.raises(Damaged, match="its event is not what was written"):
        check(data, EngineSettings())


@pytest.mark.parametrize("change", [hide_purpose_and_digest, drop_events])
def test_an_entry_altered_with_all_that_vouches_for_it_is_found_by_the_seal(sealed: Any, change: Any) -> None:
    data, root = sealed
    alter(data, change)
    with contextlib.suppress(Damaged):  # without its events it makes no sense, and is not even opened
        assert root_of(data) != root
    with pytest.raises(Damaged, match="are not those sealed" if change is hide_purpose_and_digest else None):
        check(data, EngineSettings(), seal_key=SEAL_KEY.public_key())


def test_another_key_signs_no_seal(sealed: Any) -> None:
    data, _ = sealed
    assert check(data, EngineSettings(), seal_key=SEAL_KEY.public_key()).seals == 1
    with pytest.raises(Damaged, match="signature is wrong"):
        check(data, EngineSettings(), seal_key=PrivateKey.make().public_key())


def test_a_journal_without_the_entry_is_found(sealed: Any) -> None:
    """Dropping the whole value leaves a gap, whatever the digests say."""
    data, _ = sealed
    with lmdb.open(str(data / "journal.mdb"), subdir=False, max_dbs=8) as environment:
        groups = environment.open_db(b"groups")
        with environment.begin(write=True) as transaction:
            keys = [bytes(key) for key, value in transaction.cursor(groups) if b"pension" in bytes(value)]
            assert keys
            transaction.delete(keys[0], db=groups)
    with pytest.raises(Damaged, match="missing"):
        check(data, EngineSettings())
