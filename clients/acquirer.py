"""An acquirer's till: payments online where there is a connection, kept in a local file and sent later where there is none.

Every write gets its request id and is stored before it is sent for the first time, and stays until it was answered; so it can be
sent again, by this process or by one after it, without being done twice. What happens to an answer:

    result                                     what follows
    answered, a decline included               done
    UNAVAILABLE, DEADLINE_EXCEEDED, …          sent again, with growing pauses, so many times
    INVALID_ARGUMENT, PERMISSION_DENIED, …     failed: kept with the reason until somebody looks (`failed`, `retry`)
    none by the deadline of an online payment  reversed: the reversal is stored with it, and sent until it is answered

An authorisation and what follows it are sent in the order in which they were stored. One process has the file, one thread uses
it.

    python -m yikatong.clients.acquirer --server HOST:PORT --ca ca.pem --certificate a.pem --key a.key authorize \\
        --queue till.db --merchant shop-1 --category 5814 --card 4416… --fen 1250
"""

import functools
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import click
import grpc

from yikatong.clients.command import connected, name_of, run, say
from yikatong.clients.connection import Connection, Fate, fate_of, retry_delay_s
from yikatong.core.access.callers import Caller
from yikatong.core.errors import InvalidRequest, YikatongError
from yikatong.v1 import access_pb2, result_pb2
from yikatong.v1 import authorization_service_pb2 as pb

METHODS: Final[dict[str, tuple[Any, Any]]] = {
    "Authorize": (pb.AuthorizeRequest, pb.AuthorizeResponse),
    "IncrementAuthorization": (pb.IncrementAuthorizationRequest, pb.IncrementAuthorizationResponse),
    "Capture": (pb.CaptureRequest, pb.CaptureResponse),
    "VoidAuthorization": (pb.VoidAuthorizationRequest, pb.VoidAuthorizationResponse),
    "Refund": (pb.RefundRequest, pb.RefundResponse),
    "ReverseTransaction": (pb.ReverseTransactionRequest, pb.ReverseTransactionResponse),
}

