"""Metrics for Prometheus: what the doors and the core do, as text on a port of its own.

No label holds a card, a person, a terminal, or any text that a caller can choose: each has a set of values that is
known when the process starts, or that a byte bounds. What falls outside its set is counted as unknown, not dropped."""

import importlib
import importlib.metadata
import logging
import pkgutil
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import yikatong.v1
from yikatong.core import limits
from yikatong.core.access.rate_limits import MethodClass
from yikatong.core.late import Corrections
from yikatong.core.rules.card_rules import STEPS
from yikatong.core.rules.fares import Outcome
from yikatong.core.types import Result
from yikatong.core.writer import Observer, Phase
from yikatong.v1.terminal_service_pb2 import TerminalKind

log = logging.getLogger(__name__)

# Without this prometheus_client adds a second series to every counter, the time of its making, which nobody asks for.
# The switch is the whole process's; nothing else in it has metrics.
disable_created_metrics()  # type: ignore[no-untyped-call]

CODES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""gRPC's status codes by their numbers, named as the gRPC specification and `grpc.StatusCode` name them."""

UNKNOWN_METHOD: Final = ("unary", "unknown", "unknown")
"""Where calls of anything else are counted: a caller may ask for any name, and must not get a series for each."""

CALL_SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
COMMIT_SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
COMMIT_RECORDS: Final = tuple(4**power for power in range(8))
assert COMMIT_RECORDS[-1] == limits.GROUP_TAPS_MAX
DENY_SECONDS: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 6 * 3600.0, 86_400.0)
CHECKPOINT_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

KINDS: Final = tuple(
    "unknown" if number == 0 else name.removeprefix("TERMINAL_KIND_").lower()
    for name, number in sorted(TerminalKind.items(), key=lambda item: item[1])
)
"""Label values of terminal_kind, by the number that the engine gives; 0 is a terminal that is not registered."""
assert sorted(TerminalKind.values()) == list(range(len(KINDS)))


def methods_of_protos() -> Iterator[tuple[str, str, str]]:
    """Type, service and method of every RPC in the yikatong.v1 protos."""
    for module in pkgutil.iter_modules(yikatong.v1.__path__, "yikatong.v1."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    yield _rpc_type(method.client_streaming, method.server_streaming), service.full_name, method.name


def _rpc_type(client_streaming: bool, server_streaming: bool) -> str:
    if client_streaming:
        return "bidi_stream" if server_streaming else "client_stream"
    return "server_stream" if server_streaming else "unary"


class _Method:
    """What was counted of one RPC method."""

    __slots__ = ("buckets", "handled", "labels", "lock", "seconds", "started")

    def __init__(self, labels: tuple[str, str, str]) -> None:
        self.labels = labels
        self.lock = threading.Lock()
        self.started = 0
        self.handled = [0] * len(CODES)
        self.buckets = [0] * (len(CALL_SECONDS) + 1)  # the last: longer than all bounds
        self.seconds = 0.0


class _Calls(Collector):
    """The grpc_server_* metrics, named and labelled as go-grpc-prometheus does.

    Counted by hand: this runs for every call of the tap port, where prometheus_client's own counters cost three times
    as much and cannot take many calls at a time."""

    _LABELS = ("grpc_type", "grpc_service", "grpc_method")
    _BOUNDS = np.array(CALL_SECONDS)
    _CODE_INDEX: Final = {name: i for i, name in enumerate(CODES)}
    _CODE_UNKNOWN: Final = CODES.index("UNKNOWN")
    _BOUND_NAMES: Final = [*map(str, CALL_SECONDS), "+Inf"]

    def __init__(self, methods: Iterable[tuple[str, str, str]]) -> None:
        self._unknown = _Method(UNKNOWN_METHOD)
        self._methods = {labels[1:]: _Method(labels) for labels in methods}

    def started(self, service: str, method: str, calls: int) -> None:
        counts = self._methods.get((service, method), self._unknown)
        with counts.lock:
            counts.started += calls

    def handled(self, service: str, method: str, code_name: str, seconds: float) -> None:
        counts = self._methods.get((service, method), self._unknown)
        code = self._CODE_INDEX.get(code_name, self._CODE_UNKNOWN)
        bucket = bisect_left(CALL_SECONDS, seconds)
        with counts.lock:
            counts.handled[code] += 1
            counts.buckets[bucket] += 1
            counts.seconds += seconds

    def handled_many(self, service: str, method: str, code_name: str, seconds: Sequence[float]) -> None:
        counts = self._methods.get((service, method), self._unknown)
        code = self._CODE_INDEX.get(code_name, self._CODE_UNKNOWN)
        durations = np.asarray(seconds, np.float64)
        by_bucket = np.bincount(np.searchsorted(self._BOUNDS, durations), minlength=len(counts.buckets)).tolist()
        total = float(durations.sum())
        with counts.lock:
            counts.handled[code] += len(durations)
            counts.buckets = [a + b for a, b in zip(counts.buckets, by_bucket, strict=True)]
            counts.seconds += total

    def collect(self) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "RPCs that were begun.", labels=self._LABELS)
        handled = CounterMetricFamily(
            "grpc_server_handled", "RPCs that were ended, whatever their code.", labels=(*self._LABELS, "grpc_code")
        )
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds", "How long RPCs took, from beginning to end.", labels=self._LABELS
        )
        for counts in (*self._methods.values(), self._unknown):
            with counts.lock:  # so that they agree with each other
                started.add_metric(counts.labels, counts.started)
                by_code, by_bucket, total = [*counts.handled], [*counts.buckets], counts.seconds
            for code, n in zip(CODES, by_code, strict=True):
                handled.add_metric((*counts.labels, code), n)
            cumulative = np.cumsum(by_bucket).tolist()
            seconds.add_metric(counts.labels, list(zip(self._BOUND_NAMES, cumulative, strict=True)), sum_value=total)
        yield started
        yield handled
        yield seconds


