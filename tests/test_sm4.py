"""SM4 and tap MACs: every native path and the Python twin against published answers, each other, OpenSSL and gmssl."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import gmssl.sm4 as gmssl_sm4
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from yikatong.ext import sm4, sm4_twin
from yikatong.ext.sm4_jobs import MAC_JOB

TESTS = Path(__file__).resolve().parent
EXT = TESTS.parent / "ext"
VECTORS = json.loads((TESTS / "vectors/sm4.json").read_text())
RANDOM_TAPS = 100_000


@pytest.fixture(params=[*sm4.available_paths(), "gmssl"])
def impl(request):
    """The native module on one of its paths, or the twin."""
    if request.param == "gmssl":
        yield sm4_twin
        return
    before = sm4.path()
    sm4.force_path(request.param)
    yield sm4
    sm4.force_path(before)


@pytest.fixture(params=sm4.available_paths())
def native(request):
    before = sm4.path()
    sm4.force_path(request.param)
    yield sm4
    sm4.force_path(before)


# ---- oracles ---------------------------------------------------------------------------------------------------------


def openssl_block(key, blocks):
    return Cipher(algorithms.SM4(key), modes.ECB()).encryptor().update(blocks)


def openssl_mac(key, message):
    padded = message + b"\x80" + bytes(-(len(message) + 1) % 16)
    return Cipher(algorithms.SM4(key), modes.CBC(bytes(16))).encryptor().update(padded)[-16:]


def openssl_taps(parents, parent_index, profile, serials, messages, atcs):
    """MACs by OpenSSL. The card keys of one parent come out of one long ECB; the rest is one tap at a time."""
    blocks = np.concatenate([serials, ~serials], axis=1)
    keys = np.empty_like(blocks)
    for k, parent in enumerate(parents):
        mine = parent_index == k
        keys[mine] = np.frombuffer(openssl_block(parent.tobytes(), blocks[mine].tobytes()), np.uint8).reshape(-1, 16)
    macs = bytearray()
    for key, kind, message, atc in zip(keys, profile, messages, atcs.tolist(), strict=True):
        key, message = key.tobytes(), message.tobytes()
        if kind == 1:
            message = message[:22]
        else:
            key = openssl_block(key, atc.to_bytes(8, "big") + (atc ^ 0xFFFF).to_bytes(8, "big"))
        macs += openssl_mac(key, message)[:4]
    return np.frombuffer(bytes(macs), np.uint8).reshape(-1, 4)


class ManyGmssl:
    """gmssl's own key schedule and rounds over many keys at once. They are arithmetic on whole numbers, which works on
    arrays of numbers as well, all but the list that is its S-box: that becomes an array. (n, 16) in, (n, 16) out."""

    def __init__(self, keys):
        self.cipher = gmssl_sm4.CryptSM4()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gmssl_sm4, "SM4_BOXES_TABLE", np.array(gmssl_sm4.SM4_BOXES_TABLE, np.int64))
            self.cipher.set_key(list(keys.T.astype(np.int64)), gmssl_sm4.SM4_ENCRYPT)

    def encrypt(self, blocks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gmssl_sm4, "SM4_BOXES_TABLE", np.array(gmssl_sm4.SM4_BOXES_TABLE, np.int64))
            out = self.cipher.one_round(self.cipher.sk, list(blocks.T.astype(np.int64)))
        return np.stack(out, axis=1).astype(np.uint8)

    def mac(self, messages):
        n, width = messages.shape
        padded = np.zeros((n, (width + 16) // 16 * 16), np.uint8)
        padded[:, :width] = messages
        padded[:, width] = 0x80
        chain = np.zeros((n, 16), np.uint8)
        for start in range(0, padded.shape[1], 16):
            chain = self.encrypt(chain ^ padded[:, start : start + 16])
        return chain[:, :4]


def gmssl_taps(parents, parent_index, profile, serials, messages, atcs):
    keys = ManyGmssl(parents[parent_index]).encrypt(np.concatenate([serials, ~serials], axis=1))
    purse, account = profile == 1, profile == 2
    macs = np.empty((len(keys), 4), np.uint8)
    macs[purse] = ManyGmssl(keys[purse]).mac(messages[purse][:, :22])
    factors = np.zeros((len(keys), 16), np.uint8)
    factors[:, 6:8] = atcs.astype(">u2").view(np.uint8).reshape(-1, 2)
    factors[:, 14:16] = ~factors[:, 6:8]
    macs[account] = ManyGmssl(ManyGmssl(keys[account]).encrypt(factors[account])).mac(messages[account])
    return macs


def random_taps(n, parents=7, seed=1):
    """The arguments of compute_macs: both profiles and all parents mixed."""
    random = np.random.default_rng(seed)
    return (
        random.integers(0, 256, (parents, 16), np.uint8),
        random.integers(0, parents, n).astype(np.int32),
        random.integers(1, 3, n, np.uint8),
        random.integers(0, 256, (n, 8), np.uint8),
        random.integers(0, 256, (n, 32), np.uint8),
        random.integers(0, 65536, n).astype(np.uint16),
    )


@cache
def openssl_answers():
    return openssl_taps(*random_taps(RANDOM_TAPS))


# ---- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["block"], ids=lambda vector: f"{vector['times']} times")
@pytest.mark.parametrize("module", [sm4, sm4_twin], ids=["native", "gmssl"])
def test_block(module, vector):
    if vector["times"] > 1000 and module is sm4_twin:
        pytest.skip("minutes in plain Python")
    key = bytes.fromhex(vector["key"])
    block = plain = bytes.fromhex(vector["plain"])
    for _ in range(vector["times"]):
        block = module.encrypt_block(key, block)
    assert block.hex() == vector["cipher"]
    for _ in range(min(vector["times"], 1000)):
        block = module.decrypt_block(key, block)
    assert block == plain or vector["times"] > 1000


@pytest.mark.parametrize("vector", VECTORS["cbc_mac"], ids=lambda vector: repr(vector["message"]))
def test_cbc_mac(impl, vector):
    assert impl.cbc_mac(bytes.fromhex(vector["key"]), vector["message"].encode()).hex() == vector["mac"]


@pytest.mark.parametrize("vector", VECTORS["diversify"], ids=lambda vector: vector["source"])
def test_diversify(impl, vector):
    key = bytes.fromhex(vector["key"])
    for factor in vector["factors"]:
        key = impl.diversify(key, bytes.fromhex(factor))
    assert key.hex() == vector["derived"]


@pytest.mark.parametrize("vector", VECTORS["session_mac"], ids=lambda vector: vector["source"])
def test_session_mac(impl, vector):
    assert impl.cbc_mac(bytes.fromhex(vector["key"]), bytes.fromhex(vector["message"]))[:4].hex() == vector["mac"]


def test_account_session_key(impl):
    vector = VECTORS["account_session_key"]
    atc = vector["atc"]
    block = atc.to_bytes(8, "big") + (atc ^ 0xFFFF).to_bytes(8, "big")
    assert impl.encrypt_block(bytes.fromhex(vector["key"]), block).hex() == vector["session_key"]


@pytest.mark.parametrize("vector", VECTORS["tap"], ids=lambda vector: vector["source"])
def test_tap(impl, vector):
    parent = bytes.fromhex(vector["master"])
    if vector["issuer"]:
        parent = impl.diversify(parent, bytes.fromhex(vector["issuer"]))
    tap = (
        np.frombuffer(parent, np.uint8).reshape(1, 16),
        np.zeros(1, np.int32),
        np.array([vector["profile"]], np.uint8),
        np.frombuffer(bytes.fromhex(vector["serial"]), np.uint8).reshape(1, 8),
        np.frombuffer(bytes.fromhex(vector["message"]), np.uint8).reshape(1, 32),
        np.array([vector["atc"]], np.uint16),
    )
    macs = impl.compute_macs(*tap)
    assert macs.tobytes().hex() == vector["mac"]
    assert impl.verify_macs(*tap, macs).tolist() == [True]


def test_key_check_value(impl):
    key = bytes(range(16))
    assert impl.kcv(key) == openssl_block(key, bytes(16))[:3]


def test_expand_key():
    key = bytes.fromhex(VECTORS["block"][0]["key"])
    round_keys = sm4.expand_key(key)
    assert hex(round_keys[0]) == "0xf12186f9"  # GB/T 32907-2016 annex A.1
    assert hex(round_keys[31]) == "0x9124a012"
    assert (round_keys == sm4_twin.expand_key(key)).all()


# ---- agreement -------------------------------------------------------------------------------------------------------


def test_openssl_and_gmssl_agree_on_100_000_random_taps():
    taps = random_taps(RANDOM_TAPS)
    assert np.array_equal(gmssl_taps(*taps), openssl_answers())


def test_paths_agree_with_openssl_on_100_000_random_taps(native):
    taps, answers = random_taps(RANDOM_TAPS), openssl_answers()
    assert np.array_equal(native.compute_macs(*taps), answers)
    assert native.verify_macs(*taps, answers).all()


def test_twin_agrees_with_openssl_on_random_taps():
    parents, *columns = random_taps(RANDOM_TAPS)
    columns = [column[:400] for column in columns]
    answers = openssl_answers()[:400]
    assert np.array_equal(sm4_twin.compute_macs(parents, *columns), answers)
    assert sm4_twin.verify_macs(parents, *columns, answers).all()


AROUND_PASSES = sorted({n + d for n in (96, 128, 192, 256, 384, 3840, 7680) for d in (-1, 0, 1)})


@pytest.mark.parametrize("parents", [1, 7], ids=["one parent", "parents mixed"])
@pytest.mark.parametrize("profiles", [(1,), (2,), (1, 2)], ids=["purse", "account", "mixed"])
def test_batches_of_every_size(native, parents, profiles):
    """No tap is lost or mixed up at the borders of lanes, passes and chunks."""
    keys, index, profile, *columns = random_taps(8000, parents)
    profile = np.resize(np.array(profiles, np.uint8), len(index))
    chosen = sm4.path()
    sm4.force_path("generic")
    answers = sm4.compute_macs(keys, index, profile, *columns)
    sm4.force_path(chosen)
    for n in itertools.chain(range(71), AROUND_PASSES):
        taps = [keys, *(column[:n] for column in (index, profile, *columns))]
        assert np.array_equal(native.compute_macs(*taps), answers[:n]), n
        wrong = answers[:n].copy()
        wrong[::3, n % 4] ^= 1
        assert np.array_equal(native.verify_macs(*taps, wrong), np.arange(n) % 3 != 0), n


def test_threads_share_a_path(native):
    taps, answers = random_taps(20_000), openssl_taps(*random_taps(20_000))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(np.array_equal(native.compute_macs(*taps), answers))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.binary(max_size=100))
def test_any_message(key, message):
    assert sm4.cbc_mac(key, message) == sm4_twin.cbc_mac(key, message) == openssl_mac(key, message)


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_any_block(key, block):
    encrypted = sm4.encrypt_block(key, block)
    assert encrypted == sm4_twin.encrypt_block(key, block) == openssl_block(key, block)
    assert sm4.decrypt_block(key, encrypted) == sm4_twin.decrypt_block(key, encrypted) == block


# ---- refusals --------------------------------------------------------------------------------------------------------


def flipped_bits(width):
    """One row for each bit of `width` bytes, with that bit set."""
    return np.packbits(np.eye(8 * width, dtype=np.uint8), axis=1)


@pytest.mark.parametrize("profile", [1, 2])
def test_every_flipped_bit_of_a_mac_is_refused(impl, profile):
    """The first byte and the last, and each bit between."""
    flips = flipped_bits(4)
    parents, index, _, serials, messages, atcs = random_taps(1)
    taps = [
        parents,
        *(np.repeat(c, len(flips), axis=0) for c in (index, np.array([profile], np.uint8), serials, messages, atcs)),
    ]
    macs = impl.compute_macs(*taps)
    assert impl.verify_macs(*taps, macs).all()
    assert not impl.verify_macs(*taps, macs ^ flips).any()


@pytest.mark.parametrize("profile", [1, 2])
def test_every_flipped_bit_of_a_tap_is_refused(impl, profile):
    """And those that the profile does not cover do not matter: purse taps have no bytes 22 to 31, and no counter."""
    flips = flipped_bits(42)
    parents, index, _, serials, messages, atcs = random_taps(1)
    rows = np.concatenate([serials, messages, atcs.astype(">u2").view(np.uint8).reshape(1, 2)], axis=1) ^ flips
    index = np.zeros(len(flips), np.int32)
    profiles = np.full(len(flips), profile, np.uint8)
    changed = (
        rows[:, :8].copy(),
        rows[:, 8:40].copy(),
        rows[:, 40:].copy().view(">u2").reshape(-1).astype(np.uint16),
    )
    right = impl.compute_macs(parents, index[:1], profiles[:1], serials, messages, atcs)
    proved = impl.verify_macs(parents, index, profiles, *changed, np.repeat(right, len(flips), axis=0))
    covered = np.ones(len(flips), bool)
    if profile == 1:
        covered[8 * (8 + 22) :] = False
    assert np.array_equal(proved, ~covered)


def test_no_parent_and_unknown_profiles_are_not_proved(impl):
    parents, index, profile, *columns = random_taps(100)
    right = impl.compute_macs(parents, index, profile, *columns)
    index[::5] = -1
    profile[1::5] = [0, 3, 4, 255] * 5
    unprovable = np.arange(100) % 5 < 2
    macs = impl.compute_macs(parents, index, profile, *columns)
    assert not macs[unprovable].any()
    assert np.array_equal(macs[~unprovable], right[~unprovable])
    assert np.array_equal(impl.verify_macs(parents, index, profile, *columns, macs), ~unprovable)
    assert np.array_equal(impl.verify_macs(parents, index, profile, *columns, right), ~unprovable)


def test_no_parents_at_all(impl):
    _, index, *columns = random_taps(5)
    none = np.empty((0, 16), np.uint8)
    assert not impl.compute_macs(none, np.full_like(index, -1), *columns).any()
    with pytest.raises(ValueError, match="parent_index"):
        impl.compute_macs(none, np.zeros_like(index), *columns)


ARGUMENTS = ("parents", "parent_index", "profile", "serials", "messages", "atcs", "macs")


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_wrong_arrays_are_named(impl, argument):
    good = dict(zip(ARGUMENTS, (*random_taps(9), np.zeros((9, 4), np.uint8)), strict=True))
    array = good[argument]
    wrong = [array.astype(np.int64), array.tolist(), array.reshape(*array.shape, 1)]
    if argument == "parents":
        wrong.append(array[:, :15])
    else:
        wrong.append(array[:-1])
    if array.ndim == 2:
        wrong.append(array[:, :-1])
    for bad in wrong:
        if argument == "parent_index" and isinstance(bad, np.ndarray) and bad.shape == (8,):
            continue  # it sets the length that the others must have
        with pytest.raises(ValueError, match=rf"^{argument}: "):
            impl.verify_macs(**(good | {argument: bad}))


@pytest.mark.parametrize("index", [-2, 7, 2**31 - 1])
def test_parent_index_out_of_range(impl, index):
    parents, indexes, *columns = random_taps(9)
    indexes[4] = index
    with pytest.raises(ValueError, match=r"^parent_index: expected -1 to 6$"):
        impl.compute_macs(parents, indexes, *columns)


def test_arrays_need_not_be_contiguous(impl):
    parents, *columns = random_taps(60)
    expected = impl.compute_macs(parents, *columns)[::2]
    fortran = np.asfortranarray(parents)
    assert np.array_equal(impl.compute_macs(fortran, *(column[::2] for column in columns)), expected)


def test_jobs_are_the_columns(impl):
    parents, *columns = random_taps(60)
    macs = impl.compute_macs(parents, *columns)
    jobs = sm4.make_jobs(*columns, macs)
    assert jobs.dtype == MAC_JOB == impl.MAC_JOB
    assert impl.verify_jobs(parents, jobs).all()
    assert np.array_equal(impl.compute_jobs(parents, jobs), macs)
    assert impl.verify_jobs(parents, jobs[::-2]).all()
    with pytest.raises(ValueError, match=r"^jobs: "):
        impl.verify_jobs(parents, jobs["mac"])


def test_wrong_lengths_are_named(impl):
    key, block = bytes(16), bytes(16)
    for call, name in [
        (lambda: impl.encrypt_block(key[1:], block), "key"),
        (lambda: impl.encrypt_block(key, block + b"x"), "block"),
        (lambda: impl.decrypt_block(b"", block), "key"),
        (lambda: impl.decrypt_block(key, b""), "block"),
        (lambda: impl.expand_key(key * 2), "key"),
        (lambda: impl.cbc_mac(key[1:], b"message"), "key"),
        (lambda: impl.diversify(key, block), "factor"),
        (lambda: impl.diversify(b"k", bytes(8)), "key"),
        (lambda: impl.kcv(bytes(15)), "key"),
    ]:
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            call()


# ---- the bench -------------------------------------------------------------------------------------------------------


def test_bench_baseline_makes_the_same_macs():
    openssl_mac = pytest.importorskip("yikatong.bench.openssl_mac")
    parents, _, _, *columns = random_taps(500, parents=1)
    jobs = sm4.make_jobs(np.zeros(500, np.int32), np.ones(500, np.uint8), *columns)
    jobs["mac"][::2] = sm4.compute_jobs(parents, jobs)[::2]
    macs, proved = openssl_mac.verify_jobs(parents, jobs)
    assert np.array_equal(macs, sm4.compute_jobs(parents, jobs))
    assert np.array_equal(proved, np.arange(500) % 2 == 0)


def test_bench_runs_tiny():
    from yikatong.bench import mac

    results = mac.run(taps=300, seconds=0.0)
    assert {result["conditions"]["path"] for result in results} == set(sm4.available_paths())
    assert len({result["result_hash"] for result in results}) == 1
    assert all(result["ratio"] == result["value"] / result["baseline_value"] for result in results)


# ---- which path ------------------------------------------------------------------------------------------------------


def path_after_import(value):
    """What a fresh process says to YIKATONG_SM4_PATH: (exit status, output)."""
    environment = {name: text for name, text in os.environ.items() if name != "YIKATONG_SM4_PATH"}
    if value is not None:
        environment["YIKATONG_SM4_PATH"] = value
    code = "import yikatong.ext.sm4 as sm4; print(sm4.path())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_path_from_the_environment():
    fastest = sm4.available_paths()[0]
    assert path_after_import(None) == path_after_import("") == (0, fastest)
    for path in sm4.available_paths():
        assert path_after_import(path) == (0, path)


@pytest.mark.parametrize("value", ["avx1024", "GENERIC", "generic ", "gmssl"])
def test_an_impossible_path_in_the_environment_stops_the_import(value):
    status, message = path_after_import(value)
    assert status != 0
    assert message.startswith(f"ValueError: YIKATONG_SM4_PATH is {value!r}")
    assert all(path in message for path in sm4.available_paths())


def test_generic_is_always_there():
    assert sm4.available_paths()[-1] == "generic"


def test_forcing_a_path(impl):
    for name in impl.available_paths():
        impl.force_path(name)
        assert impl.path() == name
    with pytest.raises(ValueError, match=f"avx1024.*{impl.available_paths()[-1]}"):
        impl.force_path("avx1024")
    assert impl.path() == impl.available_paths()[-1]


# ---- what is in the C ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sm4.available_paths())
def test_no_trace_of_keys_is_left_on_the_stack(path, tmp_path):
    """sm4_residue.c compares the dead stacks of the same work under two keys; its last number is without the wipe."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path / "sm4_residue"
    sources = [TESTS / "sm4_residue.c", *(each for each in EXT.glob("sm4_*.c") if each.name != "sm4_gcm.c")]
    subprocess.run([compiler, "-std=gnu11", "-O3", f"-I{EXT}", *sources, "-o", program], check=True)
    done = subprocess.run([program, path], capture_output=True, text=True, check=True)
    computed, verified, unwiped = map(int, done.stdout.split())
    assert unwiped > 0
    assert (computed, verified) == (0, 0)


