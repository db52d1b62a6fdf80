"""Keys on their way from one store to another: wrapped under a transport key that both stores have, or in components, which
custodians carry.

The wrap is SM4-GCM (RFC 8998's algorithm, a fresh nonce for each); what the file says of its key is associated data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from yikatong.core.errors import ConfigError
from yikatong.core.keys.ceremony_log import canonical
from yikatong.core.keys.provider import SIGNING, KeyReference, Purpose
from yikatong.core.keys.signers import Signer, read_signer
from yikatong.core.keys.store import (
    SEALED_KEY_BYTES,
    CeremonyRefused,
    FieldReader,
    StoredKey,
    check_value_of,
    write_file,
)
from yikatong.ext.key_holder import KeyHolder

FORMAT: Final = 1
_FIELDS: Final = {"format", "purpose", "version", "index", "issuer_id", "levels", "kcv", "transport_kcv", "sealed"}
COMPONENTS: Final = (2, 3)
KEY_BYTES: Final = 16


class Wrapped(NamedTuple):
    """A key as a wrapped file has it."""

    key: KeyReference
    levels: int
    check_value: bytes
    value: KeyHolder | Signer


def join(components: Sequence[KeyHolder], check_value: bytes) -> KeyHolder:
    """The key whose components these are. Raises CeremonyRefused where two are the same, one is zeros, or it is not the key of
    that KCV."""
    if len(components) not in COMPONENTS:
        raise CeremonyRefused("a key has two or three components")
    for i, component in enumerate(components):
        if any(component.same(other) for other in components[:i]):
            raise CeremonyRefused("two components are the same")
        if component.same(KeyHolder.take(bytearray(KEY_BYTES))):
            raise CeremonyRefused("a component is all zeros: the others alone would tell the key")
    whole = components[0]
    for component in components[1:]:
        whole = whole.xor(component)
    if whole.check_value() != check_value:
        raise CeremonyRefused(f"the components make a key with check value {whole.check_value().hex()}, not {check_value.hex()}")
    return whole


def write_wrapped(path: Path, stored: StoredKey, value: KeyHolder | Signer, transport: KeyHolder) -> None:
    """Raises ConfigError where the file cannot be written."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "purpose": stored.key.purpose.name.lower(),
        "version": stored.key.key_version,
        "index": stored.key.key_index,
        "issuer_id": stored.key.issuer_id.hex(),
        "levels": stored.levels,
        "kcv": stored.check_value.hex(),
        "transport_kcv": transport.check_value().hex(),
    }
    if isinstance(value, KeyHolder):
        sealed = transport.seal_key(value, canonical(document))
    else:
        sealed = transport.seal(value.private_pem(), canonical(document))
    write_file(path, document | {"sealed": sealed.hex()})


def read_wrapped(path: Path, transport: KeyHolder) -> Wrapped:
    """Raises ConfigError naming the field, or where it was altered or is under another transport key."""
    reader = FieldReader(path)
    table = reader.table(reader.read(), "", _FIELDS)
    reader.number(table, "", "format", FORMAT, FORMAT)
    purpose = Purpose.__members__.get(reader.text(table, "", "purpose").upper())
    if purpose is None:
        raise reader.fail("purpose", f"one of {', '.join(each.name.lower() for each in Purpose)} is wanted")
    signs = purpose in SIGNING
    key = KeyReference(
        purpose, reader.number(table, "", "version", 0, 255), reader.number(table, "", "index", 0, 255),
        reader.raw(table, "", "issuer_id", 8, 8),
    )  # fmt: skip
    levels, check_value = reader.number(table, "", "levels", 1, 2), reader.raw(table, "", "kcv", 3, 3)
    sealed = reader.raw(table, "", "sealed", SEALED_KEY_BYTES, 1_024 if signs else SEALED_KEY_BYTES)
    if reader.raw(table, "", "transport_kcv", 3, 3) != transport.check_value():
        raise reader.fail("transport_kcv", f"is another transport key than that of {transport.check_value().hex()}")
    associated = canonical({name: value for name, value in table.items() if name != "sealed"})
    value: KeyHolder | Signer | None
    if signs:
        pem = transport.open(sealed, associated)
        value = None if pem is None else read_signer(purpose, bytes(pem), str(path))
    else:
        value = transport.open_key(sealed, associated)
    if value is None or check_value_of(value) != check_value:
        raise ConfigError(str(path), "was altered")
    return Wrapped(key, levels, check_value, value)