_SCHEMA: Final = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA synchronous = FULL;
BEGIN EXCLUSIVE;
CREATE TABLE IF NOT EXISTS work (
    number INTEGER PRIMARY KEY,
    request_id BLOB NOT NULL UNIQUE,
    chain BLOB NOT NULL,  -- request id of the authorisation that it belongs to
    method TEXT NOT NULL,
    request BLOB NOT NULL,
    online INTEGER NOT NULL,  -- somebody waits for the answer
    state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    response BLOB,
    reason TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS waiting ON work (chain, number) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS answered ON work (number) WHERE state IN ('done', 'reversed');
COMMIT;
"""
_COLUMNS: Final = "request_id, method, request, state, attempts, response, reason"
_FIRST_OF_CHAIN: Final = """
FROM work AS own WHERE state = 'waiting'
AND number = (SELECT min(number) FROM work WHERE state = 'waiting' AND chain = own.chain)
"""


class QueueFull(YikatongError):
    """So much is waiting that nothing more is taken; nothing was stored. Transient."""


class QueueInUse(YikatongError):
    """Another process has the file."""


class AnswerUnknown(YikatongError):
    """There was no answer by the deadline. The payment counts as not made; its reversal is on its way."""


class Failed(YikatongError):
    """The request was refused as such and will never be done; the message says why."""


class RetryRules(NamedTuple):
    """How unsent work is tried again. Pauses double, with jitter of a half up or down."""

    attempts_max: int = 2_000  # with pauses of a minute, more than a day
    pause_s: float = 0.2
    pause_s_max: float = 60.0
    call_s: float = 10.0  # for one attempt
    queue_max: int = 100_000  # requests that wait: a busy till's week
    kept_max: int = 10_000  # answered requests that are remembered


class Kept(NamedTuple):
    """One request in the file: waiting, done (answered), failed (refused; `reason`), or reversed (see AnswerUnknown)."""

    request_id: bytes
    method: str
    request: Any
    state: str
    attempts: int
    response: Any  # None until it was answered
    reason: str


class Acquirer:
    """The till of one acquirer. Raises QueueInUse when the file is open elsewhere.

    Online requests that a killed process was still waiting for are reversed: who asked for them never got an answer."""

    def __init__(
        self,
        connection: Connection,
        acquirer_id: str,
        path: Path,
        rules: RetryRules = RetryRules(),  # noqa: B008 (it is immutable)
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.acquirer_id = acquirer_id
        self._connection = connection
        self._rules = rules
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._unanswered = 0  # attempts in a row
        self._quiet_until = 0.0
        self._database = sqlite3.connect(path, timeout=0)
        try:
            self._database.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            self._database.close()
            if "locked" in str(error):
                raise QueueInUse(f"{path}: another process has it") from error
            raise
        abandoned = self._database.execute("SELECT request_id FROM work WHERE state = 'waiting' AND online").fetchall()
        for (request_id,) in abandoned:
            self._reverse(request_id, "the process ended before there was an answer")

    # ---- online: somebody waits ----

    def authorize(
        self,
        merchant_id: str,
        merchant_category: str,
        card_number: str,
        amount_fen: int,
        *,
        timeout_s: int = 0,
        legs: Sequence[pb.Leg] = (),
        deadline_s: float = 10.0,
        request_id: bytes = b"",
    ) -> pb.AuthorizeResponse:
        """Hold an amount now. A decline is an answer. Raises AnswerUnknown, Failed or QueueFull.

        With a `request_id` of one's own, asking again gives what was answered, without asking the server."""
        request = self._authorize_request(
            merchant_id, merchant_category, card_number, amount_fen, request_id, timeout_s=timeout_s, legs=legs
        )
        return self._ask("Authorize", request, request.request_id, deadline_s)  # type: ignore[no-any-return]

    def increment(
        self, authorization: bytes, amount_fen: int, *, timeout_s: int = 0, deadline_s: float = 10.0, request_id: bytes = b""
    ) -> pb.IncrementAuthorizationResponse:
        """Hold more, for the authorisation with this request id. Raises as `authorize`."""
        request = pb.IncrementAuthorizationRequest(
            request_id=request_id or secrets.token_bytes(16),
            acquirer_id=self.acquirer_id,
            authorize_request_id=authorization,
            amount_fen=amount_fen,
            timeout_s=timeout_s,
        )
        return self._ask("IncrementAuthorization", request, authorization, deadline_s)  # type: ignore[no-any-return]

    # ---- stored: sent by `send` ----

    def capture(self, authorization: bytes, amount_fen: int, *, final: bool = False, request_id: bytes = b"") -> bytes:
        """Store a capture for the authorisation with this request id; returns the capture's own. Raises QueueFull."""
        request = pb.CaptureRequest(amount_fen=amount_fen, final=final)
        return self._store_for("Capture", request, authorization, request_id)

    def void(self, authorization: bytes, *, request_id: bytes = b"") -> bytes:
        """As `capture`, to let the hold go."""
        return self._store_for("VoidAuthorization", pb.VoidAuthorizationRequest(), authorization, request_id)

    def refund(self, authorization: bytes, amount_fen: int, *, legs: Sequence[pb.Leg] = (), request_id: bytes = b"") -> bytes:
        """As `capture`, to give money back."""
        return self._store_for("Refund", pb.RefundRequest(amount_fen=amount_fen, legs=legs), authorization, request_id)

    def advise(
        self, merchant_id: str, merchant_category: str, card_number: str, amount_fen: int, *, request_id: bytes = b""
    ) -> bytes:
        """Store a payment that was made where no connection was: an authorisation marked offline, and its capture. Returns the
        authorisation's request id. Raises QueueFull."""
        request = self._authorize_request(merchant_id, merchant_category, card_number, amount_fen, request_id, offline=True)
        own: bytes = request.request_id
        capture = pb.CaptureRequest(
            request_id=bytes([own[0] ^ 0x80]) + own[1:],  # made from it, so that advising again stores nothing new
            acquirer_id=self.acquirer_id,
            authorize_request_id=own,
            amount_fen=amount_fen,
            final=True,
        )
        with self._database:
            self._store("Authorize", request, own, online=False)
            self._store("Capture", capture, own, online=False)
        return own

    # ---- sending ----

    def send(self) -> int:
        """Send what is due, each chain in its order; returns how many requests still wait. While nothing gets through, one
        request in each pause finds that out for all."""
        while not self._is_ahead(self._quiet_until) and (due := self._next_due()) is not None:
            request_id, method, raw = due
            self._attempt(request_id, method, METHODS[method][0].FromString(raw), self._rules.call_s)
        return self.waiting()

    def drain(self, deadline_s: float) -> int:
        """Send until nothing waits or the time is over; returns how many requests still wait."""
        end = self._clock() + deadline_s
        while (left := self.send()) and (left_s := end - self._clock()) > 0:
            pause_s = max(self._next_due_s(), self._quiet_until) - self._clock()
            self._sleep(min(max(pause_s, 0.0), self._rules.pause_s_max, left_s))
        return left

    # ---- looking ----

    def waiting(self) -> int:
        """How many requests wait for their answer."""
        (n,) = self._database.execute("SELECT count(*) FROM work WHERE state = 'waiting'").fetchone()
        return int(n)

    def find(self, request_id: bytes) -> Kept | None:
        """A request in the file."""
        row = self._database.execute(f"SELECT {_COLUMNS} FROM work WHERE request_id = ?", (request_id,)).fetchone()
        return None if row is None else _kept(row)

    def failed(self) -> list[Kept]:
        """What was refused, or never answered, and waits for somebody to look at it; oldest first."""
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM work WHERE state = 'failed' ORDER BY number")
        return [_kept(row) for row in rows]

    def retry(self, request_id: bytes) -> None:
        """Let a failed request wait again, as at its first time."""
        with self._database:
            self._database.execute(
                "UPDATE work SET state = 'waiting', online = 0, attempts = 0, due = 0, reason = '' "
                "WHERE request_id = ? AND state = 'failed'",
                (request_id,),
            )

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- storing ----

    def _authorize_request(
        self, merchant_id: str, merchant_category: str, card_number: str, amount_fen: int, request_id: bytes, **fields: Any
    ) -> pb.AuthorizeRequest:
        return pb.AuthorizeRequest(
            request_id=request_id or secrets.token_bytes(16),
            acquirer_id=self.acquirer_id,
            merchant_id=merchant_id,
            merchant_category=merchant_category,
            card_number=card_number,
            amount_fen=amount_fen,
            **fields,
        )

    def _store_for(self, method: str, request: Any, authorization: bytes, request_id: bytes) -> bytes:
        request.request_id = request_id or secrets.token_bytes(16)
        request.acquirer_id = self.acquirer_id
        request.authorize_request_id = authorization
        with self._database:
            self._store(method, request, authorization, online=False)
        return bytes(request.request_id)

    def _store(self, method: str, request: Any, chain: bytes, *, online: bool) -> None:
        """Inside a transaction. A request that is in the file already stays as it is; with other content it is a mistake."""
        raw = request.SerializeToString(deterministic=True)
        known = self._database.execute("SELECT method, request FROM work WHERE request_id = ?", (request.request_id,)).fetchone()
        if known is not None:
            if known != (method, raw):
                raise ValueError(f"request id {request.request_id.hex()} was used for something else")
            return
        if self.waiting() >= self._rules.queue_max:
            raise QueueFull(f"{self._rules.queue_max} requests wait to be sent")
        self._database.execute(
            "INSERT INTO work (request_id, chain, method, request, online) VALUES (?, ?, ?, ?, ?)",
            (request.request_id, chain, method, raw, online),
        )

    def _reverse(self, original: bytes, reason: str) -> None:
        """Give up a request whose answer is unknown, and store its reversal in the same breath, in its place in the queue: what
        was stored behind it comes after the reversal."""
        number, chain = self._database.execute("SELECT number, chain FROM work WHERE request_id = ?", (original,)).fetchone()
        reversal = pb.ReverseTransactionRequest(
            request_id=secrets.token_bytes(16), acquirer_id=self.acquirer_id, original_request_id=original
        )
        with self._database:
            self._database.execute(
                "UPDATE work SET state = 'reversed', reason = ?, number = (SELECT max(number) + 1 FROM work) WHERE number = ?",
                (reason, number),
            )
            self._database.execute(
                "INSERT INTO work (number, request_id, chain, method, request, online) "
                "VALUES (?, ?, ?, 'ReverseTransaction', ?, 0)",
                (number, reversal.request_id, chain, reversal.SerializeToString(deterministic=True)),
            )

    def _forget(self) -> None:
        """Drop the oldest of what was answered. The server remembers it longer."""
        self._database.execute(
            "DELETE FROM work WHERE state IN ('done', 'reversed') AND number <= "
            "(SELECT number FROM work WHERE state IN ('done', 'reversed') ORDER BY number DESC LIMIT 1 OFFSET ?)",
            (self._rules.kept_max,),
        )

    # ---- attempts ----

    def _ask(self, method: str, request: Any, chain: bytes, deadline_s: float) -> Any:
        """Store, send, and send again until there is an answer or the deadline is over."""
        end = self._clock() + deadline_s
        with self._database:
            self._store(method, request, chain, online=True)
        while True:
            kept = self.find(request.request_id)
            assert kept is not None
            if kept.state == "done":
                return kept.response
            if kept.state == "failed":
                raise Failed(kept.reason)
            if kept.state == "reversed":
                raise AnswerUnknown(kept.reason)
            left_s = end - self._clock()
            if left_s <= 0:
                self._reverse(request.request_id, f"there was no answer within {deadline_s:g} s")
                continue
            pause_s = self._attempt(request.request_id, method, request, min(self._rules.call_s, left_s))
            if pause_s:
                self._sleep(min(pause_s, max(end - self._clock(), 0)))

    def _attempt(self, request_id: bytes, method: str, request: Any, call_s: float) -> float:
        """Send one request once, and store what came of it; returns the pause before the next attempt, 0 when there is none."""
        with self._database:
            self._database.execute("UPDATE work SET attempts = attempts + 1 WHERE request_id = ?", (request_id,))
        try:
            response = getattr(self._connection.authorizations, method)(request, timeout=call_s)
        except grpc.RpcError as error:
            return self._on_error(request_id, error)
        self._unanswered, self._quiet_until = 0, 0.0
        with self._database:
            self._database.execute(
                "UPDATE work SET state = 'done', reason = '', response = ? WHERE request_id = ?",
                (response.SerializeToString(), request_id),
            )
            self._forget()
        return 0.0

    def _on_error(self, request_id: bytes, error: grpc.RpcError) -> float:
        attempts, online = self._database.execute(
            "SELECT attempts, online FROM work WHERE request_id = ?", (request_id,)
        ).fetchone()
        transient = fate_of(error) is not Fate.REFUSED  # done or not: the next attempt will tell
        reason = f"{error.code().name}: {error.details()}"
        if not transient or (attempts >= self._rules.attempts_max and not online):  # online, the deadline is the bound
            if transient:
                reason = f"no answer in {attempts} attempts; the last: {reason}"
            with self._database:
                self._database.execute("UPDATE work SET state = 'failed', reason = ? WHERE request_id = ?", (reason, request_id))
            return 0.0
        pause_s = max(retry_delay_s(error) or 0.0, self._pause_s(attempts)) * (0.5 + self._chance())
        self._unanswered += 1
        self._quiet_until = self._clock() + self._pause_s(self._unanswered) * (0.5 + self._chance())
        with self._database:
            self._database.execute(
                "UPDATE work SET due = ?, reason = ? WHERE request_id = ?", (self._clock() + pause_s, reason, request_id)
            )
        return float(pause_s)

    def _pause_s(self, attempts: int) -> float:
        return min(self._rules.pause_s * 2.0 ** min(attempts - 1, 60), self._rules.pause_s_max)

    def _is_ahead(self, time_s: float) -> bool:
        """Whether a pause lasts until then. What is further ahead than any pause is left from before the clock was set back."""
        return 0 < time_s - self._clock() <= 10 * self._rules.pause_s_max

    def _next_due(self) -> tuple[bytes, str, bytes] | None:
        """The oldest request that may be sent now: the first of its chain that waits; see `_is_ahead`."""
        now = self._clock()
        row = self._database.execute(
            f"SELECT request_id, method, request {_FIRST_OF_CHAIN} AND (due <= ? OR due > ?) ORDER BY number LIMIT 1",
            (now, now + 10 * self._rules.pause_s_max),
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def _next_due_s(self) -> float:
        """When the next request may be sent."""
        (due,) = self._database.execute(f"SELECT min(due) {_FIRST_OF_CHAIN}").fetchone()
        return float(due or 0.0)


def _kept(row: tuple[Any, ...]) -> Kept:
    request_id, method, raw, state, attempts, response, reason = row
    request_type, response_type = METHODS[method]
    answer = None if response is None else response_type.FromString(response)
    return Kept(request_id, method, request_type.FromString(raw), state, attempts, answer, reason)


# ---- on the command line ----


def _request_id(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 16:
        raise InvalidRequest("authorization", "32 hexadecimal digits are wanted")
    return raw


def _told(kept: Kept) -> dict[str, Any]:
    told: dict[str, Any] = {"request_id": kept.request_id.hex(), "method": kept.method, "state": kept.state}
    if kept.response is not None:
        told["result"] = result_pb2.Result.Name(kept.response.result).removeprefix("RESULT_")
    return told | ({"reason": kept.reason} if kept.reason else {})


@click.group()
def acquirer() -> None:
    """A till: payments, and what is still to be sent of them."""


def _till(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its `till`."""

    @click.option("--queue", type=click.Path(path_type=Path), required=True, help="the till's own file")
    @connected
    @functools.wraps(command)
    def wrapped(connection: Connection, caller: Caller, queue: Path, **rest: Any) -> None:
        with Acquirer(connection, name_of(caller, access_pb2.ROLE_ACQUIRER, "acquirer"), queue) as till:
            command(till=till, **rest)

    return wrapped


@acquirer.command()
@click.option("--merchant", required=True, help="id of the merchant")
@click.option("--category", required=True, help="its category code, 4 digits")
@click.option("--card", required=True, help="card number")
@click.option("--fen", type=int, required=True, help="amount")
@_till
def authorize(till: Acquirer, merchant: str, category: str, card: str, fen: int) -> None:
    """Hold an amount now; the answer names the authorisation for what follows."""
    request_id = secrets.token_bytes(16)
    response = till.authorize(merchant, category, card, fen, request_id=request_id)
    say({"authorization": request_id.hex(), "result": result_pb2.Result.Name(response.result).removeprefix("RESULT_"),
         "available_after_fen": response.available_after_fen})  # fmt: skip


def _follow_up(till: Acquirer, request_id: bytes) -> None:
    left = till.drain(10)
    kept = till.find(request_id)
    assert kept is not None
    say(_told(kept) | {"waiting": left})


@acquirer.command()
@click.argument("authorization")
@click.option("--fen", type=int, required=True, help="amount")
@click.option("--final", is_flag=True, help="let the rest of the hold go")
@_till
def capture(till: Acquirer, authorization: str, fen: int, final: bool) -> None:
    """Take what is on hold, or a part of it; sent at once where there is a connection."""
    _follow_up(till, till.capture(_request_id(authorization), fen, final=final))


@acquirer.command()
@click.argument("authorization")
@_till
def void(till: Acquirer, authorization: str) -> None:
    """Let a hold go."""
    _follow_up(till, till.void(_request_id(authorization)))


@acquirer.command()
@click.argument("authorization")
@click.option("--fen", type=int, required=True, help="amount")
@_till
def refund(till: Acquirer, authorization: str, fen: int) -> None:
    """Give captured money back."""
    _follow_up(till, till.refund(_request_id(authorization), fen))


@acquirer.command()
@click.option("--seconds", type=click.FloatRange(0, 86_400), default=60.0, show_default=True, help="how long to try")
@_till
def send(till: Acquirer, seconds: float) -> None:
    """Send what waits, and tell what failed."""
    left = till.drain(seconds)
    for kept in till.failed():
        say(_told(kept))
    say({"waiting": left})


if __name__ == "__main__":
    run(acquirer)
