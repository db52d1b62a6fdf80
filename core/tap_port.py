"""The tap port: single online taps at wire speed. The hot methods over native gRPC (ext/transport.pyx), same protos and same
answers as the service port; any other method is UNIMPLEMENTED there."""

import asyncio
import functools
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2

from yikatong.core import commands, limits
from yikatong.core.access.callers import LOCAL, Caller, bound_of, serving
from yikatong.core.access.certificates import identity_of_der
from yikatong.core.access.tls import Tls
from yikatong.core.config import Settings
from yikatong.core.errors import ConfigError, Forbidden, NotFound, Overloaded, Unauthenticated, Unavailable, YikatongError
from yikatong.core.messages import parse
from yikatong.core.metrics import Metrics
from yikatong.core.service import SERVICES, Service
from yikatong.core.status import status_of
from yikatong.core.tap import DECODE_ERRORS, decode_error
from yikatong.core.writer import Core, Work
from yikatong.ext.engine import DEADLINE_OVER, KEY_AWAY, NOT_OWN, Calls
from yikatong.v1 import account_service_pb2

try:
    from yikatong.ext import transport
except ImportError:  # built without nghttp2
    transport = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

AUTHORIZE_TAP: Final = ("yikatong.v1.TapService", "AuthorizeTap")
SUBMIT_TAPS: Final = ("yikatong.v1.TapService", "SubmitTaps")
GET_BALANCE: Final = ("yikatong.v1.AccountService", "GetBalance")
HEALTH_CHECK: Final = ("grpc.health.v1.Health", "Check")
TICK_S: Final = 1.0
BACKLOG: Final = 1024
CODE_NAMES: Final = {int(code.value[0]): code.name for code in grpc.StatusCode}
US: Final = 1_000_000


def available() -> bool:
    """Whether this build has the native transport."""
    return transport is not None


def transport_limits(settings: Settings) -> dict[str, int]:
    """The bounds of core/limits.py as the transport takes them."""
    return {
        "message_bytes_max": limits.REQUEST_BYTES_MAX,
        "buffered_bytes_max": limits.TAP_BUFFERED_BYTES_MAX,
        "connection_bytes_max": limits.TAP_CONNECTION_BYTES_MAX,
        "calls_max": limits.TAP_CALLS_MAX,
        "streams_max": limits.TAP_STREAMS_MAX,
        "header_bytes_max": limits.TAP_HEADER_BYTES_MAX,
        "control_frames_max": limits.TAP_CONTROL_FRAMES_MAX,
        "resets_max": limits.TAP_RESETS_MAX,
        "request_us_max": int(limits.TAP_REQUEST_S_MAX * US),
        "response_us_max": int(limits.TAP_RESPONSE_S_MAX * US),
        "idle_us_max": int(limits.TAP_IDLE_S_MAX * US),
        "age_us_max": int(settings.connection_age_s * US),
        "age_grace_us": int(settings.drain_s * US),
        "preface_us_max": int(limits.TAP_PREFACE_S_MAX * US),
        "connections_max": limits.TAP_CONNECTIONS_MAX,
    }


def _failure(error: YikatongError) -> Any:
    """An error as the transport ends a call with it: the status is the service port's, byte for byte."""
    code, status = status_of(error)
    return transport.Failure(int(code.value[0]), status.message, status.SerializeToString())


def _internal_failure() -> Any:
    """What is told of a fault of ours; the log has the rest."""
    return _plain_failure(grpc.StatusCode.INTERNAL, "an internal error; it was logged")


def _plain_failure(code: grpc.StatusCode, message: str) -> Any:
    number = int(code.value[0])
    return transport.Failure(number, message, status_pb2.Status(code=number, message=message).SerializeToString())


