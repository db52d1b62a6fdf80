"""SM2 signatures (GB/T 32918.2) with SM3, by OpenSSL's libcrypto (ext/sm2.pyx). Keys are PEM files; only its
owner may read a private one."""

import base64
import os
import textwrap
from pathlib import Path
from typing import Any, Final

from yikatong.core.errors import ConfigError

USER_ID: Final = b"1234567812345678"  # GM/T 0009's default
_SPKI: Final = bytes.fromhex("3059301306072a8648ce3d020106082a811ccf5501822d034200")  # SubjectPublicKeyInfo, before a point


def _library() -> Any:
    """ext.sm2. Raises ConfigError where OpenSSL 3 is not installed."""
    try:
        from yikatong.ext import sm2
    except ImportError as error:
        raise ConfigError("OpenSSL", str(error)) from error
    return sm2


def _parse(read: Any, pem: bytes, place: str) -> Any:
    try:
        return read(pem)
    except _library().AnotherAlgorithm:
        raise ConfigError(place, "is a key of another algorithm than SM2") from None
    except ValueError:
        raise ConfigError(place, "is no PEM file of such a key") from None


class PublicKey:
    """Verifies. Raises ConfigError for a PEM text that is no SM2 public key; `place` names it in errors."""

    def __init__(self, pem: bytes, place: str = "public key") -> None:
        self._key = _parse(_library().Public.of_pem, pem, place)

    @classmethod
    def of_point(cls, point: bytes) -> "PublicKey":
        """From a point of 33 (compressed) or 65 bytes. Raises ValueError for what is no point of the curve."""
        made = cls.__new__(cls)
        made._key = _library().Public(point)
        return made

    @classmethod
    def read(cls, path: Path) -> "PublicKey":
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError(str(path), error.strerror or "cannot be read") from error

    def verify(self, message: bytes, signature: bytes, user_id: bytes = USER_ID) -> bool:
        """Whether a signature (DER) of a message is right."""
        try:
            raw = _library().of_der(signature)
        except ValueError:
            return False
        return self.verify_raw(message, raw, user_id)

    def verify_raw(self, message: bytes, signature: bytes, user_id: bytes = USER_ID) -> bool:
        """The same for a signature as r ‖ s, 64 bytes."""
        right: bool = self._key.verify(message, signature, user_id)
        return right

    def point(self, *, compressed: bool = True) -> bytes:
        """The point, 33 or 65 bytes."""
        point: bytes = self._key.point(compressed=compressed)
        return point

    def pem(self) -> bytes:
        text = base64.b64encode(_SPKI + self.point(compressed=False)).decode()
        return "\n".join(["-----BEGIN PUBLIC KEY-----", *textwrap.wrap(text, 64), "-----END PUBLIC KEY-----", ""]).encode()


class PrivateKey:
    """Signs. Raises ConfigError for a PEM text that is no SM2 private key."""

    def __init__(self, pem: bytes, place: str = "private key") -> None:
        self._key = _parse(_library().Private.of_pem, pem, place)

    @classmethod
    def read(cls, path: Path) -> "PrivateKey":
        """From a file that only its owner may read."""
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(str(path), "only its owner may be able to read it (chmod 600)")
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError(str(path), error.strerror or "cannot be read") from error

    @classmethod
    def make(cls) -> "PrivateKey":
        """A new random key."""
        made = cls.__new__(cls)
        made._key = _library().Private.make()
        return made

    def sign(self, message: bytes, user_id: bytes = USER_ID) -> bytes:
        """The signature of a message, DER."""
        der: bytes = _library().to_der(self.sign_raw(message, user_id))
        return der

    def sign_raw(self, message: bytes, user_id: bytes = USER_ID) -> bytes:
        """The signature of a message, r ‖ s, 64 bytes."""
        signature: bytes = self._key.sign(message, user_id)
        return signature

    def public_pem(self) -> bytes:
        return self.public_key().pem()

    def private_pem(self) -> bytes:
        pem: bytes = self._key.pem()
        return pem

    def public_key(self) -> PublicKey:
        made = PublicKey.__new__(PublicKey)
        made._key = self._key.public()
        return made


def make_key_files(private: Path, public: Path) -> None:
    """A new random key in two PEM files, the private one for its owner alone. Raises ConfigError where one is there already."""
    key = PrivateKey.make()
    for path, pem, mode in ((private, key.private_pem(), 0o600), (public, key.public_pem(), 0o644)):
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(pem)
        except OSError as error:
            raise ConfigError(str(path), error.strerror or "cannot be written") from error
