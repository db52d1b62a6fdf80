"""Two operators: what one proposes takes effect when another approves it, once; never by the same, too late, or altered."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st
from service_port import ServicePort, department, operator

from yikatong.core import limits
from yikatong.core.access import approvals, lockout
from yikatong.core.access.callers import LOCAL, parse_identity
from yikatong.core.access.oversight import method_of
from yikatong.core.access.personal import without_secrets
from yikatong.core.change import Change
from yikatong.core.day import exceptions
from yikatong.core.errors import ConfigError, InvalidRequest, NotFound
from yikatong.core.journal import sm3
from yikatong.core.keys.provider import SealedDataWrong
from yikatong.core.metrics import methods_of_protos
from yikatong.core.types import DocumentKind, Result
from yikatong.v1 import approval_service_pb2, audit_service_pb2, journal_pb2, lockout_service_pb2, tap_service_pb2

LI, WANG = operator("li"), operator("wang")
CARD = "card:3104416000000017"
LIFT = "LockoutService/LiftLockout"


@pytest.fixture
def port(tmp_path: Path, key_file: Path) -> Any:
    with ServicePort(tmp_path / "data", key_file) as made:
        lock(made)
        yield made


def lock(port: ServicePort) -> None:
    def guess(memory: Any, time_us: int) -> None:
        for _ in range(limits.WRONG_PROOFS_MAX):
            change = Change(memory, time_us)
            lockout.wrong(change, memory, lockout.of_card(CARD.partition(":")[2]), time_us)
            change.commit("wrong-proof")

    port.ask(guess)


def is_locked(port: ServicePort) -> bool:
    return bool(port.call("LockoutService/GetLockout", subject=CARD).lockout.locked_until_us)


def lift(request_id: bytes = bytes(range(16)), subject: str = CARD) -> lockout_service_pb2.LiftLockoutRequest:
    return lockout_service_pb2.LiftLockoutRequest(request_id=request_id, subject=subject, reason="it was me, 李雷")


def propose(port: ServicePort, caller: Any = LI) -> Any:
    response = port.call(LIFT, lift(), caller=caller)
    assert response.result == Result.APPROVAL_PENDING
    return response


def approve(port: ServicePort, approval_id: str, caller: Any = WANG, digest: bytes = b"", **fields: Any) -> Any:
    digest = digest or sm3(lift().SerializeToString())
    fields = {"approval_id": approval_id, "request_digest": digest} | fields
    return port.call("ApprovalService/ApproveRequest", caller=caller, **fields)


def expire(port: ServicePort, approval_id: str) -> None:
    """A day passes: for the core, the proposal was made a day earlier."""

    def command(memory: Any, time_us: int) -> None:
        held = journal_pb2.HeldRequest.FromString(memory.documents.get(DocumentKind.APPROVAL, bytes.fromhex(approval_id)))
        held.approval.expires_us = time_us
        change = Change(memory, time_us)
        change.put(DocumentKind.APPROVAL, bytes.fromhex(approval_id), held.SerializeToString())
        change.commit("test")

    port.ask(command)


# ---- the way it should go ----


def test_proposed_approved_and_done_once(port: ServicePort) -> None:
    proposed = propose(port)
    assert is_locked(port)
    shown = port.call("ApprovalService/GetApproval", approval_id=proposed.approval_id, purpose="to approve", caller=WANG)
    assert lockout_service_pb2.LiftLockoutRequest.FromString(shown.request) == lift()
    assert (shown.approval.proposed_by, shown.approval.method) == (str(LI), f"yikatong.v1.{LIFT}")
    response = approve(port, proposed.approval_id, digest=shown.approval.request_digest)
    assert (response.result, response.executed_result) == (Result.ACCEPTED, Result.ACCEPTED)
    assert not is_locked(port)
    done = port.call(LIFT, lift(), caller=LI)
    assert (done.result, done.duplicate) == (Result.ACCEPTED, True)
    lock(port)  # what was approved for once opens nothing a second time
    assert port.call(LIFT, lift(), caller=LI).result == Result.ACCEPTED
    assert approve(port, proposed.approval_id).result == Result.WRONG_STATE
    assert is_locked(port)


def test_the_first_call_again_gets_the_same_answer(port: ServicePort) -> None:
    proposed, again = propose(port), propose(port)
    assert (again.approval_id, proposed.duplicate, again.duplicate) == (proposed.approval_id, False, True)
    assert len(port.call("ApprovalService/ListApprovals").approvals) == 1


def test_approving_again_gets_the_same_answer(port: ServicePort) -> None:
    proposed, request_id = propose(port), bytes(16)
    first = approve(port, proposed.approval_id, request_id=request_id)
    again = approve(port, proposed.approval_id, request_id=request_id)
    assert (first.duplicate, again.duplicate) == (False, True)
    assert (first.sequence, first.executed_result) == (again.sequence, again.executed_result)


def test_cut_off_between_approval_and_deed(port: ServicePort) -> None:
    """The mark stands, the deed does not: approving again, or the proposer's call, does it then."""
    for at, finish in enumerate(("approver", "proposer")):
        lock(port)
        request = lift(bytes([at + 50] * 16))
        proposed = port.call(LIFT, request, caller=LI)
        digest, request_id = sm3(request.SerializeToString()), bytes([at + 90] * 16)

        asked = approval_service_pb2.ApproveRequestRequest(
            request_id=request_id, approval_id=proposed.approval_id, request_digest=digest
        )

        def mark_only(memory: Any, time_us: int, asked: Any = asked) -> Any:
            return approvals.approve(memory, asked, time_us, WANG, port.provider)

        port.ask(mark_only)
        assert is_locked(port)
        if finish == "approver":
            response = approve(port, proposed.approval_id, digest=digest, request_id=request_id)
            assert (response.duplicate, response.executed_result) == (True, Result.ACCEPTED)
        else:
            assert port.call(LIFT, request, caller=LI).result == Result.ACCEPTED
        assert not is_locked(port)


