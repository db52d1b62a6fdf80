"""The offline ride code (JT/T 1179 family): a QR code that a phone makes without network, and a gate checks without network.

Three signatures stand in it (SM2 with SM3, user id 1234567812345678): the authority's under the issuer's certificate, the
issuer's under what the phone fetched online (the *issuer part*: which e-card, which phone's key, until when, how much), and the
phone's under the moment. No official text was at hand: the order is that of public implementations, and what they leave open
(what each signature covers, the marks 40 before signatures, algorithms, the filling of the card number) is chosen. Big-endian:

    version 1: 80, or 81 with the certificate               ┐
    length 2: bytes of what follows, up to the signature    │
    certificate 117: header 24 ‖ service id 4 ‖ CA index 1 ‖ format 12 ‖ issuer 4 ‖ expiry MMYY 2 ‖ serial 3 ‖ algorithms
        040400 ‖ key length 21 ‖ key 33 ‖ authority's signature 64 over the 53 bytes before it
    payment account 16 ASCII                                │ issuer part
    card number 10 (BCD, filled up with F on the right)     │
    issuer 4 ‖ code platform 4 ‖ account type 1             │
    limit of a trip 3 (fen) ‖ user's key 33 ‖ expiry 4 (Unix seconds) ‖ validity 2 (seconds)
    custom length 1 and data: the device's id, 16           │
    issuer's signature: 40 ‖ 64, over all before it         ┘
    generation time 4 (Unix seconds)
    user's signature: 40 ‖ 64, over all before it"""

import datetime
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from yikatong.core import limits
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.core.types import Result
from yikatong.ext import sm3

VERSION, VERSION_CERTIFIED = 0x80, 0x81
CERTIFICATE_BYTES: Final = 117
CERTIFICATE_SIGNED_BYTES: Final = 53
SIGNATURE_BYTES: Final = 64
POINT_BYTES: Final = 33
USER_BYTES: Final = 4 + 1 + SIGNATURE_BYTES
FIXED_BYTES: Final = 16 + 10 + 4 + 4 + 1 + 3 + POINT_BYTES + 4 + 2 + 1
_HEADER, _FORMAT, _ALGORITHMS, _KEY_LENGTH, _SIGNATURE_MARK = b"\x24", b"\x12", b"\x04\x04\x00", b"\x21", b"\x40"
_CHINA: Final = datetime.timezone(datetime.timedelta(hours=8))

Signer = Callable[[bytes], bytes]
"""Makes r ‖ s (64 bytes) of a message."""


class CodeMalformed(ValueError):
    """It is no ride code; the message names the field."""


class Certificate(NamedTuple):
    """What an issuer's certificate says. `expiry`: its last month, YYYYMM."""

    service_id: bytes
    ca_index: int
    issuer: bytes
    expiry: int
    serial: bytes
    key: bytes
    signature: bytes


class IssuerPart(NamedTuple):
    """What the issuer allows a phone."""

    account: str  # 16 printable ASCII characters
    card_number: str
    issuer: bytes
    platform: bytes
    account_type: int
    limit_fen: int
    user_key: bytes
    expires_s: int
    validity_s: int
    custom: bytes


class RideCode(NamedTuple):
    """A code, read but not checked. `signed` is what the user's signature stands under; `issued` and `issuer_signed` lie at its
    start: the issuer part with its signature, and without."""

    raw: bytes
    certificate: Certificate | None
    part: IssuerPart
    issuer_signature: bytes
    generated_s: int
    user_signature: bytes

    @property
    def issued(self) -> bytes:
        return self.raw[:-USER_BYTES]

    @property
    def issuer_signed(self) -> bytes:
        return self.raw[: -USER_BYTES - SIGNATURE_BYTES - 1]

    @property
    def signed(self) -> bytes:
        return self.raw[: -SIGNATURE_BYTES - 1]

    @property
    def digest(self) -> bytes:
        """What a use of it is remembered by: SM3 of all but the user's signature, which a phone could make anew."""
        digest: bytes = sm3.digest(self.signed)
        return digest


# ---- certificates ----


def make_certificate(
    key: bytes,
    issuer: bytes,
    expiry: int,
    sign: Signer,
    *,
    service_id: bytes = b"\0\0\0\1",
    ca_index: int = 1,
    serial: bytes = b"\0\0\1",
) -> bytes:
    """An issuer's certificate, as the authority makes it; `key` is the issuer's compressed point, `expiry` YYYYMM. For tests and
    development: a city's is given to it."""
    month = f"{expiry % 100:02d}{expiry // 100 % 100:02d}"
    said = b"".join(
        (
            _HEADER, service_id, bytes([ca_index]), _FORMAT, issuer, bytes.fromhex(month), serial, _ALGORITHMS, _KEY_LENGTH, key,
        )
    )  # fmt: skip
    read_certificate(said + bytes(SIGNATURE_BYTES))
    return said + sign(said)


