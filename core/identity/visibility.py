"""What of a person may be seen by whom: rules as data (core/rules/visibility.toml).

A rule names a role, a caller's name, a purpose (`*`: any) and fields. What a caller may see for a purpose is what all rules that
fit give together, and without one nothing."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yikatong.core.rules
from yikatong.core import limits
from yikatong.core.access.callers import ROLES, Caller
from yikatong.core.errors import ConfigError, InvalidRequest
from yikatong.core.toml_file import read_toml
from yikatong.v1 import identity_service_pb2

FIELDS: Final = tuple(field.name for field in identity_service_pb2.ShownPerson.DESCRIPTOR.fields)
"""All fields of a person, in the order of the proto."""
PACKAGE_FILE: Final = Path(yikatong.core.rules.__file__).with_name("visibility.toml")
ANY: Final = "*"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}|\*")


class Rule(NamedTuple):
    """One rule; `role` 0 and the texts `*` fit all."""

    role: int
    name: str
    purpose: str
    fields: tuple[str, ...]


class Visibility(NamedTuple):
    """The rules of a file."""

    rules: tuple[Rule, ...]

    def allowed(self, caller: Caller, purpose: str) -> tuple[str, ...]:
        """What a caller may see for a purpose, in the order of FIELDS."""
        seen: set[str] = set()
        for rule in self.rules:
            if rule.role in (0, caller.role) and rule.name in (ANY, caller.name) and rule.purpose in (ANY, purpose):
                seen.update(rule.fields)
        return tuple(name for name in FIELDS if name in seen)


def check_fields(fields: Sequence[str]) -> None:
    """Raises InvalidRequest unless all are names of fields, none twice."""
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise InvalidRequest("fields", f"{unknown[0][:32]!r} is none of {', '.join(FIELDS)}")
    if len(set(fields)) != len(fields):
        raise InvalidRequest("fields", "one stands there twice")


def check_purpose(purpose: str, legal_basis: str) -> None:
    """Raises InvalidRequest unless both are given and short."""
    for name, text in (("purpose", purpose), ("legal_basis", legal_basis)):
        if not 1 <= len(text) <= limits.PURPOSE_CHARACTERS_MAX or not text.isprintable():
            raise InvalidRequest(name, f"1 to {limits.PURPOSE_CHARACTERS_MAX} printable characters are wanted")


def shown(asked: Iterable[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """What is asked for and allowed; all that is allowed where nothing is asked for."""
    wanted = set(asked) or set(allowed)
    return tuple(name for name in allowed if name in wanted)


def read(path: Path = PACKAGE_FILE) -> Visibility:
    """The rules of a file. Raises ConfigError naming the rule and field."""
    document = read_toml(path)
    entries = document.get("rule")
    if set(document) != {"rule"} or not isinstance(entries, list):
        raise ConfigError(str(path), "some [[rule]] and nothing else is wanted")
    return Visibility(tuple(_rule(entry, f"{path}: rule[{i}]") for i, entry in enumerate(entries)))


def _rule(entry: Any, place: str) -> Rule:
    if not isinstance(entry, dict) or set(entry) != {"role", "name", "purpose", "fields"}:
        raise ConfigError(place, "role, name, purpose and fields, and nothing else, is wanted")
    role, name, purpose = (entry[key] for key in ("role", "name", "purpose"))
    if role != ANY and role not in ROLES:
        raise ConfigError(f"{place}.role", f"* or one of {', '.join(ROLES)} is wanted")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{place}.name", "* or a caller's name is wanted")
    if not isinstance(purpose, str) or not 1 <= len(purpose) <= limits.PURPOSE_CHARACTERS_MAX:
        raise ConfigError(f"{place}.purpose", "* or a purpose is wanted")
    return Rule(0 if role == ANY else ROLES[role], name, purpose, read_fields(entry["fields"], f"{place}.fields"))


def read_fields(value: Any, place: str) -> tuple[str, ...]:
    """A list of names of fields. Raises ConfigError."""
    if not isinstance(value, list) or not value or any(name not in FIELDS for name in value):
        raise ConfigError(place, f"some of {', '.join(FIELDS)} are wanted")
    return tuple(name for name in FIELDS if name in value)
