"""The log: citizen numbers are masked, what unexpected exceptions say is left out, all else is as it was."""

import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yikatong.core import logs
from yikatong.core.errors import CommitFailed

CITIZEN = "44162119900307002X"  # made up; its check character is right


def line(message: str, *arguments: Any, as_json: bool = False, error: BaseException | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("yikatong", logging.ERROR, "x.py", 1, message, arguments, info)
    return logs.formatter(json=as_json).format(record)


def check_character(first: str) -> str:
    """GB 11643 by its definition: the remainders of 2 to the power of the place."""
    total = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(first))
    return "0123456789X"[(12 - total % 11) % 11]


def test_the_example_is_a_citizen_number() -> None:
    assert check_character(CITIZEN[:17]) == CITIZEN[17]


MASKED = "4***************2X"
TEXTS = """
{0}                                   | {1}
number={0}, again {0}                 | number={1}, again {1}
b'{0}'                                | b'{1}'
张三{0}号                             | 张三{1}号
id{0}.                                | id{1}.
"""


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("row", TEXTS.strip().splitlines())
def test_citizen_numbers_are_masked(row: str, as_json: bool) -> None:
    text, want = (part.strip() for part in row.split("|"))
    for number, mask in ((CITIZEN, MASKED), (CITIZEN.lower(), MASKED.lower())):
        found = line("%s", text.format(number), as_json=as_json)
        assert want.format("", mask) in (json.loads(found)["message"] if as_json else found)
        assert number not in found


UNTOUCHED = [
    "record 123456789012345678 follows",  # sequences
    "1735000000000000 µs, 20250101083015",  # times
    "card 3104416000000017, 62284800001234567890",
    CITIZEN[:17] + "1",  # a wrong check character
    "441621199013074170",  # no month 13
    "x" + CITIZEN.replace("X", "") + "0",
    "0" + CITIZEN,
    CITIZEN[:17] + "10",
    "5980000100000000 d0da078da3d281ef5cb8e60ad761e971",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_other_numbers_are_left_alone(text: str) -> None:
    assert line("%s", text).endswith(text)


@given(district=st.integers(110_000, 659_999), day=st.dates(), serial=st.integers(1, 999))
def test_every_citizen_number_is_masked(district: int, day: Any, serial: int) -> None:
    if not 1850 <= day.year <= 2099:
        return
    first = f"{district}{day:%Y%m%d}{serial:03}"
    number = first + check_character(first)
    assert logs.masked(f"<{number}>") == f"<{number[0]}{'*' * 15}{number[-2:]}>"


@given(st.integers(0, 10**17))
def test_sequences_below_eighteen_digits_are_never_touched(number: int) -> None:
    assert logs.masked(str(number)) == str(number)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        try:
            if cause is not None:
                raise cause
        except BaseException as inner:
            raise error from inner
        raise error
    except BaseException as found:
        return found


@pytest.mark.parametrize("as_json", [False, True])
def test_what_an_unexpected_exception_says_is_left_out(as_json: bool) -> None:
    found = line("it failed", as_json=as_json, error=raised(ValueError("张三 secret"), KeyError("inner secret")))
    for kept in ("it failed", "ValueError", "KeyError", "test_logs.py", "in raised", logs.LEFT_OUT):
        assert kept in found
    assert "secret" not in found
    assert "张三" not in found


def test_what_disks_say_is_told() -> None:
    found = line("x", error=raised(CommitFailed("no space left"), OSError(28, "No space left on device")))
    assert "no space left" in found
    assert "No space left on device" in found


def test_an_exception_that_is_its_own_cause_ends() -> None:
    error = ValueError("x")
    error.__cause__ = error
    assert re.search("ValueError", logs.told(error))


def test_what_ends_a_thread_is_told_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess
    import sys

    code = (
        "import threading; from yikatong.core import logs; logs.configure(json=False)\n"
        "def f(): raise ValueError('secret of a thread')\n"
        "t = threading.Thread(target=f); t.start(); t.join()\n"
        "raise ValueError('secret of the process')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: " + logs.LEFT_OUT) == 2
    assert "secret" not in done.stderr
