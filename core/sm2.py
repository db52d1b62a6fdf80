"""SM2 signatures (GB/T 32918.2) with SM3, by OpenSSL's libcrypto. Keys are PEM files; a private one only its owner may read."""

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from yikatong.core.errors import ConfigError

USER_ID: Final = b"1234567812345678"  # GM/T 0009's default
LIBRARIES: Final = ("libcrypto.so.3", "libcrypto.3.dylib", "libcrypto-3-x64.dll")
SIGNATURE_BYTES_MAX: Final = 128  # DER of two 32-byte numbers is 72 at most

_POINTER: Final = ctypes.c_void_p
_PROTOTYPES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "BIO_new": (_POINTER, [_POINTER]),
    "BIO_s_mem": (_POINTER, []),
    "BIO_new_mem_buf": (_POINTER, [ctypes.c_char_p, ctypes.c_int]),
    "BIO_read": (ctypes.c_int, [_POINTER, ctypes.c_char_p, ctypes.c_int]),
    "BIO_free": (ctypes.c_int, [_POINTER]),
    "PEM_read_bio_PrivateKey": (_POINTER, [_POINTER, _POINTER, _POINTER, _POINTER]),
    "PEM_read_bio_PUBKEY": (_POINTER, [_POINTER, _POINTER, _POINTER, _POINTER]),
    "PEM_write_bio_PrivateKey": (ctypes.c_int, [_POINTER, _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER, _POINTER]),
    "PEM_write_bio_PUBKEY": (ctypes.c_int, [_POINTER, _POINTER]),
    "EVP_PKEY_CTX_new_from_name": (_POINTER, [_POINTER, ctypes.c_char_p, ctypes.c_char_p]),
    "EVP_PKEY_CTX_free": (None, [_POINTER]),
    "EVP_PKEY_keygen_init": (ctypes.c_int, [_POINTER]),
    "EVP_PKEY_keygen": (ctypes.c_int, [_POINTER, ctypes.POINTER(_POINTER)]),
    "EVP_PKEY_is_a": (ctypes.c_int, [_POINTER, ctypes.c_char_p]),
    "EVP_PKEY_free": (None, [_POINTER]),
    "EVP_PKEY_CTX_set1_id": (ctypes.c_int, [_POINTER, ctypes.c_char_p, ctypes.c_int]),
    "EVP_sm3": (_POINTER, []),
    "EVP_MD_CTX_new": (_POINTER, []),
    "EVP_MD_CTX_free": (None, [_POINTER]),
    "EVP_DigestSignInit": (ctypes.c_int, [_POINTER, ctypes.POINTER(_POINTER), _POINTER, _POINTER, _POINTER]),
    "EVP_DigestSign": (
        ctypes.c_int,
        [_POINTER, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t), ctypes.c_char_p, ctypes.c_size_t],
    ),
    "EVP_DigestVerifyInit": (ctypes.c_int, [_POINTER, ctypes.POINTER(_POINTER), _POINTER, _POINTER, _POINTER]),
    "EVP_DigestVerify": (ctypes.c_int, [_POINTER, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]),
    "ERR_clear_error": (None, []),
}


@functools.cache
def _library() -> Any:
    """libcrypto of OpenSSL 3 with its prototypes. Raises ConfigError where it is not installed."""
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(name)
            for function, (result, arguments) in _PROTOTYPES.items():
                pointer = getattr(library, function)
                pointer.restype, pointer.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        return library
    raise ConfigError("OpenSSL", f"SM2 needs OpenSSL 3 ({LIBRARIES[0]}), which is not installed")


def _done(step: str, answer: Any) -> Any:
    if answer is None or answer <= 0:
        _library().ERR_clear_error()
        raise ConfigError("OpenSSL", f"{step} failed: it may have been built without SM2")
    return answer


