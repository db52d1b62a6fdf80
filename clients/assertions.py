"""A portal's side of login assertions (assertions.py): verified offline, by the public keys that the issuer publishes."""

import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from yikatong.core import limits
from yikatong.core.errors import ConfigError
from yikatong.core.identity.assertions import LOGIN_TYPE, SM2, AssertionWrong, check_times, key_of, open_token

CLAIMS: Final = ("iss", "aud", "sub", "nonce", "jti", "acr")
LEEWAY_S: Final = 5.0


class Assertion(NamedTuple):
    """What was asserted of a login: `subject` is how the person is called at this portal and nowhere else, `acr` how the
    login was made, `issued_s` and `expires_s` seconds since 1970."""

    subject: str
    acr: str
    assertion_id: str
    issued_s: int
    expires_s: int


class Verifier:
    """Verifies the assertions of one issuer for one portal.

    `keys` is the JWK set that the issuer publishes; of it, keys of `algorithm` alone are used, so that a token cannot choose
    another. Raises ConfigError for a set without one. `leeway_s`: how far clocks may differ."""

    def __init__(
        self,
        keys: Mapping[str, Any],
        issuer: str,
        audience: str,
        *,
        algorithm: str = SM2,
        token_type: str = LOGIN_TYPE,
        clock: Callable[[], float] = time.time,
        leeway_s: float = LEEWAY_S,
    ) -> None:
        found = keys.get("keys")
        usable = [jwk for jwk in found if jwk.get("alg") == algorithm] if isinstance(found, list) else []
        self._keys = {str(jwk.get("kid")): key_of(jwk) for jwk in usable if jwk.get("use") == "sig"}
        if not self._keys:
            raise ConfigError("keys", f"there is no key for {algorithm} among them")
        self._issuer = issuer
        self._audience = audience
        self._type = token_type
        self._clock = clock
        self._leeway_s = leeway_s

    def verify(self, token: str, nonce: str) -> Assertion:
        """What a token asserts, if it answers the login that was begun with `nonce`. Raises AssertionWrong."""
        claims = open_token(token, self._keys, self._type)
        for name in CLAIMS:
            if not isinstance(claims.get(name), str):
                raise AssertionWrong(f"has no {name}")
        if claims["iss"] != self._issuer:
            raise AssertionWrong("comes from another issuer")
        if claims["aud"] != self._audience:
            raise AssertionWrong("is for another portal")
        if not hmac.compare_digest(claims["nonce"].encode(), nonce.encode()):
            raise AssertionWrong("answers another login")
        check_times(claims, self._clock(), limits.ASSERTION_S, self._leeway_s)
        return Assertion(claims["sub"], claims["acr"], claims["jti"], claims["iat"], claims["exp"])
