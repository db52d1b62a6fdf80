"""The log: lines for people, or one JSON object a line for machines. No code logs who somebody is; this is the last line of
defence where it happens all the same.

Two things are kept out of every line, whoever wrote it: citizen numbers, which can be told by their form and check character, and
what an unexpected exception says, which may hold anything that a request held. Its type and where it was raised stay."""

import logging
import re
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter

from yikatong.core.errors import DataError

CITIZEN_NUMBER: Final = re.compile(
    r"(?<![0-9])[1-9][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx](?![0-9])"
)
_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS: Final = "10X98765432"
TOLD: Final = (OSError, DataError)
"""Exceptions whose words are of disks and files, and are told."""

LEFT_OUT: Final = "what it says is left out"
log = logging.getLogger(__name__)


def _mask(found: re.Match[str]) -> str:
    """First character and last two (profile.md), where the check character (GB 11643) is right."""
    text = found[0]
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, text, strict=False))
    return text[0] + "*" * (len(text) - 3) + text[-2:] if text[-1].upper() == _CHECKS[total % 11] else text


def masked(text: str) -> str:
    """A text without whole citizen numbers."""
    return CITIZEN_NUMBER.sub(_mask, text)


def told(error: BaseException | None) -> str:
    """An exception and what led to it: types and places; words only of those in TOLD."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        words = str(error) if isinstance(error, TOLD) else LEFT_OUT
        name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        stack = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{stack}{name}: {words}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nafter\n\n".join(reversed(parts))


class _Lines(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        return told(ei[1])

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # what another formatter may have made of it
        return masked(super().format(record))


class _Json(JsonFormatter):
    def formatException(self, ei: Any) -> str:
        return told(ei[1])

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None
        return masked(super().format(record))


def formatter(*, json: bool) -> logging.Formatter:
    """The form of a line."""
    if json:
        return _Json(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
            json_ensure_ascii=False,
        )
    return _Lines("{asctime} {levelname:<7} {message}", style="{")


def configure(*, json: bool) -> None:
    """Log to standard error from INFO on, and what ends a thread or the process too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(json=json))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    sys.excepthook = _log_end
    threading.excepthook = lambda ended: _log_end(ended.exc_type, ended.exc_value, ended.exc_traceback)


def _log_end(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        log.critical("it ended by an error that nobody took", exc_info=(kind, error or kind(), trace))
