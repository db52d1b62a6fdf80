"""The server's side of TLS: its certificate and key, whose certificates it takes, and which of those are revoked.

The files are read anew when they change, or on SIGHUP; connections that are open stay, and each call on them is held against the
revocation lists that are in force when it is made. Files that do not go together change nothing but the log: what was read last
stays in force. Only a revocation list that is out of date is not bridged over: nobody is trusted until there is a newer one."""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc

from yikatong.core.access.callers import LOCAL, Caller
from yikatong.core.access.certificates import (
    CertificateError,
    Identity,
    Revocations,
    check,
    read_certificates,
    read_revocations,
)
from yikatong.core.config import Settings
from yikatong.core.errors import ConfigError, Unauthenticated

log = logging.getLogger(__name__)

FILES: Final = ("tls_certificate", "tls_key", "tls_client_ca", "tls_client_crl")
WARN_BEFORE_S: Final = 7 * 86_400.0  # before the server's certificate ends
WARN_LIST_BEFORE_S: Final = 86_400.0  # before a revocation list runs out
WARN_EACH_S: Final = 86_400.0
_Stamp = tuple[tuple[str, int, int, int], ...]


class Material:
    """What one reading of the files gave."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError, naming the setting, when a file cannot be read or they do not belong together, which gRPC itself
        would not say."""
        self.context = _context(settings)
        self.certificate = _read(settings, "tls_certificate")
        self.key = _read(settings, "tls_key")
        self.client_ca = _read(settings, "tls_client_ca") if settings.tls_client_ca else None
        try:
            chain = read_certificates(Path(settings.tls_certificate))
        except CertificateError as error:
            raise ConfigError("tls_certificate", str(error)) from error
        self.ends_s = min(found.not_valid_after_utc.timestamp() for found in chain)
        self.revocations: Revocations | None = None
        if settings.tls_client_crl:
            try:
                lists = read_revocations(Path(settings.tls_client_crl))
                self.revocations = Revocations(lists, read_certificates(Path(settings.tls_client_ca)))
            except CertificateError as error:
                raise ConfigError("tls_client_crl", str(error)) from error

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class Tls:
    """TLS of a server's ports. `poll` and `reload` may run on any thread; `on_change` is called there, after a reload and when a
    revocation list has run out."""

    def __init__(self, settings: Settings, clock_s: Callable[[], float] = time.time) -> None:
        """Raises ConfigError."""
        self._settings = settings
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._stamp = self._look()
        self.material = Material(settings)
        self._refuse_old(self.material)
        self._outdated = False
        self._warned_s = 0.0
        self.on_change: list[Callable[[], object]] = []

    @property
    def is_mutual(self) -> bool:
        """Callers must show certificates."""
        return self.material.client_ca is not None

    def identify(self, identity: Identity | None) -> Caller:
        """The caller of a verified certificate, as things stand now. Raises Unauthenticated.

        Without client authorities there are no identities: that is served on loopback only (Settings.check_tls), where whoever
        can reach the port is the machine's own operator."""
        if not self.is_mutual:
            return LOCAL
        if identity is None:
            raise Unauthenticated("a certificate is wanted, one that can be read")
        return check(identity, self.material.revocations, self._clock_s())

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC: each new connection gets what is in force then."""
        last: list[Material] = [self.material]

        def newer() -> Any:  # a configuration; None: as it was
            if last[0] is self.material:
                return None
            last[0] = self.material
            return last[0].configuration()

        return grpc.dynamic_ssl_server_credentials(self.material.configuration(), newer, self.is_mutual)

    def poll(self) -> None:
        """Read the files again if they have changed; and notice when a revocation list has run out, or is about to."""
        if self._look() != self._stamp:
            self.reload()
        self._warn()
        revocations = self.material.revocations
        outdated = revocations is not None and self._clock_s() >= revocations.ends_s
        if outdated and not self._outdated:
            log.error("%s is out of date: every caller is refused until there is a newer one", self._settings.tls_client_crl)
            self._tell()
        self._outdated = outdated

    def reload(self) -> bool:
        """Read the files again. Where they are not good, what was in force stays; False then."""
        with self._lock:
            self._stamp = self._look()
            try:
                made = Material(self._settings)
                self._refuse_old(made)
            except ConfigError as error:
                log.error("TLS files were not taken: %s; what was read before stays in force", error)
                return False
            self.material = made
            self._outdated = False
            self._warned_s = 0.0
        revocations = made.revocations
        revoked = "no revocation list" if revocations is None else f"{len(revocations)} certificates revoked"
        log.info("TLS files were read anew: the certificate is good until %s, %s", _date(made.ends_s), revoked)
        self._tell()
        return True

    def _warn(self) -> None:
        """Say once a day what will end soon."""
        now_s, made = self._clock_s(), self.material
        if now_s - self._warned_s < WARN_EACH_S:
            return
        ends = [("tls_certificate", made.ends_s, WARN_BEFORE_S)]
        if made.revocations is not None:
            ends.append(("tls_client_crl", made.revocations.ends_s, WARN_LIST_BEFORE_S))
        for name, ends_s, before_s in ends:
            if ends_s - now_s < before_s:
                log.warning("%s (%s) is good until %s only", getattr(self._settings, name), name, _date(ends_s))
                self._warned_s = now_s

    def _tell(self) -> None:
        for listener in self.on_change:
            listener()

    def _refuse_old(self, made: Material) -> None:
        now_s = self._clock_s()
        if now_s >= made.ends_s:
            raise ConfigError("tls_certificate", f"{self._settings.tls_certificate} expired on {_date(made.ends_s)}")
        if made.revocations is not None and now_s >= made.revocations.ends_s:
            until = _date(made.revocations.ends_s)
            raise ConfigError("tls_client_crl", f"{self._settings.tls_client_crl} was good until {until} only")

    def _look(self) -> _Stamp:
        found = []
        for name in FILES:
            if path := getattr(self._settings, name):
                try:
                    status = Path(path).stat()
                except OSError:
                    continue  # between two versions; when it stays away the next reading says so
                found.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _read(settings: Settings, name: str) -> bytes:
    path = getattr(settings, name)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(name, f"{path}: {error.strerror}") from error


def _context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except ssl.SSLError as error:
        raise ConfigError(
            "tls_key", f"is not the key of the certificate, or one of them is no PEM file: {error.reason}"
        ) from error
    except OSError as error:
        raise ConfigError("tls_certificate", f"it or tls_key cannot be read: {error.strerror}") from error
    if settings.tls_client_ca:
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except OSError as error:  # SSLError is one
            raise ConfigError("tls_client_ca", f"cannot be read, or is no PEM file: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that is taken up again would show the certificate of its first handshake without proof of the key.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    return context
