"""SM2: the standard's own example, and three implementations that agree: OpenSSL (ours), gmssl, and arithmetic written here."""

import secrets
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import hashes
from gmssl import sm2 as gmssl_sm2
from gmssl import sm3 as gmssl_sm3
from hypothesis import given, settings
from hypothesis import strategies as st

from yikatong.core.errors import ConfigError
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.ext import sm2

USER_ID = b"1234567812345678"

# ---- the curve of GB/T 32918.5, by hand ----

P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
A = P - 3
B = 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
G = (
    0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
    0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0,
)
Point = tuple[int, int] | None


def add(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return one or other
    if one[0] == other[0]:
        if (one[1] + other[1]) % P == 0:
            return None
        slope = (3 * one[0] * one[0] + A) * pow(2 * one[1], -1, P)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, P)
    x = (slope * slope - one[0] - other[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


def times(number: int, point: Point) -> Point:
    total: Point = None
    while number:
        if number & 1:
            total = add(total, point)
        point = add(point, point)
        number >>= 1
    return total


def b32(number: int) -> bytes:
    return number.to_bytes(32, "big")


def sm3(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SM3())
    digest.update(data)
    return digest.finalize()


class Key(NamedTuple):
    private: int
    x: int
    y: int

    @property
    def point(self) -> bytes:
        return b"\4" + b32(self.x) + b32(self.y)

    def e(self, message: bytes, user_id: bytes) -> int:
        z = sm3((8 * len(user_id)).to_bytes(2, "big") + user_id + b"".join(map(b32, (A, B, *G, self.x, self.y))))
        return int.from_bytes(sm3(z + message), "big")

    def sign(self, message: bytes, user_id: bytes = USER_ID, k: int = 0) -> bytes:
        k = k or secrets.randbelow(N - 1) + 1
        point = times(k, G)
        assert point is not None
        r = (self.e(message, user_id) + point[0]) % N
        return b32(r) + b32(pow(1 + self.private, -1, N) * (k - r * self.private) % N)

    def verify(self, message: bytes, signature: bytes, user_id: bytes = USER_ID) -> bool:
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        if not (0 < r < N and 0 < s < N and (r + s) % N):
            return False
        point = add(times(s, G), times((r + s) % N, (self.x, self.y)))
        return point is not None and (self.e(message, user_id) + point[0]) % N == r


def key_of(private: int) -> Key:
    point = times(private, G)
    assert point is not None
    return Key(private, *point)


# ---- GM/T 0003.5, annex A: signing "message digest" over the recommended curve ----

EXAMPLE = key_of(0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8)
EXAMPLE_SIGNATURE = bytes.fromhex(
    "F5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3B1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA"
)


def test_the_standards_example() -> None:
    assert EXAMPLE.x == 0x09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020
    assert EXAMPLE.y == 0xCCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13
    k = 0x59276E27D506861A16680F3AD9C02DCCEF3CC1FA3CDBE4CE6D54B80DEAC1BC21
    assert EXAMPLE.sign(b"message digest", k=k) == EXAMPLE_SIGNATURE
    public = sm2.Public(EXAMPLE.point)
    assert public.verify(b"message digest", EXAMPLE_SIGNATURE)
    assert not public.verify(b"message digesu", EXAMPLE_SIGNATURE)
    assert not public.verify(b"message digest", EXAMPLE_SIGNATURE, b"1234567812345679")


# ---- against the others ----


def gmssl_of(key: Key) -> gmssl_sm2.CryptSM2:
    made = gmssl_sm2.CryptSM2(private_key=b32(key.private).hex(), public_key=key.point[1:].hex())
    made.public_key = key.point[1:].hex()  # it takes a leading 04 for the point's form, also where the number begins so
    return made


@settings(max_examples=15, deadline=None)
@given(private=st.integers(1, N - 2), message=st.binary(max_size=200), user_id=st.binary(min_size=1, max_size=40))
def test_others_signatures_are_right(private: int, message: bytes, user_id: bytes) -> None:
    key = key_of(private)
    public = sm2.Public(key.point)
    signature = key.sign(message, user_id)
    assert public.verify(message, signature, user_id)
    assert not public.verify(message + b"x", signature, user_id)
    assert not public.verify(message, signature, user_id + b"x")
    signature = bytes.fromhex(gmssl_of(key).sign_with_sm3(message or b"-"))
    assert public.verify(message or b"-", signature)


@settings(max_examples=10, deadline=None)
@given(message=st.binary(min_size=1, max_size=200))
def test_others_find_our_signatures_right(message: bytes) -> None:
    private = PrivateKey.make()
    point = private.public_key().point(compressed=False)
    key = Key(0, int.from_bytes(point[1:33], "big"), int.from_bytes(point[33:], "big"))
    signature = private.sign_raw(message)
    assert key.verify(message, signature)
    assert gmssl_of(key).verify_with_sm3(signature.hex(), message)
    assert private.public_key().verify(message, private.sign(message))
    assert key.verify(message, sm2.of_der(private.sign(message, b"somebody")), b"somebody")


def test_gmssl_digests_alike() -> None:
    """The oracle's own SM3 is what ours is compared with."""
    assert bytes.fromhex(gmssl_sm3.sm3_hash(list(b"abc"))) == sm3(b"abc")


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_touched_signature_is_wrong(at: int, bit: int) -> None:
    touched = bytearray(EXAMPLE_SIGNATURE)
    touched[at] ^= 1 << bit
    assert not sm2.Public(EXAMPLE.point).verify(b"message digest", bytes(touched))


R, S = (int.from_bytes(half, "big") for half in (EXAMPLE_SIGNATURE[:32], EXAMPLE_SIGNATURE[32:]))
MALLEABLE = [(0, S), (R, 0), (N, S), (R, N), (R + N, S), (R, S + N), (R, N - R), (2**256 - 1, S)]


@pytest.mark.parametrize(("r", "s"), MALLEABLE)
def test_numbers_out_of_range_are_wrong(r: int, s: int) -> None:
    signature = b32(r % 2**256) + b32(s % 2**256)
    assert EXAMPLE.verify(b"message digest", signature) is False
    assert not sm2.Public(EXAMPLE.point).verify(b"message digest", signature)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), EXAMPLE_SIGNATURE + b"\0", EXAMPLE_SIGNATURE[:63]])
