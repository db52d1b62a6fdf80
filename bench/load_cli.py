"""yikatong load: put a running server under load with fresh cards and valid taps, check every answer and the books after it."""

import dataclasses
import json
import math
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from yikatong.bench.result import Progress
from yikatong.bench.taps import AMOUNT_FEN, ATC_FIRST, SEQUENCE_FIRST, card_number, make_taps, terminal_number
from yikatong.clients.connection import Connection, call
from yikatong.core.errors import YikatongError
from yikatong.core.keys import key_sets
from yikatong.core.keys.key_sets import KeySet
from yikatong.v1 import account_service_pb2, card_service_pb2, clearing_service_pb2, result_pb2, terminal_service_pb2

if TYPE_CHECKING:
    from yikatong.bench.load import Result

BATCH: Final = 8_192  # cards, terminals or top-ups in one request
ATCS: Final = (1 << 16) - ATC_FIRST  # taps that one card has for a run
TAPS_MAX: Final = 20_000_000  # 2.6 GB of requests ready in memory
TAPS_AT_ONCE: Final = 500_000  # made in one go; bounds what numpy needs beside them
PROBE_S: Final = 1.0
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
CONNECT_S: Final = 5.0
KEPT_UP: Final = 0.97  # share of what was offered; below it the picture says so. Random gaps make for a percent or two


