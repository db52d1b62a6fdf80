"""Scan login: every pair of state and event, what goes wrong between a portal, a phone and a person, and what is kept of it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Harness
from hypothesis import given, settings
from hypothesis import strategies as st
from identity_city import APP, HRSS, LIBRARY, PURPOSE, Citizen, City, Phone, make_provider, new_id

from yikatong.clients.assertions import Verifier
from yikatong.core import limits
from yikatong.core.access.callers import LOCAL, Caller
from yikatong.core.errors import ConfigError, InvalidRequest
from yikatong.core.identity import assertions, login
from yikatong.core.identity.assertions import LOGIN_TYPE
from yikatong.core.identity.login import Event, State
from yikatong.core.keys.provider import KeyReference, Purpose
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.types import Deny, DocumentKind, Result
from yikatong.v1 import access_pb2, journal_pb2
from yikatong.v1 import identity_service_pb2 as pb


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    with Harness(tmp_path / "data") as core:
        yield City(core, make_provider(tmp_path))


@pytest.fixture
def citizen(city: City) -> Citizen:
    return city.add_citizen()


@pytest.fixture
def phone(city: City, citizen: Citizen) -> Phone:
    return city.phone(citizen)


def notes(city: City, citizen: Citizen) -> list[journal_pb2.Access]:
    found = city.core.memory.documents.scan(DocumentKind.ACCESS, citizen.person_id, citizen.person_id + b"\xff" * 9)
    return [journal_pb2.Access.FromString(value) for _, value in found][::-1]  # oldest first


def kept(city: City) -> list[int]:
    """How many documents of identity there are, by kind."""
    kinds = (DocumentKind.LOGIN, DocumentKind.LOGIN_KEY, DocumentKind.IDENTITY_EXPIRY, DocumentKind.IDENTITY_ANSWER)
    return [len(list(city.core.memory.documents.scan(kind))) for kind in kinds]


# ---- the whole way ----


def test_a_login_from_the_qr_code_to_the_assertion(city: City, citizen: Citizen, phone: Phone) -> None:
    started = city.start()
    assert started.result == Result.ACCEPTED
    assert city.get(started.login_id).login_state == pb.LOGIN_STATE_WAITING
    seen = city.scan(started.qr_content, phone)
    assert (seen.result, seen.portal_id, list(seen.fields)) == (Result.ACCEPTED, "hrss", ["name", "card_number"])
    assert (seen.purpose, seen.legal_basis) == tuple(PURPOSE.values())
    assert not city.get(started.login_id).ticket
    assert city.answer(started.qr_content, phone).result == Result.ACCEPTED
    got = city.get(started.login_id)
    assert (got.login_state, got.state) == (pb.LOGIN_STATE_CONSENTED, "s1")
    redeemed = city.redeem(got.ticket)
    assert redeemed.result is Result.ACCEPTED
    assert redeemed.person == pb.ShownPerson(name=citizen.data.name)  # not the card number, to which nobody consented
    claims = login.claims(city.rules, redeemed.login)
    token = assertions.sign(city.provider, Purpose.ASSERTION, LOGIN_TYPE, claims)
    verifier = Verifier(assertions.key_set(city.provider), city.rules.issuer, "hrss", clock=lambda: city.core.now_s)
    assert verifier.verify(token, "nonce-of-the-portal").acr == "e-card"
    (consented, shown) = notes(city, citizen)
    assert (consented.caller, consented.action) == (str(APP), "IdentityService.AnswerLogin consent")
    assert (shown.caller, shown.action, list(shown.fields)) == (str(HRSS), "IdentityService.RedeemTicket", ["name"])
    assert (shown.purpose, shown.legal_basis) == tuple(PURPOSE.values())


def test_a_registered_portal_asks_for_its_own_fields_and_has_a_title(city: City, phone: Phone) -> None:
    asked = {"fields": ("name", "rider"), "purpose": "library account"}
    assert city.start(LIBRARY, fields=("name",)).result == Result.FIELD_NOT_ALLOWED  # for another purpose
    started = city.start(LIBRARY, **asked)
    assert city.scan(started.qr_content, phone).portal_title == "City library"


def test_people_are_called_differently_at_each_portal_and_the_same_there_always(
    city: City, citizen: Citizen, phone: Phone
) -> None:
    phones = phone, city.phone(city.add_citizen(2))
    asked = {"fields": ("name",), "purpose": "library account"}

    def names() -> list[str]:
        made = [city.log_in(each, portal, **asked) for portal in (HRSS, LIBRARY) for each in phones]
        return [login.claims(city.rules, each.login)["sub"] for each in made]

    first = names()
    assert len(set(first)) == 4
    newer = {key: value for key, value in city.provider._keys.items() if key.purpose is not Purpose.LOGIN}
    city.rules = city.rules._replace(provider=SoftwareProvider({**newer, KeyReference(Purpose.LOGIN, 7): bytes(16)}))
    assert names() == first


def test_another_way_of_the_same_requests_is_the_same_answer(city: City, phone: Phone) -> None:
    request = pb.StartLoginRequest(request_id=new_id(), fields=["name"], nonce="12345678", **PURPOSE)
    first, again = (city.ask(login.start, request, HRSS) for _ in range(2))
    assert again.duplicate
    assert (again.login_id, again.qr_content) == (first.login_id, first.qr_content)
    request.state = "other"
    assert city.ask(login.start, request, HRSS).result == Result.CONFLICT
    assert city.ask(login.start, request, LIBRARY).result == Result.FIELD_NOT_ALLOWED  # another portal's ids are its own
    assert [city.scan(first.qr_content, phone).duplicate for _ in range(2)] == [False, True]
    assert [city.answer(first.qr_content, phone).duplicate for _ in range(2)] == [False, True]
    ticket, request_id = city.get(first.login_id).ticket, new_id()
    answers = [city.redeem(ticket, request_id=request_id) for _ in range(3)]
    assert [answer.duplicate for answer in answers] == [False, True, True]
    assert len({str((login.claims(city.rules, answer.login), answer.person)) for answer in answers}) == 1


# ---- states ----


def bring(city: City, phone: Phone, state: State) -> Any:
    """A login in a state."""
    started = city.start()
    if state in (State.SCANNED, State.CONSENTED, State.DENIED, State.REDEEMED, State.ENDED):
        city.scan(started.qr_content, phone)
    if state in (State.CONSENTED, State.DENIED, State.REDEEMED, State.ENDED):
        city.answer(started.qr_content, phone, consent=state is not State.DENIED)
    if state in (State.REDEEMED, State.ENDED):
        ticket = city.get(started.login_id).ticket
        for _ in range(1 if state is State.REDEEMED else 2):
            city.redeem(ticket)
    if state is State.EXPIRED:
        city.core.pass_time(limits.LOGIN_QR_S)
    return started


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair(city: City, phone: Phone, state: State, event: Event) -> None:
    started = bring(city, phone, state)
    kept_login = login.get(city.core.memory, started.login_id)
    assert kept_login is not None
    assert login.state_at(kept_login, city.core.now_us) is state
    match event:
        case Event.SCAN:
            result = city.scan(started.qr_content, phone).result
        case Event.CONSENT:
            result = city.answer(started.qr_content, phone, fields=("card_number",)).result
        case Event.DENY:
            result = city.answer(started.qr_content, phone, consent=False).result
        case Event.REDEEM:
            result = city.redeem(login.ticket(city.rules, kept_login)).result
        case Event.USE:
            show = lambda rules, memory, text, time_us, _: login.show_session(rules, memory, text, time_us)  # noqa: E731
            result = city.ask(show, login.session(city.rules, kept_login), HRSS).result
    after = login.TRANSITIONS[state, event]
    now = login.get(city.core.memory, started.login_id)
    assert now is not None
    found_by_ticket = state in (State.CONSENTED, State.REDEEMED, State.ENDED)
    found_by_session = state in (State.REDEEMED, State.ENDED)
    if (event is Event.REDEEM and not found_by_ticket) or (event is Event.USE and not found_by_session):
        expected: Result = Result.LOGIN_UNKNOWN  # what would find it was never given out
    elif state is State.DENIED and event is Event.DENY:
        expected = Result.ACCEPTED  # the same answer again
    elif after is State.ENDED:
        expected = Result.TICKET_USED
    else:
        expected = after if isinstance(after, Result) else Result.ACCEPTED
    assert Result(result) is expected
    assert login.state_at(now, city.core.now_us) is (after if isinstance(after, State) else state)


def test_the_table_is_whole() -> None:
    assert set(login.TRANSITIONS) == set(itertools.product(State, Event))
    assert {state.value for state in State} == {number for number in pb.LoginState.values() if number}


# ---- what goes wrong ----


def test_a_denial_reaches_the_portal_and_takes_back_a_consent(city: City, phone: Phone) -> None:
    started = bring(city, phone, State.CONSENTED)
    ticket = city.get(started.login_id).ticket
    assert city.answer(started.qr_content, phone, consent=False).result == Result.ACCEPTED
    assert city.get(started.login_id).result == Result.LOGIN_DENIED
    assert city.redeem(ticket).result is Result.LOGIN_DENIED


def test_a_ticket_that_is_redeemed_twice_ends_the_session(city: City, phone: Phone) -> None:
    started = bring(city, phone, State.CONSENTED)
    ticket = city.get(started.login_id).ticket
    first = city.redeem(ticket)
    session = login.session(city.rules, first.login)
    assert city.redeem(ticket).result is Result.TICKET_USED
    show = lambda rules, memory, text, time_us, _: login.show_session(rules, memory, text, time_us)  # noqa: E731
    assert city.ask(show, session, HRSS).result is Result.TICKET_USED
    assert city.get(started.login_id).result == Result.TICKET_USED


@pytest.mark.parametrize(
    ("state", "life_s"), [(State.WAITING, limits.LOGIN_QR_S), (State.SCANNED, limits.LOGIN_QR_S),
                          (State.CONSENTED, limits.LOGIN_TICKET_S)],
)  # fmt: skip
def test_what_is_not_used_in_time_is_over_and_then_forgotten(city: City, phone: Phone, state: State, life_s: int) -> None:
    before = kept(city)
    started = bring(city, phone, state)
    city.core.pass_time(life_s - 1)
    assert city.get(started.login_id).result == Result.ACCEPTED
    ticket = city.get(started.login_id).ticket
    city.core.pass_time(1)
    assert city.get(started.login_id).result == Result.LOGIN_EXPIRED
    assert city.scan(started.qr_content, phone).result in (Result.LOGIN_EXPIRED,)
    if ticket:
        assert city.redeem(ticket).result is Result.LOGIN_EXPIRED
    city.core.pass_time(limits.LOGIN_KEPT_S)
    city.core.ask(lambda memory, _, time_us: login.expire_due(memory, time_us), None)
    assert city.get(started.login_id).result == Result.LOGIN_UNKNOWN
    assert kept(city) == before


def test_other_portals_and_other_devices_get_nothing(city: City, citizen: Citizen, phone: Phone) -> None:
    stranger, second = city.phone(city.add_citizen(2)), city.phone(citizen)
    started = city.start()
    assert city.get(started.login_id, LIBRARY).result == Result.LOGIN_OTHER_PORTAL
    city.scan(started.qr_content, phone)
    for other in (stranger, second):
        assert city.scan(started.qr_content, other).result == Result.LOGIN_OTHER_DEVICE
        assert city.answer(started.qr_content, other).result == Result.LOGIN_OTHER_DEVICE
    city.answer(started.qr_content, phone)
    ticket = city.get(started.login_id).ticket
    assert city.redeem(ticket, LIBRARY).result is Result.LOGIN_OTHER_PORTAL
    assert city.redeem(ticket).result is Result.ACCEPTED
    with pytest.raises(InvalidRequest, match="portal_id"):
        city.ask(login.get_login, pb.GetLoginRequest(login_id=started.login_id, portal_id="hrss"), LIBRARY)
    operator = pb.GetLoginRequest(login_id=started.login_id, portal_id="hrss")
    assert city.ask(login.get_login, operator, LOCAL).result == Result.ACCEPTED


@pytest.mark.parametrize("reason", [Deny.LOSS, Deny.FROZEN, Deny.CANCELLED])
def test_a_card_that_is_lost_meanwhile_logs_nobody_in(city: City, citizen: Citizen, phone: Phone, reason: Deny) -> None:
    scanned, consented, redeemed = (bring(city, phone, state) for state in (State.SCANNED, State.CONSENTED, State.REDEEMED))
    ticket = city.get(consented.login_id).ticket
    city.deny(citizen, reason)
    assert city.answer(scanned.qr_content, phone).result == Result.CARD_DENIED
    assert city.redeem(ticket).result is Result.CARD_DENIED
    assert city.scan(city.start().qr_content, phone).result == Result.CARD_DENIED
    kept_login = login.get(city.core.memory, redeemed.login_id)
    assert kept_login is not None
    show = lambda rules, memory, text, time_us, _: login.show_session(rules, memory, text, time_us)  # noqa: E731
    assert city.ask(show, login.session(city.rules, kept_login), HRSS).result is Result.CARD_DENIED


def test_a_device_that_is_revoked_meanwhile_consents_to_nothing(city: City, citizen: Citizen, phone: Phone) -> None:
    started = bring(city, phone, State.SCANNED)
    city.revoke(phone, citizen)
    assert city.answer(started.qr_content, phone).result == Result.DEVICE_REVOKED


def test_proofs_are_good_for_what_they_were_made_for_and_once(city: City, phone: Phone) -> None:
    one, two = city.start(), city.start()
    scan_one = phone.prove(login.proof_message("scan", one.qr_content))
    assert city.scan(two.qr_content, phone, proof=scan_one).result == Result.DEVICE_PROOF_WRONG
    city.scan(one.qr_content, phone)
    assert city.scan(one.qr_content, phone, proof=scan_one).result == Result.DEVICE_PROOF_WRONG  # older than the last
    narrow = phone.prove(login.proof_message("consent", one.qr_content, ("name",)))
    wide = {"fields": ("name", "card_number"), "proof": narrow}
    assert city.answer(one.qr_content, phone, **wide).result == Result.DEVICE_PROOF_WRONG
    denial = phone.prove(login.proof_message("deny", one.qr_content))
    assert city.answer(one.qr_content, phone, proof=denial).result == Result.DEVICE_PROOF_WRONG
    assert city.answer(one.qr_content, phone).result == Result.ACCEPTED


def test_only_what_was_asked_for_can_be_consented_to(city: City, phone: Phone) -> None:
    assert city.start(LIBRARY, fields=("citizen_number",)).result == Result.FIELD_NOT_ALLOWED
    started = city.start(fields=("name",))
    city.scan(started.qr_content, phone)
    assert city.answer(started.qr_content, phone, fields=("name", "district")).result == Result.FIELD_NOT_ALLOWED
    assert city.answer(started.qr_content, phone, fields=()).result == Result.ACCEPTED
    assert city.redeem(city.get(started.login_id).ticket).person == pb.ShownPerson()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("request_id", {"request_id": b"short"}),
        ("fields", {"fields": ("shoe_size",)}),
        ("fields", {"fields": ("name", "name")}),
        ("purpose", {"purpose": ""}),
        ("legal_basis", {"legal_basis": "x" * 201}),
        ("state", {"state": "x" * 513}),
        ("nonce", {"nonce": "1234567"}),
        ("nonce", {"nonce": "1234567\n"}),
    ],
)
def test_bad_requests_name_their_field(city: City, field: str, change: dict[str, Any]) -> None:
    before = kept(city)
    with pytest.raises(InvalidRequest) as refused:
        city.start(**change)
    assert refused.value.field == field
    assert kept(city) == before


@given(st.text(max_size=100) | st.binary(max_size=40).map(assertions.encode))
@settings(max_examples=20, deadline=None)
def test_noise_opens_nothing(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("noise")
    with Harness(folder / "data") as core:
        city = City(core, make_provider(folder))
        request = pb.ScanLoginRequest(qr_content=login.QR_PREFIX + text)
        assert city.ask(login.scan, request, APP).result == Result.LOGIN_UNKNOWN
        assert city.redeem(text).result is Result.LOGIN_UNKNOWN


def test_what_is_kept_holds_no_secret_and_comes_back(city: City, phone: Phone) -> None:
    started = bring(city, phone, State.REDEEMED)
    kept_login = login.get(city.core.memory, started.login_id)
    assert kept_login is not None
    secrets_of_it = [made(city.rules, kept_login) for made in (login.qr_content, login.ticket, login.session, login.browser)]
    assert len(set(secrets_of_it)) == 4
    city.core.checkpoint()
    city.core.restart()
    assert city.get(started.login_id).login_state == pb.LOGIN_STATE_REDEEMED
    on_disk = b"".join(path.read_bytes() for path in city.core.path.rglob("*") if path.is_file())
    assert started.login_id in on_disk
    for text in secrets_of_it:
        secret = text.removeprefix(login.QR_PREFIX)
        assert secret.encode() not in on_disk
        assert assertions.decode(secret) not in on_disk


def test_logins_of_the_key_before_go_on(city: City, phone: Phone) -> None:
    started = bring(city, phone, State.SCANNED)
    newer = SoftwareProvider({**city.provider._keys, KeyReference(Purpose.LOGIN, 2): bytes(16)})
    city.rules = city.rules._replace(provider=newer)
    assert city.answer(started.qr_content, phone).result == Result.ACCEPTED
    assert city.redeem(city.get(started.login_id).ticket).result is Result.ACCEPTED
    nothing = SoftwareProvider({})
    with pytest.raises(ConfigError, match="LOGIN"):
        city.ask(login.start, pb.StartLoginRequest(request_id=new_id(), nonce="12345678", **PURPOSE), HRSS,
                 rules=city.rules._replace(provider=nothing))  # fmt: skip


# ---- from one portal to another ----

TO = Caller(access_pb2.ROLE_DEPARTMENT, "health-insurance")


def set_consent(city: City, phone: Phone, **change: Any) -> Any:
    request = pb.SetConsentRequest(
        device_id=phone.device_id, from_portal_id="hrss", to_portal_id="health-insurance", fields=["name"],
        until_time_us=city.core.now_us + 3_600_000_000, decided_time_us=city.core.now_us,
    )  # fmt: skip
    proof = change.pop("proof", None)
    for name, value in change.items():
        if name == "fields":
            del request.fields[:]
            request.fields.extend(value)
        else:
            setattr(request, name, value)
    request.proof = proof or phone.prove(login.consent_message(request))
    return request, city.ask(login.set_consent, request, APP)


def hand_on(city: City, session: str, caller: Caller = HRSS, **change: Any) -> Any:
    asked = {
        "request_id": new_id(), "session": session, "to_portal_id": "health-insurance", "fields": ["name"],
        "nonce": "the-other-nonce", "purpose": "medical settlement", "legal_basis": "consent",
    } | change  # fmt: skip
    return city.ask(login.authorize_app, pb.AuthorizeAppRequest(**asked), caller)


@pytest.fixture
def session(city: City, phone: Phone) -> str:
    return login.session(city.rules, city.log_in(phone).login)


def test_a_standing_consent_logs_in_at_the_other_portal(city: City, citizen: Citizen, phone: Phone, session: str) -> None:
    assert hand_on(city, session).result == Result.CONSENT_MISSING
    assert set_consent(city, phone)[1].result == Result.ACCEPTED
    request_id = new_id()
    first, again = (hand_on(city, session, request_id=request_id) for _ in range(2))
    assert (first.result, again.duplicate, again.ticket) == (Result.ACCEPTED, True, first.ticket)
    assert hand_on(city, session, request_id=request_id, state="x").result == Result.CONFLICT
    assert city.redeem(first.ticket, HRSS).result is Result.LOGIN_OTHER_PORTAL
    there = city.redeem(first.ticket, TO)
    assert there.person == pb.ShownPerson(name=citizen.data.name)
    claims = login.claims(city.rules, there.login)
    assert (claims["acr"], claims["aud"], claims["nonce"]) == ("app", "health-insurance", "the-other-nonce")
    assert claims["sub"] == there.login.subject != ""


@pytest.mark.parametrize(
    ("result", "change"),
    [
        (Result.CONSENT_MISSING, {"fields": ["name", "card_number"]}),
        (Result.CONSENT_MISSING, {"to_portal_id": "library"}),
        (Result.FIELD_NOT_ALLOWED, {"purpose": "curiosity"}),
        (Result.LOGIN_UNKNOWN, {"session": "AAAA"}),
        (Result.LOGIN_OTHER_PORTAL, {"caller": LIBRARY}),
    ],
)
def test_a_session_opens_no_more_than_was_consented_to(
    city: City, phone: Phone, session: str, result: Result, change: dict[str, Any]
) -> None:
    set_consent(city, phone)
    assert hand_on(city, **({"session": session} | change)).result == result


def test_a_consent_ends_by_time_by_revocation_and_with_the_card(city: City, citizen: Citizen, phone: Phone, session: str) -> None:
    set_consent(city, phone, until_time_us=city.core.now_us + 60_000_000)
    city.core.pass_time(60)
    assert hand_on(city, session).result == Result.CONSENT_MISSING
    request, _ = set_consent(city, phone)
    assert city.ask(login.set_consent, request, APP).result == Result.DEVICE_PROOF_WRONG  # a proof is good once
    older = {"decided_time_us": city.core.now_us - 1, "until_time_us": city.core.now_us + 10}
    assert set_consent(city, phone, **older)[1].result == Result.CONFLICT
    city.core.pass_time(1)
    assert set_consent(city, phone, revoked=True)[1].result == Result.ACCEPTED
    assert hand_on(city, session).result == Result.CONSENT_MISSING
    city.core.pass_time(1)
    set_consent(city, phone)
    city.deny(citizen, Deny.LOSS)
    assert hand_on(city, session).result == Result.CARD_DENIED
    city.deny(citizen, 0)
    city.core.pass_time(limits.LOGIN_SESSION_S)
    assert hand_on(city, session).result == Result.LOGIN_EXPIRED
    city.core.pass_time(3_600)
    city.core.ask(lambda memory, _, time_us: login.expire_due(memory, time_us), None)
    left = [key for key, _ in city.core.memory.documents.scan(DocumentKind.CONSENT)]
    assert left == [citizen.person_id + b"\0hrss"]  # how they are called there


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("from_portal_id", {"from_portal_id": ""}),
        ("to_portal_id", {"to_portal_id": "a\0b"}),
        ("to_portal_id", {"to_portal_id": "hrss"}),
        ("decided_time_us", {"decided_time_us": 1}),
        ("until_time_us", {"until_time_us": 1}),
        ("until_time_us", {"until_time_us": 1 << 62}),
    ],
)
def test_bad_consents_name_their_field(city: City, phone: Phone, field: str, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        set_consent(city, phone, **change)
    assert refused.value.field == field
