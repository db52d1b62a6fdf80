"""IdentityService: the commands of login.py and identity.py run on the writer's thread, signatures and foreign services
beside it. The port for OpenID Connect (core/identity/oidc.py) asks the same object."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError, Message

from yikatong.core import limits
from yikatong.core.access.callers import Caller, current
from yikatong.core.errors import DeadlineOver, InvalidRequest
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
Method = Callable[[bytes, float | None], Awaitable[bytes]]
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

    def methods(self) -> dict[str, Method]:
        """By rpc."""
        return {
            "StartLogin": self._command(protos.StartLoginRequest, login.start),
            "ScanLogin": self._command(protos.ScanLoginRequest, login.scan),
            "AnswerLogin": self._command(protos.AnswerLoginRequest, login.answer),
            "GetLogin": self._command(protos.GetLoginRequest, login.get_login),
            "RedeemTicket": self.redeem_ticket,
            "AuthorizeApp": self._command(protos.AuthorizeAppRequest, login.authorize_app),
            "SetConsent": self._command(protos.SetConsentRequest, login.set_consent),
            "GetKeySet": self.get_key_set,
            "ResolveCode": self.resolve_code,
            "StartCardCheck": self._command(protos.StartCardCheckRequest, identity.start_card_check),
            "VerifyIdentity": self.verify_identity,
        }

    async def ask(self, command: Command, message: Any, caller: Caller, deadline: float | None = None) -> Any:
        """Run a command of identity on the writer's thread."""
        rules = self.rules
        return await self._submit(
            Work(command=lambda memory, time_us: command(rules, memory, message, time_us, caller), deadline=deadline)
        )

    def _command(self, kind: type[Any], command: Command) -> Method:
        async def method(request: bytes, deadline: float | None) -> bytes:
            response: Message = await self.ask(command, _parse(kind, request), current(), deadline)
            return response.SerializeToString()

        return method

    async def assertion(self, redeemed: login.Login) -> str:
        """The signed assertion on a login that was redeemed."""
        claims = login.claims(self.rules, redeemed)
        return await asyncio.to_thread(assertions.sign, self.rules.provider, Purpose.ASSERTION, assertions.LOGIN_TYPE, claims)

    async def redeem_ticket(self, request: bytes, deadline: float | None) -> bytes:
        """IdentityService.RedeemTicket."""
        message = _parse(protos.RedeemTicketRequest, request)
        done: login.Redeemed = await self.ask(login.redeem, message, current(), deadline)
        response = protos.RedeemTicketResponse(result=wire(done.result), duplicate=done.duplicate, sequence=done.sequence)
        if done.login is not None:
            response.assertion = await self.assertion(done.login)
            response.person.CopyFrom(done.person or protos.ShownPerson())
            response.state = done.login.state
            response.session = login.session(self.rules, done.login)
            response.session_expires_time_us = done.login.expires_time_us
        return response.SerializeToString()

    async def get_key_set(self, request: bytes, deadline: float | None) -> bytes:
        """IdentityService.GetKeySet."""
        keys = await asyncio.to_thread(assertions.key_set, self.rules.provider)
        return protos.GetKeySetResponse(key_set=json.dumps(keys), issuer=self.rules.issuer).SerializeToString()

    async def resolve_code(self, request: bytes, deadline: float | None) -> bytes:
        """IdentityService.ResolveCode."""
        message, caller = _parse(protos.ResolveCodeRequest, request), current()
        identity.check_resolve(message)
        response = await self.ask(identity.resolve_own, message, caller, deadline)
        if response is None:
            found = await self._ask_foreign(message.code, deadline)
            if found.result in (Result.FOREIGN_UNAVAILABLE, Result.CODE_KIND_UNKNOWN):  # not remembered: it may come again
                return protos.ResolveCodeResponse(result=wire(found.result), source=found.source).SerializeToString()
            response = await self.ask(_with(identity.resolved, found), message, caller, deadline)
        answer: bytes = response.SerializeToString()
        return answer

    async def verify_identity(self, request: bytes, deadline: float | None) -> bytes:
        """IdentityService.VerifyIdentity."""
        message, caller = _parse(protos.VerifyIdentityRequest, request), current()
        identity.check_verify(message)
        response = await self.ask(identity.verify_own, message, caller, deadline)
        if response is None:
            found = await self._ask_foreign(message.code, deadline)
            if found.result is Result.FOREIGN_UNAVAILABLE:
                return protos.VerifyIdentityResponse(result=wire(found.result)).SerializeToString()
            response = await self.ask(_with(identity.verified, found), message, caller, deadline)
        answer: bytes = response.SerializeToString()
        return answer

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


def _parse(kind: type[Any], request: bytes) -> Any:
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise InvalidRequest("request", "is not protobuf") from error
