"""At which category a card rides, day by day: one from a day on, and others before it.

The engine prices each tap by the tap's own day (ext/decide.c), whenever it comes in: a category that begins in the future needs
nobody to switch it on, and a tap that comes late is not touched by what began after it was made. Days are days since 1970-01-01
in UTC+8."""

from typing import Any, Final, NamedTuple

import numpy as np

from yikatong.ext.engine import ENTITLEMENT, local_seconds, settlement_date
from yikatong.v1 import tap_service_pb2

ORDINARY: Final = int(tap_service_pb2.RIDER_ORDINARY)
FIRST_SHIFT: Final = 4  # yk_card in ext/engine.h
BEFORE_DAYS_MAX: Final = 255  # one byte of the card's slot


def day_of(date: int) -> int:
    """Days from 1970-01-01 to a date YYYYMMDD; 0 for 0."""
    return (local_seconds(date, 0) + 8 * 3600) // 86_400 if date else 0


def date_of(day: int) -> int:
    """A date YYYYMMDD of days since 1970-01-01; 0 for 0."""
    return int(settlement_date((day * 86_400 - 8 * 3600) * 1_000_000)) if day else 0


class Riding(NamedTuple):
    """`rider` from the day `since` on (0: always) up to its last day `until` (0: no end); `before` for `before_days` before that
    (0: always); and before that again `first`. What held earlier still is forgotten, and what is longer than BEFORE_DAYS_MAX
    counts as always: no tap comes that late."""

    rider: int = ORDINARY
    until: int = 0
    since: int = 0
    before: int = 0
    before_until: int = 0
    before_days: int = 0
    first: int = 0

    def on(self, day: int) -> tuple[int, int]:
        """The category of a day, and its last day; one whose last day is over is told as it was."""
        if day >= self.since:
            return self.rider, self.until
        if self.before_days and day < self.since - self.before_days:
            return self.first, 0
        return self.before, self.before_until

    def without_pending(self, today: int) -> "Riding":
        """What has not begun today never will."""
        if today >= self.since:
            return self
        since = self.since - self.before_days if self.before_days else 0
        return Riding(self.before, self.before_until, since, self.first).without_pending(today)

    def then(self, since: int, rider: int, until: int, today: int) -> "Riding":
        """Another category from a day on, in place of all that holds from then on and of what has not begun."""
        now = self.without_pending(today)
        if since > now.since:
            before, before_until = now.rider, now.until
            first = _if_good(*now.on(now.since - 1), now.since - 1)
            begun = now.since
        else:
            begun = now.since - now.before_days if now.before_days else 0
            before, before_until, first = now.before, now.before_until, now.first
            if since <= begun:
                before, before_until, first, begun = first, 0, 0, 0
        days = since - begun if begun and since - begun <= BEFORE_DAYS_MAX else 0
        return Riding(rider, until, since, before, before_until, days, first if days else 0)

    def entitlement(self, pass_number: int, pass_until: int) -> bytes:
        """As Change.entitle takes it, with the pass beside it."""
        made = np.zeros(1, ENTITLEMENT)
        made["rider"], made["rider_until"], made["rider_from"] = self.rider, self.until, self.since
        made["riders_before"] = self.before | self.first << FIRST_SHIFT
        made["rider_before_until"], made["before_days"] = self.before_until, self.before_days
        made["pass_number"], made["pass_until"] = pass_number, pass_until
        return made.tobytes()


def _if_good(rider: int, until: int, day: int) -> int:
    return ORDINARY if until and day > until else rider


def riding_of(card: dict[str, Any]) -> Riding:
    """Of a card as the engine tells it."""
    return Riding(
        card["rider"], card["rider_until"], card["rider_from"], card["riders_before"] & 7, card["rider_before_until"],
        card["before_days"], card["riders_before"] >> FIRST_SHIFT,
    )  # fmt: skip
