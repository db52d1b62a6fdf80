"""Configuration: one table of settings, read from a TOML file, the environment and flags, the later winning."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from yikatong.core import limits
from yikatong.core.errors import ConfigError
from yikatong.core.toml_file import read_toml

ENVIRONMENT_PREFIX: Final = "YIKATONG_"
PATHS: Final = frozenset(
    {
        "data", "keys", "key_passphrase_file", "sdf_pin_file", "purse_rules", "card_rules", "agreements", "seal_key", "tariffs",
        "tls_certificate", "tls_key", "tls_client_ca", "tls_client_crl", "ride_code_certificate", "ride_code_authority",
        "portals", "visibility", "code_services",
    }
)  # fmt: skip
"""Settings that name files; relative ones in a configuration file are taken from its folder."""


def _setting(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of `yikatong serve`. A port of 0 means any free one."""

    data: str = _setting("", "data directory; made if it is not there")
    keys: str = _setting(
        "", "key store, key file of a device, or a plain file of test keys; only its owner may be able to read it"
    )
    key_passphrase_file: str = _setting("", "file with the store's passphrase, or env:NAME; empty: asked for at the terminal")
    sdf_library: str = _setting("", "a key device's library (GM/T 0018); `keys` is the device's key file then")
    sdf_pin_file: str = _setting("", "file with the PIN of the device's private keys, or env:NAME; empty: none is wanted")
    sdf_sessions: int = _setting(4, "sessions with the device at once", 1, limits.SDF_SESSIONS_MAX)
    purse_rules: str = _setting("", "TOML file with purses and limits; empty: those that come with the package")
    card_rules: str = _setting("", "TOML file with time limits of issuing cards and days off; empty: those of the package")
    agreements: str = _setting("", "TOML file of agreements with operators and acquirers; without it nothing is cleared")
    seal_key: str = _setting("", "PEM file of the SM2 key that seals windows; only its owner may be able to read it")
    tariffs: str = _setting("", "tariff file, or a folder of them (*.toml); without it taps are charged what terminals state")
    portals: str = _setting("", "TOML file of portals that log people in (core/identity/portals.py)")
    visibility: str = _setting("", "TOML file of what of a person who may see; empty: the one that comes with the package")
    code_services: str = _setting("", "TOML file of services that resolve other issuers' codes; only its owner may read it")
    issuer: str = _setting("", "what assertions call their issuer; empty: yikatong, or the URL of `oidc_port`")
    host: str = _setting("127.0.0.1", "address that all ports listen on")
    service_port: int = _setting(7400, "gRPC, every service", 0, 65535)
    tap_port: int = _setting(7401, "native port for taps", 0, 65535)
    metrics_port: int = _setting(7402, "Prometheus text at /metrics", 0, 65535)
    oidc_port: int = _setting(-1, "OpenID Connect for portals; -1: none", -1, 65535)
    insecure: bool = _setting(False, "serve plaintext; on a loopback address only")
    tls_certificate: str = _setting("", "PEM file: the server's certificate and its chain")
    tls_key: str = _setting("", "PEM file: the key of that certificate")
    tls_client_ca: str = _setting("", "PEM file: authorities whose certificates callers must show (mTLS)")
    tls_client_crl: str = _setting("", "PEM file: revocation lists of these authorities; without it none is revoked")
    settlement_bank: str = _setting(
        "", "name in the certificate of the bank that keeps the settlement account; empty: operators alone bring its files"
    )
    json_logs: bool = _setting(False, "write the log as one JSON object a line")
    clock_ahead_s: int = _setting(
        limits.CLOCK_AHEAD_S, "how far a terminal's clock may be ahead, seconds", 0, limits.CLOCK_AHEAD_S_MAX
    )
    stored_grace_s: int = _setting(
        limits.STORED_GRACE_S, "how long after its card was denied a stored tap is honoured, seconds", 0, 30 * 86_400
    )
    overdraft_fen: int = _setting(
        0, "how far below zero a stored tap may leave a purse before that is debt, fen", 0, limits.OVERDRAFT_FEN_MAX
    )
    checkpoint_s: float = _setting(limits.CHECKPOINT_S, "time between checkpoints, seconds", 0.05, 86_400)
    checkpoint_records: int = _setting(
        limits.CHECKPOINT_RECORDS,
        "records between checkpoints, under full load up to four times as many: bounds what a restart replays",
        1,
        100_000_000,
    )
    connection_age_s: float = _setting(
        limits.CONNECTION_AGE_S, "age at which connections of the tap port are asked to go, seconds; 0: never", 0, 30 * 86_400
    )
    cards_max: int = _setting(limits.CARDS_MAX, "cards that the engine makes room for", 1, 1_000_000_000)
    terminals_max: int = _setting(limits.TERMINALS_MAX, "terminals that the engine makes room for", 1, 100_000_000)
    e_card_devices_max: int = _setting(
        limits.E_CARD_DEVICES_MAX, "devices that an e-card may be bound to at a time", 1, limits.DEVICES_KEPT_MAX - 1
    )
    rate_general_per_s: float = _setting(
        limits.RATE_GENERAL_PER_S, "calls a second of one caller, but for taps; 0: any number", 0, limits.RATE_PER_S_MAX
    )
    rate_personal_per_s: float = _setting(
        limits.RATE_PERSONAL_PER_S, "likewise, of methods that show who somebody is", 0, limits.RATE_PER_S_MAX
    )
    rate_proof_per_s: float = _setting(
        limits.RATE_PROOF_PER_S, "likewise, of methods that take a secret (code, proof, ticket)", 0, limits.RATE_PER_S_MAX
    )
    ride_code_certificate: str = _setting(
        "", "file of the issuer's certificate in offline ride codes, 117 bytes; without it none"
    )
    ride_code_authority: str = _setting("", "PEM file of the SM2 key of the authority that signed ride_code_certificate")
    ride_code_hours: int = _setting(limits.RIDE_CODE_HOURS, "how long a phone makes ride codes without network, hours", 1, 720)
    ride_code_limit_fen: int = _setting(limits.RIDE_CODE_LIMIT_FEN, "what a trip by ride code may cost, fen", 1, (1 << 24) - 1)
    drain_s: float = _setting(limits.DRAIN_S, "how long calls in flight may take to finish on SIGTERM, seconds", 0, 3600)

    def __post_init__(self) -> None:
        for setting in fields(self):
            low, high = setting.metadata["low"], setting.metadata["high"]
            value = getattr(self, setting.name)
            if low is not None and not low <= value <= high:
                raise ConfigError(setting.name, f"{low} to {high} is wanted, not {value}")
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError as error:
            raise ConfigError("host", f"an IP address is wanted, not {self.host!r}") from error
        if self.insecure and not address.is_loopback:
            raise ConfigError("insecure", f"plaintext is served on a loopback address only, and host is {self.host}")

    def check_tls(self) -> None:
        """Raises ConfigError unless there is a certificate and key, or plaintext was asked for."""
        if self.insecure:
            if self.tls_certificate or self.tls_key or self.tls_client_ca or self.tls_client_crl:
                raise ConfigError("insecure", "a TLS certificate is configured too: choose one")
            return
        for name in ("tls_certificate", "tls_key"):
            if not getattr(self, name):
                raise ConfigError(name, "is not set; without TLS, --insecure on a loopback address is wanted")
        if not self.tls_client_ca:
            if not ipaddress.ip_address(self.host).is_loopback:
                raise ConfigError("tls_client_ca", f"is not set: callers must show certificates where host is {self.host}")
            if self.tls_client_crl:
                raise ConfigError("tls_client_ca", "is not set, but tls_client_crl is")

    def url(self, port: int) -> str:
        """host:port as gRPC wants it."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


def flag(name: str) -> str:
    """A setting's command-line flag."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """A setting's environment variable."""
    return ENVIRONMENT_PREFIX + name.upper()


def _convert(name: str, kind: Any, value: Any, place: str) -> Any:
    """A value of the setting's type from TOML (typed) or the environment (text)."""
    if isinstance(value, str) and kind is not str:
        text = value.strip().lower()
        try:
            if kind is bool:
                return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text]
            return kind(text)
        except (KeyError, ValueError):
            raise ConfigError(place, f"{kind.__name__} is wanted, not {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(place, f"{kind.__name__} is wanted, not {value!r}")
    return value


def read_settings(file: Path | None, environment: Mapping[str, str] = os.environ, **flags: Any) -> Settings:
    """Settings of a TOML file, overridden by the environment, overridden by flags that are not None.

    Raises ConfigError naming the key, variable or flag. Relative paths in the file are taken from the file's folder."""
    kinds = {setting.name: type(setting.default) for setting in fields(Settings)}
    values: dict[str, Any] = {}
    if file is not None:
        document = read_toml(file)
        for name, value in document.items():
            if name not in kinds:
                raise ConfigError(f"{file}: {name}", "there is no such setting")
            values[name] = _convert(name, kinds[name], value, f"{file}: {name}")
            if name in PATHS and (values[name] or name in ("data", "keys")) and not str(values[name]).startswith("env:"):
                values[name] = str(file.parent / values[name])
    for name, kind in kinds.items():
        if variable(name) in environment:
            values[name] = _convert(name, kind, environment[variable(name)], variable(name))
    values.update({name: value for name, value in flags.items() if value is not None})
    return Settings(**values)


def settings_table() -> str:
    """The settings as a Markdown table, for the README."""
    lines = ["| setting | flag | environment | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for setting in fields(Settings):
        default = str(setting.default).lower() if isinstance(setting.default, bool) else str(setting.default)
        lines.append(
            f"| `{setting.name}` | `{flag(setting.name)}` | `{variable(setting.name)}` | {default or '—'} "
            f"| {setting.metadata['help']} |"
        )
    return "\n".join(lines)
