"""What the core asks of whoever holds the keys: software (software.py) or a hardware security module (GM/T 0018).

A key is asked for by reference and never comes out, and neither does one that is derived from it: what goes in are factors,
session data and messages, what comes out are MACs, ciphertexts and signatures (profile.md, "Hardware keys")."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from yikatong.core.errors import Unavailable, YikatongError
from yikatong.ext.key_holder import KeyHolder

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
    TRANSPORT = 9  # wraps keys that leave one key store for another (SM4-GCM)
    OIDC = 20  # P-256: signs ID tokens for portals whose libraries know no SM2
    LOGIN = 21  # HMAC-SM3: contents of login QR codes, tickets, and how a person is called at a portal


SIGNING: Final = (Purpose.CODE_ISSUER, Purpose.ASSERTION, Purpose.OIDC)
OF_CARDS: Final = (Purpose.PURCHASE, Purpose.TAC, Purpose.LOAD)
"""The purposes whose masters belong to an issuer and stand above its cards' keys."""


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


class DeviceFailed(Unavailable):
    """The device that holds the keys did not do what was asked; `code` is its own (GM/T 0018), 0 where it gave none."""

    def __init__(self, call: str, code: int, meaning: str = "") -> None:
        super().__init__(f"key device: {call} failed with 0x{code:08x}{f' ({meaning})' if meaning else ''}")
        self.code = code


class TapKey(NamedTuple):
    """A TAC master as the engine needs it. Times are seconds since 1970 of journal time; an end of 0 is none."""

    issuer_id: bytes
    key_version: int
    key_index: int
    levels: int  # between master and card: 2: issuer, then card serial; 1: card serial alone
    parent: KeyHolder | None  # the key above the cards'; None: policy keeps it where it is, the provider is asked batch by batch
    from_s: int = 0
    refused_from_s: int = 0  # its grace is over
    refused: bool = False  # compromised or destroyed

    @property
    def reference(self) -> KeyReference:
        return KeyReference(Purpose.TAC, self.key_version, self.key_index, self.issuer_id)


class SealedDataWrong(YikatongError):
    """A ciphertext was altered, or belongs to something else."""


class KeyProvider(Protocol):
    """All methods may be called from any thread. Each raises KeyUnknown or KeyRetired, ValueError for wrong sizes, and, where a
    device holds the keys, DeviceFailed. What one kind of provider has sealed or indexed another cannot open or find."""

    def tap_keys(self) -> list[TapKey]:
        """All TAC masters, retired ones too, as the engine needs them."""

    def levels(self, key: KeyReference) -> int:
        """How many levels a card's key is below this master: 2 or 1."""

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
        """Encrypted and authenticated, fresh each time. In software SM4-GCM (RFC 8998): nonce 12 ‖ ciphertext ‖ tag 16; a device
        (sdf.py) has another form. `associated` says what it belongs to."""

    def open(self, key: KeyReference, sealed: bytes, associated: bytes) -> bytes:
        """What was sealed. Raises SealedDataWrong."""

    def index(self, key: KeyReference, data: bytes) -> bytes:
        """A keyed digest, 32 bytes: the same data always gives the same, and without the key nothing can be told. In software
        HMAC-SM3 (GB/T 15852.2)."""

    def sign(self, key: KeyReference, message: bytes) -> bytes:
        """SM2 signature with SM3 (GB/T 32918.2), user id 1234567812345678; of purpose OIDC, ES256 (RFC 7518, 3.4). r ‖ s, 64
        bytes."""

    def public_key(self, key: KeyReference) -> bytes:
        """PEM of the public half of a key that signs."""
