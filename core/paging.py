"""Pages of lists: how large they are, and tokens that name the place to go on from."""

import base64
from collections.abc import Callable
from typing import Final, TypeVar

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory
from yikatong.core.types import DocumentKind

Kept = TypeVar("Kept", bound=Message)
TOKEN_VERSION: Final = b"1"


def page_token(place: bytes, of: bytes) -> str:
    """An opaque token: the place to go on from, in the list of something."""
    return base64.urlsafe_b64encode(TOKEN_VERSION + of + place).decode()


def parse_page_token(token: str, of: bytes, place_bytes: int | None = None) -> bytes:
    """The place in a token, of so many bytes (None: any but none). Raises InvalidRequest when it is none of ours or of another
    list."""
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    head = TOKEN_VERSION + of
    place = raw[len(head) :]
    if not raw.startswith(head) or (not place if place_bytes is None else len(place) != place_bytes):
        raise InvalidRequest("page_token", "is not a token of this list")
    return place


def page_size(asked: int) -> int:
    """The page size for what was asked: 0 means the default. Raises InvalidRequest outside the range."""
    if not 0 <= asked <= limits.PAGE_SIZE_MAX:
        raise InvalidRequest("page_size", f"0 to {limits.PAGE_SIZE_MAX} is wanted")
    return asked or limits.PAGE_SIZE_DEFAULT


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
    of = bytes([kind]) + prefix
    start = prefix + parse_page_token(token, of) if token else prefix
    found: list[Kept] = []
    for looked_at, (key, value) in enumerate(memory.documents.scan(kind, start)):
        if not key.startswith(prefix):
            break
        if len(found) == size or looked_at == limits.SCAN_DOCUMENTS_MAX:
            return found, page_token(key[len(prefix) :], of)
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
