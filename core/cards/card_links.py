"""Which cards belong together: a card and its e-card, which are twins in the engine, and a card and the one that replaced it.

The document CARD_LINK: "h" and the slot of a card that was replaced (4 bytes) → slot of the one in its place (4)."""

from typing import Final

from yikatong.core.change import Change
from yikatong.core.memory import Memory
from yikatong.core.types import DocumentKind

_HEIR: Final = b"h"  # replaced card → the one that took its place


def _key(card: int) -> bytes:
    return _HEIR + card.to_bytes(4, "big")


def card_of(memory: Memory, slot: int) -> int:
    """The card's slot of an e-card's slot; a card's own slot of a card's. What the engine writes of the one it writes of its twin
    too: reasons on the deny list, entitlements."""
    return min(slot, int(memory.engine.card(slot)["twin"]))  # the card was there first; NONE is above all


def replace(change: Change, old: int, new: int) -> None:
    """A card took another's place."""
    change.put(DocumentKind.CARD_LINK, _key(old), new.to_bytes(4, "big"))


def heir_of(memory: Memory, card: int) -> int | None:
    """Slot of the card that replaced this one."""
    value = memory.documents.get(DocumentKind.CARD_LINK, _key(card))
    return None if value is None else int.from_bytes(value, "big")


def heirs(memory: Memory, start: int, most: int) -> list[tuple[int, int]]:
    """Pairs of a replaced card and its heir, in order of the replaced one's slot from `start` on, at most `most`."""
    found: list[tuple[int, int]] = []
    for key, value in memory.documents.scan(DocumentKind.CARD_LINK, _key(start), bytes([_HEIR[0] + 1])):
        if len(found) == most:
            break
        found.append((int.from_bytes(key[1:], "big"), int.from_bytes(value, "big")))
    return found