class TapPort:
    """Made by `listen`; `port` is the one that was bound."""

    def __init__(
        self, core: Core, metrics: Metrics, settings: Settings, service_port: int, service: Service, tls: Tls | None
    ) -> None:
        self._core = core
        self._access = service.access
        self._serve_elsewhere = service.oversight.serve
        self._tls = tls
        self._metrics = metrics
        self._settings = settings
        self.serving = True
        self.port = 0
        self._socket: socket.socket
        loop = asyncio.get_running_loop()
        elsewhere = f"not on the tap port: this method is on the service port, {settings.url(service_port)}"
        overloaded = Overloaded("too much is waiting; come back later")
        self._transport = transport.Transport(
            loop, transport_limits(settings), self._on_calls, self._on_call, self._on_handled,
            _plain_failure(grpc.StatusCode.UNIMPLEMENTED, elsewhere), _failure(overloaded), self._identify,
        )  # fmt: skip
        self._methods: dict[int, tuple[str, str]] = {}
        self._handlers: dict[int, Callable[[Any], None]] = {}
        self._register(AUTHORIZE_TAP, transport.LANE_AUTHORIZE)
        self._register(SUBMIT_TAPS, transport.LANE_SUBMIT)
        self._handlers[self._register(GET_BALANCE)] = self._get_balance
        self._handlers[self._register(HEALTH_CHECK)] = self._check_health
        self._decode_failures = {
            code: _failure(decode_error(code)) for code in (*DECODE_ERRORS, DEADLINE_OVER, NOT_OWN, KEY_AWAY)
        }
        self._checking: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    def _register(self, method: tuple[str, str], *lane: int) -> int:
        number: int = self._transport.register("/" + "/".join(method), *lane)
        self._methods[number] = method
        return number

    @classmethod
    async def listen(
        cls, core: Core, metrics: Metrics, settings: Settings, service_port: int, service: Service, tls: Tls | None
    ) -> "TapPort":
        """Raises ConfigError when the port cannot be had."""
        made = cls(core, metrics, settings, service_port, service, tls)
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        try:
            made._socket = socket.create_server((settings.host, settings.tap_port), family=family, backlog=BACKLOG)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError("tap_port", f"cannot listen on {settings.url(settings.tap_port)}: {reason}") from error
        made._server = await made._serve(None if tls is None else tls.material.context)
        if tls is not None:
            loop = asyncio.get_running_loop()
            tls.on_change.append(lambda: loop.call_soon_threadsafe(made._on_tls_change))
        metrics.watch_tap_port(made.counts)
        made.port = made._socket.getsockname()[1]
        made._ticking = asyncio.create_task(made._tick())
        return made

    async def _serve(self, context: ssl.SSLContext | None) -> asyncio.Server:
        """Take what comes in on the listening socket."""
        return await asyncio.get_running_loop().create_server(
            self._transport.protocol,
            sock=self._socket.dup(),
            ssl=context,
            ssl_handshake_timeout=limits.TAP_HANDSHAKE_S_MAX if context else None,
            backlog=BACKLOG,
        )

    # ---- who calls ----

    def _on_tls_change(self) -> None:
        """New connections get the new certificate; those that are open are looked at again."""
        self._transport.identify_again()
        task = asyncio.ensure_future(self._serve_anew())
        self._checking.add(task)
        task.add_done_callback(self._checking.discard)

    async def _serve_anew(self) -> None:
        """The socket goes on listening meanwhile; connections that are open stay."""
        assert self._tls is not None
        if self._server is None or not self._server.is_serving():
            return
        before, self._server = self._server, await self._serve(self._tls.material.context)
        before.close()

    def _identify(self, connection: Any) -> Any:
        """The peer of a connection, and which methods it may not call: any but health for who is not known."""
        tls = self._tls
        if tls is None or not tls.is_mutual:
            return transport.Peer(LOCAL)
        try:
            shown = connection.get_extra_info("ssl_object").getpeercert(True)
            identity = identity_of_der(shown) if shown else None
            caller = tls.identify(identity)
        except Unauthenticated as error:
            failure = _failure(error)
            return transport.Peer(None, 0, {number: failure for number in self._methods if self._methods[number] != HEALTH_CHECK})
        assert identity is not None
        return transport.Peer(caller, bound_of(caller), self._forbidden(caller), identity.ends_s)

    def _forbidden(self, caller: Caller) -> dict[int, Any]:
        failures = {}
        for number, (service, method) in self._methods.items():
            if (service, method) != HEALTH_CHECK:
                try:
                    self._access.scope_of(service, method, caller)
                except Forbidden as error:
                    failures[number] = _failure(error)
        return failures

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._transport.tick()
            self._count_refused()

    def _count_refused(self) -> None:
        for number, code, calls in self._transport.take_refused():
            service, method = self._methods.get(number, ("unknown", "unknown"))
            self._metrics.on_call_started(service, method, calls)
            self._metrics.on_calls_handled(service, method, CODE_NAMES[code], [0.0] * calls)

    async def stop(self, grace_s: float) -> None:
        """GOAWAY to all; calls in flight finish, connections close; what is open after the grace is closed."""
        assert self._server is not None
        self._server.close()
        self._socket.close()
        self._transport.drain()
        end = asyncio.get_running_loop().time() + grace_s
        while self._transport.open_connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
            self._transport.tick()
        self._transport.abort()
        if self._ticking is not None:
            self._ticking.cancel()
        self._count_refused()

    def counts(self) -> dict[str, float]:
        """What the transport has counted, and how long it held up the loop at most since it was last asked."""
        return {**self._transport.counts(), "longest_turn_seconds": self._transport.take_longest_turn()}

    # ---- from the transport ----

    def _on_calls(self, calls: Calls) -> None:
        self._metrics.on_call_started(*self._methods[self._transport.method_of(calls)], calls=calls.n)
        try:
            self._core.submit(Work(calls=calls, tag=self.resolve))
        except (Overloaded, Unavailable) as error:
            self._transport.answer(calls, None, _failure(error))
        except Exception:
            log.exception("a batch of taps could not be handed on")
            self._transport.answer(calls, None, _internal_failure())

    def _on_call(self, call: Any) -> None:
        self._metrics.on_call_started(*self._methods[call.method])
        try:
            self._handlers[call.method](call)
        except YikatongError as error:
            call.fail(_failure(error))
        except Exception:
            log.exception("%s/%s failed", *self._methods[call.method])
            call.fail(_internal_failure())

    def _on_handled(self, number: int, code: int, seconds: Any) -> None:
        self._metrics.on_calls_handled(*self._methods[number], CODE_NAMES[code], seconds)

    def resolve(self, work: Work) -> None:
        """On the loop: a batch came back from the core."""
        assert work.calls is not None
        failure = None if work.error is None else _failure(work.error)
        self._transport.answer(work.calls, self._decode_failures, failure)

    # ---- the methods that are not taps ----

    def _get_balance(self, call: Any) -> None:
        if call.caller is not LOCAL:
            task = asyncio.ensure_future(self._serve_as_elsewhere(call))
            self._checking.add(task)
            task.add_done_callback(self._checking.discard)
            return
        message = parse(account_service_pb2.GetBalanceRequest, call.message)
        work = Work(
            command=lambda memory, time_us: commands.get_balance(memory, message, time_us),
            deadline=call.deadline,
            tag=functools.partial(self._resolve_call, call),
        )
        self._core.submit(work)

    async def _serve_as_elsewhere(self, call: Any) -> None:
        """As the service port serves it, with all that stands around its methods."""
        service, method = self._methods[call.method]
        try:
            with serving(call.caller):
                response = await self._serve_elsewhere(f"{service}/{method}", call.message, call.deadline)
        except YikatongError as error:
            call.fail(_failure(error))
        except Exception:
            log.exception("%s/%s failed", service, method)
            call.fail(_internal_failure())
        else:
            call.answer(response)

    @staticmethod
    def _resolve_call(call: Any, work: Work) -> None:
        if work.error is not None:
            call.fail(_failure(work.error))
        else:
            call.answer(work.response.SerializeToString())

    def _check_health(self, call: Any) -> None:
        name = parse(health_pb2.HealthCheckRequest, call.message).service
        if name not in ("", *SERVICES):
            raise NotFound("service", name or "''")
        status = health_pb2.HealthCheckResponse.SERVING if self.serving else health_pb2.HealthCheckResponse.NOT_SERVING
        call.answer(health_pb2.HealthCheckResponse(status=status).SerializeToString())
