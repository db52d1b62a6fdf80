"""Keys held by this process, each in a page of memory of its own (ext/key_holder.pyx).

SM2 private keys are libcrypto's; their PEM text passes through Python, which may keep copies of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from yikatong.core.errors import ConfigError
from yikatong.core.keys.life import CHECKS, KeyState, Life
from yikatong.core.keys.provider import (
    ANY_ISSUER,
    GCM_NONCE_BYTES,
    GCM_TAG_BYTES,
    SIGNING,
    KeyReference,
    KeyRetired,
    KeyUnknown,
    Purpose,
    SealedDataWrong,
    TapKey,
)
from yikatong.core.keys.signers import Signer, read_signer
from yikatong.ext.key_holder import KeyHolder

SYMMETRIC_BYTES: Final = 16
LEVELS: Final = 2  # where nothing else is said


class HeldKey(NamedTuple):
    """One key: its value (None once it is destroyed), how far below it cards' keys are, whether the engine may keep what it
    derives from it, and its life."""

    value: KeyHolder | Signer | None
    levels: int = LEVELS
    cached: bool = True
    life: Life = Life()


class SoftwareProvider:
    """A KeyProvider over keys that are given to it: 16 bytes each (buffers are wiped, where they can be), or for those that sign
    the PEM of a private key; or HeldKeys.

    Raises ConfigError for a key that is neither. `now_s` is set to journal time by who serves."""

    def __init__(self, keys: Mapping[KeyReference, bytes | HeldKey], now_s: Callable[[], float] = time.time) -> None:
        self.now_s = now_s
        self._keys = {key: value if isinstance(value, HeldKey) else _held(key, value) for key, value in keys.items()}

    def __repr__(self) -> str:
        """Without the keys."""
        return f"SoftwareProvider({len(self._keys)} keys)"

    def adopt(self, other: "SoftwareProvider") -> None:
        """Hold another one's keys from now on. Calls that are under way end with the keys that they began with."""
        self._keys = other._keys

    def wipe(self) -> None:
        """Forget all keys: every use of one raises ValueError from now on."""
        for held in self._keys.values():
            if isinstance(held.value, KeyHolder):
                held.value.wipe()

    def unlocked(self) -> int:
        """How many keys the system did not let be locked into memory."""
        return sum(isinstance(key.value, KeyHolder) and not key.value.locked for key in self._keys.values())

    def tap_keys(self) -> list[TapKey]:
        return [
            TapKey(
                key.issuer_id, key.key_version, key.key_index, held.levels,
                _parent(key, held) if held.cached else None,
                held.life.from_s, held.life.grace_until_s if held.life.until_s else 0, held.life.fate is not None,
            )
            for key, held in self._keys.items() if key.purpose is Purpose.TAC
        ]  # fmt: skip

    def levels(self, key: KeyReference) -> int:
        return self._find(key).levels

    def newest(self, purpose: Purpose, issuer_id: bytes = ANY_ISSUER) -> KeyReference:
        now_s = self.now_s()
        fitting = [key for key in self._keys if key.purpose == purpose and key.issuer_id in (issuer_id, ANY_ISSUER)]
        active = [key for key in fitting if self._keys[key].life.state(now_s) is KeyState.ACTIVE]
        if not fitting:
            raise KeyUnknown(KeyReference(purpose, 0, 0, issuer_id))
        if not active:
            raise KeyRetired(max(fitting, key=_age))
        return max(active, key=_age)

    def check_value(self, key: KeyReference) -> bytes:
        return self._holder(key).check_value()

    def mac(self, key: KeyReference, factors: Sequence[bytes], session: bytes, message: bytes) -> bytes:
        return self._holder(key).mac(factors, session, message)

    def mac_many(self, key: KeyReference, items: Sequence[tuple[Sequence[bytes], bytes, bytes]]) -> list[bytes]:
        holder = self._holder(key)
        return [holder.mac(*item) for item in items]

    def seal(self, key: KeyReference, plaintext: bytes, associated: bytes) -> bytes:
        if self._find(key).life.state(self.now_s()) is not KeyState.ACTIVE:
            raise KeyRetired(key)
        return self._holder(key).seal(plaintext, associated)

    def open(self, key: KeyReference, sealed: bytes, associated: bytes) -> bytes:
        holder = self._holder(key)
        if len(sealed) < GCM_NONCE_BYTES + GCM_TAG_BYTES:
            raise SealedDataWrong("it is shorter than a nonce and a tag")
        plaintext = holder.open(bytes(sealed), associated)
        if plaintext is None:
            raise SealedDataWrong("it was altered, or belongs to something else")
        return bytes(plaintext)

    def index(self, key: KeyReference, data: bytes) -> bytes:
        return self._holder(key).hmac(data)

    def sign(self, key: KeyReference, message: bytes) -> bytes:
        r, s = decode_dss_signature(self._signer(key, KeyState.ACTIVE).sign(message))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def public_key(self, key: KeyReference) -> bytes:
        return self._signer(key, *CHECKS).public_pem()

    def _find(self, key: KeyReference) -> HeldKey:
        held = self._keys.get(key)
        if held is None:
            raise KeyUnknown(key)
        return held

    def _good(self, key: KeyReference, *states: KeyState) -> HeldKey:
        held = self._find(key)
        state = held.life.state(self.now_s())
        if state is KeyState.PRE_ACTIVE:
            raise KeyUnknown(key)
        if state not in states:
            raise KeyRetired(key)
        return held

    def _holder(self, key: KeyReference) -> KeyHolder:
        value = self._good(key, *CHECKS).value
        if not isinstance(value, KeyHolder):
            raise KeyUnknown(key)
        return value

    def _signer(self, key: KeyReference, *states: KeyState) -> Signer:
        value = self._good(key, *states).value
        if value is None or isinstance(value, KeyHolder):
            raise KeyUnknown(key)
        return value


def _age(key: KeyReference) -> tuple[int, int]:
    return key.key_version, key.key_index


def _parent(key: KeyReference, held: HeldKey) -> KeyHolder | None:
    if not isinstance(held.value, KeyHolder):
        return None
    return held.value.diversify(key.issuer_id) if held.levels == 2 else held.value


def _held(key: KeyReference, value: bytes) -> HeldKey:
    if key.purpose in SIGNING:
        return HeldKey(read_signer(key.purpose, value, f"key {key.purpose.name}"))
    if len(value) != SYMMETRIC_BYTES:
        raise ConfigError(f"key {key.purpose.name}", f"{SYMMETRIC_BYTES} bytes are wanted")
    return HeldKey(KeyHolder.take(bytearray(value)))