def read_certificate(raw: bytes) -> Certificate:
    """Raises CodeMalformed."""
    if len(raw) != CERTIFICATE_BYTES:
        raise CodeMalformed(f"certificate: {CERTIFICATE_BYTES} bytes are wanted")
    for at, wanted, field in (
        (0, _HEADER, "header"),
        (6, _FORMAT, "format"),
        (16, _ALGORITHMS, "algorithms"),
        (19, _KEY_LENGTH, "key length"),
    ):
        if raw[at : at + len(wanted)] != wanted:
            raise CodeMalformed(f"certificate: its {field} is not {wanted.hex()}")
    month, year = raw[11:13].hex()[:2], raw[11:13].hex()[2:]
    if not (month + year).isdecimal() or not 1 <= int(month) <= 12:
        raise CodeMalformed("certificate: its expiry is no month")
    return Certificate(raw[1:5], raw[5], raw[7:11], 200_000 + int(year) * 100 + int(month), raw[13:16], raw[20:53], raw[53:])


# ---- making codes ----


def _bcd(number: str) -> bytes:
    return bytes.fromhex(number.ljust(20, "f"))


def make_issuer_part(part: IssuerPart, sign: Signer, certificate: bytes = b"") -> bytes:
    """What a phone fetches: the issuer part with the issuer's signature. Raises CodeMalformed for a field that does not fit."""
    content = b"".join(
        (
            certificate, part.account.encode(), _bcd(part.card_number), part.issuer, part.platform, bytes([part.account_type]),
            part.limit_fen.to_bytes(3, "big"), part.user_key,
            part.expires_s.to_bytes(4, "big"), part.validity_s.to_bytes(2, "big"),
            bytes([len(part.custom)]), part.custom,
        )
    )  # fmt: skip
    said = bytes([VERSION_CERTIFIED if certificate else VERSION]) + len(content).to_bytes(2, "big") + content
    if read(said + _SIGNATURE_MARK + bytes(SIGNATURE_BYTES) + bytes(4) + _SIGNATURE_MARK + bytes(SIGNATURE_BYTES)).part != part:
        raise CodeMalformed("a field does not fit")
    return said + _SIGNATURE_MARK + sign(said)


def make_code(issuer_part: bytes, key: PrivateKey, generated_s: int) -> bytes:
    """The phone's part: a code of this moment."""
    said = issuer_part + generated_s.to_bytes(4, "big")
    return said + _SIGNATURE_MARK + key.sign_raw(said)


# ---- reading codes ----


