"""Purse rules: what kinds of restricted purses there are, where they pay and in which order, and the limits of payments.

A file in TOML (purse_rules.toml beside this one is the default); every fault is told with line and field."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from yikatong.core import limits
from yikatong.core.rules.source import Fields, Source
from yikatong.core.types import Result

DEFAULT: Final = Path(__file__).with_name("purse_rules.toml")
GENERAL: Final = "general"
"""The card's own account, as a purse and as a kind."""
BANK: Final = "bank"
"""The kind of all legs on bank accounts; such a leg's purse is "bank:" and the bank's id."""

ID_PATTERN: Final = r"[a-z0-9][a-z0-9-]{0,31}"


class Scope(Enum):
    """What a limit counts."""

    CARD = "card"
    PURSE = "purse"
    CATEGORY = "category"


class Period(Enum):
    """Over what time."""

    TRANSACTION = "transaction"
    DAY = "day"
    MONTH = "month"
    OVERDRAFT = "overdraft"


EXCEEDED: Final = {
    (Scope.CARD, Period.TRANSACTION): Result.LIMIT_TRANSACTION,
    (Scope.CARD, Period.DAY): Result.LIMIT_CARD_DAY,
    (Scope.CARD, Period.MONTH): Result.LIMIT_CARD_MONTH,
    (Scope.CARD, Period.OVERDRAFT): Result.LIMIT_OVERDRAFT,
    (Scope.PURSE, Period.TRANSACTION): Result.LIMIT_TRANSACTION,
    (Scope.PURSE, Period.DAY): Result.LIMIT_PURSE_DAY,
    (Scope.PURSE, Period.MONTH): Result.LIMIT_PURSE_MONTH,
    (Scope.CATEGORY, Period.TRANSACTION): Result.LIMIT_TRANSACTION,
    (Scope.CATEGORY, Period.DAY): Result.LIMIT_CATEGORY_DAY,
    (Scope.CATEGORY, Period.MONTH): Result.LIMIT_CATEGORY_MONTH,
}
"""What a payment beyond a limit is answered."""


@dataclass(frozen=True)
class Categories:
    """Merchant category codes, as ranges with both ends included."""

    ranges: tuple[tuple[int, int], ...]

    def __contains__(self, category: str) -> bool:
        code = int(category)
        return any(low <= code <= high for low, high in self.ranges)


@dataclass(frozen=True)
class PurseKind:
    """A kind of restricted purse."""

    id: str
    categories: Categories
    order: int
    validity_days: int


@dataclass(frozen=True)
class Limit:
    """What may be spent at most. Day and month count what is held and captured; refunds do not give back."""

    id: str
    scope: Scope
    period: Period
    purse_kind: str  # scope PURSE only
    categories: Categories | None  # None: everywhere
    amount_fen_max: int

    @property
    def exceeded(self) -> Result:
        return EXCEEDED[self.scope, self.period]

    def concerns(self, category: str) -> bool:
        """Whether payments at this merchant category count."""
        return self.categories is None or category in self.categories


@dataclass(frozen=True)
class PurseRules:
    """A rule file, read."""

    version: int
    general_order: int
    kinds: dict[str, PurseKind]
    banks: frozenset[str]
    limits: tuple[Limit, ...]

    def overdraft(self, category: str) -> Limit | None:
        """The tightest limit of what a payment made offline may overdraw."""
        found = [limit for limit in self.limits if limit.period is Period.OVERDRAFT and limit.concerns(category)]
        return min(found, key=lambda limit: limit.amount_fen_max, default=None)


def read(path: Path = DEFAULT) -> PurseRules:
    """Raises RuleError naming file, line and field; then nothing of the file is in force."""
    return parse(Source.read(path))


def parse(source: Source) -> PurseRules:
    """As `read`, for a file that is in memory."""
    top = source.fields()
    version = top.integer("version", 1, 1)
    general = top.table("general")
    general_order = general.integer("order", 0, limits.PURSE_ORDER_MAX)
    general.done()
    kinds: dict[str, PurseKind] = {}
    for fields in top.tables("purse_kinds"):
        kind = PurseKind(
            fields.text("id", pattern=ID_PATTERN),
            _categories(fields),
            fields.integer("order", 0, limits.PURSE_ORDER_MAX),
            fields.integer("validity_days", 1, limits.PURSE_VALIDITY_DAYS_MAX),
        )
        if kind.id in kinds or kind.id in (GENERAL, BANK):
            raise fields.error("id", f"{kind.id!r} stands there twice" if kind.id in kinds else f"{kind.id!r} is taken")
        fields.done()
        kinds[kind.id] = kind
    banks = _banks(top)
    found = _limits(top, kinds)
    top.done()
    if banks and not any(limit.purse_kind == BANK for limit in found):
        raise top.error("banks", 'a bank account has no balance here: a limit with scope "purse", purse_kind "bank" is wanted')
    return PurseRules(version, general_order, kinds, banks, found)


def _banks(top: Fields) -> frozenset[str]:
    banks: set[str] = set()
    for fields in top.tables("banks"):
        bank_id = fields.text("id", pattern=ID_PATTERN)
        if bank_id in banks:
            raise fields.error("id", f"{bank_id!r} stands there twice")
        fields.done()
        banks.add(bank_id)
    return frozenset(banks)


def _limits(top: Fields, kinds: dict[str, PurseKind]) -> tuple[Limit, ...]:
    found: dict[str, Limit] = {}
    for fields in top.tables("limits"):
        limit_id = fields.text("id", pattern=ID_PATTERN)
        if limit_id in found:
            raise fields.error("id", f"{limit_id!r} stands there twice")
        scope = fields.choice("scope", {scope.value: scope for scope in Scope})
        period = fields.choice("period", {period.value: period for period in Period})
        if (scope, period) not in EXCEEDED:
            raise fields.error("period", f"{period.value!r} goes with scope 'card' only")
        purse_kind = ""
        if scope is Scope.PURSE:
            purse_kind = fields.text("purse_kind")
            if purse_kind not in kinds and purse_kind not in (GENERAL, BANK):
                raise fields.error("purse_kind", f"there is no kind {purse_kind!r}")
        categories = _categories(fields) if scope is Scope.CATEGORY or "categories" in fields else None
        amount_fen_max = fields.integer("amount_fen_max", 0, limits.LIMIT_FEN_MAX)
        fields.done()
        found[limit_id] = Limit(limit_id, scope, period, purse_kind, categories, amount_fen_max)
    if len(found) > limits.LIMITS_MAX:
        raise top.error("limits", f"at most {limits.LIMITS_MAX} are taken, not {len(found)}")
    return tuple(found.values())


def _categories(fields: Fields) -> Categories:
    """Codes and ranges of codes: ["5812", "8211-8299"]."""
    ranges: list[tuple[int, int]] = []
    for at, text in enumerate(fields.items("categories", str)):
        first, dash, last = text.partition("-")
        codes = (first, last) if dash else (first, first)
        if not all(is_category(code) for code in codes) or codes[0] > codes[1]:
            place = (*fields.place, "categories", at)
            raise fields.source.error(place, f'a category of 4 digits or a range as "5811-5814" is wanted, not {text!r}')
        ranges.append((int(codes[0]), int(codes[1])))
    if not ranges:
        raise fields.error("categories", "at least one is wanted")
    return Categories(tuple(sorted(ranges)))


def is_category(text: str) -> bool:
    """Whether this is a merchant category code: 4 digits."""
    return len(text) == 4 and text.isascii() and text.isdigit()