def test_constants_of_the_field_map():
    """Every number in sm4_field.h, from the two standards' definitions of their S-boxes and from L and L' on."""

    def multiply(a, b, polynomial):
        product = 0
        for bit in range(8):
            product ^= (a << bit) if b >> bit & 1 else 0
        for bit in range(14, 7, -1):
            product ^= (polynomial << (bit - 8)) if product >> bit & 1 else 0
        return product

    def power(a, exponent, polynomial):
        result = 1
        for _ in range(exponent):
            result = multiply(result, a, polynomial)
        return result

    def rotate(byte, bits):
        return (byte << bits | byte >> (8 - bits)) & 0xFF

    def apply(columns, byte):
        result = 0
        for bit, column in enumerate(columns):
            result ^= column if byte >> bit & 1 else 0
        return result

    def columns_of(function):
        return [function(1 << bit) for bit in range(8)]

    def inverse_of(function):
        table = {function(byte): byte for byte in range(256)}
        assert len(table) == 256
        return table.__getitem__

    aes, sm4_polynomial = 0x11B, 0x1F5
    root, scale = 0x86, 63

    def aes_affine(byte):  # FIPS 197 clause 5.1.1, without the constant
        return byte ^ rotate(byte, 1) ^ rotate(byte, 2) ^ rotate(byte, 3) ^ rotate(byte, 4)

    def sm4_affine(byte):  # S = A(1 / (A x + D3)) + D3, the rows of A being rotations of A7
        return sum(((rotate(0xA7, bit) & byte).bit_count() & 1) << bit for bit in range(8))

    def invert(byte, polynomial):
        return power(byte, 254, polynomial)

    aes_sbox = [aes_affine(invert(byte, aes)) ^ 0x63 for byte in range(256)]
    sbox = [sm4_affine(invert(sm4_affine(byte) ^ 0xD3, sm4_polynomial)) ^ 0xD3 for byte in range(256)]
    assert sbox == gmssl_sm4.SM4_BOXES_TABLE

    # The isomorphism takes x to the root, so it takes bit i to the root's i-th power.
    phi = columns_of(lambda bit: power(root, bit.bit_length() - 1, aes))
    phi_inverse, aes_affine_inverse = inverse_of(lambda byte: apply(phi, byte)), inverse_of(aes_affine)

    def into(byte):  # IN
        return multiply(scale, apply(phi, sm4_affine(byte)), aes)

    def out(byte):  # OUT, after AES's S-box
        return sm4_affine(phi_inverse(multiply(scale, aes_affine_inverse(byte), aes)))

    in_constant, out_constant = multiply(scale, apply(phi, 0xD3), aes), out(0x63) ^ 0xD3
    assert [out(aes_sbox[into(byte) ^ in_constant]) ^ out_constant for byte in range(256)] == sbox

    maps = {
        "HAT": (lambda byte: byte, None),
        "UNHAT": (lambda byte: byte, None),
        "CIPHER_P": (lambda byte: byte ^ byte >> 6, 0),
        "CIPHER_R": (lambda byte: rotate(byte, 2), 1),
        "KEY_0": (lambda byte: byte, 1),
        "KEY_1": (lambda byte: byte << 5 & 0xFF, 0),
        "KEY_2": (lambda byte: byte >> 3 ^ (byte << 7 & 0xFF), 0),
        "KEY_3": (lambda byte: byte >> 1, 0),
    }
    # A constant is the same in all bytes, so what L and L' make of it is a map of a byte.
    constants = {
        "CIPHER_R": lambda byte: rotate(byte, 2),
        "KEY_0": lambda byte: byte ^ rotate(byte, 5) ^ rotate(byte, 7),
    }
    header = (EXT / "sm4_field.h").read_text()

    def numbers(name):
        text = re.search(rf"\b{name}\b(?:\[\d+\])? (?:= )?\{{?([^;}}\n]*(?:\n    [^;}}\n]*)*)", header)[1]
        return [int(number, 16) for number in re.findall(r"0x[0-9a-f]+", text.split(", UN")[0])]

    def matrix(function):  # GF2P8AFFINEQB: the row of output bit 0 in byte 7, of bit 7 in byte 0
        columns = columns_of(function)
        rows = [sum((column >> bit & 1) << i for i, column in enumerate(columns)) for bit in range(8)]
        return sum(row << 8 * (7 - bit) for bit, row in enumerate(rows))

    for name, (byte_map, has_constant) in maps.items():
        if has_constant is None:
            whole = raw = into if name == "HAT" else inverse_of(into)
        else:
            whole = lambda byte, byte_map=byte_map: into(byte_map(out(byte)))  # noqa: E731
            raw = lambda byte, whole=whole: whole(aes_affine(byte))  # noqa: E731
        constant = into(constants[name](out_constant)) if has_constant else 0
        assert numbers(f"{name}_LOW") == [whole(nibble) ^ constant for nibble in range(16)], name
        high = [whole(nibble << 4) for nibble in range(16)]
        if name == "KEY_1":
            assert high == [0] * 16
        else:
            assert numbers(f"{name}_HIGH") == high, name
        assert int(re.search(rf"{name}_MATRIX = (0x[0-9a-f]+)", header)[1], 16) == matrix(raw), name
        if has_constant:
            found = re.search(rf"#define {name}_CONSTANT (0x[0-9a-f]+)", header)[1]
            assert int(found, 16) == into(constants[name](0xD3)), name

    def hat_word(word):
        return sum((into(word >> shift & 0xFF) ^ in_constant) << shift for shift in (0, 8, 16, 24))

    assert numbers("IN_CONSTANT") == [in_constant * 0x01010101]
    assert numbers("FK_HAT") == [hat_word(word) for word in gmssl_sm4.SM4_FK]
    assert numbers("CK_HAT") == [hat_word(word) for word in gmssl_sm4.SM4_CK]
