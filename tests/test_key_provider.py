"""Any KeyProvider, in software and in a device: what comes out is right, and nothing else does."""

from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from sdf_device import TestDevice

from yikatong.core.errors import ConfigError
from yikatong.core.keys.life import KeyState, Life
from yikatong.core.keys.provider import KeyReference, KeyRetired, KeyUnknown, Purpose, SealedDataWrong
from yikatong.core.keys.sdf import SdfProvider
from yikatong.core.keys.software import HeldKey, SoftwareProvider
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.ext.key_holder import KeyHolder

MASTER = bytes.fromhex("0123456789abcdeffedcba9876543210")
TAC_MASTER = bytes.fromhex("fedcba98765432100123456789abcdef")
ISSUER, SERIAL = bytes.fromhex("5980000100000000"), bytes.fromhex("3104416000000017")
PURCHASE, TAC = KeyReference(Purpose.PURCHASE, 1, 1, ISSUER), KeyReference(Purpose.TAC, 1, 1, ISSUER)
DATA, INDEX, SIGN = (
    KeyReference(Purpose.PERSON_DATA, 1),
    KeyReference(Purpose.PERSON_INDEX, 1),
    KeyReference(Purpose.ASSERTION, 1),
)


NOW_S = 1_000_000
KEYS = {PURCHASE: MASTER, TAC: TAC_MASTER, DATA: MASTER, INDEX: MASTER, DATA._replace(key_version=2): TAC_MASTER}
# One of each state that time leads to, and the two that people do: of another issuer, to be in nobody's way.
OF_STATES = {state: KeyReference(Purpose.TAC, int(state), 1, bytes(7) + b"\x01") for state in KeyState}
LIVES = {
    OF_STATES[KeyState.PRE_ACTIVE]: Life(NOW_S + 1),
    OF_STATES[KeyState.ACTIVE]: Life(NOW_S, NOW_S + 1, NOW_S + 2),
    OF_STATES[KeyState.RETIRING]: Life(0, NOW_S, NOW_S + 1),
    OF_STATES[KeyState.RETIRED]: Life(0, 1, NOW_S),
    OF_STATES[KeyState.COMPROMISED]: Life(fate=KeyState.COMPROMISED),
    OF_STATES[KeyState.DESTROYED]: Life(fate=KeyState.DESTROYED),
}
Provider = SoftwareProvider | SdfProvider


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> TestDevice:
    return TestDevice(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module", params=["software", "device"])
def provider(request: pytest.FixtureRequest, device: TestDevice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    made: Provider
    if request.param == "software":
        held: dict[KeyReference, bytes | HeldKey] = {**KEYS, SIGN: PrivateKey.make().private_pem()}
        for key, life in LIVES.items():
            held[key] = HeldKey(KeyHolder.take(bytearray(MASTER)), life=life)
        made = SoftwareProvider(held)
    else:
        path = tmp_path_factory.mktemp("keys") / "device.json"
        device.write(path, {**KEYS, SIGN: b"", **dict.fromkeys(LIVES, MASTER)}, LIVES)
        made = device.provider(path)
    made.now_s = lambda: NOW_S
    yield made
    if isinstance(made, SdfProvider):
        made.close()


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
    provider: Provider, key: KeyReference, factors: list[bytes], session: str, message: str, mac: str
) -> None:
    item = factors, bytes.fromhex(session), bytes.fromhex(message)
    assert provider.mac(key, *item).hex().startswith(mac)
    assert provider.mac_many(key, [item, item]) == [provider.mac(key, *item)] * 2


def test_check_value(provider: Provider) -> None:
    # SM4(K, 0) of GB/T 32907's key, by OpenSSL.
    zeros = Cipher(algorithms.SM4(MASTER), modes.ECB()).encryptor().update(bytes(16))
    assert provider.check_value(PURCHASE) == zeros[:3]


@given(plaintext=st.binary(max_size=200), associated=st.binary(max_size=40), at=st.integers(0), bit=st.integers(0, 7))
def test_what_was_sealed_comes_back_unless_it_was_touched(
    provider: Provider, plaintext: bytes, associated: bytes, at: int, bit: int
) -> None:
    sealed = bytearray(provider.seal(DATA, plaintext, associated))
    assert provider.open(DATA, bytes(sealed), associated) == plaintext
    for key, other in ((DATA._replace(key_version=2), associated), (DATA, associated + b"x")):
        with pytest.raises(SealedDataWrong):
            provider.open(key, bytes(sealed), other)
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(SealedDataWrong):
        provider.open(DATA, bytes(sealed), associated)


def test_the_index_hangs_on_key_and_data_alone(provider: Provider) -> None:
    number = b"44160219491231002X"
    index = provider.index(INDEX, number)
    assert len(index) == 32
    assert provider.index(INDEX, number) == index
    assert provider.index(INDEX, number[:-1]) != index
    assert provider.index(DATA._replace(key_version=2), number) != index


def test_in_software_the_index_is_hmac_sm3() -> None:
    other = hmac.HMAC(MASTER, hashes.SM3())
    other.update(b"44160219491231002X")
    assert SoftwareProvider({INDEX: MASTER}).index(INDEX, b"44160219491231002X") == other.finalize()


@pytest.mark.parametrize(
    ("state", "checks", "is_new"),
    [
        (KeyState.PRE_ACTIVE, KeyUnknown, False),
        (KeyState.ACTIVE, None, True),
        (KeyState.RETIRING, None, False),
        (KeyState.RETIRED, KeyRetired, False),
        (KeyState.COMPROMISED, KeyRetired, False),
        (KeyState.DESTROYED, KeyRetired, False),
    ],
)
def test_what_a_key_is_good_for(provider: Provider, state: KeyState, checks: type[Exception] | None, is_new: bool) -> None:
    key = OF_STATES[state]
    if checks is None:
        assert provider.mac(key, [], b"", b"").hex() == "8c338e5a27e349beae39214feda97099"
    else:
        with pytest.raises(KeyUnknown) as caught:
            provider.mac(key, [], b"", b"")
        assert type(caught.value) is checks
    assert (provider.newest(Purpose.TAC, key.issuer_id) == key) is is_new
    (tap_key,) = [each for each in provider.tap_keys() if each.reference == key]
    life = LIVES[key]
    assert (tap_key.from_s, tap_key.refused_from_s, tap_key.refused) == (life.from_s, life.grace_until_s, life.fate is not None)


def test_signatures_are_right_for_their_message_alone(provider: Provider) -> None:
    public = PublicKey(provider.public_key(SIGN))
    signature = provider.sign(SIGN, b"message")
    assert len(signature) == 64
    assert public.verify_raw(b"message", signature)
    assert not public.verify_raw(b"massage", signature)
    assert not public.verify_raw(b"message", signature[32:] + signature[:32])
    assert not public.verify_raw(b"message", signature[:63])


def test_the_newest_key_and_none(provider: Provider) -> None:
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


def test_wiped_keys_are_good_for_nothing() -> None:
    provider = SoftwareProvider(KEYS)
    provider.wipe()
    with pytest.raises(ValueError, match="wiped"):
        provider.mac(TAC, [], b"", b"")


def test_wrong_sizes(provider: Provider) -> None:
    with pytest.raises(ValueError, match="factor of 7 bytes"):
        provider.mac(TAC, [bytes(7)], b"", b"")
    with pytest.raises(ValueError, match="session data of 15 bytes"):
        provider.mac(TAC, [], bytes(15), b"")
    with pytest.raises(SealedDataWrong):
        provider.open(DATA, bytes(27), b"")
    with pytest.raises(ConfigError, match="16 bytes"):
        SoftwareProvider({DATA: bytes(15)})
    assert MASTER.hex() not in repr(provider)
