"""Whether a card may be used now: the one question that every entry point asks, of a card and of its e-card alike."""

from yikatong.core.cards import card_life
from yikatong.core.memory import Memory
from yikatong.core.types import Deny, Result
from yikatong.ext.engine import settlement_date


def refusal(memory: Memory, slot: int, time_us: int) -> Result | None:
    """Why the card in a slot is refused at a journal time (µs, UTC); None when it is good. Debt alone keeps nobody from proving
    who they are, so it is not asked here: what pays asks for it too."""
    today = settlement_date(time_us)
    card = memory.engine.card(slot)
    if card["twin"] < slot:  # an e-card: what its card is, it is
        card = memory.engine.card(card["twin"])
    if 0 < card["expires"] < today:
        return Result.CARD_EXPIRED
    reasons = card["deny_reasons"] & ~Deny.DEBT
    if reasons & Deny.LOSS and card_life.is_lifted(memory, slot, time_us):
        reasons &= ~Deny.LOSS
    return Result.CARD_DENIED if reasons else None


def paying_refusal(memory: Memory, slot: int, time_us: int) -> Result | None:
    """Why the card in a slot pays nothing at a journal time; money apart."""
    if refused := refusal(memory, slot, time_us):
        return refused
    return Result.CARD_DENIED if memory.engine.card(slot)["deny_reasons"] & Deny.DEBT else None


def funding_refusal(memory: Memory, slot: int) -> Result | None:
    """Why the card in a slot takes no money. A lost, frozen, expired or not yet enabled card does, since benefits must not be
    turned away and another card will have it in the end; a cancelled one does not."""
    return Result.CARD_CANCELLED if memory.engine.card(slot)["deny_reasons"] & Deny.CANCELLED else None
