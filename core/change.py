"""A change: everything that one command does to the ledger and to the documents, as one event of the journal.

All of it is written, or nothing. Its records follow the event's and are linked to it; a group commit never splits them."""

import hashlib
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.errors import InvalidRequest
from yikatong.core.memory import Memory
from yikatong.core.types import DENY_REASONS, KEPT_FOR_GOOD, NONE, DocumentKind, PostingKind, RecordKind, Result, wire
from yikatong.ext.engine import EngineFull
from yikatong.v1 import journal_pb2

REQUEST_ID_BYTES: Final = 16
Response = TypeVar("Response", bound=Message)


class Change:
    """What is to happen at one journal time (µs, UTC). Reads of memory see nothing of it before `commit`."""

    def __init__(self, memory: Memory, time_us: int) -> None:
        self._memory = memory
        self._time_us = time_us
        self._steps: list[tuple[int, int, int, int, int, int, bytes]] = []
        self._documents: list[tuple[DocumentKind, bytes, bytes | None]] = []
        self._opened: dict[str, int] = {}
        self._closed_day = 0

    @property
    def time_us(self) -> int:
        """Its journal time, µs, UTC."""
        return self._time_us

    @property
    def sequence(self) -> int:
        """Sequence that the event will get."""
        return int(self._memory.engine.next_sequence)

    def move(self, debit: int, credit: int, amount_fen: int, why: PostingKind, card: int = NONE) -> None:
        """Move `amount_fen` (not negative) from one account to another; `card` is the slot in whose list it shows."""
        if amount_fen < 0:
            raise ValueError(f"a posting of {amount_fen} fen: turn it round instead")
        if amount_fen:
            self._steps.append((RecordKind.POSTING, why, debit, credit, card, amount_fen, b""))

    def hold(self, account: int, amount_fen: int, card: int = NONE) -> None:
        """Hold so much more of an account's balance or, negative, so much less."""
        if amount_fen:
            self._steps.append((RecordKind.HOLD, 0, account, NONE, card, amount_fen, b""))

    def entitle(self, card: int, entitlement: bytes) -> None:
        """Set what a card may ride at: bytes of an ext.engine.ENTITLEMENT."""
        self._steps.append((RecordKind.ENTITLEMENT, 0, NONE, NONE, card, 0, entitlement))

    def correct(self, card: int, purse: int, operator: int, change_fen: int, facts: bytes) -> None:
        """Charge a tap `change_fen` more or, negative, less than it was. `facts`: an ext.engine.CORRECTION, and behind it the
        payload that explains the fare."""
        debit, credit = (purse, operator) if change_fen >= 0 else (operator, purse)
        self._steps.append((RecordKind.POSTING, PostingKind.CORRECTION, debit, credit, card, abs(change_fen), facts))

    def remember_rides(self, card: int, rides: bytes) -> None:
        """Set what a card remembers of its rides: bytes of an ext.fares.RIDES."""
        self._steps.append((RecordKind.RIDES, 0, NONE, NONE, card, 0, rides))

    def deny(self, card: int, reasons: int) -> None:
        """Set why a card is on the deny list: a set of types.Deny; 0 takes it off."""
        if reasons & ~DENY_REASONS:
            raise ValueError(f"deny reasons {reasons:#x}: there are no such reasons")
        self._steps.append((RecordKind.DENY_LIST, reasons, NONE, NONE, card, 0, b""))

    def open_account(self, name: str, chip_of: int = NONE) -> int:
        """The account of that name; opened with this change where there is none yet. With a card (slot) it is that of the money
        on its chip, which from then on pays the card's taps of profile 1."""
        account = self._memory.account(name)
        if account is None:
            account = self._opened.get(name)
        if account is None:
            raw = name.encode()
            if not 1 <= len(raw) <= limits.ACCOUNT_NAME_BYTES_MAX:
                raise InvalidRequest("account", f"its name has 1 to {limits.ACCOUNT_NAME_BYTES_MAX} bytes, not {len(raw)}")
            if self._memory.engine.room["accounts"] <= len(self._opened):
                raise EngineFull("the configured number of accounts is reached")
            account = int(self._memory.engine.counts["accounts"]) + len(self._opened)
            self._opened[name] = account
            self._steps.append((RecordKind.ACCOUNT, 0, NONE, NONE, chip_of, 0, raw))
            self.put(DocumentKind.ACCOUNT, raw, account.to_bytes(4, "big"))
        return account

    def put(self, kind: DocumentKind, key: bytes, value: bytes) -> None:
        """Put a document in place of what is under the key. What is kept for good has no second version: ValueError."""
        if not 1 <= len(key) <= limits.DOCUMENT_KEY_BYTES_MAX:
            raise ValueError(f"a document's key has 1 to {limits.DOCUMENT_KEY_BYTES_MAX} bytes, not {len(key)}")
        if kind in KEPT_FOR_GOOD and self._memory.documents.get(kind, key) is not None:
            raise ValueError(f"a document of kind {kind.name} is never altered")
        self._documents.append((kind, key, value))

    def delete(self, kind: DocumentKind, key: bytes) -> None:
        """Delete a document, if it is there. ValueError for what is kept for good."""
        if kind in KEPT_FOR_GOOD:
            raise ValueError(f"a document of kind {kind.name} is never deleted")
        self._documents.append((kind, key, None))

    def close_date(self, day: int) -> None:
        """Records after this change belong to a later settlement day than `day` (days since 1970-01-01)."""
        self._closed_day = day

    def commit(self, name: str) -> int:
        """Write it: returns the event's sequence. Raises EngineFull, and then nothing was written."""
        event = journal_pb2.Event(name=name, closed_settlement_day=self._closed_day)
        for kind, key, value in self._documents:
            event.documents.add(kind=kind, key=key, value=value or b"", deleted=value is None)
        sequence = self.sequence
        self._memory.commit_event(self._time_us, event, self._steps)
        return sequence

    def answer(self, request: Message, response: Response, name: str) -> Response:
        """Commit, and remember the response under the request's id. Its `sequence` is set to the event's."""
        response.sequence = self.sequence  # type: ignore[attr-defined]
        kept = journal_pb2.Answer(request_digest=_digest(request), response=response.SerializeToString(deterministic=True))
        self.put(DocumentKind.ANSWER, _request_id(request), kept.SerializeToString(deterministic=True))
        self.commit(name)
        return response


