"""Scan login: a portal asks, a phone scans and its bearer consents, the portal redeems a ticket for an assertion and some fields.

The life of a login is the table TRANSITIONS; time alone makes it expire. Commands are as core/commands.py describes them, with
the rules before and the caller behind. QR contents, tickets and sessions are made from the login by a keyed hash and kept as
digests under the same key alone, so whoever reads the journal or the state file learns none: what a request id got once can still
be answered again. Request ids of logins are good for as long as their login is kept."""

import hmac
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from yikatong.core import limits
from yikatong.core.access import audit
from yikatong.core.access.callers import Caller
from yikatong.core.cards import card_state, e_cards
from yikatong.core.cards.device_proof import message_of
from yikatong.core.change import REQUEST_ID_BYTES, Change
from yikatong.core.errors import ConfigError, InvalidRequest
from yikatong.core.identity.assertions import AssertionWrong, decode, encode
from yikatong.core.identity.identity_expiry import put_expiry
from yikatong.core.identity.people import People, Proved, show
from yikatong.core.identity.portals import Portal
from yikatong.core.identity.visibility import Visibility, check_fields, check_purpose
from yikatong.core.journal import sm3
from yikatong.core.keys.provider import KeyProvider, KeyReference, KeyUnknown, Purpose
from yikatong.core.memory import Memory
from yikatong.core.types import DocumentKind, Result, wire
from yikatong.v1 import access_pb2, identity_documents_pb2
from yikatong.v1 import identity_service_pb2 as protos

QR_PREFIX: Final = "yikatong:login:"
BY_SCAN, BY_APP = "e-card", "app"
SECOND_US: Final = 1_000_000
LOGIN_ID_BYTES: Final = 16
NONCE_CHARACTERS_MIN: Final = 8

Login = identity_documents_pb2.LoginDocument
Consent = identity_documents_pb2.ConsentDocument


class State(Enum):
    """LoginState of the proto."""

    WAITING = protos.LOGIN_STATE_WAITING
    SCANNED = protos.LOGIN_STATE_SCANNED
    CONSENTED = protos.LOGIN_STATE_CONSENTED
    DENIED = protos.LOGIN_STATE_DENIED
    REDEEMED = protos.LOGIN_STATE_REDEEMED
    ENDED = protos.LOGIN_STATE_ENDED
    EXPIRED = protos.LOGIN_STATE_EXPIRED


class Event(Enum):
    SCAN = "scan"
    CONSENT = "consent"
    DENY = "deny"
    REDEEM = "redeem"
    USE = "use"  # of the session


_WRONG, _ANSWERED, _DENIED = Result.WRONG_STATE, Result.LOGIN_ANSWERED, Result.LOGIN_DENIED
_USED, _EXPIRED = Result.TICKET_USED, Result.LOGIN_EXPIRED
_TABLE: Final[dict[State, tuple[State | Result, ...]]] = {
    #                 SCAN            CONSENT          DENY          REDEEM          USE
    State.WAITING:   (State.SCANNED,  _WRONG,          _WRONG,       _WRONG,         _WRONG),
    State.SCANNED:   (State.SCANNED,  State.CONSENTED, State.DENIED, _WRONG,         _WRONG),
    State.CONSENTED: (_ANSWERED,      _ANSWERED,       State.DENIED, State.REDEEMED, _WRONG),
    State.DENIED:    (_DENIED,        _DENIED,         _DENIED,      _DENIED,        _DENIED),
    State.REDEEMED:  (_ANSWERED,      _ANSWERED,       _ANSWERED,    State.ENDED,    State.REDEEMED),
    State.ENDED:     (_USED,          _USED,           _USED,        _USED,          _USED),
    State.EXPIRED:   (_EXPIRED,       _EXPIRED,        _EXPIRED,     _EXPIRED,       _EXPIRED),
}  # fmt: skip
TRANSITIONS: Final = {(state, event): after for state, row in _TABLE.items() for event, after in zip(Event, row, strict=True)}
"""What follows on an event: another state, or the result that refuses it. A ticket that is redeemed again has been stolen or sent
twice, and either way the session ends."""


