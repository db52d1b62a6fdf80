"""Signed assertions: short statements in the form of a JWT (RFC 7519) over a compact JWS (RFC 7515), verified without asking us.

Algorithms, each bound to its kind of key, never to what a token says of itself:

    alg            key                 signature
    SGD_SM3_SM2    SM2 (crv "SM2")     SM2 with SM3, r ‖ s (GB/T 32918.2), user id 1234567812345678
    ES256          P-256               RFC 7518, 3.4

IANA's registry for JOSE has no SM2, and the text of GM/T 0125 (JSON Web, algorithm identifiers) was not at hand; the name is that
of GM/T 0006 for SM2 over SM3 (*chosen*). Key ids say purpose, version and index: "assertion-1-1"; keys of several versions are
good side by side. A token has exactly the header fields alg, kid and typ, no field twice and no other base64url than the
canonical, so that no byte of it can be changed."""

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from yikatong.core import limits
from yikatong.core.errors import ConfigError, YikatongError
from yikatong.core.keys.provider import KeyProvider, KeyReference, KeyUnknown, Purpose
from yikatong.core.sm2 import PublicKey

SM2: Final = "SGD_SM3_SM2"
ES256: Final = "ES256"
LOGIN_TYPE: Final = "login+jwt"
"""`typ` of login assertions (RFC 8725, 3.11: no token passes for one of another kind)."""
ID_TOKEN_TYPE: Final = "JWT"
ALGORITHMS: Final = {Purpose.ASSERTION: SM2, Purpose.OIDC: ES256}
CURVES: Final = {SM2: "SM2", ES256: "P-256"}
VERSIONS: Final = range(256)
SIGNATURE_BYTES: Final = 64
COORDINATE_BYTES: Final = 32

# SubjectPublicKeyInfo (RFC 5480) of an uncompressed point, all that stands before its coordinates: id-ecPublicKey and the curve.
_SPKI: Final = {
    SM2: bytes.fromhex("3059301306072a8648ce3d020106082a811ccf5501822d03420004"),  # 1.2.156.10197.1.301
    ES256: bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"),  # 1.2.840.10045.3.1.7
}


class AssertionWrong(YikatongError):
    """A token is not what it says, or not for whoever was shown it; the message says why, never what stands in it."""


class Key(NamedTuple):
    """A public key that tokens are verified by: its algorithm, and SubjectPublicKeyInfo in PEM."""

    algorithm: str
    pem: bytes

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether a signature (r ‖ s, 64 bytes) of a message is right."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        if self.algorithm == SM2:
            return PublicKey(self.pem).verify_raw(message, signature)
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        key = serialization.load_pem_public_key(self.pem)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


# ---- base64url and JSON, one way only ----


