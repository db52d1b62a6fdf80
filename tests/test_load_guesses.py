"""Who guesses at the proofs of loads is slowed and locked out, terminals too: money moves by them, other than by taps."""

from pathlib import Path
from typing import Any

import pytest
from harness import KEY_SET
from service_port import ServicePort
from test_proofs import CARD, KEYS, TERMINAL

from yikatong.core import limits
from yikatong.core.access import lockout
from yikatong.core.access.callers import parse_identity
from yikatong.core.access.oversight import method_of
from yikatong.core.access.rate_limits import MethodClass, Rates, class_of
from yikatong.core.errors import RateLimited
from yikatong.core.types import Result
from yikatong.v1 import card_service_pb2, terminal_service_pb2
from yikatong.v1 import load_service_pb2 as pb

READER = parse_identity("yikatong:terminal:112233445566")
LOAD_KEY = f"""
[[key]]
purpose = "load"
version = 1
index = 1
issuer_id = "{KEY_SET.issuer_id.hex()}"
value = "{bytes(range(16)).hex()}"
"""


def open_port(path: Path, rates: Rates) -> ServicePort:
    key_file = path / "keys.toml"
    key_file.touch(0o600)
    key_file.write_text(KEYS + LOAD_KEY)
    made = ServicePort(path / "data", key_file, rates)
    made.call("CardService/RegisterCards", cards=[card_service_pb2.Card(card_number=CARD, issuer_id=KEY_SET.issuer_id)])
    terminal = terminal_service_pb2.Terminal(terminal_number=TERMINAL, operator_id="hall", kind=1)  # type: ignore[arg-type]
    made.call("TerminalService/RegisterTerminals", terminals=[terminal])
    return made


def guess(port: ServicePort, caller: Any = READER) -> Result:
    chip = pb.ChipAnswer(algorithm_id=4, key_version=1, key_index=1, random=b"\1\2\3\4", mac1=b"\0\1\2\3")
    fields = {"card_number": CARD, "terminal_number": TERMINAL, "transaction_type": 1, "amount_fen": 100, "chip": chip}
    return Result(port.call("LoadService/StartLoad", caller=caller, **fields).result)


def test_only_taps_are_classed_as_taps() -> None:
    classes = {name: class_of(method_of(f"yikatong.v1.{name}")) for name in (
        "TapService/AuthorizeTap", "TapService/SubmitTaps", "CodeService/TapByCode",
        "LoadService/StartLoad", "LoadService/ConfirmLoad", "LoadService/ReturnLoad",
    )}  # fmt: skip
    assert set(list(classes.values())[:3]) == {MethodClass.TAP}
    assert set(list(classes.values())[3:]) == {MethodClass.PROOF}


def test_a_terminal_that_guesses_is_slowed(tmp_path: Path) -> None:
    with open_port(tmp_path, Rates(0, 0, 0.01)) as port:
        assert guess(port) is Result.MAC_MISMATCH
        with pytest.raises(RateLimited):
            guess(port)


def test_a_terminal_that_guesses_is_locked_out_and_locks_no_card_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRONG_PROOFS_OF_CALLER_MAX", 8)
    with open_port(tmp_path, Rates(0, 0, 0)) as port:
        assert [guess(port) for _ in range(9)] == [Result.MAC_MISMATCH] * 8 + [Result.LOCKED_OUT]
        assert port.call("LockoutService/GetLockout", subject=str(lockout.of_caller(READER))).lockout.lockouts == 1
        assert port.call("LockoutService/GetLockout", subject=f"card:{CARD}").lockout.wrong == 0
        assert guess(port, parse_identity("yikatong:department:hall")) is Result.MAC_MISMATCH
