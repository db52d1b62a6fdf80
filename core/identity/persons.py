"""Persons: who the cards belong to, and which concession they ride at.

What tells who a person is (name, citizen number, telephone, address) is sealed by that person's own key (person_keys.py) and
found again by a keyed index of the citizen number only. Commands are as core/commands.py describes them; they take the provider
of keys first and the caller last, and note in the audit trail whom they showed or changed.

Erasure destroys the person's key, so that what the journal holds of them, in whatever version, can be read by nobody. What stays:
the person's id, district and the time of registration, the links to cancelled cards with their transactions, the audit trail, and
in the journal, which is never rewritten, ciphertext without a key and the keyed index of the citizen number: who has the index
key and already knows a citizen number can tell that it was registered once, and nothing else."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from yikatong.core import limits
from yikatong.core.access import audit
from yikatong.core.access.callers import Caller
from yikatong.core.acquiring.purses import account_name, purses_of
from yikatong.core.cards import card_links
from yikatong.core.cards.riding import ORDINARY, Riding, date_of, day_of, riding_of
from yikatong.core.change import Change, answered
from yikatong.core.errors import InvalidRequest
from yikatong.core.identity.identifiers import birth_date, citizen_number_fault, district_fault, is_within
from yikatong.core.keys.provider import KeyProvider, KeyUnknown, Purpose
from yikatong.core.memory import Memory
from yikatong.core.messages import check_line
from yikatong.core.paging import page_size, page_token, parse_page_token
from yikatong.core.types import NONE, Deny, DocumentKind, Result, wire
from yikatong.ext.engine import is_card_number, local_seconds, settlement_date
from yikatong.v1 import person_service_pb2 as pb
from yikatong.v1 import tap_service_pb2

PERSON_ID_BYTES: Final = 16
PersonData = pb.PersonData
_DATA: Final = b"data"
_OF_PERSON, _OF_CARD = b"p", b"c"  # keys of CARD_OF_PERSON
_CURRENT, _PENDING, _DUE = b"p", b"f", b"d"  # keys of CONCESSION
_COMPOUND_SURNAMES: Final = frozenset(
    [
        "欧阳", "司马", "上官", "诸葛", "夏侯", "皇甫", "尉迟", "公孙", "慕容", "令狐", "司徒", "司空",
        "东方", "南宫", "西门", "独孤", "端木", "长孙", "宇文", "轩辕", "百里", "呼延", "东郭", "闻人",
    ]
)  # fmt: skip


class Person(NamedTuple):
    """A person, unmasked."""

    person_id: bytes
    name: str
    citizen_number: str
    birth_date: int  # YYYYMMDD
    phone: str
    address: str
    district: str

    def __repr__(self) -> str:
        """Without what tells who it is: it may end up in a log or a traceback."""
        return f"Person({self.person_id.hex()})"


# ---- masks ----


def mask_name(name: str) -> str:
    """Surname and a star."""
    surname = name[:2] if name[:2] in _COMPOUND_SURNAMES and len(name) > 2 else name[:1]
    return surname + "*"


def mask_citizen_number(text: str, *, clerk: bool = False) -> str:
    """First character and last two; where a clerk must compare, first six and last four."""
    first, last = (6, 4) if clerk else (1, 2)
    return text[:first] + "*" * (len(text) - first - last) + text[-last:] if text else ""


# ---- documents ----


def _index_key(provider: KeyProvider, citizen_number: str) -> bytes:
    """Key of the index for something new."""
    key = provider.newest(Purpose.PERSON_INDEX)
    return bytes([key.key_version]) + provider.index(key, citizen_number.encode())


def _index_keys(provider: KeyProvider, citizen_number: str) -> Iterator[bytes]:
    """Keys under which a citizen number may stand: one for each version of the index key that there still is."""
    newest = provider.newest(Purpose.PERSON_INDEX)
    for version in range(newest.key_version, -1, -1):
        try:
            index = provider.index(newest._replace(key_version=version), citizen_number.encode())
        except KeyUnknown:
            continue
        yield bytes([version]) + index


def find(memory: Memory, provider: KeyProvider, citizen_number: str) -> bytes | None:
    """Id of the person with a citizen number."""
    for key in _index_keys(provider, citizen_number):
        if (person_id := memory.documents.get(DocumentKind.PERSON_INDEX, key)) is not None:
            return person_id
    return None


def load(memory: Memory, person_id: bytes) -> pb.PersonDocument | None:
    """What is kept of a person, erased ones too."""
    value = memory.documents.get(DocumentKind.PERSON, person_id) if len(person_id) == PERSON_ID_BYTES else None
    return None if value is None else pb.PersonDocument.FromString(value)


def show(memory: Memory, provider: KeyProvider, person_id: bytes) -> Person | None:
    """A person unmasked; None where there is none, or they were erased. Whoever shows it to somebody notes that
    (core/access/audit.py). Raises SealedDataWrong where the data or the key was altered, KeyUnknown where the master is gone."""
    document = load(memory, person_id)
    if document is None or document.erased:
        return None
    key = memory.person_keys.get(provider, person_id, document.key_slot)
    data = PersonData.FromString(key.open(document.sealed, person_id + _DATA))
    return Person(
        person_id, data.name, data.citizen_number, birth_date(data.citizen_number), data.phone, data.address, document.district
    )


def person_of_card(memory: Memory, slot: int) -> bytes | None:
    """Id of the person whom a card or e-card (slot) belongs to; None where nobody is on record."""
    card = card_links.card_of(memory, slot)
    return memory.documents.get(DocumentKind.CARD_OF_PERSON, _OF_CARD + card.to_bytes(4, "big"))


def cards_of(memory: Memory, person_id: bytes) -> list[int]:
    """Slots of a person's cards, oldest first; e-cards come by way of their cards (card_links.card_of)."""
    start = _OF_PERSON + person_id
    keys = memory.documents.scan(DocumentKind.CARD_OF_PERSON, start, start + b"\xff" * 5)
    return [int.from_bytes(key[-4:], "big") for key, _ in keys]


