"""The service port: every method over grpc.aio, as bytes in and bytes out.

A service is a file of core/services. Messages of the hot methods go to the engine unread; the others are parsed, run on the
writer's thread in order with the taps, or, where they read the journal, beside it."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from yikatong.core import limits
from yikatong.core.access.callers import LOCAL, Caller, serving
from yikatong.core.access.certificates import identity_of_pem
from yikatong.core.access.tls import Tls
from yikatong.core.errors import DeadlineOver, Overloaded, YikatongError
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.metrics import Metrics
from yikatong.core.services import (
    account,
    approval,
    audit,
    authorization,
    card,
    card_life,
    clearing,
    code,
    deny_list,
    e_card,
    exception,
    export,
    identity,
    issuance,
    load,
    lockout,
    merchant,
    person,
    purse,
    reconciliation,
    settlement,
    tap,
    terminal,
)
from yikatong.core.services.host import Host, HostOptions, on_wire
from yikatong.core.services.resolvers import RESOLVERS
from yikatong.core.status import status_of
from yikatong.core.writer import Core, Work

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

TABLES: Final = (
    account,
    approval,
    audit,
    authorization,
    card,
    card_life,
    clearing,
    code,
    deny_list,
    e_card,
    exception,
    export,
    identity,
    issuance,
    load,
    lockout,
    merchant,
    person,
    purse,
    reconciliation,
    settlement,
    tap,
    terminal,
)
DESCRIPTORS: Final = [table.SERVICE for table in TABLES]
SERVICES: Final = [descriptor.full_name for descriptor in DESCRIPTORS]
"""Full names of all services."""


def deliver_to(loop: asyncio.AbstractEventLoop) -> Callable[[list[Work]], None]:
    """A `deliver` for Core: finished work resolves the future in its tag, or is given to the function there; a whole group in
    one turn of the loop."""

    def resolve(works: list[Work]) -> None:
        for work in works:
            if not isinstance(work.tag, asyncio.Future):
                work.tag(work)
                continue
            if work.tag.done():  # the caller has gone
                continue
            if work.error is not None:
                work.tag.set_exception(work.error)
            else:
                work.tag.set_result(work.response)

    return lambda works: _call_soon(loop, resolve, works)


def _call_soon(loop: asyncio.AbstractEventLoop, resolve: Callable[[list[Work]], None], works: list[Work]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(resolve, works)


class Service:
    """The methods, over one core."""

    def __init__(
        self,
        core: Core,
        metrics: Metrics,
        provider: KeyProvider | None = None,
        options: HostOptions = HostOptions(),  # noqa: B008 (it is immutable)
        *,
        tls: Tls | None = None,
    ) -> None:
        """Without `provider` there are no loads, persons, codes and assertions; without `tls` whoever calls is the machine's
        own operator."""
        host = Host(core, metrics, provider, options, DESCRIPTORS, RESOLVERS)
        self._metrics = metrics
        self._tls = tls
        self._calls = 0
        self.host = host
        self.access = host.access
        self.oversight = host.oversight
        self.identity = host.identity
        self.methods = {table.SERVICE.full_name: on_wire(table.SERVICE, table.methods(host)) for table in TABLES}
        self.oversight.watch(self.methods)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc.aio server registers. Requests and responses stay bytes."""
        return [
            grpc.method_handlers_generic_handler(
                service,
                {name: grpc.unary_unary_rpc_method_handler(functools.partial(self._serve, service, name)) for name in methods},
            )
            for service, methods in self.methods.items()
        ]

    async def _serve(self, service: str, name: str, request: bytes, context: Context) -> bytes:
        """One call: count it, bound it, run it, and turn an error into its status."""
        self._metrics.on_call_started(service, name)
        begun = time.perf_counter()
        code = grpc.StatusCode.OK
        self._calls += 1
        try:
            remaining_s = context.time_remaining()
            if remaining_s is not None and remaining_s <= 0:
                raise DeadlineOver("the deadline had passed before the work began")
            if self._calls > limits.CALLS_AT_ONCE_MAX:
                raise Overloaded(f"more than {limits.CALLS_AT_ONCE_MAX} calls at once")
            deadline = None if remaining_s is None else time.monotonic() + remaining_s
            caller = self._caller_of(context)
            with serving(caller):
                return await self.oversight.serve(f"{service}/{name}", request, deadline)
        except YikatongError as error:
            code, status = status_of(error)
            await context.abort(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
            raise AssertionError("abort always raises") from error
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            log.exception("%s/%s failed", service, name)
            await context.abort(code, "an internal error; it was logged")
            raise AssertionError("abort always raises") from None
        finally:
            self._calls -= 1
            self._metrics.on_call_handled(service, name, code.name, time.perf_counter() - begun)

    def _caller_of(self, context: Context) -> Caller:
        """Who makes a call. Raises Unauthenticated."""
        if self._tls is None or not self._tls.is_mutual:
            return LOCAL
        shown = list(context.auth_context().get("x509_pem_cert", ()))
        return self._tls.identify(identity_of_pem(bytes(shown[0])) if shown else None)
