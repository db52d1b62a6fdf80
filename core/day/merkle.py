"""Merkle trees of SM3, in the shape of RFC 6962: leaf = SM3(00 ‖ data), node = SM3(01 ‖ left ‖ right), split at the largest
power of two below the number of leaves.

A large tree is made of whole subtrees of SUBTREE_LEAVES leaves, left to right, the last one smaller: that is this very shape.
Their roots are enough to make any leaf's path from that leaf's own subtree alone."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from yikatong.ext import sm3

LEAF, NODE = 0, 1
SUBTREE_LEAVES: Final = 1 << 16
DIGEST_BYTES: Final = 32
Bytes = npt.NDArray[np.uint8]

_POOL: Final = ThreadPoolExecutor(2)  # SM3 releases the GIL: two cores work on one level


def leaf(data: bytes) -> bytes:
    """The hash of one leaf."""
    return sm3.digest(bytes([LEAF]) + data)


def _rows(prefix: int, rows: Bytes) -> Bytes:
    """SM3 of each row behind a prefix, on two cores where there are many."""
    if len(rows) < 4096:
        return sm3.digest_rows(prefix, rows)
    out = np.empty((len(rows), DIGEST_BYTES), np.uint8)
    half = len(rows) // 2
    second = _POOL.submit(sm3.digest_rows, prefix, rows[half:], out[half:])
    sm3.digest_rows(prefix, rows[:half], out[:half])
    second.result()
    return out


def leaves(rows: Bytes) -> Bytes:
    """Hashes of leaves of one length: rows (n, width) uint8, width up to sm3.ROW_BYTES_MAX; (n, 32)."""
    return _rows(LEAF, rows)


def level_above(hashes: Bytes) -> Bytes:
    """The nodes above hashes, in pairs; one left over stands for itself."""
    pairs = len(hashes) // 2
    above = _rows(NODE, hashes[: 2 * pairs].reshape(pairs, 2 * DIGEST_BYTES))
    return np.concatenate([above, hashes[2 * pairs :]]) if len(hashes) % 2 else above


def root(hashes: Bytes) -> bytes:
    """The root above leaf hashes, or above the roots of whole subtrees. Of none it is SM3 of nothing."""
    if not len(hashes):
        return sm3.digest(b"")
    while len(hashes) > 1:
        hashes = level_above(hashes)
    return bytes(hashes[0])


def path(hashes: Bytes, index: int) -> list[bytes]:
    """What the leaf (or subtree) at `index` is hashed with on its way to the root, from below."""
    found = []
    while len(hashes) > 1:
        if index ^ 1 < len(hashes):
            found.append(hashes[index ^ 1].tobytes())
        hashes, index = level_above(hashes), index // 2
    return found


def root_of_path(leaf_hash: bytes, index: int, count: int, hashes: Sequence[bytes]) -> bytes | None:
    """The root that a path leads to from the leaf at `index` of `count`; None when the path has not that leaf's length."""
    if not 0 <= index < count:
        return None
    current, last, at = leaf_hash, count - 1, index
    remaining = iter(hashes)
    while last:
        if at % 2 or at < last:
            other = next(remaining, None)
            if other is None or len(other) != DIGEST_BYTES:
                return None
            current = sm3.digest(bytes([NODE]) + (other + current if at % 2 else current + other))
        at, last = at // 2, last // 2
    return None if next(remaining, None) is not None else current


class Tree:
    """Takes leaf hashes as they come, any number at a time, and keeps the roots of whole subtrees."""

    def __init__(self) -> None:
        self.count = 0
        self._roots: list[bytes] = []
        self._open: list[Bytes] = []
        self._open_leaves = 0

    def add(self, hashes: Bytes) -> None:
        """Leaf hashes (n, 32), in order."""
        self.count += len(hashes)
        while len(hashes):
            part = hashes[: SUBTREE_LEAVES - self._open_leaves]
            self._open.append(part.copy())
            self._open_leaves += len(part)
            hashes = hashes[len(part) :]
            if self._open_leaves == SUBTREE_LEAVES:
                self._close()

    def _close(self) -> None:
        if self._open:
            self._roots.append(root(np.concatenate(self._open)))
            self._open, self._open_leaves = [], 0

    def subtree_roots(self) -> Bytes:
        """(m, 32): the roots of all subtrees, the last one perhaps of fewer leaves. Nothing can be added any more."""
        self._close()
        return np.frombuffer(b"".join(self._roots), np.uint8).reshape(-1, DIGEST_BYTES)


def as_hex(hashes: Sequence[bytes]) -> list[str]:
    return [digest.hex() for digest in hashes]
