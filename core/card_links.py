"""Which cards belong together: a card and its e-card, and a card and the one that replaced it.

The document CARD_LINK: kind of the link (1 byte) and a slot (4) → another slot (4)."""

from typing import Final

from yikatong.core.change import Change
from yikatong.core.memory import Memory
from yikatong.core.types import DocumentKind

_E_CARD: Final = b"e"  # card → its e-card
_CARD: Final = b"c"  # e-card → its card
_HEIR: Final = b"h"  # replaced card → the one that took its place
_HEIR_OF: Final = b"r"  # and back


def _get(memory: Memory, kind: bytes, slot: int) -> int | None:
    value = memory.documents.get(DocumentKind.CARD_LINK, kind + slot.to_bytes(4, "big"))
    return None if value is None else int.from_bytes(value, "big")


def _put(change: Change, kind: bytes, slot: int, other: int) -> None:
    change.put(DocumentKind.CARD_LINK, kind + slot.to_bytes(4, "big"), other.to_bytes(4, "big"))


def link_e_card(change: Change, card: int, e_card: int) -> None:
    """From this change on they live and die together; in place of an e-card that the card had before."""
    _put(change, _E_CARD, card, e_card)
    _put(change, _CARD, e_card, card)


def e_card_of(memory: Memory, card: int) -> int | None:
    """Slot of a card's newest e-card."""
    return _get(memory, _E_CARD, card)


def card_of(memory: Memory, e_card: int) -> int | None:
    """Slot of the card that an e-card's slot belongs to; None where the slot is no e-card."""
    return _get(memory, _CARD, e_card)


def twins(memory: Memory, slot: int) -> tuple[int, ...]:
    """Slots of a card and of its newest e-card, the card first, from either of them."""
    card = card_of(memory, slot)
    card = slot if card is None else card
    e_card = e_card_of(memory, card)
    return (card,) if e_card is None else (card, e_card)


def replace(change: Change, old: int, new: int) -> None:
    """A card took another's place."""
    _put(change, _HEIR, old, new)
    _put(change, _HEIR_OF, new, old)


def heir_of(memory: Memory, card: int) -> int | None:
    """Slot of the card that replaced this one."""
    return _get(memory, _HEIR, card)


def replaced_by_heir(memory: Memory, card: int) -> int | None:
    """Slot of the card that this one replaced."""
    return _get(memory, _HEIR_OF, card)


def heirs(memory: Memory, start: int, most: int) -> list[tuple[int, int]]:
    """Pairs of a replaced card and its heir, in order of the replaced one's slot from `start` on, at most `most`."""
    found: list[tuple[int, int]] = []
    first = _HEIR + start.to_bytes(4, "big")
    for key, value in memory.documents.scan(DocumentKind.CARD_LINK, first, bytes([_HEIR[0] + 1])):
        if len(found) == most:
            break
        found.append((int.from_bytes(key[1:], "big"), int.from_bytes(value, "big")))
    return found
