"""The plain key file, for tests, demos and benches; real keys are in a key store (store.py). `yikatong serve` takes a plain
file only where it says that its keys are for tests, and then only on a loopback address.

It says which key stands above the cards of an issuer, for a key version and index, and the keys of all other purposes; only its
owner may be able to read it:

    test = true                      # good for nothing else

    [[tac]]                          # masters of purpose DTK (TAC and tap MAC)
    issuer_id = "5980000100000000"   # 8 bytes, hex
    key_version = 1
    key_index = 1
    levels = 2                       # 2: issuer, then card serial; 1: card serial alone
    master = "…"                     # 16 bytes, hex

    [[key]]                          # any other
    purpose = "person_data"          # of provider.Purpose
    version = 1
    index = 1
    issuer_id = "0000000000000000"   # zeros where a key has no issuer
    value = "…"                      # 16 bytes, hex; for keys that sign, the PEM of an SM2 (oidc: P-256) private key
"""

import secrets
from pathlib import Path
from typing import Final, NamedTuple

from yikatong.core.errors import ConfigError
from yikatong.core.keys.provider import ANY_ISSUER, OF_CARDS, SIGNING, KeyReference, Purpose, TapKey
from yikatong.core.keys.signers import make_signer
from yikatong.core.keys.software import HeldKey, SoftwareProvider
from yikatong.core.toml_file import read_secret_toml
from yikatong.ext import sm4
from yikatong.ext.key_holder import KeyHolder

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

    def tap_key(self) -> TapKey:
        """As the engine needs it."""
        return TapKey(*self[:4], KeyHolder.take(bytearray(self.parent())))


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
    document = read_secret_toml(path)
    entries = document.get("tac")
    if not isinstance(entries, list) or not entries or not set(document) <= {"test", "tac", "key"}:
        raise ConfigError(str(path), "test = true, one or more [[tac]], some [[key]] and nothing else is wanted")
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


def is_for_tests(path: Path) -> bool:
    """Whether a file says that its keys are for tests."""
    return read_secret_toml(path).get("test") is True


def load_provider(path: Path) -> SoftwareProvider:
    """All keys of a file, as whoever needs them asks for them. Raises ConfigError naming the entry and field."""
    keys: dict[KeyReference, bytes | HeldKey] = {
        each.tap_key().reference: HeldKey(KeyHolder.take(bytearray(each.master)), each.levels) for each in load(path)
    }
    entries = read_secret_toml(path).get("key", [])
    if not isinstance(entries, list):
        raise ConfigError(str(path), "[[key]] is wanted, not [key]")
    for i, entry in enumerate(entries):
        place = f"{path}: key[{i}]"
        wanted = {"purpose", "version", "index", "issuer_id", "value"}
        if not isinstance(entry, dict) or set(entry) != wanted:
            raise ConfigError(place, f"{', '.join(sorted(wanted))} and nothing else is wanted")
        purpose = Purpose.__members__.get(str(_field(entry, place, "purpose", str)).upper())
        if purpose is None or purpose is Purpose.TAC:
            names = (each.name.lower() for each in Purpose if each is not Purpose.TAC)
            raise ConfigError(f"{place}.purpose", f"one of {', '.join(names)} is wanted")
        key = KeyReference(
            purpose, _number(entry, place, "version", 0, 255), _number(entry, place, "index", 0, 255),
            _hex(entry, place, "issuer_id", 8),
        )  # fmt: skip
        if key in keys:
            raise ConfigError(place, "the same purpose, version, index and issuer stand there twice")
        signs = purpose in SIGNING
        keys[key] = str(_field(entry, place, "value", str)).encode() if signs else _hex(entry, place, "value", 16)
    return SoftwareProvider(keys)


def write(path: Path, key_set: KeySet, comment: str) -> None:
    """Make a key file with one key set and a random key of every other purpose, for demos, replays, benches and tests."""
    path.touch(mode=0o600)
    path.write_text(
        f"# {comment}\n"
        "test = true\n\n[[tac]]\n"
        f'issuer_id = "{key_set.issuer_id.hex()}"\n'
        f"key_version = {key_set.key_version}\nkey_index = {key_set.key_index}\nlevels = {key_set.levels}\n"
        f'master = "{key_set.master.hex()}"\n' + "".join(_new_key(purpose) for purpose in Purpose if purpose is not Purpose.TAC),
        "utf-8",
    )


def _new_key(purpose: Purpose) -> str:
    value = make_signer(purpose).private_pem().decode() if purpose in SIGNING else secrets.token_bytes(16).hex()
    issuer = TEST_ISSUER_ID if purpose in OF_CARDS else ANY_ISSUER
    return (
        f'\n[[key]]\npurpose = "{purpose.name.lower()}"\nversion = 1\nindex = 1\nissuer_id = "{issuer.hex()}"\n'
        f'value = """{value}"""\n'
    )


def make_test_keys(path: Path) -> list[KeySet]:
    """Make a key file with one random master, for demos, replays and tests. An existing file is left and loaded."""
    if not path.exists():
        key_set = KeySet(TEST_ISSUER_ID, 1, 1, 2, secrets.token_bytes(16))
        write(path, key_set, "Made by yikatong for demonstration: random, and good for nothing else.")
    return load(path)
