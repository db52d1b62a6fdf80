"""Metrics: what is counted, what never becomes a label, and that Prometheus, its rules and the dashboard agree."""

import json
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from city import new_card, new_terminal
from prometheus import prometheus, promtool
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core import metrics as metrics_module
from yikatong.core.errors import ConfigError
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.late import Corrections
from yikatong.core.metrics import CODES, KINDS, Metrics
from yikatong.core.metrics_port import MetricsServer
from yikatong.core.rules.card_rules import STEPS
from yikatong.core.types import Result
from yikatong.core.writer import Phase
from yikatong.ext.engine import OUTCOME

TAPS = "yikatong.v1.TapService"
MONITORING = Path(metrics_module.__file__).parent / "monitoring"
CARD_NUMBER = "4416123456789012345"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(key_versions=[1])


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def series(metrics: Metrics) -> list[Any]:
    return [sample for family in text_string_to_metric_families(text(metrics)) for sample in family.samples]


def outcomes(*rows: tuple[int, str], **fields: int) -> "np.ndarray[Any, np.dtype[np.void]]":
    """One outcome for each (result, terminal kind); `fields` are set in all of them."""
    array = np.zeros(len(rows), OUTCOME)
    for i, (result, kind) in enumerate(rows):
        array[i]["result"], array[i]["terminal_kind"] = result, KINDS.index(kind)
    for name, number in fields.items():
        array[name] = number
    return array


def random_outcomes(n: int, seed: int) -> "np.ndarray[Any, np.dtype[np.void]]":
    """Every byte random, as no engine would give them."""
    return np.frombuffer(np.random.default_rng(seed).bytes(n * OUTCOME.itemsize), OUTCOME)


# ---- taps ----


def test_taps_are_counted_by_result_and_kind(metrics: Metrics) -> None:
    metrics.on_taps(outcomes((1, "bus"), (1, "bus"), (1, "metro_gate"), (70, "bus"), (40, "unknown"), key_version=1))
    counted = {
        ("ACCEPTED", "bus"): 2,
        ("ACCEPTED", "metro_gate"): 1,
        ("INSUFFICIENT_FUNDS", "bus"): 1,
        ("UNKNOWN_CARD", "unknown"): 1,
    }
    for result in (*Result.__members__, "UNKNOWN"):
        for kind in KINDS:
            found = value(metrics, "yikatong_taps_total", result=result, terminal_kind=kind)
            assert found == counted.get((result, kind), 0), (result, kind)


def test_a_duplicate_is_counted_apart(metrics: Metrics) -> None:
    metrics.on_taps(outcomes((1, "gym"), (50, "gym"), key_version=1, duplicate=1))
    assert value(metrics, "yikatong_duplicate_taps_total", terminal_kind="gym") == 2
    assert value(metrics, "yikatong_taps_total", result="ACCEPTED", terminal_kind="gym") == 0
    assert value(metrics, "yikatong_mac_checks_total", key_version="1") == 0
    assert value(metrics, "yikatong_mac_failures_total", key_version="1") == 0


@pytest.mark.parametrize("result", list(Result))
def test_macs(metrics: Metrics, result: Result) -> None:
    """The order of precedence: what is malformed, seen before or unknown says nothing about the MAC."""
    metrics.on_taps(outcomes((result, "bus"), key_version=1))
    checked = result in (1, 2, 3) or Result.MAC_MISMATCH <= result <= Result.INSUFFICIENT_FUNDS
    assert value(metrics, "yikatong_mac_checks_total", key_version="1") == checked
    assert value(metrics, "yikatong_mac_failures_total", key_version="1") == (result is Result.MAC_MISMATCH)


def test_a_key_version_appears_with_its_first_tap(metrics: Metrics) -> None:
    metrics.on_taps(outcomes((Result.UNKNOWN_KEY, "bus"), key_version=9))
    assert value(metrics, "yikatong_mac_checks_total", key_version="9") is None
    metrics.on_taps(outcomes((Result.ACCEPTED, "bus"), key_version=9))
    assert value(metrics, "yikatong_mac_checks_total", key_version="9") == 1
    assert value(metrics, "yikatong_mac_failures_total", key_version="9") == 0


def test_fraud_cases(metrics: Metrics) -> None:
    assert value(metrics, "yikatong_fraud_cases_total") == 0
    metrics.on_taps(outcomes((Result.CONFLICT, "bus"), (Result.CONFLICT, "taxi"), fraud=1))
    metrics.on_taps(outcomes((Result.CONFLICT, "bus")))  # a terminal's fault
    assert value(metrics, "yikatong_fraud_cases_total") == 2


