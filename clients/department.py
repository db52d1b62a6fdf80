"""A department: logs people in by a scan, asks whose a code is, and whether somebody is who they say.

The example runs by `python -m yikatong.clients.department --help`. What happens to an answer:

    result                                    what follows
    ACCEPTED                                  returned
    FOREIGN_UNAVAILABLE                       asked again under the same request id, until the deadline
    UNAVAILABLE, DEADLINE_EXCEEDED, …         likewise
    any other result                          Refused, with the result
    INVALID_ARGUMENT, PERMISSION_DENIED, …    grpc.RpcError: whoever wrote the call must look

Each request gets its id once and keeps it over all its attempts, so a code that was used up, or a ticket that was redeemed, by an
attempt whose answer was lost is not lost with it."""

import argparse
import json
import random
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import segno

from yikatong.clients.assertions import Assertion, Verifier
from yikatong.clients.connection import Connection, retry_delay_s
from yikatong.core.errors import YikatongError
from yikatong.core.identity.assertions import AssertionWrong
from yikatong.core.types import Result
from yikatong.v1 import identity_service_pb2 as pb

TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
"""After these a request may have been done or not, and the next attempt will tell."""
TRANSIENT_RESULTS: Final = frozenset({Result.FOREIGN_UNAVAILABLE})
DEADLINE_S: Final = 15.0
ATTEMPT_S: Final = 5.0
POLL_S: Final = 1.0


class Refused(YikatongError):
    """The core says no; `result` says why. Asking again would not help."""

    def __init__(self, result: int) -> None:
        super().__init__(Result(result).name)
        self.result = Result(result)


class Begun(NamedTuple):
    """A login whose QR code is to be shown: `qr_content`, until `expires_s` (seconds since 1970)."""

    login_id: bytes
    qr_content: str
    nonce: str
    expires_s: float


class LoggedIn(NamedTuple):
    """Somebody logged in: the assertion, verified here; the fields that they consented to; what AuthorizeApp takes."""

    assertion: Assertion
    person: pb.ShownPerson
    state: str
    session: str


class Verified(NamedTuple):
    """Whether somebody is who they say, and what may be seen of them if so."""

    verified: bool
    person: pb.ShownPerson


