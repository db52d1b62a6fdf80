"""Named places at which tests kill the process or make a step fail.

YIKATONG_FAILPOINT=NAME[:HIT][:ACTION] acts at the HIT-th time (1 unless given) that NAME is passed: `kill` (SIGKILL to this
process, the default) or `error` (OSError as of a full disk, from then on)."""

import errno
import os
import signal
from typing import Final

NAMES: Final = (
    "journal-before-append",
    "journal-after-append",
    "journal-before-commit",
    "journal-after-commit",
    "checkpoint-before-write",
    "checkpoint-middle",
    "checkpoint-before-commit",
    "checkpoint-after-commit",
)

DAY_NAMES: Final = (
    "clear-planned",
    "clear-tallied",
    "clear-kept",
    "clear-posted",
    "settle-written",
    "settle-issued",
    "seal-made",
    "seal-kept",
)
"""Between the steps of clearing, settling and sealing a window (core/day/day.py)."""

CODE_NAMES: Final = ("code-reserved",)
"""Between a code's reservation and its tap (core/cards/codes.py)."""

ALL_NAMES: Final = (*NAMES, *DAY_NAMES, *CODE_NAMES)

_hits: dict[str, int] = {}


def _parse(text: str) -> tuple[str, int, str]:
    name, _, rest = text.partition(":")
    hit, _, action = rest.partition(":")
    if name not in ALL_NAMES or (action or "kill") not in ("kill", "error") or not (hit or "1").isdigit():
        raise ValueError(f"YIKATONG_FAILPOINT: {text!r} is not NAME[:HIT][:ACTION] with a NAME of {', '.join(ALL_NAMES)}")
    return name, int(hit or "1"), action or "kill"


_armed = _parse(os.environ["YIKATONG_FAILPOINT"]) if os.environ.get("YIKATONG_FAILPOINT") else None


def failpoint(name: str) -> None:
    """Pass a named place."""
    if _armed is None or _armed[0] != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _armed[2] == "kill" and _hits[name] == _armed[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    if _armed[2] == "error" and _hits[name] >= _armed[1]:
        raise OSError(errno.ENOSPC, "no space left on device (failpoint)")
