"""Two operators: what the option `two_operators` (access.proto) holds back until somebody else has approved it.

The first call of such a method is kept, sealed, as a proposal, and answered APPROVAL_PENDING. Approving it carries it out in its
proposer's name; since each such method has a request id, it happens once however often it is asked for. Adjustments of the books
(exceptions.py) are proposals of their own kind, which show their postings; who is somebody else is asked in one place for
both (`same_actor`)."""

from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from yikatong.core import limits
from yikatong.core.access.callers import Caller, parse_identity
from yikatong.core.access.personal import without_secrets
from yikatong.core.change import REQUEST_ID_BYTES, Change, answered
from yikatong.core.day.exceptions import same_actor
from yikatong.core.errors import ConfigError, Damaged, InvalidRequest
from yikatong.core.journal import sm3
from yikatong.core.keys.provider import KeyProvider, KeyReference, Purpose
from yikatong.core.memory import Memory
from yikatong.core.messages import parse
from yikatong.core.paging import kept, key_of, page
from yikatong.core.types import DocumentKind, Result, wire
from yikatong.v1 import access_pb2, approval_service_pb2, journal_pb2

PROPOSED: Final = approval_service_pb2.APPROVAL_STATE_PROPOSED
APPROVED: Final = approval_service_pb2.APPROVAL_STATE_APPROVED
REJECTED: Final = approval_service_pb2.APPROVAL_STATE_REJECTED
EXPIRED: Final = approval_service_pb2.APPROVAL_STATE_EXPIRED
_KEY_BYTES: Final = 8
_LAST: Final = (1 << 64) - 1
_parse = journal_pb2.HeldRequest.FromString


def wants_two(method: MethodDescriptor) -> bool:
    """Whether a method takes effect only with a second operator's approval."""
    options: Any = method.GetOptions()
    return bool(options.Extensions[access_pb2.access].two_operators)


class Proposal(NamedTuple):
    """A call of such a method, as it came."""

    method: str
    caller: Caller
    request_id: bytes
    digest: bytes
    key: KeyReference
    sealed: bytes


def propose(provider: KeyProvider | None, method: MethodDescriptor, request: bytes, caller: Caller) -> Proposal:
    """Seal a request for `hold`. Raises InvalidRequest, or ConfigError without keys to seal it by."""
    if provider is None:
        raise ConfigError("keys", f"{method.name} waits for a second operator, sealed: it needs a key file")
    message = parse(method.input_type, request)
    if len(message.request_id) != REQUEST_ID_BYTES:
        raise InvalidRequest("request_id", f"{REQUEST_ID_BYTES} bytes are wanted")
    name = f"{method.containing_service.full_name}/{method.name}"
    digest = sm3(request)
    key = provider.newest(Purpose.PERSON_DATA)
    sealed = provider.seal(key, request, _associated(name, digest))
    return Proposal(name, caller, message.request_id, digest, key, sealed)


def _associated(method: str, digest: bytes) -> bytes:
    return b"held request\0" + method.encode() + b"\0" + digest


class Held(NamedTuple):
    """What a call of such a method comes to for now; no result: it was approved, and is to be carried out or answered again."""

    result: Result | None
    approval_id: str = ""
    duplicate: bool = False
    sequence: int = 0


def hold(memory: Memory, proposal: Proposal, time_us: int) -> Held:
    """Keep a proposal, or say what became of the one under the same request id."""
    known = memory.documents.get(DocumentKind.APPROVAL_REQUEST, proposal.request_id)
    if known is not None:
        return _again(memory, proposal, known, time_us)
    if memory.documents.get(DocumentKind.ANSWER, proposal.request_id) is not None:
        return Held(Result.CONFLICT)  # the id was another request's
    change = Change(memory, time_us)
    key = _place(change.sequence)
    held = journal_pb2.HeldRequest(
        approval=approval_service_pb2.Approval(
            approval_id=key.hex(), state=PROPOSED, method=proposal.method, request_digest=proposal.digest,
            proposed_by=str(proposal.caller), proposed_us=time_us, expires_us=time_us + limits.APPROVAL_S * 1_000_000,
        ),
        sealed=proposal.sealed, key_version=proposal.key.key_version, key_index=proposal.key.key_index,
    )  # fmt: skip
    _put(change, held)
    change.put(DocumentKind.APPROVAL_REQUEST, proposal.request_id, key)
    return Held(Result.APPROVAL_PENDING, key.hex(), False, change.commit("approval-proposed"))


def _again(memory: Memory, proposal: Proposal, key: bytes, time_us: int) -> Held:
    held = kept(memory, DocumentKind.APPROVAL, _parse, "approval", key, key.hex()).approval
    same = held.request_digest == proposal.digest and held.method == proposal.method and held.proposed_by == str(proposal.caller)
    if not same:
        return Held(Result.CONFLICT)
    if held.state == REJECTED:
        return Held(Result.APPROVAL_REJECTED, held.approval_id, True)
    done = memory.documents.get(DocumentKind.ANSWER, proposal.request_id) is not None
    if held.state == APPROVED and (done or time_us < held.expires_us):
        return Held(None, held.approval_id, True)
    return Held(Result.APPROVAL_PENDING if time_us < held.expires_us else Result.APPROVAL_EXPIRED, held.approval_id, True)


def pending_answer(method: MethodDescriptor, held: Held) -> bytes:
    """The method's response that says so. Its type has `result`, `duplicate`, `sequence` and `approval_id` (a test looks)."""
    assert held.result is not None
    response: Any = GetMessageClass(method.output_type)()
    response.result = wire(held.result)
    response.approval_id, response.duplicate, response.sequence = held.approval_id, held.duplicate, held.sequence
    return bytes(response.SerializeToString())


