"""IdentityService: the commands of login.py and identity.py run on the writer's thread, signatures and foreign services
beside it. The port for OpenID Connect (core/identity/oidc.py) asks the same object."""

import asyncio
import functools
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.access.callers import Caller, current
from yikatong.core.errors import DeadlineOver
from yikatong.core.identity import assertions, identity, login
from yikatong.core.identity.foreign_codes import CodeRefused, CodeService, CodeServiceUnavailable, ForeignCodes
from yikatong.core.identity.people import Registers
from yikatong.core.identity.portals import Portal
from yikatong.core.identity.visibility import Visibility
from yikatong.core.identity.visibility import read as read_visibility
from yikatong.core.keys.provider import KeyProvider, KeyReference, Purpose
from yikatong.core.memory import Memory
from yikatong.core.types import Result, wire
from yikatong.core.writer import Work
from yikatong.v1 import identity_service_pb2 as protos

ISSUER: Final = "yikatong"
Answer = Callable[[Any, float | None], Awaitable[Message]]
Command = Callable[[login.Rules, Memory, Any, int, Caller], Any]


class IdentityOptions(NamedTuple):
    """What an operator decides about identity."""

    issuer: str = ISSUER
    portals: Mapping[str, Portal] = {}
    visibility: Visibility | None = None  # None: the file that comes with the package
    foreign: ForeignCodes = ForeignCodes()
    levels: Mapping[KeyReference, int] = {}


class Identity:
    """The methods, over one core. `submit` runs work on the writer's thread and returns once its group is durable."""

    def __init__(self, provider: KeyProvider, options: IdentityOptions, submit: Callable[[Work], Awaitable[Any]]) -> None:
        self._submit = submit
        self._foreign = options.foreign
        visibility = options.visibility or read_visibility()
        people = Registers(provider)
        self.rules = login.Rules(provider, people, options.issuer, visibility, options.portals, options.levels)

    async def close(self) -> None:
        """Let go of connections to foreign services."""
        await self._foreign.close()

    async def ask(self, command: Command, message: Any, caller: Caller, deadline: float | None = None) -> Any:
        """Run a command of identity on the writer's thread."""
        rules = self.rules
        return await self._submit(
            Work(command=lambda memory, time_us: command(rules, memory, message, time_us, caller), deadline=deadline)
        )

    def command(self, command: Command) -> Answer:
        """A method that is a command of identity."""

        @functools.wraps(command)
        async def answer(request: Message, deadline: float | None) -> Message:
            response: Message = await self.ask(command, request, current(), deadline)
            return response

        return answer

    async def assertion(self, redeemed: login.Login) -> str:
        """The signed assertion on a login that was redeemed."""
        claims = login.claims(self.rules, redeemed)
        return await asyncio.to_thread(assertions.sign, self.rules.provider, Purpose.ASSERTION, assertions.LOGIN_TYPE, claims)

    async def redeem_ticket(self, message: protos.RedeemTicketRequest, deadline: float | None) -> protos.RedeemTicketResponse:
        """IdentityService.RedeemTicket."""
        done: login.Redeemed = await self.ask(login.redeem, message, current(), deadline)
        response = protos.RedeemTicketResponse(result=wire(done.result), duplicate=done.duplicate, sequence=done.sequence)
        if done.login is not None:
            response.assertion = await self.assertion(done.login)
            response.person.CopyFrom(done.person or protos.ShownPerson())
            response.state = done.login.state
            response.session = login.session(self.rules, done.login)
            response.session_expires_time_us = done.login.expires_time_us
        return response

    async def get_key_set(self, message: protos.GetKeySetRequest, deadline: float | None) -> protos.GetKeySetResponse:
        """IdentityService.GetKeySet."""
        keys = await asyncio.to_thread(assertions.key_set, self.rules.provider)
        return protos.GetKeySetResponse(key_set=json.dumps(keys), issuer=self.rules.issuer)

    async def resolve_code(self, message: protos.ResolveCodeRequest, deadline: float | None) -> protos.ResolveCodeResponse:
        """IdentityService.ResolveCode."""
        caller = current()
        identity.check_resolve(message)
        response: protos.ResolveCodeResponse | None = await self.ask(identity.resolve_own, message, caller, deadline)
        if response is None:
            found = await self._ask_foreign(message.code, deadline)
            if found.result in (Result.FOREIGN_UNAVAILABLE, Result.CODE_KIND_UNKNOWN):  # not remembered: it may come again
                return protos.ResolveCodeResponse(result=wire(found.result), source=found.source)
            answer: protos.ResolveCodeResponse = await self.ask(_with(identity.resolved, found), message, caller, deadline)
            return answer
        return response

    async def verify_identity(
        self, message: protos.VerifyIdentityRequest, deadline: float | None
    ) -> protos.VerifyIdentityResponse:
        """IdentityService.VerifyIdentity."""
        caller = current()
        identity.check_verify(message)
        response: protos.VerifyIdentityResponse | None = await self.ask(identity.verify_own, message, caller, deadline)
        if response is None:
            found = await self._ask_foreign(message.code, deadline)
            if found.result is Result.FOREIGN_UNAVAILABLE:
                return protos.VerifyIdentityResponse(result=wire(found.result))
            answer: protos.VerifyIdentityResponse = await self.ask(_with(identity.verified, found), message, caller, deadline)
            return answer
        return response

    async def _ask_foreign(self, code: str, deadline: float | None) -> identity.Found:
        service: CodeService | None = self._foreign.service_of(code)
        if service is None:
            return identity.Found(Result.CODE_KIND_UNKNOWN)
        timeout_s = limits.FOREIGN_S_DEFAULT * 15 if deadline is None else deadline - time.monotonic()
        if timeout_s <= 0:
            raise DeadlineOver("the deadline had passed before the code's service was asked")
        try:
            citizen_number = await service.resolve(code, timeout_s)
        except CodeRefused:
            return identity.Found(Result.FOREIGN_REFUSED, service.name)
        except CodeServiceUnavailable:
            return identity.Found(Result.FOREIGN_UNAVAILABLE, service.name)
        found: identity.Found = await self._submit(
            Work(
                command=lambda memory, time_us: identity.by_citizen_number(
                    self.rules, memory, service.name, citizen_number, time_us
                ),
                deadline=deadline,
            )
        )
        return found


def _with(command: Callable[..., Any], found: identity.Found) -> Command:
    return lambda rules, memory, message, time_us, caller: command(rules, memory, message, found, time_us, caller)