def give_card(change: Change, person_id: bytes, slot: int) -> None:
    """The card is this person's."""
    key = slot.to_bytes(4, "big")
    change.put(DocumentKind.CARD_OF_PERSON, _OF_PERSON + person_id + key, b"")
    change.put(DocumentKind.CARD_OF_PERSON, _OF_CARD + key, person_id)


def is_visible(caller: Caller, document: pb.PersonDocument | None) -> bool:
    """Whether there is such a person for a caller: one who is kept to a district sees that district's."""
    return document is not None and is_within(document.district, caller.district)


# ---- data as it comes ----


def data_fault(data: PersonData, today: int) -> tuple[str, str] | None:
    """The first field that is wrong, and why."""
    if (
        not 1 <= len(data.name) <= limits.PERSON_NAME_CHARACTERS_MAX
        or not data.name.isprintable()
        or data.name != data.name.strip()
    ):
        return "name", f"1 to {limits.PERSON_NAME_CHARACTERS_MAX} characters are wanted"
    if fault := citizen_number_fault(data.citizen_number, today):
        return "citizen_number", fault
    if data.phone and not _is_phone(data.phone):
        return "phone", "5 to 20 digits are wanted, perhaps a plus sign before them and hyphens between"
    if len(data.address) > limits.PERSON_ADDRESS_CHARACTERS_MAX or not _is_text(data.address):
        return "address", f"up to {limits.PERSON_ADDRESS_CHARACTERS_MAX} characters are wanted"
    if fault := district_fault(data.district):
        return "district", fault
    return None


def _is_text(text: str) -> bool:
    return text.isprintable() and text == text.strip()


def _is_phone(text: str) -> bool:
    digits = text.removeprefix("+").replace("-", "")
    return digits.isascii() and digits.isdigit() and 5 <= len(digits) <= 20 and len(text) <= 26 and "--" not in text


def check_data(data: PersonData, caller: Caller, time_us: int) -> None:
    """Raises InvalidRequest naming the field."""
    if fault := data_fault(data, settlement_date(time_us)):
        raise InvalidRequest(f"data.{fault[0]}", fault[1])
    if not is_within(data.district, caller.district):
        raise InvalidRequest("data.district", f"{caller.district} or a part of it is wanted")