def encode(data: bytes) -> str:
    """base64url without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The bytes of what `encode` would have written. Raises AssertionWrong for any other spelling."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise AssertionWrong("is no base64url") from None
    if encode(data) != text:
        raise AssertionWrong("is another base64url than the canonical")
    return data


def _no_field_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise AssertionWrong("has a field twice")
    return fields


def _no_constant(text: str) -> Any:
    raise AssertionWrong(f"{text} is no JSON")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_field_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise AssertionWrong("is no JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise AssertionWrong("is no JSON object")
    return value


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# ---- keys ----


def key_id(key: KeyReference) -> str:
    return f"{key.purpose.name.lower()}-{key.key_version}-{key.key_index}"


def key_of(jwk: Mapping[str, Any]) -> Key:
    """The key of a JWK (RFC 7517). Raises ConfigError naming the field."""
    algorithm = jwk.get("alg")
    if algorithm not in CURVES or jwk.get("kty") != "EC" or jwk.get("crv") != CURVES[algorithm]:
        raise ConfigError("jwk", f"kty EC with alg and crv of {CURVES} is wanted")
    try:
        point = b"".join(decode(str(jwk.get(name, ""))) for name in ("x", "y"))
    except AssertionWrong as error:
        raise ConfigError("jwk", f"a coordinate {error}") from None
    if len(point) != 2 * COORDINATE_BYTES:
        raise ConfigError("jwk", f"coordinates of {COORDINATE_BYTES} bytes are wanted")
    body = base64.b64encode(_SPKI[algorithm] + point).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    pem = "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""]).encode()
    return key_of_pem(algorithm, pem)


def key_of_pem(algorithm: str, pem: bytes, place: str = "jwk") -> Key:
    """The same of a PEM text. Raises ConfigError unless it is a point on the algorithm's curve."""
    if algorithm == SM2:
        PublicKey(pem, place)
        return Key(algorithm, pem)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(place, "is no public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(place, "is a key of another algorithm than P-256")
    return Key(algorithm, pem)


def key_set(provider: KeyProvider, algorithms: Collection[str] = (SM2, ES256)) -> dict[str, Any]:
    """The public keys of all versions for these algorithms, as a JWK set (RFC 7517, 5). What is retired for good is not among
    them."""
    keys = []
    for purpose, algorithm in ALGORITHMS.items():
        if algorithm not in algorithms:
            continue
        try:
            newest = provider.newest(purpose)
        except KeyUnknown:
            continue
        for version in VERSIONS:
            key = newest._replace(key_version=version)
            try:
                pem = provider.public_key(key)
            except KeyUnknown:
                continue
            point = base64.b64decode(b"".join(pem.splitlines()[1:-1]))[-2 * COORDINATE_BYTES :]
            keys.append(
                {
                    "kty": "EC",
                    "crv": CURVES[algorithm],
                    "x": encode(point[:COORDINATE_BYTES]),
                    "y": encode(point[COORDINATE_BYTES:]),
                    "use": "sig",
                    "alg": algorithm,
                    "kid": key_id(key),
                }
            )
    return {"keys": keys}


# ---- tokens ----


def sign(provider: KeyProvider, purpose: Purpose, token_type: str, claims: Mapping[str, Any]) -> str:
    """A token over claims by the newest key of a purpose. Raises ConfigError where there is none."""
    try:
        key = provider.newest(purpose)
    except KeyUnknown as error:
        raise ConfigError("keys", str(error)) from None
    header = {"alg": ALGORITHMS[purpose], "kid": key_id(key), "typ": token_type}
    signed = f"{encode(_json(header))}.{encode(_json(claims))}"
    return f"{signed}.{encode(provider.sign(key, signed.encode()))}"


def open_token(token: str, keys: Mapping[str, Key], token_type: str, only: Key | None = None) -> dict[str, Any]:
    """The claims of a token that one of `keys` (by kid) signed as this type; where there is `only` one key, its header need not
    name key and type. Raises AssertionWrong."""
    if len(token) > limits.ASSERTION_BYTES_MAX:
        raise AssertionWrong("is too long")
    parts = token.split(".")
    if len(parts) != 3:
        raise AssertionWrong("has not three parts")
    header, claims, signature = (decode(part) for part in parts)
    fields = _object(header)
    wanted = {"alg", "kid", "typ"} if only is None else {"alg"}
    if not wanted <= set(fields) <= {"alg", "kid", "typ"}:
        raise AssertionWrong("has other header fields than alg, kid and typ")
    if fields.get("typ", token_type) != token_type:
        raise AssertionWrong(f"is no {token_type}")
    key = only or (keys.get(fields["kid"]) if isinstance(fields["kid"], str) else None)
    if key is None:
        raise AssertionWrong("was signed by an unknown key")
    if fields["alg"] != key.algorithm:
        raise AssertionWrong("names another algorithm than its key's")
    if not key.verify(f"{parts[0]}.{parts[1]}".encode(), signature):
        raise AssertionWrong("has a wrong signature")
    return _object(claims)


def check_times(claims: Mapping[str, Any], now_s: float, life_s_max: int, leeway_s: float) -> None:
    """That claims have iat and exp in whole seconds, are good now and for no longer than allowed. Raises AssertionWrong."""
    issued, expires = claims.get("iat"), claims.get("exp")
    if type(issued) is not int or type(expires) is not int:
        raise AssertionWrong("has no iat and exp in seconds")
    if not 0 < expires - issued <= life_s_max:
        raise AssertionWrong(f"is good for another time than up to {life_s_max} s")
    if issued > now_s + leeway_s:
        raise AssertionWrong("is not yet good")
    if expires <= now_s - leeway_s:
        raise AssertionWrong("is not good any more")


def peek(token: str) -> dict[str, Any]:
    """What a token claims, unproved: good only to choose the key that it must be verified by. Raises AssertionWrong."""
    if len(token) > limits.ASSERTION_BYTES_MAX or token.count(".") != 2:
        raise AssertionWrong("has not three parts")
    return _object(decode(token.split(".")[1]))
