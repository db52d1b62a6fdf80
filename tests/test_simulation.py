"""The simulation, some seeds of it; `python tests/simulation.py --help` tells how to run thousands."""

from collections import Counter

import pytest
from simulation import CHECKPOINT_FAILPOINTS, COMMIT_FAILPOINTS, SimulationFailed, simulate

from yikatong.core import commands
from yikatong.core.types import Result

# A tap cannot be malformed in what only registrations and top-ups have.
NOT_OF_TAPS = {Result.MALFORMED_OPERATOR, Result.MALFORMED_REQUEST_ID, Result.MALFORMED_PASS}


@pytest.mark.parametrize("seed", range(40))
def test_core_agrees_with_model(seed: int) -> None:
    simulate(seed)


def test_long_run() -> None:
    """Long enough for segments to be merged, and for taps to come back from many checkpoints ago."""
    simulate(1, steps=700)


def test_workload_and_faults_reach_everything() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1_000, 1_010):
        seen += simulate(seed)
    wanted = {result.name for result in Result if result <= Result.INSUFFICIENT_FUNDS and result not in NOT_OF_TAPS}
    wanted |= {"duplicate", "no room", "broken request", "crash", "checkpoint written", "top-up again"}
    wanted |= {f"checkpoint {name}" for name in CHECKPOINT_FAILPOINTS} | set(COMMIT_FAILPOINTS)
    wanted |= {f"top-up {name}" for name in ("ACCEPTED", "CONFLICT", "UNKNOWN_CARD", "MALFORMED_AMOUNT")}
    assert wanted - set(seen) == set()


def test_failure_tells_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that gives money away is caught, and the message is the command that catches it again."""
    top_up = commands._top_up

    def generous(memory, request, time_us):
        response = top_up(memory, request, time_us)
        response.balance_after_fen += 1
        return response

    monkeypatch.setattr(commands, "_top_up", generous)
    with pytest.raises(SimulationFailed, match=r"python tests/simulation.py --seed 3 --steps 60") as failure:
        simulate(3)
    assert "top-up: the core says" in str(failure.value)
