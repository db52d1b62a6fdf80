"""`yikatong certs`: a development authority, and certificates of it."""

import datetime
from pathlib import Path
from typing import Final

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from rich.console import Console
from rich.table import Table

from yikatong.core import limits
from yikatong.core.access.callers import ROLES, parse_identity
from yikatong.core.access.certificates import (
    PEM,
    Authority,
    CertificateError,
    Subject,
    identity_of,
    read_certificates,
    read_request,
    subject_of,
    write_pair,
)

OUT: Final = Console()

authority_option = click.option(
    "--authority", "folder", type=click.Path(path_type=Path), default=Path("certs"), show_default=True, help="its folder"
)
days_option = click.option(
    "--days", type=click.IntRange(1, limits.CERTIFICATE_DAYS_MAX), default=limits.CERTIFICATE_DAYS, show_default=True,
    help="how long it is good",
)  # fmt: skip
dns_option = click.option("--dns", multiple=True, help="for a server: a host name under which it is reached")
ip_option = click.option("--ip", "ips", multiple=True, help="for a server: an address under which it is reached")


@click.group(name="certs")
def certs() -> None:
    """A development authority, and certificates of callers and servers.

    \b
    An identity is ROLE:NAME[:DISTRICT], in the certificate the URI yikatong:ROLE:NAME[:DISTRICT]:
      terminal:112233445566      a terminal, by its number
      acquirer:heyuan-bus        an operator or acquirer, by its id
      department:hrss:441602     a department, kept to a district
      bank:icbc                  a bank
      operator:anna              somebody who runs the core

    The authority's key lies in a file, so it is for trials and small installations. In production a certificate authority of the
    city or of a bank issues: the key of a terminal is made in its SAM, that of a server in its HSM, and only signing requests
    (CSR) leave them. Such an authority must put into a certificate what `yikatong certs sign` puts in: exactly one URI of the
    scheme yikatong, whatever the request asks for; key usage digitalSignature; extended key usage clientAuth for callers,
    serverAuth for servers. The server needs its chain (tls_client_ca) and its revocation list (tls_client_crl), fetched anew
    before it runs out: both files are read when they change."""


@certs.command()
@authority_option
@click.option("--name", default="Yikatong development authority", show_default=True, help="its common name")
@click.option(
    "--days", type=click.IntRange(1, 2 * limits.CERTIFICATE_DAYS_MAX), default=limits.AUTHORITY_DAYS, show_default=True,
    help="how long it is good",
)  # fmt: skip
def init(folder: Path, name: str, days: int) -> None:
    """Make an authority: ca.pem, ca.key (its owner's alone) and an empty crl.pem."""
    Authority.make(folder, name, days)
    _say(f"{folder / 'ca.pem'}, {folder / 'ca.key'}, {folder / 'crl.pem'}")


@certs.command()
@click.argument("identity")
@authority_option
@days_option
@dns_option
@ip_option
@click.option("--out", type=click.Path(path_type=Path), help="file name before .pem and .key; made of the identity unless given")
def issue(identity: str, folder: Path, days: int, dns: tuple[str, ...], ips: tuple[str, ...], out: Path | None) -> None:
    """Make a key and a certificate for IDENTITY; `server` with --dns and --ip for a server."""
    subject = _subject(identity, dns, ips)
    stem = out or Path(identity.removeprefix("yikatong:").replace(":", "-"))
    for name in (f"{stem.name}.pem", f"{stem.name}.key"):
        if stem.with_name(name).exists():
            raise click.ClickException(f"{stem.with_name(name)} is there already: `renew` replaces it, or give another --out")
    certificate = write_pair(Authority(folder), stem, subject, days)
    _say(f"{stem}.pem, {stem}.key: {subject.name}, good until {_date(certificate.not_valid_after_utc)}")


@certs.command()
@click.argument("request", type=click.Path(path_type=Path))
@click.argument("identity")
@authority_option
@days_option
@dns_option
@ip_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file to write the certificate to")
def sign(request: Path, identity: str, folder: Path, days: int, dns: tuple[str, ...], ips: tuple[str, ...], out: Path) -> None:
    """Issue a certificate for the key of a signing REQUEST (PKCS #10). Only its key is taken: who it is for is said here."""
    key = read_request(request).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise CertificateError(f"{request}: a key of an elliptic curve, or of RSA, is wanted")
    subject = _subject(identity, dns, ips)
    certificate = Authority(folder).issue(subject, days, key)
    out.write_bytes(certificate.public_bytes(PEM))
    _say(f"{out}: {subject.name}, good until {_date(certificate.not_valid_after_utc)}")


