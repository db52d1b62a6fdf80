"""Portals that log people in: what each is called, and for OpenID Connect its secret or key, redirect URIs, fields and purpose.

A TOML file (setting `portals`):

    [[portal]]
    id = "library"                    # a department's name: 1 to 64 letters, digits, dots, hyphens and underscores
    title = "City library"            # what the phone shows
    secret_digest = "…"               # SM3 of its secret, hex; `new_secret` makes both. Or:
    public_key = "…"                  # PEM of its key for private_key_jwt, P-256 or SM2
    redirect_uris = ["https://library.example/login"]   # compared character by character
    fields = ["name_masked"]          # all that it may ask for
    purpose = "library account"
    legal_basis = "consent"
    id_token_alg = "ES256"            # or "SGD_SM3_SM2", for a portal whose library knows SM2"""

import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from yikatong.core import limits
from yikatong.core.errors import ConfigError, InvalidRequest
from yikatong.core.identity.assertions import ES256, SM2, Key, key_of_pem
from yikatong.core.identity.visibility import check_purpose, read_fields
from yikatong.core.journal import sm3
from yikatong.core.toml_file import read_toml

SECRET_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIELDS: Final = {
    "id", "title", "secret_digest", "public_key", "redirect_uris", "fields", "purpose", "legal_basis", "id_token_alg",
}  # fmt: skip
_OPTIONAL: Final = {"secret_digest", "public_key", "id_token_alg"}


class Portal(NamedTuple):
    """One registered portal."""

    id: str
    title: str
    secret_digest: bytes  # SM3, 32 bytes; empty: it signs instead
    key: Key | None
    redirect_uris: tuple[str, ...]
    fields: tuple[str, ...]
    purpose: str
    legal_basis: str
    id_token_alg: str

    def has_secret(self, secret: str) -> bool:
        """Whether this is its secret."""
        return bool(self.secret_digest) and hmac.compare_digest(sm3(secret.encode()), self.secret_digest)


def new_secret() -> tuple[str, str]:
    """A random secret for a portal, and its digest for the file: it is long, so a plain digest hides it."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return secret, sm3(secret.encode()).hex()


def read(path: Path) -> dict[str, Portal]:
    """The portals of a file, by id. Raises ConfigError naming the portal and field."""
    document = read_toml(path)
    entries = document.get("portal")
    if set(document) != {"portal"} or not isinstance(entries, list) or not 1 <= len(entries) <= limits.PORTALS_MAX:
        raise ConfigError(str(path), f"1 to {limits.PORTALS_MAX} [[portal]] and nothing else are wanted")
    portals: dict[str, Portal] = {}
    for i, entry in enumerate(entries):
        portal = _portal(entry, f"{path}: portal[{i}]")
        if portal.id in portals:
            raise ConfigError(f"{path}: portal[{i}].id", "stands there twice")
        portals[portal.id] = portal
    return portals


def _portal(entry: Any, place: str) -> Portal:
    if not isinstance(entry, dict) or not _FIELDS - _OPTIONAL <= set(entry) <= _FIELDS:
        raise ConfigError(place, f"{', '.join(sorted(_FIELDS))}, {' and '.join(sorted(_OPTIONAL))} if need be, are wanted")
    texts: Mapping[str, Any] = {name: entry.get(name, "") for name in _FIELDS - {"redirect_uris", "fields"}}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(f"{place}.{name}", "a text is wanted")
    if not _ID.fullmatch(texts["id"]):
        raise ConfigError(f"{place}.id", "1 to 64 letters, digits, dots, hyphens and underscores are wanted")
    if not 1 <= len(texts["title"]) <= limits.PURPOSE_CHARACTERS_MAX or not texts["title"].isprintable():
        raise ConfigError(f"{place}.title", f"1 to {limits.PURPOSE_CHARACTERS_MAX} printable characters are wanted")
    try:
        check_purpose(texts["purpose"], texts["legal_basis"])
    except InvalidRequest as error:
        raise ConfigError(f"{place}.{error.field}", error.reason) from None
    if bool(texts["secret_digest"]) == bool(texts["public_key"]):
        raise ConfigError(place, "either secret_digest or public_key is wanted")
    if texts["secret_digest"] and not re.fullmatch(r"[0-9a-f]{64}", texts["secret_digest"]):
        raise ConfigError(f"{place}.secret_digest", "64 hexadecimal digits in lower case are wanted")
    if texts["id_token_alg"] not in ("", ES256, SM2):
        raise ConfigError(f"{place}.id_token_alg", f"{ES256} or {SM2} is wanted")
    uris = entry["redirect_uris"]
    if not isinstance(uris, list) or not uris or not all(isinstance(uri, str) and _is_redirect_uri(uri) for uri in uris):
        raise ConfigError(f"{place}.redirect_uris", "some https URIs without fragment are wanted (http on a loopback address)")
    return Portal(
        texts["id"],
        texts["title"],
        bytes.fromhex(texts["secret_digest"]),
        _key(texts["public_key"], f"{place}.public_key") if texts["public_key"] else None,
        tuple(uris),
        read_fields(entry["fields"], f"{place}.fields"),
        texts["purpose"],
        texts["legal_basis"],
        texts["id_token_alg"] or ES256,
    )


def _key(pem: str, place: str) -> Key:
    for algorithm in (ES256, SM2):
        try:
            return key_of_pem(algorithm, pem.encode(), place)
        except ConfigError:
            continue
    raise ConfigError(place, "a PEM text of a public key on P-256 or of SM2 is wanted")


def _is_redirect_uri(uri: str) -> bool:
    if len(uri) > limits.LOGIN_TEXT_CHARACTERS_MAX or not uri.isascii() or not uri.isprintable() or set(uri) & set(' "<>\\'):
        return False
    try:
        parts = urlsplit(uri)
        host = parts.hostname
    except ValueError:
        return False
    local = host in ("127.0.0.1", "::1", "localhost")
    return "#" not in uri and bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and local))
