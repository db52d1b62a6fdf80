"""yikatong.ext.sm4 in plain Python, on the package gmssl: slow and short. It is an oracle of the tests, and can stand
in where there is no compiler. Same names, signatures and errors as the native module."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gmssl.sm4 import SM4_DECRYPT, SM4_ENCRYPT, CryptSM4

from yikatong.ext.sm4_jobs import MAC_JOB as MAC_JOB
from yikatong.ext.sm4_jobs import check_jobs, make_jobs


def available_paths() -> list[str]:
    return ["gmssl"]


def path() -> str:
    return "gmssl"


def force_path(name: str) -> None:
    if name != "gmssl":
        raise ValueError(f"no SM4 path {name!r} in the Python twin; it can run gmssl")


def _check_length(name: str, value: bytes, wanted: int) -> None:
    if value is None or len(value) != wanted:
        raise ValueError(f"{name}: expected {wanted} bytes, not {'None' if value is None else len(value)}")


def _cipher(key: bytes, mode: int = SM4_ENCRYPT) -> CryptSM4:
    _check_length("key", key, 16)
    cipher = CryptSM4()
    cipher.set_key(key, mode)
    return cipher


def _block(cipher: CryptSM4, block: bytes) -> bytes:
    return bytes(cipher.one_round(cipher.sk, block))  # gmssl's name for all 32 rounds of one block


def expand_key(key: bytes) -> npt.NDArray[np.uint32]:
    return np.array(_cipher(key).sk, np.uint32)


def encrypt_block(key: bytes, block: bytes) -> bytes:
    _check_length("block", block, 16)
    return _block(_cipher(key), block)


def decrypt_block(key: bytes, block: bytes) -> bytes:
    _check_length("block", block, 16)
    return _block(_cipher(key, SM4_DECRYPT), block)


def cbc_mac(key: bytes, message: bytes) -> bytes:
    cipher = _cipher(key)
    padded = message + b"\x80" + bytes(-(len(message) + 1) % 16)
    chain = bytes(16)
    for start in range(0, len(padded), 16):
        chain = _block(cipher, bytes(a ^ b for a, b in zip(chain, padded[start : start + 16], strict=True)))
    return chain


def diversify(key: bytes, factor: bytes) -> bytes:
    _check_length("factor", factor, 8)
    return encrypt_block(key, factor + bytes(~byte & 0xFF for byte in factor))


def kcv(key: bytes) -> bytes:
    return encrypt_block(key, bytes(16))[:3]


def _mac(parent: bytes, job: Any) -> bytes:
    key, message = diversify(parent, job["serial"].tobytes()), job["message"].tobytes()
    if job["profile"] == 1:
        return cbc_mac(key, message[:22])[:4]
    atc = int(job["atc"])
    session_key = encrypt_block(key, atc.to_bytes(8, "big") + (atc ^ 0xFFFF).to_bytes(8, "big"))
    return cbc_mac(session_key, message)[:4]


def _compute(parents: npt.NDArray[np.uint8], jobs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The MACs, zeros where nothing can be proved, and where something can."""
    check_jobs(parents, jobs)
    provable = (jobs["parent_index"] >= 0) & np.isin(jobs["profile"], (1, 2))
    macs = np.zeros((len(jobs), 4), np.uint8)
    for i in np.flatnonzero(provable):
        macs[i] = np.frombuffer(_mac(parents[jobs[i]["parent_index"]].tobytes(), jobs[i]), np.uint8)
    return macs, provable


def compute_jobs(parents: npt.NDArray[np.uint8], jobs: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return _compute(parents, jobs)[0]


def verify_jobs(parents: npt.NDArray[np.uint8], jobs: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    macs, provable = _compute(parents, jobs)
    proved: npt.NDArray[np.bool_] = (macs == jobs["mac"]).all(axis=1) & provable
    return proved


def compute_macs(
    parents: npt.NDArray[np.uint8],
    parent_index: npt.NDArray[np.int32],
    profile: npt.NDArray[np.uint8],
    serials: npt.NDArray[np.uint8],
    messages: npt.NDArray[np.uint8],
    atcs: npt.NDArray[np.uint16],
) -> npt.NDArray[np.uint8]:
    return compute_jobs(parents, make_jobs(parent_index, profile, serials, messages, atcs))


def verify_macs(
    parents: npt.NDArray[np.uint8],
    parent_index: npt.NDArray[np.int32],
    profile: npt.NDArray[np.uint8],
    serials: npt.NDArray[np.uint8],
    messages: npt.NDArray[np.uint8],
    atcs: npt.NDArray[np.uint16],
    macs: npt.NDArray[np.uint8],
) -> npt.NDArray[np.bool_]:
    return verify_jobs(parents, make_jobs(parent_index, profile, serials, messages, atcs, macs))
