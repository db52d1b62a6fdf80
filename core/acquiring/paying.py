"""Who pays what of a payment: an amount over purses, within limits, and back again. No state, no I/O.

Amounts are fen and positive. What cannot be paid is a Refusal; nothing is ever paid in part."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from yikatong.core.rules.purse_rules import Limit, Period, Scope
from yikatong.core.types import Result


class Room(NamedTuple):
    """What a limit still lets through."""

    limit: Limit
    left_fen: int


class Part(NamedTuple):
    """What one purse has of an amount."""

    purse: str
    kind: str
    amount_fen: int


class Refusal(NamedTuple):
    """Why nothing is paid."""

    result: Result
    limit_id: str = ""


class Source(NamedTuple):
    """A purse or bank account that may pay."""

    purse: str
    kind: str
    money_fen: int  # what it has for this payment; may be below zero
    short: Refusal = Refusal(Result.INSUFFICIENT_FUNDS)  # the answer when that is too little


def _over_limit(limit: Limit) -> Refusal:
    return Refusal(limit.exceeded, limit.id)


def _refuse_whole(amount_fen: int, rooms: Iterable[Room]) -> Refusal | None:
    """Limits of the payment as a whole, in the order of the rule file."""
    for room in rooms:
        if room.limit.scope is not Scope.PURSE and amount_fen > room.left_fen:
            return _over_limit(room.limit)
    return None


def split(amount_fen: int, sources: Sequence[Source], rooms: Sequence[Room]) -> list[Part] | Refusal:
    """Let the sources pay in their order, each what it has and what the limits of its kind leave.

    Where that is not enough: the first limit that kept money back, if without limits there were enough; else what a source
    with an overdraft says to that; else INSUFFICIENT_FUNDS."""
    if refusal := _refuse_whole(amount_fen, rooms):
        return refusal
    left = {room.limit.id: room.left_fen for room in rooms if room.limit.scope is Scope.PURSE}
    parts: list[Part] = []
    missing_fen = amount_fen
    kept_back: Limit | None = None
    for source in sources:
        wanted_fen = min(missing_fen, max(source.money_fen, 0))
        pays_fen = wanted_fen
        own = [room.limit for room in rooms if room.limit.scope is Scope.PURSE and room.limit.purse_kind == source.kind]
        for limit in own:
            if left[limit.id] < pays_fen:
                pays_fen = max(left[limit.id], 0)
                kept_back = kept_back or limit
        if pays_fen:
            for limit in own:
                # A limit of one transaction is used up by all purses of its kind together, like the others.
                left[limit.id] -= pays_fen
            parts.append(Part(source.purse, source.kind, pays_fen))
            missing_fen -= pays_fen
    if missing_fen == 0:
        return parts
    if kept_back and sum(max(source.money_fen, 0) for source in sources) >= amount_fen:
        return _over_limit(kept_back)
    return next((source.short for source in sources if source.short.limit_id), Refusal(Result.INSUFFICIENT_FUNDS))


def split_as_asked(
    asked: Sequence[tuple[str, int]], sources: Mapping[str, Source], rooms: Sequence[Room]
) -> list[Part] | Refusal:
    """Let each source pay what the request says; all of `asked` must be among `sources`."""
    if refusal := _refuse_whole(sum(amount_fen for _, amount_fen in asked), rooms):
        return refusal
    left = {room.limit.id: room.left_fen for room in rooms if room.limit.scope is Scope.PURSE}
    parts: list[Part] = []
    for purse, amount_fen in asked:
        source = sources[purse]
        for room in rooms:
            if room.limit.scope is Scope.PURSE and room.limit.purse_kind == source.kind:
                if left[room.limit.id] < amount_fen:
                    return _over_limit(room.limit)
                left[room.limit.id] -= amount_fen
        if amount_fen > source.money_fen:
            return source.short
        parts.append(Part(purse, source.kind, amount_fen))
    return parts


def used(parts: Iterable[Part], limit: Limit) -> int:
    """What a payment uses up of a limit of a day or month that concerns its category."""
    return sum(part.amount_fen for part in parts if limit.scope is not Scope.PURSE or limit.purse_kind == part.kind)


def counted(limit: Limit) -> bool:
    """Whether the limit runs over a day or month, so that somebody must count."""
    return limit.period in (Period.DAY, Period.MONTH)


def take_in_order(amount_fen: int, available: Sequence[int]) -> list[int]:
    """An amount over places with so much each, the first filled first. The places together must have enough."""
    taken: list[int] = []
    for place_fen in available:
        taken.append(min(amount_fen, place_fen))
        amount_fen -= taken[-1]
    assert amount_fen == 0
    return taken


def take_in_reverse(amount_fen: int, available: Sequence[int]) -> list[int]:
    """As `take_in_order`, the last filled first; the answer stands in the order of `available`."""
    return take_in_order(amount_fen, available[::-1])[::-1]
