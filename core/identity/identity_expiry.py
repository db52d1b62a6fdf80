"""When documents of logins and identity checks are swept."""

from yikatong.core.change import Change
from yikatong.core.types import DocumentKind


def put_expiry(change: Change, due_us: int, kind: DocumentKind, key: bytes, before_us: int = 0) -> None:
    """Let a document of identity be swept at a journal time, and no more at the one that was set before."""
    if before_us and before_us != due_us:
        change.delete(DocumentKind.IDENTITY_EXPIRY, before_us.to_bytes(8, "big") + bytes([kind]) + key)
    if before_us != due_us:
        change.put(DocumentKind.IDENTITY_EXPIRY, due_us.to_bytes(8, "big") + bytes([kind]) + key, b"\1")
