"""Lock-out after wrong proofs: wrong device proofs, identity checks, activation secrets.

Counted for whom the proof was about (card, person, device) and for the caller who brought it, so that neither many callers can
guess at one card nor one caller at many. A lock-out lasts twice as long as the one before; it ends by journal time or is lifted
by two operators. It is a document, so a restart forgets nothing."""

from enum import Enum
from typing import Final, NamedTuple

from yikatong.core import limits
from yikatong.core.access.callers import Caller
from yikatong.core.change import Change, answered
from yikatong.core.errors import InvalidRequest
from yikatong.core.memory import Memory
from yikatong.core.paging import page
from yikatong.core.types import DocumentKind, Result, wire
from yikatong.v1 import lockout_service_pb2

_parse = lockout_service_pb2.Lockout.FromString
_MICRO: Final = 1_000_000


class SubjectKind(Enum):
    """Whose wrong proofs are counted."""

    CALLER = "caller"
    CARD = "card"
    DEVICE = "device"
    PERSON = "person"


class LockoutKey(NamedTuple):
    """One of them."""

    kind: SubjectKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.name}"

    @property
    def wrong_max(self) -> int:
        """How many wrong proofs lock it out."""
        return limits.WRONG_PROOFS_OF_CALLER_MAX if self.kind is SubjectKind.CALLER else limits.WRONG_PROOFS_MAX


def of_caller(caller: Caller) -> LockoutKey:
    return LockoutKey(SubjectKind.CALLER, str(caller))


def of_card(card_number: str) -> LockoutKey:
    return LockoutKey(SubjectKind.CARD, card_number)


def of_device(device_id: bytes) -> LockoutKey:
    return LockoutKey(SubjectKind.DEVICE, device_id.hex())


def of_person(person_id: bytes) -> LockoutKey:
    return LockoutKey(SubjectKind.PERSON, person_id.hex())


def check(memory: Memory, key: LockoutKey, time_us: int) -> Result | None:
    """LOCKED_OUT while no proof of this subject is to be looked at, right or wrong; else None. To be asked first: who is locked
    out must not learn whether a guess was right."""
    return Result.LOCKED_OUT if of(memory, key).locked_until_us > time_us else None


def wrong(change: Change, memory: Memory, key: LockoutKey, time_us: int) -> None:
    """Count a wrong proof with a change, at most one of a subject, and lock it out when it was one too many."""
    now = of(memory, key)
    now.subject = str(key)
    if time_us - max(now.last_wrong_us, now.locked_until_us) > limits.WRONG_PROOFS_KEPT_S * _MICRO:
        now.wrong = now.lockouts = 0
    if key.kind is SubjectKind.CALLER and time_us - now.counted_from_us > limits.WRONG_PROOFS_OF_CALLER_S * _MICRO:
        now.wrong, now.counted_from_us = 0, time_us
    now.wrong += 1
    now.last_wrong_us = time_us
    if now.wrong >= key.wrong_max:
        now.wrong = 0
        now.locked_until_us = time_us + min(limits.LOCKOUT_S << min(now.lockouts, 30), limits.LOCKOUT_S_MAX) * _MICRO
        now.lockouts += 1
    change.put(DocumentKind.LOCKOUT, _key(str(key)), now.SerializeToString(deterministic=True))


def right(change: Change, memory: Memory, key: LockoutKey) -> bool:
    """Forget a subject's wrong proofs with a change; whether there were any. A caller's stay: with one card of its own it would
    otherwise guess at others' without end."""
    if key.kind is SubjectKind.CALLER or memory.documents.get(DocumentKind.LOCKOUT, _key(str(key))) is None:
        return False
    change.delete(DocumentKind.LOCKOUT, _key(str(key)))
    return True


def of(memory: Memory, key: LockoutKey) -> lockout_service_pb2.Lockout:
    """What is remembered of a subject; zeros where there is nothing."""
    value = memory.documents.get(DocumentKind.LOCKOUT, _key(str(key)))
    return lockout_service_pb2.Lockout() if value is None else _parse(value)


def _key(subject: str) -> bytes:
    raw = subject.encode()
    kind, _, name = subject.partition(":")
    if not name or kind not in {each.value for each in SubjectKind} or len(raw) > limits.LOCKOUT_SUBJECT_BYTES_MAX:
        kinds = ", ".join(each.value for each in SubjectKind)
        raise InvalidRequest("subject", f"KIND:NAME is wanted, the kind one of {kinds}")
    return raw


# ---- LockoutService ----


def get_lockout(
    memory: Memory, request: lockout_service_pb2.GetLockoutRequest, _: int
) -> lockout_service_pb2.GetLockoutResponse:  # fmt: skip
    """LockoutService.GetLockout."""
    value = memory.documents.get(DocumentKind.LOCKOUT, _key(request.subject))
    found = lockout_service_pb2.Lockout(subject=request.subject) if value is None else _parse(value)
    return lockout_service_pb2.GetLockoutResponse(lockout=found)


def list_lockouts(
    memory: Memory, request: lockout_service_pb2.ListLockoutsRequest, _: int
) -> lockout_service_pb2.ListLockoutsResponse:  # fmt: skip
    """LockoutService.ListLockouts."""
    found, token = page(memory, DocumentKind.LOCKOUT, _parse, size=request.page_size, token=request.page_token)
    return lockout_service_pb2.ListLockoutsResponse(lockouts=found, next_page_token=token)


def lift_lockout(
    memory: Memory, request: lockout_service_pb2.LiftLockoutRequest, time_us: int
) -> lockout_service_pb2.LiftLockoutResponse:  # fmt: skip
    """LockoutService.LiftLockout, once two operators want it (core/access/approvals.py)."""
    response_type = lockout_service_pb2.LiftLockoutResponse
    if (answer := answered(memory, request, response_type)) is not None:
        return answer
    key = _key(request.subject)
    if not request.reason.strip() or len(request.reason) > limits.PURPOSE_CHARACTERS_MAX:
        raise InvalidRequest("reason", f"1 to {limits.PURPOSE_CHARACTERS_MAX} characters are wanted")
    change = Change(memory, time_us)
    if memory.documents.get(DocumentKind.LOCKOUT, key) is not None:
        change.delete(DocumentKind.LOCKOUT, key)
    return change.answer(request, response_type(result=wire(Result.ACCEPTED)), "lockout-lifted")
