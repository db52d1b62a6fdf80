"""The offline ride code: every field there and back, the checks in their order, and no byte that can be altered."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yikatong.core import limits
from yikatong.core.cards.ride_code import (
    CERTIFICATE_BYTES,
    Checker,
    CodeMalformed,
    IssuerPart,
    RideCode,
    make_certificate,
    make_code,
    make_issuer_part,
    read,
    read_certificate,
)
from yikatong.core.sm2 import PrivateKey
from yikatong.core.types import Result

AUTHORITY, ISSUER, PHONE, STRANGER = (PrivateKey.make() for _ in range(4))
ISSUER_ID, PLATFORM = b"\x59\x80\x00\x01", b"\x59\x80\x00\x09"
NOW_S = 1_735_689_600  # 2025-01-01 08:00 in China
NUMBER = "9156000000000000018"


def certificate(authority: PrivateKey = AUTHORITY, expiry: int = 202_501, issuer: bytes = ISSUER_ID, **fields: Any) -> bytes:
    return make_certificate(ISSUER.public_key().point(), issuer, expiry, authority.sign_raw, **fields)


PART = IssuerPart(
    "6000000000000018", NUMBER, ISSUER_ID, PLATFORM, 1, 500, PHONE.public_key().point(), NOW_S + 3_600, 30, bytes(range(16))
)
CERTIFICATE = certificate()
ISSUED = make_issuer_part(PART, ISSUER.sign_raw, CERTIFICATE)
CODE = make_code(ISSUED, PHONE, NOW_S)


def checker(**options: Any) -> Checker:
    return Checker({1: AUTHORITY.public_key()}, **options)


def test_fields_stand_where_the_profile_says() -> None:
    """By hand: offsets and widths of profile.md."""
    assert len(CODE) == 332 + 16
    assert CODE[0] == 0x81
    assert int.from_bytes(CODE[1:3], "big") == 117 + 16 + 10 + 4 + 4 + 1 + 3 + 33 + 4 + 2 + 1 + 16
    certified = CODE[3:120]
    assert certified[0] == 0x24
    assert certified[6] == 0x12
    assert certified[7:11] == ISSUER_ID
    assert certified[11:13] == bytes.fromhex("0125")
    assert certified[19] == 0x21
    assert certified[20:53] == ISSUER.public_key().point()
    assert CODE[120:136] == b"6000000000000018"
    assert CODE[136:146].hex() == NUMBER + "f"
    assert CODE[146:150] == ISSUER_ID
    assert CODE[150:154] == PLATFORM
    assert CODE[154] == 1
    assert CODE[155:158] == (500).to_bytes(3, "big")
    assert CODE[158:191] == PHONE.public_key().point()
    assert CODE[191:195] == (NOW_S + 3_600).to_bytes(4, "big")
    assert CODE[195:197] == b"\0\x1e"
    assert CODE[197] == 16
    assert CODE[198:214] == bytes(range(16))
    assert CODE[214] == 0x40
    assert CODE[279:283] == NOW_S.to_bytes(4, "big")
    assert CODE[283] == 0x40
    assert len(CODE[284:]) == 64


parts = st.builds(
    IssuerPart,
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=16, max_size=16),
    st.text("0123456789", min_size=1, max_size=20),
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 255),
    st.integers(0, 2**24 - 1),
    st.binary(min_size=32, max_size=32).map(lambda x: b"\2" + x),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.binary(max_size=255),
)


@settings(deadline=None)
@given(part=parts, generated_s=st.integers(0, 2**32 - 1), certified=st.booleans())
def test_what_is_written_is_read(part: IssuerPart, generated_s: int, certified: bool) -> None:
    signature = bytes(range(64))
    raw = make_issuer_part(part, lambda _: signature, CERTIFICATE if certified else b"")
    code = read(raw + generated_s.to_bytes(4, "big") + b"\x40" + signature[::-1])
    assert (code.part, code.generated_s) == (part, generated_s)
    assert (code.issuer_signature, code.user_signature) == (signature, signature[::-1])
    assert code.certificate == (read_certificate(CERTIFICATE) if certified else None)
    assert code.issued == raw


@settings(deadline=None)
@given(st.binary(max_size=700))
def test_anything_is_read_or_refused(raw: bytes) -> None:
    try:
        code = read(raw)
    except CodeMalformed:
        assert checker().check(raw, NOW_S) == Result.CODE_MALFORMED
    else:
        assert code.raw == raw


@given(at=st.integers(0, len(CODE) - 1), value=st.integers(1, 255), cached=st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_byte_can_be_altered(at: int, value: int, cached: bool) -> None:
    checks = checker()
    if cached:
        assert isinstance(checks.check(CODE, NOW_S), RideCode)
    altered = bytearray(CODE)
    altered[at] ^= value
    assert isinstance(checks.check(bytes(altered), NOW_S), Result)
    assert isinstance(checks.check(CODE, NOW_S), RideCode)


@settings(deadline=None)
@given(st.integers(0, len(CODE) - 1), st.binary(min_size=1, max_size=40))
def test_nothing_is_cut_off_or_added(at: int, more: bytes) -> None:
    for raw in (CODE[:at], CODE[at + 1 :], CODE + more, CODE[:at] + more + CODE[at:]):
        assert isinstance(checker().check(raw, NOW_S), Result)


# ---- the checks, each with its code, the earlier one winning ----


@dataclasses.dataclass
class Made:
    """A code with as many faults as are wanted."""

    part: IssuerPart = PART
    certified: bytes = CERTIFICATE
    issuer: PrivateKey = ISSUER
    phone: PrivateKey = PHONE
    generated_s: int = NOW_S
    used: bool = False
    amount_fen: int = 500

    def check(self, checks: Checker) -> Result | RideCode:
        issued = make_issuer_part(self.part, self.issuer.sign_raw, self.certified)
        return checks.check(make_code(issued, self.phone, self.generated_s), NOW_S, self.amount_fen, lambda _: self.used)


def late(made: Made) -> None:
    made.part = made.part._replace(expires_s=NOW_S - 1)


FAULTS: list[tuple[str, Callable[[Made], None], Result]] = [
    ("another authority's", lambda made: setattr(made, "certified", certificate(STRANGER)), Result.CODE_CERTIFICATE_WRONG),
    ("another CA index", lambda made: setattr(made, "certified", certificate(ca_index=2)), Result.CODE_CERTIFICATE_WRONG),
    ("certificate over", lambda made: setattr(made, "certified", certificate(expiry=202_412)), Result.CODE_CERTIFICATE_WRONG),
    ("another issuer's", lambda made: setattr(made, "certified", certificate(issuer=b"\0\0\0\1")), Result.CODE_CERTIFICATE_WRONG),
    ("no certificate", lambda made: setattr(made, "certified", b""), Result.CODE_CERTIFICATE_WRONG),
    ("issued by a stranger", lambda made: setattr(made, "issuer", STRANGER), Result.CODE_ISSUER_SIGNATURE_WRONG),
    ("another phone", lambda made: setattr(made, "phone", STRANGER), Result.CODE_USER_SIGNATURE_WRONG),
    ("clock ahead", lambda made: setattr(made, "generated_s", NOW_S + 31), Result.CLOCK_OFF),
    ("screenshot", lambda made: setattr(made, "generated_s", NOW_S - 31), Result.CODE_EXPIRED),
    ("authorisation over", late, Result.CODE_AUTHORIZATION_EXPIRED),
    ("used", lambda made: setattr(made, "used", True), Result.CODE_USED),
    ("too dear", lambda made: setattr(made, "amount_fen", 501), Result.CODE_LIMIT),
]


@pytest.mark.parametrize(("name", "fault", "wanted"), FAULTS, ids=[row[0] for row in FAULTS])
def test_each_fault_has_its_code(name: str, fault: Callable[[Made], None], wanted: Result) -> None:
    made = Made()
    checks = checker()
    assert isinstance(made.check(checks), RideCode)
    fault(made)
    for each in (checks, checker()):
        assert made.check(each) == wanted


@pytest.mark.parametrize("first", range(len(FAULTS)))
def test_the_earlier_fault_is_told(first: int) -> None:
    made = Made()
    for _, fault, _ in reversed(FAULTS[first:]):
        fault(made)
    assert made.check(checker()) == FAULTS[first][2]


@pytest.mark.parametrize("off_s", [-30, 0, 30])
def test_within_its_validity_it_is_good(off_s: int) -> None:
    assert isinstance(Made(generated_s=NOW_S + off_s).check(checker()), RideCode)


def test_a_phone_whose_key_is_no_point_is_refused() -> None:
    made = Made(part=PART._replace(user_key=b"\2" + b"\xff" * 32))
    assert made.check(checker()) == Result.CODE_USER_SIGNATURE_WRONG


def test_the_same_moment_of_the_same_phone_is_the_same_code() -> None:
    again = make_code(ISSUED, PHONE, NOW_S)
    assert again != CODE
    assert read(again).digest == read(CODE).digest
    assert read(make_code(ISSUED, PHONE, NOW_S + 1)).digest != read(CODE).digest


def test_what_is_remembered_is_bounded_and_not_believed_for_others() -> None:
    checks = checker(parts_max=2)
    for at in range(5):
        part = PART._replace(account=f"{at:016d}")
        assert isinstance(Made(part=part).check(checks), RideCode)
    assert len(checks._users) == 2
    forged = make_issuer_part(PART, STRANGER.sign_raw, CERTIFICATE)
    assert checks.check(make_code(forged, PHONE, NOW_S), NOW_S) == Result.CODE_ISSUER_SIGNATURE_WRONG


def test_a_certificate_that_was_remembered_still_ends() -> None:
    checks = checker()
    assert isinstance(Made().check(checks), RideCode)
    march_s = NOW_S + 70 * 86_400
    code = make_code(make_issuer_part(PART._replace(expires_s=march_s + 60), ISSUER.sign_raw, CERTIFICATE), PHONE, march_s)
    assert checks.check(code, march_s) == Result.CODE_CERTIFICATE_WRONG


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("account", "short"), ("account", "with blank 12345"), ("card_number", ""), ("card_number", "1" * 22),
        ("card_number", "12a4"), ("issuer", b"\1"), ("user_key", bytes(33)), ("user_key", b"\2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_not_issued(field: str, value: Any) -> None:
    with pytest.raises((CodeMalformed, ValueError)):
        make_issuer_part(PART._replace(**{field: value}), ISSUER.sign_raw, CERTIFICATE)


def test_the_longest_code_fits_its_bound() -> None:
    part = PART._replace(custom=bytes(255))
    assert len(make_code(make_issuer_part(part, ISSUER.sign_raw, CERTIFICATE), PHONE, NOW_S)) <= limits.CODE_BYTES_MAX
    assert len(CERTIFICATE) == CERTIFICATE_BYTES
