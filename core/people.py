"""Whose a card, a device, a code or a number is: the one seam between identity and the registers of persons and e-cards."""

from typing import Final, NamedTuple, Protocol

from yikatong.core.errors import ConfigError
from yikatong.core.memory import Memory
from yikatong.core.types import NONE, Result
from yikatong.v1 import identity_service_pb2, tap_service_pb2

ISSUER_CARD_SERIAL_DIGITS: Final = 16


class Proved(NamedTuple):
    """Who stands behind a device or a code. `person_id` has 16 bytes; `card_slot` is the card's, not the e-card's."""

    person_id: bytes
    card_slot: int
    device_id: bytes = b""


class Person(NamedTuple):
    """A person of the register, unmasked. `district`: GB/T 2260, six digits."""

    name: str
    citizen_number: str
    district: str


class People(Protocol):
    """The registers, all asked on the writer's thread."""

    def prove_device(self, memory: Memory, device_id: bytes, message: bytes, proof: bytes, time_us: int) -> Proved | Result:
        """Who a device belongs to whose key made the proof (16 bytes) over a message; or why it is refused."""

    def resolve(self, memory: Memory, code: str, time_us: int) -> Proved | Result | None:
        """Who a code of ours belongs to, which is used up by it; or why it is refused. None: it is none of ours."""

    def person_of_card(self, memory: Memory, card_slot: int) -> bytes | None: ...

    def card_of_person(self, memory: Memory, person_id: bytes) -> int:
        """Slot of the person's card, or NONE."""

    def find(self, memory: Memory, citizen_number: str) -> bytes | None: ...

    def show(self, memory: Memory, person_id: bytes) -> Person | None: ...


class Nobody:
    """Where there is no register: nobody is known, which is said."""

    def _missing(self) -> ConfigError:
        return ConfigError("keys", "there are no keys for persons and e-cards, so nobody can be told from anybody")

    def prove_device(self, memory: Memory, device_id: bytes, message: bytes, proof: bytes, time_us: int) -> Proved | Result:
        raise self._missing()

    def resolve(self, memory: Memory, code: str, time_us: int) -> Proved | Result | None:
        raise self._missing()

    def person_of_card(self, memory: Memory, card_slot: int) -> bytes | None:
        raise self._missing()

    def card_of_person(self, memory: Memory, person_id: bytes) -> int:
        raise self._missing()

    def find(self, memory: Memory, citizen_number: str) -> bytes | None:
        raise self._missing()

    def show(self, memory: Memory, person_id: bytes) -> Person | None:
        raise self._missing()


def mask_name(name: str) -> str:
    """Surname and * (profile.md, "Cards and persons")."""
    return name[:1] + "*"


def mask_citizen_number(citizen_number: str) -> str:
    """First character and last two, for views that compare nothing."""
    return citizen_number[:1] + "*" * max(len(citizen_number) - 3, 0) + citizen_number[-2:]


def show(
    people: People, memory: Memory, person_id: bytes, card_slot: int, fields: tuple[str, ...]
) -> identity_service_pb2.ShownPerson:
    """The named fields of a person and a card, and no other. `card_slot` may be NONE."""
    shown = identity_service_pb2.ShownPerson()
    person = people.show(memory, person_id) if fields else None
    card = memory.engine.card(card_slot) if card_slot != NONE else None
    if person is not None:
        values = {
            "name": person.name,
            "name_masked": mask_name(person.name),
            "citizen_number": person.citizen_number,
            "citizen_number_masked": mask_citizen_number(person.citizen_number),
            "district": person.district,
        }
        if card is not None:
            values["card_number"] = card["card_number"]
            values["rider"] = tap_service_pb2.Rider.Name(card["rider"]).removeprefix("RIDER_").lower() if card["rider"] else ""
        for name in fields:
            setattr(shown, name, values.get(name, ""))
    return shown
