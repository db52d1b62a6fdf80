"""SM4 (GB/T 32907), the MAC of GB/T 15852.1 made of it, and the proof of taps by the hundred thousand.

Keys, blocks and messages are bytes; batches are numpy arrays. Functions on batches release the GIL. The same names with the
same signatures are in yikatong.ext.sm4_twin, in plain Python.

Which path works on batches is decided once: the fastest that this processor can run, or the one that the environment
variable YIKATONG_SM4_PATH names. Importing this module raises ValueError if that one cannot run here.
"""

import os

import numpy as np

from yikatong.ext.sm4_jobs import MAC_JOB, check_jobs, make_jobs

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

__all__ = [
    "MAC_JOB",
    "available_paths",
    "cbc_mac",
    "compute_jobs",
    "compute_macs",
    "decrypt_block",
    "diversify",
    "encrypt_block",
    "expand_key",
    "force_path",
    "kcv",
    "make_jobs",
    "path",
    "verify_jobs",
    "verify_macs",
]

# Jobs are copied by chunks that stay in the cache, their indexes turned to pointers. A multiple of all paths' passes, so that
# chunks of one profile leave no lane empty.
cdef size_t CHUNK = 3840

assert MAC_JOB.itemsize == sizeof(yk_mac_job)


# ---- paths ----------------------------------------------------------------------------------------------------------


def available_paths() -> list[str]:
    """The paths that this processor can run, fastest first; "generic" is always the last."""
    cdef const char *name
    names = []
    while True:
        name = yk_sm4_path_runnable(len(names))
        if name == NULL:
            return names
        names.append(name.decode())


def path() -> str:
    """The path that works on batches."""
    return yk_sm4_path().decode()


def force_path(str name not None) -> None:
    """Let this module's batches run on another path from now on, for tests and measurements. Raises ValueError if it is not
    one of available_paths()."""
    if yk_sm4_path_force(name.encode()) != 0:
        raise ValueError(f"no SM4 path {name!r} on this machine; it can run {', '.join(available_paths())}")


if yk_sm4_path() == NULL:
    raise ValueError(
        f"YIKATONG_SM4_PATH is {os.environ.get('YIKATONG_SM4_PATH')!r}, "
        f"but the SM4 paths that can run on this machine are {', '.join(available_paths())}"
    )


# ---- one block, one message --------------------------------------------------------------------------------------------


cdef int check_length(str name, bytes value, Py_ssize_t wanted) except -1:
    if value is None or len(value) != wanted:
        raise ValueError(f"{name}: expected {wanted} bytes, not {'None' if value is None else len(value)}")
    return 0


def expand_key(bytes key):
    """The 32 round keys of a 16-byte key, (32,) uint32 (GB/T 32907-2016 clause 7.3). Raises ValueError on another length."""
    check_length("key", key, 16)
    round_keys = np.empty(32, np.uint32)
    cdef uint32_t[::1] view = round_keys
    yk_sm4_expand(<const uint8_t *>key, &view[0])
    return round_keys


def encrypt_block(bytes key, bytes block) -> bytes:
    """Encrypt 16 bytes under a 16-byte key (GB/T 32907-2016 clause 7.1). Raises ValueError on other lengths."""
    cdef uint32_t round_keys[32]
    cdef uint8_t out[16]
    check_length("key", key, 16)
    check_length("block", block, 16)
    yk_sm4_expand(<const uint8_t *>key, round_keys)
    yk_sm4_encrypt(round_keys, <const uint8_t *>block, out)
    yk_wipe(round_keys, sizeof(round_keys))
    return out[:16]


def decrypt_block(bytes key, bytes block) -> bytes:
    """Decrypt 16 bytes under a 16-byte key (GB/T 32907-2016 clause 7.2). Raises ValueError on other lengths."""
    cdef uint32_t round_keys[32]
    cdef uint8_t out[16]
    check_length("key", key, 16)
    check_length("block", block, 16)
    yk_sm4_expand(<const uint8_t *>key, round_keys)
    yk_sm4_decrypt(round_keys, <const uint8_t *>block, out)
    yk_wipe(round_keys, sizeof(round_keys))
    return out[:16]


def cbc_mac(bytes key, bytes message not None) -> bytes:
    """The MAC of a message of any length, all 16 bytes; taps carry the leftmost 4 (GB/T 15852.1-2020 algorithm 1, padding
    method 2, zero IV). Sound only where every message under a key has one fixed length. Raises ValueError unless the key has
    16 bytes."""
    cdef uint32_t round_keys[32]
    cdef uint8_t mac[16]
    cdef const uint8_t *start = message
    cdef size_t n = len(message)
    check_length("key", key, 16)
    yk_sm4_expand(<const uint8_t *>key, round_keys)
    with nogil:
        yk_sm4_cbc_mac(round_keys, start, n, mac)
    yk_wipe(round_keys, sizeof(round_keys))
    return mac[:16]