class _Bytes:
    """Takes fields off the front; whatever is too short is refused here."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def take(self, n: int, field: str) -> bytes:
        taken = self._raw[self._at : self._at + n]
        if len(taken) != n:
            raise CodeMalformed(f"{field}: the code ends in it")
        self._at += n
        return taken

    def number(self, n: int, field: str) -> int:
        return int.from_bytes(self.take(n, field), "big")

    @property
    def left(self) -> int:
        return len(self._raw) - self._at


def read(raw: bytes) -> RideCode:
    """A code by its fields, strictly: every length fits, and nothing comes behind. Raises CodeMalformed. Nothing of it
    is to be believed before it was checked."""
    if len(raw) > limits.CODE_BYTES_MAX:
        raise CodeMalformed(f"it has more than {limits.CODE_BYTES_MAX} bytes")
    fields = _Bytes(raw)
    version = fields.number(1, "version")
    if version not in (VERSION, VERSION_CERTIFIED):
        raise CodeMalformed("version: 80 or 81 is wanted")
    length = fields.number(2, "length")
    before = fields.left
    certificate = read_certificate(fields.take(CERTIFICATE_BYTES, "certificate")) if version == VERSION_CERTIFIED else None
    part = _read_part(fields)
    if before - fields.left != length:
        raise CodeMalformed("length: it is not that of the fields")
    issuer_signature = _signature(fields, "issuer signature")
    generated_s = fields.number(4, "generation time")
    user_signature = _signature(fields, "user signature")
    if fields.left:
        raise CodeMalformed("there is something behind the code")
    return RideCode(raw, certificate, part, issuer_signature, generated_s, user_signature)


def _read_part(fields: _Bytes) -> IssuerPart:
    account = fields.take(16, "payment account")
    if not all(0x20 < byte < 0x7F for byte in account):
        raise CodeMalformed("payment account: printable ASCII is wanted")
    number = fields.take(10, "card number").hex()
    digits = number.rstrip("f")
    if not digits or not digits.isdecimal():
        raise CodeMalformed("card number: it is no packed decimal number")
    issuer, platform = fields.take(4, "issuer"), fields.take(4, "code platform")
    account_type, limit_fen = fields.number(1, "account type"), fields.number(3, "limit")
    user_key = fields.take(POINT_BYTES, "user key")
    if user_key[0] not in (2, 3):
        raise CodeMalformed("user key: it is no compressed point")
    expires_s, validity_s = fields.number(4, "expiry"), fields.number(2, "validity")
    custom = fields.take(fields.number(1, "custom length"), "custom data")
    return IssuerPart(
        account.decode(), digits, issuer, platform, account_type, limit_fen, user_key, expires_s, validity_s, custom
    )


def _signature(fields: _Bytes, field: str) -> bytes:
    if fields.take(1, field) != _SIGNATURE_MARK:
        raise CodeMalformed(f"{field}: its length is not {SIGNATURE_BYTES}")
    return fields.take(SIGNATURE_BYTES, field)


# ---- checking codes ----


class Checker:
    """Checks codes without network against authorities' keys by CA index. What an issuer signed is checked once and remembered
    (by its digest, with the phone's key at hand), up to RIDE_CODE_PARTS_MAX of them. One thread at a time."""

    def __init__(self, authorities: Mapping[int, PublicKey], *, parts_max: int = limits.RIDE_CODE_PARTS_MAX) -> None:
        self._authorities = authorities
        self._parts_max = parts_max
        self._issuers: OrderedDict[bytes, PublicKey] = OrderedDict()  # by certificate
        self._users: OrderedDict[bytes, PublicKey] = OrderedDict()  # by digest of the issuer part with its signature

    def check(
        self, raw: bytes, now_s: int, amount_fen: int = 0, is_used: Callable[[RideCode], bool] = lambda _: False
    ) -> RideCode | Result:
        """A code that is good at a time (Unix seconds) for a trip of so much; or why not, in this order: CODE_MALFORMED,
        CODE_CERTIFICATE_WRONG, CODE_ISSUER_SIGNATURE_WRONG, CODE_USER_SIGNATURE_WRONG, CLOCK_OFF (made after now) or CODE_EXPIRED
        (made too long ago), CODE_AUTHORIZATION_EXPIRED, CODE_USED (`is_used` says so), CODE_LIMIT."""
        try:
            code = read(raw)
        except CodeMalformed:
            return Result.CODE_MALFORMED
        user = self._user(code, now_s)
        if isinstance(user, Result):
            return user
        if not user.verify_raw(code.signed, code.user_signature):
            return Result.CODE_USER_SIGNATURE_WRONG
        if code.generated_s - now_s > code.part.validity_s:
            return Result.CLOCK_OFF
        if now_s - code.generated_s > code.part.validity_s:
            return Result.CODE_EXPIRED
        if now_s > code.part.expires_s:
            return Result.CODE_AUTHORIZATION_EXPIRED
        if is_used(code):
            return Result.CODE_USED
        return Result.CODE_LIMIT if amount_fen > code.part.limit_fen else code

    def _user(self, code: RideCode, now_s: int) -> PublicKey | Result:
        """The phone's key, which the issuer vouches for."""
        certificate = code.certificate
        if certificate is None or certificate.issuer != code.part.issuer or _month(now_s) > certificate.expiry:
            return Result.CODE_CERTIFICATE_WRONG
        digest = sm3.digest(code.issued)
        known = self._users.get(digest)
        if known is not None:
            self._users.move_to_end(digest)
            return known
        issuer = self._issuer(code.raw[3 : 3 + CERTIFICATE_BYTES], certificate)
        if issuer is None:
            return Result.CODE_CERTIFICATE_WRONG
        if not issuer.verify_raw(code.issuer_signed, code.issuer_signature):
            return Result.CODE_ISSUER_SIGNATURE_WRONG
        try:
            user = PublicKey.of_point(code.part.user_key)
        except ValueError:
            return Result.CODE_USER_SIGNATURE_WRONG
        self._remember(self._users, digest, user)
        return user

    def _issuer(self, raw: bytes, certificate: Certificate) -> PublicKey | None:
        known = self._issuers.get(raw)
        if known is not None:
            return known
        authority = self._authorities.get(certificate.ca_index)
        if authority is None or not authority.verify_raw(raw[:CERTIFICATE_SIGNED_BYTES], certificate.signature):
            return None
        try:
            issuer = PublicKey.of_point(certificate.key)
        except ValueError:
            return None
        self._remember(self._issuers, raw, issuer)
        return issuer

    def _remember(self, keys: OrderedDict[bytes, PublicKey], name: bytes, key: PublicKey) -> None:
        if len(keys) >= self._parts_max:
            keys.popitem(last=False)
        keys[name] = key


def _month(now_s: int) -> int:
    """YYYYMM in UTC+8."""
    when = datetime.datetime.fromtimestamp(now_s, _CHINA)
    return when.year * 100 + when.month