def test_fares(metrics: Metrics) -> None:
    """Duplicates are not counted anew."""
    for reason in ("no_tariff", "no_rule", "unknown_stop"):
        assert value(metrics, "yikatong_fare_faults_total", reason=reason) == 0
    array = outcomes(*[(Result.ACCEPTED, "bus")] * 6, key_version=1)
    array["fare_rule"] = 7, 7, 7, 0, 0, 0
    array["provisional"][:2] = 1
    array["duplicate"][0] = 1
    array["fare_fault"][3:] = 2, 3, 4
    metrics.on_taps(array)
    assert value(metrics, "yikatong_priced_taps_total") == 2
    assert value(metrics, "yikatong_late_taps_total") == 1
    for reason in ("no_tariff", "no_rule", "unknown_stop"):
        assert value(metrics, "yikatong_fare_faults_total", reason=reason) == 1


def test_corrections(metrics: Metrics) -> None:
    assert value(metrics, "yikatong_fare_corrections_fen_total", direction="given") == 0
    metrics.on_corrections(Corrections())
    assert value(metrics, "yikatong_cards_priced_again_total") == 0
    metrics.on_corrections(Corrections(cards=1).plus(30).plus(-700).plus(0).plus(5))
    assert value(metrics, "yikatong_cards_priced_again_total") == 1
    assert value(metrics, "yikatong_fare_corrections_total", direction="taken") == 2
    assert value(metrics, "yikatong_fare_corrections_fen_total", direction="taken") == 35
    assert value(metrics, "yikatong_fare_corrections_total", direction="given") == 1
    assert value(metrics, "yikatong_fare_corrections_fen_total", direction="given") == 700


def test_values_that_have_no_name_are_counted_as_unknown(metrics: Metrics) -> None:
    array = outcomes((0, "bus"), (9, "bus"), (255, "bus"), (1, "bus"), (1, "bus"))
    array["terminal_kind"][3:] = 12, 255
    metrics.on_taps(array)
    assert value(metrics, "yikatong_taps_total", result="UNKNOWN", terminal_kind="bus") == 3
    assert value(metrics, "yikatong_taps_total", result="ACCEPTED", terminal_kind="unknown") == 2


@pytest.mark.parametrize("n", [0, 1, 7, 8_192, 16_384])
def test_batches_agree_with_counting_one_by_one(metrics: Metrics, n: int) -> None:
    array = random_outcomes(n, seed=n)
    metrics.on_taps(array)
    names = {int(result): result.name for result in Result}
    expected = Counter[tuple[str, ...]]()
    for row in array:
        kind = KINDS[row["terminal_kind"]] if row["terminal_kind"] < len(KINDS) else "unknown"
        expected["fraud",] += int(row["fraud"] != 0)
        if row["duplicate"]:
            expected["duplicate", kind] += 1
        else:
            expected["tap", names.get(int(row["result"]), "UNKNOWN"), kind] += 1
            expected["failure", str(row["key_version"])] += int(row["result"] == Result.MAC_MISMATCH)
    found = Counter[tuple[str, ...]]()
    for sample in series(metrics):
        labels = sample.labels
        match sample.name:
            case "yikatong_taps_total":
                found["tap", labels["result"], labels["terminal_kind"]] = int(sample.value)
            case "yikatong_duplicate_taps_total":
                found["duplicate", labels["terminal_kind"]] = int(sample.value)
            case "yikatong_mac_failures_total":
                found["failure", labels["key_version"]] = int(sample.value)
            case "yikatong_fraud_cases_total":
                found["fraud",] = int(sample.value)
    assert +found == +expected


def test_a_batch_costs_the_writer_little(metrics: Metrics) -> None:
    """Some 70 µs on one machine; the bound leaves room for a busy one, but not for a loop over the rows."""
    array = outcomes(*[(1, KINDS[i % len(KINDS)]) for i in range(8_192)], key_version=1)
    costs_s = []
    for _ in range(20):
        begun = time.perf_counter()
        metrics.on_taps(array)
        costs_s.append(time.perf_counter() - begun)
    assert min(costs_s) < 0.001


# ---- the journal, checkpoints, phases ----


