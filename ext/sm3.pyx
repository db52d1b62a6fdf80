"""SM3 (GB/T 32905), many messages of one length at a time: the leaves and nodes of a Merkle tree.

Rows are numpy arrays; the GIL is released. Which path works is decided once, the fastest that this processor can run; all
give the same answer, and tests hold them against each other."""

import numpy as np

from libc.stdint cimport uint8_t


cdef extern from "sm3.h" nogil:
    enum:
        YK_SM3_ROW_BYTES_MAX
    void yk_sm3(const uint8_t *message, size_t message_bytes, uint8_t *digest)
    void yk_sm3_rows(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests)
    const char *yk_sm3_path()
    const char *yk_sm3_path_runnable(size_t i)
    int yk_sm3_path_force(const char *name)


ROW_BYTES_MAX = YK_SM3_ROW_BYTES_MAX


def available_paths() -> list[str]:
    """The paths that this processor can run, fastest first; "scalar" is always the last."""
    cdef const char *name
    names = []
    while True:
        name = yk_sm3_path_runnable(len(names))
        if name == NULL:
            return names
        names.append(name.decode())


def path() -> str:
    """The path that works on rows."""
    return yk_sm3_path().decode()


def force_path(str name not None) -> None:
    """Let rows run on another path from now on, for tests and measurements. Raises ValueError if it is not one of
    available_paths()."""
    if yk_sm3_path_force(name.encode()) != 0:
        raise ValueError(f"no SM3 path {name!r} on this machine; it can run {', '.join(available_paths())}")


def digest(bytes message not None) -> bytes:
    """SM3 of one message, 32 bytes."""
    cdef uint8_t out[32]
    cdef const uint8_t *start = message
    cdef size_t n = len(message)
    with nogil:
        yk_sm3(start, n, out)
    return out[:32]


def digest_rows(int prefix, rows, out=None):
    """SM3(prefix || row) of each row: rows (n, width) uint8, C-contiguous, width 1 to ROW_BYTES_MAX; answers (n, 32) uint8, in
    `out` where that is given. Raises ValueError naming the argument that is wrong."""
    if not 0 <= prefix <= 255:
        raise ValueError(f"prefix: 0 to 255 is wanted, not {prefix}")
    if rows.ndim != 2 or rows.dtype != np.uint8 or not rows.flags.c_contiguous:
        raise ValueError("rows: a C-contiguous array (n, width) of uint8 is wanted")
    if not 1 <= rows.shape[1] <= YK_SM3_ROW_BYTES_MAX:
        raise ValueError(f"rows: a width of 1 to {YK_SM3_ROW_BYTES_MAX} bytes is wanted, not {rows.shape[1]}")
    if out is None:
        out = np.empty((rows.shape[0], 32), np.uint8)
    elif out.shape != (rows.shape[0], 32) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out: a C-contiguous array ({rows.shape[0]}, 32) of uint8 is wanted")
    cdef size_t n = rows.shape[0]
    cdef size_t width = rows.shape[1]
    if n == 0:
        return out
    cdef const uint8_t[:, ::1] source = rows
    cdef uint8_t[:, ::1] target = out
    cdef uint8_t first = prefix
    with nogil:
        yk_sm3_rows(first, &source[0, 0], width, n, &target[0, 0])
    return out
