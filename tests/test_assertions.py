"""Login assertions: signed by the core, verified by a portal offline, and nothing else passes for one."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from gmssl import sm2
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from yikatong.clients.assertions import Assertion, Verifier
from yikatong.core import limits
from yikatong.core.errors import ConfigError
from yikatong.core.identity import assertions
from yikatong.core.identity.assertions import ES256, ID_TOKEN_TYPE, LOGIN_TYPE, SM2, AssertionWrong
from yikatong.core.keys import p256
from yikatong.core.keys.provider import KeyReference, Purpose
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.sm2 import PrivateKey

NOW_S = 1_735_691_415
ISSUER, PORTAL, NONCE = "https://card.example", "hrss", "n-0S6_WzA2Mj"
CLAIMS = {
    "iss": ISSUER, "aud": PORTAL, "sub": "c3ViamVjdA", "iat": NOW_S, "exp": NOW_S + 300, "nonce": NONCE, "jti": "aWQ",
    "acr": "e-card",
}  # fmt: skip
OLD, NEW = KeyReference(Purpose.ASSERTION, 1), KeyReference(Purpose.ASSERTION, 2)
OIDC = KeyReference(Purpose.OIDC, 1)
CODES = KeyReference(Purpose.CODE_ISSUER, 2)
PEMS = {
    OLD: PrivateKey.make().private_pem(),
    NEW: PrivateKey.make().private_pem(),
    OIDC: p256.PrivateKey.make().private_pem(),
    CODES: PrivateKey.make().private_pem(),
}
PROVIDER = SoftwareProvider(PEMS)
KEYS = assertions.key_set(PROVIDER)


def verifier(now_s: float = NOW_S, **arguments: Any) -> Verifier:
    return Verifier(**({"keys": KEYS, "issuer": ISSUER, "audience": PORTAL, "clock": lambda: now_s} | arguments))


def signed(
    claims: Any = None, header: dict[str, Any] | None = None, key: KeyReference = NEW, raw: bytes | None = None, **more: Any
) -> str:
    """A token signed by a key whatever its header and claims say."""
    fields = {"alg": SM2, "kid": assertions.key_id(NEW), "typ": LOGIN_TYPE} if header is None else header
    body = json.dumps(CLAIMS | more if claims is None else claims).encode() if raw is None else raw
    message = f"{assertions.encode(json.dumps(fields).encode())}.{assertions.encode(body)}"
    return f"{message}.{assertions.encode(PROVIDER.sign(key, message.encode()))}"


def test_what_was_signed_is_verified_by_the_published_keys() -> None:
    token = assertions.sign(PROVIDER, Purpose.ASSERTION, LOGIN_TYPE, CLAIMS)
    published = json.loads(json.dumps(KEYS))
    assert verifier(keys=published).verify(token, NONCE) == Assertion("c3ViamVjdA", "e-card", "aWQ", NOW_S, NOW_S + 300)
    assert json.loads(assertions.decode(token.split(".")[0])) == {"alg": SM2, "kid": "assertion-2-1", "typ": LOGIN_TYPE}


def test_keys_of_several_versions_are_good_side_by_side() -> None:
    assert [key["kid"] for key in KEYS["keys"]] == ["assertion-1-1", "assertion-2-1", "oidc-1-1"]
    before = SoftwareProvider({OLD: PEMS[OLD]})
    token = assertions.sign(before, Purpose.ASSERTION, LOGIN_TYPE, CLAIMS)
    assert verifier().verify(token, NONCE).subject == CLAIMS["sub"]
    after = assertions.key_set(SoftwareProvider({NEW: PEMS[NEW]}))
    with pytest.raises(AssertionWrong, match="unknown key"):
        verifier(keys=after).verify(token, NONCE)


@pytest.mark.parametrize(
    ("reason", "token"),
    [
        ("iss", lambda: signed(iss=None)),
        ("another issuer", lambda: signed(iss=ISSUER + "/")),
        ("another portal", lambda: signed(aud="civil-affairs")),
        ("has no aud", lambda: signed(aud=[PORTAL])),
        ("another login", lambda: signed(nonce=NONCE + "x")),
        ("has no nonce", lambda: signed({k: v for k, v in CLAIMS.items() if k != "nonce"})),
        ("has no sub", lambda: signed(sub=7)),
        ("not good any more", lambda: signed(iat=NOW_S - 306, exp=NOW_S - 6)),
        ("not yet good", lambda: signed(iat=NOW_S + 6, exp=NOW_S + 300)),
        ("another time than up to", lambda: signed(exp=NOW_S + limits.ASSERTION_S + 1)),
        ("another time than up to", lambda: signed(exp=NOW_S)),
        ("no iat and exp", lambda: signed(exp=float(NOW_S + 10))),
        ("no iat and exp", lambda: signed(iat=True)),
        ("no iat and exp", lambda: signed(exp=str(NOW_S + 10))),
        ("other header fields", lambda: signed(header={"alg": SM2, "kid": "assertion-2-1"})),
        ("other header fields", lambda: signed(header={"alg": SM2, "kid": "assertion-2-1", "typ": LOGIN_TYPE, "jwk": {}})),
        ("other header fields", lambda: signed(header={"alg": SM2, "kid": "assertion-2-1", "typ": LOGIN_TYPE, "crit": []})),
        ("is no login", lambda: signed(header={"alg": SM2, "kid": "assertion-2-1", "typ": "JWT"})),
        ("another algorithm", lambda: signed(header={"alg": "none", "kid": "assertion-2-1", "typ": LOGIN_TYPE})),
        ("another algorithm", lambda: signed(header={"alg": ES256, "kid": "assertion-2-1", "typ": LOGIN_TYPE})),
        ("another algorithm", lambda: signed(header={"alg": "HS256", "kid": "assertion-2-1", "typ": LOGIN_TYPE})),
        ("another algorithm", lambda: signed(header={"alg": SM2.lower(), "kid": "assertion-2-1", "typ": LOGIN_TYPE})),
        ("unknown key", lambda: signed(header={"alg": SM2, "kid": "assertion-3-1", "typ": LOGIN_TYPE})),
        ("unknown key", lambda: signed(header={"alg": SM2, "kid": ["assertion-2-1"], "typ": LOGIN_TYPE})),
        # A key that is good, but for something else: of ID tokens, of ride codes, of another version.
        ("unknown key", lambda: signed(header={"alg": ES256, "kid": "oidc-1-1", "typ": LOGIN_TYPE}, key=OIDC)),
        ("unknown key", lambda: signed(header={"alg": SM2, "kid": "code_issuer-2-1", "typ": LOGIN_TYPE}, key=CODES)),
        ("wrong signature", lambda: signed(key=CODES)),
        ("wrong signature", lambda: signed(key=OLD)),
        ("wrong signature", lambda: signed().rsplit(".", 1)[0] + "."),
        ("wrong signature", lambda: signed().rsplit(".", 1)[0] + "." + assertions.encode(bytes(64))),
        ("wrong signature", lambda: signed().rsplit(".", 1)[0] + "." + assertions.encode(b"\xff" * 64)),
        ("three parts", lambda: signed().rsplit(".", 1)[0]),
        ("three parts", lambda: signed() + ".e30"),
        ("three parts", lambda: ""),
        ("no base64url", lambda: signed() + "é"),
        ("no base64url", lambda: signed().replace(".", ".\n", 1)),
        ("another base64url", lambda: signed() + "=="),
        ("too long", lambda: signed(jti="x" * limits.ASSERTION_BYTES_MAX)),
        ("no JSON object", lambda: signed([1])),
        ("no JSON in", lambda: signed(raw=b"{")),
        ("no JSON in", lambda: signed(raw=b"[" * 4000)),
        ("no JSON in", lambda: signed(raw=b'{"a":"\xff"}')),
        ("field twice", lambda: signed(raw=json.dumps(CLAIMS)[:-1].encode() + b',"aud":"hrss"}')),
        ("NaN is no JSON", lambda: signed(raw=b'{"iat":NaN}')),
    ],
)  # fmt: skip
def test_nothing_else_passes(reason: str, token: Callable[[], str]) -> None:
    with pytest.raises(AssertionWrong, match=reason):
        verifier().verify(token(), NONCE)


@pytest.mark.parametrize(
    ("now_s", "good"),
    [(NOW_S - 6, False), (NOW_S - 5, True), (NOW_S, True), (NOW_S + 304.9, True), (NOW_S + 305, False)],
)
def test_the_edges_of_its_time(now_s: float, good: bool) -> None:
    token = signed()
    if good:
        verifier(now_s).verify(token, NONCE)
    else:
        with pytest.raises(AssertionWrong):
            verifier(now_s).verify(token, NONCE)


TOKEN = assertions.sign(PROVIDER, Purpose.ASSERTION, LOGIN_TYPE, CLAIMS)


@given(at=st.integers(0, len(TOKEN) - 1), byte=st.integers(0, 127))
@settings(deadline=None)
def test_no_byte_can_be_changed(at: int, byte: int) -> None:
    changed = TOKEN[:at] + chr(byte) + TOKEN[at + 1 :]
    if changed == TOKEN:
        return
    with pytest.raises(AssertionWrong):
        verifier().verify(changed, NONCE)


@given(st.text(max_size=300) | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
@settings(deadline=None)
def test_noise_is_refused_and_breaks_nothing(text: str) -> None:
    with pytest.raises(AssertionWrong):
        verifier().verify(text, NONCE)


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_base64url_has_one_spelling(data: bytes) -> None:
    text = assertions.encode(data)
    assert assertions.decode(text) == data == base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_gmssl_verifies_what_we_sign_and_signs_what_we_verify() -> None:
    jwk = KEYS["keys"][1]
    public = (assertions.decode(jwk["x"]) + assertions.decode(jwk["y"])).hex()
    message, signature = TOKEN.rsplit(".", 1)
    other = sm2.CryptSM2(private_key="", public_key=public)
    other.public_key = public  # it takes a leading 04 for the point's form, also where the number begins so
    assert other.verify_with_sm3(assertions.decode(signature).hex(), message.encode())
    assert not other.verify_with_sm3(assertions.decode(signature).hex(), message.encode() + b"x")

    private = "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8"  # GB/T 32918.5, annex A
    point = "09f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"  # noqa: E501
    x, y = (assertions.encode(bytes.fromhex(half)) for half in (point[:64], point[64:]))
    keys = {"keys": [{"kty": "EC", "crv": "SM2", "alg": SM2, "use": "sig", "kid": "assertion-2-1", "x": x, "y": y}]}
    foreign = sm2.CryptSM2(private_key=private, public_key=point).sign_with_sm3(message.encode())
    token = f"{message}.{assertions.encode(bytes.fromhex(foreign))}"
    assert verifier(keys=keys).verify(token, NONCE).subject == CLAIMS["sub"]


def test_id_tokens_are_what_jose_libraries_verify() -> None:
    token = assertions.sign(PROVIDER, Purpose.OIDC, ID_TOKEN_TYPE, CLAIMS)
    es256 = [key for key in KEYS["keys"] if key["alg"] == ES256]
    published = KeySet.import_key_set({"keys": es256})
    assert jwt.decode(token, published, [ES256]).claims == CLAIMS
    assert verifier(algorithm=ES256, token_type=ID_TOKEN_TYPE).verify(token, NONCE).subject == CLAIMS["sub"]
    with pytest.raises(JoseError):
        jwt.decode(token[:-8] + "AAAAAAAA", published, [ES256])


@pytest.mark.parametrize(
    "change",
    [{"crv": "P-256"}, {"kty": "RSA"}, {"x": "AA"}, {"y": "!"}, {"x": assertions.encode(bytes(31) + b"\1")}, {"alg": "RS256"}],
)
def test_a_key_that_is_none_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        verifier(keys={"keys": [KEYS["keys"][0] | change]})


def test_signatures_are_r_and_s() -> None:
    private = p256.PrivateKey(PEMS[OIDC])
    r, s = decode_dss_signature(private.sign(b"x"))
    assert max(r, s).bit_length() <= 256
    for pem in (b"", PEMS[NEW], private.public_pem()):
        with pytest.raises(ConfigError):
            p256.PrivateKey(pem)
    with pytest.raises(ConfigError, match="OIDC"):
        assertions.sign(SoftwareProvider({NEW: PEMS[NEW]}), Purpose.OIDC, ID_TOKEN_TYPE, CLAIMS)
