"""The audit trail: who saw or did what to whose data, for which purpose.

It is part of the journal, so it is chained, sealed with its day and never rewritten. What was done is noted with the change that
did it; what was only shown is noted with a change of its own, before it is shown."""

from collections.abc import Sequence

from yikatong.core.callers import Caller
from yikatong.core.change import Change
from yikatong.core.types import DocumentKind
from yikatong.v1 import journal_pb2


def note(
    change: Change,
    caller: Caller,
    action: str,
    person: bytes,
    *,
    purpose: str = "",
    legal_basis: str = "",
    fields: Sequence[str] = (),
) -> None:
    """Note with a change that a caller did `action` (a method's name) to a person (id of 16 bytes) and was shown `fields`. At
    most one note for a person and change."""
    access = journal_pb2.Access(
        caller=str(caller), action=action, purpose=purpose, legal_basis=legal_basis, fields=fields, time_us=change.time_us
    )
    key = person + change.sequence.to_bytes(8, "big")
    change.put(DocumentKind.ACCESS, key, access.SerializeToString(deterministic=True))
