"""Codes of other issuers: the province's service code, the health code, the medical insurance code, each asked of its service.

A TOML file that only its owner may read (setting `code_services`):

    [[code_service]]
    name = "health-code"              # what ResolveCode calls the source
    prefix = "HC1:"                   # codes that begin so are its; the longest prefix wins
    url = "https://…/resolve"
    key_id = "yikatong-1"             # which secret, for its rotation
    secret = "…"                      # 32 bytes or more, hex, shared with the service
    timeout_s = 2.0
    calls_max = 32                    # at once

The contract (*chosen*). We POST JSON `{"code": …, "request_id": 32 hex digits, "time_ms": since 1970}`; the service answers 200
with `{"request_id": the same, "status": "ok", "citizen_number": …}` or `{"request_id": …, "status": "refused"}`. Each body is
signed: `X-Key-Id`, and `X-Signature`: HMAC-SM3 (GB/T 15852.2), hex, over "request" or "answer", a zero byte, the request id in
ASCII, a zero byte, and the body. A service must refuse times that are off by more than five minutes and request ids it has seen.
An answer that is not signed so is none: whoever could make one up could be anybody."""

import asyncio
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import hmac as keyed

from yikatong.core import limits
from yikatong.core.errors import ConfigError, YikatongError
from yikatong.core.toml_file import read_secret_toml

SECRET_BYTES_MIN: Final = 32
OK, REFUSED = "ok", "refused"
_NAME: Final = re.compile(r"[a-z0-9-]{1,32}")
_FIELDS: Final = {"name", "prefix", "url", "key_id", "secret", "timeout_s", "calls_max"}


class CodeRefused(YikatongError):
    """The service says that the code is not good."""


class CodeServiceUnavailable(YikatongError):
    """The service does not answer, answers nonsense, or is being left alone. Transient."""


class CodeService(Protocol):
    """An adapter to one issuer of codes."""

    name: str

    def recognises(self, code: str) -> int:
        """How much of a code's beginning tells that it is of this issuer, in characters; 0: it is not."""

    async def resolve(self, code: str, timeout_s: float) -> str:
        """The citizen number behind a code. Raises CodeRefused and CodeServiceUnavailable."""

    async def close(self) -> None:
        """Let go of connections."""