def check_why(request: Any) -> None:
    """A purpose and a legal basis are stated. Raises InvalidRequest."""
    check_line("purpose", request.purpose)
    check_line("legal_basis", request.legal_basis)


# ---- writes ----


def _seal(data: PersonData) -> bytes:
    kept = PersonData(name=data.name, citizen_number=data.citizen_number, phone=data.phone, address=data.address)
    return kept.SerializeToString(deterministic=True)


def add(provider: KeyProvider, memory: Memory, change: Change, people: Sequence[PersonData]) -> list[bytes]:
    """Register new persons with a change: their ids. The data is well-formed and nobody among them is registered."""
    if not people:
        return []
    sequence = change.sequence.to_bytes(8, "big")
    person_ids = [sequence + place.to_bytes(8, "big") for place in range(len(people))]
    keys = memory.person_keys.make(provider, person_ids)
    for person_id, data, key in zip(person_ids, people, keys, strict=True):
        document = pb.PersonDocument(
            district=data.district,
            sealed=key.seal(_seal(data), person_id + _DATA),
            key_slot=key.slot,
            index_key=_index_key(provider, data.citizen_number),
            registered_time_us=change.time_us,
        )
        change.put(DocumentKind.PERSON, person_id, document.SerializeToString(deterministic=True))
        change.put(DocumentKind.PERSON_INDEX, document.index_key, person_id)
    return person_ids


def _drop_key(change: Change, slot: int) -> None:
    change.put(DocumentKind.PERSON_KEY_DROPPED, slot.to_bytes(8, "big"), b"")


def dropped_keys(memory: Memory) -> list[int]:
    """Slots of keys that are to be destroyed."""
    return [int.from_bytes(key, "big") for key, _ in memory.documents.scan(DocumentKind.PERSON_KEY_DROPPED)]


def forget_dropped_keys(memory: Memory, slots: Iterable[int], time_us: int) -> None:
    """They are destroyed."""
    change = Change(memory, time_us)
    for slot in slots:
        change.delete(DocumentKind.PERSON_KEY_DROPPED, slot.to_bytes(8, "big"))
    change.commit("person-keys-destroyed")


def destroy_dropped_keys(ask: Any) -> int:
    """Destroy what changes have dropped that are durable; returns how many keys that were. Not on the writer's thread:
    `ask(command)` runs `command(memory, time_us)` there, and returns its answer once all before it is durable."""
    slots, keys = ask(lambda memory, _: (dropped_keys(memory), memory.person_keys))
    if slots:
        keys.destroy(slots)
        ask(lambda memory, time_us: forget_dropped_keys(memory, slots, time_us))
    return len(slots)


def register_person(
    provider: KeyProvider, memory: Memory, request: pb.RegisterPersonRequest, time_us: int, caller: Caller
) -> pb.RegisterPersonResponse:
    """PersonService.RegisterPerson."""
    check_data(request.data, caller, time_us)
    if (answer := answered(memory, request, pb.RegisterPersonResponse)) is not None:
        return answer
    change = Change(memory, time_us)
    known = find(memory, provider, request.data.citizen_number)
    if known is not None:
        visible = is_visible(caller, load(memory, known))
        response = pb.RegisterPersonResponse(result=wire(Result.PERSON_EXISTS), person_id=known if visible else b"")
        return change.answer(request, response, "person-known")
    (person_id,) = add(provider, memory, change, [request.data])
    audit.note(change, caller, "PersonService.RegisterPerson", person_id)
    return change.answer(
        request, pb.RegisterPersonResponse(result=wire(Result.ACCEPTED), person_id=person_id), "person-registered"
    )