class Rules(NamedTuple):
    """What logins and identity checks go by."""

    provider: KeyProvider
    people: People
    issuer: str
    visibility: Visibility
    portals: Mapping[str, Portal] = {}
    levels: Mapping[KeyReference, int] = {}  # of TAC masters, how many levels their cards' keys are derived over

    def allowed(self, portal_id: str, purpose: str) -> tuple[str, ...]:
        """What a portal may ask for."""
        by_rule = self.visibility.allowed(Caller(access_pb2.ROLE_DEPARTMENT, portal_id), purpose)
        portal = self.portals.get(portal_id)
        return by_rule if portal is None or portal.purpose != purpose else (*by_rule, *portal.fields)


class Redeemed(NamedTuple):
    """What became of a ticket or session; `login` and `person` where it was good."""

    result: Result
    duplicate: bool = False
    sequence: int = 0
    login: Login | None = None
    person: protos.ShownPerson | None = None


# ---- what is proved by a device ----


def proof_message(event: str, qr_content: str, fields: Sequence[str] = ()) -> bytes:
    """What a device makes its proof of (device_proof.py): "IdentityService/" and the event ("scan", "consent" or "deny"),
    the content of the QR code, the names of the fields."""
    return message_of(f"IdentityService/{event}", qr_content.encode(), *(name.encode() for name in fields))


def consent_digest(request: protos.SetConsentRequest) -> bytes:
    """What stands for a standing consent, 32 bytes: SM3 over the request without its proof, deterministically serialised."""
    bare = protos.SetConsentRequest()
    bare.CopyFrom(request)
    bare.ClearField("proof")
    return sm3(bare.SerializeToString(deterministic=True))


def consent_message(request: protos.SetConsentRequest) -> bytes:
    """What a device makes its proof of for one: "IdentityService/SetConsent" and its digest."""
    return message_of("IdentityService/SetConsent", consent_digest(request))


# ---- secrets, and how logins are found by them ----


def newest_key(provider: KeyProvider) -> KeyReference:
    """Raises ConfigError where there is none."""
    try:
        return provider.newest(Purpose.LOGIN)
    except KeyUnknown as error:
        raise ConfigError("keys", str(error)) from None


def keyed(provider: KeyProvider, key: KeyReference, label: str, *parts: bytes) -> bytes:
    """HMAC-SM3 over a label and parts, of which only the last may vary in length. 32 bytes."""
    try:
        return provider.index(key, label.encode() + b"\0" + b"".join(parts))
    except KeyUnknown as error:
        raise ConfigError("keys", str(error)) from None


def _secret(rules: Rules, login: Login, label: str) -> bytes:
    key = newest_key(rules.provider)._replace(key_version=login.key_version)
    return keyed(rules.provider, key, label, login.started_time_us.to_bytes(8, "big"), login.login_id)


def qr_content(rules: Rules, login: Login) -> str:
    return QR_PREFIX + encode(_secret(rules, login, "qr"))


def ticket(rules: Rules, login: Login) -> str:
    return encode(_secret(rules, login, "ticket"))


def session(rules: Rules, login: Login) -> str:
    return encode(_secret(rules, login, "session"))


def browser(rules: Rules, login: Login) -> str:
    """What the browser that began a login shows as its cookie."""
    return encode(_secret(rules, login, "browser"))


def _place(rules: Rules, key: KeyReference, label: str, secret: bytes) -> bytes:
    return keyed(rules.provider, key, f"find {label}", secret)


def get(memory: Memory, login_id: bytes) -> Login | None:
    value = memory.documents.get(DocumentKind.LOGIN, login_id)
    return None if value is None else Login.FromString(value)


def _find(rules: Rules, memory: Memory, label: str, text: str) -> Login | None:
    """The login behind a QR code, ticket or session, made under the newest key or the one before."""
    try:
        secret = decode(text)
    except AssertionWrong:
        return None
    newest = newest_key(rules.provider)
    for version in (newest.key_version, newest.key_version - 1):
        try:
            place = rules.provider.index(newest._replace(key_version=version), f"find {label}".encode() + b"\0" + secret)
        except KeyUnknown:
            continue
        login_id = memory.documents.get(DocumentKind.LOGIN_KEY, place)
        if login_id is not None:
            return get(memory, login_id)
    return None


