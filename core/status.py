"""Errors to gRPC: the one table, and the google.rpc.Status that goes with each."""

import math
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from yikatong.core.errors import (
    ConfigError,
    DataError,
    DeadlineOver,
    Forbidden,
    Full,
    InvalidRequest,
    LockedOut,
    NotFound,
    Overloaded,
    RateLimited,
    Unauthenticated,
    Unavailable,
    YikatongError,
)
from yikatong.core.keys.provider import KeyUnknown, SealedDataWrong

DOMAIN: Final = "yikatong"
RETRY_MS: Final = 200  # some group commits

CODES: Final[dict[type[YikatongError], tuple[grpc.StatusCode, str]]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    NotFound: (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    Forbidden: (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN"),
    LockedOut: (grpc.StatusCode.RESOURCE_EXHAUSTED, "LOCKED_OUT"),
    RateLimited: (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    ConfigError: (grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED"),
    Full: (grpc.StatusCode.FAILED_PRECONDITION, "FULL"),
    Unavailable: (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
    DeadlineOver: (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_OVER"),
    KeyUnknown: (grpc.StatusCode.FAILED_PRECONDITION, "KEY_UNKNOWN"),
    SealedDataWrong: (grpc.StatusCode.DATA_LOSS, "SEALED_DATA_WRONG"),
    DataError: (grpc.StatusCode.DATA_LOSS, "DATA_ERROR"),
}
"""Error, gRPC code, and ErrorInfo reason."""


def status_of(error: YikatongError) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """The gRPC code of an error, and its status message with ErrorInfo, BadRequest and RetryInfo as they apply."""
    kind = next(kind for kind in type(error).__mro__ if kind in CODES)
    code, reason = CODES[kind]
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    if isinstance(error, Forbidden):
        info.metadata.update(why=error.why, wanted=error.wanted)
    details = [info]
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.reason)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded | Unavailable):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(math.ceil(error.retry_s * 1_000) if isinstance(error, RateLimited) else RETRY_MS)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=str(error))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail, deterministic=True)  # both ports answer the same bytes
        status.details.append(packed)
    return code, status
