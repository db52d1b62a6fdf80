"""Wrong proofs are counted for every method that takes one: at the service port, with a method of taps made to count as one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from harness import KEY_SET, make_tap
from service_port import ServicePort, operator

from yikatong.core import limits
from yikatong.core.access import lockout, proofs
from yikatong.core.access.callers import parse_identity
from yikatong.core.access.oversight import method_of
from yikatong.core.access.rate_limits import MethodClass, Rates, class_of
from yikatong.core.errors import LockedOut
from yikatong.core.metrics import methods_of_protos
from yikatong.core.status import status_of
from yikatong.core.types import DocumentKind, Result
from yikatong.v1 import access_pb2, card_service_pb2, lockout_service_pb2, tap_service_pb2, terminal_service_pb2

HALL, OTHER_HALL = operator("hall"), operator("other-hall")
CARD, CARD_2 = "3104416000000017", "3104416000000025"
TERMINAL = bytes.fromhex("112233445566")
METHOD = "TapService/AuthorizeTap"
KEYS = f"""
[[tac]]
issuer_id = "{KEY_SET.issuer_id.hex()}"
key_version = 1
key_index = 1
levels = 2
master = "{KEY_SET.master.hex()}"

[[key]]
purpose = "person_data"
version = 1
index = 1
issuer_id = "0000000000000000"
value = "{bytes(range(16)).hex()}"
"""


@pytest.fixture
def port(tmp_path: Path) -> Any:
    key_file = tmp_path / "keys.toml"
    key_file.touch(0o600)
    key_file.write_text(KEYS)
    with ServicePort(tmp_path / "data", key_file, Rates(0, 0, 0)) as made:
        cards = [card_service_pb2.Card(card_number=number, issuer_id=KEY_SET.issuer_id) for number in (CARD, CARD_2)]
        made.call("CardService/RegisterCards", cards=cards)
        terminal = terminal_service_pb2.Terminal(terminal_number=TERMINAL, operator_id="hall", kind=1)  # type: ignore[arg-type]
        made.call("TerminalService/RegisterTerminals", terminals=[terminal])
        made.service.oversight._rules[f"yikatong.v1.{METHOD}"].class_ = MethodClass.PROOF
        yield made


class Taps:
    """Proofs of a card, right and wrong, each with a counter of its own."""

    def __init__(self, port: ServicePort) -> None:
        self.port, self.at = port, 0

    def request(self, card: str, right: bool) -> Any:
        self.at += 1
        fields: dict[str, Any] = {} if right else {"mac": b"\0\1\2\3"}
        tap = make_tap(card_number=card, atc=self.at, terminal_sequence=self.at, amount_fen=0, amount_due_fen=0, **fields)
        return tap_service_pb2.AuthorizeTapRequest(tap=tap)

    def prove(self, card: str = CARD, right: bool = True, caller: Any = HALL) -> Any:
        """Its result, or LOCKED_OUT."""
        try:
            return Result(self.port.call(METHOD, self.request(card, right), caller=caller).outcome.result)
        except LockedOut:
            return Result.LOCKED_OUT


def test_a_card_is_locked_out_whoever_guesses_and_no_other(port: ServicePort) -> None:
    taps = Taps(port)
    guesses = [taps.prove(right=False, caller=(HALL, OTHER_HALL)[at % 2]) for at in range(limits.WRONG_PROOFS_MAX)]
    assert guesses == [Result.MAC_MISMATCH] * limits.WRONG_PROOFS_MAX
    assert [taps.prove(right=right, caller=HALL) for right in (False, True)] == [Result.LOCKED_OUT] * 2
    assert taps.prove(CARD_2) == Result.ACCEPTED
    assert port.metric("yikatong_proofs_total", result="MAC_MISMATCH") == limits.WRONG_PROOFS_MAX
    assert port.metric("yikatong_proofs_total", result="LOCKED_OUT") == 2
    found = port.call("LockoutService/GetLockout", subject=str(lockout.of_caller(HALL))).lockout
    assert (found.wrong, found.lockouts) == (3, 0)


def test_a_right_one_between_forgets_the_cards_and_not_the_callers(port: ServicePort) -> None:
    taps = Taps(port)
    for _ in range(3):
        for _ in range(limits.WRONG_PROOFS_MAX - 1):
            assert taps.prove(right=False) == Result.MAC_MISMATCH
        assert taps.prove() == Result.ACCEPTED
        assert port.call("LockoutService/GetLockout", subject=f"card:{CARD}").lockout.wrong == 0
    wrong = port.call("LockoutService/GetLockout", subject=str(lockout.of_caller(HALL))).lockout.wrong
    assert wrong == 3 * (limits.WRONG_PROOFS_MAX - 1)


def test_a_right_one_without_wrong_ones_writes_nothing_more(port: ServicePort) -> None:
    taps = Taps(port)
    taps.prove()
    before = port.core.journal.next_sequence
    taps.prove()
    assert port.core.journal.next_sequence == before + 1  # the tap


def test_a_caller_that_guesses_at_many(port: ServicePort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRONG_PROOFS_OF_CALLER_MAX", 7)
    taps = Taps(port)
    for at in range(7):
        assert taps.prove(card=(CARD, CARD_2)[at % 2], right=False) == Result.MAC_MISMATCH
    assert taps.prove(CARD_2) == Result.LOCKED_OUT
    assert taps.prove(CARD_2, caller=OTHER_HALL) == Result.ACCEPTED


def test_guesses_all_at_once_are_not_looked_at_all(port: ServicePort) -> None:
    """A hundred calls in the same moment: no more than five are looked at."""
    taps = Taps(port)
    name = f"yikatong.v1.{METHOD}"

    async def all_at_once() -> list[Any]:
        from yikatong.core.access.callers import serving

        with serving(HALL):
            raw = [taps.request(CARD, right=False).SerializeToString() for _ in range(100)]
            calls = [port.service.oversight.serve(name, request, None) for request in raw]
            return list(await asyncio.gather(*calls, return_exceptions=True))

    answers = port._run(all_at_once())
    assert sum(isinstance(answer, bytes) for answer in answers) == limits.WRONG_PROOFS_MAX
    assert all(isinstance(answer, bytes | LockedOut) for answer in answers)


def test_terminals_and_acquirers_are_never_locked_out(port: ServicePort) -> None:
    taps = Taps(port)
    for caller in ("yikatong:terminal:112233445566", "yikatong:acquirer:hall"):
        results = [taps.prove(right=False, caller=parse_identity(caller)) for _ in range(3 * limits.WRONG_PROOFS_MAX)]
        assert set(results) == {Result.MAC_MISMATCH}
    assert taps.prove(caller=parse_identity("yikatong:acquirer:hall")) == Result.ACCEPTED


def test_a_restart_forgets_nothing_and_lifting_is_seen_at_once(port: ServicePort) -> None:
    taps = Taps(port)
    for _ in range(limits.WRONG_PROOFS_MAX):
        taps.prove(right=False)
    port.service.oversight._proofs.forget_all()  # as after a restart
    assert taps.prove() == Result.LOCKED_OUT
    request = lockout_service_pb2.LiftLockoutRequest(request_id=bytes(16), subject=f"card:{CARD}", reason="it was its holder")
    held = port.call("LockoutService/LiftLockout", request, caller=parse_identity("yikatong:operator:li"))
    shown = port.call("ApprovalService/GetApproval", approval_id=held.approval_id, purpose="to approve").approval
    port.call("ApprovalService/ApproveRequest", approval_id=held.approval_id, request_digest=shown.request_digest)
    assert taps.prove() == Result.ACCEPTED


def test_what_is_at_hand_is_bounded(port: ServicePort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOCKOUTS_KNOWN_MAX", 3)
    taps = Taps(port)
    for _ in range(limits.WRONG_PROOFS_MAX):
        taps.prove(right=False)
    for at in range(10):
        taps.prove(f"41{at:04}", caller=operator(f"d{at}"))
        assert len(port.service.oversight._proofs._known) <= 3
    assert taps.prove() == Result.LOCKED_OUT


def test_what_a_caller_is_told() -> None:
    code, status = status_of(LockedOut("too many wrong proofs", 61.0))
    assert (code.name, b"LOCKED_OUT" in status.details[0].value) == ("RESOURCE_EXHAUSTED", True)


def test_whom_a_request_is_about() -> None:
    tap = tap_service_pb2.Tap(card_number=CARD)
    request = tap_service_pb2.SubmitTapsRequest(taps=[tap, tap, tap_service_pb2.Tap(card_number=CARD_2)])
    assert [str(key) for key in proofs.keys_of(request, HALL)] == [f"caller:{HALL}", f"card:{CARD}", f"card:{CARD_2}"]
    long = tap_service_pb2.SubmitTapsRequest(taps=[tap_service_pb2.Tap(card_number="1" * 10_000)])
    assert [str(key) for key in proofs.keys_of(long, HALL)] == [f"caller:{HALL}"]
    outcomes = [tap_service_pb2.TapOutcome(result=result) for result in (50, 1)]  # type: ignore[arg-type]
    answer = tap_service_pb2.SubmitTapsResponse(outcomes=outcomes)
    assert list(proofs.results_in(answer)) == [50, 1]


def test_methods_that_take_a_secret_from_people_can_say_that_nobody_is_heard() -> None:
    """Or have no result of their own, and are refused with a status."""
    for _, service, name in methods_of_protos():
        method = method_of(f"{service}/{name}")
        if class_of(method) is MethodClass.PROOF:
            field = method.output_type.fields_by_name.get("result")
            assert field is None or field.enum_type.full_name == "yikatong.v1.Result", name


def test_the_names_of_results_that_count() -> None:
    assert "MAC_MISMATCH" in proofs.WRONG_NAMES
    assert Result.MAC_MISMATCH in proofs.WRONG
    assert access_pb2.ROLE_TERMINAL not in proofs.COUNTED_ROLES
    assert DocumentKind.LOCKOUT == 77
