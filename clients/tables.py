"""Results as people like to look at them."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from yikatong.clients.replay import ReplayReport


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
    return Group(
        facts,
        operator_table("Cleared per operator", report.operators),
        verdict(report.agrees, "the totals are the file's own, to the fen", "the totals are not the file's own"),
        verdict(report.imbalance_fen == 0, "the books balance", f"the books are out by {report.imbalance_fen} fen"),
    )
