"""Taps to prove, as numpy arrays: the form and the checks that the native module and its Python twin have in common."""

from typing import Any

import numpy as np
import numpy.typing as npt

#: One tap to prove: yk_mac_job of sm4.h byte for byte, with an index into the parent keys where C has a pointer.
MAC_JOB = np.dtype(
    [
        ("parent_index", np.int64),  # which parent key; -1: there is none, and nothing can be proved
        ("serial", np.uint8, 8),  # card serial, packed BCD: the diversification factor
        ("message", np.uint8, 32),  # profile 1 uses the first 22 bytes
        ("atc", ">u2"),  # profile 2
        ("profile", np.uint8),  # 1 e-purse, 2 account; anything else cannot be proved
        ("reserved", np.uint8),
        ("mac", np.uint8, 4),
    ]
)


def check_array(name: str, array: npt.NDArray[Any], dtype: npt.DTypeLike, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError naming the argument unless it is an array of that dtype and shape (None: any length)."""
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name}: expected an array of {np.dtype(dtype).name}, not {found}")
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("n" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: expected shape ({wanted}), not {array.shape}")


def check_jobs(parents: npt.NDArray[np.uint8], jobs: npt.NDArray[Any]) -> None:
    """Raise ValueError unless parents is (k, 16) uint8, jobs is (n,) MAC_JOB and each parent_index is -1 or below k."""
    check_array("parents", parents, np.uint8, (None, 16))
    check_array("jobs", jobs, MAC_JOB, (None,))
    index = jobs["parent_index"]
    if len(jobs) and (index.min() < -1 or index.max() >= len(parents)):
        raise ValueError(f"parent_index: expected -1 to {len(parents) - 1}")


def make_jobs(
    parent_index: npt.NDArray[np.int32],
    profile: npt.NDArray[np.uint8],
    serials: npt.NDArray[np.uint8],
    messages: npt.NDArray[np.uint8],
    atcs: npt.NDArray[np.uint16],
    macs: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[Any]:
    """Columns to an array of MAC_JOB; yikatong.ext.sm4.verify_macs says what they are. Raises ValueError naming the
    column whose dtype or shape is wrong."""
    check_array("parent_index", parent_index, np.int32, (None,))
    n = len(parent_index)
    check_array("profile", profile, np.uint8, (n,))
    check_array("serials", serials, np.uint8, (n, 8))
    check_array("messages", messages, np.uint8, (n, 32))
    check_array("atcs", atcs, np.uint16, (n,))
    jobs = np.zeros(n, MAC_JOB)
    jobs["parent_index"] = parent_index
    jobs["profile"] = profile
    jobs["serial"] = serials
    jobs["message"] = messages
    jobs["atc"] = atcs
    if macs is not None:
        check_array("macs", macs, np.uint8, (n, 4))
        jobs["mac"] = macs
    return jobs