def test_what_nobody_decided_is_shown_as_over(port: ServicePort) -> None:
    proposed = propose(port)
    states = (approval_service_pb2.APPROVAL_STATE_PROPOSED, approval_service_pb2.APPROVAL_STATE_EXPIRED)
    for over in (0, 1):
        counts = [len(port.call("ApprovalService/ListApprovals", state=state).approvals) for state in states]
        assert counts == [1 - over, over]
        shown = port.call("ApprovalService/GetApproval", approval_id=proposed.approval_id, purpose="to look")
        assert shown.approval.state == states[over]
        expire(port, proposed.approval_id)


# ---- the ways it must not go ----

REFUSED = [
    # who approves, what is done before, the answer
    ("li", "", Result.SAME_ACTOR),
    ("LI", "", Result.SAME_ACTOR),
    ("li:441602", "", Result.SAME_ACTOR),
    ("wang", "expire", Result.APPROVAL_EXPIRED),
    ("wang", "reject", Result.WRONG_STATE),
    ("wang", "approve", Result.WRONG_STATE),
    ("wang", "alter", Result.APPROVAL_ALTERED),
]


@pytest.mark.parametrize(("who", "before", "want"), REFUSED)
def test_who_may_not_approve_what(port: ServicePort, who: str, before: str, want: Result) -> None:
    proposed = propose(port)
    if before == "expire":
        expire(port, proposed.approval_id)
    elif before == "reject":
        port.call("ApprovalService/RejectRequest", approval_id=proposed.approval_id, caller=LI)
    elif before == "approve":
        approve(port, proposed.approval_id)
        lock(port)
    caller = parse_identity(f"yikatong:operator:{who}")
    digest = sm3(b"something else") if before == "alter" else b""
    assert approve(port, proposed.approval_id, caller, digest).result == want
    assert is_locked(port)


def test_what_the_proposer_is_told_of_its_end(port: ServicePort) -> None:
    proposed = propose(port)
    expire(port, proposed.approval_id)
    assert port.call(LIFT, lift(), caller=LI).result == Result.APPROVAL_EXPIRED
    port.call("ApprovalService/RejectRequest", approval_id=proposed.approval_id, caller=WANG)
    assert port.call(LIFT, lift(), caller=LI).result == Result.APPROVAL_REJECTED
    assert port.call("ApprovalService/RejectRequest", approval_id=proposed.approval_id).result == Result.WRONG_STATE
    assert is_locked(port)


def test_approved_long_ago_and_never_done(port: ServicePort) -> None:
    proposed = propose(port)

    def mark(memory: Any, time_us: int) -> None:
        held = journal_pb2.HeldRequest.FromString(
            memory.documents.get(DocumentKind.APPROVAL, bytes.fromhex(proposed.approval_id))
        )
        held.approval.state, held.approval.expires_us = approvals.APPROVED, time_us
        change = Change(memory, time_us)
        change.put(DocumentKind.APPROVAL, bytes.fromhex(proposed.approval_id), held.SerializeToString())
        change.commit("test")

    port.ask(mark)
    assert port.call(LIFT, lift(), caller=LI).result == Result.APPROVAL_EXPIRED
    assert is_locked(port)


def test_somebody_elses_request_id(port: ServicePort) -> None:
    propose(port)
    assert port.call(LIFT, lift(), caller=WANG).result == Result.CONFLICT
    assert port.call(LIFT, lift(subject="card:1"), caller=LI).result == Result.CONFLICT
    taken = bytes([7] * 16)
    rejected = port.call("ApprovalService/ListApprovals").approvals[0].approval_id
    port.call("ApprovalService/RejectRequest", request_id=taken, approval_id=rejected)
    assert port.call(LIFT, lift(taken), caller=LI).result == Result.CONFLICT


