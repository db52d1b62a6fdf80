"""Results as people like to look at them."""

from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from yikatong.clients.pricing import PriceReport
from yikatong.clients.replay import ReplayReport

REST_SHOWN: Final = 30  # --json has them all


def yuan(amount_fen: int) -> str:
    """Fen as yuan with two decimals."""
    sign = "-" if amount_fen < 0 else ""
    return f"{sign}{abs(amount_fen) // 100:,}.{abs(amount_fen) % 100:02d}"


def operator_table(title: str, totals: list[tuple[str, int, int]]) -> Table:
    """Operators with their taps and money, and the sum."""
    table = Table(title=title, box=box.SIMPLE_HEAVY, show_footer=True)
    table.add_column("operator", "total")
    table.add_column("taps", f"{sum(taps for _, taps, _ in totals):,}", justify="right")
    table.add_column("CNY", yuan(sum(amount_fen for _, _, amount_fen in totals)), justify="right")
    for operator, taps, amount_fen in totals:
        table.add_row(operator, f"{taps:,}", yuan(amount_fen))
    return table


def verdict(good: bool, yes: str, no: str) -> Text:
    """A line that is green or red."""
    return Text(f"✓ {yes}", "green") if good else Text(f"✗ {no}", "bold red")


def price_table(report: PriceReport) -> RenderableType:
    """How priced amounts compare with published ones: the groups that differ, the largest first."""
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("tariff", report.tariff),
        ("cards", ", ".join(f"{count:,} {rider}" for rider, count in report.riders.items())),
        ("priced", f"{report.priced:,} of {report.records:,} records"),
        ("exact", f"{report.exact:,} of {report.records:,} records, {report.exact_share:.2%}"),
        ("", f"{report.nominal_exact:,} of {report.nominal_records:,} with a nominal fare, {report.nominal_exact_share:.2%}"),
    ):
        facts.add_row(name, value)
    if not report.rest:
        return facts
    table = Table(title="Priced otherwise than published, CNY", box=box.SIMPLE_HEAVY)
    for name in ("type", "nominal", "priced", "published", "records"):
        table.add_column(name, justify="left" if name == "type" else "right")
    for deal_type, nominal_fen, charged_fen, deducted_fen, count in report.rest[:REST_SHOWN]:
        table.add_row(deal_type, yuan(nominal_fen), yuan(charged_fen), yuan(deducted_fen), f"{count:,}")
    if len(report.rest) > REST_SHOWN:
        others = report.rest[REST_SHOWN:]
        table.add_row(f"{len(others):,} other groups", "", "", "", f"{sum(group[4] for group in others):,}")
    return Group(facts, table)


def replay_table(report: ReplayReport) -> RenderableType:
    """What came of a replay."""
    rejected = ", ".join(f"{count:,} {name}" for name, count in sorted(report.rejected.items())) or "none"
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("records", f"{report.records:,}"),
        ("accepted", f"{report.accepted:,}"),
        ("duplicates", f"{report.duplicates:,}"),
        ("rejected", rejected),
        ("journal records", f"{report.journal_records:,}"),
    ):
        facts.add_row(name, value)
    whose = "the tariff's" if report.price else "the file's own"
    return Group(
        facts,
        *([price_table(report.price)] if report.price else []),
        operator_table("Cleared per operator", report.operators),
        verdict(report.agrees, f"the totals are {whose}, to the fen", f"the totals are not {whose}"),
        verdict(report.imbalance_fen == 0, "the books balance", f"the books are out by {report.imbalance_fen} fen"),
    )
