"""Wrong tries at being somebody: counted, and where there is a lock-out, acted on."""

from typing import Final, Protocol

from yikatong.core.callers import Caller
from yikatong.core.change import Change
from yikatong.core.memory import Memory
from yikatong.core.types import DocumentKind, Result

KEPT_S: Final = 3_600
_KEY: Final = b"t"


class Tries(Protocol):
    """What is asked before a proof is looked at, and told of it afterwards. `person_id` is empty where a proof led to nobody."""

    def refusal(self, memory: Memory, caller: Caller, person_id: bytes, time_us: int) -> Result | None:
        """Why no proof of this caller, or about this person, is to be looked at now."""

    def wrong(self, memory: Memory, change: Change, caller: Caller, person_id: bytes) -> None:
        """Put with a change that one was wrong."""

    def right(self, memory: Memory, change: Change, caller: Caller, person_id: bytes) -> None:
        """Put with a change that one was right."""


class CountedTries:
    """Counts by caller, and locks nobody out."""

    def refusal(self, memory: Memory, caller: Caller, person_id: bytes, time_us: int) -> Result | None:
        return None

    def wrong(self, memory: Memory, change: Change, caller: Caller, person_id: bytes) -> None:
        key = _KEY + str(caller).encode()
        before = memory.documents.get(DocumentKind.IDENTITY_ANSWER, key)
        tries = wrong_tries(memory, caller, change.time_us) + 1
        due_us = change.time_us + KEPT_S * 1_000_000
        change.put(DocumentKind.IDENTITY_ANSWER, key, due_us.to_bytes(8, "big") + tries.to_bytes(4, "big"))
        put_expiry(change, due_us, DocumentKind.IDENTITY_ANSWER, key, int.from_bytes(before[:8], "big") if before else 0)

    def right(self, memory: Memory, change: Change, caller: Caller, person_id: bytes) -> None:
        """A caller's wrong tries stay: with one number that is right it would otherwise guess at others' without end."""


def wrong_tries(memory: Memory, caller: Caller, time_us: int) -> int:
    """How often a caller got no for an answer: since its last hour without one."""
    value = memory.documents.get(DocumentKind.IDENTITY_ANSWER, _KEY + str(caller).encode())
    if value is None or time_us >= int.from_bytes(value[:8], "big"):
        return 0
    return int.from_bytes(value[8:], "big")


def put_expiry(change: Change, due_us: int, kind: DocumentKind, key: bytes, before_us: int = 0) -> None:
    """Let a document of identity be swept at a journal time, and no more at the one that was set before."""
    if before_us and before_us != due_us:
        change.delete(DocumentKind.IDENTITY_EXPIRY, before_us.to_bytes(8, "big") + bytes([kind]) + key)
    if before_us != due_us:
        change.put(DocumentKind.IDENTITY_EXPIRY, due_us.to_bytes(8, "big") + bytes([kind]) + key, b"\1")