def answered(memory: Memory, request: Message, response: type[Response]) -> Response | None:
    """The answer that this request id got before, marked as a duplicate; CONFLICT when the content was another; None when the
    id is new. Raises InvalidRequest for an id that is not 16 bytes."""
    request_id = _request_id(request)
    kept = memory.documents.get(DocumentKind.ANSWER, request_id)
    if kept is None:
        if memory.find_top_up(request_id) is None:
            return None
        return _conflict(response)
    answer = journal_pb2.Answer.FromString(kept)
    if answer.request_digest != _digest(request):
        return _conflict(response)
    again: Any = response.FromString(answer.response)
    again.duplicate = True
    return again  # type: ignore[no-any-return]


def _conflict(response: type[Response]) -> Response:
    conflict: Any = response()
    conflict.result = wire(Result.CONFLICT)
    return conflict  # type: ignore[no-any-return]


def _request_id(request: Any) -> bytes:
    if len(request.request_id) != REQUEST_ID_BYTES:
        raise InvalidRequest("request_id", f"{REQUEST_ID_BYTES} bytes are wanted")
    return bytes(request.request_id)


def _digest(request: Message) -> bytes:
    """Unknown fields, which another version of the protos may know, are part of the content."""
    content = request.SerializeToString(deterministic=True)
    return hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\0" + content).digest()[:16]