@certs.command()
@click.argument("certificate", type=click.Path(path_type=Path))
@authority_option
@days_option
@click.option("--revoke-old", is_flag=True, help="revoke the certificate that is replaced")
def renew(certificate: Path, folder: Path, days: int, revoke_old: bool) -> None:
    """Replace a CERTIFICATE (FILE.pem) and its key (FILE.key) by new ones for the same subject. A running server, and clients of
    yikatong.clients, take them without a restart."""
    authority = Authority(folder)
    old = _own(authority, certificate)
    made = write_pair(authority, certificate.with_suffix(""), subject_of(old), days)
    if revoke_old:
        authority.revoke([old.serial_number])
    _say(f"{certificate}: {subject_of(made).name}, good until {_date(made.not_valid_after_utc)}")


@certs.command()
@click.argument("whom", nargs=-1)
@authority_option
@click.option(
    "--crl-days", type=click.IntRange(1, 365), default=limits.CRL_DAYS, show_default=True, help="how long the list is good"
)
def revoke(whom: tuple[str, ...], folder: Path, crl_days: int) -> None:
    """Revoke certificates, each by its file, its serial number or an identity (then all of it), and write crl.pem anew; without
    any only that, so that the list does not run out."""
    authority = Authority(folder)
    issued = list(authority.issued())
    serials: list[int] = []
    for word in whom:
        if Path(word).is_file():
            serials.append(_own(authority, Path(word)).serial_number)
            continue
        found = [each.serial_number for each in issued if word == f"{each.serial_number:x}" or _uri(word) == subject_of(each).uri]
        if not found:
            raise click.ClickException(f"{word}: no file, and {folder} has issued no certificate of this number or identity")
        serials += found
    authority.revoke(serials, crl_days)
    _say(f"{folder / 'crl.pem'}: {len(authority.revoked())} revoked, good for {crl_days} days")


@certs.command(name="list")
@authority_option
def list_(folder: Path) -> None:
    """Every certificate that the authority has issued."""
    authority = Authority(folder)
    revoked = authority.revoked()
    now = datetime.datetime.now(datetime.UTC)
    table = Table("state")
    for title in ("for", "good until", "serial number"):
        table.add_column(title, overflow="fold")
    for each in authority.issued():
        state = "revoked" if each.serial_number in revoked else "expired" if each.not_valid_after_utc <= now else "good"
        table.add_row(state, subject_of(each).name, _date(each.not_valid_after_utc), f"{each.serial_number:x}")
    OUT.print(table)


@certs.command()
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """What the certificates in a FILE say."""
    for each in read_certificates(file):
        subject, identity = subject_of(each), identity_of(each)
        who = str(identity.caller) if identity.caller else ", ".join((*subject.dns, *subject.ips)) or identity.fault
        _say(
            f"{file}: {who}\n  serial number {each.serial_number:x}, of {each.issuer.rfc4514_string()}\n"
            f"  good from {_date(each.not_valid_before_utc)} to {_date(each.not_valid_after_utc)}"
        )


def _uri(identity: str) -> str:
    return identity if identity.startswith("yikatong:") else f"yikatong:{identity}"


def _subject(identity: str, dns: tuple[str, ...], ips: tuple[str, ...]) -> Subject:
    if identity == "server":
        return Subject(dns=dns, ips=ips)
    if dns or ips:
        raise click.UsageError("--dns and --ip are for a server: callers are known by their identity alone")
    if _uri(identity).split(":")[1] not in ROLES:
        raise click.UsageError(f"IDENTITY is `server`, or begins with one of {', '.join(ROLES)}")
    parse_identity(_uri(identity))
    return Subject(uri=_uri(identity))


def _own(authority: Authority, path: Path) -> x509.Certificate:
    certificate = read_certificates(path)[0]
    if certificate.issuer != authority.certificate.subject:
        raise CertificateError(f"{path}: was not issued by the authority in {authority.folder}")
    return certificate


def _date(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")


def _say(text: str) -> None:
    OUT.print(text, highlight=False, markup=False, soft_wrap=True)