class Department:
    """One department or portal. `portal_id` is its name, as its certificate says it. One thread uses it.

    Raises Refused, grpc.RpcError when the deadline (`deadline_s`, over all attempts) is over without an answer, and
    AssertionWrong for an assertion that is not the core's."""

    def __init__(
        self,
        connection: Connection,
        portal_id: str,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.portal_id = portal_id
        self._stub = connection.identity
        self._clock = clock
        self._sleep = sleep
        self._keys: dict[str, Any] = {}
        self._issuer = ""

    def _ask(self, method: Any, request: Any, deadline_s: float = DEADLINE_S) -> Any:
        """Call until there is an answer that lasts. The pause is what the server asks for, or doubles from 0.1 s, with jitter."""
        until = time.monotonic() + deadline_s
        pause_s = 0.1
        while True:
            asked_s = 0.0
            failed: grpc.RpcError | None = None
            response = None
            try:
                response = method(request, timeout=max(0.001, min(ATTEMPT_S, until - time.monotonic())))
            except grpc.RpcError as error:
                if error.code() not in TRANSIENT:
                    raise
                failed, asked_s = error, retry_delay_s(error) or 0.0
            if response is not None and response.result not in TRANSIENT_RESULTS:
                return response
            rest_s = max(asked_s, pause_s) * random.uniform(0.5, 1.5)
            if time.monotonic() + rest_s >= until:
                if failed is not None:
                    raise failed
                return response
            self._sleep(rest_s)
            pause_s = min(2 * pause_s, 2.0)

    def _accepted(self, response: Any) -> Any:
        if response.result != Result.ACCEPTED:
            raise Refused(response.result)
        return response

    # ---- logins ----

    def begin_login(self, fields: Sequence[str], purpose: str, legal_basis: str, *, state: str = "") -> Begun:
        """Begin a login; its QR code is to be shown at once."""
        nonce = secrets.token_urlsafe(16)
        request = pb.StartLoginRequest(
            request_id=secrets.token_bytes(16), portal_id=self.portal_id, fields=fields, purpose=purpose,
            legal_basis=legal_basis, state=state, nonce=nonce,
        )  # fmt: skip
        answer = self._accepted(self._ask(self._stub.StartLogin, request))
        return Begun(answer.login_id, answer.qr_content, nonce, answer.expires_time_us / 1e6)

    def ticket(self, begun: Begun) -> str | None:
        """The ticket of a login, None as long as nobody has answered. Raises Refused when it was denied or is over."""
        request = pb.GetLoginRequest(login_id=begun.login_id, portal_id=self.portal_id)
        return self._accepted(self._ask(self._stub.GetLogin, request)).ticket or None

    def wait_for_login(self, begun: Begun) -> LoggedIn:
        """Ask once a second until somebody has answered, and redeem."""
        while (ticket := self.ticket(begun)) is None:
            self._sleep(POLL_S)
        return self.redeem(ticket, begun.nonce)

    def redeem(self, ticket: str, nonce: str) -> LoggedIn:
        """Redeem a ticket, whose login was begun with `nonce`; the assertion is verified here."""
        request = pb.RedeemTicketRequest(request_id=secrets.token_bytes(16), portal_id=self.portal_id, ticket=ticket)
        answer = self._accepted(self._ask(self._stub.RedeemTicket, request))
        return LoggedIn(self._verify(answer.assertion, nonce), answer.person, answer.state, answer.session)

    def hand_on(
        self, session: str, to_portal_id: str, fields: Sequence[str], purpose: str, legal_basis: str, *, nonce: str
    ) -> str:
        """A ticket for another portal, which `nonce` came from."""
        request = pb.AuthorizeAppRequest(
            request_id=secrets.token_bytes(16), portal_id=self.portal_id, session=session, to_portal_id=to_portal_id,
            fields=fields, purpose=purpose, legal_basis=legal_basis, nonce=nonce,
        )  # fmt: skip
        return str(self._accepted(self._ask(self._stub.AuthorizeApp, request)).ticket)

    def _verify(self, token: str, nonce: str) -> Assertion:
        """By the keys at hand; they are fetched anew once where these do not fit, since keys change."""
        for fresh in (False, True):
            if fresh or not self._keys:
                answer = self._stub.GetKeySet(pb.GetKeySetRequest(), timeout=ATTEMPT_S)
                self._keys, self._issuer = json.loads(answer.key_set), answer.issuer
            try:
                return Verifier(self._keys, self._issuer, self.portal_id, clock=self._clock).verify(token, nonce)
            except AssertionWrong:
                if fresh:
                    raise
        raise AssertionError("not reached")

    # ---- codes and identity checks ----

    def resolve_code(
        self, code: str, purpose: str, legal_basis: str, fields: Sequence[str] = (), *, deadline_s: float = DEADLINE_S
    ) -> pb.ShownPerson:
        """Whose a code is, as far as may be seen; `fields` empty: all that may."""
        request = pb.ResolveCodeRequest(
            request_id=secrets.token_bytes(16), code=code, fields=fields, purpose=purpose, legal_basis=legal_basis
        )
        answer = self._accepted(self._ask(self._stub.ResolveCode, request, deadline_s))
        person: pb.ShownPerson = answer.person
        return person

    def card_challenge(self) -> bytes:
        """8 bytes for the card on the reader, good for a minute."""
        return bytes(self._stub.StartCardCheck(pb.StartCardCheckRequest(), timeout=ATTEMPT_S).challenge)

    def verify_card(self, card: pb.PresentCard, purpose: str, legal_basis: str, fields: Sequence[str] = ()) -> Verified:
        """By what a card answered to a challenge."""
        return self._check(pb.VerifyIdentityRequest(card=card), purpose, legal_basis, fields)

    def verify_code(self, code: str, purpose: str, legal_basis: str, fields: Sequence[str] = ()) -> Verified:
        """By a code on somebody's phone."""
        return self._check(pb.VerifyIdentityRequest(code=code), purpose, legal_basis, fields)

    def verify_number_and_name(
        self, citizen_number: str, name: str, purpose: str, legal_basis: str, fields: Sequence[str] = ()
    ) -> Verified:
        """By what somebody says, or a form."""
        said = pb.NumberAndName(citizen_number=citizen_number, name=name)
        return self._check(pb.VerifyIdentityRequest(number_and_name=said), purpose, legal_basis, fields)

    def _check(self, request: pb.VerifyIdentityRequest, purpose: str, legal_basis: str, fields: Sequence[str]) -> Verified:
        request.request_id = secrets.token_bytes(16)
        request.purpose, request.legal_basis = purpose, legal_basis
        request.fields.extend(fields)
        answer = self._ask(self._stub.VerifyIdentity, request)
        if answer.result not in (Result.ACCEPTED, Result.IDENTITY_NOT_VERIFIED):
            raise Refused(answer.result)
        return Verified(answer.verified, answer.person)


def _shown(person: pb.ShownPerson) -> str:
    return "\n".join(f"{field.name}: {value}" for field, value in person.ListFields())


def main(arguments: list[str] | None = None) -> int:
    """The example: log somebody in by a QR code in the terminal, ask whose a code is, or check a number and a name."""
    parser = argparse.ArgumentParser(prog="python -m yikatong.clients.department", description=main.__doc__)
    parser.add_argument("--server", default="127.0.0.1:7400", help="address of the service port")
    parser.add_argument("--ca", type=Path, help="PEM file of the authority; without it plaintext")
    parser.add_argument("--certificate", type=Path, help="PEM file, for mTLS")
    parser.add_argument("--key", type=Path, help="PEM file of the certificate's key")
    parser.add_argument("--portal", default="hrss", help="the department's name")
    parser.add_argument("--fields", nargs="*", default=[], help="what is asked for; without it all that may be seen")
    parser.add_argument("--purpose", default="counter service")
    parser.add_argument("--legal-basis", default="consent")
    parser.add_argument("command", choices=["login", "code", "number"], help="code and number (with name) read standard input")
    given = parser.parse_args(arguments)
    with Connection(given.server, ca=given.ca, certificate=given.certificate, key=given.key) as connection:
        department = Department(connection, given.portal)
        why = given.purpose, given.legal_basis
        try:
            if given.command == "login":
                begun = department.begin_login(given.fields, *why)
                segno.make_qr(begun.qr_content, error="m").terminal(compact=True)
                print(begun.qr_content, flush=True)
                logged_in = department.wait_for_login(begun)
                print(f"logged in: {logged_in.assertion.subject}\n{_shown(logged_in.person)}")
            elif given.command == "code":
                print(_shown(department.resolve_code(sys.stdin.readline().strip(), *why, given.fields)))
            else:
                number, name = sys.stdin.readline().strip(), sys.stdin.readline().strip()
                verified = department.verify_number_and_name(number, name, *why, given.fields)
                print(f"verified: {'yes' if verified.verified else 'no'}\n{_shown(verified.person)}")
        except Refused as refused:
            print(f"refused: {refused}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