def correct_person(
    provider: KeyProvider, memory: Memory, request: pb.CorrectPersonRequest, time_us: int, caller: Caller
) -> pb.CorrectPersonResponse:
    """PersonService.CorrectPerson: under a new key, so that what was wrong can be read no more."""
    check_data(request.data, caller, time_us)
    check_why(request)
    if (answer := answered(memory, request, pb.CorrectPersonResponse)) is not None:
        return answer
    document = load(memory, request.person_id)
    change = Change(memory, time_us)
    response = pb.CorrectPersonResponse()
    if document is None or document.erased or not is_visible(caller, document):
        response.result = wire(Result.PERSON_UNKNOWN)
        return change.answer(request, response, "person-unknown")
    if find(memory, provider, request.data.citizen_number) not in (None, request.person_id):
        response.result = wire(Result.PERSON_EXISTS)
        return change.answer(request, response, "person-known")
    before = show(memory, provider, request.person_id)
    assert before is not None
    (key,) = memory.person_keys.make(provider, [request.person_id])
    _drop_key(change, document.key_slot)
    change.delete(DocumentKind.PERSON_INDEX, document.index_key)
    document.district = request.data.district
    document.sealed, document.key_slot = key.seal(_seal(request.data), request.person_id + _DATA), key.slot
    document.index_key = _index_key(provider, request.data.citizen_number)
    change.put(DocumentKind.PERSON_INDEX, document.index_key, request.person_id)
    change.put(DocumentKind.PERSON, request.person_id, document.SerializeToString(deterministic=True))
    changed = [
        field
        for field in ("name", "citizen_number", "phone", "address", "district")
        if getattr(before, field) != getattr(request.data, field)
    ]
    audit.note(
        change, caller, "PersonService.CorrectPerson", request.person_id,
        purpose=request.purpose, legal_basis=request.legal_basis, fields=changed,
    )  # fmt: skip
    response.result = wire(Result.ACCEPTED)
    return change.answer(request, response, "person-corrected")


def _is_in_use(memory: Memory, person_id: bytes) -> bool:
    """Whether a card is live, money is there or on hold, or an application is under way."""
    if memory.documents.get(DocumentKind.APPLICATION, OPEN_APPLICATION + person_id) is not None:
        return True
    engine = memory.engine
    for slot in cards_of(memory, person_id):
        card = engine.card(slot)
        if not card["deny_reasons"] & Deny.CANCELLED:
            return True
        named = (memory.account(account_name(card["card_number"], purse.purse_id)) for purse in purses_of(memory, slot))
        accounts = [card["account"], *(account for account in named if account is not None)]
        if any(engine.balance_fen(account) or engine.held_fen(account) for account in accounts):
            return True
    return False


OPEN_APPLICATION: Final = b"o"
"""Key of APPLICATION, before a person's id: the application that is under way (core/cards/issuance.py)."""


def erase_person(memory: Memory, request: pb.ErasePersonRequest, time_us: int, caller: Caller) -> pb.ErasePersonResponse:
    """PersonService.ErasePerson: drops the person's key, which `destroy_dropped_keys` then destroys before the caller hears of
    it. What stays is told at the top of this file."""
    check_why(request)
    if (answer := answered(memory, request, pb.ErasePersonResponse)) is not None:
        return answer
    document = load(memory, request.person_id)
    change = Change(memory, time_us)
    response = pb.ErasePersonResponse()
    if document is None or document.erased or not is_visible(caller, document):
        response.result = wire(Result.PERSON_UNKNOWN)
        return change.answer(request, response, "person-unknown")
    if _is_in_use(memory, request.person_id):
        response.result = wire(Result.PERSON_IN_USE)
        return change.answer(request, response, "person-in-use")
    _drop_key(change, document.key_slot)
    change.delete(DocumentKind.PERSON_INDEX, document.index_key)
    _keep_concessions(memory, change, request.person_id, Concessions())
    left = pb.PersonDocument(district=document.district, registered_time_us=document.registered_time_us, erased=True)
    change.put(DocumentKind.PERSON, request.person_id, left.SerializeToString(deterministic=True))
    audit.note(
        change, caller, "PersonService.ErasePerson", request.person_id, purpose=request.purpose, legal_basis=request.legal_basis
    )
    response.result = wire(Result.ACCEPTED)
    return change.answer(request, response, "person-erased")


# ---- reads ----