class _Taps(Collector):
    """What became of taps.

    Every tap falls into one cell of a table: a row for each result and, after them, one for a result that has no name
    and one for taps that had been decided before; a column for each kind of terminal. And into one of another table:
    what its MAC was found to be, by key version. What an outcome's bytes say is looked up, so that no value whatever
    can lead outside.

    This holds up the writer: it must be a few passes over the batch and never raise. The scrape makes metrics of it."""

    _RESULTS: Final = (*Result.__members__, "UNKNOWN")
    _ROWS: Final = len(_RESULTS) + 1  # the last: duplicates
    _DUPLICATE: Final = np.intp(256)  # stands for the result of a duplicate, whatever that was

    # The results that only a tap with the right MAC can get; those before it in precedence say nothing about it.
    _PROVED: Final = (
        Result.ACCEPTED,
        Result.DEBT_BOOKED,
        Result.TEST,
        Result.CARD_EXPIRED,
        Result.CARD_DENIED,
        Result.INSUFFICIENT_FUNDS,
    )
    _UNCHECKED, _RIGHT, _WRONG = range(3)

    _CELL_OF_RESULT: Final = np.full(257, (_ROWS - 2) * len(KINDS), np.intp)
    _CELL_OF_RESULT[list(Result)] = np.arange(len(Result)) * len(KINDS)
    _CELL_OF_RESULT[_DUPLICATE] = (_ROWS - 1) * len(KINDS)
    _COLUMN_OF_KIND: Final = np.zeros(256, np.intp)
    _COLUMN_OF_KIND[: len(KINDS)] = np.arange(len(KINDS))
    _VERDICT_OF_RESULT: Final = np.full(257, _UNCHECKED * 256, np.intp)
    _VERDICT_OF_RESULT[list(_PROVED)] = _RIGHT * 256
    _VERDICT_OF_RESULT[Result.MAC_MISMATCH] = _WRONG * 256

    def __init__(self, key_versions: Iterable[int]) -> None:
        self._lock = threading.Lock()
        self._by_cell = np.zeros(self._ROWS * len(KINDS), np.int64)
        self._by_verdict = np.zeros(3 * 256, np.int64)
        self._fraud = 0
        self._by_fault = np.zeros(256, np.int64)
        self._priced = self._provisional = 0
        self._key_versions = set(key_versions)

    def decided(self, outcomes: npt.NDArray[np.void]) -> None:
        result = np.where(outcomes["duplicate"], self._DUPLICATE, outcomes["result"])
        cell = self._CELL_OF_RESULT.take(result) + self._COLUMN_OF_KIND.take(outcomes["terminal_kind"])
        verdict = self._VERDICT_OF_RESULT.take(result) + outcomes["key_version"]
        by_cell = np.bincount(cell, minlength=len(self._by_cell))
        by_verdict = np.bincount(verdict, minlength=len(self._by_verdict))
        fraud = int(np.count_nonzero(outcomes["fraud"]))
        by_fault = np.bincount(outcomes["fare_fault"], minlength=256)
        priced = (outcomes["fare_rule"] != 0) & (outcomes["duplicate"] == 0)
        provisional = priced & (outcomes["provisional"] != 0)
        with self._lock:
            self._by_fault += by_fault
            self._priced += int(np.count_nonzero(priced))
            self._provisional += int(np.count_nonzero(provisional))
            self._by_cell += by_cell
            self._by_verdict += by_verdict
            self._fraud += fraud

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            by_cell = self._by_cell.reshape(self._ROWS, len(KINDS)).tolist()
            _, right, wrong = self._by_verdict.reshape(3, 256).tolist()
            fraud = self._fraud
            by_fault, priced, provisional = self._by_fault.tolist(), self._priced, self._provisional

        taps = CounterMetricFamily(
            "yikatong_taps",
            "Taps that were decided, each once: one that had been decided before is a duplicate and not counted here.",
            labels=("result", "terminal_kind"),
        )
        for result, row in zip(self._RESULTS, by_cell, strict=False):
            for kind, n in zip(KINDS, row, strict=True):
                taps.add_metric((result, kind), n)
        yield taps

        duplicates = CounterMetricFamily(
            "yikatong_duplicate_taps",
            "Taps that had been decided before and got the same answer again.",
            labels=("terminal_kind",),
        )
        for kind, n in zip(KINDS, by_cell[-1], strict=True):
            duplicates.add_metric((kind,), n)
        yield duplicates

        yield CounterMetricFamily(
            "yikatong_fraud_cases",
            "Taps whose card counter was seen before with another MAC or terminal: a cloned card or a forgery.",
            value=fraud,
        )

        yield CounterMetricFamily(
            "yikatong_priced_taps", "Taps that the tariff priced. Duplicates are not among them.", value=priced
        )
        yield CounterMetricFamily(
            "yikatong_late_taps",
            "Taps that came after later ones of their card, and were priced by themselves until the card was priced again.",
            value=provisional,
        )
        faults = CounterMetricFamily(
            "yikatong_fare_faults",
            "Taps of profile 2 that the tariff did not price, and that were charged what the terminal stated.",
            labels=("reason",),
        )
        for outcome in (Outcome.NO_TARIFF, Outcome.NO_RULE, Outcome.UNKNOWN_STOP):
            faults.add_metric((outcome.name.lower(),), by_fault[outcome])
        yield faults

        checks = CounterMetricFamily(
            "yikatong_mac_checks",
            "Taps that were decided with the MAC checked, right or wrong. Duplicates are not among them.",
            labels=("key_version",),
        )
        failures = CounterMetricFamily("yikatong_mac_failures", "Taps whose MAC was wrong.", labels=("key_version",))
        for version in range(256):
            # Both begin together, so that their ratio is a number.
            if right[version] or wrong[version] or version in self._key_versions:
                checks.add_metric((str(version),), right[version] + wrong[version])
                failures.add_metric((str(version),), wrong[version])
        yield checks
        yield failures