def _place(sequence: int) -> bytes:
    """Newest first."""
    return (_LAST - sequence).to_bytes(_KEY_BYTES, "big")


def _put(change: Change, held: journal_pb2.HeldRequest) -> None:
    key = bytes.fromhex(held.approval.approval_id)
    change.put(DocumentKind.APPROVAL, key, held.SerializeToString(deterministic=True))


def _held(memory: Memory, approval_id: str) -> journal_pb2.HeldRequest:
    return kept(
        memory, DocumentKind.APPROVAL, _parse, "approval", key_of("approval_id", approval_id, _KEY_BYTES), approval_id
    )  # fmt: skip


def _open(provider: KeyProvider, held: journal_pb2.HeldRequest) -> bytes:
    approval = held.approval
    key = KeyReference(Purpose.PERSON_DATA, held.key_version, held.key_index)
    request = provider.open(key, held.sealed, _associated(approval.method, approval.request_digest))
    if sm3(request) != approval.request_digest:
        raise Damaged(f"approval {approval.approval_id}: the request is not the one that was proposed")
    return request


def _same_person(one: str, other: str) -> bool:
    """An operator of a district is no second one beside itself without it."""
    names = [parse_identity(identity) for identity in (one, other)]
    return names[0].role == names[1].role and same_actor(names[0].name, names[1].name)


class ToExecute(NamedTuple):
    """What was approved: the method, the request, and in whose name."""

    method: str
    request: bytes
    proposer: Caller


# ---- ApprovalService ----


def list_approvals(
    memory: Memory, request: approval_service_pb2.ListApprovalsRequest, time_us: int
) -> approval_service_pb2.ListApprovalsResponse:  # fmt: skip
    """ApprovalService.ListApprovals."""
    found, token = page(
        memory, DocumentKind.APPROVAL, lambda value: _as_of(_parse(value), time_us), size=request.page_size,
        token=request.page_token, wanted=lambda held: not request.state or held.approval.state == request.state,
    )  # fmt: skip
    return approval_service_pb2.ListApprovalsResponse(approvals=[held.approval for held in found], next_page_token=token)


def _as_of(held: journal_pb2.HeldRequest, time_us: int) -> journal_pb2.HeldRequest:
    """As it stands at a time: what nobody decided ends by itself."""
    if held.approval.state == PROPOSED and time_us >= held.approval.expires_us:
        held.approval.state = EXPIRED
    return held


def get_approval(
    memory: Memory,
    request: approval_service_pb2.GetApprovalRequest,
    time_us: int,
    provider: KeyProvider | None,
    method_of: Any,
) -> approval_service_pb2.GetApprovalResponse:
    """ApprovalService.GetApproval. `method_of` finds a method's descriptor by its name."""
    held = _as_of(_held(memory, request.approval_id), time_us)
    response = approval_service_pb2.GetApprovalResponse(approval=held.approval)
    if provider is not None:
        message: Message = GetMessageClass(method_of(held.approval.method).input_type).FromString(_open(provider, held))
        response.request = without_secrets(message).SerializeToString(deterministic=True)
    return response


def approve(
    memory: Memory,
    request: approval_service_pb2.ApproveRequestRequest,
    time_us: int,
    caller: Caller,
    provider: KeyProvider | None,
) -> tuple[approval_service_pb2.ApproveRequestResponse, ToExecute | None]:
    """ApprovalService.ApproveRequest: mark it approved; what is to be carried out then. Asked again, also after a crash between
    the two, it is handed out again."""
    response_type = approval_service_pb2.ApproveRequestResponse
    if provider is None:
        raise ConfigError("keys", "the request is sealed: a key file is needed to open it")
    held = _held(memory, request.approval_id)
    approval = held.approval
    if (answer := answered(memory, request, response_type)) is not None:
        return answer, _to_execute(provider, held) if answer.result == wire(Result.ACCEPTED) else None
    change = Change(memory, time_us)
    refusal = None
    if approval.state != PROPOSED:
        refusal = Result.WRONG_STATE
    elif time_us >= approval.expires_us:
        refusal = Result.APPROVAL_EXPIRED
    elif _same_person(str(caller), approval.proposed_by):
        refusal = Result.SAME_ACTOR
    elif request.request_digest != approval.request_digest:
        refusal = Result.APPROVAL_ALTERED
    if refusal is not None:
        return change.answer(request, response_type(result=wire(refusal)), "approval-refused"), None
    to_execute = _to_execute(provider, held)  # before anything is written: it may be damaged
    approval.state, approval.decided_by, approval.decided_us = APPROVED, str(caller), time_us
    _put(change, held)
    return change.answer(request, response_type(result=wire(Result.ACCEPTED)), "approval-given"), to_execute


def _to_execute(provider: KeyProvider, held: journal_pb2.HeldRequest) -> ToExecute:
    return ToExecute(held.approval.method, _open(provider, held), parse_identity(held.approval.proposed_by))


def reject(
    memory: Memory, request: approval_service_pb2.RejectRequestRequest, time_us: int, caller: Caller
) -> approval_service_pb2.RejectRequestResponse:  # fmt: skip
    """ApprovalService.RejectRequest."""
    response_type = approval_service_pb2.RejectRequestResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    held = _held(memory, request.approval_id)
    change = Change(memory, time_us)
    if held.approval.state != PROPOSED:
        return change.answer(request, response_type(result=wire(Result.WRONG_STATE)), "approval-refused")
    held.approval.state, held.approval.decided_by, held.approval.decided_us = REJECTED, str(caller), time_us
    _put(change, held)
    return change.answer(request, response_type(result=wire(Result.ACCEPTED)), "approval-rejected")