def test_bad_input(port: ServicePort) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        port.call(LIFT, lift(b"short"), caller=LI)
    with pytest.raises(NotFound):
        approve(port, "00" * 8)
    for bad in ("", "zz", "00" * 7):
        with pytest.raises(InvalidRequest, match="approval_id"):
            approve(port, bad)
    with pytest.raises(ConfigError, match="key file"):
        approvals.propose(None, method_of(f"yikatong.v1.{LIFT}"), b"", LI)
    with pytest.raises(InvalidRequest, match="request"):
        approvals.propose(port.provider, method_of(f"yikatong.v1.{LIFT}"), b"\xff\xff", LI)


def test_a_held_request_that_was_altered_on_disk(port: ServicePort) -> None:
    proposed = propose(port)

    def alter(memory: Any, time_us: int) -> None:
        key = bytes.fromhex(proposed.approval_id)
        held = journal_pb2.HeldRequest.FromString(memory.documents.get(DocumentKind.APPROVAL, key))
        held.sealed = held.sealed[:-20] + bytes([held.sealed[-20] ^ 1]) + held.sealed[-19:]
        change = Change(memory, time_us)
        change.put(DocumentKind.APPROVAL, key, held.SerializeToString())
        change.commit("test")

    port.ask(alter)
    with pytest.raises(SealedDataWrong):
        approve(port, proposed.approval_id)
    assert port.call("ApprovalService/ListApprovals").approvals[0].state == approvals.PROPOSED


def test_held_requests_are_sealed(port: ServicePort, tmp_path: Path) -> None:
    propose(port)
    port.close()
    raw = b"".join(path.read_bytes() for path in sorted((tmp_path / "data").glob("*.mdb")))
    assert b"it was me" not in raw
    assert "李雷".encode() not in raw


def test_without_tls_there_is_one_operator_and_no_second(port: ServicePort) -> None:
    proposed = propose(port, LOCAL)
    assert approve(port, proposed.approval_id, LOCAL).result == Result.SAME_ACTOR


def test_lists_by_state_newest_first(port: ServicePort) -> None:
    ids = [port.call(LIFT, lift(bytes([at] * 16)), caller=LI).approval_id for at in range(1, 4)]
    port.call("ApprovalService/RejectRequest", approval_id=ids[1])
    listed = [each.approval_id for each in port.call("ApprovalService/ListApprovals").approvals]
    assert listed == ids[::-1]
    found = port.call("ApprovalService/ListApprovals", state=approvals.PROPOSED).approvals
    assert [each.approval_id for each in found] == [ids[2], ids[0]]


def test_looking_at_a_proposal_is_noted(port: ServicePort) -> None:
    proposed = propose(port)
    with pytest.raises(InvalidRequest, match="purpose"):
        port.call("ApprovalService/GetApproval", approval_id=proposed.approval_id, caller=WANG)
    port.call("ApprovalService/GetApproval", approval_id=proposed.approval_id, caller=WANG, purpose="to approve")
    asked = audit_service_pb2.ListCallerAccessesRequest(caller=str(WANG), purpose="x")
    found = port.call("AuditService/ListCallerAccesses", asked).accesses
    assert [(entry.action, list(entry.fields)) for entry in found] == [("ApprovalService.GetApproval", ["request"])]


# ---- every such method, and the other four eyes ----


def test_every_method_with_two_operators_can_be_held() -> None:
    """It has a request id, so it is done once, and a response that can say that it waits."""
    found = []
    for _, service, name in methods_of_protos():
        method = method_of(f"{service}/{name}")
        if approvals.wants_two(method):
            found.append(name)
            request, response = method.input_type.fields_by_name, GetMessageClass(method.output_type)()
            assert "request_id" in request, name
            for field in ("result", "duplicate", "sequence", "approval_id"):
                assert field in response.DESCRIPTOR.fields_by_name, (name, field)
    assert "LiftLockout" in found


def test_secrets_of_a_held_request_are_shown_to_nobody() -> None:
    tap = tap_service_pb2.Tap(card_number="1", mac=b"1234")
    request = tap_service_pb2.SubmitTapsRequest(taps=[tap, tap])
    assert without_secrets(request) == tap_service_pb2.SubmitTapsRequest(taps=[tap_service_pb2.Tap(card_number="1")] * 2)
    assert request.taps[0].mac == b"1234"


@settings(max_examples=200)
@given(name=st.text("abcdefg.ABCDEFG-_", min_size=1, max_size=8), other=st.text("abcdefg.ABCDEFG-_", min_size=1, max_size=8))
def test_one_question_of_who_is_somebody_else(name: str, other: str) -> None:
    """Adjustments and approvals ask the same: another spelling is nobody else."""
    assert exceptions.same_actor(name, name.swapcase())
    assert approvals._same_person(f"yikatong:operator:{name}", f"yikatong:operator:{other}") == exceptions.same_actor(name, other)
    assert not approvals._same_person(f"yikatong:operator:{name}", f"{department(name)}")