def diversify(bytes key, bytes factor) -> bytes:
    """One level of key derivation, SM4(key, factor || ~factor), with a factor of 8 bytes: the issuer identifier or the card
    serial. Raises ValueError on other lengths."""
    cdef uint32_t round_keys[32]
    cdef uint8_t derived[16]
    check_length("key", key, 16)
    check_length("factor", factor, 8)
    yk_sm4_expand(<const uint8_t *>key, round_keys)
    yk_sm4_diversify(round_keys, <const uint8_t *>factor, derived)
    yk_wipe(round_keys, sizeof(round_keys))
    try:
        return derived[:16]
    finally:
        yk_wipe(derived, sizeof(derived))


def kcv(bytes key) -> bytes:
    """Key check value: the leftmost 3 bytes of SM4(key, 0). Raises ValueError unless the key has 16 bytes."""
    return encrypt_block(key, bytes(16))[:3]


# ---- batches -----------------------------------------------------------------------------------------------------------


cdef void run_jobs(const uint32_t *round_keys, const yk_mac_job *jobs, size_t n, yk_mac_job *chunk, uint8_t *macs,
                   uint8_t *proved) noexcept nogil:
    """Fill macs (4 bytes a job) or, where that is NULL, proved. The first field of jobs is an index still."""
    cdef size_t start = 0
    cdef size_t count, i
    cdef int64_t index
    while start < n:
        count = min(n - start, CHUNK)
        memcpy(chunk, jobs + start, count * sizeof(yk_mac_job))
        for i in range(count):
            memcpy(&index, &chunk[i].parent, sizeof(index))
            if index < 0:
                chunk[i].parent = NULL
            else:
                chunk[i].parent = round_keys + 32 * index
        if macs == NULL:
            yk_mac_verify_batch(chunk, count, proved + start)
        else:
            yk_mac_batch(chunk, count)
            for i in range(count):
                memcpy(macs + 4 * (start + i), chunk[i].mac, 4)
        start += count


cdef object answer_jobs(object parents, object jobs, bint verify):
    check_jobs(parents, jobs)
    parents = np.ascontiguousarray(parents)
    jobs = np.ascontiguousarray(jobs)
    answer = np.empty(len(jobs), np.bool_) if verify else np.empty((len(jobs), 4), np.uint8)
    if len(jobs) == 0:
        return answer

    cdef size_t n = len(jobs)
    cdef size_t k = len(parents)
    cdef size_t i
    cdef const uint8_t[::1] key_bytes = parents.reshape(-1)
    cdef const uint8_t[::1] job_bytes = jobs.view(np.uint8)
    cdef uint8_t[::1] answer_bytes = answer.reshape(-1).view(np.uint8)
    cdef uint32_t *round_keys = <uint32_t *>malloc((k + 1) * 32 * sizeof(uint32_t))
    cdef yk_mac_job *chunk = <yk_mac_job *>malloc(min(n, CHUNK) * sizeof(yk_mac_job))
    try:
        if round_keys == NULL or chunk == NULL:
            raise MemoryError
        with nogil:
            for i in range(k):
                yk_sm4_expand(&key_bytes[16 * i], round_keys + 32 * i)
            run_jobs(round_keys, <const yk_mac_job *>&job_bytes[0], n, chunk, NULL if verify else &answer_bytes[0],
                     &answer_bytes[0])
            # Neither the parents' schedules nor right MACs of wrong taps stay on the heap.
            yk_wipe(round_keys, k * 32 * sizeof(uint32_t))
            yk_wipe(chunk, min(n, CHUNK) * sizeof(yk_mac_job))
    finally:
        free(round_keys)
        free(chunk)
    return answer


def compute_jobs(parents, jobs):
    """The MACs of an array of MAC_JOB, (n, 4) uint8; zeros where the job has no parent or an unknown profile. The jobs stay
    as they are. See compute_macs for the parents and errors."""
    return answer_jobs(parents, jobs, False)


def verify_jobs(parents, jobs):
    """Whether each MAC of an array of MAC_JOB is right, (n,) bool. See verify_macs for the parents and errors."""
    return answer_jobs(parents, jobs, True)


def compute_macs(parents, parent_index, profile, serials, messages, atcs):
    """The MACs of n taps, (n, 4) uint8: each under its card's key, derived from a parent key by the card serial.

    parents       (k, 16) uint8   keys above the cards': an issuer's, or the master with one level of derivation
    parent_index  (n,)    int32   which of them; -1: no such key
    profile       (n,)    uint8   1 e-purse (TAC), 2 account-based (session key by ATC)
    serials       (n, 8)  uint8   card serial, packed BCD
    messages      (n, 32) uint8   what the MAC covers; profile 1 uses the first 22 bytes
    atcs          (n,)    uint16  the card's transaction counter; profile 1 does not use it

    A tap without parent or of an unknown profile gets zeros. Expanded parents are wiped before the call returns. Raises
    ValueError naming the argument whose dtype, shape or range is wrong. GB/T 15852.1-2020 algorithm 1, padding method 2.
    """
    return answer_jobs(parents, make_jobs(parent_index, profile, serials, messages, atcs), False)


def verify_macs(parents, parent_index, profile, serials, messages, atcs, macs):
    """Whether each tap's MAC is right, (n,) bool, compared in constant time. macs is (n, 4) uint8; the other arguments and
    the errors are those of compute_macs. A tap without parent or of an unknown profile is not proved."""
    return answer_jobs(parents, make_jobs(parent_index, profile, serials, messages, atcs, macs), True)
