"""Requests and responses as they come over the wire."""

from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from yikatong.core import limits
from yikatong.core.errors import InvalidRequest


def parse(kind: type[Message] | Descriptor, raw: bytes) -> Any:
    """A message of a class or of a descriptor. Raises InvalidRequest."""
    if isinstance(kind, Descriptor):
        kind = GetMessageClass(kind)
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest("request", "is not protobuf") from error


def check_line(field: str, text: str, least: int = 1) -> None:
    """A line of a form: a purpose, a legal basis, a reason. Raises InvalidRequest."""
    if not least <= len(text) <= limits.PURPOSE_CHARACTERS_MAX or not text.isprintable():
        raise InvalidRequest(field, f"{least} to {limits.PURPOSE_CHARACTERS_MAX} characters are wanted")
