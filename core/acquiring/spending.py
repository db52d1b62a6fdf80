"""What cards have used of their limits: one counter for each card and limit, of its current day or month.

A counter is overwritten when its period is over, so old periods take no room; what is given back to a period that is over is
given back to nobody."""

from collections.abc import Iterable, Sequence

from yikatong.core.acquiring.paying import Part, Room, counted, used
from yikatong.core.change import Change
from yikatong.core.memory import Memory
from yikatong.core.rules.purse_rules import Limit, Period, PurseRules
from yikatong.core.types import DocumentKind
from yikatong.ext.engine import settlement_date
from yikatong.v1 import authorization_service_pb2

LimitUse = authorization_service_pb2.LimitUse


def period_at(limit: Limit, time_us: int) -> int:
    """YYYYMMDD or YYYYMM (UTC+8)."""
    day = settlement_date(time_us)
    return day if limit.period is Period.DAY else day // 100


def _key(card: int, limit_id: str) -> bytes:
    return card.to_bytes(4, "big") + limit_id.encode()


def _counter(memory: Memory, key: bytes) -> tuple[int, int]:
    """Period and fen."""
    value = memory.documents.get(DocumentKind.LIMIT_USE, key)
    return (int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big")) if value else (0, 0)


def rooms(memory: Memory, rules: PurseRules, card: int, category: str, time_us: int, already: Sequence[Part] = ()) -> list[Room]:
    """What each limit that concerns a payment still lets through, in the order of the rule file. `already` is what an increment
    is added to: one transaction together with it."""
    found: list[Room] = []
    for limit in rules.limits:
        if limit.period is Period.OVERDRAFT or not limit.concerns(category):
            continue
        left_fen = limit.amount_fen_max
        if counted(limit):
            period, used_fen = _counter(memory, _key(card, limit.id))
            if period == period_at(limit, time_us):
                left_fen -= used_fen
        else:
            left_fen -= used(already, limit)
        found.append(Room(limit, left_fen))
    return found


def uses_of(parts: list[Part], found: Iterable[Room], time_us: int) -> list[LimitUse]:
    """What a payment uses up, limit by limit."""
    return [
        LimitUse(
            limit_id=room.limit.id,
            period=period_at(room.limit, time_us),
            purse_kind=room.limit.purse_kind,
            amount_fen=amount_fen,
        )
        for room in found
        if counted(room.limit) and (amount_fen := used(parts, room.limit))
    ]


class Counters:
    """Counters as one change will leave them. `put` hands them to the change."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._counters: dict[bytes, tuple[int, int]] = {}

    def use(self, card: int, use: LimitUse) -> None:
        key = _key(card, use.limit_id)
        period, used_fen = self._counters.get(key) or _counter(self._memory, key)
        self._counters[key] = use.period, use.amount_fen + (used_fen if period == use.period else 0)

    def give_back(self, card: int, limit_id: str, period: int, amount_fen: int) -> None:
        key = _key(card, limit_id)
        current, used_fen = self._counters.get(key) or _counter(self._memory, key)
        if current == period:
            self._counters[key] = period, used_fen - amount_fen

    def put(self, change: Change) -> None:
        for key, (period, used_fen) in self._counters.items():
            if used_fen:
                change.put(DocumentKind.LIMIT_USE, key, period.to_bytes(4, "big") + used_fen.to_bytes(8, "big"))
            elif self._memory.documents.get(DocumentKind.LIMIT_USE, key) is not None:
                change.delete(DocumentKind.LIMIT_USE, key)
