"""Keys in a hardware device, by the C interface of GM/T 0018 (SDF) of its vendor's library.

The key file names each master wrapped under the device's key-encryption key (SDF_ImportKeyWithKEK); a session imports a key when
it is first asked for. The file is signed by the device's own SM2 key, so it cannot be altered.

What leaves the device. GM/T 0018 has no call that derives a key and keeps it: a derived key is what SDF_Encrypt answers, so it
passes through this process (in a buffer that is wiped) and goes back by SDF_ImportKey. Masters never leave; a card's key does
when its MAC is made, and with two levels the issuer's key does once a session. Where the vendor has one call for it, `vendor_mac`
takes it, and nothing leaves.

SDF has no GCM and no HMAC: `seal` is SM4-CBC, then a MAC (algorithm 1 over a message that begins with its lengths) under another
key; `index` is two MACs of the SM3 digest, a message of fixed length. What software sealed or indexed does not open here."""

import base64
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import cffi

from yikatong.core import limits
from yikatong.core.errors import ConfigError
from yikatong.core.keys.ceremony_log import canonical
from yikatong.core.keys.life import CHECKS, KeyState
from yikatong.core.keys.provider import (
    ANY_ISSUER,
    FACTOR_BYTES,
    SESSION_BYTES,
    SIGNING,
    DeviceFailed,
    KeyReference,
    KeyRetired,
    KeyUnknown,
    Purpose,
    SealedDataWrong,
    TapKey,
)
from yikatong.core.keys.store import FieldReader, StoredKey, fields_of, write_file
from yikatong.core.sm2 import USER_ID, PublicKey
from yikatong.ext import sm3

log = logging.getLogger(__name__)

SGD_SM4_ECB: Final = 0x401
SGD_SM4_CBC: Final = 0x402
SGD_SM4_MAC: Final = 0x410
SGD_SM3: Final = 0x1
BLOCK: Final = 16
TELL_S: Final = 1.0  # between two lines in the log about a device that fails
SPREAD_ITEMS: Final = 16  # fewer stay on one session
TAG_BYTES: Final = 16
FORMAT: Final = 1
SDR_OK: Final = 0

DECLARATIONS: Final = """
typedef struct DeviceInfo_st {
    unsigned char IssuerName[40];
    unsigned char DeviceName[16];
    unsigned char DeviceSerial[16];
    unsigned int DeviceVersion;
    unsigned int StandardVersion;
    unsigned int AsymAlgAbility[2];
    unsigned int SymAlgAbility;
    unsigned int HashAlgAbility;
    unsigned int BufferSize;
} DEVICEINFO;
typedef struct ECCrefPublicKey_st { unsigned int bits; unsigned char x[64]; unsigned char y[64]; } ECCrefPublicKey;
typedef struct ECCSignature_st { unsigned char r[64]; unsigned char s[64]; } ECCSignature;
int SDF_OpenDevice(void **phDeviceHandle);
int SDF_CloseDevice(void *hDeviceHandle);
int SDF_OpenSession(void *hDeviceHandle, void **phSessionHandle);
int SDF_CloseSession(void *hSessionHandle);
int SDF_GetDeviceInfo(void *hSessionHandle, DEVICEINFO *pstDeviceInfo);
int SDF_GenerateRandom(void *hSessionHandle, unsigned int uiLength, unsigned char *pucRandom);
int SDF_GetPrivateKeyAccessRight(void *hSessionHandle, unsigned int uiKeyIndex, unsigned char *pucPassword,
                                 unsigned int uiPwdLength);
int SDF_ReleasePrivateKeyAccessRight(void *hSessionHandle, unsigned int uiKeyIndex);
int SDF_ExportSignPublicKey_ECC(void *hSessionHandle, unsigned int uiKeyIndex, ECCrefPublicKey *pucPublicKey);
int SDF_GenerateKeyWithKEK(void *hSessionHandle, unsigned int uiKeyBits, unsigned int uiAlgID, unsigned int uiKEKIndex,
                           unsigned char *pucKey, unsigned int *puiKeyLength, void **phKeyHandle);
int SDF_ImportKeyWithKEK(void *hSessionHandle, unsigned int uiAlgID, unsigned int uiKEKIndex, unsigned char *pucKey,
                         unsigned int uiKeyLength, void **phKeyHandle);
int SDF_ImportKey(void *hSessionHandle, unsigned char *pucKey, unsigned int uiKeyLength, void **phKeyHandle);
int SDF_DestroyKey(void *hSessionHandle, void *hKeyHandle);
int SDF_InternalSign_ECC(void *hSessionHandle, unsigned int uiISKIndex, unsigned char *pucData, unsigned int uiDataLength,
                         ECCSignature *pucSignature);
int SDF_Encrypt(void *hSessionHandle, void *hKeyHandle, unsigned int uiAlgID, unsigned char *pucIV, unsigned char *pucData,
                unsigned int uiDataLength, unsigned char *pucEncData, unsigned int *puiEncDataLength);
int SDF_Decrypt(void *hSessionHandle, void *hKeyHandle, unsigned int uiAlgID, unsigned char *pucIV, unsigned char *pucEncData,
                unsigned int uiEncDataLength, unsigned char *pucData, unsigned int *puiDataLength);
int SDF_CalculateMAC(void *hSessionHandle, void *hKeyHandle, unsigned int uiAlgID, unsigned char *pucIV, unsigned char *pucData,
                     unsigned int uiDataLength, unsigned char *pucMAC, unsigned int *puiMACLength);
"""
"""What of GM/T 0018-2012 clause 6 is used, with its structures."""

