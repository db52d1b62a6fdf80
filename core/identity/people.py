"""Whose a card, a device, a code or a number is: the one seam between identity and the registers of persons and e-cards."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from yikatong.core.cards import card_state, codes, e_cards
from yikatong.core.cards.riding import day_of, riding_of
from yikatong.core.change import Change
from yikatong.core.identity import persons
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.memory import Memory
from yikatong.core.types import NONE, Result
from yikatong.ext.engine import settlement_date
from yikatong.v1 import identity_service_pb2, tap_service_pb2


class Proved(NamedTuple):
    """Who stands behind a device or a code. `person_id` has 16 bytes and is empty where nobody is on record; `card_slot` is the
    card's, not the e-card's. `use` puts with a change that the proof or code is used up."""

    person_id: bytes
    card_slot: int
    use: Callable[[Change], None]
    device_id: bytes = b""


class People(Protocol):
    """The registers, all asked on the writer's thread."""

    def prove_device(self, memory: Memory, device_id: bytes, message: bytes, proof: bytes, time_us: int) -> Proved | Result:
        """Who a device belongs to whose key made the proof over a message; or why it is refused."""

    def resolve(self, memory: Memory, code: str, request_id: bytes, time_us: int) -> Proved | Result | None:
        """Who a code of ours belongs to, that is used for a request; or why it is refused. None: it is none of ours."""

    def person_of_card(self, memory: Memory, card_slot: int) -> bytes | None:
        """Id of a card's person."""

    def card_of_person(self, memory: Memory, person_id: bytes, time_us: int) -> int:
        """Slot of the person's newest card that may be used, or of their newest; NONE where they have none."""

    def find(self, memory: Memory, citizen_number: str) -> bytes | None:
        """Id of the person with a citizen number."""

    def show(self, memory: Memory, person_id: bytes) -> persons.Person | None:
        """A person unmasked; None where there is none, or they were erased."""


class Registers:
    """The registers of this core."""

    def __init__(self, provider: KeyProvider) -> None:
        self._provider = provider

    def prove_device(self, memory: Memory, device_id: bytes, message: bytes, proof: bytes, time_us: int) -> Proved | Result:
        device = e_cards.check_device(memory, self._provider, device_id, message, proof, time_us)
        if isinstance(device, Result):
            return device
        card = device.e_card.card_slot
        person_id = persons.person_of_card(memory, card) or b""
        return Proved(person_id, card, lambda change: e_cards.use_proof(change, device), device_id)

    def resolve(self, memory: Memory, code: str, request_id: bytes, time_us: int) -> Proved | Result | None:
        if not code.startswith(codes.TOKEN_PREFIX.decode()):
            return None
        resolved = codes.resolve(memory, self._provider, code.encode(), time_us)
        if isinstance(resolved, Result):
            return resolved
        person_id = persons.person_of_card(memory, resolved.card_slot) or b""
        return Proved(person_id, resolved.card_slot, lambda change: codes.use(change, resolved, request_id), resolved.device_id)

    def person_of_card(self, memory: Memory, card_slot: int) -> bytes | None:
        return persons.person_of_card(memory, card_slot)

    def card_of_person(self, memory: Memory, person_id: bytes, time_us: int) -> int:
        cards = persons.cards_of(memory, person_id)
        good = [card for card in cards if card_state.refusal(memory, card, time_us) is None]
        return (good or cards or [NONE])[-1]

    def find(self, memory: Memory, citizen_number: str) -> bytes | None:
        return persons.find(memory, self._provider, citizen_number)

    def show(self, memory: Memory, person_id: bytes) -> persons.Person | None:
        return persons.show(memory, self._provider, person_id)


def show(
    people: People, memory: Memory, person_id: bytes, card_slot: int, fields: tuple[str, ...], time_us: int
) -> identity_service_pb2.ShownPerson:
    """The named fields of a person and a card at a journal time, and no other. `card_slot` may be NONE."""
    shown = identity_service_pb2.ShownPerson()
    person = people.show(memory, person_id) if fields else None
    if person is None:
        return shown
    values = {
        "name": person.name,
        "name_masked": persons.mask_name(person.name),
        "citizen_number": person.citizen_number,
        "citizen_number_masked": persons.mask_citizen_number(person.citizen_number),
        "district": person.district,
    }
    if card_slot != NONE:
        card = memory.engine.card(card_slot)
        values["card_number"] = card["card_number"]
        rider, _ = riding_of(card).on(day_of(settlement_date(time_us)))
        values["rider"] = tap_service_pb2.Rider.Name(rider).removeprefix("RIDER_").lower() if rider else ""
    for name in fields:
        setattr(shown, name, values.get(name, ""))
    return shown
