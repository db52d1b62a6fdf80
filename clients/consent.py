"""The phone's side of logins: scan a portal's QR code, see who asks for what, consent or deny; consent to being handed on.

Each call makes a proof of its own, which is good once: what had no answer is asked again with a new one, and the core knows that
the answer was the same."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from yikatong.clients.connection import Connection
from yikatong.clients.phone import Phone, Refused
from yikatong.core.identity.login import consent_digest
from yikatong.core.types import Result
from yikatong.v1 import identity_service_pb2 as pb

CALL_S = 10.0


class Asked(NamedTuple):
    """What a portal asks for, to be shown to the person before they answer; until `expires_s`, seconds since 1970."""

    qr_content: str
    portal_id: str
    portal_title: str
    fields: tuple[str, ...]
    purpose: str
    legal_basis: str
    expires_s: float


def scan(connection: Connection, phone: Phone, qr_content: str) -> Asked:
    """Who asks for what behind a QR code. Raises Refused."""
    request = pb.ScanLoginRequest(qr_content=qr_content, device_id=phone.device_id)
    request.proof = phone.prove("IdentityService/scan", qr_content.encode())
    answer = _accepted(connection.identity.ScanLogin(request, timeout=CALL_S))
    return Asked(
        qr_content, answer.portal_id, answer.portal_title, tuple(answer.fields), answer.purpose, answer.legal_basis,
        answer.expires_time_us / 1e6,
    )  # fmt: skip


def consent(connection: Connection, phone: Phone, asked: Asked, fields: Sequence[str]) -> None:
    """The person consents to being logged in, and to these fields being shown. Raises Refused."""
    _answer(connection, phone, asked.qr_content, "consent", fields)


def deny(connection: Connection, phone: Phone, asked: Asked) -> None:
    """The person denies, or takes a consent back that was not used yet. Raises Refused."""
    _answer(connection, phone, asked.qr_content, "deny", ())


def _answer(connection: Connection, phone: Phone, qr_content: str, event: str, fields: Sequence[str]) -> None:
    request = pb.AnswerLoginRequest(qr_content=qr_content, device_id=phone.device_id, consent=event == "consent", fields=fields)
    request.proof = phone.prove(f"IdentityService/{event}", qr_content.encode(), *(name.encode() for name in fields))
    _accepted(connection.identity.AnswerLogin(request, timeout=CALL_S))


def let_hand_on(
    connection: Connection, phone: Phone, from_portal_id: str, to_portal_id: str, fields: Sequence[str], days: int
) -> None:
    """The person consents to being logged in from one portal to another without being asked, for so many days; with 0 they take
    that back. Raises Refused."""
    now_us = time.time_ns() // 1000
    request = pb.SetConsentRequest(
        device_id=phone.device_id, from_portal_id=from_portal_id, to_portal_id=to_portal_id,
        fields=fields if days else (), revoked=days == 0, decided_time_us=now_us,
        until_time_us=now_us + max(days * 86_400, 1) * 1_000_000,
    )  # fmt: skip
    request.proof = phone.prove("IdentityService/SetConsent", consent_digest(request))
    _accepted(connection.identity.SetConsent(request, timeout=CALL_S))


def _accepted(answer: Any) -> Any:
    if answer.result != Result.ACCEPTED:
        raise Refused(answer.result)
    return answer
