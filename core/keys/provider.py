"""What the core asks of whoever holds the keys: software (software.py) or a hardware security module (GM/T 0018).

A key is asked for by reference and never comes out, and neither does one that is derived from it: what goes in are factors,
session data and messages, what comes out are MACs, ciphertexts and signatures (profile.md, "Hardware keys")."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from yikatong.core.errors import YikatongError

FACTOR_BYTES: Final = 8
SESSION_BYTES: Final = 16
GCM_NONCE_BYTES: Final = 12
GCM_TAG_BYTES: Final = 16
ANY_ISSUER: Final = bytes(8)


class Purpose(IntEnum):
    """What a master key is for; it is good for nothing else."""

    PURCHASE = 1  # DPK
    TAC = 2  # DTK: TAC and tap MAC
    LOAD = 3  # DLK
    DEVICE = 4  # of an e-card on a phone, derived from the e-card and the device
    PERSON_DATA = 5  # SM4-GCM over citizen numbers and names
    PERSON_INDEX = 6  # HMAC-SM3, to look them up by
    CODE_ISSUER = 7  # SM2: signs offline ride codes
    ASSERTION = 8  # SM2: signs login assertions


class KeyReference(NamedTuple):
    """Which key: chosen by what a record carries, never guessed. `issuer_id` has 8 bytes, zeros where a key has no issuer."""

    purpose: Purpose
    key_version: int
    key_index: int = 1
    issuer_id: bytes = ANY_ISSUER


class KeyUnknown(YikatongError):
    """There is no such key."""

    def __init__(self, key: KeyReference) -> None:
        super().__init__(f"there is no {key.purpose.name} key of version {key.key_version}, index {key.key_index}")
        self.key = key


class KeyRetired(KeyUnknown):
    """The key is retired, and the grace for it is over."""


class SealedDataWrong(YikatongError):
    """A ciphertext was altered, or belongs to something else."""


class KeyProvider(Protocol):
    """All methods may be called from any thread. Each raises KeyUnknown or KeyRetired, and ValueError for wrong sizes."""

    def newest(self, purpose: Purpose, issuer_id: bytes = ANY_ISSUER) -> KeyReference:
        """The key to be used for something new."""

    def check_value(self, key: KeyReference) -> bytes:
        """KCV, 3 bytes: leftmost of SM4(key, 0). Only for symmetric keys."""

    def mac(self, key: KeyReference, factors: Sequence[bytes], session: bytes, message: bytes) -> bytes:
        """MAC of a message, 16 bytes (GB/T 15852.1 algorithm 1, padding method 2), under a key derived from `key`: over each
        factor F of 8 bytes by SM4(K, F ‖ ¬F), then, where `session` is not empty (16 bytes), by SM4(K, session)."""

    def mac_many(self, key: KeyReference, items: Sequence[tuple[Sequence[bytes], bytes, bytes]]) -> list[bytes]:
        """`mac` of many (factors, session, message), in order."""

    def seal(self, key: KeyReference, plaintext: bytes, associated: bytes) -> bytes:
        """SM4-GCM (RFC 8998) under a fresh random nonce: nonce 12 ‖ ciphertext ‖ tag 16. `associated` says what it belongs to."""

    def open(self, key: KeyReference, sealed: bytes, associated: bytes) -> bytes:
        """What was sealed. Raises SealedDataWrong."""

    def index(self, key: KeyReference, data: bytes) -> bytes:
        """HMAC-SM3 (GB/T 15852.2), 32 bytes: the same data always gives the same, and without the key nothing can be told."""

    def sign(self, key: KeyReference, message: bytes) -> bytes:
        """SM2 signature with SM3 (GB/T 32918.2), user id 1234567812345678: r ‖ s, 64 bytes."""

    def public_key(self, key: KeyReference) -> bytes:
        """PEM of the public half of an SM2 key."""
