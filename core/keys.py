"""Key sets: which key stands above the cards of an issuer, for a key version and index.

They come from a TOML file that only its owner may read:

    [[tac]]                          # masters of purpose DTK (TAC and tap MAC)
    issuer_id = "5980000100000000"   # 8 bytes, hex
    key_version = 1
    key_index = 1
    levels = 2                       # 2: issuer, then card serial; 1: card serial alone
    master = "…"                     # 16 bytes, hex
"""

import secrets
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

from yikatong.core.errors import ConfigError
from yikatong.ext import sm4

TEST_ISSUER_ID: Final = bytes.fromhex("5980000100000000")  # profile.md's worked example


class KeySet(NamedTuple):
    """A TAC master and how cards' keys are derived from it."""

    issuer_id: bytes
    key_version: int
    key_index: int
    levels: int
    master: bytes

    def __repr__(self) -> str:
        """Without the master: a key set may end up in a log or a traceback."""
        return f"KeySet(issuer_id={self.issuer_id.hex()}, key_version={self.key_version}, key_index={self.key_index})"

    def parent(self) -> bytes:
        """The key above the card's (profile.md, "Keys"): the issuer's with two levels, the master with one. 16 bytes."""
        return sm4.diversify(self.master, self.issuer_id) if self.levels == 2 else self.master


def _field(entry: dict[str, object], place: str, name: str, want: type) -> object:
    value = entry.get(name)
    if not isinstance(value, want) or isinstance(value, bool):
        raise ConfigError(f"{place}.{name}", f"a {want.__name__} is wanted")
    return value


def _hex(entry: dict[str, object], place: str, name: str, size: int) -> bytes:
    text = str(_field(entry, place, name, str))
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        raise ConfigError(f"{place}.{name}", f"{2 * size} hexadecimal digits are wanted")  # the value itself stays untold
    return value


def _number(entry: dict[str, object], place: str, name: str, low: int, high: int) -> int:
    value = int(str(_field(entry, place, name, int)))
    if not low <= value <= high:
        raise ConfigError(f"{place}.{name}", f"{low} to {high} is wanted")
    return value


def load(path: Path) -> list[KeySet]:
    """Key sets of a file. Raises ConfigError naming the entry and field; never shows a key."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(str(path), "only its owner may be able to read it (chmod 600)")
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "is not TOML in UTF-8") from error
    entries = document.get("tac")
    if not isinstance(entries, list) or not entries or set(document) != {"tac"}:
        raise ConfigError(str(path), "one or more [[tac]] and nothing else is wanted")
    key_sets: list[KeySet] = []
    for i, entry in enumerate(entries):
        place = f"{path}: tac[{i}]"
        if not isinstance(entry, dict) or (extra := set(entry) - set(KeySet._fields)):
            raise ConfigError(place, f"what is {', '.join(sorted(extra))}?" if isinstance(entry, dict) else "a table is wanted")
        key_set = KeySet(
            _hex(entry, place, "issuer_id", 8),
            _number(entry, place, "key_version", 0, 255),
            _number(entry, place, "key_index", 0, 255),
            _number(entry, place, "levels", 1, 2),
            _hex(entry, place, "master", 16),
        )
        if any(other[:3] == key_set[:3] for other in key_sets):
            raise ConfigError(place, "the same issuer, key version and key index stand there twice")
        key_sets.append(key_set)
    return key_sets


def write(path: Path, key_set: KeySet, comment: str) -> None:
    """Make a key file with one key set, for demos, replays, benches and tests."""
    path.touch(mode=0o600)
    path.write_text(
        f"# {comment}\n"
        "[[tac]]\n"
        f'issuer_id = "{key_set.issuer_id.hex()}"\n'
        f"key_version = {key_set.key_version}\nkey_index = {key_set.key_index}\nlevels = {key_set.levels}\n"
        f'master = "{key_set.master.hex()}"\n',
        "utf-8",
    )


def make_test_keys(path: Path) -> list[KeySet]:
    """Make a key file with one random master, for demos, replays and tests. An existing file is left and loaded."""
    if not path.exists():
        key_set = KeySet(TEST_ISSUER_ID, 1, 1, 2, secrets.token_bytes(16))
        write(path, key_set, "Made by yikatong for demonstration: random, and good for nothing else.")
    return load(path)
