"""One card takes another's place: everything moves in one change, to the fen, and what comes late follows."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from auditor import audit
from card_desk import CardDesk
from harness import limited, make_tap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from payments import RULES_TEXT
from people import new_id

from yikatong.core import limits
from yikatong.core.acquiring import authorizations, merchants, purses
from yikatong.core.cards import card_links, e_cards, issuance, replacement
from yikatong.core.cards.card_life import State
from yikatong.core.cards.riding import Riding
from yikatong.core.identity import persons
from yikatong.core.rules.purse_rules import parse
from yikatong.core.rules.source import Source
from yikatong.core.types import CHIP_PREFIX, Deny, DocumentKind, PostingKind, Result
from yikatong.v1 import authorization_service_pb2, e_card_service_pb2, merchant_service_pb2, person_service_pb2, purse_service_pb2

RULES = parse(Source("rules", RULES_TEXT.encode()))
MEAL = {"acquirer_id": "acq", "merchant_id": "canteen", "merchant_category": "5814"}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[CardDesk]:
    made = CardDesk(tmp_path / "data")
    yield made
    made.close()


def begin(desk: CardDesk) -> bytes:
    """A person whose card 100 is good, and a terminal and a merchant."""
    person_id = desk.new_person()
    desk.issue(person_id, "100")
    desk.core.register_terminal(make_tap().terminal_number)
    merchant = merchant_service_pb2.RegisterMerchantsRequest(merchants=[merchant_service_pb2.Merchant(**MEAL)])
    desk.core.ask(merchants.register_merchants, merchant)
    return person_id


def open_purse(desk: CardDesk, purse_id: str, fen: int, card: str = "100") -> None:
    opened = purse_service_pb2.OpenPurseRequest(
        request_id=new_id(), card_number=card, purse_id=purse_id, purse_kind="meal", funder_id="school"
    )
    desk.core.ask(lambda memory, request, time_us: purses.open_purse(RULES, memory, request, time_us), opened)
    if fen:
        funded = purse_service_pb2.FundPurseRequest(request_id=new_id(), card_number=card, purse_id=purse_id, amount_fen=fen)
        assert desk.core.ask(purses.fund_purse, funded).result == Result.ACCEPTED


def hold(desk: CardDesk, fen: int, card: str = "100") -> Any:
    request = authorization_service_pb2.AuthorizeRequest(request_id=new_id(), card_number=card, amount_fen=fen, **MEAL)
    return desk.core.ask(lambda memory, asked, time_us: authorizations.authorize(RULES, memory, asked, time_us), request)


def capture(desk: CardDesk, authorization_id: int, fen: int) -> Any:
    request = authorization_service_pb2.CaptureRequest(
        request_id=new_id(), acquirer_id="acq", authorization_id=authorization_id, amount_fen=fen, final=True
    )
    return desk.core.ask(authorizations.capture, request)


def fen_of(desk: CardDesk, card: str) -> dict[str, int]:
    listed = desk.core.ask(
        lambda memory, request, time_us: purses.list_purses(RULES, memory, request, time_us),
        purse_service_pb2.ListPursesRequest(card_number=card),
    )
    return {purse.purse_id: purse.balance_fen for purse in listed.purses if purse.state == purses.OPEN}


def test_everything_moves_with_one_sequence_number(desk: CardDesk) -> None:
    person_id = begin(desk)
    desk.give_e_card("100", "9100")
    desk.core.top_up("100", 5_000)
    open_purse(desk, "m1", 700)
    open_purse(desk, "m2", 0)
    concession = person_service_pb2.Concession(rider=3, proof_reference="S-1", valid_until=20301231)
    request = person_service_pb2.SetConcessionRequest(request_id=new_id(), person_id=person_id, concession=concession)
    desk.ask(persons.set_concession, request)
    old = desk.slot("100")
    desk.change(lambda change: change.entitle(old, Riding(3).entitlement(7, 22_000)))
    held = hold(desk, 250)
    capture(desk, held.authorization_id, 200)
    used = list(desk.memory.documents.scan(DocumentKind.LIMIT_USE, old.to_bytes(4, "big"), (old + 1).to_bytes(4, "big")))
    assert used
    before = fen_of(desk, "100")
    desk.lose("100")
    application_id = desk.issue(person_id, "101", issuance.REPLACEMENT, pick_up=False, old_card_number="100")
    new = desk.slot("101")
    assert (desk.state("101"), desk.core.authorize(make_tap(card_number="101")).result) == (State.NOT_ENABLED, Result.CARD_DENIED)
    first = desk.core.engine.next_sequence
    answer = desk.pick_up(application_id)
    assert (answer.result, answer.moved_fen) == (Result.ACCEPTED, sum(before.values()))
    for restart in (lambda: None, desk.core.restart, desk.core.checkpoint, desk.core.restart):
        restart()
        assert (desk.state("100"), desk.state("9100"), desk.state("101")) == (State.CANCELLED, State.CANCELLED, State.ENABLED)
        assert fen_of(desk, "101") == before
        assert set(fen_of(desk, "100").values()) == {0}
        card = desk.core.engine.card(new)
        assert (card["rider"], card["pass_number"], card["pass_until"]) == (3, 7, 22_000)
        assert desk.core.engine.card(old)["pass_number"] == 0
        moved = desk.memory.documents.scan(DocumentKind.LIMIT_USE, new.to_bytes(4, "big"), (new + 1).to_bytes(4, "big"))
        assert [(key[4:], value) for key, value in moved] == [(key[4:], value) for key, value in used]
        assert desk.status("100").replaced_by == "101"
        assert persons.cards_of(desk.memory, person_id) == [old, new]
    # One event, and all its records linked behind it: a crash leaves all or nothing.
    records = [
        desk.core.record(sequence) for sequence in range(first, answer.sequence + 12) if sequence < desk.core.engine.next_sequence
    ]
    flags = [bool(record["flags"] & 64) for record in records]
    end = flags.index(False)
    postings = [record for record in records[: end + 1] if record["transaction_type"] == PostingKind.REPLACEMENT]
    assert first == answer.sequence
    assert sum(int(record["amount_fen"]) for record in postings) == answer.moved_fen
    assert {int(record["card"]) for record in records[: end + 1] if record["deny_reasons"] & Deny.CANCELLED} == {old}
    assert desk.core.list_transactions("101")[-1].kind is not None
    assert desk.pick_up(application_id).result == Result.WRONG_STATE


def test_the_old_card_is_refused_in_the_moment_in_which_the_new_one_is_good(desk: CardDesk) -> None:
    person_id = begin(desk)
    desk.core.top_up("100", 1_000)
    application_id = desk.issue(person_id, "101", issuance.RENEWAL, pick_up=False, old_card_number="100")
    assert desk.core.authorize(make_tap(card_number="100", atc=1, terminal_sequence=1)).result == Result.ACCEPTED
    desk.pick_up(application_id)
    tap = make_tap(card_number="100", atc=2, terminal_sequence=2)
    assert desk.core.authorize(tap).result == Result.CARD_DENIED
    assert desk.core.authorize(make_tap(card_number="101", atc=1, terminal_sequence=3)).result == Result.ACCEPTED
    assert hold(desk, 10).result == Result.CARD_DENIED
    assert desk.core.top_up("100", 10).result == Result.CARD_CANCELLED
    opened = purse_service_pb2.OpenPurseRequest(
        request_id=new_id(), card_number="100", purse_id="m9", purse_kind="meal", funder_id="school"
    )
    refused = desk.core.ask(lambda memory, asked, time_us: purses.open_purse(RULES, memory, asked, time_us), opened)
    assert refused.result == Result.CARD_CANCELLED
    assert desk.core.balance("101").balance_fen == 600


def test_a_debt_goes_over(desk: CardDesk) -> None:
    person_id = begin(desk)
    (booked,) = desk.core.submit(make_tap(card_number="100", amount_fen=300, amount_due_fen=300))
    assert booked.result == Result.DEBT_BOOKED
    application_id = desk.issue(person_id, "101", issuance.REPLACEMENT, pick_up=False, old_card_number="100")
    assert desk.pick_up(application_id).moved_fen == -300
    assert (desk.reasons("100"), desk.reasons("101")) == (Deny.CANCELLED, Deny.DEBT)
    assert desk.core.top_up("101", 300).balance_after_fen == 0
    assert desk.reasons("101") == Deny(0)


def test_what_is_on_hold_keeps_a_card_and_a_freeze_does(desk: CardDesk) -> None:
    person_id = begin(desk)
    desk.core.top_up("100", 1_000)
    open_purse(desk, "m1", 100)
    application_id = desk.issue(person_id, "101", issuance.REPLACEMENT, pick_up=False, old_card_number="100")
    held = hold(desk, 50)
    assert [leg.purse for leg in held.legs] == ["m1"]
    refused = desk.pick_up(application_id)
    assert (refused.result, refused.moved_fen, refused.step) == (Result.CARD_HELD, 0, issuance.Step.DELIVERED)
    assert (desk.state("100"), desk.state("101")) == (State.ENABLED, State.NOT_ENABLED)
    capture(desk, held.authorization_id, 20)
    freeze = desk.freeze("100")
    assert desk.pick_up(application_id).result == Result.WRONG_STATE
    desk.unfreeze("100", freeze.freeze_id)
    assert desk.pick_up(application_id).moved_fen == 1_080


def test_what_comes_late_follows(desk: CardDesk) -> None:
    person_id = begin(desk)
    desk.core.top_up("100", 1_000)
    held = hold(desk, 100)
    capture(desk, held.authorization_id, 100)
    for number, old in (("101", "100"), ("102", "101")):
        application_id = desk.issue(person_id, number, issuance.REPLACEMENT, pick_up=False, old_card_number=old)
        assert desk.pick_up(application_id).result == Result.ACCEPTED
    assert fen_of(desk, "102") == {"general": 900}
    # A ride before the loss, uploaded since; and a refund.
    (late,) = desk.core.submit(make_tap(card_number="100", amount_fen=250, amount_due_fen=250))
    assert late.result == Result.DEBT_BOOKED
    with limited(HEIRS_LOOKED_AT=1):
        assert [desk.run(replacement.follow_heirs) for _ in range(3)] == [1, 0, 0]
    assert (desk.core.balance("100").balance_fen, fen_of(desk, "102")) == (0, {"general": 650})
    assert (desk.reasons("100"), desk.reasons("102")) == (Deny.CANCELLED, Deny(0))
    refund = authorization_service_pb2.RefundRequest(
        request_id=new_id(), acquirer_id="acq", authorization_id=held.authorization_id, amount_fen=100
    )
    assert desk.core.ask(authorizations.refund, refund).result == Result.ACCEPTED
    assert desk.core.balance("100").balance_fen == 100
    assert desk.run(replacement.follow_heirs) == 1
    assert fen_of(desk, "102") == {"general": 750}
    desk.core.submit(make_tap(card_number="101", amount_fen=900, amount_due_fen=900, atc=1, terminal_sequence=2))
    desk.run(replacement.follow_heirs)
    assert (desk.core.balance("101").balance_fen, fen_of(desk, "102")) == (0, {"general": -150})
    assert (desk.reasons("101"), desk.reasons("102")) == (Deny.CANCELLED, Deny.DEBT)
    desk.cancel("102")
    desk.core.submit(make_tap(card_number="101", amount_fen=1, amount_due_fen=1, atc=2, terminal_sequence=3))
    assert desk.run(replacement.follow_heirs) == 0  # nobody to follow to


def chip_fen(desk: CardDesk, card: str) -> int:
    return int(desk.core.engine.balance_fen(desk.memory.account(CHIP_PREFIX + card)))


def put_on_chip(desk: CardDesk, card: str, fen: int) -> None:
    """As a load does."""
    slot = desk.slot(card)
    account = desk.core.engine.card(slot)["account"]
    desk.change(lambda change: change.move(account, change.open_account(CHIP_PREFIX + card, slot), fen, PostingKind.LOAD, slot))


def test_money_on_the_chip_follows_after_its_rides(desk: CardDesk) -> None:
    person_id = begin(desk)
    desk.core.top_up("100", 1_000)
    put_on_chip(desk, "100", 600)
    desk.lose("100")
    application_id = desk.issue(person_id, "101", issuance.REPLACEMENT, pick_up=False, old_card_number="100")
    assert desk.pick_up(application_id).moved_fen == 400
    made_s = desk.core.now_s
    desk.core.pass_time(limits.CHIP_WAIT_S - 1)
    assert desk.run(replacement.follow_heirs) == 0
    tap = make_tap(card_number="100", amount_fen=150, amount_due_fen=150)  # a ride before the loss, uploaded late
    (late,) = desk.core.submit(tap)
    assert (late.result, chip_fen(desk, "100")) == (Result.ACCEPTED, 450)
    assert desk.run(replacement.follow_heirs) == 0
    desk.core.restart()
    desk.core.pass_time(1)
    assert [desk.run(replacement.follow_heirs) for _ in range(3)] == [1, 0, 0]
    assert (chip_fen(desk, "100"), fen_of(desk, "101")) == (0, {"general": 850})
    # One that comes later still is owed by who made it.
    (later,) = desk.core.submit(make_tap(card_number="100", amount_fen=50, amount_due_fen=50, atc=2, terminal_sequence=2))
    assert (later.result, chip_fen(desk, "100")) == (Result.DEBT_BOOKED, -50)
    assert desk.run(replacement.follow_heirs) == 1
    assert (chip_fen(desk, "100"), fen_of(desk, "101")) == (0, {"general": 800})
    assert desk.reasons("100") == Deny.CANCELLED
    assert desk.core.now_s == made_s + limits.CHIP_WAIT_S


CHIP_MOVES = st.lists(
    st.tuples(st.sampled_from(["load", "ride", "replace", "wait", "follow", "restart", "checkpoint"]), st.integers(1, 900)),
    max_size=20,
)


@settings(max_examples=20, deadline=None)
@given(moves=CHIP_MOVES)
def test_no_money_on_a_chip_is_made_or_lost(tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]]) -> None:
    """Loads, rides of any of a person's chips, replacements and days: what is left is what came in less the rides."""
    desk = CardDesk(tmp_path_factory.mktemp("chips"))
    try:
        person_id, cards, owned = begin(desk), ["100"], 10_000
        desk.core.top_up("100", owned)
        put_on_chip(desk, "100", 1)
        replaced_s: dict[str, int] = {}
        for at, (move, fen) in enumerate(moves, 1):
            if move == "load":
                put_on_chip(desk, cards[-1], fen)
            elif move == "ride":
                number = cards[fen % len(cards)]
                tap = make_tap(card_number=number, atc=at, terminal_sequence=at, amount_fen=fen, amount_due_fen=fen)
                (ridden,) = desk.core.submit(tap)
                owned -= ridden.charged_fen
            elif move == "replace":
                new = str(1_000 + at)
                application_id = desk.issue(person_id, new, issuance.REPLACEMENT, pick_up=False, old_card_number=cards[-1])
                assert desk.pick_up(application_id).result == Result.ACCEPTED
                replaced_s[cards[-1]] = desk.core.now_s
                cards.append(new)
                put_on_chip(desk, new, 1)
            elif move == "wait":
                desk.core.pass_time(fen * limits.CHIP_WAIT_S // 900)
            elif move != "follow":
                getattr(desk.core, move)()
            desk.run(replacement.follow_heirs)
            general = {number: desk.core.balance(number).balance_fen for number in cards}
            chips = {number: chip_fen(desk, number) for number in cards}
            assert sum(general.values()) + sum(chips.values()) == owned
            for number, since_s in replaced_s.items():
                assert general[number] == 0
                assert chips[number] >= 0
                assert chips[number] == 0 or desk.core.now_s < since_s + limits.CHIP_WAIT_S
            assert desk.core.engine.imbalance_fen() == 0
        before = {number: chip_fen(desk, number) for number in cards}
        desk.core.restart()
        assert {number: chip_fen(desk, number) for number in cards} == before
        desk.core.checkpoint()
        folder = desk.core.path
    finally:
        desk.close()
    audit(folder)


def test_the_e_card_ends_with_its_card_and_the_next_card_gets_another(desk: CardDesk) -> None:
    def issue(number: str) -> Any:
        request = e_card_service_pb2.IssueECardRequest(request_id=new_id(), card_number=number)
        return desk.core.ask(lambda memory, asked, time_us: e_cards.issue_e_card(desk.provider, memory, asked, time_us), request)

    person_id = begin(desk)
    assert issue("100").result == Result.ACCEPTED
    e_card = e_cards.e_card_of(desk.memory, desk.slot("100"))
    assert e_card is not None
    assert persons.person_of_card(desk.memory, e_card.slot) == person_id
    desk.lose(e_card.number)
    assert [desk.state(number) for number in ("100", e_card.number)] == [State.LOST, State.LOST]
    application_id = desk.issue(person_id, "101", issuance.REPLACEMENT, pick_up=False, old_card_number="100")
    assert issue("101").result == Result.CARD_DENIED  # not before it is picked up
    assert desk.apply(person_id, issuance.REPLACEMENT, old_card_number=e_card.number).result == Result.CARD_NOT_OWN
    desk.pick_up(application_id)
    for restart in (lambda: None, desk.core.restart):
        restart()
        ended = e_cards.e_card_of(desk.memory, desk.slot("100"))
        assert ended is not None
        assert (ended.cancelled, desk.state(ended.number)) == (True, State.CANCELLED)
    assert issue("101").result == Result.ACCEPTED


def test_whose_card_it_is(desk: CardDesk) -> None:
    begin(desk)
    other = desk.new_person()
    desk.register("500")
    for number in ("100", "500"):
        assert desk.apply(other, issuance.REPLACEMENT, old_card_number=number).result == Result.CARD_NOT_OWN
    assert desk.apply(other, issuance.RENEWAL, old_card_number="999").result == Result.UNKNOWN_CARD


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("top-up"), st.integers(0, 3), st.integers(1, 5_000)),
        st.tuples(st.just("ride"), st.integers(0, 3), st.integers(1, 3_000)),
        st.tuples(st.just("purse"), st.integers(0, 3), st.integers(1, 900)),
        st.tuples(st.just("pay"), st.integers(0, 3), st.integers(1, 900)),
        st.tuples(st.just("replace"), st.integers(0, 3), st.just(0)),
        st.tuples(st.sampled_from(["restart", "checkpoint", "rebuild", "follow"]), st.just(0), st.just(0)),
    ),
    max_size=16,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_nothing_is_made_or_lost(tmp_path_factory: pytest.TempPathFactory, moves: list[Any]) -> None:
    """Two people and their cards, any number of them replaced: what each has is what came in less what was spent."""
    folder = tmp_path_factory.mktemp("replace")
    desk = CardDesk(folder)
    try:
        people = [desk.new_person(), desk.new_person()]
        begin_of = ["100", "200"]
        for person_id, number in zip(people, begin_of, strict=True):
            desk.issue(person_id, number)
        desk.core.register_terminal(make_tap().terminal_number)
        desk.core.ask(
            merchants.register_merchants,
            merchant_service_pb2.RegisterMerchantsRequest(merchants=[merchant_service_pb2.Merchant(**MEAL)]),
        )
        cards = [[number] for number in begin_of]
        owned = [0, 0]
        purse_of: list[int] = [0, 0]
        atcs: dict[str, int] = {}
        for at, (move, which, fen) in enumerate(moves, 1):
            who = which % 2
            number = cards[who][-1] if which < 2 else cards[who][0]
            live = number == cards[who][-1]
            if move == "top-up":
                done = desk.core.top_up(number, fen)
                assert (done.result == Result.ACCEPTED) == live
                owned[who] += fen if live else 0
            elif move == "ride":  # stored: it happened, whatever became of the card
                atcs[number] = atcs.get(number, 0) + 1
                tap = make_tap(card_number=number, atc=atcs[number], terminal_sequence=at, amount_fen=fen, amount_due_fen=fen)
                (ridden,) = desk.core.submit(tap)
                owned[who] -= ridden.charged_fen
            elif move == "purse" and live and purse_of[who] < 5:
                purse_of[who] += 1
                open_purse(desk, f"m{purse_of[who]}", fen, number)
                owned[who] += fen
            elif move == "pay":
                held = hold(desk, fen, number)
                if held.result == Result.ACCEPTED:
                    assert live
                    owned[who] -= capture(desk, held.authorization_id, max(1, fen // 2)).captured_fen
            elif move == "replace":
                new = str(1_000 + at)
                application_id = desk.issue(people[who], new, issuance.REPLACEMENT, pick_up=False, old_card_number=cards[who][-1])
                assert desk.pick_up(application_id).result == Result.ACCEPTED
                cards[who].append(new)
            elif move == "follow":
                desk.run(replacement.follow_heirs)
            elif move in ("restart", "checkpoint", "rebuild"):
                getattr(desk.core, move)()
            desk.run(replacement.follow_heirs)
            for each in (0, 1):
                assert sum(fen_of(desk, cards[each][-1]).values()) == owned[each]
                for dead in cards[each][:-1]:
                    assert set(fen_of(desk, dead).values()) == {0}
                    assert desk.reasons(dead) == Deny.CANCELLED
                debt = desk.core.balance(cards[each][-1]).balance_fen < 0
                assert desk.reasons(cards[each][-1]) == (Deny.DEBT if debt else Deny(0))
            assert int(desk.core.engine.imbalance_fen()) == 0
        desk.core.restart()
        assert [sum(fen_of(desk, cards[each][-1]).values()) for each in (0, 1)] == owned
        heirs = card_links.heirs(desk.memory, 0, 100)
        assert len(heirs) == sum(len(each) - 1 for each in cards)
        desk.core.checkpoint()
    finally:
        desk.close()
    audit(folder)  # raises for what does not add up
    shutil.rmtree(folder)
