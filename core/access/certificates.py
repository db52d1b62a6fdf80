"""X.509 certificates of callers and servers: who one names, which are revoked, and an authority that issues them (RFC 5280).

An identity is one URI of the scheme `yikatong` among a certificate's subject alternative names (callers.py). A development
authority is a folder:

    ca.pem, ca.key        the authority; its key is its owner's alone
    crl.pem               what it revoked, and until when that list is good
    issued/SERIAL.pem     every certificate that it issued

It is good for tests, trials and small installations. In production a ministry's or bank's authority signs (`yikatong certs sign`
says what it must put in), and its key never meets this program."""

import datetime
import ipaddress
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from yikatong.core import limits
from yikatong.core.access.callers import SCHEME, Caller, parse_identity
from yikatong.core.errors import InvalidRequest, Unauthenticated, YikatongError

PEM: Final = serialization.Encoding.PEM
_BACKDATE: Final = datetime.timedelta(minutes=5)  # clocks of callers differ


class CertificateError(YikatongError):
    """A file is no certificate, key, request or revocation list of the kind that is wanted; the message names it."""


class Identity(NamedTuple):
    """What a certificate says: its caller, or why it names none, and what else decides whether it is good now."""

    caller: Caller | None
    fault: str
    issuer: bytes  # its name, DER
    serial: int
    begins_s: float  # seconds since 1970, UTC
    ends_s: float


@lru_cache(limits.CERTIFICATES_CACHED)
def identity_of_pem(pem: bytes) -> Identity | None:
    """As `identity_of`; None where it cannot be read."""
    try:
        return identity_of(x509.load_pem_x509_certificate(pem))
    except ValueError:
        return None


@lru_cache(limits.CERTIFICATES_CACHED)
def identity_of_der(der: bytes) -> Identity | None:
    """As `identity_of`; None where it cannot be read."""
    try:
        return identity_of(x509.load_der_x509_certificate(der))
    except ValueError:
        return None


