"""Which fields of a message are personal: what the option `personal` in the protos says (access.proto).

Nobody lists such fields by hand, so none can be forgotten."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from yikatong.v1 import access_pb2

ABOUT_SOMEBODY: Final = frozenset({access_pb2.PERSONAL_LEVEL_IDENTITY, access_pb2.PERSONAL_LEVEL_SENSITIVE})
"""What is noted when it is shown. Secrets are not: they go to whom they belong, and open something once."""

PERSON_ID_BYTES: Final = 16
NOBODY: Final = bytes(PERSON_ID_BYTES)


class Subject(NamedTuple):
    """Whose data something is: a person, or the holder of a card. Both empty: nobody knows."""

    person_id: bytes = b""
    card_number: str = ""


UNKNOWN: Final = Subject()


def level_of(field: FieldDescriptor) -> int:
    """A field's PersonalLevel."""
    options: Any = field.GetOptions()
    return int(options.Extensions[access_pb2.personal])


@cache
def may_show(descriptor: Descriptor, levels: frozenset[int] = ABOUT_SOMEBODY) -> bool:
    """Whether a message of this type can hold a field of these levels, however deep."""
    return any(level_of(field) in levels for each in _types_within(descriptor) for field in each.fields)


def _types_within(descriptor: Descriptor) -> list[Descriptor]:
    found, waiting = {descriptor.full_name: descriptor}, [descriptor]
    while waiting:
        for field in waiting.pop().fields:
            inner = field.message_type
            if inner is not None and inner.full_name not in found:
                found[inner.full_name] = inner
                waiting.append(inner)
    return list(found.values())


def parts(field: FieldDescriptor, value: Any) -> Iterator[Message]:
    """The messages in a field: none, one, or those of a repeated field or a map."""
    if field.message_type is None:
        return
    if field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is not None:
            yield from value.values()
    elif field.is_repeated:
        yield from value
    else:
        yield value


def shown_fields(message: Message) -> list[str]:
    """Names of the fields about somebody that are set in a message, however deep, in order."""
    return sorted({name for names in shown_by_subject(message).values() for name in names})


def shown_by_subject(message: Message, asked: Message | None = None) -> dict[Subject, set[str]]:
    """The same by whose they are. A message with a person's id or a card's number is that one's, with all in it; what has none
    belongs to whom the message around it does, or to the only one that the whole is about, or whom the request named."""
    around = _subject_of(message)
    if around == UNKNOWN:
        inside = set(_subjects_in(message))
        around = inside.pop() if len(inside) == 1 else next(_subjects_in(asked), UNKNOWN) if asked is not None else UNKNOWN
    found: dict[Subject, set[str]] = {}
    _walk(message, around, found)
    return found


def _walk(message: Message, around: Subject, found: dict[Subject, set[str]]) -> None:
    own = _subject_of(message)
    subject = around if own == UNKNOWN else own
    for field, value in message.ListFields():
        if level_of(field) in ABOUT_SOMEBODY:
            found.setdefault(subject, set()).add(field.name)
        for part in parts(field, value):
            _walk(part, subject, found)


def _subject_of(message: Message) -> Subject:
    fields = message.DESCRIPTOR.fields_by_name
    person = getattr(message, "person_id", b"") if "person_id" in fields else b""
    if isinstance(person, bytes) and len(person) == PERSON_ID_BYTES:
        return Subject(person_id=person)
    card = getattr(message, "card_number", "") if "card_number" in fields else ""
    return Subject(card_number=card) if isinstance(card, str) and card else UNKNOWN


def _subjects_in(message: Message) -> Iterator[Subject]:
    own = _subject_of(message)
    if own != UNKNOWN:
        yield own
        return
    for field, value in message.ListFields():
        for part in parts(field, value):
            yield from _subjects_in(part)


def without_secrets(message: Message) -> Message:
    """A copy in which no field is set that opens something."""
    copy = type(message)()
    copy.CopyFrom(message)
    _clear_secrets(copy)
    return copy


def _clear_secrets(message: Message) -> None:
    for field, value in message.ListFields():
        if level_of(field) == access_pb2.PERSONAL_LEVEL_SECRET:
            message.ClearField(field.name)
        else:
            for part in parts(field, value):
                _clear_secrets(part)