class Fleet:
    """A block of cards and terminals that no other run has used, and their counters. Every tap it makes is new and valid."""

    def __init__(self, key_set: KeySet, cards: int) -> None:
        self.key_set = key_set
        self.cards = cards
        self.terminals = max(cards // 1000, 1)
        # Numbers have 12 digits after the prefix, and 5 bytes: blocks drawn at random meet once in thousands of runs.
        self.first_card = cards * (1 + secrets.randbelow(10**12 // cards - 1))
        self.first_terminal = self.terminals * (1 + secrets.randbelow((1 << 40) // self.terminals - 1))
        self.run_id = secrets.token_bytes(8)
        self.used = np.zeros(cards, np.int64)
        self.tapped = 0
        self.random = np.random.default_rng(secrets.randbits(64))

    def register(self, connection: Connection, progress: Progress) -> None:
        """Register all and fund the cards for as many taps as their counters allow. Raises YikatongError for one not accepted."""
        for start in range(0, self.terminals, BATCH):
            terminals = [
                terminal_service_pb2.Terminal(
                    terminal_number=terminal_number(self.first_terminal + i),
                    operator_id=f"operator {i % 10}",
                    kind=terminal_service_pb2.TERMINAL_KIND_BUS,
                )
                for i in range(start, min(start + BATCH, self.terminals))
            ]
            request = terminal_service_pb2.RegisterTerminalsRequest(terminals=terminals)
            _want_accepted("a terminal", call(connection.terminals.RegisterTerminals, request).registrations)
        for start in range(0, self.cards, BATCH):
            block = range(start, min(start + BATCH, self.cards))
            numbers = [card_number(self.first_card + i) for i in block]
            issuer_id = self.key_set.issuer_id
            cards = [card_service_pb2.Card(card_number=number, issuer_id=issuer_id) for number in numbers]
            registered = call(connection.cards.RegisterCards, card_service_pb2.RegisterCardsRequest(cards=cards))
            _want_accepted("a card", registered.registrations)
            top_ups = [
                account_service_pb2.TopUpRequest(
                    request_id=self.run_id + i.to_bytes(8, "big"), card_number=number, amount_fen=ATCS * AMOUNT_FEN
                )
                for i, number in zip(block, numbers, strict=True)
            ]
            funded = call(connection.accounts.BatchTopUp, account_service_pb2.BatchTopUpRequest(requests=top_ups))
            _want_accepted("a top-up", funded.responses)
            progress("registering and funding cards", block.stop, self.cards)

    def requests(self, n: int, batch: int, progress: Progress) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """`n` new taps in requests of `batch` taps, or one each when that is 0: one buffer, and offsets (see load.pack).
        Raises UsageError when the cards have no counters left for so many."""
        framed = np.empty((n, 0), np.uint8)
        for start in range(0, n, TAPS_AT_ONCE):
            part = self._taps(min(TAPS_AT_ONCE, n - start))
            if start == 0:
                framed = np.empty((n, part.shape[1]), np.uint8)
            framed[start : start + len(part)] = part
            progress("making taps", start + len(part), n)
        stride = framed.shape[1] * max(batch, 1)
        offsets = np.minimum(np.arange(0, framed.size + stride, stride, dtype=np.int64), framed.size)
        return framed.reshape(-1), offsets

    def _taps(self, n: int) -> npt.NDArray[np.uint8]:
        """Taps of random cards at random terminals, as field 1 of either request: (n, length)."""
        card = self.random.integers(0, self.cards, n)
        order = np.argsort(card, kind="stable")
        ordered = card[order]
        starts = np.r_[True, ordered[1:] != ordered[:-1]]
        ranks = np.empty(n, np.int64)
        ranks[order] = np.arange(n) - np.maximum.accumulate(np.where(starts, np.arange(n), 0))
        atc = ATC_FIRST + self.used[card] + ranks
        if atc.max() >= 1 << 16:
            raise click.UsageError(f"{self.cards:,} cards have not counters enough for so many taps: ask for more --cards")
        self.used += np.bincount(card, minlength=self.cards)
        terminal = self.random.integers(0, self.terminals, n)
        sequence = SEQUENCE_FIRST + self.tapped + np.arange(n)
        self.tapped += n
        taps = make_taps(self.first_card + card, atc, self.first_terminal + terminal, sequence, self.key_set).messages
        head = np.frombuffer(bytes([1 << 3 | 2, taps.shape[1]]), np.uint8)
        return np.hstack([np.broadcast_to(head, (n, 2)), taps])


def _want_accepted(what: str, items: Sequence[Any]) -> None:
    for item in items:
        if item.result != result_pb2.RESULT_ACCEPTED:
            raise YikatongError(f"the server does not take {what}: {result_pb2.Result.Name(item.result)}")


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the load goes, and how it is spread. Cards and books are asked for at `service_address`, all in host:port."""

    address: str
    service_address: str
    connections: int
    streams: int
    batch: int
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def run(self, requests: Any, rate: float | None, seconds: float | None, progress: Callable[[int, int], None]) -> "Result":
        """`rate` is in requests a second; None is the closed loop."""
        from yikatong.bench import load

        return load.run(
            self.address, requests, path=f"/yikatong.v1.TapService/{'SubmitTaps' if self.batch else 'AuthorizeTap'}",
            connections=self.connections, streams=self.streams, rate=rate, exponential=True, seed=secrets.randbits(64),
            seconds=seconds, connect_s=CONNECT_S, charged_fen=AMOUNT_FEN, ca=self.ca, certificate=self.certificate,
            key=self.key, progress=progress,
        )  # fmt: skip


def _measure(target: Target, fleet: Fleet, rate: float | None, seconds: float, progress: Progress) -> "Result":
    """One run. `rate` is in taps a second; without one a short probe tells how many taps the closed loop will want."""
    a_request = max(target.batch, 1)
    title = f"{rate:,.0f} taps/s" if rate else "closed loop"
    if rate is None:
        in_flight = target.connections * target.streams
        wanted = 4 * in_flight * a_request
        probe = target.run(fleet.requests(wanted, target.batch, progress), None, PROBE_S, lambda *_: None)
        # The probe is short and cold, so that it may tell of less than the half of what is to come.
        wanted = int(2.5 * probe.taps_rate * seconds) + wanted
    else:
        # Gaps are random: by this much more than the mean no run of any length can ask.
        wanted = int(rate * seconds + 6 * (rate * seconds) ** 0.5) + a_request
    if wanted > TAPS_MAX and rate is not None:
        raise click.UsageError(f"{wanted:,} taps are more than the {TAPS_MAX:,} that are kept ready: ask for fewer --seconds")
    requests = fleet.requests(min(wanted, TAPS_MAX), target.batch, progress)
    per_second = None if rate is None else rate / a_request
    return target.run(requests, per_second, seconds, lambda done, total: progress(title, done, total))


def run_load(
    out: Console, target: Target, key_set: KeySet, *, cards: int, rates: Sequence[float | None], seconds: float,
    json_file: Path | None = None, plot_file: Path | None = None, progress: Progress,
) -> int:  # fmt: skip
    """Register `cards` cards, load the server at each rate (taps a second; None is the closed loop) for `seconds`, and print a
    table. Returns the exit status: 1 when an answer was wrong, a run ended early or the books do not balance. Raises
    LoadFailed without a connection and click.UsageError for what cannot be done."""
    if plot_file is not None:
        _pyplot()  # what is missing is better said before the load than after
    fleet = Fleet(key_set, cards)
    results: list[tuple[float | None, Result]] = []
    with Connection(target.service_address, ca=target.ca, certificate=target.certificate, key=target.key) as connection:
        fleet.register(connection, progress)
        for rate in rates:
            results.append((rate, _measure(target, fleet, rate, seconds, progress)))
        books = call(connection.clearing.GetTrialBalance, clearing_service_pb2.GetTrialBalanceRequest())
    _show(out, target, seconds, results)
    if json_file is not None:
        json_file.write_text(json.dumps([as_json(target, rate, result) for rate, result in results]) + "\n")
    if plot_file is not None:
        plot(plot_file, [(rate, result) for rate, result in results if rate is not None], target)
    if books.imbalance_fen:
        out.print(f"The books are out by {books.imbalance_fen} fen.", style="bold red")
    else:
        out.print("The books balance.", style="green")
    return int(books.imbalance_fen != 0 or any(result.wrong or result.error for _, result in results))


def _ms(ms: float) -> str:
    return "–" if math.isnan(ms) else f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _show(out: Console, target: Target, seconds: float, results: Sequence[tuple[float | None, "Result"]]) -> None:
    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False, caption="latency in ms", caption_justify="left")
    for column in ("offered", "taps/s", *(f"p{percent:g}" for percent in PERCENTILES), "max", "refused", "wrong"):
        table.add_column(column, justify="right", no_wrap=True)
    for rate, result in results:
        times = [*(result.latency.percentile_ms(percent) for percent in PERCENTILES), result.latency.max_ms]
        table.add_row(
            f"{rate:,.0f}" if rate else "closed",
            f"{result.taps_rate:,.0f}",
            *map(_ms, times),
            f"{result.refused:,}",
            f"[bold red]{result.wrong:,}[/]" if result.wrong else "0",
        )
    out.print(table)
    way = f"SubmitTaps of {target.batch}" if target.batch else "AuthorizeTap"
    out.print(
        f"{way}, {target.connections} connections × {target.streams} streams at most, {'TLS 1.3' if target.ca else 'plaintext'}. "
        "At a rate, latency counts from when a request was due, at random gaps; in the closed loop from when it was sent.",
        style="dim", highlight=False,
    )  # fmt: skip
    for rate, result in results:
        name = f"{rate:,.0f} taps/s" if rate else "closed loop"
        if result.wrong:
            out.print(f"{name}: the first wrong answer: {result.first_wrong}", style="red", highlight=False, markup=False)
        if result.error:
            out.print(f"{name}: ended early: {result.error}", style="red", highlight=False, markup=False)
        if rate is None and not result.error and result.elapsed_s < seconds:
            text = f"{name}: ended after {result.elapsed_s:.1f} s, when all taps that were kept ready had been sent"
            out.print(text, style="yellow", highlight=False, markup=False)
        if result.first_lost:
            text = f"{name}: {result.reconnects} connections made again; the first was lost: {result.first_lost}"
            out.print(text, style="yellow", highlight=False, markup=False)
        if result.failed or result.unanswered:
            text = f"{name}: lost with a connection {result.failed:,}, unanswered {result.unanswered:,}"
            out.print(text, style="yellow", highlight=False, markup=False)
        if result.unsent:
            text = f"{name}: not kept up with; {result.unsent:,} requests were due and never sent, and are in no percentile"
            out.print(text, style="yellow", highlight=False, markup=False)


def as_json(target: Target, rate: float | None, result: "Result") -> dict[str, Any]:
    """One run as JSON: counts, percentiles and buckets of both histograms in ms, and the time series."""
    counted = ["sent", "ok", "refused", "wrong", "failed", "unanswered", "unsent", "resent", "reconnects", "taps"]

    def times(histogram: Any) -> dict[str, Any]:
        if not len(histogram):
            return {"n": 0}
        counts, upper_ns = histogram.buckets()
        named = {f"p{percent:g}_ms": histogram.percentile_ms(percent) for percent in PERCENTILES}
        buckets = [[ns / 1e6, int(count)] for ns, count in zip(upper_ns.tolist(), counts, strict=True)]
        return {"n": len(histogram), **named, "max_ms": histogram.max_ms, "mean_ms": histogram.mean_ms, "buckets_ms": buckets}

    return {
        "offered_taps_per_s": rate, "taps_per_s": result.taps_rate, "requests_per_s": result.rate, "elapsed_s": result.elapsed_s,
        "batch": target.batch, "connections": target.connections, "streams": target.streams,
        **{name: getattr(result, name) for name in counted},
        "first_wrong": result.first_wrong, "first_lost": result.first_lost, "error": result.error,
        "grpc_statuses": {str(i): int(n) for i, n in enumerate(result.statuses) if n},
        "results": {str(i): int(n) for i, n in enumerate(result.results) if n},
        "latency": times(result.latency), "refused_latency": times(result.refused_latency), "lag": times(result.lag),
        "series_100_ms": {
            name: result.series[name].tolist() for name in result.series.dtype.names
        },
    }  # fmt: skip


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise click.UsageError("--plot needs matplotlib, which is not installed: pip install 'yikatong[plot]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def plot(file: Path, results: Sequence[tuple[float, "Result"]], target: Target) -> None:
    """Latency percentiles, and what was answered, against offered load, as PNG."""
    pyplot = _pyplot()
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    results = sorted(results, key=lambda pair: pair[0])
    offered = [rate for rate, _ in results]
    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(9, 7), dpi=150, height_ratios=(3, 2), layout="constrained"
    )  # fmt: skip
    for percent, colour, marker in ((99.9, "#b2182b", "^"), (99.0, "#ef8a62", "s"), (50.0, "#2166ac", "o")):
        times = [result.latency.percentile_ms(percent) for _, result in results]
        above.plot(offered, times, color=colour, marker=marker, markersize=5, linewidth=1.8, label=f"p{percent:g}")
    above.set_yscale("log")
    above.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=24))
    above.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    above.yaxis.set_minor_formatter(NullFormatter())
    above.set_ylabel("latency of accepted taps, ms")
    way = f"SubmitTaps of {target.batch}" if target.batch else "AuthorizeTap"
    spread = f"{target.connections} connections × {target.streams} streams at most"
    above.set_title(f"{way}: latency against offered load", loc="left", fontsize=13)
    above.set_title(spread, loc="right", fontsize=9, color="#666666")
    above.legend(loc="upper left", frameon=False)

    a_request = max(target.batch, 1)
    refused = [result.refused * a_request / result.elapsed_s for _, result in results]
    accepted = [result.taps_rate for _, result in results]
    behind = [rate for rate, taps in zip(offered, accepted, strict=True) if taps < KEPT_UP * rate]
    for axes in (above, below) if behind else ():
        axes.axvspan(behind[0], max(offered) * 1.04, color="#f4f4f4", zorder=0)
    if behind:
        above.text(
            behind[0], 0.02, " not kept up with: what was never sent is in no percentile", transform=above.get_xaxis_transform(),
            color="#666666", fontsize=9,
        )  # fmt: skip
    below.plot([0, max(offered)], [0, max(offered)], color="#999999", linestyle="--", linewidth=1, label="offered")
    below.plot(offered, accepted, color="#1b7837", marker="o", markersize=5, linewidth=1.8, label="accepted")
    if any(refused):
        below.plot(offered, refused, color="#762a83", marker="x", markersize=6, linewidth=1.8, label="refused")
    below.set_ylabel("taps/s")
    below.set_xlabel("offered load, taps/s")
    below.set_ylim(bottom=0)
    below.set_xlim(0, max(offered) * 1.04)
    below.legend(loc="upper left", frameon=False)
    for axes in (above, below):
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.savefig(file)
    pyplot.close(figure)


def parse_sweep(text: str) -> list[float]:
    """Rates, separated by commas."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0:
        raise click.UsageError("--sweep: rates above 0, separated by commas, are wanted, like 10000,20000")
    return rates


@click.command("load")
@click.argument("address")
@click.option(
    "--keys", "key_file", type=click.Path(path_type=Path), required=True, help="the server's key file; its first key set"
)
@click.option("--cards", type=click.IntRange(1, 10_000_000), default=100_000, show_default=True, help="fresh cards to register")
@click.option("--service", help="host:port of the service port, where ADDRESS is the tap port")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="taps a second, whatever the server does")
@click.option("--closed", is_flag=True, help="each stream sends its next request when its last is answered")
@click.option("--sweep", help="several rates, one after the other: 10000,20000,…")
@click.option("--connections", type=click.IntRange(1, 10_000), default=16, show_default=True)
@click.option("--streams", type=click.IntRange(1, 10_000), default=64, show_default=True, help="open per connection, at most")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="for each rate")
@click.option("--batch", type=click.IntRange(0, 8_192), default=0, show_default=True, help="taps a SubmitTaps; 0: AuthorizeTap")
@click.option("--ca", type=click.Path(path_type=Path), help="TLS: the authority's PEM file")
@click.option("--certificate", type=click.Path(path_type=Path), help="mTLS: the client's certificate")
@click.option("--key", type=click.Path(path_type=Path), help="mTLS: its key")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write all that was measured to this file")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="write a picture of the sweep to this file (PNG)")
def load_command(
    address: str, key_file: Path, cards: int, service: str | None, rate: float | None, closed: bool, sweep: str | None,
    connections: int, streams: int, seconds: float, batch: int, ca: Path | None, certificate: Path | None, key: Path | None,
    json_file: Path | None, plot_file: Path | None,
) -> None:  # fmt: skip
    """Load the server at ADDRESS (host:port) with fresh cards and valid taps, and check every answer.

    Exit status 1 when an answer was wrong, a run ended early, or the books do not balance afterwards."""
    from yikatong.core.cli import OUT, progress_bars  # it imports this module to offer the command

    try:
        from yikatong.bench import load  # noqa: F401
    except ImportError:
        raise click.UsageError("the load generator was not built: install nghttp2 (libnghttp2-dev) and yikatong again") from None
    if (rate is not None) + closed + (sweep is not None) != 1:
        raise click.UsageError("one of --rate, --closed and --sweep is wanted")
    if plot_file is not None and sweep is None:
        raise click.UsageError("--plot is a picture of a --sweep")
    if (certificate is None) != (key is None) or (certificate is not None and ca is None):
        raise click.UsageError("--certificate and --key are wanted together, and --ca with them")
    rates: list[float | None] = [None] if closed else [*parse_sweep(sweep)] if sweep is not None else [rate]
    target = Target(address, service or address, connections, streams, batch, ca, certificate, key)
    with progress_bars() as progress:
        status = run_load(
            OUT, target, key_sets.load(key_file)[0], cards=cards, rates=rates, seconds=seconds, json_file=json_file,
            plot_file=plot_file, progress=progress,
        )  # fmt: skip
    sys.exit(status)
