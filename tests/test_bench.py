"""Every bench runs, tiny, and prints what a reader of its figures needs."""

import json
import subprocess
import sys

import pytest

from yikatong.bench.run import BENCHES


@pytest.mark.parametrize("name", BENCHES)
def test_tiny(name: str) -> None:
    command = [sys.executable, "-m", "yikatong.core.cli", "bench", name, "--tiny", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results
    for result in results:
        assert {"name", "value", "unit", "baseline", "baseline_value", "ratio", "conditions"} <= set(result)
        assert result["value"] > 0
        assert result["baseline_value"] > 0
        assert result["ratio"] == pytest.approx(result["value"] / result["baseline_value"])
        assert {"cpu", "durability"} <= set(result["conditions"])


def test_the_table_says_that_a_tiny_run_measures_nothing() -> None:
    command = [sys.executable, "-m", "yikatong.core.cli", "bench", "journal", "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "measures nothing" in done.stdout
    assert "baseline" in done.stdout


def test_an_unknown_bench_is_named() -> None:
    command = [sys.executable, "-m", "yikatong.core.cli", "bench", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no bench speed" in done.stderr
