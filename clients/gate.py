"""A gate that reads codes: ride codes it checks itself, without network, and keeps their taps for the next upload; online codes
it sends on at once.

That a code was used, and its tap, are on disk before the gate opens: one that lost its power opens to no code twice, unless its
clock was set back by more than the codes' validity meanwhile, and uploads every tap that it opened for."""

import sqlite3
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final, Self

from yikatong.clients.connection import Connection, call
from yikatong.core.cards.ride_code import Checker, RideCode
from yikatong.core.errors import YikatongError
from yikatong.core.sm2 import PublicKey
from yikatong.core.types import Result
from yikatong.v1 import code_service_pb2, tap_service_pb2

UPLOAD_TAPS_MAX: Final = 1_024
STORED_TAPS_MAX: Final = 100_000  # a month without network at a busy gate, some 50 MB
_SCHEMA: Final = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA synchronous = FULL;
BEGIN EXCLUSIVE;
CREATE TABLE IF NOT EXISTS used (digest BLOB PRIMARY KEY, until_s INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tap (sequence INTEGER PRIMARY KEY, tap BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS last (sequence INTEGER NOT NULL);
INSERT INTO last SELECT 0 WHERE NOT EXISTS (SELECT * FROM last);
COMMIT;
"""
_CHINA: Final = timezone(timedelta(hours=8))


class GateOutOfService(YikatongError):
    """What the gate must remember cannot be stored: the disk is full or broken, too many taps wait, or another process has the
    file. It does not open."""


class Gate:
    """One gate, for one thread at a time. `authorities` are the keys that it trusts, by CA index; `denied` are the numbers (of
    e-cards too) on the deny list that it has (Terminal.denied). What it remembers of used codes is bounded by their validity: an
    older one is refused for its age."""

    def __init__(
        self,
        terminal_number: bytes,
        authorities: Mapping[int, PublicKey],
        path: Path | None = None,
        *,
        denied: set[str] | None = None,
        clock: Callable[[], float] = time.time,
        **place: int,
    ) -> None:
        """`path`: the file of what it remembers; without one a gate forgets all at its end. `place`: line, stop, direction, city,
        industry, kind: fields of CodeTap that stand in each tap. Raises GateOutOfService."""
        self._checker = Checker(authorities)
        self._clock = clock
        self._place = {"kind": int(tap_service_pb2.TAP_KIND_SINGLE)} | place
        self.terminal_number = terminal_number
        self.denied = set() if denied is None else denied
        try:
            self._database = sqlite3.connect(path or ":memory:", timeout=0, check_same_thread=False)
            self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise GateOutOfService(f"{path}: {error}") from error

    @property
    def stored(self) -> list[code_service_pb2.CodeTap]:
        """Taps that wait for their answers, oldest first."""
        return self._oldest(-1)

    def _oldest(self, count: int) -> list[code_service_pb2.CodeTap]:
        rows = self._database.execute("SELECT tap FROM tap ORDER BY sequence LIMIT ?", (count,))
        return [code_service_pb2.CodeTap.FromString(tap) for (tap,) in rows]

    def admit(self, code: bytes, amount_fen: int = 0) -> Result:
        """Whether a ride code opens the gate: ACCEPTED, and its tap is kept for upload; or why not. Raises GateOutOfService."""
        now_s = int(self._clock())
        checked = self._checker.check(code, now_s, amount_fen, self._is_used)
        if isinstance(checked, Result):
            return checked
        if checked.part.card_number in self.denied:
            return Result.CARD_DENIED
        try:
            with self._database as database:
                (waiting,) = database.execute("SELECT count(*) FROM tap").fetchone()
                if waiting >= STORED_TAPS_MAX:
                    raise GateOutOfService(f"{waiting} taps wait for their upload")
                database.execute("DELETE FROM used WHERE until_s < ?", (now_s,))
                until_s = checked.generated_s + checked.part.validity_s
                database.execute("INSERT INTO used VALUES (?, ?)", (checked.digest, until_s))
                tap = self._next_tap(code, amount_fen, now_s)
                database.execute("INSERT INTO tap VALUES (?, ?)", (tap.terminal_sequence, tap.SerializeToString()))
        except sqlite3.Error as error:
            raise GateOutOfService(str(error)) from error
        return Result.ACCEPTED

    def _is_used(self, code: RideCode) -> bool:
        return self._database.execute("SELECT 1 FROM used WHERE digest = ?", (code.digest,)).fetchone() is not None

    def _next_tap(self, code: bytes, amount_fen: int, now_s: int) -> code_service_pb2.CodeTap:
        """Within a transaction: its sequence is never given again."""
        (sequence,) = self._database.execute("UPDATE last SET sequence = sequence + 1 RETURNING sequence").fetchone()
        return code_service_pb2.CodeTap(
            code=code, terminal_number=self.terminal_number, terminal_sequence=sequence, amount_fen=amount_fen,
            local_time=int(datetime.fromtimestamp(now_s, _CHINA).strftime("%Y%m%d%H%M%S")), amount_due_fen=amount_fen,
            **self._place,  # type: ignore[arg-type]
        )  # fmt: skip

    def authorize(self, connection: Connection, code: bytes, amount_fen: int = 0) -> tap_service_pb2.TapOutcome:
        """Tap with a code of either kind at once. Raises grpc.RpcError when there was no answer, not even after some attempts, or
        GateOutOfService."""
        try:
            with self._database:
                tap = self._next_tap(code, amount_fen, int(self._clock()))
        except sqlite3.Error as error:
            raise GateOutOfService(str(error)) from error
        request = code_service_pb2.TapByCodeRequest(taps=[tap])
        outcome: tap_service_pb2.TapOutcome = call(connection.codes.TapByCode, request, timeout_s=10, attempts=3).outcomes[0]
        return outcome

    def upload(self, connection: Connection) -> list[tuple[code_service_pb2.CodeTap, tap_service_pb2.TapOutcome]]:
        """Upload what is kept, and forget what was answered. Raises grpc.RpcError when there was no answer; all is kept then."""
        answered: list[tuple[code_service_pb2.CodeTap, tap_service_pb2.TapOutcome]] = []
        while batch := self._oldest(UPLOAD_TAPS_MAX):
            request = code_service_pb2.TapByCodeRequest(taps=batch, stored=True)
            outcomes = call(connection.codes.TapByCode, request, timeout_s=30).outcomes
            answered.extend(zip(batch, outcomes, strict=True))
            with self._database as database:
                database.execute("DELETE FROM tap WHERE sequence <= ?", (batch[-1].terminal_sequence,))
        return answered

    def close(self) -> None:
        """Another process may have the file then."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
