"""A core without threads, sockets or clock, for tests: it opens a data directory, decides groups and makes each durable
when it is told to. Beside it stand oracles that share nothing with the engine: a tap's MAC by OpenSSL, its form by
Python."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from yikatong.core import commands, limits, queries, store
from yikatong.core import journal as journal_module
from yikatong.core import memory as memory_module
from yikatong.core.errors import CommitFailed, YikatongError
from yikatong.core.journal import Group, Journal
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.late import price_again
from yikatong.core.memory import EngineSettings, Memory, Photograph
from yikatong.core.store import DataDirectory
from yikatong.core.tap import TapRules, run_taps
from yikatong.core.types import RECORD, Result
from yikatong.v1 import account_service_pb2, card_service_pb2, tap_service_pb2, terminal_service_pb2

# The masters and the issuer of profile.md's worked example, and a second issuer whose keys have one level.
ISSUER = bytes.fromhex("5980000100000000")
OTHER_ISSUER = bytes.fromhex("4416000200000000")
KEY_SET = KeySet(ISSUER, 1, 1, 2, bytes.fromhex("fedcba98765432100123456789abcdef"))
OTHER_KEY_SET = KeySet(OTHER_ISSUER, 3, 2, 1, bytes.fromhex("0123456789abcdeffedcba9876543210"))
KEY_SETS = [KEY_SET, OTHER_KEY_SET]

CHINA = timezone(timedelta(hours=8))
START_S = int(datetime(2025, 1, 1, 8, 30, 15, tzinfo=CHINA).timestamp())
DAY_S = 86_400


def local_time_of(seconds: int) -> int:
    """Seconds since 1970 as the number that a terminal writes: YYYYMMDDhhmmss, UTC+8."""
    return int(datetime.fromtimestamp(seconds, CHINA).strftime("%Y%m%d%H%M%S"))


# ---- oracle: the MAC (profile.md), by OpenSSL ----


def _sm4(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.SM4(key), modes.ECB()).encryptor().update(block)


def _complement(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


@lru_cache(4096)
def _card_key(key_set: KeySet, card_serial: bytes) -> bytes:
    key = key_set.master
    for factor in (key_set.issuer_id, card_serial)[2 - key_set.levels :]:
        key = _sm4(key, factor + _complement(factor))
    return key


def reference_mac(tap: tap_service_pb2.Tap, key_set: KeySet) -> bytes:
    """What the card itself would answer. The tap must be well-formed."""
    key = _card_key(key_set, bytes.fromhex(tap.card_number[-16:].zfill(16)))
    message = (
        tap.amount_fen.to_bytes(4, "big")
        + bytes([tap.transaction_type])
        + tap.terminal_number
        + tap.terminal_sequence.to_bytes(4, "big")
        + bytes.fromhex(str(tap.local_time))
    )
    atc = tap.atc.to_bytes(2, "big")
    if tap.profile == tap_service_pb2.PROFILE_ACCOUNT:
        key = _sm4(key, bytes(6) + atc + bytes(6) + _complement(atc))
        message += atc + bytes([tap.kind]) + tap.line.to_bytes(4, "big") + tap.stop.to_bytes(3, "big")
    padded = message + b"\x80" + bytes(-(len(message) + 1) % 16)
    return Cipher(algorithms.SM4(key), modes.CBC(bytes(16))).encryptor().update(padded)[-16:-12]


# ---- oracle: a tap's form, field by field in the order of precedence ----

U8, U16, U24, U32 = 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF
Fault = tuple[Result, str]


def _seconds_of(local_time: int) -> int | None:
    """When a terminal's time is, in seconds since 1970; None where there is no such time."""
    date, time = divmod(local_time, 1_000_000)
    try:
        when = datetime(
            date // 10_000, date // 100 % 100, date % 100, time // 10_000, time // 100 % 100, time % 100, tzinfo=CHINA
        )
    except (ValueError, OverflowError):
        return None
    return int(when.timestamp()) if 2000 <= when.year <= 2099 else None


