"""How often one caller may ask: buckets, their bound, and what a caller is told."""

from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st
from service_port import ServicePort, department, operator

from yikatong.core import limits
from yikatong.core.access.oversight import method_of
from yikatong.core.access.rate_limits import MethodClass, RateLimits, Rates, class_of
from yikatong.core.errors import RateLimited
from yikatong.core.metrics import methods_of_protos
from yikatong.core.status import status_of
from yikatong.v1 import tap_service_pb2

ONE, OTHER = department("hrss"), department("civil-affairs")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def taken(buckets: RateLimits, caller: Any, of_class: MethodClass, tries: int) -> int:
    """How many of so many calls are let through."""
    through = 0
    for _ in range(tries):
        try:
            buckets.take(caller, of_class)
            through += 1
        except RateLimited:
            pass
    return through


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    buckets = RateLimits(Rates(personal_per_s=10.0), clock)
    assert taken(buckets, ONE, MethodClass.PERSONAL, 100) == 10 * limits.RATE_BURST_S
    clock.now_s += 0.5
    assert taken(buckets, ONE, MethodClass.PERSONAL, 100) == 5
    clock.now_s += 3_600
    assert taken(buckets, ONE, MethodClass.PERSONAL, 100) == 10 * limits.RATE_BURST_S


def test_callers_and_classes_have_buckets_of_their_own() -> None:
    buckets = RateLimits(Rates(1.0, 1.0, 1.0), Clock())
    assert [taken(buckets, caller, of, 9) for caller in (ONE, OTHER) for of in (MethodClass.PROOF, MethodClass.GENERAL)] == [
        2
    ] * 4


@pytest.mark.parametrize("of_class", MethodClass)
def test_nothing_is_limited_at_a_rate_of_zero(of_class: MethodClass) -> None:
    assert taken(RateLimits(Rates(0.0, 0.0, 0.0), Clock()), ONE, of_class, 1_000) == 1_000


def test_taps_are_never_limited() -> None:
    assert taken(RateLimits(Rates(0.1, 0.1, 0.1), Clock()), ONE, MethodClass.TAP, 1_000) == 1_000


def test_a_rate_below_one_still_lets_one_through() -> None:
    clock = Clock()
    buckets = RateLimits(Rates(proof_per_s=0.1), clock)
    assert taken(buckets, ONE, MethodClass.PROOF, 5) == 1
    clock.now_s += 10.1
    assert taken(buckets, ONE, MethodClass.PROOF, 5) == 1


def test_who_waits_as_told_is_let_through() -> None:
    clock = Clock()
    buckets = RateLimits(Rates(general_per_s=7.0), clock)
    taken(buckets, ONE, MethodClass.GENERAL, 50)
    with pytest.raises(RateLimited) as caught:
        buckets.take(ONE, MethodClass.GENERAL)
    clock.now_s += caught.value.retry_s * 0.9
    assert taken(buckets, ONE, MethodClass.GENERAL, 1) == 0
    clock.now_s += caught.value.retry_s * 0.11
    assert taken(buckets, ONE, MethodClass.GENERAL, 1) == 1


def test_memory_is_bounded_and_the_busy_are_remembered() -> None:
    buckets = RateLimits(Rates(general_per_s=1.0), Clock(), callers_max=10)
    taken(buckets, ONE, MethodClass.GENERAL, 5)
    for i in range(1_000):
        buckets.take(department(f"d{i}"), MethodClass.GENERAL)
        assert len(buckets) <= 10
        assert taken(buckets, ONE, MethodClass.GENERAL, 1) == 0


@given(
    rate=st.floats(0.5, 1_000),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 20)), max_size=30),
)
def test_never_more_than_a_burst_and_the_rate(rate: float, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    buckets, through = RateLimits(Rates(general_per_s=rate), clock), 0
    for pause_s, tries in steps:
        clock.now_s += pause_s
        through += taken(buckets, ONE, MethodClass.GENERAL, tries)
    passed_s = clock.now_s - 1_000
    assert through <= max(rate * limits.RATE_BURST_S, 1) + rate * passed_s + 1e-6


CLASSES = """
TapService/AuthorizeTap        | tap
TapService/SubmitTaps          | tap
CardService/GetCard            | personal
AccountService/GetBalance      | general
ClearingService/ListPositions  | general
ApprovalService/GetApproval    | personal
"""


@pytest.mark.parametrize("row", CLASSES.strip().splitlines())
def test_a_methods_class_follows_from_its_messages(row: str) -> None:
    name, want = (part.strip() for part in row.split("|"))
    assert class_of(method_of(f"yikatong.v1.{name}")).value == want


def test_only_taps_are_taps() -> None:
    found = {
        method for _, service, method in methods_of_protos() if class_of(method_of(f"{service}/{method}")) is MethodClass.TAP
    }
    assert found == {"AuthorizeTap", "SubmitTaps", "TapByCode"}


def test_what_a_caller_is_told() -> None:
    code, status = status_of(RateLimited("too often", 1.2341))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert code.name == "RESOURCE_EXHAUSTED"
    assert any(detail.Unpack(info) for detail in status.details if detail.Is(info.DESCRIPTOR))
    assert any(detail.Unpack(retry) for detail in status.details if detail.Is(retry.DESCRIPTOR))
    assert (info.reason, retry.retry_delay.ToMilliseconds()) == ("RATE_LIMITED", 1_235)


def test_at_the_service_port(tmp_path: Path, key_file: Path) -> None:
    """One caller's flood is refused and counted; the other caller and everybody's taps are not slowed."""
    with ServicePort(tmp_path / "data", key_file, Rates(general_per_s=0.001)) as port:
        port.call("ClearingService/GetTrialBalance", caller=operator("one"))
        with pytest.raises(RateLimited):
            port.call("ClearingService/GetTrialBalance", caller=operator("one"))
        port.call("ClearingService/GetTrialBalance", caller=operator("other"))
        for _ in range(20):
            tap = tap_service_pb2.Tap(card_number="x")
            port.call("TapService/AuthorizeTap", tap_service_pb2.AuthorizeTapRequest(tap=tap), caller=operator("one"))
        assert port.metric("yikatong_rate_limited_total", method_class="general") == 1
        assert port.metric("yikatong_rate_limited_total", method_class="personal") == 0
