"""Rule files: TOML whose faults are told with line and field.

A rule file is read through `Fields`, one for each table: every key is asked for with its type and bounds, and `done` refuses
what nobody asked for, so a misspelt key is never silently without effect."""

import datetime
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from yikatong.core.errors import FileFault

Place = tuple[str | int, ...]  # ("fares", 2, "amount_fen"): the third [[fares]] table's key

_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART: Final = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_TOML_LINE: Final = re.compile(r"\(at line (\d+), column \d+\)")
_MISSING: Final = object()
Choice = TypeVar("Choice")


class RuleError(FileFault):
    """A rule file is wrong. Nothing of it is in force."""


def dotted(place: Place) -> str:
    """fares[2].amount_fen for ("fares", 2, "amount_fen")."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _parts(key: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(key)]


def _lines(text: str) -> dict[Place, int]:
    """The line on which each table and key begins, as far as headers and `key =` at the beginning of a line show it."""
    found: dict[Place, int] = {}
    counts: dict[Place, int] = {}

    def resolve(names: list[str]) -> Place:
        """Arrays of tables on the way stand for their newest table."""
        place: Place = ()
        for name in names:
            place = (*place, name)
            if place in counts:
                place = (*place, counts[place] - 1)
        return place

    table: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            names = _parts(header[2])
            if header[1] == "[[":
                array = (*resolve(names[:-1]), names[-1])
                table = (*array, counts.get(array, 0))
                counts[array] = counts.get(array, 0) + 1
            else:
                table = resolve(names)
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_parts(key[1])), number)
    return found


class Source:
    """One rule file, parsed. Raises RuleError when it is not TOML in UTF-8."""

    def __init__(self, name: str, raw: bytes) -> None:
        self.name = name
        self.raw = raw
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RuleError(name, raw[: error.start].count(b"\n") + 1, "", "is not UTF-8") from error
        try:
            self.document: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line = _TOML_LINE.search(str(error))
            at = int(line[1]) if line else text.count("\n") + 1
            raise RuleError(name, at, "", f"is not TOML: {_TOML_LINE.sub('', str(error)).strip()}") from error
        self._lines = _lines(text)

    @classmethod
    def read(cls, path: Path) -> "Source":
        try:
            return cls(str(path), path.read_bytes())
        except OSError as error:
            raise RuleError(str(path), 0, "", error.strerror or "cannot be read") from error

    def line(self, place: Place) -> int:
        """The line of a key, or of the nearest table around it."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def error(self, place: Place, reason: str) -> RuleError:
        return RuleError(self.name, self.line(place), dotted(place), reason)

    def fields(self) -> "Fields":
        """The file's top level."""
        return Fields(self, (), self.document)


class Fields:
    """One table of a rule file, key by key."""

    def __init__(self, source: Source, place: Place, table: dict[str, Any]) -> None:
        self.source = source
        self.place = place
        self._table = table
        self._asked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def error(self, name: str, reason: str) -> RuleError:
        """For faults that concern a key of this table; "" for the table itself."""
        return self.source.error((*self.place, name) if name else self.place, reason)

    def _take(self, name: str, kind: type, wanted: str, default: Any) -> Any:
        self._asked.add(name)
        value = self._table.get(name, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                raise self.error(name, f"is missing: {wanted} is wanted")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(name, f"{wanted} is wanted, not {value!r}")
        return value

    def text(self, name: str, default: Any = _MISSING, *, pattern: str = r".{1,64}") -> str:
        """A string that matches a pattern as a whole."""
        value = self._take(name, str, "a string", default)
        if value is not default and not re.fullmatch(pattern, value):
            raise self.error(name, f"{value!r} is not of the form {pattern}")
        return str(value)

    def integer(self, name: str, low: int, high: int, default: Any = _MISSING) -> int:
        value = self._take(name, int, f"a whole number from {low} to {high}", default)
        if value is not default and not low <= value <= high:
            raise self.error(name, f"{low} to {high} is wanted, not {value}")
        return value  # type: ignore[no-any-return]

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        return bool(self._take(name, bool, "true or false", default))

    def date(self, name: str, default: Any = _MISSING) -> Any:
        """A TOML local date, as datetime.date."""
        value = self._take(name, datetime.date, "a date such as 2026-01-31", default)
        if isinstance(value, datetime.datetime):
            raise self.error(name, "a date without a time is wanted")
        return value

    def time(self, name: str, default: Any = _MISSING) -> Any:
        """A TOML local time, as datetime.time."""
        return self._take(name, datetime.time, "a time such as 07:30:00", default)

    def choice(self, name: str, among: dict[str, Choice], default: Any = _MISSING) -> Choice:
        """What one of some words stands for."""
        value = self._take(name, str, "one of " + ", ".join(among), default)
        if value is default:
            return value  # type: ignore[no-any-return]
        if value not in among:
            raise self.error(name, f"one of {', '.join(among)} is wanted, not {value!r}")
        return among[value]

    def items(self, name: str, kind: type, default: Any = _MISSING) -> list[Any]:
        """A list whose items are all of one type (str or int)."""
        value = self._take(name, list, f"a list of {kind.__name__}", default)
        for at, item in enumerate(value):
            if not isinstance(item, kind) or isinstance(item, bool):
                raise self.source.error((*self.place, name, at), f"{kind.__name__} is wanted, not {item!r}")
        return list(value)

    def table(self, name: str, default: Any = _MISSING) -> "Fields":
        value = self._take(name, dict, f"a table [{dotted((*self.place, name))}]", default)
        return Fields(self.source, (*self.place, name), value)

    def tables(self, name: str, default: Sequence[Any] = ()) -> Iterator["Fields"]:
        """The tables of an array [[name]], in order; none when there is no such array."""
        value = self._take(name, list, f"tables [[{dotted((*self.place, name))}]]", default)
        for at, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.source.error((*self.place, name, at), f"a table is wanted, not {item!r}")
            yield Fields(self.source, (*self.place, name, at), item)

    def names(self) -> list[str]:
        """All keys of the table, for tables whose keys are names of the file's own; they count as asked for."""
        self._asked.update(self._table)
        return list(self._table)

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        for name in self._table:
            if name not in self._asked:
                raise self.error(name, "there is no such key here")