class _TapPort(Collector):
    """What the native transport counts about itself; read when scraped."""

    _COUNTERS: Final = {
        "connections_opened": "Connections that the tap port took.",
        "connections_refused": "Connections beyond the limit, or without ALPN h2.",
        "connections_closed_for_abuse": "Connections sent away for floods of control frames or resets.",
        "resets": "Streams that peers reset.",
        "refused_overload": "Calls refused at once because too much was waiting.",
    }
    _GAUGES: Final = {
        "connections_open": "Connections that are open.",
        "calls_in_flight": "Calls that came in whole and are not answered yet.",
        "buffered_bytes": "Memory of large requests, complete or not, and of answers not taken yet.",
        "longest_turn_seconds": "Processor time the tap port took on the event loop at a time, at most, since the last scrape.",
    }

    def __init__(self) -> None:
        self.counts: Callable[[], Mapping[str, float]] = dict

    def collect(self) -> Iterator[Metric]:
        counts = self.counts()
        for name, text in self._COUNTERS.items():
            yield CounterMetricFamily(f"yikatong_tap_{name}", text, value=counts.get(name, 0))
        for name, text in self._GAUGES.items():
            yield GaugeMetricFamily(f"yikatong_tap_{name}", text, value=counts.get(name, 0))


class Metrics(Observer):
    """Counts what the core and the doors report. Every method may be called from any thread, and none raises."""

    _RESULT_NAMES: Final = {result.value: result.name for result in Result}

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        key_versions: Iterable[int] = (),
        build: Mapping[str, str] | None = None,
    ) -> None:
        """`key_versions` (0 to 255 each) are those whose MAC counters shall be there from the start, as zeros: a rate
        needs a value before the first failure. `build` adds labels to yikatong_build_info."""
        self.registry = registry = CollectorRegistry() if registry is None else registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self._calls = _Calls(methods_of_protos())
        registry.register(self._calls)
        self._taps = _Taps(key_versions)
        registry.register(self._taps)
        self._tap_port = _TapPort()
        registry.register(self._tap_port)

        self._commit_records = Histogram(
            "yikatong_group_commit_records",
            "Journal records that one group commit made durable.",
            buckets=COMMIT_RECORDS,
            registry=registry,
        )
        self._commit_seconds = Histogram(
            "yikatong_group_commit_seconds",
            "How long one group commit took to be durable.",
            buckets=COMMIT_SECONDS,
            registry=registry,
        )
        self._journal_sequence = 0
        self._checkpoint_sequence = 0
        Gauge("yikatong_journal_sequence", "Sequence number of the last durable journal record.", registry=registry).set_function(
            lambda: self._journal_sequence
        )
        Gauge(
            "yikatong_checkpoint_sequence",
            "Sequence number that the last durable checkpoint stands for.",
            registry=registry,
        ).set_function(lambda: self._checkpoint_sequence)
        Gauge(
            "yikatong_checkpoint_lag_records",
            "Durable journal records that no checkpoint stands for: what a restart would replay.",
            registry=registry,
        ).set_function(self._checkpoint_lag)
        self._checkpoint_seconds = Histogram(
            "yikatong_checkpoint_seconds",
            "How long one checkpoint took to be durable.",
            buckets=CHECKPOINT_SECONDS,
            registry=registry,
        )
        self._imbalance = Gauge(
            "yikatong_books_imbalance_fen",
            "Sum over all accounts when the last checkpoint was taken; anything but 0 is a fault.",
            registry=registry,
        )

        self._cards_priced_again = Counter(
            "yikatong_cards_priced_again", "Times that a card was priced again from a late tap on.", registry=registry
        )
        self._corrections = Counter(
            "yikatong_fare_corrections",
            "Corrections of fares that late taps made, by whether money was taken from the card or given back.",
            labelnames=("direction",),
            registry=registry,
        )
        self._corrections_fen = Counter(
            "yikatong_fare_corrections_fen", "What these corrections moved, fen.", labelnames=("direction",), registry=registry
        )
        for direction in ("taken", "given"):
            self._corrections.labels(direction)
            self._corrections_fen.labels(direction)

        self._rate_limited = Counter(
            "yikatong_rate_limited",
            "Calls refused because their caller asked too often, by class of method.",
            labelnames=("method_class",),
            registry=registry,
        )
        for method_class in MethodClass:
            if method_class is not MethodClass.TAP:
                self._rate_limited.labels(method_class.value)
        self._proofs = Counter(
            "yikatong_proofs",
            "Answers of methods that take a secret, by result: wrong proofs and lock-outs are among them.",
            labelnames=("result",),
            registry=registry,
        )
        for result in (Result.ACCEPTED, Result.MAC_MISMATCH, Result.LOCKED_OUT):
            self._proofs.labels(result.name)

        self._deny_seconds = Histogram(
            "yikatong_deny_list_delay_seconds",
            "From the report of a loss (or the order to deny) to the list that holds the card.",
            buckets=DENY_SECONDS,
            registry=registry,
        )
        self._deny_fetch_seconds = Histogram(
            "yikatong_deny_list_fetch_seconds",
            "From a card's coming onto the list to a terminal's fetching that change.",
            buckets=DENY_SECONDS,
            registry=registry,
        )
        self._deny_list: Callable[[], tuple[int, int]] = lambda: (0, 0)
        Gauge("yikatong_deny_list_cards", "Cards on the deny list.", registry=registry).set_function(lambda: self._deny_list()[0])
        Gauge("yikatong_deny_list_version", "Sequence number of the deny list's last change.", registry=registry).set_function(
            lambda: self._deny_list()[1]
        )

        self._overdue = Gauge(
            "yikatong_issuance_overdue",
            "Applications for cards whose time is over, by the step that they stand in; counted once a minute.",
            ["step"],
            registry=registry,
        )
        self.on_overdue_counted(dict.fromkeys(STEPS, 0))

        self._serving = Gauge("yikatong_serving", "1 while the core takes work, else 0.", registry=registry)
        self._phase = Enum(
            "yikatong_phase", "What the core is doing.", states=[phase.value for phase in Phase], registry=registry
        )
        self._rebuilds = Counter(
            "yikatong_rebuilds",
            "Times that memory had run ahead of a disk that took no writes, and was rebuilt.",
            registry=registry,
        )
        running = Info("yikatong_build", "The version that runs.", registry=registry)
        running.info({"version": _version(), **(build or {})})

    # ---- who may do what ----

    def on_rate_limited(self, method_class: str) -> None:
        """A call was refused because its caller asked too often."""
        self._rate_limited.labels(method_class).inc()

    def on_proof(self, result: int) -> None:
        """A method that takes a secret was answered with a result."""
        self._proofs.labels(self._RESULT_NAMES.get(result, "UNKNOWN")).inc()

    # ---- the deny list ----

    def watch_deny_list(self, deny_list: Callable[[], tuple[int, int]]) -> None:
        """Where to ask for the number of cards on the deny list and its version."""
        self._deny_list = deny_list

    def on_card_denied(self, seconds: float) -> None:
        """A card came onto the list so long after it was reported."""
        self._deny_seconds.observe(max(seconds, 0.0))

    def on_denials_fetched(self, seconds: Sequence[float]) -> None:
        """A terminal fetched changes, so long after they were made."""
        for each in seconds:
            self._deny_fetch_seconds.observe(max(each, 0.0))

    # ---- issue of cards ----

    def on_overdue_counted(self, applications: Mapping[str, int]) -> None:
        """How many applications are overdue now in each step (core/rules/card_rules.py)."""
        for step, count in applications.items():
            self._overdue.labels(step).set(count)

    # ---- the doors ----

    def watch_tap_port(self, counts: Callable[[], Mapping[str, float]]) -> None:
        """Ask `counts` (TapPort.counts) at each scrape from now on; zeros until then."""
        self._tap_port.counts = counts

    def on_call_started(self, service: str, method: str, calls: int = 1) -> None:
        """Calls of an RPC were begun; `service` is its full name ("yikatong.v1.TapService"), `method` the bare one."""
        self._calls.started(service, method, calls)

    def on_call_handled(self, service: str, method: str, code_name: str, seconds: float) -> None:
        """A call was ended with the code of this name ("OK", "INVALID_ARGUMENT"), `seconds` after its beginning."""
        self._calls.handled(service, method, code_name, seconds)

    def on_calls_handled(self, service: str, method: str, code_name: str, seconds: Sequence[float]) -> None:
        """Many calls were ended with the same code; `seconds` has one duration for each."""
        self._calls.handled_many(service, method, code_name, seconds)

    # ---- the core ----

    def on_taps(self, outcomes: npt.NDArray[np.void]) -> None:
        """A batch of taps was decided (outcomes: array of ext.engine.OUTCOME)."""
        self._taps.decided(outcomes)

    def on_corrections(self, corrections: Corrections) -> None:
        """Cards with late taps were priced again; often none."""
        if not corrections.cards:
            return
        self._cards_priced_again.inc(corrections.cards)
        for direction, count, fen in (
            ("taken", corrections.taken, corrections.taken_fen),
            ("given", corrections.given, corrections.given_fen),
        ):
            self._corrections.labels(direction).inc(count)
            self._corrections_fen.labels(direction).inc(fen)

    def on_commit(self, records: int, seconds: float, sequence: int) -> None:
        """A group became durable; `sequence` is its last. No records: the journal was opened at that sequence."""
        self._journal_sequence = sequence
        if records:
            self._commit_records.observe(records)
            self._commit_seconds.observe(seconds)

    def on_checkpoint(self, sequence: int, seconds: float, imbalance_fen: int) -> None:
        """A checkpoint became durable. No seconds: it was found at that sequence when the core started."""
        self._checkpoint_sequence = sequence
        self._imbalance.set(imbalance_fen)
        if seconds:
            self._checkpoint_seconds.observe(seconds)

    def on_phase(self, phase: Phase) -> None:
        """The core entered a phase."""
        self._phase.state(phase.value)
        self._serving.set(phase is Phase.SERVING)
        if phase is Phase.REBUILDING:
            self._rebuilds.inc()

    def _checkpoint_lag(self) -> int:
        # The journal only grows: read second, it is never behind the checkpoint.
        checkpoint = self._checkpoint_sequence
        return self._journal_sequence - checkpoint


def _version() -> str:
    try:
        return importlib.metadata.version("yikatong")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed
