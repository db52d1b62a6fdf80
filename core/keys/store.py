"""The key store: a file of keys, each under the key-encryption key, which a passphrase opens for the server and any two of its
operators for a ceremony.

    passphrase ─ scrypt ─→ key ─ SM4-GCM ─→ key-encryption key ─ SM4-GCM ─→ each key
    operator's ─ scrypt ─┐
    operator's ─ scrypt ─┴ XOR → key of the pair ─ SM4-GCM ─→ key-encryption key, ceremony key

It is JSON, readable by its owner alone. What is said of a key (reference, life, check value) is associated data of its
ciphertext: nothing of it can be altered or put with another key. The whole file is signed by the ceremony key (SM2), so that
nobody can take a key away or change anything alone, not even who knows the server's passphrase. An older file put back shows in
the ceremony log (ceremony_log.py)."""

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from yikatong.core import limits
from yikatong.core.errors import ConfigError, YikatongError
from yikatong.core.keys import ceremony_log
from yikatong.core.keys.ceremony_log import canonical
from yikatong.core.keys.life import KeyState, KeyStep, Life
from yikatong.core.keys.provider import OF_CARDS, SIGNING, KeyReference, Purpose
from yikatong.core.keys.signers import KINDS, Signer, read_signer
from yikatong.core.keys.software import HeldKey, SoftwareProvider
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.ext import sm3
from yikatong.ext.key_holder import KeyHolder

FORMAT: Final = 1
SALT_BYTES: Final = 16
SCRYPT_R: Final = 8
SEALED_KEY_BYTES: Final = 12 + 16 + 16
_OPERATOR: Final = re.compile(r"[a-z0-9._-]{1,32}")
_TOP: Final = {
    "format",
    "store",
    "generation",
    "scrypt",
    "server",
    "operators",
    "pairs",
    "signer",
    "signer_mac",
    "keys",
    "signature",
}
_ENTRY: Final = {
    "purpose",
    "version",
    "index",
    "issuer_id",
    "levels",
    "cached",
    "from",
    "until",
    "grace_until",
    "fate",
    "kcv",
    "sealed",
}


class PassphraseWrong(YikatongError):
    """A passphrase does not open the store."""


class CeremonyRefused(YikatongError):
    """What was asked of a ceremony is against its rules."""


class StoredKey(NamedTuple):
    """One key of the file. `sealed` is empty once it is destroyed."""

    key: KeyReference
    levels: int
    cached: bool
    life: Life
    check_value: bytes  # 3 bytes; of a key that signs, the first of SM3 over its public half
    sealed: bytes

    def describe(self) -> str:
        issuer = f" of issuer {self.key.issuer_id.hex()}" if any(self.key.issuer_id) else ""
        return f"{self.key.purpose.name.lower()} {self.key.key_version}/{self.key.key_index}{issuer}"


# ---- the file's form ----


def _time_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""


def fields_of(stored: StoredKey) -> dict[str, Any]:
    """What is said of a key, all of it authenticated with its value."""
    return {
        "purpose": stored.key.purpose.name.lower(),
        "version": stored.key.key_version,
        "index": stored.key.key_index,
        "issuer_id": stored.key.issuer_id.hex(),
        "levels": stored.levels,
        "cached": stored.cached,
        "from": _time_text(stored.life.from_s),
        "until": _time_text(stored.life.until_s),
        "grace_until": _time_text(stored.life.grace_until_s),
        "fate": "" if stored.life.fate is None else stored.life.fate.name.lower(),
        "kcv": stored.check_value.hex(),
    }


class FieldReader:
    """Reads fields of the parsed file; errors name the file and the field."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, place: str, reason: str) -> ConfigError:
        return ConfigError(f"{self.path}: {place}" if place else str(self.path), reason)

    def table(self, value: Any, place: str, names: set[str]) -> dict[str, Any]:
        if not isinstance(value, dict) or set(value) != names:
            raise self.fail(place, f"{', '.join(sorted(names))} and nothing else is wanted")
        return value

    def items(self, value: Any, place: str, most: int) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            raise self.fail(place, f"a list of at most {most} is wanted")
        return value

    def number(self, table: dict[str, Any], place: str, name: str, low: int, high: int) -> int:
        value = table[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(f"{place}{name}", f"{low} to {high} is wanted")
        return value

    def text(self, table: dict[str, Any], place: str, name: str) -> str:
        value = table[name]
        if not isinstance(value, str):
            raise self.fail(f"{place}{name}", "a text is wanted")
        return value

    def raw(self, table: dict[str, Any], place: str, name: str, low: int, high: int) -> bytes:
        text = self.text(table, place, name)
        if not re.fullmatch(r"(?:[0-9a-f]{2})*", text) or not low <= len(text) // 2 <= high:
            raise self.fail(f"{place}{name}", f"{low} to {high} bytes in hexadecimal digits are wanted")
        return bytes.fromhex(text)

    def time(self, table: dict[str, Any], place: str, name: str) -> int:
        text = self.text(table, place, name)
        if not text:
            return 0
        try:
            seconds = int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
        except ValueError:
            seconds = 0
        if seconds <= 0:
            raise self.fail(f"{place}{name}", "a time like 2026-01-31T00:00:00Z is wanted")
        return seconds

    def read(self) -> Any:
        """The file's JSON."""
        try:
            status = self.path.stat()
            if status.st_mode & 0o077:
                raise self.fail("", "only its owner may be able to read it (chmod 600)")
            if status.st_size > limits.KEY_STORE_BYTES_MAX:
                raise self.fail("", f"is larger than {limits.KEY_STORE_BYTES_MAX} bytes")
            return json.loads(self.path.read_bytes())
        except OSError as error:
            raise self.fail("", error.strerror or "cannot be read") from error
        except (ValueError, RecursionError) as error:
            raise self.fail("", "is no JSON") from error

    def key(self, value: Any, place: str, sealed_bytes: int = SEALED_KEY_BYTES) -> StoredKey:
        """An entry; `sealed_bytes` of it are its value, unless it signs or is destroyed."""
        table = self.table(value, place, _ENTRY)
        place += "."
        purpose = Purpose.__members__.get(self.text(table, place, "purpose").upper())
        if purpose is None:
            raise self.fail(f"{place}purpose", f"one of {', '.join(each.name.lower() for each in Purpose)} is wanted")
        fate = self.text(table, place, "fate")
        if fate not in ("", "compromised", "destroyed") or not isinstance(table["cached"], bool):
            raise self.fail(f"{place}fate", "empty, compromised or destroyed is wanted, and true or false for cached")
        from_s, until_s, grace_until_s = (self.time(table, place, name) for name in ("from", "until", "grace_until"))
        life = Life(from_s, until_s, grace_until_s, KeyState[fate.upper()] if fate else None)
        if bool(life.until_s) != bool(life.grace_until_s) or life.grace_until_s < life.until_s:
            raise self.fail(f"{place}grace_until", "an end has a grace, which ends with it or later")
        signs = purpose in SIGNING
        low = 0 if fate == "destroyed" or signs else sealed_bytes
        return StoredKey(
            KeyReference(
                purpose, self.number(table, place, "version", 0, 255), self.number(table, place, "index", 0, 255),
                self.raw(table, place, "issuer_id", 8, 8),
            ),
            self.number(table, place, "levels", 1, 2), table["cached"], life, self.raw(table, place, "kcv", 3, 3),
            self.raw(table, place, "sealed", low, 1_024 if signs else sealed_bytes),
        )  # fmt: skip


