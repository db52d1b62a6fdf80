"""Keys held by this process, in memory."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from yikatong.core.errors import ConfigError
from yikatong.core.keys.provider import (
    ANY_ISSUER,
    FACTOR_BYTES,
    GCM_NONCE_BYTES,
    GCM_TAG_BYTES,
    SESSION_BYTES,
    KeyReference,
    KeyUnknown,
    Purpose,
    SealedDataWrong,
)
from yikatong.core.sm2 import PrivateKey
from yikatong.ext import sm4

SYMMETRIC_BYTES: Final = 16
SIGNING: Final = (Purpose.CODE_ISSUER, Purpose.ASSERTION)


class SoftwareProvider:
    """A KeyProvider over keys that are given to it: 16 bytes each, or for those that sign the PEM of an SM2 private key.

    Raises ConfigError for a key that is neither."""

    def __init__(self, keys: Mapping[KeyReference, bytes]) -> None:
        self._symmetric: dict[KeyReference, bytes] = {}
        self._signing: dict[KeyReference, PrivateKey] = {}
        for key, value in keys.items():
            if key.purpose in SIGNING:
                self._signing[key] = PrivateKey(value, f"key {key.purpose.name}")
            elif len(value) == SYMMETRIC_BYTES:
                self._symmetric[key] = value
            else:
                raise ConfigError(f"key {key.purpose.name}", f"{SYMMETRIC_BYTES} bytes are wanted")

    def __repr__(self) -> str:
        """Without the keys."""
        return f"SoftwareProvider({len(self._symmetric) + len(self._signing)} keys)"

    def newest(self, purpose: Purpose, issuer_id: bytes = ANY_ISSUER) -> KeyReference:
        fitting = [
            key
            for key in (*self._symmetric, *self._signing)
            if key.purpose == purpose and key.issuer_id in (issuer_id, ANY_ISSUER)
        ]
        if not fitting:
            raise KeyUnknown(KeyReference(purpose, 0, 0, issuer_id))
        return max(fitting, key=lambda key: (key.key_version, key.key_index))

    def check_value(self, key: KeyReference) -> bytes:
        return sm4.kcv(self._key(key))

    def mac(self, key: KeyReference, factors: Sequence[bytes], session: bytes, message: bytes) -> bytes:
        derived = self._key(key)
        for factor in factors:
            if len(factor) != FACTOR_BYTES:
                raise ValueError(f"a factor of {len(factor)} bytes: {FACTOR_BYTES} are wanted")
            derived = sm4.diversify(derived, factor)
        if session:
            if len(session) != SESSION_BYTES:
                raise ValueError(f"session data of {len(session)} bytes: {SESSION_BYTES} are wanted")
            derived = sm4.encrypt_block(derived, session)
        return sm4.cbc_mac(derived, message)

    def mac_many(self, key: KeyReference, items: Sequence[tuple[Sequence[bytes], bytes, bytes]]) -> list[bytes]:
        return [self.mac(key, *item) for item in items]

    def seal(self, key: KeyReference, plaintext: bytes, associated: bytes) -> bytes:
        nonce = secrets.token_bytes(GCM_NONCE_BYTES)
        encryptor = Cipher(algorithms.SM4(self._key(key)), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(associated)
        return nonce + encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag

    def open(self, key: KeyReference, sealed: bytes, associated: bytes) -> bytes:
        value = self._key(key)
        if len(sealed) < GCM_NONCE_BYTES + GCM_TAG_BYTES:
            raise SealedDataWrong("it is shorter than a nonce and a tag")
        nonce, tag = sealed[:GCM_NONCE_BYTES], sealed[-GCM_TAG_BYTES:]
        decryptor = Cipher(algorithms.SM4(value), modes.GCM(nonce, tag)).decryptor()
        decryptor.authenticate_additional_data(associated)
        try:
            return decryptor.update(sealed[GCM_NONCE_BYTES:-GCM_TAG_BYTES]) + decryptor.finalize()
        except InvalidTag:
            raise SealedDataWrong("it is not what was sealed, or belongs to something else") from None

    def index(self, key: KeyReference, data: bytes) -> bytes:
        keyed = hmac.HMAC(self._key(key), hashes.SM3())
        keyed.update(data)
        return keyed.finalize()

    def sign(self, key: KeyReference, message: bytes) -> bytes:
        r, s = decode_dss_signature(self._signing_key(key).sign(message))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def public_key(self, key: KeyReference) -> bytes:
        return self._signing_key(key).public_pem()

    def _key(self, key: KeyReference) -> bytes:
        if key not in self._symmetric:
            raise KeyUnknown(key)
        return self._symmetric[key]

    def _signing_key(self, key: KeyReference) -> PrivateKey:
        if key not in self._signing:
            raise KeyUnknown(key)
        return self._signing[key]