CALLS: Final = [line.split("(")[0].split()[-1] for line in DECLARATIONS.splitlines() if line.startswith("int SDF_")]

MEANINGS: Final = {
    0x01000001: "unknown error",
    0x01000002: "not supported",
    0x01000003: "communication with the device failed",
    0x01000004: "hardware failed",
    0x01000005: "the device cannot be opened",
    0x01000006: "the session cannot be opened",
    0x01000007: "no right to use the private key",
    0x01000008: "no such key",
    0x01000009: "algorithm not supported",
    0x0100000A: "mode not supported",
    0x0100000B: "public-key operation failed",
    0x0100000C: "private-key operation failed",
    0x0100000D: "signature failed",
    0x0100000E: "verification failed",
    0x0100000F: "symmetric operation failed",
    0x01000010: "steps out of order",
    0x01000014: "wrong kind of key",
    0x01000015: "key error",
}
"""GM/T 0018-2012 annex A; other codes are the vendor's."""

LOST: Final = (0x01000003, 0x01000004, 0x01000005, 0x01000006)
"""After these a session is good for nothing; what was asked is asked again on a new one, once."""

# SubjectPublicKeyInfo of an SM2 key up to its point (RFC 5480; GM/T 0006: 1.2.156.10197.1.301).
SPKI: Final = bytes.fromhex("3059301306072a8648ce3d020106082a811ccf5501822d03420004")
# y² = x³ + ax + b of GM/T 0003.5, as Z of GM/T 0003.2 clause 5.5 has it: a, b, xG, yG.
CURVE: Final = bytes.fromhex(
    "fffffffeffffffffffffffffffffffffffffffff00000000fffffffffffffffc"
    "28e9fa9e9d9f5e344d5a9e4bcf6509a7f39789f515ab8f92ddbcbd414d940e93"
    "32c4ae2c1f1981195f9904466a39c9948fe30bbff2660be1715a4589334c74c7"
    "bc3736a2f4f6779c59bdcee36b692153d0a9877cc62a474002df32e52139f0a0"
)
MAC_LABEL, ENCRYPT_LABEL = b"\x01" + bytes(15), b"\x02" + bytes(15)


class VendorMac(Protocol):
    """A vendor's one call for `KeyProvider.mac`: derived keys stay in the device. `session` and `key` are SDF handles."""

    def __call__(self, session: Any, key: Any, factors: Sequence[bytes], session_data: bytes, message: bytes) -> bytes: ...


