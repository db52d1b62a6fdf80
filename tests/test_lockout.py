"""Lock-out after wrong proofs: counted by subject and caller, twice as long each time, ended by time or two operators."""

from pathlib import Path
from typing import Any

import pytest
from harness import Harness
from hypothesis import given, settings
from hypothesis import strategies as st
from service_port import ServicePort, department

from yikatong.core import limits
from yikatong.core.access import lockout
from yikatong.core.change import Change
from yikatong.core.errors import InvalidRequest
from yikatong.core.types import Result

CARD = lockout.of_card("3104416000000017")
HRSS = lockout.of_caller(department("hrss"))
S = 1_000_000
T0 = 1_735_000_000 * S


class Guesses:
    """Wrong and right proofs against a core, at given seconds."""

    def __init__(self, core: Harness) -> None:
        self.core = core

    def wrong(self, key: lockout.LockoutKey, at_s: float) -> None:
        time_us = T0 + int(at_s * S)
        change = Change(self.core.memory, time_us)
        lockout.wrong(change, self.core.memory, key, time_us)
        change.commit("wrong-proof")
        self.core.take()
        self.core.commit()

    def right(self, key: lockout.LockoutKey, at_s: float) -> bool:
        change = Change(self.core.memory, T0 + int(at_s * S))
        if not lockout.right(change, self.core.memory, key):
            return False
        change.commit("right-proof")
        self.core.take()
        self.core.commit()
        return True

    def locked(self, key: lockout.LockoutKey, at_s: float) -> bool:
        return lockout.check(self.core.memory, key, T0 + int(at_s * S)) is Result.LOCKED_OUT


@pytest.fixture
def guesses(tmp_path: Path) -> Any:
    with Harness(tmp_path / "data") as core:
        yield Guesses(core)


def test_the_life_of_a_lockout(guesses: Guesses) -> None:
    at_s = 0.0
    for lock_s in (60, 120, 240, 480):
        for _ in range(limits.WRONG_PROOFS_MAX):
            assert not guesses.locked(CARD, at_s)
            guesses.wrong(CARD, at_s)
        assert guesses.locked(CARD, at_s)
        assert guesses.locked(CARD, at_s + lock_s - 0.001)
        at_s += lock_s
        assert not guesses.locked(CARD, at_s)


def test_it_grows_to_a_day_and_no_further(guesses: Guesses) -> None:
    at_s = 0.0
    for _ in range(20):
        for _ in range(limits.WRONG_PROOFS_MAX):
            guesses.wrong(CARD, at_s)
        at_s = (lockout.of(guesses.core.memory, CARD).locked_until_us - T0) / S
    for _ in range(limits.WRONG_PROOFS_MAX):
        guesses.wrong(CARD, at_s)
    assert guesses.locked(CARD, at_s + limits.LOCKOUT_S_MAX - 1)
    assert not guesses.locked(CARD, at_s + limits.LOCKOUT_S_MAX)


def test_a_right_proof_forgets_a_subjects_wrong_ones_and_no_callers(guesses: Guesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRONG_PROOFS_OF_CALLER_MAX", 20)
    for _ in range(3):
        for _ in range(limits.WRONG_PROOFS_MAX - 1):
            guesses.wrong(CARD, 0)
        assert guesses.right(CARD, 0)
    assert not guesses.right(CARD, 0)
    for _ in range(limits.WRONG_PROOFS_OF_CALLER_MAX - 1):
        guesses.wrong(HRSS, 0)
    assert not guesses.right(HRSS, 0)
    guesses.wrong(HRSS, 0)
    assert guesses.locked(HRSS, 1)
    assert not guesses.locked(CARD, 1)


def test_a_callers_are_counted_an_hour_at_a_time(guesses: Guesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody mistypes all day long in a whole city; only many in an hour are an attack."""
    monkeypatch.setattr(limits, "WRONG_PROOFS_OF_CALLER_MAX", 20)
    for at in range(60):
        guesses.wrong(HRSS, at * 200.0)  # eighteen an hour
    assert not guesses.locked(HRSS, 60 * 200.0)
    for at in range(20):
        guesses.wrong(HRSS, 20_000.0 + at)
    assert guesses.locked(HRSS, 20_020.0)


def test_wrong_ones_are_forgotten_after_a_day_of_none(guesses: Guesses) -> None:
    for _ in range(limits.WRONG_PROOFS_MAX - 1):
        guesses.wrong(CARD, 0)
    guesses.wrong(CARD, limits.WRONG_PROOFS_KEPT_S + 1)
    assert not guesses.locked(CARD, limits.WRONG_PROOFS_KEPT_S + 2)


def test_a_restart_forgets_nothing(guesses: Guesses) -> None:
    for at in range(limits.WRONG_PROOFS_MAX):
        guesses.wrong(CARD, at)
        guesses.core.checkpoint() if at % 2 else guesses.core.restart()
    guesses.core.restart()
    assert guesses.locked(CARD, 10)
    guesses.core.checkpoint()
    guesses.core.restart()
    assert guesses.locked(CARD, 10)


@settings(max_examples=30, deadline=None)
@given(gaps_s=st.lists(st.floats(0, 100_000), min_size=1, max_size=60))
def test_guesses_in_any_rhythm_get_few_chances(gaps_s: list[float], tmp_path_factory: Any) -> None:
    """Whoever guesses whenever it may gets no more looks in any day than five a lock-out, and the lock-outs double."""
    with Harness(tmp_path_factory.mktemp("core") / "data") as core:
        guesses, at_s, looked_at = Guesses(core), 0.0, []
        for gap_s in gaps_s:
            at_s += gap_s
            if not guesses.locked(CARD, at_s):
                guesses.wrong(CARD, at_s)
                looked_at.append(at_s)
    for i, first in enumerate(looked_at):
        same_minute = [at for at in looked_at[i:] if at < first + limits.LOCKOUT_S]
        assert len(same_minute) < 2 * limits.WRONG_PROOFS_MAX


def test_names_of_subjects() -> None:
    assert str(HRSS) == "caller:yikatong:department:hrss"
    assert str(lockout.of_device(b"\x01\xff")) == "device:01ff"
    assert str(lockout.of_person(bytes(16))) == "person:" + "00" * 16


def test_operators_see_and_lift_it(tmp_path: Path, key_file: Path) -> None:
    with ServicePort(tmp_path / "data", key_file) as port:

        def guess(memory: Any, time_us: int) -> None:
            for _ in range(limits.WRONG_PROOFS_MAX):
                change = Change(memory, time_us)
                lockout.wrong(change, memory, CARD, time_us)
                lockout.wrong(change, memory, HRSS, time_us)
                change.commit("wrong-proof")

        port.ask(guess)
        found = port.call("LockoutService/ListLockouts").lockouts
        assert [(each.subject, each.wrong, each.lockouts) for each in found] == [(str(HRSS), 5, 0), (str(CARD), 0, 1)]
        assert port.call("LockoutService/GetLockout", subject=str(CARD)).lockout.locked_until_us
        assert port.call("LockoutService/GetLockout", subject="card:1").lockout.lockouts == 0
        for subject in ("", "card", "card:", "nobody:1", "card:" + "1" * 200):
            with pytest.raises(InvalidRequest, match="subject"):
                port.call("LockoutService/GetLockout", subject=subject)