def state_at(login: Login, time_us: int) -> State:
    """A login's state at a journal time."""
    state = State(login.login_state)
    over = time_us >= login.expires_time_us
    return State.EXPIRED if over and state not in (State.DENIED, State.ENDED) else state


def _after(login: Login, event: Event, time_us: int) -> State | Result:
    return TRANSITIONS[state_at(login, time_us), event]


# ---- documents ----


def _put(change: Change, login: Login, state: State, life_s: int, kept_s: int) -> None:
    before_us = login.due_time_us
    login.login_state = wire(state.value)
    login.expires_time_us = change.time_us + life_s * SECOND_US
    login.due_time_us = login.expires_time_us + kept_s * SECOND_US
    put_expiry(change, login.due_time_us, DocumentKind.LOGIN, login.login_id, before_us)
    change.put(DocumentKind.LOGIN, login.login_id, login.SerializeToString(deterministic=True))


def _let_find(rules: Rules, change: Change, login: Login, label: str, text: str) -> None:
    key = newest_key(rules.provider)._replace(key_version=login.key_version)
    place = _place(rules, key, label, decode(text))
    login.keys.append(place)
    change.put(DocumentKind.LOGIN_KEY, place, login.login_id)


def expire_due(memory: Memory, time_us: int) -> None:
    """Sweep what is over: logins, answers, challenges. At most so many at a time that taps do not wait."""
    due = []
    for key, _ in memory.documents.scan(DocumentKind.IDENTITY_EXPIRY, end=(time_us + 1).to_bytes(8, "big")):
        due.append(key)
        if len(due) >= limits.IDENTITY_EXPIRIES_MAX:
            break
    if not due:
        return
    change = Change(memory, time_us)
    for key in due:
        kind, swept = DocumentKind(key[8]), key[9:]
        if kind == DocumentKind.LOGIN and (login := get(memory, swept)) is not None:
            for place in login.keys:
                change.delete(DocumentKind.LOGIN_KEY, place)
        change.delete(kind, swept)
        change.delete(DocumentKind.IDENTITY_EXPIRY, key)
    change.commit("identity-swept")


# ---- requests ----


def check_request_id(request_id: bytes) -> None:
    if len(request_id) != REQUEST_ID_BYTES:
        raise InvalidRequest("request_id", f"{REQUEST_ID_BYTES} bytes are wanted")


def portal_of(caller: Caller, portal_id: str) -> str:
    """The portal that a request is for: a department is its own, an operator may act for any. Raises InvalidRequest."""
    if caller.role == access_pb2.ROLE_DEPARTMENT:
        if portal_id not in ("", caller.name):
            raise InvalidRequest("portal_id", "is another department's than the caller's")
        return caller.name
    if not portal_id or len(portal_id) > limits.OPERATOR_ID_BYTES_MAX or not portal_id.isprintable():
        raise InvalidRequest("portal_id", f"1 to {limits.OPERATOR_ID_BYTES_MAX} printable characters are wanted")
    return portal_id


def _check_texts(**texts: str) -> None:
    for name, text in texts.items():
        if len(text) > limits.LOGIN_TEXT_CHARACTERS_MAX or not text.isprintable():
            raise InvalidRequest(name, f"up to {limits.LOGIN_TEXT_CHARACTERS_MAX} printable characters are wanted")


def _check_nonce(nonce: str) -> None:
    if len(nonce) < NONCE_CHARACTERS_MIN:
        raise InvalidRequest("nonce", f"{NONCE_CHARACTERS_MIN} characters at least are wanted")


def request_digest(provider: KeyProvider, key: KeyReference, request: Any) -> bytes:
    """Keyed, since a citizen number could be guessed from a plain one."""
    content = request.SerializeToString(deterministic=True)
    return keyed(provider, key, "request " + request.DESCRIPTOR.full_name, content)


# ---- rpcs ----