def _person_of_key(provider: KeyProvider, memory: Memory, request: pb.GetPersonRequest, today: int) -> bytes | None:
    match request.WhichOneof("key"):
        case "person_id":
            if len(request.person_id) != PERSON_ID_BYTES:
                raise InvalidRequest("person_id", f"{PERSON_ID_BYTES} bytes are wanted")
            return request.person_id
        case "card_number":
            if not is_card_number(request.card_number):
                raise InvalidRequest("card_number", "1 to 20 digits are wanted")
            slot = int(memory.engine.find_card(request.card_number))
            return None if slot == NONE else person_of_card(memory, slot)
        case "citizen_number":
            if fault := citizen_number_fault(request.citizen_number, today):
                raise InvalidRequest("citizen_number", fault)
            return find(memory, provider, request.citizen_number)
        case _:
            raise InvalidRequest("key", "person_id, card_number or citizen_number is wanted")


def get_person(
    provider: KeyProvider, memory: Memory, request: pb.GetPersonRequest, time_us: int, caller: Caller
) -> pb.GetPersonResponse:
    """PersonService.GetPerson."""
    view = request.view or pb.PERSON_VIEW_PUBLIC
    if view not in pb.PersonView.values():
        raise InvalidRequest("view", "is none of the views")
    if view == pb.PERSON_VIEW_FULL:
        check_why(request)
    person_id = _person_of_key(provider, memory, request, settlement_date(time_us))
    document = load(memory, person_id) if person_id else None
    if person_id is None or document is None or not is_visible(caller, document):
        return pb.GetPersonResponse(result=wire(Result.PERSON_UNKNOWN))
    person = pb.Person(person_id=person_id, erased=document.erased)
    person.card_numbers.extend(memory.engine.card(slot)["card_number"] for slot in cards_of(memory, person_id))
    known = show(memory, provider, person_id)
    shown = ["card_numbers"]
    if known is not None:
        _fill(person, known, view)
        shown += [field.name for field, _ in person.data.ListFields()] + ["birth_date"] * (person.birth_date > 0)
        concessions = concessions_of(memory, person_id, settlement_date(time_us))
        for field, concession in zip(("concession", "pending_concession"), concessions, strict=True):
            if view != pb.PERSON_VIEW_PUBLIC and concession is not None:
                getattr(person, field).CopyFrom(concession)
                shown.append(field)
    change = Change(memory, time_us)
    audit.note(
        change, caller, "PersonService.GetPerson", person_id,
        purpose=request.purpose, legal_basis=request.legal_basis, fields=shown,
    )  # fmt: skip
    change.commit("person-shown")
    return pb.GetPersonResponse(result=wire(Result.ACCEPTED), person=person)


def _fill(person: pb.Person, known: Person, view: int) -> None:
    person.data.district = known.district
    if view == pb.PERSON_VIEW_FULL:
        person.data.name, person.data.citizen_number = known.name, known.citizen_number
        person.data.phone, person.data.address = known.phone, known.address
        person.birth_date = known.birth_date
        return
    person.data.name = mask_name(known.name)
    person.data.citizen_number = mask_citizen_number(known.citizen_number, clerk=view == pb.PERSON_VIEW_CLERK)


# ---- concessions ----


class Concessions(NamedTuple):
    """What a person has, or had last, and what begins on a day to come, in its place; None: nothing. A pending one of category
    ORDINARY is an end."""

    current: pb.Concession | None = None
    pending: pb.Concession | None = None

    def due_keys(self, person_id: bytes) -> set[bytes]:
        """Where they stand among those that end; one that another follows on from without a gap is renewed, and does not."""
        keys = {_due_key(each, person_id) for each in self if each is not None and each.valid_until}
        if self.current is not None and self.pending is not None and self.current.valid_until:
            last = self.current.valid_until
            if is_conceded(self.pending) and day_of(self.pending.valid_from) <= day_of(last) + 1:
                keys.discard(_due_key(self.current, person_id))
                keys |= {_due_key(self.pending, person_id)} if self.pending.valid_until else set()
        return keys


def is_conceded(concession: pb.Concession) -> bool:
    """Whether it is a concession, and not the end of one."""
    return concession.rider not in (0, tap_service_pb2.RIDER_ORDINARY)


def concessions_of(memory: Memory, person_id: bytes, today: int) -> Concessions:
    """A person's concessions on a date YYYYMMDD: what was pending is current from its first day on, by the day alone."""
    stored = _stored_concessions(memory, person_id)
    if stored.pending is not None and stored.pending.valid_from <= today:
        return Concessions(stored.pending if is_conceded(stored.pending) else None)
    return stored


