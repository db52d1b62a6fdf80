"""SM3: every path against the standard's examples, OpenSSL (by hashlib, where Python has it) and gmssl."""

import hashlib
import threading

import numpy as np
import pytest
from gmssl import sm3 as gmssl_sm3
from hypothesis import given
from hypothesis import strategies as st

from yikatong.ext import sm3

# GB/T 32905-2016 annex A: a message of 3 bytes, and one of a whole block.
KNOWN = [
    (b"abc", "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),
    (b"abcd" * 16, "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"),
]


def oracle(message: bytes) -> bytes:
    if "sm3" in hashlib.algorithms_available:
        return hashlib.new("sm3", message).digest()
    return bytes.fromhex(gmssl_sm3.sm3_hash(list(message)))


@pytest.fixture(params=sm3.available_paths())
def on_path(request):
    before = sm3.path()
    sm3.force_path(request.param)
    yield
    sm3.force_path(before)


@pytest.mark.parametrize(("message", "digest"), KNOWN)
def test_known_answers(message: bytes, digest: str) -> None:
    assert sm3.digest(message).hex() == digest
    assert gmssl_sm3.sm3_hash(list(message)) == digest


@pytest.mark.parametrize(("message", "digest"), KNOWN)
@pytest.mark.usefixtures("on_path")
def test_known_answers_in_rows(message: bytes, digest: str) -> None:
    row = np.frombuffer(message[1:], np.uint8)
    assert [got.tobytes().hex() for got in sm3.digest_rows(message[0], np.tile(row, (37, 1)))] == [digest] * 37


@given(st.binary(max_size=400))
def test_one_message_against_the_oracle(message: bytes) -> None:
    assert sm3.digest(message) == oracle(message)


@pytest.mark.usefixtures("on_path")
def test_every_length_of_row_in_every_lane() -> None:
    """Lengths over several blocks and every place of the padding; counts that leave lanes over."""
    random = np.random.default_rng(5)
    for width in range(1, 200):
        rows = random.integers(0, 256, (width % 35 + 1, width), np.uint8)
        prefix = width * 7 % 256
        got = sm3.digest_rows(prefix, rows)
        for row, digest in zip(rows, got, strict=True):
            assert digest.tobytes() == oracle(bytes([prefix]) + row.tobytes()), width


@pytest.mark.usefixtures("on_path")
def test_the_longest_rows() -> None:
    rows = np.random.default_rng(6).integers(0, 256, (17, sm3.ROW_BYTES_MAX), np.uint8)
    assert [digest.tobytes() for digest in sm3.digest_rows(0, rows)] == [oracle(b"\0" + row.tobytes()) for row in rows]


def test_paths_agree_on_many() -> None:
    rows = np.random.default_rng(7).integers(0, 256, (5_003, 128), np.uint8)
    answers = []
    before = sm3.path()
    for name in sm3.available_paths():
        sm3.force_path(name)
        answers.append(sm3.digest_rows(1, rows))
    sm3.force_path(before)
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_threads_do_not_disturb_each_other() -> None:
    rows = np.random.default_rng(8).integers(0, 256, (20_000, 64), np.uint8)
    wanted = sm3.digest_rows(1, rows)
    out = np.zeros_like(wanted)
    halves = [slice(0, 9_999), slice(9_999, None)]
    threads = [threading.Thread(target=sm3.digest_rows, args=(1, rows[half], out[half])) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(out, wanted)


@pytest.mark.parametrize(
    ("prefix", "rows", "says"),
    [
        (256, np.zeros((1, 4), np.uint8), "prefix"),
        (0, np.zeros((2, 4), np.int8), "rows"),
        (0, np.zeros(4, np.uint8), "rows"),
        (0, np.zeros((2, 8), np.uint8)[:, ::2], "rows"),
        (0, np.zeros((2, 0), np.uint8), "width"),
        (0, np.zeros((2, sm3.ROW_BYTES_MAX + 1), np.uint8), "width"),
    ],
)
def test_wrong_arguments_are_named(prefix: int, rows: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sm3.digest_rows(prefix, rows)


def test_no_rows() -> None:
    assert sm3.digest_rows(0, np.zeros((0, 8), np.uint8)).shape == (0, 32)


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(ValueError, match="it can run"):
        sm3.force_path("abacus")