def start(
    rules: Rules,
    memory: Memory,
    request: protos.StartLoginRequest,
    time_us: int,
    caller: Caller,
    *,
    redirect_uri: str = "",
    code_challenge: str = "",
) -> protos.StartLoginResponse:
    """IdentityService.StartLogin; with a redirect URI and code challenge, the same for OpenID Connect (core/identity/oidc.py)."""
    portal_id = portal_of(caller, request.portal_id)
    check_request_id(request.request_id)
    check_fields(request.fields)
    check_purpose(request.purpose, request.legal_basis)
    _check_texts(state=request.state, nonce=request.nonce)
    if not redirect_uri:
        _check_nonce(request.nonce)
    key = newest_key(rules.provider)
    digest = request_digest(rules.provider, key, request)
    login_id = keyed(rules.provider, key, "login", request.request_id, portal_id.encode())[:LOGIN_ID_BYTES]
    known = get(memory, login_id)
    if known is not None:
        if not hmac.compare_digest(known.request_digest, digest):
            return protos.StartLoginResponse(result=wire(Result.CONFLICT))
        return _started(rules, known, duplicate=True)
    if not set(request.fields) <= set(rules.allowed(portal_id, request.purpose)):
        return protos.StartLoginResponse(result=wire(Result.FIELD_NOT_ALLOWED))
    login = Login(
        login_id=login_id,
        portal_id=portal_id,
        started_time_us=time_us,
        fields=request.fields,
        purpose=request.purpose,
        legal_basis=request.legal_basis,
        state=request.state,
        nonce=request.nonce,
        request_digest=digest,
        acr=BY_SCAN,
        redirect_uri=redirect_uri,
        code_challenge=code_challenge,
        key_version=key.key_version,
    )
    change = Change(memory, time_us)
    _let_find(rules, change, login, "qr", encode(_secret(rules, login, "qr")))
    _put(change, login, State.WAITING, limits.LOGIN_QR_S, limits.LOGIN_KEPT_S)
    sequence = change.commit("login-started")
    response = _started(rules, login)
    response.sequence = sequence
    return response


def _started(rules: Rules, login: Login, *, duplicate: bool = False) -> protos.StartLoginResponse:
    return protos.StartLoginResponse(
        result=wire(Result.ACCEPTED),
        duplicate=duplicate,
        login_id=login.login_id,
        qr_content=qr_content(rules, login),
        expires_time_us=login.started_time_us + limits.LOGIN_QR_S * SECOND_US,
    )


def _by_qr(rules: Rules, memory: Memory, content: str) -> Login | None:
    return _find(rules, memory, "qr", content.removeprefix(QR_PREFIX)) if content.startswith(QR_PREFIX) else None


def scan(
    rules: Rules, memory: Memory, request: protos.ScanLoginRequest, time_us: int, caller: Caller
) -> protos.ScanLoginResponse:
    """IdentityService.ScanLogin."""
    response = protos.ScanLoginResponse()
    login = _by_qr(rules, memory, request.qr_content)
    if login is None:
        response.result = wire(Result.LOGIN_UNKNOWN)
        return response
    message = proof_message("scan", request.qr_content)
    proved = rules.people.prove_device(memory, request.device_id, message, request.proof, time_us)
    after = _after(login, Event.SCAN, time_us)
    refused = _refused(memory, login, proved, time_us) or (after if isinstance(after, Result) else None)
    if refused is not None:
        response.result = wire(refused)
        return response
    assert isinstance(proved, Proved)
    response.duplicate = login.login_state == protos.LOGIN_STATE_SCANNED
    login.device_id, login.person_id, login.card_slot = proved.device_id, proved.person_id, proved.card_slot
    login.login_state = protos.LOGIN_STATE_SCANNED  # its time goes on as it was
    change = Change(memory, time_us)
    proved.use(change)
    change.put(DocumentKind.LOGIN, login.login_id, login.SerializeToString(deterministic=True))
    response.sequence = change.commit("login-scanned")
    portal = rules.portals.get(login.portal_id)
    response.result = wire(Result.ACCEPTED)
    response.portal_id, response.portal_title = login.portal_id, portal.title if portal else ""
    response.fields.extend(login.fields)
    response.purpose, response.legal_basis = login.purpose, login.legal_basis
    response.expires_time_us = login.expires_time_us
    return response


