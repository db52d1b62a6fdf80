"""Tariffs as the native evaluator reads them: one blob of flat tables (ext/price.h), and the names of its numbers."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from yikatong.core import limits
from yikatong.core.rules.tariff import DAY_KINDS, DAY_S, NEEDS_ENTRY, U32_MAX, Product, Tariff, TariffSet
from yikatong.ext import fares

KINDS: Final = ("flat", "nominal", *NEEDS_ENTRY)
RIDERS_MAX: Final = 8
EPOCH: Final = datetime.date(1970, 1, 1)

Row = tuple[int, ...]


@dataclass(frozen=True)
class Compiled:
    """A compiled tariff. `evaluator` prices; `rules` gives a rule's id by its number, 0 being none."""

    tariffs: TariffSet
    blob: bytes
    evaluator: fares.Evaluator

    @property
    def rules(self) -> list[str]:
        return self.tariffs.rules

    def operator_number(self, operator_id: str) -> int:
        """An operator's number in this tariff; 0 where the tariff does not name it."""
        return self.tariffs.operator_number.get(operator_id, 0)


class _Tables:
    """The rows of each table, in the order of price.h."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {name: [] for name, _ in fares.TABLES}

    def add(self, name: str, rows: Sequence[Row]) -> tuple[int, int]:
        """Where the rows begin in their table, and how many they are."""
        first = len(self.rows[name])
        self.rows[name].extend(rows)
        return first, len(rows)

    def blob(self) -> bytes:
        header_words = 2 + 3 * len(fares.TABLES)
        words: list[int] = [fares.MAGIC, 0]
        parts = []
        at = 4 * header_words
        for name, row_bytes in fares.TABLES:
            rows = np.array(self.rows[name], "<u4").reshape(len(self.rows[name]), row_bytes // 4)
            words += [at, len(rows), row_bytes]
            parts.append(rows.tobytes())
            at += len(parts[-1])
        words[1] = at
        return np.array(words, "<u4").tobytes() + b"".join(parts)


def day_number(date: datetime.date) -> int:
    """Days since 1970."""
    return (date - EPOCH).days


class _Version:
    """Compiles one version into the tables of all."""

    def __init__(self, tables: _Tables, tariffs: TariffSet, at: int) -> None:
        self.tables = tables
        self.tariffs = tariffs
        self.at = at
        self.tariff: Tariff = tariffs.tariffs[at]
        self.network = tariffs.network_number

    def rule(self, kind: str, name: str) -> int:
        return self.tariffs.rule_number(self.tariff, kind, name)

    def mask(self, networks: tuple[str, ...]) -> int:
        return sum(1 << self.network[network] for network in networks)

    def compile(self) -> None:
        tariff, tables = self.tariff, self.tables
        products = {name: self.product(product) for name, product in tariff.products.items()}
        days = [(day_number(date), DAY_KINDS.index(kind)) for date, kind in sorted(tariff.special_days.items())]
        legs: list[Row] = []
        for leg in tariff.leg_rules.values():
            bands = [(DAY_KINDS.index(window.day) * DAY_S + window.start_s, products[name]) for window, name in leg.bands] or [
                (0, products[leg.product or ""])
            ]
            operators = [(self.tariffs.operator_number[name],) for name in leg.operators]
            legs.append(
                (
                    self.rule("leg", leg.id),
                    self.network[leg.network],
                    sum(1 << industry for industry in leg.industries),
                    *tables.add("spans", leg.lines),
                    *tables.add("operators", operators),
                    *tables.add("bands", bands),
                )
            )
        transfers: list[Row] = [
            (
                self.rule("transfer", rule.id), self.mask(rule.from_networks), self.mask(rule.to_networks),
                rule.min_s, rule.max_s, rule.from_start, rule.to_start,
                rule.amount_off_fen or 0, rule.rate_permille, rule.chain_max, rule.other_line,
                rule.by_time, rule.by_statement,
            )
            for rule in tariff.transfers.values()
        ]  # fmt: skip
        slots = self.tariffs.cap_slot[self.at]
        caps: list[Row] = [
            (self.rule("cap", cap.id), slots[cap.id], self.mask(cap.networks), cap.amount_fen) for cap in tariff.caps.values()
        ]
        passes: list[Row] = [
            (self.rule("pass", name), self.tariffs.pass_number[name], self.mask(held.networks), held.rate_permille)
            for name, held in tariff.passes.items()
        ]
        version = (
            day_number(tariff.effective), day_number(self.tariffs.last_day(self.at)), tariff.rounding_fen, tariff.rounding_down,
            tables.add("networks", self.networks())[0], tables.add("concessions", self.concessions())[0],
            *tables.add("days", days), *tables.add("legs", legs), *tables.add("areas", self.areas()),
            *tables.add("transfers", transfers), *tables.add("caps", caps), *tables.add("passes", passes),
        )  # fmt: skip
        tables.add("versions", [version])

    def networks(self) -> list[Row]:
        rows: list[Row] = [(0, 0, 0, 0, 0)] * limits.TARIFF_NETWORKS_MAX
        for name, network in self.tariff.networks.items():
            rows[self.network[name]] = (
                network.missing_entry_fen or 0, self.rule("missing_entry", name),
                network.missing_exit_fen, self.rule("missing_exit", name), network.journey_s_max,
            )  # fmt: skip
        return rows

    def concessions(self) -> list[Row]:
        rows: list[Row] = [(0, 0, 0, 0, 0)] * (RIDERS_MAX * limits.TARIFF_NETWORKS_MAX)
        for rider, concessions in self.tariff.riders.items():
            for concession in concessions:
                for network in concession.networks:
                    rows[rider * limits.TARIFF_NETWORKS_MAX + self.network[network]] = (
                        self.rule("rider", concession.id), concession.rate_permille, concession.of_discounted,
                        concession.rides_a_month_max, concession.transfers,
                    )  # fmt: skip
        return rows

    def network_areas(self, network: str) -> list[str]:
        return [area.id for area in self.tariff.areas.values() if area.network == network]

    def areas(self) -> list[Row]:
        return sorted(
            (self.network[area.network], first, last, self.network_areas(area.network).index(area.id))
            for area in self.tariff.areas.values()
            for first, last in area.stops
        )

    def product(self, product: Product) -> int:
        """The product's row, by its number."""
        tables = self.tables
        areas = self.network_areas(product.network) if product.kind == "zones" else []
        rates: list[Row] = [
            (rate.min_fen, U32_MAX if rate.max_fen is None else rate.max_fen, rate.rate_permille) for rate in product.rates
        ]
        row = (
            KINDS.index(product.kind), product.amount_fen, self.rule("rates", product.id), *tables.add("rates", rates),
            *tables.add("tiers", [(tier.min_m, tier.amount_fen) for tier in product.tiers]),
            *tables.add("positions", sorted(product.at_m.items())),
            self.network.get(product.network, 0), len(areas),
            tables.add("cells", [(product.cells[start, end],) for start in areas for end in areas])[0],
        )  # fmt: skip
        return tables.add("products", [row])[0]


def compile_tariffs(tariffs: TariffSet) -> Compiled:
    """All versions of a tariff as one blob, and an evaluator over it."""
    tables = _Tables()
    for at in range(len(tariffs.tariffs)):
        _Version(tables, tariffs, at).compile()
    blob = tables.blob()
    return Compiled(tariffs, blob, fares.Evaluator(blob))


def explain(compiled: Compiled, fare: Any) -> list[tuple[str, int]]:
    """A fare (a row of fares.FARE) as rule ids and signed amounts in fen: the base first; their sum is the charge."""
    rows = [(compiled.rules[int(fare["base_rule"])], int(fare["base_fen"]))]
    for adjustment in fare["adjustments"][: int(fare["adjustment_count"])]:
        rows.append((compiled.rules[int(adjustment["rule"])], int(adjustment["amount_fen"])))
    return rows
