"""Canaries: values that stand for what must never be found where it is not expected, and requests that carry them.

Requests are made from the descriptors, so a new method is called and a new personal field planted without being listed. What
other fields need so that a request gets far stands in PLAUSIBLE, by name."""

import base64
import secrets
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from yikatong.core.access.personal import level_of
from yikatong.v1 import access_pb2

CARD = "3104416000000017"
CARD_2 = "3104416000000025"
PLAUSIBLE: dict[str, Any] = {
    # what a field of this name holds in a request that is to get far
    "card_number": CARD, "issuer_id": bytes.fromhex("5980000100000000"), "terminal_number": bytes.fromhex("112233445566"),
    "operator_id": "bus", "acquirer_id": "shop", "merchant_id": "m1", "category": "5411", "amount_fen": 100, "page_size": 10,
    "settlement_date": 20250101, "caller": "yikatong:department:hrss", "purpose": "to test", "legal_basis": "a law",
    "actor_id": "li", "assigned_to": "li", "subject": "card:3104416000000017", "reason": "to test", "district": "441602",
    "page_token": "", "card_numbers": CARD, "sequence": 1, "person_id": bytes(range(1, 17)), "expires": 20991231,
}  # fmt: skip
DEPTH_MAX = 6
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_SURNAMES = "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨"
_GIVEN = "鹏鲲鹤鹭鸢鹃鹂鹰鸿鹄鸾鹫"


def citizen_number() -> str:
    """A right one, made up."""
    first = f"4416211990{secrets.randbelow(12) + 1:02}{secrets.randbelow(28) + 1:02}{secrets.randbelow(999) + 1:03}"
    return first + "10X98765432"[sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, first, strict=True)) % 11]


def name() -> str:
    """A name that stands nowhere else."""
    return secrets.choice(_SURNAMES) + "".join(secrets.choice(_GIVEN) for _ in range(5))


class Canaries:
    """What was planted: by value, the field that it was planted in."""

    def __init__(self) -> None:
        self.planted: dict[bytes, str] = {}

    def plant(self, value: str | bytes, where: str) -> Any:
        """Remember a value; returns it."""
        self.planted[value.encode() if isinstance(value, str) else value] = where
        return value

    def _new(self, field: FieldDescriptor) -> Any:
        if field.type == field.TYPE_BYTES:
            size = 4 if field.name == "mac" else 16
            return self.plant(secrets.token_bytes(size), field.full_name) if size > 4 else secrets.token_bytes(size)
        value = (
            citizen_number() if "citizen" in field.name else name() if "name" in field.name else f"canary{secrets.token_hex(8)}"
        )
        return self.plant(value, field.full_name)

    def fill(self, message: Any, choice: int = 0, depth: int = 0) -> Any:
        """Fill a message; of each oneof the `choice`-th member."""
        for field in message.DESCRIPTOR.fields:
            of = field.containing_oneof
            if of is not None and of.fields[choice % len(of.fields)] is not field:
                continue
            if field.message_type is not None:
                if depth < DEPTH_MAX and not field.message_type.GetOptions().map_entry:
                    inner = getattr(message, field.name)
                    self.fill(inner.add() if field.is_repeated else inner, choice, depth + 1)
                continue
            value = self._value(field)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            elif value is not None:
                setattr(message, field.name, value)
        return message

    def _value(self, field: FieldDescriptor) -> Any:
        secret = level_of(field) >= access_pb2.PERSONAL_LEVEL_IDENTITY
        if secret and field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            return self._new(field)
        if field.name == "request_id":
            return secrets.token_bytes(16)
        kind = {field.TYPE_STRING: str, field.TYPE_BYTES: bytes}.get(field.type, int)
        if isinstance(known := PLAUSIBLE.get(field.name), kind):
            return known
        if field.type == field.TYPE_STRING:
            return "x1"
        if field.type == field.TYPE_BYTES:
            return secrets.token_bytes(16)
        return field.enum_type.values[-1].number if field.enum_type is not None else 1

    def requests(self, descriptor: Descriptor) -> Iterator[Message]:
        """A request for each way to choose in its oneofs, and one whose fields are too long."""
        choices = max([len(of.fields) for of in _oneofs(descriptor)] or [1])
        for choice in range(choices):
            yield self.fill(GetMessageClass(descriptor)(), choice)
        long = self.fill(GetMessageClass(descriptor)())
        for field in descriptor.fields:
            if field.type == field.TYPE_STRING and not field.is_repeated and getattr(long, field.name):
                setattr(long, field.name, getattr(long, field.name) * 20)
        yield long

    def found_in(self, data: bytes) -> set[str]:
        """Fields whose canary stands in some bytes, in any of the forms in which values get written."""
        return {where for value, where in self.planted.items() for form in forms(value) if form in data}


def _oneofs(descriptor: Descriptor, seen: frozenset[str] = frozenset()) -> Iterator[Any]:
    if descriptor.full_name in seen:
        return
    yield from descriptor.oneofs
    for field in descriptor.fields:
        if field.message_type is not None:
            yield from _oneofs(field.message_type, seen | {descriptor.full_name})


def forms(value: bytes) -> set[bytes]:
    """A value as it is, in hexadecimal, in base64, and as Python and JSON escape it."""
    found = {value, value.hex().encode(), value.hex().upper().encode(), base64.b64encode(value).rstrip(b"=")[:-1]}
    found.add(repr(value)[2:-1].encode())
    try:
        text = value.decode()
        found |= {text.encode("unicode_escape"), text.encode("utf-16-le"), "".join(f"\\u{ord(c):04x}" for c in text).encode()}
        found.add("".join(f"\\{byte:03o}" for byte in value).encode())  # protobuf's text format
    except UnicodeDecodeError:
        pass
    return found
