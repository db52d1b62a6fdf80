"""What published tap records should have cost: nominal fare, rider category and stated transfer, by the native evaluator.

The file does not say what kind of card each record is of; that is inferred, one category a card, from all its records at once.
Each category of the tariff is tried on all rides of the card in order of time, and the one that gives the published charge most
often is the card's; with equal counts it is ordinary, and after that the category that the tariff names first. Records without
a nominal fare (metro entries) say nothing. So one record suffices to tell a student from an ordinary rider where their fares
differ, but a card's category never changes between its records to make each of them fit. Free riders of all kinds look alike:
they become the first free category."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import yikatong.core.rules
from yikatong.clients.taps_csv import TAP_KINDS, TapRecord
from yikatong.core.rules.compile import Compiled, compile_tariffs
from yikatong.core.rules.fares import Outcome
from yikatong.core.rules.tariff import RIDER_ORDINARY, RIDERS, TariffSet
from yikatong.ext import fares

DEFAULT_TARIFF: Final = Path(yikatong.core.rules.__file__).with_name("shenzhen-2018.toml")
EPOCH: Final = datetime(1970, 1, 1)

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Priced:
    """The fares of one file's taps, by the record's key."""

    charged_fen: dict[Key, int]
    outcomes: dict[Key, Outcome]


@dataclass
class PriceReport:
    """How the priced amounts compare with those published, every record counting (a repeated one too)."""

    tariff: str
    records: int = 0
    priced: int = 0  # a rule of the tariff fitted
    exact: int = 0  # priced, and at exactly what the file says was deducted
    nominal_records: int = 0  # with a nominal fare above 0
    nominal_exact: int = 0
    riders: dict[str, int] = field(default_factory=dict)  # cards by category
    rest: list[tuple[str, int, int, int, int]] = field(default_factory=list)  # type, nominal, charged, deducted, how many

    @property
    def exact_share(self) -> float:
        return self.exact / self.records if self.records else 1.0

    @property
    def nominal_exact_share(self) -> float:
        return self.nominal_exact / self.nominal_records if self.nominal_records else 1.0

    def as_json(self) -> dict[str, Any]:
        """What --json adds."""
        names = ("deal_type", "nominal_fen", "charged_fen", "deal_money_fen", "records")
        return {
            "tariff": self.tariff,
            "priced": self.priced,
            "exact": self.exact,
            "exact_share": self.exact_share,
            "nominal_records": self.nominal_records,
            "nominal_exact": self.nominal_exact,
            "nominal_exact_share": self.nominal_exact_share,
            "riders": self.riders,
            "rest": [dict(zip(names, row, strict=True)) for row in self.rest],
        }


def read_tariff(path: Path | None) -> Compiled:
    """A tariff file, compiled; the one of Shenzhen unless named. Raises RuleError."""
    return compile_tariffs(TariffSet.read([path or DEFAULT_TARIFF]))


def line_number(record: TapRecord) -> int:
    """The file names lines and stations; taps carry numbers."""
    return zlib.crc32(record.line_name.encode())


def stop_number(record: TapRecord) -> int:
    return zlib.crc32(record.car.encode()) & 0xFFFFFF


class Pricing:
    """Prices records of a file, which are each tap once and in order of time."""

    def __init__(self, compiled: Compiled, records: Sequence[TapRecord]) -> None:
        self.compiled = compiled
        self.records = records
        cards = {card: at for at, card in enumerate(dict.fromkeys(record.card_number for record in records))}
        self.cards = list(cards)
        self._card = np.array([cards[record.card_number] for record in records], np.uint32)
        self._rides = np.zeros(len(records), fares.RIDE)
        for name, value in self._columns().items():
            self._rides[name] = [value(record) for record in records]

    def _columns(self) -> dict[str, Callable[[TapRecord], int]]:
        return {
            "local_s": lambda record: int((datetime.strptime(record.time, "%Y%m%d%H%M%S") - EPOCH).total_seconds()),
            "kind": lambda record: TAP_KINDS[record.deal_type],
            "industry": lambda record: record.industry,
            "line": line_number,
            "stop": stop_number,
            "nominal_fen": lambda record: record.deal_value_fen,
            "stated": lambda record: record.transfer,
            "operator_number": lambda record: self.compiled.operator_number(record.company),
        }

    def _price(self, riders: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Fares of all rides from empty memories; `riders` has a category for each card."""
        self._rides["rider"] = riders[self._card]
        return self.compiled.evaluator.price(np.zeros(len(self.cards), fares.RIDES), self._card, self._rides)

    def infer_riders(self) -> dict[str, int]:
        """The rider category of each card."""
        named = [rider for tariff in self.compiled.tariffs.tariffs for rider in tariff.riders]
        categories = list(dict.fromkeys([RIDER_ORDINARY, *named]))
        deducted = np.array([record.deal_money_fen for record in self.records], np.int64)
        hits = np.zeros((len(categories), len(self.cards)), np.int64)
        for at, category in enumerate(categories):
            charged = self._price(np.full(len(self.cards), category, np.uint8))["charged_fen"]
            np.add.at(hits[at], self._card, (charged == deducted) & (self._rides["nominal_fen"] > 0))
        best = hits.argmax(axis=0)  # the first of equals
        return {card: categories[at] for card, at in zip(self.cards, best.tolist(), strict=True)}

    def price(self, riders: dict[str, int]) -> Priced:
        """Every ride in its card's category. What no rule fits is charged nothing."""
        priced = self._price(np.array([riders[card] for card in self.cards], np.uint8))
        keys = [record.key for record in self.records]
        return Priced(
            dict(zip(keys, priced["charged_fen"].tolist(), strict=True)),
            dict(zip(keys, map(Outcome, priced["outcome"].tolist()), strict=True)),
        )


def compare(tariff: str, records: Sequence[TapRecord], priced: Priced, riders: dict[str, int]) -> PriceReport:
    """Hold the priced amounts against the published ones. `riders` is each card's category."""
    names = {number: name for name, number in RIDERS.items()}
    report = PriceReport(tariff, riders=dict(sorted(Counter(names[rider] for rider in riders.values()).items())))
    rest: defaultdict[tuple[str, int, int, int], int] = defaultdict(int)
    for record in records:
        charged_fen = priced.charged_fen[record.key]
        fits = priced.outcomes[record.key] == Outcome.PRICED
        exact = fits and charged_fen == record.deal_money_fen
        report.records += 1
        report.priced += fits
        report.exact += exact
        if record.deal_value_fen:
            report.nominal_records += 1
            report.nominal_exact += exact
        if not exact:
            rest[record.deal_type, record.deal_value_fen, charged_fen, record.deal_money_fen] += 1
    report.rest = sorted(((*group, count) for group, count in rest.items()), key=lambda row: (-row[4], row))
    return report