def test_commits(metrics: Metrics) -> None:
    metrics.on_commit(0, 0.0, 41)  # how the core tells where the journal stands when it opens it
    assert value(metrics, "yikatong_journal_sequence") == 41
    assert value(metrics, "yikatong_group_commit_records_count") == 0
    assert value(metrics, "yikatong_group_commit_seconds_count") == 0
    metrics.on_commit(1_000, 0.0012, 1_041)
    assert value(metrics, "yikatong_journal_sequence") == 1_041
    assert value(metrics, "yikatong_group_commit_records_sum") == 1_000
    assert value(metrics, "yikatong_group_commit_records_bucket", le="256.0") == 0
    assert value(metrics, "yikatong_group_commit_records_bucket", le="1024.0") == 1
    assert value(metrics, "yikatong_group_commit_seconds_bucket", le="0.001") == 0
    assert value(metrics, "yikatong_group_commit_seconds_bucket", le="0.0025") == 1


def test_checkpoints(metrics: Metrics) -> None:
    metrics.on_commit(10, 0.001, 100)
    metrics.on_checkpoint(60, 0.0, 0)
    assert value(metrics, "yikatong_checkpoint_sequence") == 60
    assert value(metrics, "yikatong_checkpoint_lag_records") == 40
    assert value(metrics, "yikatong_checkpoint_seconds_count") == 0
    metrics.on_checkpoint(100, 0.3, -7)
    assert value(metrics, "yikatong_checkpoint_lag_records") == 0
    assert value(metrics, "yikatong_checkpoint_seconds_count") == 1
    assert value(metrics, "yikatong_books_imbalance_fen") == -7


def test_an_imbalance_never_looks_like_none(metrics: Metrics) -> None:
    metrics.on_checkpoint(1, 0.1, -(2**63))
    assert value(metrics, "yikatong_books_imbalance_fen") == -(2.0**63)


@pytest.mark.parametrize("phase", Phase)
def test_phases(metrics: Metrics, phase: Phase) -> None:
    metrics.on_phase(phase)
    assert value(metrics, "yikatong_serving") == (phase is Phase.SERVING)
    for other in Phase:
        assert value(metrics, "yikatong_phase", yikatong_phase=other.value) == (other is phase)
    assert value(metrics, "yikatong_rebuilds_total") == (phase is Phase.REBUILDING)


def test_before_anything_happened(metrics: Metrics) -> None:
    assert value(metrics, "yikatong_serving") == 0
    assert value(metrics, "yikatong_phase", yikatong_phase="starting") == 1
    assert value(metrics, "yikatong_books_imbalance_fen") == 0
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"):
        assert value(metrics, name) is not None
    assert "python_info{" in text(metrics)
    assert "python_gc_objects_collected_total{" in text(metrics)
    assert "yikatong_build_info{" in text(metrics)


def test_build_labels() -> None:
    metrics = Metrics(CollectorRegistry(), build={"sm4": "avx2"})
    assert re.search(r'^yikatong_build_info\{sm4="avx2",version="[^"]+"\} 1\.0$', text(metrics), re.MULTILINE)


# ---- calls ----


def call_labels(method: str, service: str = TAPS) -> dict[str, str]:
    return {"grpc_type": "unary", "grpc_service": service, "grpc_method": method}


def test_every_method_of_the_protos_begins_with_zero(metrics: Metrics) -> None:
    started = [sample.labels for sample in series(metrics) if sample.name == "grpc_server_started_total"]
    methods = {(labels["grpc_service"], labels["grpc_method"]) for labels in started}
    protos = Path(__file__).parent.parent / "proto/yikatong/v1"
    declared = {("unknown", "unknown")}
    for proto in protos.glob("*.proto"):
        source = proto.read_text("utf-8")
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", source, re.MULTILINE | re.DOTALL):
            for name in re.findall(r"^  rpc (\w+)\(", body, re.MULTILINE):
                declared.add((f"yikatong.v1.{service}", name))
    assert methods == declared
    assert (TAPS, "AuthorizeTap") in methods
    assert {labels["grpc_type"] for labels in started} == {"unary"}
    for sample in series(metrics):
        if sample.name.startswith("grpc_server_"):
            assert sample.value == 0, sample
    assert value(metrics, "grpc_server_handled_total", **call_labels("SubmitTaps"), grpc_code="UNAVAILABLE") == 0
    assert value(metrics, "grpc_server_handling_seconds_bucket", **call_labels("SubmitTaps"), le="+Inf") == 0


