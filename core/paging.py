"""Pages of documents, in order of key: a page token names the key to go on from."""

import base64
from collections.abc import Callable
from typing import Final, TypeVar

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory
from yikatong.core.queries import page_size
from yikatong.core.types import DocumentKind

Kept = TypeVar("Kept", bound=Message)
_TOKEN_VERSION: Final = b"2"


def _token(kind: DocumentKind, key: bytes) -> str:
    return base64.urlsafe_b64encode(_TOKEN_VERSION + bytes([kind]) + key).decode()


def _parse_token(token: str, kind: DocumentKind, prefix: bytes) -> bytes:
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    before = _TOKEN_VERSION + bytes([kind])
    if not raw.startswith(before + prefix) or len(raw) == len(before):
        raise InvalidRequest("page_token", "is not a token of this list")
    return raw[len(before) :]


def page(
    memory: Memory,
    kind: DocumentKind,
    parse: Callable[[bytes], Kept],
    *,
    size: int,
    token: str,
    prefix: bytes = b"",
    wanted: Callable[[Kept], bool] = lambda kept: True,
) -> tuple[list[Kept], str]:
    """Documents whose keys begin with `prefix` and that are wanted, up to `size` (0: the default), and the next page's token
    ("" after the last). Raises InvalidRequest naming page_size or page_token."""
    size = page_size(size)
    start = _parse_token(token, kind, prefix) if token else prefix
    found: list[Kept] = []
    for looked_at, (key, value) in enumerate(memory.documents.scan(kind, start)):
        if not key.startswith(prefix):
            break
        if len(found) == size or looked_at == limits.SCAN_DOCUMENTS_MAX:
            return found, _token(kind, key)
        kept = parse(value)
        if wanted(kept):
            found.append(kept)
    return found, ""


def key_of(field: str, text: str, length: int) -> bytes:
    """The key in an id of hex digits. Raises InvalidRequest."""
    if len(text) != 2 * length or set(text) - set("0123456789abcdef"):
        raise InvalidRequest(field, f"{2 * length} hex digits are wanted")
    return bytes.fromhex(text)


def kept(memory: Memory, kind: DocumentKind, parse: Callable[[bytes], Kept], name: str, key: bytes, shown: str) -> Kept:
    """One document. Raises NotFound."""
    value = memory.documents.get(kind, key)
    if value is None:
        raise NotFound(name, shown)
    return parse(value)
