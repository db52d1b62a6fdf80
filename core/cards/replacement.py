"""One card takes another's place: everything that the old one had is on the new one, in one change, and the old one is dead.

What moves: the balance (or debt) of the general purse, every restricted purse with its money, what was used of limits, the pass;
the concession comes from the person. Something on hold keeps a card from being replaced (CARD_HELD): a hold belongs to a merchant
who was promised the money of that card. What comes to the old card later (a stored tap, a refund, a corrected fare) follows by
`follow_heirs`, and so does the money on its chip, CHIP_WAIT_S later: until then the chip's rides before the loss are still
uploaded, and are paid from it. Refunds of restricted purses that moved go to their funders, as those of any closed purse do."""

import weakref
from collections.abc import Iterator
from typing import Final

from yikatong.core import limits
from yikatong.core.acquiring.purses import CLOSED, Purse, account_name, find_purse, general_account, purse_key, purses_of
from yikatong.core.cards import card_life, card_links
from yikatong.core.cards.card_life import Event, State
from yikatong.core.cards.riding import Riding, riding_of
from yikatong.core.change import Change
from yikatong.core.identity import persons
from yikatong.core.memory import Memory
from yikatong.core.types import CHIP_PREFIX, Deny, DocumentKind, PostingKind, Result


def refused(memory: Memory, old: int, time_us: int) -> Result | None:
    """Why a card (slot) cannot be replaced now."""
    if no := card_life.refused(card_life.at(memory, old, time_us), Event.REPLACE):
        return no
    number = memory.engine.card(old)["card_number"]
    accounts = [general_account(memory, old)]
    accounts += [_purse_account(memory, number, purse) for purse in purses_of(memory, old) if purse.state != CLOSED]
    return Result.CARD_HELD if any(memory.engine.held_fen(account) for account in accounts) else None


def _purse_account(memory: Memory, card_number: str, purse: Purse) -> int:
    account = memory.account(account_name(card_number, purse.purse_id))
    assert account is not None
    return account


def replace(memory: Memory, change: Change, old: int, new: int) -> int | Result:
    """Let a card that waits to be picked up take the place of another: what was moved in fen, all purses together, or why not."""
    if no := refused(memory, old, change.time_us):
        return no
    if any(find_purse(memory, new, purse.purse_id) for purse in purses_of(memory, old)):
        return Result.CONFLICT
    before = memory.engine.card(old)
    moved_fen = _move_general(memory, change, old, new)
    moved_fen += _move_purses(memory, change, old, new)
    _move_limits(memory, change, old, new)
    card_links.replace(change, old, new)
    _end(memory, change, old, card_life.at(memory, old, change.time_us))
    # The pass goes over; the concession is the person's, or where nobody is on record the old card's.
    person_id = persons.person_of_card(memory, new)
    riding = old_riding = riding_of(before)
    if person_id is not None:
        riding = persons.ridden_by(memory, person_id, Riding(), change.time_us)
    change.entitle(new, riding.entitlement(before["pass_number"], before["pass_until"]))
    change.entitle(old, old_riding.entitlement(0, 0))
    card_life.go(memory, change, new, card_life.at(memory, new, change.time_us), Event.ENABLE)
    if before["deny_reasons"] & Deny.DEBT:
        change.deny(new, Deny.DEBT)
    return moved_fen


def _end(memory: Memory, change: Change, old: int, life: card_life.CardLife) -> None:
    card_life.go(memory, change, old, life, Event.REPLACE)
    change.deny(old, Deny.CANCELLED)  # its debt has gone over


def _move(change: Change, old: int, new: int, amount_fen: int, card: int) -> None:
    """A negative amount is a debt."""
    debit, credit = (old, new) if amount_fen >= 0 else (new, old)
    change.move(debit, credit, abs(amount_fen), PostingKind.REPLACEMENT, card)