FORM: tuple[tuple[str, Result, Callable[[Any], bool]], ...] = (
    ("card_number", Result.MALFORMED_CARD_NUMBER, lambda v: 1 <= len(v) <= 20 and set(v) <= set("0123456789")),
    ("issuer_id", Result.MALFORMED_ISSUER_ID, lambda v: len(v) == 8),
    ("profile", Result.MALFORMED_PROFILE, lambda v: v in (1, 2)),
    ("algorithm_id", Result.MALFORMED_KEY, lambda v: v <= U8),
    ("key_version", Result.MALFORMED_KEY, lambda v: v <= U8),
    ("key_index", Result.MALFORMED_KEY, lambda v: v <= U8),
    ("transaction_type", Result.MALFORMED_TRANSACTION_TYPE, lambda v: v in (6, 9)),
    ("amount_fen", Result.MALFORMED_AMOUNT, lambda v: 0 <= v <= U32),
    ("amount_due_fen", Result.MALFORMED_AMOUNT, lambda v: 0 <= v <= U32),
    ("chip_balance_before_fen", Result.MALFORMED_AMOUNT, lambda v: 0 <= v <= U32),
    ("chip_balance_after_fen", Result.MALFORMED_AMOUNT, lambda v: 0 <= v <= U32),
    ("atc", Result.MALFORMED_ATC, lambda v: v <= U16),
    ("terminal_number", Result.MALFORMED_TERMINAL, lambda v: len(v) == 6),
    ("local_time", Result.MALFORMED_TIME, lambda v: _seconds_of(v) is not None),
    ("local_time", Result.MALFORMED_CLOCK_AHEAD, lambda v: True),  # this one needs to know what time it is: see below
    ("mac", Result.MALFORMED_MAC, lambda v: len(v) == 4),
    ("kind", Result.MALFORMED_KIND, lambda v: v in (1, 2, 3, 4)),
    ("stop", Result.MALFORMED_PLACE, lambda v: v <= U24),
    ("direction", Result.MALFORMED_PLACE, lambda v: v in (0, 1, 2)),
    ("city", Result.MALFORMED_PLACE, lambda v: v <= 9999),
    ("industry", Result.MALFORMED_PLACE, lambda v: v <= 9),
    ("rider", Result.MALFORMED_RIDER, lambda v: 0 <= v <= 7),
)  # fmt: skip


def form_fault(tap: tap_service_pb2.Tap, now_s: int, clock_ahead_s: int = limits.CLOCK_AHEAD_S) -> Fault | None:
    """The first fault of a tap's form: its result and the field that it names."""
    for field, result, well_formed in FORM:
        value = getattr(tap, field)
        if result is Result.MALFORMED_CLOCK_AHEAD:
            seconds = _seconds_of(value)
            if seconds is not None and seconds > now_s + clock_ahead_s:
                return result, field
        elif not well_formed(value):
            return result, field
    return None


# ---- taps ----


def make_tap(key_set: KeySet = KEY_SET, **fields: Any) -> tap_service_pb2.Tap:
    """A tap with the card's own MAC, unless `fields` name a `mac`."""
    values: dict[str, Any] = {
        "card_number": "3104416000000017",
        "issuer_id": key_set.issuer_id,
        "profile": tap_service_pb2.PROFILE_PURSE,
        "algorithm_id": 4,
        "key_version": key_set.key_version,
        "key_index": key_set.key_index,
        "transaction_type": 6,
        "amount_fen": 200,
        "amount_due_fen": 200,
        "atc": 1,
        "terminal_number": bytes.fromhex("112233445566"),
        "terminal_sequence": 1,
        "local_time": local_time_of(START_S),
        "kind": tap_service_pb2.TAP_KIND_SINGLE,
    }
    tap = tap_service_pb2.Tap(**(values | fields))
    if "mac" not in fields:
        tap.mac = reference_mac(tap, key_set)
    return tap


def authorize_request(tap: tap_service_pb2.Tap) -> bytes:
    return tap_service_pb2.AuthorizeTapRequest(tap=tap).SerializeToString()


def submit_request(taps: Iterable[tap_service_pb2.Tap]) -> bytes:
    return tap_service_pb2.SubmitTapsRequest(taps=taps).SerializeToString()


# ---- the core ----