class DeviceKey(NamedTuple):
    """A key of the file: wrapped under the device's key-encryption key or, where it signs, the index of the device's key pair."""

    stored: StoredKey
    sign_index: int

    @property
    def wrapped(self) -> bytes:
        return self.stored.sealed


def padded(message: bytes) -> bytes:
    """GB/T 15852.1 padding method 2."""
    return message + b"\x80" + bytes(-(len(message) + 1) % BLOCK)


def public_pem(point: bytes) -> bytes:
    """PEM of a public key x ‖ y."""
    text = base64.encodebytes(SPKI + point).decode().replace("\n", "")
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n".encode()


class Device:
    """A vendor's library, one device, and a pool of sessions. Raises ConfigError where the library is none."""

    def __init__(self, library: str, sessions_max: int = 4, pin: bytes | bytearray = b"") -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(DECLARATIONS)
        try:
            self._library = self.ffi.dlopen(library)
            for call in CALLS:
                getattr(self._library, call)
        except (OSError, AttributeError) as error:
            raise ConfigError("sdf_library", f"{library}: is no SDF library (GM/T 0018): {error}") from error
        self._pin = bytearray(pin)
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._free: list[Session] = []
        self._slots = threading.Semaphore(sessions_max)
        self._sessions_max = sessions_max
        self._told_at = -TELL_S
        self._workers = ThreadPoolExecutor(sessions_max, "key-device")

    def call(self, name: str, *arguments: Any) -> None:
        """Raises DeviceFailed unless it answers SDR_OK."""
        code = int(getattr(self._library, name)(*arguments)) & 0xFFFFFFFF
        if code != SDR_OK:
            raise DeviceFailed(name, code, MEANINGS.get(code, "the vendor's own code"))

    @contextmanager
    def session(self) -> Iterator["Session"]:
        """One of the pool, waiting for it where all are in use; what failed is not used again."""
        if not self._slots.acquire(timeout=limits.SDF_WAIT_S):
            raise DeviceFailed("waiting for a session", 0, "all are in use")
        try:
            with self._lock:
                session = self._free.pop() if self._free else None
            if session is None:
                session = self._open()
            try:
                yield session
            except DeviceFailed as error:
                if error.code in LOST:
                    self._discard(session)
                    raise
                self._give_back(session)
                raise
            except BaseException:
                self._give_back(session)
                raise
            else:
                self._give_back(session)
        finally:
            self._slots.release()

    def retried(self, work: Callable[["Session"], Any]) -> Any:
        """What work answers on a session; on a new one, once more, where the session was lost."""
        try:
            with self.session() as session:
                return work(session)
        except DeviceFailed as error:
            if error.code not in LOST:
                self._tell(error)
                raise
        self._forget()
        try:
            with self.session() as session:
                return work(session)
        except DeviceFailed as error:
            self._tell(error)
            raise

    def _tell(self, error: DeviceFailed) -> None:
        """Into the log, but not for each call of a storm."""
        if time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            log.error("%s", error)

    def spread(self, work: Callable[["Session", Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
        """What work answers for many items, in order; on all sessions at once, since calls mostly wait for the device."""
        size = max(SPREAD_ITEMS, -(-len(items) // self._sessions_max))
        if len(items) <= size:
            return list(self.retried(lambda session: work(session, items)))
        parts = [items[at : at + size] for at in range(0, len(items), size)]
        asked = [self._workers.submit(self.retried, functools.partial(_turned, work, part)) for part in parts]
        return [answer for each in asked for answer in each.result()]

    def close(self) -> None:
        self._workers.shutdown()
        self._forget()
        self._pin[:] = bytes(len(self._pin))

    def _open(self) -> "Session":
        with self._lock:
            if self._opened is None:
                handle = self.ffi.new("void **")
                self.call("SDF_OpenDevice", handle)
                self._opened = _Opened(handle[0])
            handle = self.ffi.new("void **")
            self.call("SDF_OpenSession", self._opened.handle, handle)
            self._opened.sessions += 1
            return Session(self, self._opened, handle[0])

    def _give_back(self, session: "Session") -> None:
        with self._lock:
            if session.opened is self._opened:
                self._free.append(session)
                return
        self._discard(session)

    def _discard(self, session: "Session") -> None:
        """Errors of what is given up are no news. A device is closed when the last of its sessions is."""
        self._library.SDF_CloseSession(session.handle)
        with self._lock:
            session.opened.sessions -= 1
            is_last = session.opened is not self._opened and session.opened.sessions == 0
        if is_last:
            self._library.SDF_CloseDevice(session.opened.handle)

    def _forget(self) -> None:
        """Give up the device and all its sessions: the next one opens it anew."""
        with self._lock:
            sessions, self._free = self._free, []
            opened, self._opened = self._opened, None
            is_last = opened is not None and opened.sessions == 0
        for session in sessions:
            self._discard(session)
        if opened is not None and is_last:
            self._library.SDF_CloseDevice(opened.handle)


def _turned(work: Callable[["Session", Sequence[Any]], list[Any]], items: Sequence[Any], session: "Session") -> list[Any]:
    return work(session, items)


class _Opened:
    """A device that was opened, and how many sessions it has."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.sessions = 0


class Session:
    """One session, with the keys that were imported into it."""

    def __init__(self, device: Device, opened: _Opened, handle: Any) -> None:
        self._device = device
        self.opened = opened
        self.handle = handle
        self._ffi = device.ffi
        self._keys: dict[Any, Any] = {}  # what it is → handle
        self._rights: set[int] = set()

    # ---- keys ----

    def import_wrapped(self, kek_index: int, wrapped: bytes) -> Any:
        """Handle of a key under the device's key-encryption key; kept with the session."""
        what = kek_index, wrapped
        if what not in self._keys:
            out = self._ffi.new("void **")
            self._device.call("SDF_ImportKeyWithKEK", self.handle, SGD_SM4_ECB, kek_index, wrapped, len(wrapped), out)
            self._keys[what] = out[0]
        return self._keys[what]

    def kept(self, what: Any, make: Callable[[], Any]) -> Any:
        """A handle that was made before, or is made now and kept."""
        if what not in self._keys:
            self._keys[what] = make()
        return self._keys[what]

    def derive(self, key: Any, block: bytes) -> Any:
        """Handle of the key SM4(key, block). It passes through this process: see the module."""
        derived, length = self._ffi.new("unsigned char[16]"), self._ffi.new("unsigned int *", BLOCK)
        out = self._ffi.new("void **")
        try:
            self._device.call("SDF_Encrypt", self.handle, key, SGD_SM4_ECB, self._ffi.NULL, block, len(block), derived, length)
            self._device.call("SDF_ImportKey", self.handle, derived, BLOCK, out)
        finally:
            self._ffi.memmove(derived, bytes(BLOCK), BLOCK)
        return out[0]

    def destroy(self, key: Any) -> None:
        self._device.call("SDF_DestroyKey", self.handle, key)

    # ---- what is done with them ----

    def encrypt(self, key: Any, algorithm: int, iv: bytes, data: bytes) -> bytes:
        return self._transform("SDF_Encrypt", key, algorithm, iv, data)

    def decrypt(self, key: Any, algorithm: int, iv: bytes, data: bytes) -> bytes:
        return self._transform("SDF_Decrypt", key, algorithm, iv, data)

    def _transform(self, call: str, key: Any, algorithm: int, iv: bytes, data: bytes) -> bytes:
        out, length = self._ffi.new("unsigned char[]", len(data)), self._ffi.new("unsigned int *", len(data))
        vector = self._ffi.new("unsigned char[16]", iv) if iv else self._ffi.NULL  # the device writes into it
        self._device.call(call, self.handle, key, algorithm, vector, data, len(data), out, length)
        if length[0] != len(data):
            raise DeviceFailed(call, 0, f"it answered {length[0]} bytes for {len(data)}")
        return bytes(self._ffi.buffer(out, len(data)))

    def mac(self, key: Any, message: bytes) -> bytes:
        """GB/T 15852.1 algorithm 1, padding method 2: the device does not pad."""
        data = padded(message)
        out, length = self._ffi.new("unsigned char[16]"), self._ffi.new("unsigned int *", BLOCK)
        vector = self._ffi.new("unsigned char[16]")
        self._device.call("SDF_CalculateMAC", self.handle, key, SGD_SM4_MAC, vector, data, len(data), out, length)
        if length[0] != BLOCK:
            raise DeviceFailed("SDF_CalculateMAC", 0, f"it answered {length[0]} bytes instead of {BLOCK}")
        return bytes(self._ffi.buffer(out, BLOCK))

    def public_point(self, index: int) -> bytes:
        """x ‖ y of the key pair for signing at this index."""
        out = self._ffi.new("ECCrefPublicKey *")
        self._device.call("SDF_ExportSignPublicKey_ECC", self.handle, index, out)
        if out.bits != 256:
            raise DeviceFailed("SDF_ExportSignPublicKey_ECC", 0, f"the key has {out.bits} bits, not 256")
        return bytes(self._ffi.buffer(out.x, 64))[32:] + bytes(self._ffi.buffer(out.y, 64))[32:]

    def sign(self, index: int, message: bytes) -> bytes:
        """SM2 with SM3 (GM/T 0003.2), r ‖ s, 64 bytes."""
        if index not in self._rights:
            pin = self._ffi.from_buffer("unsigned char[]", self._device._pin) if self._device._pin else self._ffi.NULL
            self._device.call("SDF_GetPrivateKeyAccessRight", self.handle, index, pin, len(self._device._pin))
            self._rights.add(index)
        out = self._ffi.new("ECCSignature *")
        digest = message_digest(self.public_point(index), message)
        self._device.call("SDF_InternalSign_ECC", self.handle, index, digest, len(digest), out)
        return bytes(self._ffi.buffer(out.r, 64))[32:] + bytes(self._ffi.buffer(out.s, 64))[32:]

    def generate_wrapped(self, kek_index: int) -> bytes:
        """A new key of 16 bytes under the device's key-encryption key; it never was outside."""
        out, length = self._ffi.new("unsigned char[64]"), self._ffi.new("unsigned int *", 64)
        key = self._ffi.new("void **")
        self._device.call("SDF_GenerateKeyWithKEK", self.handle, 128, SGD_SM4_ECB, kek_index, out, length, key)
        self.destroy(key[0])
        return bytes(self._ffi.buffer(out, length[0]))

    def info(self) -> tuple[str, str, str]:
        """Who made the device, its name and its serial number."""
        out = self._ffi.new("DEVICEINFO *")
        self._device.call("SDF_GetDeviceInfo", self.handle, out)
        texts = (bytes(self._ffi.buffer(field)) for field in (out.IssuerName, out.DeviceName, out.DeviceSerial))
        issuer, name, serial = (text.split(b"\0")[0].decode("ascii", "replace").strip() for text in texts)
        return issuer, name, serial

    def random(self, size: int) -> bytes:
        out = self._ffi.new("unsigned char[]", size)
        self._device.call("SDF_GenerateRandom", self.handle, size, out)
        return bytes(self._ffi.buffer(out, size))


def message_digest(point: bytes, message: bytes) -> bytes:
    """e = SM3(Z ‖ M) of GM/T 0003.2, with the user id of GM/T 0009."""
    z = sm3.digest((8 * len(USER_ID)).to_bytes(2, "big") + USER_ID + CURVE + point)
    return sm3.digest(z + message)


# ---- the key file ----

_TOP: Final = {"format", "kek_index", "sign_index", "keys", "signature"}


class DeviceFile(NamedTuple):
    """Keys of a device, as they stand in their file."""

    kek_index: int
    sign_index: int  # of the key pair that signs the file
    keys: dict[KeyReference, DeviceKey]
    signed: bytes
    signature: bytes  # r ‖ s

    @classmethod
    def read(cls, path: Path) -> "DeviceFile":
        """Raises ConfigError naming the field."""
        reader = FieldReader(path)
        document = reader.table(reader.read(), "", _TOP)
        reader.number(document, "", "format", FORMAT, FORMAT)
        keys: dict[KeyReference, DeviceKey] = {}
        for i, item in enumerate(reader.items(document["keys"], "keys", limits.KEYS_MAX)):
            place = f"keys[{i}]"
            if not isinstance(item, dict) or "sign_index" not in item:
                raise reader.fail(place, "a table with sign_index is wanted")
            sign_index = reader.number(item, f"{place}.", "sign_index", 0, 1 << 16)
            stored = reader.key({name: value for name, value in item.items() if name != "sign_index"}, place, 16)
            if stored.key in keys:
                raise reader.fail(place, f"{stored.describe()} stands there twice")
            if stored.key.purpose is Purpose.OIDC:
                raise reader.fail(f"{place}.purpose", "a device signs by SM2 alone, and oidc is a key on P-256")
            if (stored.key.purpose in SIGNING) != (sign_index > 0) or (sign_index > 0 and stored.sealed):
                raise reader.fail(f"{place}.sign_index", "keys that sign have one and no value, others a value and 0")
            keys[stored.key] = DeviceKey(stored, sign_index)
        unsigned = {name: value for name, value in document.items() if name != "signature"}
        return cls(
            reader.number(document, "", "kek_index", 1, 1 << 16), reader.number(document, "", "sign_index", 1, 1 << 16), keys,
            canonical(unsigned), reader.raw(document, "", "signature", 64, 64),
        )  # fmt: skip


def write_device_file(path: Path, device: Device, kek_index: int, sign_index: int, keys: Sequence[DeviceKey]) -> None:
    """Write the keys, signed by the device. Raises DeviceFailed or ConfigError."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "kek_index": kek_index,
        "sign_index": sign_index,
        "keys": [fields_of(key.stored) | {"sealed": key.wrapped.hex(), "sign_index": key.sign_index} for key in keys],
    }
    signature = device.retried(lambda session: session.sign(sign_index, canonical(document)))
    write_file(path, document | {"signature": signature.hex()})


# ---- the provider ----


class SdfProvider:
    """A KeyProvider over a device and its key file."""

    def __init__(
        self, device: Device, file: DeviceFile, vendor_mac: VendorMac | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        """Raises ConfigError where the file is not signed by the device, or a key is not what its check value says."""
        self._device = device
        self._before: Device | None = None
        self.file = file
        self._vendor_mac = vendor_mac
        self.now_s = now_s
        point = device.retried(lambda session: session.public_point(file.sign_index))
        if not PublicKey(public_pem(point)).verify_raw(file.signed, file.signature):
            raise ConfigError("keys", "the key file is not signed by this device")
        for key, of_device in file.keys.items():
            if of_device.stored.life.fate is None and self.check_value_now(key) != of_device.stored.check_value:
                raise ConfigError(
                    "keys", f"{of_device.stored.describe()} has another check value in the device: a wrong key-encryption key?"
                )

    @classmethod
    def of_files(cls, path: Path, library: str, pin: bytearray, sessions: int) -> "SdfProvider":
        file = DeviceFile.read(path)
        device = Device(library, sessions, pin)
        try:
            return cls(device, file)
        except BaseException:
            device.close()
            raise

    def __repr__(self) -> str:
        return f"SdfProvider({len(self.file.keys)} keys)"

    def adopt(self, other: "SdfProvider") -> None:
        """Use another one's keys and device from now on. Calls may be under way on the one before: it is closed with the next."""
        if self._before is not None:
            self._before.close()
        self._before = self._device
        self._device, self.file = other._device, other.file

    def close(self) -> None:
        for device in (self._before, self._device):
            if device is not None:
                device.close()

    def tap_keys(self) -> list[TapKey]:
        return [
            TapKey(
                key.issuer_id, key.key_version, key.key_index, stored.levels, None,
                stored.life.from_s, stored.life.grace_until_s if stored.life.until_s else 0, stored.life.fate is not None,
            )
            for key, (stored, _) in self.file.keys.items() if key.purpose is Purpose.TAC
        ]  # fmt: skip

    def levels(self, key: KeyReference) -> int:
        return self._find(key).stored.levels

    def newest(self, purpose: Purpose, issuer_id: bytes = ANY_ISSUER) -> KeyReference:
        fitting = [key for key in self.file.keys if key.purpose == purpose and key.issuer_id in (issuer_id, ANY_ISSUER)]
        now_s = self.now_s()
        active = [key for key in fitting if self.file.keys[key].stored.life.state(now_s) is KeyState.ACTIVE]
        if not fitting:
            raise KeyUnknown(KeyReference(purpose, 0, 0, issuer_id))
        newest = max(active or fitting, key=lambda key: (key.key_version, key.key_index))
        if not active:
            raise KeyRetired(newest)
        return newest

    def check_value(self, key: KeyReference) -> bytes:
        if key.purpose in SIGNING:
            raise KeyUnknown(key)
        self._good(key, *CHECKS)
        return self.check_value_now(key)

    def check_value_now(self, key: KeyReference) -> bytes:
        """What the device makes of a key, whatever its state: KCV, or of one that signs the first 3 bytes of SM3 over its PEM."""
        of_device = self._find(key)
        if of_device.sign_index:
            return sm3.digest(self._public_pem(of_device.sign_index))[:3]

        def work(session: Session) -> bytes:
            return session.encrypt(self._import(session, of_device), SGD_SM4_ECB, b"", bytes(BLOCK))[:3]

        value: bytes = self._device.retried(work)
        return value

    def mac(self, key: KeyReference, factors: Sequence[bytes], session: bytes, message: bytes) -> bytes:
        return self.mac_many(key, [(factors, session, message)])[0]

    def mac_many(self, key: KeyReference, items: Sequence[tuple[Sequence[bytes], bytes, bytes]]) -> list[bytes]:
        of_device = self._symmetric(key)
        for factors, session_data, _ in items:
            for factor in factors:
                if len(factor) != FACTOR_BYTES:
                    raise ValueError(f"a factor of {len(factor)} bytes: {FACTOR_BYTES} are wanted")
            if session_data and len(session_data) != SESSION_BYTES:
                raise ValueError(f"session data of {len(session_data)} bytes: {SESSION_BYTES} are wanted")

        def work(session: Session, part: Sequence[tuple[Sequence[bytes], bytes, bytes]]) -> list[bytes]:
            top = self._import(session, of_device)
            return [self._mac(session, of_device, top, *item) for item in part]

        return self._device.spread(work, items)

    def _mac(
        self, session: Session, of_device: DeviceKey, top: Any, factors: Sequence[bytes], session_data: bytes, message: bytes
    ) -> bytes:
        if self._vendor_mac is not None:
            return self._vendor_mac(session.handle, top, factors, session_data, message)
        blocks = [factor + bytes(byte ^ 0xFF for byte in factor) for factor in factors] + ([session_data] if session_data else [])
        parent = top
        if len(factors) == 2:  # the issuer's key: one of few, so it is made once a session
            parent = session.kept((of_device.wrapped, blocks[0]), lambda: session.derive(top, blocks[0]))
            blocks = blocks[1:]
        passing: list[Any] = []
        try:
            for block in blocks:
                passing.append(session.derive(passing[-1] if passing else parent, block))
            return session.mac(passing[-1] if passing else parent, message)
        finally:
            for handle in passing:
                session.destroy(handle)

    def seal(self, key: KeyReference, plaintext: bytes, associated: bytes) -> bytes:
        of_device = self._symmetric(key, KeyState.ACTIVE)
        iv = secrets.token_bytes(BLOCK)

        def work(session: Session) -> bytes:
            encrypting, checking = self._seal_keys(session, of_device)
            sealed = iv + session.encrypt(encrypting, SGD_SM4_CBC, iv, padded(plaintext))
            return sealed + session.mac(checking, _seal_message(sealed, associated))[:TAG_BYTES]

        sealed: bytes = self._device.retried(work)
        return sealed

    def open(self, key: KeyReference, sealed: bytes, associated: bytes) -> bytes:
        of_device = self._symmetric(key)
        if len(sealed) < 2 * BLOCK + TAG_BYTES or len(sealed) % BLOCK:
            raise SealedDataWrong("it is not as long as sealed data is")
        body, tag = bytes(sealed[:-TAG_BYTES]), sealed[-TAG_BYTES:]

        def work(session: Session) -> bytes:
            encrypting, checking = self._seal_keys(session, of_device)
            if not compare_digest(session.mac(checking, _seal_message(body, associated))[:TAG_BYTES], tag):
                raise SealedDataWrong("it was altered, or belongs to something else")
            return session.decrypt(encrypting, SGD_SM4_CBC, body[:BLOCK], body[BLOCK:])

        plain: bytes = self._device.retried(work)
        return plain.rstrip(b"\0")[:-1]

    def _seal_keys(self, session: Session, of_device: DeviceKey) -> tuple[Any, Any]:
        """The keys to encrypt and to check with: derived once a session."""
        top = self._import(session, of_device)
        encrypting, checking = (
            session.kept((of_device.wrapped, label), lambda label=label: session.derive(top, label))  # type: ignore[misc]
            for label in (ENCRYPT_LABEL, MAC_LABEL)
        )
        return encrypting, checking

    def index(self, key: KeyReference, data: bytes) -> bytes:
        of_device = self._symmetric(key)
        digest = sm3.digest(data)

        def work(session: Session) -> bytes:
            top = self._import(session, of_device)
            return session.mac(top, b"\x01" + digest) + session.mac(top, b"\x02" + digest)

        indexed: bytes = self._device.retried(work)
        return indexed

    def sign(self, key: KeyReference, message: bytes) -> bytes:
        index = self._signing(key, KeyState.ACTIVE)
        signature: bytes = self._device.retried(lambda session: session.sign(index, message))
        return signature

    def public_key(self, key: KeyReference) -> bytes:
        return self._public_pem(self._signing(key, *CHECKS))

    def _public_pem(self, index: int) -> bytes:
        return public_pem(self._device.retried(lambda session: session.public_point(index)))

    def _import(self, session: Session, of_device: DeviceKey) -> Any:
        return session.import_wrapped(self.file.kek_index, of_device.wrapped)

    def _find(self, key: KeyReference) -> DeviceKey:
        of_device = self.file.keys.get(key)
        if of_device is None:
            raise KeyUnknown(key)
        return of_device

    def _good(self, key: KeyReference, *states: KeyState) -> DeviceKey:
        of_device = self._find(key)
        state = of_device.stored.life.state(self.now_s())
        if state is KeyState.PRE_ACTIVE:
            raise KeyUnknown(key)
        if state not in states:
            raise KeyRetired(key)
        return of_device

    def _symmetric(self, key: KeyReference, *states: KeyState) -> DeviceKey:
        of_device = self._good(key, *(states or CHECKS))
        if of_device.sign_index:
            raise KeyUnknown(key)
        return of_device

    def _signing(self, key: KeyReference, *states: KeyState) -> int:
        of_device = self._good(key, *states)
        if not of_device.sign_index:
            raise KeyUnknown(key)
        return of_device.sign_index


def _seal_message(sealed: bytes, associated: bytes) -> bytes:
    """What the MAC covers: a block of lengths first, so that no message is the beginning of another (CBC-MAC is sound then)."""
    return len(associated).to_bytes(8, "big") + len(sealed).to_bytes(8, "big") + associated + sealed