def _move_general(memory: Memory, change: Change, old: int, new: int) -> int:
    account = general_account(memory, old)
    balance_fen = int(memory.engine.balance_fen(account))
    _move(change, account, general_account(memory, new), balance_fen, new)
    return balance_fen


def _move_purses(memory: Memory, change: Change, old: int, new: int) -> int:
    number = memory.engine.card(new)["card_number"]
    moved_fen = 0
    for purse in purses_of(memory, old):
        if purse.state == CLOSED:
            continue
        account = _purse_account(memory, purse.card_number, purse)
        balance_fen = int(memory.engine.balance_fen(account))
        _move(change, account, change.open_account(account_name(number, purse.purse_id)), balance_fen, new)
        moved_fen += balance_fen
        moved = Purse()
        moved.CopyFrom(purse)
        moved.card_number = number
        purse.state = CLOSED
        change.put(DocumentKind.PURSE, purse_key(new, purse.purse_id), moved.SerializeToString(deterministic=True))
        change.put(DocumentKind.PURSE, purse_key(old, purse.purse_id), purse.SerializeToString(deterministic=True))
    return moved_fen


def _move_limits(memory: Memory, change: Change, old: int, new: int) -> None:
    """What was used of limits is used: a new card is no new allowance."""
    start = old.to_bytes(4, "big")
    for key, value in memory.documents.scan(DocumentKind.LIMIT_USE, start, (old + 1).to_bytes(4, "big")):
        change.put(DocumentKind.LIMIT_USE, new.to_bytes(4, "big") + key[4:], value)
        change.delete(DocumentKind.LIMIT_USE, key)


# ---- what comes late ----

US: Final = 1_000_000
_NEXT: Final[weakref.WeakKeyDictionary[Memory, int]] = weakref.WeakKeyDictionary()
"""Slot from which replaced cards are looked at next, by memory."""


def follow_heirs(memory: Memory, time_us: int) -> int:
    """Look at the next HEIRS_LOOKED_AT replaced cards, in a circle, and let what came to them follow to the cards that took their
    place; returns how many that were. To be run once a second."""
    start = _NEXT.get(memory, 0)
    pairs = card_links.heirs(memory, start, limits.HEIRS_LOOKED_AT)
    _NEXT[memory] = pairs[-1][0] + 1 if len(pairs) == limits.HEIRS_LOOKED_AT else 0
    change = Change(memory, time_us)
    followed = 0
    left: dict[int, int] = {}  # balances of heirs as the change will leave them: two cards may have one
    for old, heir in pairs:
        while (further := card_links.heir_of(memory, heir)) is not None:
            heir = further
        moves = list(_came_late(memory, old, time_us))
        if not moves or State(card_life.at(memory, heir, time_us).state) is State.CANCELLED:
            continue
        followed += 1
        own = general_account(memory, heir)
        left.setdefault(heir, int(memory.engine.balance_fen(own)))
        for account, amount_fen in moves:
            _move(change, account, own, amount_fen, heir)
            left[heir] += amount_fen
        if left[heir] < 0:
            change.deny(heir, memory.engine.card(heir)["deny_reasons"] | Deny.DEBT)
        change.deny(old, Deny.CANCELLED)
    if followed:
        change.commit("heirs-followed")
    return followed


def _came_late(memory: Memory, old: int, time_us: int) -> Iterator[tuple[int, int]]:
    """Accounts of a replaced card with what is to follow from them."""
    account = general_account(memory, old)
    amount_fen = int(memory.engine.balance_fen(account)) - int(memory.engine.held_fen(account))
    if amount_fen:
        yield account, amount_fen
    chip = memory.account(CHIP_PREFIX + memory.engine.card(old)["card_number"])
    if chip is not None:
        amount_fen = int(memory.engine.balance_fen(chip))
        waited_us = time_us - card_life.at(memory, old, time_us).since_time_us
        if amount_fen < 0 or (amount_fen and waited_us >= limits.CHIP_WAIT_S * US):
            yield chip, amount_fen