def _refused(memory: Memory, login: Login, proved: Proved | Result, time_us: int) -> Result | None:
    """Why a device may not act on a login: its own refusal, its card's state, or since another device has scanned it."""
    if isinstance(proved, Result):
        return proved
    if login.device_id and login.device_id != proved.device_id:
        return Result.LOGIN_OTHER_DEVICE
    if not proved.person_id:
        return Result.PERSON_UNKNOWN
    return card_state.refusal(memory, proved.card_slot, time_us)


def answer(
    rules: Rules, memory: Memory, request: protos.AnswerLoginRequest, time_us: int, caller: Caller
) -> protos.AnswerLoginResponse:
    """IdentityService.AnswerLogin."""
    event = Event.CONSENT if request.consent else Event.DENY
    check_fields(request.fields)
    if not request.consent and request.fields:
        raise InvalidRequest("fields", "are none where nothing is consented to")
    response = protos.AnswerLoginResponse()
    login = _by_qr(rules, memory, request.qr_content)
    if login is None:
        response.result = wire(Result.LOGIN_UNKNOWN)
        return response
    message = proof_message(event.value, request.qr_content, request.fields)
    proved = rules.people.prove_device(memory, request.device_id, message, request.proof, time_us)
    refused = _refused(memory, login, proved, time_us)
    if refused is None and _answered(login, request):
        response.result, response.duplicate = wire(Result.ACCEPTED), True
        return response  # the proof stays good for nothing else
    after = _after(login, event, time_us)
    if refused is None and isinstance(after, Result):
        refused = after
    if refused is None and not set(request.fields) <= set(login.fields):
        refused = Result.FIELD_NOT_ALLOWED
    if refused is not None:
        response.result = wire(refused)
        return response
    assert isinstance(after, State)
    assert isinstance(proved, Proved)
    change = Change(memory, time_us)
    proved.use(change)
    if after is State.CONSENTED:
        login.consented_fields.extend(request.fields)
        _let_find(rules, change, login, "ticket", ticket(rules, login))
        _put(change, login, after, limits.LOGIN_TICKET_S, limits.LOGIN_KEPT_S)
    else:
        del login.consented_fields[:]
        _put(change, login, after, limits.LOGIN_KEPT_S, 0)
    audit.note(
        change, caller, f"IdentityService.AnswerLogin {event.value}", login.person_id,
        purpose=login.purpose, legal_basis=login.legal_basis,
    )  # fmt: skip
    response.result = wire(Result.ACCEPTED)
    response.sequence = change.commit("login-answered")
    return response


def _answered(login: Login, request: protos.AnswerLoginRequest) -> bool:
    if request.consent:
        return login.login_state in (protos.LOGIN_STATE_CONSENTED, protos.LOGIN_STATE_REDEEMED) and (
            list(login.consented_fields) == list(request.fields)
        )
    return bool(login.login_state == protos.LOGIN_STATE_DENIED)


def get_login(
    rules: Rules, memory: Memory, request: protos.GetLoginRequest, time_us: int, caller: Caller
) -> protos.GetLoginResponse:
    """IdentityService.GetLogin."""
    portal_id = portal_of(caller, request.portal_id)
    login = get(memory, request.login_id) if len(request.login_id) == LOGIN_ID_BYTES else None
    if login is None:
        return protos.GetLoginResponse(result=wire(Result.LOGIN_UNKNOWN))
    if login.portal_id != portal_id:
        return protos.GetLoginResponse(result=wire(Result.LOGIN_OTHER_PORTAL))
    state = state_at(login, time_us)
    refusals = {State.DENIED: _DENIED, State.EXPIRED: _EXPIRED, State.ENDED: _USED}
    response = protos.GetLoginResponse(
        result=wire(refusals.get(state, Result.ACCEPTED)),
        login_state=wire(state.value),
        state=login.state,
        expires_time_us=login.expires_time_us,
    )
    if state is State.CONSENTED:
        response.ticket = ticket(rules, login)
    return response