def test_codes_are_grpcs_own() -> None:
    assert list(CODES) == [code.name for code in sorted(grpc.StatusCode, key=lambda code: code.value[0])]


def test_a_call(metrics: Metrics) -> None:
    labels = call_labels("AuthorizeTap")
    metrics.on_call_started(TAPS, "AuthorizeTap")
    assert value(metrics, "grpc_server_started_total", **labels) == 1
    assert value(metrics, "grpc_server_handled_total", **labels, grpc_code="OK") == 0
    metrics.on_call_handled(TAPS, "AuthorizeTap", "OK", 0.001)
    metrics.on_call_handled(TAPS, "AuthorizeTap", "INVALID_ARGUMENT", 60.0)
    assert value(metrics, "grpc_server_handled_total", **labels, grpc_code="OK") == 1
    assert value(metrics, "grpc_server_handled_total", **labels, grpc_code="INVALID_ARGUMENT") == 1
    assert value(metrics, "grpc_server_handling_seconds_sum", **labels) == pytest.approx(60.001)
    assert value(metrics, "grpc_server_handling_seconds_count", **labels) == 2
    for le, count in (("0.0005", 0), ("0.001", 1), ("10.0", 1), ("+Inf", 2)):  # a bound belongs to its bucket
        assert value(metrics, "grpc_server_handling_seconds_bucket", **labels, le=le) == count


def test_many_calls_are_many_times_one(metrics: Metrics) -> None:
    one_by_one = Metrics()
    durations_s = [*metrics_module.CALL_SECONDS, 0.0, 1e-9, 0.00011, 9.99, 10.01, 3600.0]
    for seconds in durations_s:
        one_by_one.on_call_started(TAPS, "AuthorizeTap")
        one_by_one.on_call_handled(TAPS, "AuthorizeTap", "OK", seconds)
    metrics.on_call_started(TAPS, "AuthorizeTap", len(durations_s))
    metrics.on_calls_handled(TAPS, "AuthorizeTap", "OK", durations_s)
    metrics.on_calls_handled(TAPS, "AuthorizeTap", "OK", [])

    def calls(counted: Metrics) -> dict[Any, Any]:
        return {
            (sample.name, *sample.labels.values()): pytest.approx(sample.value)
            for sample in series(counted)
            if sample.name.startswith("grpc_server_")
        }

    assert calls(metrics) == calls(one_by_one)


def test_counts_from_many_threads_are_exact(metrics: Metrics) -> None:
    threads, rounds = 8, 2_000
    batch = outcomes((1, "bus"), (50, "bus"), key_version=1)

    def work() -> None:
        for _ in range(rounds):
            metrics.on_call_started(TAPS, "AuthorizeTap")
            metrics.on_call_handled(TAPS, "AuthorizeTap", "OK", 0.25)
            metrics.on_calls_handled(TAPS, "SubmitTaps", "INTERNAL", [0.5, 0.5])
            metrics.on_taps(batch)
            metrics.on_commit(2, 0.001, 5)

    def scrape() -> None:
        while any(worker.is_alive() for worker in workers):
            text(metrics)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # let threads get in each other's way as often as can be
    try:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        scraper = threading.Thread(target=scrape)
        for thread in (*workers, scraper):
            thread.start()
        for thread in (*workers, scraper):
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    total = threads * rounds
    assert value(metrics, "grpc_server_started_total", **call_labels("AuthorizeTap")) == total
    assert value(metrics, "grpc_server_handled_total", **call_labels("AuthorizeTap"), grpc_code="OK") == total
    assert value(metrics, "grpc_server_handling_seconds_sum", **call_labels("AuthorizeTap")) == total * 0.25
    assert value(metrics, "grpc_server_handling_seconds_bucket", **call_labels("SubmitTaps"), le="0.5") == total * 2
    assert value(metrics, "yikatong_taps_total", result="ACCEPTED", terminal_kind="bus") == total
    assert value(metrics, "yikatong_mac_failures_total", key_version="1") == total
    assert value(metrics, "yikatong_group_commit_records_sum") == total * 2


# ---- labels ----


