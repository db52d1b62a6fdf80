"""The log of key ceremonies, beside the key store: who did what when to which keys, by their check values.

A line is added for each ceremony; lines are chained by SM3 and signed with the store's ceremony key, which takes two operators
to open."""

import json
import os
from pathlib import Path
from typing import Any, Final

from yikatong.core import limits
from yikatong.core.errors import ConfigError
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.ext import sm3

FIRST: Final = bytes(32)
FIELDS: Final = {"time", "generation", "action", "operators", "keys", "store", "previous", "signature"}


def log_path(store: Path) -> Path:
    return store.with_name(store.name + ".log")


def canonical(document: dict[str, Any]) -> bytes:
    """The bytes of a JSON object that are signed: sorted, without spaces."""
    return json.dumps(document, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode()


def append(store: Path, entry: dict[str, Any], signer: PrivateKey) -> None:
    """Add a line, durably. Raises ConfigError where the log cannot be written."""
    path = log_path(store)
    lines = _lines(path)
    entry = entry | {"previous": (sm3.digest(lines[-1]) if lines else FIRST).hex()}
    line = canonical(entry | {"signature": signer.sign(canonical(entry)).hex()})
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be written") from error


def read(store: Path, signer: PublicKey) -> list[dict[str, Any]]:
    """All entries, oldest first. Raises ConfigError naming the first line that was altered, left out or put in."""
    path = log_path(store)
    previous = FIRST
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(path), 1):
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
            signature = bytes.fromhex(entry["signature"])
            is_form_right = set(entry) == FIELDS and canonical(entry) == line
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(place, "is no entry of a ceremony log") from error
        if not is_form_right:
            raise ConfigError(place, "is no entry of a ceremony log")
        if entry["previous"] != previous.hex():
            raise ConfigError(place, "does not follow the line before it: a line was altered, left out or put in")
        if not signer.verify(canonical({name: value for name, value in entry.items() if name != "signature"}), signature):
            raise ConfigError(place, "its signature is not that of the store's ceremony key")
        entries.append(entry)
        previous = sm3.digest(line)
    return entries


def _lines(path: Path) -> list[bytes]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from error
    if len(lines) > limits.CEREMONIES_MAX:
        raise ConfigError(str(path), f"has more than {limits.CEREMONIES_MAX} lines")
    return lines