def _bearer_refused(memory: Memory, login: Login, time_us: int) -> Result | None:
    """Why nothing comes of a login any more that was good when it was answered: its card's state, or since its device was revoked
    or its e-card cancelled."""
    usable = e_cards.usable(memory, login.device_id, time_us)
    return usable if isinstance(usable, Result) else None


def find_ticket(rules: Rules, memory: Memory, text: str) -> Login | None:
    """The login that a ticket is for, whoever asks."""
    return _find(rules, memory, "ticket", text)


def redeem(
    rules: Rules, memory: Memory, request: protos.RedeemTicketRequest, time_us: int, caller: Caller, *, by_oidc: bool = False
) -> Redeemed:
    """IdentityService.RedeemTicket, but for the signature, which is made beside the writer. A login that began with OpenID
    Connect ends with it."""
    portal_id = portal_of(caller, request.portal_id)
    check_request_id(request.request_id)
    login = find_ticket(rules, memory, request.ticket)
    if login is None or bool(login.redirect_uri) != by_oidc:
        return Redeemed(Result.LOGIN_UNKNOWN)
    if login.portal_id != portal_id:
        return Redeemed(Result.LOGIN_OTHER_PORTAL)
    again = state_at(login, time_us) is State.REDEEMED and login.redeem_request_id == request.request_id
    if again and time_us >= login.redeemed_time_us + limits.ASSERTION_S * SECOND_US:
        return Redeemed(Result.TICKET_USED)
    after = State.REDEEMED if again else _after(login, Event.REDEEM, time_us)
    if isinstance(after, Result):
        return Redeemed(after)
    change = Change(memory, time_us)
    if after is State.ENDED:
        _put(change, login, after, limits.LOGIN_KEPT_S, 0)
        change.commit("ticket-used-twice")
        return Redeemed(Result.TICKET_USED)
    refused = _bearer_refused(memory, login, time_us)
    if refused is not None:
        return Redeemed(refused)
    if not again:
        login.redeem_request_id, login.redeemed_time_us = request.request_id, time_us
        login.subject = _subject(rules, memory, change, login)
        _let_find(rules, change, login, "session", session(rules, login))
        _put(change, login, after, limits.LOGIN_SESSION_S, 0)
    return _shown(rules, memory, change, login, "IdentityService.RedeemTicket", "ticket-redeemed")._replace(duplicate=again)


def _shown(rules: Rules, memory: Memory, change: Change, login: Login, action: str, event: str) -> Redeemed:
    """What the portal of a login is shown, noted before it is shown. What it may not see any more stays out."""
    allowed = set(rules.allowed(login.portal_id, login.purpose))
    fields = tuple(name for name in login.consented_fields if name in allowed)
    person = show(rules.people, memory, login.person_id, login.card_slot, fields, change.time_us)
    portal = Caller(access_pb2.ROLE_DEPARTMENT, login.portal_id)
    audit.note(
        change, portal, action, login.person_id,
        purpose=login.purpose, legal_basis=login.legal_basis, fields=fields,
    )  # fmt: skip
    return Redeemed(Result.ACCEPTED, sequence=change.commit(event), login=login, person=person)


def show_session(rules: Rules, memory: Memory, text: str, time_us: int) -> Redeemed:
    """The fields of a login again, by its session: what OpenID Connect calls user information."""
    login = _find(rules, memory, "session", text)
    if login is None:
        return Redeemed(Result.LOGIN_UNKNOWN)
    after = _after(login, Event.USE, time_us)
    refused = after if isinstance(after, Result) else _bearer_refused(memory, login, time_us)
    if refused is not None:
        return Redeemed(refused)
    return _shown(rules, memory, Change(memory, time_us), login, "IdentityService.UserInfo", "person-shown")


