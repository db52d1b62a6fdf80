"""Every method that takes a secret has its wrong proofs counted here, for whom it is about and for who calls, and is not run
while one of them is locked out (lockout.py). Which methods those are follows from the protos, whom a request is about from
its fields.

Taps are left out (rate_limits.py): they are rides that have happened, of whatever people hold before a reader. What else a
terminal brings counts as the terminal's own: a reader that guesses is stopped, and can lock nobody's card out."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final
from weakref import WeakValueDictionary

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.access import lockout
from yikatong.core.access.callers import Caller
from yikatong.core.access.lockout import LockoutKey, SubjectKind
from yikatong.core.access.personal import parts
from yikatong.core.change import Change
from yikatong.core.errors import LockedOut
from yikatong.core.memory import Memory
from yikatong.core.types import Result
from yikatong.v1 import access_pb2

Ask = Callable[[Callable[[Memory, int], Any], float | None], Awaitable[Any]]

WRONG_NAMES: Final = ("MAC_MISMATCH", "ACTIVATION_WRONG", "DEVICE_PROOF_WRONG", "IDENTITY_NOT_VERIFIED")
"""Results that say that a proof was wrong. A code that is not known is none of them: nobody guesses 128 bits, and people hold all
kinds of codes before a reader."""

WRONG: Final = frozenset(int(Result[name]) for name in WRONG_NAMES if name in Result.__members__)
COUNTED_ROLES: Final = (access_pb2.ROLE_DEPARTMENT, access_pb2.ROLE_BANK, access_pb2.ROLE_OPERATOR)


def keys_of(request: Message, caller: Caller) -> list[LockoutKey]:
    """Whose wrong proofs a request would count as: the caller's and, by fields of these names however deep, those of cards,
    persons and devices; in one order for all. A terminal's count as its own alone."""
    if caller.role == access_pb2.ROLE_TERMINAL:
        return [lockout.of_caller(caller)]
    if caller.role not in COUNTED_ROLES:
        return []
    return [lockout.of_caller(caller), *sorted(set(_subjects(request)), key=str)]


def _subjects(message: Message) -> Iterator[LockoutKey]:
    for field, value in message.ListFields():
        if field.name == "card_number" and isinstance(value, str) and len(value) <= limits.CARD_DIGITS_MAX:
            yield lockout.of_card(value)
        elif field.name in ("device_id", "person_id") and isinstance(value, bytes) and len(value) <= limits.ID_BYTES_MAX:
            yield (lockout.of_device if field.name == "device_id" else lockout.of_person)(value)
        for part in parts(field, value):
            yield from _subjects(part)


def results_in(message: Message) -> Iterator[int]:
    """All results in an answer, however deep."""
    for field, value in message.ListFields():
        if field.enum_type is not None and field.enum_type.full_name == "yikatong.v1.Result":
            yield from value if field.is_repeated else [value]
        for part in parts(field, value):
            yield from results_in(part)


class Proofs:
    """What is known of subjects is kept at hand (LOCKOUTS_KNOWN_MAX of them), so that a right proof costs nothing more."""

    def __init__(self, ask: Ask, now_us: Callable[[], int]) -> None:
        self._ask = ask
        self._now_us = now_us
        self._known: OrderedDict[LockoutKey, tuple[int, bool]] = OrderedDict()  # locked until, and whether any are counted
        self._locks: WeakValueDictionary[LockoutKey, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def one_at_a_time(self, keys: Sequence[LockoutKey]) -> AsyncIterator[None]:
        """Guesses at one subject come one after another: together they would all be looked at before the first is counted."""
        async with AsyncExitStack() as held:
            for key in keys:
                if key.kind is not SubjectKind.CALLER:
                    lock = self._locks.get(key)
                    if lock is None:
                        lock = self._locks[key] = asyncio.Lock()
                    await held.enter_async_context(lock)
            yield

    async def check(self, keys: Sequence[LockoutKey]) -> None:
        """Raises LockedOut while one of them is."""
        unknown = [key for key in keys if key not in self._known]
        if unknown:
            self._remember(await self._ask(lambda memory, _: {key: _state(memory, key) for key in unknown}, None))
        until_us = max((self._known.get(key, (0, False))[0] for key in keys), default=0)
        if until_us > (now_us := self._now_us()):
            raise LockedOut("too many wrong proofs", (until_us - now_us) / 1e6)

    async def count(self, keys: Sequence[LockoutKey], results: Sequence[int]) -> None:
        """What the proof came to, before the answer is let out."""
        if WRONG.intersection(results):
            self._remember(await self._ask(lambda memory, time_us: _count_wrong(memory, keys, time_us), None))
        elif Result.ACCEPTED in results:
            counted = [key for key in keys if key.kind is not SubjectKind.CALLER and self._known.get(key, (0, False))[1]]
            if counted:
                self._remember(await self._ask(lambda memory, time_us: _forget(memory, counted, time_us), None))

    def forget_all(self) -> None:
        """Somebody else changed what stands in the documents."""
        self._known.clear()

    def _remember(self, states: dict[LockoutKey, tuple[int, bool]]) -> None:
        for key, state in states.items():
            self._known[key] = state
            self._known.move_to_end(key)
        while len(self._known) > limits.LOCKOUTS_KNOWN_MAX:
            self._known.popitem(last=False)


def _state(memory: Memory, key: LockoutKey) -> tuple[int, bool]:
    found = lockout.of(memory, key)
    return found.locked_until_us, bool(found.last_wrong_us)


def _count_wrong(memory: Memory, keys: Sequence[LockoutKey], time_us: int) -> dict[LockoutKey, tuple[int, bool]]:
    change = Change(memory, time_us)
    for key in keys:
        lockout.wrong(change, memory, key, time_us)
    change.commit("wrong-proof")
    return {key: _state(memory, key) for key in keys}


def _forget(memory: Memory, keys: Sequence[LockoutKey], time_us: int) -> dict[LockoutKey, tuple[int, bool]]:
    change = Change(memory, time_us)
    found = [lockout.right(change, memory, key) for key in keys]
    if any(found):
        change.commit("right-proof")
    return {key: _state(memory, key) for key in keys}
