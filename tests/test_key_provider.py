"""Any KeyProvider: what comes out is right, and nothing else does."""

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from yikatong.core.errors import ConfigError
from yikatong.core.keys.provider import KeyReference, KeyUnknown, Purpose, SealedDataWrong
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.sm2 import PrivateKey, PublicKey

MASTER = bytes.fromhex("0123456789abcdeffedcba9876543210")
TAC_MASTER = bytes.fromhex("fedcba98765432100123456789abcdef")
ISSUER, SERIAL = bytes.fromhex("5980000100000000"), bytes.fromhex("3104416000000017")
PURCHASE, TAC = KeyReference(Purpose.PURCHASE, 1, 1, ISSUER), KeyReference(Purpose.TAC, 1, 1, ISSUER)
DATA, INDEX, SIGN = (
    KeyReference(Purpose.PERSON_DATA, 1),
    KeyReference(Purpose.PERSON_INDEX, 1),
    KeyReference(Purpose.ASSERTION, 1),
)


@pytest.fixture(scope="module")
def provider() -> SoftwareProvider:
    return SoftwareProvider(
        {
            PURCHASE: MASTER, TAC: TAC_MASTER, DATA: MASTER, INDEX: MASTER, SIGN: PrivateKey.make().private_pem(),
            DATA._replace(key_version=2): TAC_MASTER,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "factors", "session", "message", "mac"),
    [
        # GB/T 15852.1-2020, annex B.
        (PURCHASE, [], "", b"".hex(), "8c338e5a27e349beae39214feda97099"),
        (PURCHASE, [], "", b"This is the test message for mac".hex(), "4b6553af3c4e27448412315ac7849535"),
        # profile.md's worked examples: MAC1 of a purchase, its TAC with two levels and with one, and a tap of profile 2.
        (PURCHASE, [ISSUER, SERIAL], "1122334400010001" "eeddccbbfffefffe",
         "000000c8" "06" "112233445566" "20250101" "083015", "5d63c1cb"),
        (TAC, [ISSUER, SERIAL], "", "000000c8" "06" "112233445566" "00000001" "20250101" "083015", "f99d1b15"),
        (TAC, [SERIAL], "", "000000c8" "06" "112233445566" "00000001" "20250101" "083015", "91f50fc0"),
        (TAC, [ISSUER, SERIAL], "000000000000" "0001" "000000000000" "fffe",
         "000000c8" "06" "112233445566" "00000001" "20250101" "083015" "0001" "03" "00000105" "000007", "b343e913"),
    ],
)  # fmt: skip
def test_macs_are_the_known_ones(
    provider: SoftwareProvider, key: KeyReference, factors: list[bytes], session: str, message: str, mac: str
) -> None:
    item = factors, bytes.fromhex(session), bytes.fromhex(message)
    assert provider.mac(key, *item).hex().startswith(mac)
    assert provider.mac_many(key, [item, item]) == [provider.mac(key, *item)] * 2


def test_check_value(provider: SoftwareProvider) -> None:
    # SM4(K, 0) of GB/T 32907's key, by OpenSSL.
    zeros = Cipher(algorithms.SM4(MASTER), modes.ECB()).encryptor().update(bytes(16))
    assert provider.check_value(PURCHASE) == zeros[:3]


@given(plaintext=st.binary(max_size=200), associated=st.binary(max_size=40), at=st.integers(0), bit=st.integers(0, 7))
def test_what_was_sealed_comes_back_unless_it_was_touched(
    provider: SoftwareProvider, plaintext: bytes, associated: bytes, at: int, bit: int
) -> None:
    sealed = bytearray(provider.seal(DATA, plaintext, associated))
    assert provider.open(DATA, bytes(sealed), associated) == plaintext
    for key, other in ((DATA._replace(key_version=2), associated), (DATA, associated + b"x")):
        with pytest.raises(SealedDataWrong):
            provider.open(key, bytes(sealed), other)
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(SealedDataWrong):
        provider.open(DATA, bytes(sealed), associated)


def test_the_index_is_hmac_sm3(provider: SoftwareProvider) -> None:
    other = hmac.HMAC(MASTER, hashes.SM3())
    other.update(b"44160219491231002X")
    assert provider.index(INDEX, b"44160219491231002X") == other.finalize()


def test_signatures_are_right_for_their_message_alone(provider: SoftwareProvider) -> None:
    public = PublicKey(provider.public_key(SIGN))
    signature = provider.sign(SIGN, b"message")
    assert len(signature) == 64
    assert public.verify_raw(b"message", signature)
    assert not public.verify_raw(b"massage", signature)
    assert not public.verify_raw(b"message", signature[32:] + signature[:32])
    assert not public.verify_raw(b"message", signature[:63])


def test_the_newest_key_and_none(provider: SoftwareProvider) -> None:
    assert provider.newest(Purpose.PERSON_DATA) == DATA._replace(key_version=2)
    assert provider.newest(Purpose.TAC, ISSUER) == TAC
    for ask in (
        lambda: provider.newest(Purpose.LOAD),
        lambda: provider.newest(Purpose.TAC, bytes(7) + b"1"),
        lambda: provider.mac(DATA._replace(key_version=9), [], b"", b""),
        lambda: provider.sign(DATA, b""),
        lambda: provider.seal(SIGN, b"", b""),
    ):
        with pytest.raises(KeyUnknown):
            ask()


def test_wrong_sizes(provider: SoftwareProvider) -> None:
    with pytest.raises(ValueError, match="factor of 7 bytes"):
        provider.mac(TAC, [bytes(7)], b"", b"")
    with pytest.raises(ValueError, match="session data of 15 bytes"):
        provider.mac(TAC, [], bytes(15), b"")
    with pytest.raises(SealedDataWrong):
        provider.open(DATA, bytes(27), b"")
    with pytest.raises(ConfigError, match="16 bytes"):
        SoftwareProvider({DATA: bytes(15)})
    assert MASTER.hex() not in repr(provider)