def _subject(rules: Rules, memory: Memory, change: Change, login: Login) -> str:
    """How a person is called at a portal: the same each time there, and nothing that two portals could compare. It is made by the
    key of the day and kept, so that it outlives every rotation."""
    key = login.person_id + b"\0" + login.portal_id.encode()
    kept = memory.documents.get(DocumentKind.CONSENT, key)
    if kept is None:
        kept = keyed(rules.provider, newest_key(rules.provider), "subject", login.person_id, login.portal_id.encode())
        change.put(DocumentKind.CONSENT, key, kept)
    return encode(kept)


def claims(rules: Rules, login: Login) -> dict[str, Any]:
    """Of the assertion on a redeemed login."""
    issued_s = login.redeemed_time_us // SECOND_US
    made = {
        "iss": rules.issuer,
        "aud": login.portal_id,
        "sub": login.subject,
        "iat": issued_s,
        "exp": issued_s + limits.ASSERTION_S,
        "jti": encode(_secret(rules, login, "assertion")[:16]),
        "acr": login.acr,
    }
    return made | {"nonce": login.nonce} if login.nonce else made


# ---- from one portal to another ----


def _consent_key(person_id: bytes, from_portal_id: str, to_portal_id: str) -> bytes:
    return person_id + f"{from_portal_id}\0{to_portal_id}".encode()


def authorize_app(
    rules: Rules, memory: Memory, request: protos.AuthorizeAppRequest, time_us: int, caller: Caller
) -> protos.AuthorizeAppResponse:
    """IdentityService.AuthorizeApp."""
    portal_id = portal_of(caller, request.portal_id)
    check_request_id(request.request_id)
    check_fields(request.fields)
    check_purpose(request.purpose, request.legal_basis)
    _check_texts(state=request.state, nonce=request.nonce, to_portal_id=request.to_portal_id)
    _check_nonce(request.nonce)
    key = newest_key(rules.provider)
    digest = request_digest(rules.provider, key, request)
    login_id = keyed(rules.provider, key, "app", request.request_id, portal_id.encode())[:LOGIN_ID_BYTES]
    known = get(memory, login_id)
    if known is not None:
        if not hmac.compare_digest(known.request_digest, digest):
            return protos.AuthorizeAppResponse(result=wire(Result.CONFLICT))
        state = state_at(known, time_us)
        result = Result.ACCEPTED if state is State.CONSENTED else TRANSITIONS[state, Event.CONSENT]
        return protos.AuthorizeAppResponse(
            result=wire(result if isinstance(result, Result) else Result.WRONG_STATE),
            duplicate=True,
            ticket=ticket(rules, known) if state is State.CONSENTED else "",
            expires_time_us=known.expires_time_us,
        )
    here = _find(rules, memory, "session", request.session)
    refused = _refused_app(rules, memory, request, here, portal_id, time_us)
    if refused is not None:
        return protos.AuthorizeAppResponse(result=wire(refused))
    assert here is not None
    login = Login(
        login_id=login_id,
        portal_id=request.to_portal_id,
        started_time_us=time_us,
        fields=request.fields,
        consented_fields=request.fields,
        purpose=request.purpose,
        legal_basis=request.legal_basis,
        state=request.state,
        nonce=request.nonce,
        request_digest=digest,
        device_id=here.device_id,
        person_id=here.person_id,
        card_slot=here.card_slot,
        acr=BY_APP,
        key_version=key.key_version,
    )
    change = Change(memory, time_us)
    _let_find(rules, change, login, "ticket", ticket(rules, login))
    _put(change, login, State.CONSENTED, limits.LOGIN_TICKET_S, limits.LOGIN_KEPT_S)
    portal = Caller(access_pb2.ROLE_DEPARTMENT, portal_id)
    audit.note(
        change, portal, f"IdentityService.AuthorizeApp {request.to_portal_id}", here.person_id,
        purpose=request.purpose, legal_basis=request.legal_basis,
    )  # fmt: skip
    return protos.AuthorizeAppResponse(
        result=wire(Result.ACCEPTED),
        sequence=change.commit("app-authorized"),
        ticket=ticket(rules, login),
        expires_time_us=login.expires_time_us,
    )


