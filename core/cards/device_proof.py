"""What a phone and the core both compute: proofs by an activation secret and by a device's key, and the key's way to the phone.

All MACs are GB/T 15852.1 algorithm 1 by SM4 over messages of one fixed length each, since what they stand for is digested with
SM3 first. The device's key is 16 bytes; an activation secret is 32: 16 that prove, 16 that wrap."""

import hmac
import secrets
import struct
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from yikatong.core.keys.provider import GCM_NONCE_BYTES, GCM_TAG_BYTES, SealedDataWrong
from yikatong.ext import sm3, sm4

DEVICE_ID_BYTES: Final = 16
DEVICE_KEY_BYTES: Final = 16
ACTIVATION_SECRET_BYTES: Final = 32
PROOF_BYTES: Final = 32  # time 8 ‖ counter 8 ‖ MAC 16
MAC_BYTES: Final = 16
_ACTIVATION: Final = b"yikatong activation"
_DEVICE: Final = b"yikatong device "
_STAMP: Final = struct.Struct(">qQ")


class Proof(NamedTuple):
    """A device's proof, read: when and as how manyeth the device made it."""

    time_us: int
    counter: int
    mac: bytes


def message_of(method: str, *fields: bytes) -> bytes:
    """What a device proves: a method ("CodeService/GetCode") and what it is asked, field by field, each behind its length."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in (method.encode(), *fields))


def _mac(key: bytes, device_id: bytes, time_us: int, counter: int, message: bytes) -> bytes:
    mac: bytes = sm4.cbc_mac(key, _DEVICE + device_id + _STAMP.pack(time_us, counter) + sm3.digest(message))
    return mac


def make_proof(key: bytes, device_id: bytes, message: bytes, time_us: int, counter: int) -> bytes:
    """The phone's part: a proof, PROOF_BYTES."""
    return _STAMP.pack(time_us, counter) + _mac(key, device_id, time_us, counter, message)


def read_proof(proof: bytes) -> Proof | None:
    """A proof by its parts; None where it is not one."""
    if len(proof) != PROOF_BYTES:
        return None
    time_us, counter = _STAMP.unpack(proof[: _STAMP.size])
    return Proof(time_us, counter, proof[_STAMP.size :])


def is_right(key: bytes, device_id: bytes, message: bytes, proof: Proof) -> bool:
    """Whether the device with this key made a proof of this message. Takes the same time for any MAC."""
    return hmac.compare_digest(_mac(key, device_id, proof.time_us, proof.counter, message), proof.mac)


def activation_proof(secret: bytes, code: bytes, device_id: bytes, public_key: bytes) -> bytes:
    """That a phone has the activation secret of the e-card with this first-level code: MAC_BYTES."""
    proof: bytes = sm4.cbc_mac(secret[:16], sm3.digest(_ACTIVATION + code + device_id + public_key))
    return proof


def wrap(secret: bytes, device_id: bytes, key: bytes) -> bytes:
    """A device's key under the activation secret's second half: SM4-GCM (RFC 8998), nonce ‖ ciphertext ‖ tag."""
    nonce = secrets.token_bytes(GCM_NONCE_BYTES)
    encryptor = Cipher(algorithms.SM4(secret[16:]), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(device_id)
    return nonce + encryptor.update(key) + encryptor.finalize() + encryptor.tag


def unwrap(secret: bytes, device_id: bytes, wrapped: bytes) -> bytes:
    """What was wrapped. Raises SealedDataWrong."""
    if len(wrapped) != GCM_NONCE_BYTES + DEVICE_KEY_BYTES + GCM_TAG_BYTES:
        raise SealedDataWrong("a wrapped key has another length")
    mode = modes.GCM(wrapped[:GCM_NONCE_BYTES], wrapped[-GCM_TAG_BYTES:])
    decryptor = Cipher(algorithms.SM4(secret[16:]), mode).decryptor()
    decryptor.authenticate_additional_data(device_id)
    try:
        return decryptor.update(wrapped[GCM_NONCE_BYTES:-GCM_TAG_BYTES]) + decryptor.finalize()
    except InvalidTag:
        raise SealedDataWrong("it was wrapped under another secret, or for another device") from None