class KeyStore:
    """A store as it stands in its file; nothing of it is secret. `read` checks its form and its signature."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        reader = FieldReader(path)
        self.path = path
        self.document = reader.table(document, "", _TOP)
        reader.number(document, "", "format", FORMAT, FORMAT)
        self.store_id = reader.raw(document, "", "store", 16, 16)
        self.generation = reader.number(document, "", "generation", 1, 1 << 48)
        cost = reader.table(document["scrypt"], "scrypt", {"n", "r", "p"})
        n = reader.number(cost, "scrypt.", "n", limits.SCRYPT_N_MIN, limits.SCRYPT_N_MAX)
        if n & (n - 1):
            raise reader.fail("scrypt.n", "a power of two is wanted")
        self._cost = (
            n,
            reader.number(cost, "scrypt.", "r", SCRYPT_R, SCRYPT_R),
            reader.number(cost, "scrypt.", "p", 1, limits.SCRYPT_P_MAX),
        )
        server = reader.table(document["server"], "server", {"salt", "sealed"})
        self._server = (
            reader.raw(server, "server.", "salt", SALT_BYTES, SALT_BYTES),
            reader.raw(server, "server.", "sealed", SEALED_KEY_BYTES, SEALED_KEY_BYTES),
        )
        self._salts: dict[str, bytes] = {}
        for i, item in enumerate(reader.items(document["operators"], "operators", limits.KEY_OPERATORS_MAX)):
            table = reader.table(item, f"operators[{i}]", {"name", "salt"})
            name = reader.text(table, f"operators[{i}].", "name")
            if not _OPERATOR.fullmatch(name) or name in self._salts:
                raise reader.fail(
                    f"operators[{i}].name", "1 to 32 small letters, digits, dots, hyphens and underscores, no name twice"
                )
            self._salts[name] = reader.raw(table, f"operators[{i}].", "salt", SALT_BYTES, SALT_BYTES)
        self._pairs: dict[tuple[str, str], bytes] = {}
        for i, item in enumerate(reader.items(document["pairs"], "pairs", limits.KEY_OPERATORS_MAX**2 // 2)):
            table = reader.table(item, f"pairs[{i}]", {"operators", "sealed"})
            names = reader.items(table["operators"], f"pairs[{i}].operators", 2)
            if len(names) != 2 or names != sorted(set(names) & set(self._salts)):
                raise reader.fail(f"pairs[{i}].operators", "two of the operators, sorted, are wanted")
            self._pairs[names[0], names[1]] = reader.raw(table, f"pairs[{i}].", "sealed", SEALED_KEY_BYTES, 2_048)
        self.signer = PublicKey(reader.text(document, "", "signer").encode(), f"{path}: signer")
        self._signer_mac = reader.raw(document, "", "signer_mac", 32, 32)
        self.keys: dict[KeyReference, StoredKey] = {}
        for i, item in enumerate(reader.items(document["keys"], "keys", limits.KEYS_MAX)):
            stored = reader.key(item, f"keys[{i}]")
            if stored.key in self.keys:
                raise reader.fail(f"keys[{i}]", f"{stored.describe()} stands there twice")
            self.keys[stored.key] = stored
        unsigned = {name: value for name, value in document.items() if name != "signature"}
        if not self.signer.verify(canonical(unsigned), reader.raw(document, "", "signature", 1, 128)):
            raise reader.fail("signature", "the store was altered outside a ceremony")

    @classmethod
    def read(cls, path: Path) -> "KeyStore":
        """Raises ConfigError naming the field."""
        return cls(path, FieldReader(path).read())

    @property
    def operators(self) -> list[str]:
        return sorted(self._salts)

    def digest(self) -> str:
        """SM3 of the file, as the ceremony log names it."""
        return sm3.digest(canonical(self.document)).hex()

    # ---- opening ----

    def open(self, passphrase: bytearray) -> KeyHolder:
        """The key-encryption key, by the server's passphrase, which is wiped. Raises PassphraseWrong."""
        salt, sealed = self._server
        kek = _stretch(passphrase, salt, self._cost).open_key(sealed, self._label("server"))
        if kek is None:
            raise PassphraseWrong(f"{self.path}: the passphrase is wrong")
        self._check_signer(kek)
        return kek

    def open_by(self, passphrases: Mapping[str, bytearray]) -> "Ceremony":
        """A ceremony of two operators, by their passphrases, which are wiped. Raises CeremonyRefused or PassphraseWrong."""
        names = sorted(passphrases)
        if len(names) != 2:
            raise CeremonyRefused("a ceremony takes two operators")
        for name in names:
            if name not in self._salts:
                raise CeremonyRefused(f"{self.path}: {name} is none of its operators: {', '.join(self.operators)}")
        halves = [_stretch(passphrases[name], self._salts[name], self._cost) for name in names]
        opened = halves[0].xor(halves[1]).open(self._pairs.get((names[0], names[1]), b""), self._label("pair", *names))
        if opened is None:
            raise PassphraseWrong(f"{self.path}: one of the two passphrases is wrong")
        kek = KeyHolder.take(memoryview(opened)[:16])
        signer = PrivateKey(bytes(opened[16:]), f"{self.path}: ceremony key")
        opened[:] = bytes(len(opened))
        self._check_signer(kek)
        return Ceremony(self, kek, signer, names)

    def _check_signer(self, kek: KeyHolder) -> None:
        if not secrets.compare_digest(kek.hmac(self.document["signer"].encode()), self._signer_mac):
            raise ConfigError(f"{self.path}: signer", "is not the ceremony key that belongs to the store")

    def _label(self, *parts: str) -> bytes:
        return ":".join(("yikatong-key-store", self.store_id.hex(), *parts)).encode()

    def associated(self, stored: StoredKey) -> bytes:
        return self._label("key", canonical(fields_of(stored)).decode())

    def held(self, kek: KeyHolder) -> dict[KeyReference, HeldKey]:
        """All keys, opened and held against their check values. Raises ConfigError naming the key that is not what it was."""
        return {stored.key: self._open_key(kek, stored) for stored in self.keys.values()}

    def provider(self, kek: KeyHolder) -> SoftwareProvider:
        """All keys, for who serves. Raises ConfigError, as `held`."""
        return SoftwareProvider(dict(self.held(kek)))

    def _open_key(self, kek: KeyHolder, stored: StoredKey) -> HeldKey:
        def held(value: KeyHolder | Signer | None) -> HeldKey:
            return HeldKey(value, stored.levels, stored.cached, stored.life)

        if stored.life.fate is KeyState.DESTROYED:
            return held(None)
        wrong = ConfigError(f"{self.path}: {stored.describe()}", "is not what was stored")
        if stored.key.purpose in SIGNING:
            pem = kek.open(stored.sealed, self.associated(stored))
            if pem is None:
                raise wrong
            signer = read_signer(stored.key.purpose, bytes(pem), str(self.path))
            pem[:] = bytes(len(pem))
            if check_value_of(signer) != stored.check_value:
                raise wrong
            return held(signer)
        value = kek.open_key(stored.sealed, self.associated(stored))
        if value is None or value.check_value() != stored.check_value:
            raise wrong
        return held(value)


def check_value_of(value: KeyHolder | Signer) -> bytes:
    """KCV, 3 bytes; of a key that signs, the first of SM3 over the PEM of its public half."""
    return value.check_value() if isinstance(value, KeyHolder) else sm3.digest(value.public_pem())[:3]


def _stretch(passphrase: bytearray, salt: bytes, cost: tuple[int, int, int]) -> KeyHolder:
    """The key of a passphrase, which is wiped: scrypt (RFC 7914)."""
    n, r, p = cost
    try:
        if not limits.PASSPHRASE_BYTES_MIN <= len(passphrase) <= limits.PASSPHRASE_BYTES_MAX:
            low, high = limits.PASSPHRASE_BYTES_MIN, limits.PASSPHRASE_BYTES_MAX
            raise PassphraseWrong(f"a passphrase has {low} to {high} bytes")
        return KeyHolder.fill(lambda out: Scrypt(salt=salt, length=16, n=n, r=r, p=p).derive_into(passphrase, out))
    finally:
        passphrase[:] = bytes(len(passphrase))


# ---- ceremonies ----


class Ceremony:
    """Changes to a store by two operators; `commit` writes them."""

    def __init__(self, store: KeyStore, kek: KeyHolder, signer: PrivateKey, operators: Sequence[str]) -> None:
        self.store = store
        self._kek = kek
        self._signer = signer
        self._operators = list(operators)
        self._keys = dict(store.keys)
        self._touched: list[StoredKey] = []

    def add(self, key: KeyReference, value: KeyHolder | Signer, life: Life, levels: int = 2, *, cached: bool = True) -> StoredKey:
        """A new key. Raises CeremonyRefused where there is one of that reference already, or room for no more."""
        if key in self._keys:
            raise CeremonyRefused(f"there is a key {self._keys[key].describe()} already")
        if len(self._keys) >= limits.KEYS_MAX:
            raise CeremonyRefused(f"there are {limits.KEYS_MAX} keys already")
        if any(key.issuer_id) != (key.purpose in OF_CARDS):
            raise CeremonyRefused("keys above cards have an issuer, others none")
        if not isinstance(value, KINDS.get(key.purpose, KeyHolder)):
            raise CeremonyRefused(f"a key for {key.purpose.name.lower()} is of another kind")
        stored = StoredKey(key, levels, cached, life, check_value_of(value), b"")
        return self._put(stored, value)

    def value(self, key: KeyReference) -> KeyHolder | Signer:
        """The key itself. Raises CeremonyRefused where there is none."""
        value = self.store._open_key(self._kek, self.find(key)).value
        if value is None:
            raise CeremonyRefused(f"{self.find(key).describe()} is destroyed")
        return value

    def find(self, key: KeyReference) -> StoredKey:
        if key not in self._keys:
            raise CeremonyRefused(f"there is no such key: {StoredKey(key, 1, True, Life(), b'', b'').describe()}")
        return self._keys[key]

    def newest(self, purpose: Purpose, issuer_id: bytes, time_s: int) -> StoredKey:
        """The active key of the highest version. Raises CeremonyRefused where there is none."""
        active = [
            stored
            for key, stored in self._keys.items()
            if key.purpose == purpose and key.issuer_id == issuer_id and stored.life.state(time_s) is KeyState.ACTIVE
        ]
        if not active:
            raise CeremonyRefused(f"no key for {purpose.name.lower()} is active")
        return max(active, key=lambda stored: (stored.key.key_version, stored.key.key_index))

    def step(self, key: KeyReference, step: KeyStep, time_s: int, grace_s: int = 0) -> StoredKey:
        """Take a step of a key's life. Raises WrongKeyState or CeremonyRefused."""
        stored = self.find(key)
        life = stored.life.after(step, time_s, grace_s)
        if step is not KeyStep.DESTROY:
            return self._put(stored._replace(life=life), self.value(key))
        self._keys[key] = destroyed = stored._replace(life=life, sealed=b"")
        self._touched.append(destroyed)
        return destroyed

    def note(self, key: KeyReference) -> None:
        """Name a key in the log that was looked at but not changed."""
        self._touched.append(self.find(key))

    def _put(self, stored: StoredKey, value: KeyHolder | Signer) -> StoredKey:
        associated = self.store.associated(stored)
        if isinstance(value, KeyHolder):
            sealed = self._kek.seal_key(value, associated)
        else:
            sealed = self._kek.seal(value.private_pem(), associated)
        self._keys[stored.key] = stored = stored._replace(sealed=sealed)
        self._touched.append(stored)
        return stored

    def commit(self, action: str, time_s: int | None = None) -> KeyStore:
        """Write the log's line, then the store. Raises CeremonyRefused where another came between, ConfigError where it
        cannot."""
        with _alone(self.store.path):
            if self.store.path.exists() and KeyStore.read(self.store.path).generation != self.store.generation:
                raise CeremonyRefused(f"{self.store.path}: another ceremony came between; begin again")
            done = ceremony_log.read(self.store.path, self.store.signer)
            generation = max([self.store.generation, *(entry["generation"] for entry in done)]) + 1
            written = self._sign(generation)
            entry = {
                "time": _time_text(int(time.time()) if time_s is None else time_s),
                "generation": generation,
                "action": action,
                "operators": self._operators,
                "keys": [{"key": stored.describe(), "kcv": stored.check_value.hex()} for stored in self._touched],
                "store": written.digest(),
            }
            ceremony_log.append(self.store.path, entry, self._signer)
            write_file(self.store.path, written.document)
        return written

    def replace_people(self, passphrase: bytearray | None, operators: Mapping[str, bytearray]) -> None:
        """Set the server's passphrase (None: as it was) and, unless there are none, who the operators are. All are wiped."""
        document = self.store.document
        cost = self.store._cost
        if passphrase is not None:
            salt = secrets.token_bytes(SALT_BYTES)
            sealed = _stretch(passphrase, salt, cost).seal_key(self._kek, self.store._label("server"))
            document = document | {"server": {"salt": salt.hex(), "sealed": sealed.hex()}}
        if operators:
            document = document | _people(self.store._label, cost, operators, self._kek, self._signer)
        self.store = _unsigned_store(self.store, document)

    def _sign(self, generation: int) -> KeyStore:
        keys = [fields_of(stored) | {"sealed": stored.sealed.hex()} for stored in self._keys.values()]
        document = self.store.document | {"generation": generation, "keys": keys}
        document.pop("signature", None)
        signature = self._signer.sign(canonical(document))
        return KeyStore(self.store.path, document | {"signature": signature.hex()})


def _unsigned_store(store: KeyStore, document: dict[str, Any]) -> KeyStore:
    """The same store with another document, which the ceremony signs when it commits."""
    changed = KeyStore.__new__(KeyStore)
    changed.__dict__.update(store.__dict__ | {"document": document})
    return changed


def _people(
    label: Any, cost: tuple[int, int, int], operators: Mapping[str, bytearray], kek: KeyHolder, signer: PrivateKey
) -> dict[str, Any]:
    """The file's operators, and the secrets under the key of each pair of them."""
    names = sorted(operators)
    if not 2 <= len(names) <= limits.KEY_OPERATORS_MAX or not all(map(_OPERATOR.fullmatch, names)):
        raise CeremonyRefused(
            f"2 to {limits.KEY_OPERATORS_MAX} operators are wanted, named in small letters, digits, dots, hyphens and underscores"
        )
    salts = {name: secrets.token_bytes(SALT_BYTES) for name in names}
    halves = {name: _stretch(operators[name], salts[name], cost) for name in names}
    pairs = []
    for pair in combinations(names, 2):
        key = halves[pair[0]].xor(halves[pair[1]])
        sealed = seal_both(key, kek, signer, label("pair", *pair))
        pairs.append({"operators": list(pair), "sealed": sealed.hex()})
    return {"operators": [{"name": name, "salt": salts[name].hex()} for name in names], "pairs": pairs}


def seal_both(key: KeyHolder, kek: KeyHolder, signer: PrivateKey, associated: bytes) -> bytes:
    """Key-encryption key and ceremony key behind each other under a pair's key."""
    pem = signer.private_pem()
    both = bytearray(16 + len(pem))
    kek.copy_into(memoryview(both)[:16])
    both[16:] = pem
    try:
        return key.seal(both, associated)
    finally:
        both[:] = bytes(len(both))


def create(path: Path, passphrase: bytearray, operators: Mapping[str, bytearray], scrypt_n: int = 0) -> KeyStore:
    """A new, empty store. The passphrases are wiped. Raises ConfigError where there is a file already."""
    if path.exists():
        raise ConfigError(str(path), "is there already")
    cost = scrypt_n or limits.SCRYPT_N, SCRYPT_R, 1
    kek, signer, store_id = KeyHolder.random(), PrivateKey.make(), secrets.token_bytes(16)

    def label(*parts: str) -> bytes:
        return ":".join(("yikatong-key-store", store_id.hex(), *parts)).encode()

    salt = secrets.token_bytes(SALT_BYTES)
    document: dict[str, Any] = {
        "format": FORMAT,
        "store": store_id.hex(),
        "generation": 1,
        "scrypt": {"n": cost[0], "r": cost[1], "p": cost[2]},
        "server": {"salt": salt.hex(), "sealed": _stretch(passphrase, salt, cost).seal_key(kek, label("server")).hex()},
        "signer": signer.public_pem().decode(),
        "signer_mac": kek.hmac(signer.public_pem()).hex(),
        "keys": [],
    } | _people(label, cost, operators, kek, signer)
    store = KeyStore(path, document | {"signature": signer.sign(canonical(document)).hex()})
    return Ceremony(store, kek, signer, sorted(operators)).commit("init")


def verify(store: KeyStore, kek: KeyHolder) -> int:
    """Open every key and hold the ceremony log against the store; returns how many ceremonies there were. Raises ConfigError."""
    store.held(kek)
    entries = ceremony_log.read(store.path, store.signer)
    place = str(ceremony_log.log_path(store.path))
    if not entries or store.generation not in [entry["generation"] for entry in entries]:
        raise ConfigError(place, f"does not know generation {store.generation} of the store")
    last = entries[-1]
    if last["generation"] > store.generation:
        raise ConfigError(
            place, f"has a ceremony of generation {last['generation']}, the store is of {store.generation}: "
            "an older store was put back, or that ceremony was cut off before its end",
        )  # fmt: skip
    if last["store"] != store.digest():
        raise ConfigError(place, "names another store than this one")
    return len(entries)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One ceremony writes at a time."""
    try:
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be written") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write_file(path: Path, document: dict[str, Any]) -> None:
    """Put the file in place of the one before, durably."""
    partial = path.with_name(path.name + ".partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(document, file, ensure_ascii=True, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be written") from error