def _refused_app(
    rules: Rules, memory: Memory, request: protos.AuthorizeAppRequest, here: Login | None, portal_id: str, time_us: int
) -> Result | None:
    if here is None:
        return Result.LOGIN_UNKNOWN
    if here.portal_id != portal_id:
        return Result.LOGIN_OTHER_PORTAL
    after = _after(here, Event.USE, time_us)
    if isinstance(after, Result):
        return after
    refused = _bearer_refused(memory, here, time_us)
    if refused is not None:
        return refused
    value = memory.documents.get(DocumentKind.CONSENT, _consent_key(here.person_id, portal_id, request.to_portal_id))
    consent = None if value is None else Consent.FromString(value)
    if consent is None or consent.revoked or time_us >= consent.until_time_us:
        return Result.CONSENT_MISSING
    if not set(request.fields) <= set(consent.fields):
        return Result.CONSENT_MISSING
    if not set(request.fields) <= set(rules.allowed(request.to_portal_id, request.purpose)):
        return Result.FIELD_NOT_ALLOWED
    return None


def set_consent(
    rules: Rules, memory: Memory, request: protos.SetConsentRequest, time_us: int, caller: Caller
) -> protos.SetConsentResponse:
    """IdentityService.SetConsent. What was taken back stays remembered, so that an older consent cannot be sent again."""
    check_fields(request.fields)
    for name in ("from_portal_id", "to_portal_id"):
        portal_id = getattr(request, name)
        if not 1 <= len(portal_id) <= limits.OPERATOR_ID_BYTES_MAX or not (portal_id.isascii() and portal_id.isprintable()):
            raise InvalidRequest(name, f"1 to {limits.OPERATOR_ID_BYTES_MAX} ASCII characters are wanted")
    if request.from_portal_id == request.to_portal_id:
        raise InvalidRequest("to_portal_id", "is the portal itself")
    if abs(request.decided_time_us - time_us) > limits.CLOCK_AHEAD_S * SECOND_US:
        raise InvalidRequest("decided_time_us", "is not now")
    longest_us = request.decided_time_us + limits.CONSENT_S_MAX * SECOND_US
    if not request.decided_time_us < request.until_time_us <= longest_us:
        raise InvalidRequest("until_time_us", f"up to {limits.CONSENT_S_MAX // 86_400} days after the decision are wanted")
    response = protos.SetConsentResponse()
    digest = consent_digest(request)
    proved = rules.people.prove_device(memory, request.device_id, consent_message(request), request.proof, time_us)
    refused = proved if isinstance(proved, Result) else card_state.refusal(memory, proved.card_slot, time_us)
    if isinstance(proved, Proved) and not proved.person_id:
        refused = Result.PERSON_UNKNOWN
    if refused is not None:
        response.result = wire(refused)
        return response
    assert isinstance(proved, Proved)
    key = _consent_key(proved.person_id, request.from_portal_id, request.to_portal_id)
    value = memory.documents.get(DocumentKind.CONSENT, key)
    known = Consent() if value is None else Consent.FromString(value)
    if value is not None:
        if known.request_digest == digest:
            response.result, response.duplicate = wire(Result.ACCEPTED), True
            return response
        if known.decided_time_us >= request.decided_time_us:
            response.result = wire(Result.CONFLICT)
            return response
    consent = Consent(
        fields=() if request.revoked else request.fields,
        revoked=request.revoked,
        until_time_us=request.until_time_us,
        decided_time_us=request.decided_time_us,
        request_digest=digest,
        # A phone's clock may be off by as much: until then an older consent could be sent again, if this one were forgotten.
        due_time_us=max(request.until_time_us, request.decided_time_us + 3 * limits.CLOCK_AHEAD_S * SECOND_US),
    )
    change = Change(memory, time_us)
    proved.use(change)
    put_expiry(change, consent.due_time_us, DocumentKind.CONSENT, key, known.due_time_us)
    change.put(DocumentKind.CONSENT, key, consent.SerializeToString(deterministic=True))
    action = "IdentityService.SetConsent" + (" revoked" if request.revoked else "")
    audit.note(change, caller, action, proved.person_id, fields=consent.fields)
    response.result = wire(Result.ACCEPTED)
    response.sequence = change.commit("consent-set")
    return response