class _Key:
    """A key in libcrypto's hands; freed with this object."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __del__(self) -> None:
        _library().EVP_PKEY_free(self.pointer)


def _read_key(pem: bytes, reader: str, place: str) -> _Key:
    library = _library()
    bio = _done("BIO_new_mem_buf", library.BIO_new_mem_buf(pem, len(pem)))
    pointer = getattr(library, reader)(bio, None, None, None)
    library.BIO_free(bio)
    if pointer is None:
        library.ERR_clear_error()
        raise ConfigError(place, "is no PEM file of such a key")
    key = _Key(pointer)
    if library.EVP_PKEY_is_a(pointer, b"SM2") != 1:
        raise ConfigError(place, "is a key of another algorithm than SM2")
    return key


@contextmanager
def _digest(key: _Key, init: str) -> Iterator[Any]:
    library = _library()
    context = _done("EVP_MD_CTX_new", library.EVP_MD_CTX_new())
    try:
        inner = _POINTER()
        _done(init, getattr(library, init)(context, ctypes.byref(inner), library.EVP_sm3(), None, key.pointer))
        _done("EVP_PKEY_CTX_set1_id", library.EVP_PKEY_CTX_set1_id(inner, USER_ID, len(USER_ID)))
        yield context
    finally:
        library.EVP_MD_CTX_free(context)


class PublicKey:
    """Verifies. Raises ConfigError for a PEM text that is no SM2 public key; `place` names it in errors."""

    def __init__(self, pem: bytes, place: str = "public key") -> None:
        self._key = _read_key(pem, "PEM_read_bio_PUBKEY", place)

    @classmethod
    def read(cls, path: Path) -> "PublicKey":
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError(str(path), error.strerror or "cannot be read") from error

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether a signature (DER) of a message is right."""
        with _digest(self._key, "EVP_DigestVerifyInit") as context:
            right: bool = _library().EVP_DigestVerify(context, signature, len(signature), message, len(message)) == 1
        _library().ERR_clear_error()
        return right

    def verify_raw(self, message: bytes, signature: bytes) -> bool:
        """The same for a signature as r ‖ s, 64 bytes."""
        if len(signature) != 64:
            return False
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        return self.verify(message, encode_dss_signature(r, s))


class PrivateKey:
    """Signs. Raises ConfigError for a PEM text that is no SM2 private key."""

    def __init__(self, pem: bytes, place: str = "private key") -> None:
        self._key = _read_key(pem, "PEM_read_bio_PrivateKey", place)

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
        library = _library()
        context = _done("EVP_PKEY_CTX_new_from_name", library.EVP_PKEY_CTX_new_from_name(None, b"SM2", None))
        pointer = _POINTER()
        try:
            _done("EVP_PKEY_keygen_init", library.EVP_PKEY_keygen_init(context))
            _done("EVP_PKEY_keygen", library.EVP_PKEY_keygen(context, ctypes.byref(pointer)))
        finally:
            library.EVP_PKEY_CTX_free(context)
        made = cls.__new__(cls)
        made._key = _Key(pointer.value or 0)
        return made

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, DER."""
        size = ctypes.c_size_t(SIGNATURE_BYTES_MAX)
        signature = ctypes.create_string_buffer(SIGNATURE_BYTES_MAX)
        with _digest(self._key, "EVP_DigestSignInit") as context:
            _done("EVP_DigestSign", _library().EVP_DigestSign(context, signature, ctypes.byref(size), message, len(message)))
        return signature.raw[: size.value]

    def public_pem(self) -> bytes:
        return self._write("PEM_write_bio_PUBKEY")

    def private_pem(self) -> bytes:
        return self._write("PEM_write_bio_PrivateKey", None, None, 0, None, None)

    def public_key(self) -> PublicKey:
        return PublicKey(self.public_pem())

    def _write(self, writer: str, *arguments: Any) -> bytes:
        library = _library()
        bio = _done("BIO_new", library.BIO_new(library.BIO_s_mem()))
        try:
            _done(writer, getattr(library, writer)(bio, self._key.pointer, *arguments))
            buffer = ctypes.create_string_buffer(4096)
            size = _done("BIO_read", library.BIO_read(bio, buffer, len(buffer)))
            return buffer.raw[:size]
        finally:
            library.BIO_free(bio)


def make_key_files(private: Path, public: Path) -> None:
    """A new random key in two PEM files, the private one for its owner alone. Raises ConfigError where one is there already."""
    key = PrivateKey.make()
    for path, pem, mode in ((private, key.private_pem(), 0o600), (public, key.public_pem(), 0o644)):
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(pem)
        except OSError as error:
            raise ConfigError(str(path), error.strerror or "cannot be written") from error