class Breaker:
    """Leaves a service alone for a while after it has failed so often in a row; then one call tries it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0
        self._trying = False

    def enter(self) -> bool:
        """Whether a call may be made now; then `leave` must follow."""
        if self._failures < limits.FOREIGN_FAILURES_MAX:
            return True
        if self._trying or self._clock() < self._closed_until:
            return False
        self._trying = True
        return True

    def leave(self, *, answered: bool | None) -> None:
        """The call is over; None: it was given up, which says nothing of the service."""
        self._trying = False
        if answered is None:
            return
        self._failures = 0 if answered else self._failures + 1
        if self._failures >= limits.FOREIGN_FAILURES_MAX:
            self._closed_until = self._clock() + limits.FOREIGN_PAUSE_S


class ServiceEntry(NamedTuple):
    """One [[code_service]]."""

    name: str
    prefix: str
    url: str
    key_id: str
    secret: bytes
    timeout_s: float = limits.FOREIGN_S_DEFAULT
    calls_max: int = limits.FOREIGN_CALLS_MAX

    def __repr__(self) -> str:
        """Without the secret."""
        return f"ServiceEntry({self.name})"


def signature(secret: bytes, kind: str, request_id: str, body: bytes) -> str:
    """Of a request or an answer, as the contract says."""
    mac = keyed.HMAC(secret, hashes.SM3())
    mac.update(f"{kind}\0{request_id}\0".encode() + body)
    return mac.finalize().hex()


class HttpCodeService:
    """The adapter over HTTP that the contract above describes."""

    def __init__(self, entry: ServiceEntry, *, breaker: Breaker | None = None) -> None:
        self.name = entry.name
        self._entry = entry
        self._breaker = breaker or Breaker()
        self._calls = 0
        self._session: Any = None

    def recognises(self, code: str) -> int:
        return len(self._entry.prefix) if code.startswith(self._entry.prefix) else 0

    async def resolve(self, code: str, timeout_s: float) -> str:
        if self._calls >= self._entry.calls_max:
            raise CodeServiceUnavailable(f"{self.name} has {self._entry.calls_max} calls under way")
        if not self._breaker.enter():
            raise CodeServiceUnavailable(f"{self.name} has failed so often that it is left alone for a while")
        self._calls += 1
        answered: bool | None = None
        try:
            answer = await asyncio.wait_for(self._call(code), min(timeout_s, self._entry.timeout_s))
            answered = True
        except (TimeoutError, OSError, CodeServiceUnavailable) as error:
            answered = False
            # What the library says may name the address with the code in it, so it is not passed on.
            raise CodeServiceUnavailable(f"{self.name} does not answer as agreed ({type(error).__name__})") from None
        finally:
            self._calls -= 1
            self._breaker.leave(answered=answered)
        if answer["status"] == REFUSED:
            raise CodeRefused(f"{self.name} does not accept the code")
        return str(answer["citizen_number"])

    async def _call(self, code: str) -> dict[str, Any]:
        import aiohttp  # only where there is such a service

        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        request_id = secrets.token_hex(16)
        asked = {"code": code, "request_id": request_id, "time_ms": int(time.time() * 1000)}
        body = json.dumps(asked, ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            "X-Key-Id": self._entry.key_id,
            "X-Signature": signature(self._entry.secret, "request", request_id, body),
        }
        try:
            async with self._session.post(self._entry.url, data=body, headers=headers, allow_redirects=False) as response:
                status, signed = response.status, response.headers.get("X-Signature", "")
                content = await response.content.read(limits.FOREIGN_BYTES_MAX + 1)
                while len(content) <= limits.FOREIGN_BYTES_MAX and (more := await response.content.read(4_096)):
                    content += more
        except aiohttp.ClientError as error:
            raise CodeServiceUnavailable(type(error).__name__) from None
        right = signature(self._entry.secret, "answer", request_id, content)
        if status != 200 or len(content) > limits.FOREIGN_BYTES_MAX or not hmac.compare_digest(right, signed):
            raise CodeServiceUnavailable("an answer that is not as agreed")
        return _read_answer(content, request_id)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _read_answer(content: bytes, request_id: str) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("request_id") != request_id:
        raise CodeServiceUnavailable("an answer to something else")
    number = answer.get("citizen_number")
    if answer.get("status") != REFUSED and not (answer.get("status") == OK and isinstance(number, str) and number):
        raise CodeServiceUnavailable("an answer that says nothing")
    return answer


class ForeignCodes:
    """All services. None: no code but our own is known."""

    def __init__(self, services: Sequence[CodeService] = ()) -> None:
        self._services = tuple(services)

    def service_of(self, code: str) -> CodeService | None:
        """The service that a code is of: the one that recognises most of it."""
        found = max(self._services, key=lambda service: service.recognises(code), default=None)
        return found if found is not None and found.recognises(code) else None

    async def close(self) -> None:
        for service in self._services:
            await service.close()


def read(path: Path) -> list[ServiceEntry]:
    """The services of a file. Raises ConfigError naming the service and field; never shows a secret."""
    document = read_secret_toml(path)
    entries = document.get("code_service")
    if set(document) != {"code_service"} or not isinstance(entries, list):
        raise ConfigError(str(path), "some [[code_service]] and nothing else are wanted")
    services: list[ServiceEntry] = []
    for i, entry in enumerate(entries):
        service = _entry(entry, f"{path}: code_service[{i}]")
        for other in services:
            if other.name == service.name or other.prefix == service.prefix:
                raise ConfigError(f"{path}: code_service[{i}]", "its name or prefix stands there twice")
        services.append(service)
    return services


def _entry(entry: Any, place: str) -> ServiceEntry:
    if not isinstance(entry, dict) or not _FIELDS - {"timeout_s", "calls_max"} <= set(entry) <= _FIELDS:
        raise ConfigError(place, f"{', '.join(sorted(_FIELDS))} and nothing else is wanted")
    for name in ("name", "prefix", "url", "key_id", "secret"):
        if not isinstance(entry[name], str) or not entry[name]:
            raise ConfigError(f"{place}.{name}", "a text is wanted")
    if not _NAME.fullmatch(entry["name"]) or entry["name"] == "e-card":
        raise ConfigError(f"{place}.name", "1 to 32 lower-case letters, digits and hyphens are wanted, and not e-card")
    local = re.match(r"http://(127\.0\.0\.1|localhost|\[::1\])[:/]", entry["url"])
    if not entry["url"].startswith("https://") and not local:
        raise ConfigError(f"{place}.url", "an https URL is wanted (http on a loopback address)")
    try:
        secret = bytes.fromhex(entry["secret"])
    except ValueError:
        secret = b""
    if len(secret) < SECRET_BYTES_MIN:
        raise ConfigError(f"{place}.secret", f"{2 * SECRET_BYTES_MIN} hexadecimal digits or more are wanted")
    timeout_s, calls_max = entry.get("timeout_s", limits.FOREIGN_S_DEFAULT), entry.get("calls_max", limits.FOREIGN_CALLS_MAX)
    if type(timeout_s) not in (int, float) or not 0 < timeout_s <= 30:
        raise ConfigError(f"{place}.timeout_s", "more than 0 and up to 30 seconds are wanted")
    if type(calls_max) is not int or not 1 <= calls_max <= limits.CALLS_AT_ONCE_MAX:
        raise ConfigError(f"{place}.calls_max", f"1 to {limits.CALLS_AT_ONCE_MAX} is wanted")
    return ServiceEntry(entry["name"], entry["prefix"], entry["url"], entry["key_id"], secret, float(timeout_s), calls_max)
