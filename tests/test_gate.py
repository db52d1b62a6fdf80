"""A gate that loses its power at any step opens to no code twice and loses no tap that it opened for."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_ride_code import AUTHORITY, ISSUED, NOW_S, NUMBER, PHONE

from yikatong.clients import gate as gate_module
from yikatong.clients.gate import Gate, GateOutOfService
from yikatong.core.cards.ride_code import make_code
from yikatong.core.types import Result

TERMINAL = bytes.fromhex("112233445566")
CODES = [make_code(ISSUED, PHONE, NOW_S + i) for i in range(-10, 10)]


def open_gate(path: Path | None, now_s: int = NOW_S, **options: object) -> Gate:
    return Gate(TERMINAL, {1: AUTHORITY.public_key()}, path, clock=lambda: now_s, **options)  # type: ignore[arg-type]


def test_what_was_used_is_known_after_a_restart(tmp_path: Path) -> None:
    with open_gate(tmp_path / "gate.db") as gate:
        assert gate.admit(CODES[0], 200) == Result.ACCEPTED
    with open_gate(tmp_path / "gate.db") as gate:
        assert gate.admit(CODES[0], 200) == Result.CODE_USED
        assert gate.admit(CODES[1], 300) == Result.ACCEPTED
        assert [(tap.code, tap.terminal_sequence, tap.amount_fen) for tap in gate.stored] == [
            (CODES[0], 1, 200),
            (CODES[1], 2, 300),
        ]


def test_codes_too_old_to_be_good_are_forgotten(tmp_path: Path) -> None:
    with open_gate(tmp_path / "gate.db") as gate:
        assert [gate.admit(code) for code in CODES[:3]] == [Result.ACCEPTED] * 3
    later_s = NOW_S + 30  # the first ten seconds' codes are too old by now
    with open_gate(tmp_path / "gate.db", later_s) as gate:
        assert gate.admit(CODES[15]) == Result.ACCEPTED
        assert gate.admit(CODES[0]) == Result.CODE_EXPIRED
        assert gate._database.execute("SELECT count(*) FROM used").fetchone() == (1,)


def test_a_gate_that_can_store_no_more_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "STORED_TAPS_MAX", 2)
    with open_gate(tmp_path / "gate.db") as gate:
        assert [gate.admit(code) for code in CODES[:2]] == [Result.ACCEPTED] * 2
        with pytest.raises(GateOutOfService, match="2 taps wait"):
            gate.admit(CODES[2])
        gate._database.execute("PRAGMA query_only = ON")  # as a disk that takes no writes
        monkeypatch.setattr(gate_module, "STORED_TAPS_MAX", 9)
        with pytest.raises(GateOutOfService, match="readonly"):
            gate.admit(CODES[2])
        gate._database.execute("PRAGMA query_only = OFF")
        assert gate.admit(CODES[2]) == Result.ACCEPTED
        assert [tap.terminal_sequence for tap in gate.stored] == [1, 2, 3]


def test_a_denied_card_leaves_nothing(tmp_path: Path) -> None:
    with open_gate(tmp_path / "gate.db", denied={NUMBER}) as gate:
        assert gate.admit(CODES[0]) == Result.CARD_DENIED
        assert gate.stored == []


def test_one_process_has_the_file(tmp_path: Path) -> None:
    with open_gate(tmp_path / "gate.db"), pytest.raises(GateOutOfService, match="locked"):
        open_gate(tmp_path / "gate.db")
    (tmp_path / "other.db").write_bytes(b"not a database, but long enough to look at" * 40)
    with pytest.raises(GateOutOfService, match="not a database"):
        open_gate(tmp_path / "other.db")


CHILD = """
import json, os, signal, sys
from pathlib import Path
from yikatong.clients.gate import Gate
from yikatong.core.sm2 import PublicKey

told = json.load(sys.stdin)
authority = PublicKey.of_point(bytes.fromhex(told["authority"]))
gate = Gate(bytes.fromhex(told["terminal"]), {1: authority}, Path(told["path"]), clock=lambda: told["now_s"])
seen = 0

def count(statement):
    global seen
    seen += 1
    if seen == told["at"]:
        os.kill(os.getpid(), signal.SIGKILL)

for i, code in enumerate(told["codes"]):
    print(i, int(gate.admit(bytes.fromhex(code), 1)), flush=True)
    gate._database.set_trace_callback(count)
"""
STATEMENTS_OF_A_TAP = 8  # look, count, begin, forget, remember, number, keep, commit


@pytest.mark.parametrize("at", range(1, STATEMENTS_OF_A_TAP + 2))
def test_killed_before_any_statement(tmp_path: Path, at: int) -> None:
    path = tmp_path / "gate.db"
    told = {
        "path": str(path), "at": at, "now_s": NOW_S, "terminal": TERMINAL.hex(), "codes": [code.hex() for code in CODES[:3]],
        "authority": AUTHORITY.public_key().point().hex(),
    }  # fmt: skip
    child = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(told), capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    opened = [int(line.split()[0]) for line in child.stdout.splitlines()]
    assert opened == ([0] if at <= STATEMENTS_OF_A_TAP else [0, 1])
    with open_gate(path) as gate:
        assert [tap.code for tap in gate.stored] == [CODES[i] for i in opened]
        for i in range(3):
            assert gate.admit(CODES[i], 1) == (Result.CODE_USED if i in opened else Result.ACCEPTED)
        assert [tap.terminal_sequence for tap in gate.stored] == [1, 2, 3]
