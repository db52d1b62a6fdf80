"""Keys outside Python's objects: right answers, and nothing left of a key that was let go."""

import ctypes
import mmap
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from yikatong.ext import sm4
from yikatong.ext.key_holder import KeyHolder

KEY = bytes.fromhex("0123456789abcdeffedcba9876543210")
MEMORY = st.binary(min_size=16, max_size=16)


def held(key: bytes = KEY) -> KeyHolder:
    return KeyHolder.take(bytearray(key))


def test_sm4_gcm_of_rfc_8998() -> None:
    """Appendix A.1."""
    nonce, associated = bytes.fromhex("00001234567800000000abcd"), bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    plaintext = bytes.fromhex(
        "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccddddddddddddddddeeeeeeeeeeeeeeeeffffffffffffffffeeeeeeeeeeeeeeeeaaaaaaaaaaaaaaaa"
    )
    sealed = bytes.fromhex(
        "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d"
        "83de3541e4c2b58177e065a9bf7b62ec"
    )
    assert held().open(nonce + sealed, associated) == plaintext


@given(key=MEMORY, plaintext=st.binary(max_size=100), associated=st.binary(max_size=50))
def test_it_agrees_with_openssl(key: bytes, plaintext: bytes, associated: bytes) -> None:
    sealed = held(key).seal(plaintext, associated)
    encryptor = Cipher(algorithms.SM4(key), modes.GCM(sealed[:12])).encryptor()
    encryptor.authenticate_additional_data(associated)
    assert sealed[12:] == encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag
    assert held(key).open(sealed, associated) == plaintext
    other = hmac.HMAC(key, hashes.SM3())
    other.update(plaintext)
    assert held(key).hmac(plaintext) == other.finalize()
    assert held(key).mac([], b"", plaintext) == sm4.cbc_mac(key, plaintext)
    assert held(key).check_value() == sm4.kcv(key)


@given(left=MEMORY, right=MEMORY, factor=st.binary(min_size=8, max_size=8))
def test_keys_made_of_keys(left: bytes, right: bytes, factor: bytes) -> None:
    both = bytes(a ^ b for a, b in zip(left, right, strict=True))
    assert held(left).xor(held(right)).same(held(both))
    assert held(left).diversify(factor).same(held(sm4.diversify(left, factor)))
    assert held(left).same(held(right)) is (left == right)
    opened = held(left).open_key(held(left).seal_key(held(right), b"for"), b"for")
    assert opened is not None
    assert opened.same(held(right))
    assert held(left).open_key(held(left).seal_key(held(right), b"for"), b"other") is None


def test_what_was_taken_is_wiped_and_what_is_wiped_is_gone() -> None:
    material = bytearray(KEY)
    key = KeyHolder.take(material)
    assert material == bytes(16)
    assert key.locked
    assert "0123" not in repr(key)
    key.wipe()
    key.wipe()
    for use in (
        key.check_value,
        lambda: key.mac([], b"", b""),
        lambda: key.seal(b"", b""),
        lambda: key.open(bytes(28), b""),
        lambda: key.hmac(b""),
        lambda: key.xor(held()),
        lambda: held().seal_key(key, b""),
        lambda: key.diversify(bytes(8)),
    ):
        with pytest.raises(ValueError, match="wiped"):
            use()
    with pytest.raises(TypeError, match="not written anywhere"):
        pickle.dumps(held())


def _find(pattern: bytes) -> int:
    """How often a pattern stands in this process's writable memory. What is read lands in one buffer, which is not looked at: it
    would hold what was found, and leave it behind."""
    with mmap.mmap(-1, 1 << 20) as buffer, Path("/proc/self/mem").open("rb", 0) as memory:
        own = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        return sum(
            _find_between(pattern, memory, buffer, begin, end)
            for start, stop in _writable()
            for begin, end in ((start, min(stop, own)), (max(start, own + len(buffer)), stop))
            if begin < end
        )


def _writable() -> list[tuple[int, int]]:
    spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    kept = [span for span, rights, *rest in spans if rights.startswith("rw") and not (len(rest) > 3 and rest[3].startswith("[v"))]
    return [(int(start, 16), int(end, 16)) for start, _, end in (span.partition("-") for span in kept)]


def _find_between(pattern: bytes, memory: Any, buffer: mmap.mmap, start: int, end: int) -> int:
    found = 0
    while start < end:
        try:
            memory.seek(start)
            n = memory.readinto(memoryview(buffer)[: min(len(buffer), end - start)])
        except (OSError, ValueError, OverflowError):
            return found
        at = -1
        while (at := buffer.find(pattern, at + 1, n)) >= 0:
            found += 1
        if start + n >= end:
            break
        start += n - len(pattern) + 1
    return found


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="memory can be read so on Linux only")
def test_one_copy_is_in_memory_and_none_afterwards() -> None:
    key = KeyHolder.random()
    sealing = KeyHolder.random()
    marked = bytearray(16)
    sealed = sealing.seal_key(key, b"")
    key.copy_into(marked)
    pattern = bytes(byte ^ 0x5A for byte in marked)  # never itself: what is looked for would be found in what looks
    marked[:] = bytes(16)
    del marked
    key.mac([bytes(8)], bytes(16), b"message")
    key.seal(b"plaintext", b"")
    key.hmac(b"data")
    again = sealing.open_key(sealed, b"")
    assert again is not None

    def count() -> int:
        wanted = bytearray(byte ^ 0x5A for byte in pattern)
        found = _find(wanted)  # itself among them
        wanted[:] = bytes(16)
        return found

    two = count()
    again.wipe()
    one = count()
    key.wipe()
    assert (two - one, one - count()) == (1, 1)
    assert count() <= 2  # what looks for it, and nothing of the holders


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_has_no_key() -> None:
    key = held()
    right = key.check_value()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        empty = bytearray(16)
        key.copy_into(empty)
        os.write(writing, bytes(empty))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 16) == bytes(16)
    assert key.check_value() == right


def test_wrong_sizes() -> None:
    for use, says in (
        (lambda: KeyHolder.take(bytearray(15)), "15 bytes"),
        (lambda: held().diversify(bytes(7)), "7 bytes"),
        (lambda: held().mac([bytes(9)], b"", b""), "9 bytes"),
        (lambda: held().mac([], bytes(15), b""), "15 bytes"),
        (lambda: held().copy_into(bytearray(17)), "17 bytes"),
    ):
        with pytest.raises(ValueError, match=says):
            use()
    assert held().open(bytes(27), b"") is None
    assert held().open_key(bytes(43), b"") is None
