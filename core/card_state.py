"""Whether a card may be used now: the one question that every entry point asks, of a card and of its e-card alike."""

from yikatong.core.memory import Memory
from yikatong.core.types import Deny, Result
from yikatong.ext.engine import settlement_date


def refusal(memory: Memory, slot: int, time_us: int) -> Result | None:
    """Why the card in a slot is refused at a journal time (µs, UTC); None when it is good. Debt alone keeps nobody from proving
    who they are, so it is not asked here: what pays asks for it too."""
    card = memory.engine.card(slot)
    if card["twin"] < slot:  # an e-card: what its card is, it is
        card = memory.engine.card(card["twin"])
    if card["expires"] and settlement_date(time_us) > card["expires"]:
        return Result.CARD_EXPIRED
    if card["deny_reasons"] & ~Deny.DEBT:
        return Result.CARD_DENIED
    return None