def identity_of(certificate: x509.Certificate) -> Identity:
    """What a certificate says, whose chain somebody else has verified."""
    caller, fault = None, ""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(f"{SCHEME}:")]
    except (x509.ExtensionNotFound, ValueError):  # ValueError: extensions that cannot be read
        uris = []
    if len(uris) != 1:
        fault = f"the certificate names {len(uris) or 'no'} identities of the scheme {SCHEME}: exactly one is wanted"
    else:
        try:
            caller = parse_identity(uris[0])
        except InvalidRequest as error:
            fault = f"the certificate's identity is not well-formed: {error.reason}"
    return Identity(
        caller,
        fault,
        certificate.issuer.public_bytes(),
        certificate.serial_number,
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


# ---- revocation ----


class Revocations:
    """Revocation lists (RFC 5280, section 5) of the authorities whose certificates callers show."""

    def __init__(self, lists: Sequence[x509.CertificateRevocationList], authorities: Sequence[x509.Certificate]) -> None:
        """Raises CertificateError unless each list is signed by one of the authorities and says until when it is good."""
        self.ends_s = float("inf")
        self._revoked: dict[bytes, frozenset[int]] = {}
        for found in lists:
            name = found.issuer.rfc4514_string()
            if not any(_has_signed(authority, found) for authority in authorities):
                raise CertificateError(f"the revocation list of {name} is not signed by one of the authorities")
            if found.next_update_utc is None:
                raise CertificateError(f"the revocation list of {name} does not say until when it is good")
            self.ends_s = min(self.ends_s, found.next_update_utc.timestamp())
            issuer = found.issuer.public_bytes()  # an authority may have a new key under its old name, and then two lists
            self._revoked[issuer] = self._revoked.get(issuer, frozenset()) | {entry.serial_number for entry in found}

    def __len__(self) -> int:
        return sum(map(len, self._revoked.values()))

    def refusal(self, identity: Identity, now_s: float) -> str:
        """Why a certificate is not to be trusted, by these lists; empty: it is."""
        if now_s >= self.ends_s:
            return "the server's revocation list is out of date"
        revoked = self._revoked.get(identity.issuer)
        if revoked is None:
            return "the server has no revocation list of the certificate's authority"
        return "the certificate is revoked" if identity.serial in revoked else ""


def _has_signed(authority: x509.Certificate, found: x509.CertificateRevocationList) -> bool:
    key = authority.public_key()
    if authority.subject != found.issuer or not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return False
    return found.is_signature_valid(key)


def check(identity: Identity, revocations: Revocations | None, now_s: float) -> Caller:
    """The caller of a certificate that is good now. Raises Unauthenticated."""
    if revocations is not None and (refusal := revocations.refusal(identity, now_s)):
        raise Unauthenticated(refusal)
    if not identity.begins_s <= now_s < identity.ends_s:
        raise Unauthenticated("the certificate is not good yet" if now_s < identity.begins_s else "the certificate has expired")
    if identity.caller is None:
        raise Unauthenticated(identity.fault)
    return identity.caller


# ---- files ----


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file. Raises CertificateError."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(f"{path}: is no PEM file of certificates") from error


def read_revocations(path: Path) -> list[x509.CertificateRevocationList]:
    """All revocation lists of a PEM file. Raises CertificateError."""
    end = b"-----END X509 CRL-----"
    try:
        parts = [part + end for part in path.read_bytes().split(end)[:-1]]
        lists = [x509.load_pem_x509_crl(part.lstrip()) for part in parts]
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(f"{path}: is no PEM file of revocation lists") from error
    if not lists:
        raise CertificateError(f"{path}: holds no revocation list")
    return lists


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, in place of what is there."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


# ---- issuing ----


class Subject(NamedTuple):
    """Whom a certificate is for: a caller's identity, or a server by the names and addresses under which it is reached."""

    uri: str = ""
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.uri or (self.dns or self.ips)[0]

    def alternative_names(self) -> list[x509.GeneralName]:
        """Raises InvalidRequest."""
        names: list[x509.GeneralName] = []
        if self.uri:
            parse_identity(self.uri)
            names.append(x509.UniformResourceIdentifier(self.uri))
        try:
            names += [x509.DNSName(name) for name in self.dns]
        except ValueError as error:
            raise InvalidRequest("dns", "a host name in ASCII is wanted") from error
        try:
            names += [x509.IPAddress(ipaddress.ip_address(address)) for address in self.ips]
        except ValueError as error:
            raise InvalidRequest("ip", str(error)) from error
        if not names:
            raise InvalidRequest("identity", "an identity, or a server's --dns or --ip is wanted")
        return names


def subject_of(certificate: x509.Certificate) -> Subject:
    """Whom a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Subject()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return Subject(
        uris[0] if uris else "",
        tuple(names.get_values_for_type(x509.DNSName)),
        tuple(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )


class Authority:
    """A development authority in a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises CertificateError."""
        self.folder = folder
        (self.certificate,) = read_certificates(folder / "ca.pem")[:1]
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except OSError as error:
            raise CertificateError(f"{folder / 'ca.key'}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise CertificateError(f"{folder / 'ca.key'}: is no private key in PEM without a passphrase") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self.certificate.public_key():
            raise CertificateError(f"{folder / 'ca.key'}: is not the key of {folder / 'ca.pem'}")
        self._key = key

    @classmethod
    def make(cls, folder: Path, name: str, days: int) -> "Authority":
        """A new authority. Raises CertificateError where there is one."""
        if (folder / "ca.key").exists():
            raise CertificateError(f"{folder}: there is an authority already")
        (folder / "issued").mkdir(parents=True, exist_ok=True)
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates and lists
        made = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_secret(folder / "ca.key", key_pem(key))
        _write(folder / "ca.pem", made.public_bytes(PEM))
        authority = cls(folder)
        authority.write_revocations(())
        return authority

    def issue(self, subject: Subject, days: float, public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> x509.Certificate:
        """A certificate for a public key; never longer than the authority's own. Raises InvalidRequest."""
        names = x509.SubjectAlternativeName(subject.alternative_names())
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if subject.uri else ExtendedKeyUsageOID.SERVER_AUTH
        common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject.name[:64])])
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)  # digital signatures
        made = (
            _builder(common, self.certificate.subject, public_key, days, self.certificate.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _write(self.folder / "issued" / f"{made.serial_number:x}.pem", made.public_bytes(PEM))
        return made

    def issued(self) -> Iterator[x509.Certificate]:
        """Every certificate that it issued, the oldest first."""
        paths = (self.folder / "issued").glob("*.pem")
        found = [certificate for path in paths for certificate in read_certificates(path)]
        yield from sorted(found, key=lambda certificate: (certificate.not_valid_before_utc, certificate.serial_number))

    def revoked(self) -> dict[int, datetime.datetime]:
        """Serial numbers that are revoked, and since when."""
        return {
            entry.serial_number: entry.revocation_date_utc
            for found in read_revocations(self.folder / "crl.pem")
            for entry in found
        }

    def revoke(self, serials: Sequence[int], days: float = limits.CRL_DAYS) -> None:
        """Revoke certificates for good, and write the list anew, good for so many days. Also without any, to make it last."""
        self.write_revocations(serials, self.revoked(), days)

    def write_revocations(
        self, serials: Sequence[int], before: dict[int, datetime.datetime] | None = None, days: float = limits.CRL_DAYS
    ) -> None:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _BACKDATE)
            .next_update(now + datetime.timedelta(days=days))
        )
        for serial, since in ((before or {}) | {serial: now for serial in serials if serial not in (before or {})}).items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
            builder = builder.add_revoked_certificate(entry)
        _write(self.folder / "crl.pem", builder.sign(self._key, hashes.SHA256()).public_bytes(PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    days: float,
    latest: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    ends = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - _BACKDATE)
        .not_valid_after(ends if latest is None else min(ends, latest))
    )


def write_pair(authority: Authority, stem: Path, subject: Subject, days: float) -> x509.Certificate:
    """A new key and a certificate for it, in `stem`.key and `stem`.pem, each whole and in place of what is there. Who reads them
    at that moment may see the one new and the other old. Raises InvalidRequest."""
    key = new_key()
    certificate = authority.issue(subject, days, key.public_key())
    write_secret(stem.with_name(stem.name + ".key"), key_pem(key))
    _write(stem.with_name(stem.name + ".pem"), certificate.public_bytes(PEM))
    return certificate


def read_request(path: Path) -> x509.CertificateSigningRequest:
    """A signing request (PKCS #10) whose signature is right. Raises CertificateError."""
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(f"{path}: is no signing request in PEM") from error
    if not request.is_signature_valid:
        raise CertificateError(f"{path}: its signature is wrong")
    return request
