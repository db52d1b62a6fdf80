"""Who calls: the identity in a caller's certificate, and the call that is being served.

An identity is a URI, `yikatong:<role>:<name>` or `yikatong:<role>:<name>:<district>`, in the certificate's subject alternative
names. Without TLS (loopback only) whoever can reach the port is the machine's own operator."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from yikatong.core.errors import InvalidRequest
from yikatong.ext.engine import bound_to_operator, bound_to_terminal
from yikatong.v1 import access_pb2

SCHEME: Final = "yikatong"
ROLES: Final = {name.removeprefix("ROLE_").lower(): number for name, number in access_pb2.Role.items() if number}
ROLE_NAMES: Final = {number: name for name, number in ROLES.items()}
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DISTRICT: Final = re.compile(r"[0-9]{6}")  # GB/T 2260


class Caller(NamedTuple):
    """A role (access.proto), its bearer's name and, for some, the district it is kept to (GB/T 2260, six digits)."""

    role: int
    name: str
    district: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (SCHEME, ROLE_NAMES[self.role], self.name, self.district) if part)


LOCAL: Final = Caller(access_pb2.ROLE_OPERATOR, "local")
"""Who calls without TLS."""


def parse_identity(uri: str) -> Caller:
    """The caller that a URI names. Raises InvalidRequest."""
    scheme, _, rest = uri.partition(":")
    role, _, rest = rest.partition(":")
    name, _, district = rest.partition(":")
    if scheme != SCHEME or role not in ROLES:
        raise InvalidRequest("identity", f"{SCHEME}:<role>:<name> is wanted, the role one of {', '.join(ROLES)}")
    if not _NAME.fullmatch(name):
        raise InvalidRequest("identity", "its name has 1 to 64 letters, digits, dots, hyphens and underscores")
    if district and not _DISTRICT.fullmatch(district):
        raise InvalidRequest("identity", "its district is six digits (GB/T 2260)")
    if ROLES[role] == access_pb2.ROLE_TERMINAL and not re.fullmatch(r"[0-9a-f]{12}", name):
        raise InvalidRequest("identity", "a terminal's name is its number, 12 hexadecimal digits in lower case")
    return Caller(ROLES[role], name, district)


OPERATORS: Final[dict[str, int]] = {}
"""Acquirers that have called, and the place of each in the table that the engine is given (core/tap.py). It only grows, by no
more than there are certificates."""


def bound_of(caller: Caller) -> int:
    """Whose taps a caller may bring, as the engine takes it; 0: everybody's. To be called on the loop's thread."""
    if caller.role == access_pb2.ROLE_TERMINAL:
        return bound_to_terminal(bytes.fromhex(caller.name))
    if caller.role == access_pb2.ROLE_ACQUIRER:
        return bound_to_operator(OPERATORS.setdefault(caller.name, len(OPERATORS)))
    return 0


_serving: ContextVar[Caller] = ContextVar("caller", default=LOCAL)


def current() -> Caller:
    """Who made the call that is being served."""
    return _serving.get()


@contextmanager
def serving(caller: Caller) -> Iterator[None]:
    """What is done in the block is done for this caller."""
    token = _serving.set(caller)
    try:
        yield
    finally:
        _serving.reset(token)
