"""Card rules: how long each step of issuing a card may take, which days are working days, when a temporary loss lifts itself.

A file in TOML (card_rules.toml beside this one is the default); every fault is told with line and field."""

import datetime
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from yikatong.core import limits
from yikatong.core.rules.source import Fields, Source

DEFAULT: Final = Path(__file__).with_name("card_rules.toml")
KINDS: Final = ("ordinary", "newborn", "instant", "expedited", "replacement", "renewal")
STEPS: Final = (
    "applied", "checked", "batched", "at_bank", "bank_done", "at_factory", "factory_done", "at_initialisation", "produced",
)  # fmt: skip
"""The steps before a card is delivered: only these have limits."""


@dataclass(frozen=True)
class KindLimits:
    """Working days."""

    total: int
    steps: Mapping[str, int]


@dataclass(frozen=True)
class CardRules:
    """A rule file, checked."""

    temporary_loss_days: int = limits.TEMPORARY_LOSS_DAYS
    holidays: frozenset[datetime.date] = frozenset()
    working_days: frozenset[datetime.date] = frozenset()
    kinds: Mapping[str, KindLimits] = field(default_factory=dict)

    @property
    def temporary_loss_s(self) -> int:
        return self.temporary_loss_days * 86_400

    def is_working_day(self, day: datetime.date) -> bool:
        return day in self.working_days or (day.weekday() < 5 and day not in self.holidays)

    def after(self, day: datetime.date, working_days: int) -> datetime.date:
        """The day so many working days after another one; for 0 the day itself or, where that is a day off, the next working
        day."""
        while not self.is_working_day(day):
            day += datetime.timedelta(1)
            if working_days and self.is_working_day(day):
                working_days -= 1
        while working_days:
            day += datetime.timedelta(1)
            working_days -= self.is_working_day(day)
        return day

    def due(self, kind: str, step: str, applied: int, reached: int) -> int:
        """The last day (YYYYMMDD) on which an application may stand in a step that it reached on a day, the day of its
        application known; 0: no limit."""
        if step not in STEPS or kind not in self.kinds:
            return 0
        allowed = self.kinds[kind]
        last = self.after(_date(applied), allowed.total)
        if step in allowed.steps:
            last = min(last, self.after(_date(reached), allowed.steps[step]))
        return int(f"{last:%Y%m%d}")


def _date(day: int) -> datetime.date:
    return datetime.date(day // 10_000, day // 100 % 100, day % 100)


@functools.cache
def default() -> CardRules:
    """Those that come with the package."""
    return read(DEFAULT)


def read(path: Path) -> CardRules:
    """Raises RuleError naming file, line and field; then nothing of the file is in force."""
    return parse(Source.read(path))


def parse(source: Source) -> CardRules:
    """As `read`, for a file that is in memory."""
    top = source.fields()
    top.integer("version", 1, 1)
    temporary_loss_days = top.integer("temporary_loss_days", 1, limits.TEMPORARY_LOSS_DAYS_MAX)
    holidays, working_days = _days(top, "holidays"), _days(top, "working_days")
    if both := holidays & working_days:
        raise top.error("working_days", f"{min(both)} is a holiday too")
    table = top.table("kinds")
    kinds: dict[str, KindLimits] = {}
    for kind in KINDS:
        fields = table.table(kind)
        total = fields.integer("total", 0, limits.ISSUANCE_DAYS_MAX)
        steps: dict[str, int] = {}
        for step in STEPS:
            days = fields.integer(step, 0, limits.ISSUANCE_DAYS_MAX, None)
            if days is not None:
                steps[step] = days
        fields.done()
        kinds[kind] = KindLimits(total, steps)
    table.done()
    top.done()
    return CardRules(temporary_loss_days, holidays, working_days, kinds)


def _days(top: Fields, name: str) -> frozenset[datetime.date]:
    found: set[datetime.date] = set()
    values: list[Any] = top.items(name, datetime.date, [])
    for at, day in enumerate(values):
        if isinstance(day, datetime.datetime) or day in found:
            raise top.source.error((name, at), "a date, once, is wanted")
        found.add(day)
    return frozenset(found)