def test_no_caller_can_make_a_series(metrics: Metrics) -> None:
    before = len(series(metrics))
    for i in range(500):
        metrics.on_call_started(f"service.{i}", CARD_NUMBER)
        metrics.on_call_handled(TAPS, f"{CARD_NUMBER}{i}", f"CODE_{i}", 0.1)
        metrics.on_calls_handled(f"{CARD_NUMBER}{i}", "AuthorizeTap", "OK", [0.1])
    assert len(series(metrics)) == before
    unknown = call_labels("unknown", "unknown")
    assert value(metrics, "grpc_server_started_total", **unknown) == 500
    assert value(metrics, "grpc_server_handled_total", **unknown, grpc_code="UNKNOWN") == 500
    array = random_outcomes(200_000, seed=1).copy()
    array["duplicate"] = 0
    metrics.on_taps(array)
    assert len(series(metrics)) == before + 2 * 255  # the other key versions


def test_labels_hold_nothing_of_a_card_a_person_or_a_terminal(metrics: Metrics) -> None:
    """A list of what is allowed: whoever adds a label must come by here."""
    array = outcomes((1, "bus"), key_version=1)
    array["charged_fen"], array["balance_after_fen"], array["sequence"] = 271_828, 314_159, 161_803
    array["settlement_date"] = 20250101
    metrics.on_taps(array)
    metrics.on_call_handled(CARD_NUMBER, CARD_NUMBER, CARD_NUMBER, 0.1)
    allowed = {
        "result": {*Result.__members__, "UNKNOWN"},
        "terminal_kind": set(KINDS),
        "key_version": {str(version) for version in range(256)},
        "grpc_code": set(CODES),
        "grpc_type": {"unary"},
        "yikatong_phase": {phase.value for phase in Phase},
        "generation": {"0", "1", "2"},
        "reason": {"no_tariff", "no_rule", "unknown_stop"},
        "direction": {"taken", "given"},
        "method_class": {"general", "personal", "proof"},
        "step": set(STEPS),
    }
    of_code = {"grpc_service", "grpc_method", "version", "le"}  # from descriptors, the package, constants
    for sample in series(metrics):
        if sample.name == "python_info":
            continue
        for name, found in sample.labels.items():
            assert name in of_code or found in allowed[name], sample
    for secret in (CARD_NUMBER, "271828", "314159", "161803", "20250101"):
        assert secret not in text(metrics)


def test_kinds_are_the_protos() -> None:
    assert KINDS[0] == "unknown"
    assert KINDS[1:4] == ("bus", "metro_gate", "coach")
    assert len(set(KINDS)) == len(KINDS)


# ---- the port ----


def fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        body: bytes = response.read()
        return body.decode()


def test_the_port_serves_metrics_and_nothing_else(metrics: Metrics) -> None:
    with MetricsServer(metrics.registry, "127.0.0.1", 0) as server:
        assert server.port > 0
        assert server.url == f"http://127.0.0.1:{server.port}/metrics"
        assert "yikatong_serving 0.0" in fetch(server.url)
        metrics.on_phase(Phase.SERVING)
        assert "yikatong_serving 1.0" in fetch(server.url)
        assert "yikatong_serving 1.0" in fetch(f"{server.url}?name[]=yikatong_serving")
        for path in ("", "/", "/metrics/", "/metricsx", "/favicon.ico", "/../metrics"):
            with pytest.raises(urllib.error.HTTPError) as error:
                fetch(f"http://127.0.0.1:{server.port}{path}")
            assert error.value.code == 404


def test_a_port_in_use_is_named(metrics: Metrics) -> None:
    with MetricsServer(metrics.registry, "127.0.0.1", 0) as first:
        with pytest.raises(ConfigError, match=rf"metrics_port: .*127\.0\.0\.1:{first.port}.* in use") as error:
            MetricsServer(Metrics().registry, "127.0.0.1", first.port)
        assert error.value.key == "metrics_port"
        assert "yikatong_serving" in fetch(first.url)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("192.0.2.1", 0), ("no such host", 0), ("a" * 70, 0)]
)
def test_an_address_that_cannot_be_had_is_named(metrics: Metrics, host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"metrics_port: cannot listen on {host}:{port}: ")):
        MetricsServer(metrics.registry, host, port)