def _stored_concessions(memory: Memory, person_id: bytes) -> Concessions:
    """As they were written last, whatever has begun since."""
    values = [memory.documents.get(DocumentKind.CONCESSION, key + person_id) for key in (_CURRENT, _PENDING)]
    return Concessions(*(None if value is None else pb.Concession.FromString(value) for value in values))


def _due_key(concession: pb.Concession, person_id: bytes) -> bytes:
    return _DUE + concession.valid_until.to_bytes(4, "big") + person_id


def _keep_concessions(memory: Memory, change: Change, person_id: bytes, kept: Concessions) -> None:
    """Write what a person has from now on, in place of all that was kept before."""
    stored = _stored_concessions(memory, person_id)
    for key, before, after in zip((_CURRENT, _PENDING), stored, kept, strict=True):
        if after is not None:
            change.put(DocumentKind.CONCESSION, key + person_id, after.SerializeToString(deterministic=True))
        elif before is not None:
            change.delete(DocumentKind.CONCESSION, key + person_id)
    before_due, due = stored.due_keys(person_id), kept.due_keys(person_id)
    for key in sorted(before_due - due):
        change.delete(DocumentKind.CONCESSION, key)
    for key in sorted(due - before_due):
        change.put(DocumentKind.CONCESSION, key, b"")


def entitle(memory: Memory, change: Change, slot: int, person_id: bytes) -> None:
    """Put a person's concessions on a card that is theirs from now on, and so on its e-card, beside the pass that it has."""
    card = memory.engine.card(slot)
    riding = ridden_by(memory, person_id, riding_of(card), change.time_us)
    change.entitle(slot, riding.entitlement(card["pass_number"], card["pass_until"]))


def ridden_by(memory: Memory, person_id: bytes, riding: Riding, time_us: int) -> Riding:
    """How a card rides that becomes a person's."""
    date = settlement_date(time_us)
    today, concessions = day_of(date), concessions_of(memory, person_id, date)
    for concession, since in ((concessions.current or pb.Concession(), today), (concessions.pending, 0)):
        if concession is not None:
            riding = _with(riding, concession, since or day_of(concession.valid_from), today)
    return riding


def _with(riding: Riding, concession: pb.Concession, since: int, today: int) -> Riding:
    rider = concession.rider if is_conceded(concession) else ORDINARY
    return riding.then(since, rider, day_of(concession.valid_until), today)


def _check_concession(concession: pb.Concession, today: int) -> None:
    if concession.rider not in tap_service_pb2.Rider.values():
        raise InvalidRequest("concession.rider", "is none of the categories")
    for field in ("valid_from", "valid_until"):
        date = getattr(concession, field)
        if date and local_seconds(date, 0) < 0:
            raise InvalidRequest(f"concession.{field}", "a date YYYYMMDD of 2000 to 2099 is wanted")
    latest = date_of(day_of(today) + limits.CONCESSION_AHEAD_DAYS_MAX)
    if concession.valid_from > latest:
        raise InvalidRequest("concession.valid_from", f"a day up to {latest} is wanted")
    if concession.valid_until and concession.valid_until < (first := max(today, concession.valid_from)):
        raise InvalidRequest("concession.valid_until", f"is before {first}")
    if is_conceded(concession) and not 1 <= len(concession.proof_reference) <= limits.PROOF_CHARACTERS_MAX:
        raise InvalidRequest("concession.proof_reference", f"1 to {limits.PROOF_CHARACTERS_MAX} characters are wanted")


