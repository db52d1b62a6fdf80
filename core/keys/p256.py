"""ECDSA on P-256 with SHA-256 (ES256, RFC 7518 section 3.4): what clients of OpenID Connect can verify, which know no SM2."""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from yikatong.core.errors import ConfigError


class PrivateKey:
    """Signs. Raises ConfigError for a PEM text that is no private key on P-256."""

    def __init__(self, pem: bytes, place: str = "private key") -> None:
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError(place, "is no PEM file of such a key") from None  # what the library says may show some of it
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError(place, "is a key of another algorithm than P-256")
        self._key = key

    @classmethod
    def make(cls) -> "PrivateKey":
        """A new random key."""
        made = cls.__new__(cls)
        made._key = ec.generate_private_key(ec.SECP256R1())
        return made

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, DER."""
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def public_pem(self) -> bytes:
        return self._key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def private_pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
