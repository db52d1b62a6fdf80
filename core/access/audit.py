"""The audit trail: who saw or did what to whose data, for which purpose.

It is part of the journal, so it is chained, sealed with its day and never rewritten. What was done is noted with the change that
did it; what was only shown is noted with a change of its own, before it is shown (oversight.py sees to that). Each entry
stands under whom it is about and under the caller, newest first: its place there is what 64 bits leave above its sequence."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from yikatong.core import limits
from yikatong.core.access.callers import Caller, parse_identity
from yikatong.core.access.personal import NOBODY, PERSON_ID_BYTES, Subject
from yikatong.core.change import Change
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory
from yikatong.core.paging import page
from yikatong.core.types import NONE, DocumentKind
from yikatong.ext.engine import is_card_number
from yikatong.v1 import audit_service_pb2, journal_pb2

PersonOfCard = Callable[[Memory, int], bytes | None]
"""The person whom the card in a slot belongs to, if that is known."""

PLACES: Final = 1 << 64
_CARD_MARK: Final = b"card\0\0"  # and the number, 20 digits in 10 bytes: a card that no person is known for
_parse = journal_pb2.Access.FromString


def note(
    change: Change,
    caller: Caller,
    action: str,
    person: bytes,
    *,
    purpose: str = "",
    legal_basis: str = "",
    fields: Sequence[str] = (),
    listed_caller: str = "",
) -> None:
    """Note with a change that a caller did `action` (a method's name) to a person (id of 16 bytes) and was shown `fields`. At
    most one note for a person and change."""
    if len(person) != PERSON_ID_BYTES:
        raise ValueError(f"a person's id has {PERSON_ID_BYTES} bytes, not {len(person)}")
    access = journal_pb2.Access(
        caller=str(caller), action=action, purpose=purpose, legal_basis=legal_basis, fields=fields, time_us=change.time_us,
        listed_caller=listed_caller, sequence=change.sequence, subject=person,
    )  # fmt: skip
    value = access.SerializeToString(deterministic=True)
    place = _place(change.sequence)
    change.put(DocumentKind.ACCESS, person + place, value)
    change.put(DocumentKind.ACCESS_BY_CALLER, _caller_prefix(str(caller)) + place + person, value)


def note_shown(
    memory: Memory,
    time_us: int,
    caller: Caller,
    action: str,
    purpose: str,
    legal_basis: str,
    shown: dict[bytes, set[str]],
    since: int,
) -> None:
    """Note what an answer shows of whom, in one event; but what this very call has noted itself, from sequence `since` on, is not
    noted once more."""
    change = Change(memory, time_us)
    missing = {
        subject: names
        for subject, names in shown.items()
        if not _is_noted(memory, subject, str(caller), action, names, since)
    }  # fmt: skip
    for subject, names in sorted(missing.items()):
        note(change, caller, action, subject, purpose=purpose, legal_basis=legal_basis, fields=sorted(names))
    if missing:
        change.commit("shown")


def _is_noted(memory: Memory, subject: bytes, caller: str, action: str, names: set[str], since: int) -> bool:
    end = subject + _place(since - 1) if since > 0 else None
    return any(
        access.caller == caller and access.action == action and names <= set(access.fields)
        for _, value in memory.documents.scan(DocumentKind.ACCESS, subject, end)
        for access in [_parse(value)]
    )


def subject_id(memory: Memory, subject: Subject, person_of_card: PersonOfCard) -> bytes:
    """The 16 bytes that entries about somebody stand under: the person's id; where only a card is known, the card's own; zeros
    where nothing is."""
    if subject.person_id:
        return subject.person_id
    if not is_card_number(subject.card_number):
        return NOBODY
    slot = int(memory.engine.find_card(subject.card_number))
    person = None if slot == NONE else person_of_card(memory, slot)
    return _CARD_MARK + bytes.fromhex(subject.card_number.rjust(20, "f")) if person is None else person


def ids_of(
    memory: Memory, shown: dict[Subject, set[str]], person_of_card: PersonOfCard
) -> dict[bytes, set[str]]:  # fmt: skip
    """What is shown, by `subject_id`: a person and that person's cards are one."""
    found: dict[bytes, set[str]] = {}
    for subject, names in shown.items():
        found.setdefault(subject_id(memory, subject, person_of_card), set()).update(names)
    return found


def check_purpose(purpose: str, legal_basis: str) -> None:
    """Raises InvalidRequest unless somebody says what for."""
    if not purpose.strip():
        raise InvalidRequest("purpose", "is wanted: it goes into the audit trail")
    for field, text in (("purpose", purpose), ("legal_basis", legal_basis)):
        if len(text) > limits.PURPOSE_CHARACTERS_MAX or not (text.isprintable() or not text):
            raise InvalidRequest(field, f"at most {limits.PURPOSE_CHARACTERS_MAX} printable characters are taken")


# ---- AuditService ----


def list_accesses(
    person_of_card: PersonOfCard, memory: Memory, request: audit_service_pb2.ListAccessesRequest, time_us: int, caller: Caller
) -> audit_service_pb2.ListAccessesResponse:
    """AuditService.ListAccesses."""
    check_purpose(request.purpose, request.legal_basis)
    if request.WhichOneof("subject") == "card_number":
        if not is_card_number(request.card_number):
            raise InvalidRequest("card_number", "1 to 20 digits are wanted")
        if not caller.district and int(memory.engine.find_card(request.card_number)) == NONE:
            raise NotFound("card", request.card_number)
    elif len(request.person_id) != PERSON_ID_BYTES:
        raise InvalidRequest("person_id", f"{PERSON_ID_BYTES} bytes are wanted, or a card_number")
    subject = subject_id(memory, Subject(request.person_id, request.card_number), person_of_card)
    _check_district(memory, subject, caller)
    found, token = page(
        memory, DocumentKind.ACCESS, _parse, size=request.page_size, token=request.page_token, prefix=subject
    )  # fmt: skip
    change = Change(memory, time_us)
    note(
        change, caller, "AuditService.ListAccesses", subject,
        purpose=request.purpose, legal_basis=request.legal_basis, fields=["accesses"],
    )  # fmt: skip
    change.commit("accesses-listed")
    return audit_service_pb2.ListAccessesResponse(accesses=_entries(found), next_page_token=token)


def _check_district(memory: Memory, subject: bytes, caller: Caller) -> None:
    """What others did with somebody tells of them: who is kept to a district is told of that district's people. Raises NotFound,
    in the same words whether there is such a person or not."""
    from yikatong.core.identity import persons

    if caller.district and not persons.is_visible(caller, persons.load(memory, subject)):
        raise NotFound("person", f"in the caller's district, {caller.district}")


def list_caller_accesses(
    memory: Memory, request: audit_service_pb2.ListCallerAccessesRequest, time_us: int, caller: Caller
) -> audit_service_pb2.ListCallerAccessesResponse:
    """AuditService.ListCallerAccesses."""
    check_purpose(request.purpose, request.legal_basis)
    try:
        listed = str(parse_identity(request.caller))
    except InvalidRequest as error:
        raise InvalidRequest("caller", error.reason) from error
    found, token = page(
        memory, DocumentKind.ACCESS_BY_CALLER, _parse,
        size=request.page_size, token=request.page_token, prefix=_caller_prefix(listed),
    )  # fmt: skip
    change = Change(memory, time_us)
    note(
        change, caller, "AuditService.ListCallerAccesses", NOBODY,
        purpose=request.purpose, legal_basis=request.legal_basis, fields=["accesses"], listed_caller=listed,
    )  # fmt: skip
    change.commit("accesses-listed")
    return audit_service_pb2.ListCallerAccessesResponse(accesses=_entries(found), next_page_token=token)


def _entries(found: Iterable[journal_pb2.Access]) -> list[audit_service_pb2.AccessEntry]:
    return [
        audit_service_pb2.AccessEntry(
            sequence=access.sequence, time_us=access.time_us, caller=access.caller, action=access.action,
            purpose=access.purpose, legal_basis=access.legal_basis, fields=access.fields,
            person_id=b"" if access.subject == NOBODY or access.subject.startswith(_CARD_MARK) else access.subject,
            listed_caller=access.listed_caller,
        )
        for access in found
    ]  # fmt: skip


def _place(sequence: int) -> bytes:
    return (PLACES - 1 - sequence).to_bytes(8, "big")


def _caller_prefix(caller: str) -> bytes:
    return caller.encode() + b"\0"