@contextmanager
def limited(**values: int) -> Iterator[None]:
    """Smaller limits, so that what seldom happens happens often."""
    before = {name: getattr(limits, name) for name in values}
    for name, value in values.items():
        setattr(limits, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(limits, name, value)


@contextmanager
def failing(*failpoints: str) -> Iterator[None]:
    """Every step that passes one of these failpoints finds the disk full."""

    def failpoint(name: str) -> None:
        if name in failpoints:
            raise OSError(f"no space left on device ({name})")

    before = {module: module.failpoint for module in (journal_module, memory_module, store)}
    for module in before:
        module.failpoint = failpoint
    try:
        yield
    finally:
        for module, original in before.items():
            module.failpoint = original


class Taps(NamedTuple):
    """What a batch of tap requests got: for each its response, an error, or None where the batch had no room for it."""

    responses: list[bytes | YikatongError | None]
    outcomes: np.ndarray  # of ext.engine.OUTCOME, one for each tap


class Harness:
    """A core whose every step is a call.

    A group is decided (`decide`, `command`), taken (`take`) and committed (`commit`), which may lag behind by some
    groups; or all of it happens at once (`authorize`, `submit`, `ask`)."""

    def __init__(
        self,
        path: Path,
        key_sets: Sequence[KeySet] = KEY_SETS,
        rules: TapRules = TapRules(),  # noqa: B008 (it is frozen)
        **settings: int,
    ) -> None:
        self.path = path
        self.key_sets = list(key_sets)
        self.rules = rules
        self.settings = EngineSettings(**({"cards_max": 100_000, "terminals_max": 10_000} | settings))
        self.now_us = START_S * 1_000_000
        self.directory = DataDirectory(path)
        self._open()

    def _open(self) -> None:
        self.pending: deque[Group | Photograph] = deque()
        self.ready: tuple[Photograph, bytes] | None = None  # a photograph all of whose groups are durable
        self.journal = Journal(self.directory.journal)
        self.memory = Memory(self.directory, self.journal, self.key_sets, self.settings)
        self.engine = self.memory.engine
        self.memory.restore()
        self.memory.tariffs.adopt(self.memory, max(self.now_us, self.journal.last_time_us))

    # ---- life ----

    def close(self) -> None:
        self.memory.close()
        self.directory.close()

    def restart(self) -> None:
        """Lose all that is not on disk, and open the data directory again."""
        self.close()
        self.directory = DataDirectory(self.path)
        self._open()

    def rebuild(self) -> None:
        """What the core does after a failed commit: memory is thrown away and restored."""
        self.memory.close()
        self.directory.reopen()
        self._open()

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # the fault that ended the test is what should be seen
            self.close()

    # ---- groups ----

    @property
    def now_s(self) -> int:
        return self.now_us // 1_000_000

    def pass_time(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)

    def decide(self, requests: list[bytes], stored: list[bool]) -> Taps:
        """Decide a batch of tap requests into the group in the making."""
        batch = run_taps(self.memory, requests, stored, self.now_us, self.rules)
        return Taps(batch.responses, batch.outcomes.copy())

    def command(self, command: Callable[[Memory, Any, int], Any], request: Any) -> Any:
        """Run one of core.commands into the group in the making."""
        return command(self.memory, request, self.now_us)

    def take(self) -> None:
        """Close the group in the making; it waits for its commit."""
        while True:
            first_sequence, count, records, payloads = self.engine.take_group()
            if count:
                self.pending.append(Group(first_sequence, count, records, payloads, self.now_us))
            if not self.memory.late:
                return
            price_again(self.memory, self.now_us)

    def commit(self, keep: int = 0) -> None:
        """Make what waits durable, but for the newest `keep`. Raises CommitFailed; then `rebuild` is due."""
        while len(self.pending) > keep:
            waiting = self.pending[0]
            if isinstance(waiting, Photograph):
                assert self.journal.next_sequence == waiting.sequence + 1
                self.ready = waiting, self.journal.head
            else:
                self.journal.append(waiting)
            self.pending.popleft()

    # ---- checkpoints ----

    def photograph(self) -> None:
        """Take a photograph, which stands in the queue of groups until all before it are durable."""
        self.pending.append(self.memory.photograph())

    def write_photograph(self, *failpoints: str) -> bool:
        """Write the photograph that is ready; False where it failed. To be settled by `settle_photograph`."""
        assert self.ready is not None
        with failing(*failpoints):
            try:
                self.memory.write_checkpoint(*self.ready)
            except CommitFailed:
                return False
        return True

    def settle_photograph(self, written: bool) -> None:
        assert self.ready is not None
        self.memory.settle_checkpoint(self.ready[0], written)
        self.ready = None

    def checkpoint(self, *failpoints: str) -> bool:
        """A whole checkpoint at once."""
        self.photograph()
        self.commit()
        written = self.write_photograph(*failpoints)
        self.settle_photograph(written)
        return written

    # ---- everything at once ----

    def ask(self, command: Callable[[Memory, Any, int], Any], request: Any) -> Any:
        response = self.command(command, request)
        self.take()
        self.commit()
        return response

    def run(self, requests: list[bytes], stored: list[bool]) -> Taps:
        taps = self.decide(requests, stored)
        self.take()
        self.commit()
        return taps

    def authorize(self, tap: tap_service_pb2.Tap) -> tap_service_pb2.TapOutcome:
        (response,) = self.run([authorize_request(tap)], [False]).responses
        return tap_service_pb2.AuthorizeTapResponse.FromString(response).outcome

    def submit(self, *taps: tap_service_pb2.Tap) -> list[tap_service_pb2.TapOutcome]:
        (response,) = self.run([submit_request(taps)], [True]).responses
        return list(tap_service_pb2.SubmitTapsResponse.FromString(response).outcomes)

    def register_card(self, card_number: str, issuer_id: bytes = ISSUER, rider: int = 1, expires: int = 0) -> Any:
        card = card_service_pb2.Card(card_number=card_number, issuer_id=issuer_id, rider=rider, expires=expires)
        request = card_service_pb2.RegisterCardsRequest(cards=[card])
        return self.ask(commands.register_cards, request).registrations[0]

    def register_terminal(self, terminal_number: bytes, operator_id: str = "bus", kind: int = 1) -> Any:
        terminal = terminal_service_pb2.Terminal(terminal_number=terminal_number, operator_id=operator_id, kind=kind)
        request = terminal_service_pb2.RegisterTerminalsRequest(terminals=[terminal])
        return self.ask(commands.register_terminals, request).registrations[0]

    def top_up(self, card_number: str, amount_fen: int, request_id: bytes = b"") -> Any:
        request_id = request_id or self.engine.next_sequence.to_bytes(16, "big")
        request = account_service_pb2.TopUpRequest(request_id=request_id, card_number=card_number, amount_fen=amount_fen)
        return self.ask(commands.top_up, request)

    # ---- reads ----

    def balance(self, card_number: str) -> account_service_pb2.GetBalanceResponse:
        return self.command(commands.get_balance, account_service_pb2.GetBalanceRequest(card_number=card_number))

    def operator_balance_fen(self, operator_id: str) -> int:
        return int(self.engine.balance_fen(self.memory.operator_accounts[operator_id]))

    def record(self, sequence: int) -> Any:
        """A durable journal record (of types.RECORD)."""
        with self.journal.read() as reader:
            found = reader.record(sequence)
            assert found is not None, f"there is no record {sequence}"
            return np.frombuffer(found[1].tobytes(), RECORD)[0]

    def get_tap(self, sequence: int) -> tap_service_pb2.GetTapResponse:
        """A durable tap as TapService.GetTap answers it."""
        response, card_slot, terminal_slot = queries.get_tap(self.journal, sequence, self.memory.tariffs.rules)
        card, terminal, response.operator_id = commands.card_and_terminal(self.memory, card_slot, terminal_slot)
        if card and not response.tap.card_number:
            response.tap.card_number, response.tap.issuer_id = card["card_number"], card["issuer_id"]
        if terminal:
            response.tap.terminal_number = terminal["terminal_number"]
        return response

    def list_transactions(self, card_number: str, page_size: int = 7) -> list[account_service_pb2.Transaction]:
        """All durable transactions of a card, newest first, page by page."""
        slot, start, purses = commands.newest_of_card(self.memory, card_number)
        found: list[account_service_pb2.Transaction] = []
        while True:
            page, token = queries.list_transactions(self.journal, slot, purses, start, page_size)
            found += [transaction for transaction, _ in page]
            if not token:
                return found
            start = queries.parse_transactions_token(token, slot)