def set_concession(memory: Memory, request: pb.SetConcessionRequest, time_us: int, caller: Caller) -> pb.SetConcessionResponse:
    """PersonService.SetConcession."""
    today = settlement_date(time_us)
    _check_concession(request.concession, today)
    if (answer := answered(memory, request, pb.SetConcessionResponse)) is not None:
        return answer
    document = load(memory, request.person_id)
    change = Change(memory, time_us)
    if document is None or document.erased or not is_visible(caller, document):
        return change.answer(request, pb.SetConcessionResponse(result=wire(Result.PERSON_UNKNOWN)), "person-unknown")
    concession = pb.Concession()
    concession.CopyFrom(request.concession)
    concession.valid_from = concession.valid_from or today
    if concession.valid_from > today:
        kept = Concessions(concessions_of(memory, request.person_id, today).current, concession)
    else:
        kept = Concessions(concession if is_conceded(concession) else None)
    _keep_concessions(memory, change, request.person_id, kept)
    since, day = day_of(concession.valid_from), day_of(today)
    _ride(memory, change, request.person_id, lambda riding: _with(riding, concession, since, day))
    audit.note(change, caller, "PersonService.SetConcession", request.person_id, fields=["concession"])
    return change.answer(request, pb.SetConcessionResponse(result=wire(Result.ACCEPTED)), "concession-set")


def cancel_pending_concession(
    memory: Memory, request: pb.CancelPendingConcessionRequest, time_us: int, caller: Caller
) -> pb.CancelPendingConcessionResponse:
    """PersonService.CancelPendingConcession."""
    if (answer := answered(memory, request, pb.CancelPendingConcessionResponse)) is not None:
        return answer
    document = load(memory, request.person_id)
    change = Change(memory, time_us)
    response = pb.CancelPendingConcessionResponse()
    if document is None or document.erased or not is_visible(caller, document):
        response.result = wire(Result.PERSON_UNKNOWN)
        return change.answer(request, response, "person-unknown")
    today = settlement_date(time_us)
    concessions = concessions_of(memory, request.person_id, today)
    if concessions.pending is None:
        response.result = wire(Result.WRONG_STATE)
        return change.answer(request, response, "concession-not-pending")
    _keep_concessions(memory, change, request.person_id, Concessions(concessions.current))
    _ride(memory, change, request.person_id, lambda riding: riding.without_pending(day_of(today)))
    audit.note(change, caller, "PersonService.CancelPendingConcession", request.person_id, fields=["pending_concession"])
    response.result = wire(Result.ACCEPTED)
    return change.answer(request, response, "concession-cancelled")


def _ride(memory: Memory, change: Change, person_id: bytes, as_now: Callable[[Riding], Riding]) -> None:
    """Change how a person's cards ride, as many as are not cancelled."""
    for slot in cards_of(memory, person_id):
        card = memory.engine.card(slot)
        if not card["deny_reasons"] & Deny.CANCELLED:
            change.entitle(slot, as_now(riding_of(card)).entitlement(card["pass_number"], card["pass_until"]))


def list_concessions_due(
    memory: Memory, request: pb.ListConcessionsDueRequest, time_us: int, caller: Caller
) -> pb.ListConcessionsDueResponse:
    """PersonService.ListConcessionsDue."""
    if local_seconds(request.until, 0) < 0:
        raise InvalidRequest("until", "a date YYYYMMDD of 2000 to 2099 is wanted")
    check_why(request)
    size = page_size(request.page_size)
    of = b"concessions" + request.until.to_bytes(4, "big")
    start = parse_page_token(request.page_token, of, 1 + 4 + PERSON_ID_BYTES) if request.page_token else _DUE
    end = _DUE + (request.until + 1).to_bytes(4, "big")
    response = pb.ListConcessionsDueResponse()
    change = Change(memory, time_us)
    for looked_at, (key, _) in enumerate(memory.documents.scan(DocumentKind.CONCESSION, start, end)):
        if len(response.due) == size or looked_at == limits.SCAN_DOCUMENTS_MAX:
            response.next_page_token = page_token(key, of)
            break
        person_id = key[5:]
        if not is_visible(caller, load(memory, person_id)):
            continue
        concessions = concessions_of(memory, person_id, settlement_date(time_us))
        concession = next((each for each in concessions if each is not None and _due_key(each, person_id) == key), None)
        if concession is None or key not in concessions.due_keys(person_id):
            continue  # another one took its place since, by the day alone
        response.due.add(person_id=person_id, concession=concession)
        audit.note(
            change, caller, "PersonService.ListConcessionsDue", person_id,
            purpose=request.purpose, legal_basis=request.legal_basis, fields=["concession"],
        )  # fmt: skip
    if response.due:
        change.commit("concessions-shown")
    return response