def test_after_close_the_port_is_free(metrics: Metrics) -> None:
    server = MetricsServer(metrics.registry, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", server.port)):  # one that never says anything
        fetch(server.url)
        server.close()
    server.close()
    with pytest.raises(OSError, match="refused"):
        fetch(server.url)
    with MetricsServer(metrics.registry, "127.0.0.1", server.port) as again:
        assert again.port == server.port


def test_clients_that_hang_up_or_talk_nonsense_do_no_harm(metrics: Metrics) -> None:
    with MetricsServer(metrics.registry, "127.0.0.1", 0) as server:
        for message in (
            b"",
            b"\x16\x03\x01\x02\x00",
            b"GET /metrics HTTP/1.1\r\n\r\n",
            b"POST /metrics HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(message)
        assert "yikatong_serving" in fetch(server.url)


# ---- Prometheus' own tools ----


def busy(metrics: Metrics) -> Metrics:
    """Something of everything."""
    metrics.on_phase(Phase.SERVING)
    metrics.on_call_started(TAPS, "AuthorizeTap")
    metrics.on_call_handled(TAPS, "AuthorizeTap", "OK", 0.002)
    metrics.on_taps(outcomes((1, "bus"), (1, "bus"), (70, "metro_gate"), key_version=1))
    metrics.on_commit(3, 0.001, 3)
    metrics.on_checkpoint(1, 0.02, 0)
    return metrics


def expressions_of_dashboard() -> Iterator[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "1m")
            yield expression.replace("$instance", ".*").replace("$job", ".*")


def test_promtool_finds_no_fault_with_the_text(metrics: Metrics) -> None:
    promtool("check", "metrics", stdin=text(busy(metrics)))


def test_promtool_finds_no_fault_with_the_rules() -> None:
    promtool("check", "rules", "--lint-fatal", MONITORING / "alerts.yml")


def test_the_rules_pass_their_tests() -> None:
    promtool("test", "rules", MONITORING / "alerts_test.yml")


def test_every_rule_is_tested_to_fire_and_not_to_fire() -> None:
    rules = re.findall(r"^ +- alert: (\w+)$", (MONITORING / "alerts.yml").read_text("utf-8"), re.MULTILINE)
    tests = (MONITORING / "alerts_test.yml").read_text("utf-8")
    for rule in rules:
        expected = set(re.findall(rf"alertname: {rule}\n +exp_alerts:( \[\])?", tests))
        assert expected == {"", " []"}, rule


def test_every_rule_tells_what_to_do() -> None:
    rules = re.split(r"^ +- alert: ", (MONITORING / "alerts.yml").read_text("utf-8"), flags=re.MULTILINE)[1:]
    for rule in rules:
        assert re.search(r"severity: (page|ticket)$", rule, re.MULTILINE), rule
        for annotation in ("summary", "description", "runbook"):
            assert re.search(rf"^ +{annotation}: \S", rule, re.MULTILINE), rule


@pytest.mark.parametrize("file", ["alerts.yml", "alerts_test.yml", "dashboard.json"])
def test_every_metric_that_is_named_exists(metrics: Metrics, file: str) -> None:
    families = list(text_string_to_metric_families(text(busy(metrics))))
    exposed = {sample.name for family in families for sample in family.samples}
    exposed |= {family.name for family in families if family.type == "histogram"}  # prose names them whole
    content = (MONITORING / file).read_text("utf-8")
    named = set(re.findall(r"\b(?:yikatong|grpc_server|process|python)_[a-z_]+\b", content))
    assert len(named) > 5
    assert named <= exposed


def test_the_dashboard_can_be_imported() -> None:
    """What Grafana asks of a file: ids of their own, places on the grid, a data source that can be chosen."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
    assert "id" not in dashboard  # Grafana gives one
    assert dashboard["schemaVersion"] >= 38
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
            assert panel["description"]


# ---- a real Prometheus ----


def test_a_real_prometheus_scrapes_and_alerts() -> None:
    metrics = Metrics(key_versions=[1])
    metrics.on_commit(0, 0.0, 0)
    metrics.on_checkpoint(0, 0.0, 0)
    metrics.on_phase(Phase.SERVING)
    with (
        MetricsServer(metrics.registry, "127.0.0.1", 0) as port,
        prometheus([f"127.0.0.1:{port.port}"], MONITORING / "alerts.yml") as server,
    ):
        server.wait_for('up{job="yikatong"} == 1')
        server.wait_for("yikatong_fraud_cases_total == 0")
        server.wait_for("absent(ALERTS)")

        # A bad day: money is lost, a card is cloned, half of the MACs are wrong, and then the disk goes.
        taps = [(Result.ACCEPTED, "bus")] * 40 + [(Result.MAC_MISMATCH, "bus")] * 40 + [(Result.CONFLICT, "metro_gate")]
        metrics.on_taps(outcomes(*taps, key_version=1))
        metrics.on_taps(outcomes((Result.CONFLICT, "metro_gate"), fraud=1))
        for _ in range(100):
            metrics.on_call_started(TAPS, "AuthorizeTap")
            metrics.on_call_handled(TAPS, "AuthorizeTap", "OK", 0.3)
        metrics.on_commit(82, 0.3, 82)
        metrics.on_checkpoint(50, 0.5, -1)
        metrics.on_phase(Phase.REBUILDING)

        server.wait_for('yikatong_taps_total{result="ACCEPTED", terminal_kind="bus"} == 40')
        server.wait_for('yikatong_taps_total{result="CONFLICT", terminal_kind="metro_gate"} == 2')
        server.wait_for("sum(yikatong_taps_total) == 82")
        server.wait_for("yikatong_checkpoint_lag_records == 32")
        server.wait_for('yikatong_phase{yikatong_phase="rebuilding"} == 1')
        server.wait_for('grpc_server_handled_total{grpc_method="AuthorizeTap", grpc_code="OK"} == 100')
        [p99] = server.wait_for(
            'histogram_quantile(0.99, rate(grpc_server_handling_seconds_bucket{grpc_method="AuthorizeTap"}[1m])) > 0'
        )
        assert 0.25 < p99.value <= 0.5

        # Firing at once, or pending until their time has come.
        for state, names in {
            "firing": ("YikatongBooksImbalance", "YikatongFraudCase", "YikatongRebuilt"),
            "pending": ("YikatongNotServing", "YikatongMacFailures", "YikatongTapsSlow", "YikatongCommitsSlow"),
        }.items():
            for name in names:
                server.wait_for(f'ALERTS{{alertname="{name}", alertstate="{state}"}} == 1')
        rules = server.rules()
        for quiet in ("YikatongDown", "YikatongCallErrors", "YikatongCheckpointLagGrowing"):
            assert rules[quiet]["state"] == "inactive"
        for rule in rules.values():
            assert rule["health"] == "ok", rule
            for alert in rule["alerts"]:
                for annotation in alert["annotations"].values():
                    assert "error expanding template" not in annotation, annotation
        [imbalance] = rules["YikatongBooksImbalance"]["alerts"]
        assert "-1 fen" in imbalance["annotations"]["description"]

        # Every query of the dashboard is one; what happened here is seen in most of them.
        shown = {expression: server.query(expression) for expression in expressions_of_dashboard()}
        empty = [expression for expression, samples in shown.items() if not samples]
        assert len(shown) > 25
        assert all("duplicate_taps" in e or 'grpc_code!="OK"' in e or "started_total" in e for e in empty), empty

        port.close()
        server.wait_for('up{job="yikatong"} == 0')
        server.wait_for('ALERTS{alertname="YikatongDown", alertstate="pending"} == 1')


def test_prometheus_scrapes_a_whole_server(server: EmbeddedServer, connection: Connection, key_set: KeySet) -> None:
    """Taps over both ports of a real server, seen by a real Prometheus; and no card in what it got."""
    card, terminal = new_card(connection, key_set), new_terminal(connection)
    assert server.tap_address
    with Connection(server.tap_address) as taps:
        outcomes = [terminal.authorize(port, terminal.present(card, 1)) for port in (connection, taps, taps)]
        forged = terminal.present(card, 1)
        forged.mac = bytes(byte ^ 1 for byte in forged.mac)
        terminal.authorize(taps, forged)
    with prometheus([server.metrics_address], MONITORING / "alerts.yml") as scraper:
        scraper.wait_for('yikatong_taps_total{result="ACCEPTED", terminal_kind="bus"} == 3')
        scraper.wait_for('yikatong_mac_failures_total{key_version="1"} == 1')
        scraper.wait_for('grpc_server_handled_total{grpc_method="AuthorizeTap", grpc_code="OK"} == 4')
        scraper.wait_for(f"yikatong_journal_sequence >= {outcomes[-1].sequence}")
        scraper.wait_for("yikatong_books_imbalance_fen == 0")
        scraper.wait_for("yikatong_serving == 1")
        scraper.wait_for("yikatong_tap_connections_opened_total >= 1")
        everything = str(scraper.query('{job="yikatong"}'))
        assert card.card_number not in everything
        assert terminal.terminal_number.hex() not in everything
