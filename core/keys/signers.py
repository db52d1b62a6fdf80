"""Private keys that sign, of the kind that their purpose wants."""

from typing import Final, TypeAlias

from yikatong.core.keys import p256
from yikatong.core.keys.provider import Purpose
from yikatong.core.sm2 import PrivateKey

Signer: TypeAlias = PrivateKey | p256.PrivateKey

KINDS: Final[dict[Purpose, type[PrivateKey] | type[p256.PrivateKey]]] = {
    Purpose.CODE_ISSUER: PrivateKey,
    Purpose.ASSERTION: PrivateKey,
    Purpose.OIDC: p256.PrivateKey,
}


def make_signer(purpose: Purpose) -> Signer:
    """A new random key."""
    return KINDS[purpose].make()


def read_signer(purpose: Purpose, pem: bytes, place: str) -> Signer:
    """From the PEM of a private key. Raises ConfigError, naming `place`, where it is none of that kind."""
    return KINDS[purpose](pem, place)