def test_signatures_of_other_lengths_are_wrong(signature: bytes) -> None:
    assert not sm2.Public(EXAMPLE.point).verify(b"message digest", signature)


# ---- points ----


@settings(max_examples=20, deadline=None)
@given(st.integers(1, N - 1))
def test_compressed_points(private: int) -> None:
    key = key_of(private)
    compressed = bytes([2 + key.y % 2]) + b32(key.x)
    for point in (compressed, key.point):
        public = PublicKey.of_point(point)
        assert (public.point(), public.point(compressed=False)) == (compressed, key.point)
        assert PublicKey(public.pem()).point() == compressed


@pytest.mark.parametrize(
    "point",
    [
        b"",
        b"\0",
        bytes(33),
        bytes(65),
        b"\4" + b32(EXAMPLE.x) + b32(EXAMPLE.y + 1),
        b"\2" + b32(P),
        b"\2" + b32(P + 1),
        b"\5" + b32(EXAMPLE.x),
        b"\2" + b32(EXAMPLE.x) + b"\0",
        b"\6" + b32(EXAMPLE.x) + b32(EXAMPLE.y),
        b"\2" + b32(next(x for x in range(1, 100) if pow(x**3 + A * x + B, (P - 1) // 2, P) == P - 1)),
    ],
)
def test_what_is_no_point_is_refused(point: bytes) -> None:
    with pytest.raises(ValueError, match="point"):
        PublicKey.of_point(point)


# ---- DER ----


@settings(deadline=None)
@given(r=st.integers(0, 2**256 - 1), s=st.integers(0, 2**256 - 1))
def test_der_is_that_of_cryptography(r: int, s: int) -> None:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    der = sm2.to_der(b32(r) + b32(s))
    assert der == encode_dss_signature(r, s)
    assert sm2.of_der(der) == b32(r) + b32(s)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_whatever_is_read_as_der_is_written_so(data: bytes) -> None:
    try:
        raw = sm2.of_der(data)
    except ValueError:
        return
    assert sm2.to_der(raw) == data


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 71), bit=st.integers(0, 7))
def test_der_that_was_touched_is_never_the_same_signature(at: int, bit: int) -> None:
    der = bytearray(sm2.to_der(EXAMPLE_SIGNATURE))
    der[at % len(der)] ^= 1 << bit
    public = PublicKey.of_point(EXAMPLE.point)
    assert public.verify(b"message digest", sm2.to_der(EXAMPLE_SIGNATURE))
    assert not public.verify(b"message digest", bytes(der))
    assert not public.verify(b"message digest", sm2.to_der(EXAMPLE_SIGNATURE) + b"\0")


# ---- keys as files ----


def test_a_key_comes_back_from_its_pem() -> None:
    private = PrivateKey.make()
    again = PrivateKey(private.private_pem())
    assert again.public_pem() == private.public_pem()
    assert PublicKey(private.public_pem()).verify(b"x", again.sign(b"x"))
    assert private.sign(b"x") != private.sign(b"x")


def test_other_keys_are_refused_by_name() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = other.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for kind, text, reason in (
        (PrivateKey, pem, "another algorithm"),
        (PublicKey, public, "another algorithm"),
        (PrivateKey, public, "no PEM"),
        (PublicKey, b"x", "no PEM"),
        (PublicKey, b"", "no PEM"),
    ):
        with pytest.raises(ConfigError, match=f"^here: .*{reason}"):
            kind(text, "here")


def test_user_ids_have_a_bound() -> None:
    public, private = sm2.Public(EXAMPLE.point), sm2.Private.make()
    longest = bytes(sm2.USER_ID_BYTES_MAX)
    assert private.public().verify(b"x", private.sign(b"x", longest), longest)
    with pytest.raises(ValueError, match="user_id"):
        public.verify(b"x", bytes(64), longest + b"\0")
