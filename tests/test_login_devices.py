"""A login stands and falls with the device that answered it: revoked, or its e-card cancelled, it logs nobody in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Harness
from identity_city import HRSS, Citizen, City, Phone, make_provider, new_id
from test_login import bring

from yikatong.core.cards import e_cards
from yikatong.core.identity import login
from yikatong.core.identity.login import State
from yikatong.core.types import Result
from yikatong.v1 import e_card_service_pb2, identity_service_pb2


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    with Harness(tmp_path / "data") as core:
        yield City(core, make_provider(tmp_path))


def _revoke(city: City, citizen: Citizen, phone: Phone) -> None:
    city.revoke(phone, citizen)


def _cancel(city: City, citizen: Citizen, _: Phone) -> None:
    request = e_card_service_pb2.CancelECardRequest(request_id=new_id(), card_number=citizen.card_number)
    assert city.core.ask(e_cards.cancel_e_card, request).result == Result.ACCEPTED


@pytest.mark.parametrize("end", [_revoke, _cancel])
def test_what_was_answered_before_is_good_for_nothing_after(city: City, end: Callable[[City, Citizen, Phone], None]) -> None:
    citizen = city.add_citizen()
    phone = city.phone(citizen)
    consented, redeemed = (bring(city, phone, state) for state in (State.CONSENTED, State.REDEEMED))
    ticket = city.get(consented.login_id).ticket
    kept = login.get(city.core.memory, redeemed.login_id)
    assert kept is not None
    session = login.session(city.rules, kept)
    show = lambda rules, memory, text, time_us, _: login.show_session(rules, memory, text, time_us)  # noqa: E731
    assert city.ask(show, session, HRSS).result is Result.ACCEPTED
    end(city, citizen, phone)
    assert city.redeem(ticket).result is Result.DEVICE_REVOKED
    assert city.ask(show, session, HRSS).result is Result.DEVICE_REVOKED
    request = identity_service_pb2.AuthorizeAppRequest(
        request_id=new_id(), session=session, to_portal_id="library", fields=["name"], nonce="nonce-of-the-app",
        purpose="library account", legal_basis="consent",
    )  # fmt: skip
    assert city.ask(login.authorize_app, request, HRSS).result == Result.DEVICE_REVOKED


def test_another_phone_of_the_same_card_stays_logged_in(city: City) -> None:
    citizen = city.add_citizen()
    lost, kept_phone = city.phone(citizen), city.phone(citizen)
    consented = bring(city, kept_phone, State.CONSENTED)
    city.revoke(lost, citizen)
    assert city.redeem(city.get(consented.login_id).ticket).result is Result.ACCEPTED
