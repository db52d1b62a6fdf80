"""All benches by name, their sizes, and how results are shown."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table

from yikatong.bench import bulk, day, engine, fares, journal, latency, mac, restart, ride_code, unary
from yikatong.bench.result import BenchResult, Progress
from yikatong.core import tap_port
from yikatong.core.cli import progress_bars

BENCHES: Final[dict[str, tuple[Callable[..., list[BenchResult]], dict[str, Any]]]] = {
    "mac": (mac.run, {"taps": 2_000, "seconds": 0.2}),
    "ride-code": (ride_code.run, {"codes": 5, "seconds": 0.1}),
    "fares": (fares.run, {"cards": 500, "rides": 5_000, "twin_rides": 500, "turns": 1}),
    "engine": (engine.run, {"cards": 2_000, "taps": 16_384, "naive_taps": 500, "turns": 2}),
    "journal": (journal.run, {"accounts": 2_000, "seconds": 0.2}),
    "unary": (unary.run, {"cards": 1_000, "taps": 2_000, "service_taps": 500, "turns": 1}),
    "bulk": (bulk.run, {"cards": 1_000, "taps": 4_000, "batch": 1_000, "turns": 2, "priced_taps": 2_000}),
    "latency": (latency.run, {"cards": 1_000, "seconds": 0.3, "turns": 1, "rate_max": 2_000}),
    "restart": (restart.run, {"cards": 1_000, "taps": 20_000, "tail": 5_000, "turns": 1}),
    "day": (day.run, {"cards": 1_000, "taps": 8_000, "operators": 20, "sample": 2_000}),
}
"""Each bench and the arguments of its tiny run."""

NATIVE: Final = ("unary", "bulk", "latency")
"""Benches that need the native transport and generator."""


def run_benches(out: Console, err: Console, names: Sequence[str], *, as_json: bool, tiny: bool) -> None:
    """Run benches and print a table, or a JSON list. Raises click.UsageError for an unknown name."""
    if unknown := [name for name in names if name not in BENCHES]:
        raise click.UsageError(f"there is no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    chosen = list(names or BENCHES)
    if not tap_port.available() and (left_out := [name for name in chosen if name in NATIVE]):
        message = (
            f"{', '.join(left_out)}: this build has no load generator and no tap port; install libnghttp2-dev and yikatong again"
        )
        if names:
            raise click.UsageError(message)
        err.print(message, style="yellow")
        chosen = [name for name in chosen if name not in NATIVE]
    results: list[BenchResult] = []
    for name in chosen:
        bench, tiny_arguments = BENCHES[name]
        with _progress() as progress:
            results.extend(bench(**(tiny_arguments if tiny else {}), progress=progress))
    if as_json:
        print(json.dumps(results, ensure_ascii=False, indent=2))
    else:
        _show(out, results, tiny=tiny)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    with progress_bars() as advance:
        yield advance


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def _show(out: Console, results: list[BenchResult], *, tiny: bool) -> None:
    table = Table(box=box.SIMPLE_HEAVY)
    table.add_column("bench")
    for column in ("measured", "unit", "ratio", "baseline", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "unit" else "right")
    for result in results:
        latency = [_number(result[key]) if key in result else "" for key in ("p50_ms", "p99_ms")]  # type: ignore[literal-required]
        table.add_row(
            result["name"],
            _number(result["value"]),
            result["unit"],
            f"{result['ratio']:,.2f} ×",
            _number(result["baseline_value"]),
            *latency,
        )
    out.print(table)
    for result in results:
        conditions = ", ".join(f"{name} {value}" for name, value in result["conditions"].items())
        out.print(f"{result['name']}: baseline: {result['baseline']}. {conditions}.", style="dim", highlight=False)
    out.print("Timings on shared machines are noisy: compare within one run.", style="dim")
    if tiny:
        out.print("A tiny run: it shows that the benches run, and measures nothing.", style="yellow")
