"""A card that was registered without an application (CardService.RegisterCards) becomes a person's.

Whoever held it until now was nobody on record, so an e-card of it could be on anybody's phone, and would from now on speak for
this person: it ends with all its devices in the same change, and the person gets one of their own."""

from yikatong.core.access import audit
from yikatong.core.access.callers import Caller
from yikatong.core.cards import card_links, card_state, e_cards
from yikatong.core.cards.issuance import application_refused
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest
from yikatong.core.identity import persons
from yikatong.core.memory import Memory
from yikatong.core.types import NONE, Result, wire
from yikatong.ext.engine import is_card_number
from yikatong.v1 import issuance_service_pb2 as pb


def assign_card(memory: Memory, request: pb.AssignCardRequest, time_us: int, caller: Caller) -> pb.AssignCardResponse:
    """IssuanceService.AssignCard."""
    if not is_card_number(request.card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    persons.check_why(request)
    if (again := answered(memory, request, pb.AssignCardResponse)) is not None:
        return again
    slot = int(memory.engine.find_card(request.card_number))
    if slot != NONE and card_links.card_of(memory, slot) != slot:
        raise InvalidRequest("card_number", "is that of an e-card")
    change = Change(memory, time_us)
    if refused := _refused(memory, slot, request.person_id, time_us, caller):
        return change.answer(request, pb.AssignCardResponse(result=wire(refused)), "card-not-assigned")
    persons.give_card(change, request.person_id, slot)
    persons.entitle(memory, change, slot, request.person_id)
    e_card = e_cards.e_card_of(memory, slot)
    if e_card is not None and not e_card.cancelled:
        e_cards.cancel(memory, change, e_card)
    audit.note(
        change, caller, "IssuanceService.AssignCard", request.person_id,
        purpose=request.purpose, legal_basis=request.legal_basis, fields=["card_numbers"],
    )  # fmt: skip
    return change.answer(request, pb.AssignCardResponse(result=wire(Result.ACCEPTED)), "card-assigned")


def _refused(memory: Memory, slot: int, person_id: bytes, time_us: int, caller: Caller) -> Result | None:
    """Why a card (slot) does not become a person's."""
    person = persons.load(memory, person_id)
    if person is None or person.erased or not persons.is_visible(caller, person):
        return Result.PERSON_UNKNOWN
    if slot == NONE:
        return Result.UNKNOWN_CARD
    holder = persons.person_of_card(memory, slot)
    if holder is not None and holder != person_id:  # somebody whom the caller may not see has no card for them either
        return Result.CARD_NOT_OWN if persons.is_visible(caller, persons.load(memory, holder)) else Result.UNKNOWN_CARD
    return card_state.refusal(memory, slot, time_us) or application_refused(memory, person_id, time_us)
