"""The life of cards: every state against every event, a card and its e-card always alike, time that passes, the deny list."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from card_desk import DAY_S, CardDesk
from harness import limited, make_tap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from people import new_id

from yikatong.core.access.callers import Caller
from yikatong.core.cards import card_life, card_state, deny_list
from yikatong.core.cards.card_life import TRANSITIONS, Event, State
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.identity import persons
from yikatong.core.types import Deny, Result
from yikatong.v1 import access_pb2
from yikatong.v1 import deny_list_service_pb2 as deny_pb

COURT = Caller(access_pb2.ROLE_DEPARTMENT, "court", "441600")
POLICE = Caller(access_pb2.ROLE_DEPARTMENT, "police", "441600")
ELSEWHERE = Caller(access_pb2.ROLE_DEPARTMENT, "hrss", "441621")
EXPIRES, AFTER_EXPIRY_S = 20300101, 6 * 366 * DAY_S


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[CardDesk]:
    made = CardDesk(tmp_path / "data")
    yield made
    made.close()


# What each state means, in words of this test's own: may it be used, and what does the deny list say.
MEANING = """
state                   | refused      | reasons
NOT_ENABLED             | CARD_DENIED  | NOT_ENABLED
ENABLED                 |              |
TEMPORARILY_LOST        | CARD_DENIED  | LOSS
LOST                    | CARD_DENIED  | LOSS
FROZEN                  | CARD_DENIED  | FROZEN
FROZEN_TEMPORARILY_LOST | CARD_DENIED  | LOSS FROZEN
FROZEN_LOST             | CARD_DENIED  | LOSS FROZEN
EXPIRED                 | CARD_EXPIRED |
FROZEN_EXPIRED          | CARD_EXPIRED | FROZEN
CANCELLED               | CARD_DENIED  | CANCELLED
"""
MEANINGS = {
    cells[0]: (cells[1], sum((Deny[name] for name in cells[2].split()), Deny(0)))
    for cells in ([cell.strip() for cell in row.split("|")] for row in MEANING.strip().splitlines()[1:])
}

# The table once more, as sentences: what is not said is refused.
LEADS = """
NOT_ENABLED: ENABLE ENABLED, CANCEL CANCELLED, EXPIRE EXPIRED, REPLACE CANCELLED
ENABLED: LOSE_TEMPORARILY TEMPORARILY_LOST, LOSE LOST, FREEZE FROZEN, CANCEL CANCELLED, EXPIRE EXPIRED, REPLACE CANCELLED
TEMPORARILY_LOST: LOSE LOST, LIFT_LOSS ENABLED, FREEZE FROZEN_TEMPORARILY_LOST, CANCEL CANCELLED, EXPIRE EXPIRED,\
 REPLACE CANCELLED
LOST: LIFT_LOSS ENABLED, FREEZE FROZEN_LOST, CANCEL CANCELLED, EXPIRE EXPIRED, REPLACE CANCELLED
FROZEN: LOSE_TEMPORARILY FROZEN_TEMPORARILY_LOST, LOSE FROZEN_LOST, FREEZE FROZEN, UNFREEZE ENABLED, EXPIRE FROZEN_EXPIRED
FROZEN_TEMPORARILY_LOST: LOSE FROZEN_LOST, LIFT_LOSS FROZEN, FREEZE FROZEN_TEMPORARILY_LOST, UNFREEZE TEMPORARILY_LOST,\
 EXPIRE FROZEN_EXPIRED
FROZEN_LOST: LIFT_LOSS FROZEN, FREEZE FROZEN_LOST, UNFREEZE LOST, EXPIRE FROZEN_EXPIRED
EXPIRED: FREEZE FROZEN_EXPIRED, CANCEL CANCELLED, EXPIRE EXPIRED, REPLACE CANCELLED
FROZEN_EXPIRED: FREEZE FROZEN_EXPIRED, UNFREEZE EXPIRED, EXPIRE FROZEN_EXPIRED
CANCELLED:
"""


def test_the_table_is_what_it_should_be() -> None:
    wanted: dict[tuple[State, Event], State] = {}
    for row in LEADS.strip().splitlines():
        state, _, ways = row.partition(":")
        for way in filter(None, (way.strip() for way in ways.split(","))):
            event, after = way.split()
            wanted[State[state], Event[event]] = State[after]
    assert {pair: after for pair, after in TRANSITIONS.items() if isinstance(after, State)} == wanted
    assert set(TRANSITIONS) == {(state, event) for state in State for event in Event}
    assert {state.name for state in State} == set(MEANINGS)


# ---- all pairs, on a core ----


class Card:
    """A card with an e-card, and how it is brought into each state."""

    def __init__(self, desk: CardDesk, number: str, expires: int = 0) -> None:
        self.desk, self.number, self.e_number = desk, number, "9" + number
        self.slot = desk.register(number, expires)
        self.e_slot = desk.give_e_card(number, self.e_number)
        self.freezes: list[int] = []

    def do(self, event: Event) -> Any:
        """By way of the e-card's number every second time: it is the same card."""
        number = self.e_number if event.value % 2 else self.number
        match event:
            case Event.LOSE_TEMPORARILY:
                return self.desk.lose(number, final=False)
            case Event.LOSE:
                return self.desk.lose(number)
            case Event.LIFT_LOSS:
                return self.desk.lift(number)
            case Event.FREEZE:
                frozen = self.desk.freeze(number)
                if frozen.result == Result.ACCEPTED:
                    self.freezes.append(frozen.freeze_id)
                return frozen
            case Event.UNFREEZE:
                for freeze_id in self.freezes[1:]:
                    self.desk.unfreeze(number, freeze_id)
                return self.desk.unfreeze(number, self.freezes[0] if self.freezes else 1)
            case _:
                return self.desk.cancel(number)

    def bring(self, state: State) -> None:
        name = state.name
        if state is State.NOT_ENABLED:
            self.desk.not_enabled(self.slot)
        if "FROZEN" in name:
            self.do(Event.FREEZE)
        if "TEMPORARILY_LOST" in name:
            self.do(Event.LOSE_TEMPORARILY)
        elif name.endswith("LOST"):
            self.do(Event.LOSE)
        if state is State.CANCELLED:
            self.do(Event.CANCEL)

    def check(self, state: State) -> None:
        """Both are in this state, and everybody says so."""
        desk = self.desk
        refused, reasons = MEANINGS[state.name]
        assert desk.state(self.number) == desk.state(self.e_number) == state
        for number, slot in ((self.number, self.slot), (self.e_number, self.e_slot)):
            assert desk.reasons(number) == reasons
            says = card_state.refusal(desk.memory, slot, desk.core.now_us)
            expired = state is State.CANCELLED and desk.core.now_us > desk.begun_us + AFTER_EXPIRY_S * 1_000_000 // 2
            assert (says.name if says else "") == ("CARD_EXPIRED" if expired else refused)


CALLS = (Event.LOSE_TEMPORARILY, Event.LOSE, Event.LIFT_LOSS, Event.FREEZE, Event.UNFREEZE, Event.CANCEL)


@pytest.mark.parametrize("state", State)
def test_every_event_in_every_state(desk: CardDesk, state: State) -> None:
    expires = EXPIRES if "EXPIRED" in state.name else 0
    cards = {event: Card(desk, str(100 + event.value), expires) for event in CALLS}
    for card in cards.values():
        card.bring(state)
    if expires:
        desk.core.pass_time(AFTER_EXPIRY_S)
    for event, card in cards.items():
        assert desk.state(card.number) == state
        outcome = TRANSITIONS[state, event]
        before = desk.reasons(card.number)
        answer = card.do(event)
        if isinstance(outcome, Result):
            assert (answer.result, answer.state) == (outcome, state)
            assert desk.reasons(card.number) == before
        else:
            assert (answer.result, answer.state) == (Result.ACCEPTED, outcome)
            card.check(outcome)
    desk.core.restart()
    for event, card in cards.items():
        outcome = TRANSITIONS[state, event]
        assert desk.state(card.number) == (state if isinstance(outcome, Result) else outcome)


# ---- a card and its e-card, whatever happens ----


STEPS = st.lists(
    st.one_of(
        st.sampled_from(CALLS),
        st.sampled_from(["restart", "checkpoint", "rebuild", "sweep"]),
        st.integers(1, 8).map(lambda days: days * DAY_S),
        st.sampled_from([(kind, reason) for kind in ("deny", "allow") for reason in (2, 3, 4)]),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_no_moment_at_which_one_is_live_and_the_other_dead(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    desk = CardDesk(tmp_path_factory.mktemp("life"))
    try:
        card = Card(desk, "100")
        desk.core.register_terminal(make_tap().terminal_number)
        desk.core.top_up("100", 10_000)
        state, lifts_us = State.ENABLED, 0
        for taps, step in enumerate(steps, 1):
            if isinstance(step, int):
                desk.core.pass_time(step)
            elif step == "sweep":
                desk.run(card_life.lift_due)
            elif isinstance(step, str):
                getattr(desk.core, step)()
            elif isinstance(step, tuple):
                command = deny_list.deny_card if step[0] == "deny" else deny_list.allow_card
                kind = deny_pb.DenyCardRequest if step[0] == "deny" else deny_pb.AllowCardRequest
                desk.core.ask(command, kind(request_id=new_id(), card_number=card.e_number, reason=step[1]))
                state = desk.state(card.number)
            else:
                answer = card.do(step)
                outcome = TRANSITIONS[state, step]
                if step is Event.UNFREEZE and answer.result != Result.ACCEPTED:
                    assert isinstance(outcome, Result) or not card.freezes or state == answer.state
                elif step is Event.UNFREEZE:
                    card.freezes = []
                else:
                    assert (answer.result == Result.ACCEPTED) == isinstance(outcome, State)
                state = desk.state(card.number)
                if step is Event.LOSE_TEMPORARILY and answer.result == Result.ACCEPTED:
                    lifts_us = answer.lifts_time_us
            if "TEMPORARILY" in state.name and lifts_us <= desk.core.now_us and step != "sweep":
                state = desk.state(card.number)
                assert "TEMPORARILY" not in state.name
            state = desk.state(card.number)
            # The engine says of both the same, at the sequence of the same event; the sweep may lag, and then for both.
            assert desk.reasons(card.number) == desk.reasons(card.e_number)
            refusals = [card_state.refusal(desk.memory, slot, desk.core.now_us) for slot in (card.slot, card.e_slot)]
            assert refusals[0] == refusals[1]
            assert (refusals[0] is None) == (state is State.ENABLED)
            desk.run(card_life.lift_due)
            results = {
                desk.core.authorize(
                    make_tap(card_number=number, atc=taps, terminal_sequence=2 * taps + at, amount_fen=1, amount_due_fen=1)
                ).result
                for at, number in enumerate((card.number, card.e_number))
            }
            assert results == {Result.ACCEPTED if state is State.ENABLED else Result.CARD_DENIED}
    finally:
        desk.close()


# ---- time ----


def test_a_temporary_loss_lifts_itself_and_a_confirmed_one_does_not(desk: CardDesk) -> None:
    desk.core.register_terminal(make_tap().terminal_number)
    for number in ("100", "101", "102"):
        desk.register(number)
        desk.core.top_up(number, 1_000)
        lost = desk.lose(number, final=False)
        assert lost.lifts_time_us == desk.core.now_us + 7 * DAY_S * 1_000_000
    assert desk.lose("101").state == State.LOST
    desk.freeze("102")
    desk.core.pass_time(7 * DAY_S - 0.000001)
    assert desk.run(card_life.lift_due) == 0
    assert desk.state("100") == State.TEMPORARILY_LOST
    desk.core.pass_time(0.000001)
    # Nobody sees the old state, though nothing was written yet.
    assert [desk.state(number) for number in ("100", "101", "102")] == [State.ENABLED, State.LOST, State.FROZEN]
    assert card_state.refusal(desk.memory, desk.slot("100"), desk.core.now_us) is None
    assert desk.reasons("100") == Deny.LOSS
    with limited(EXPIRIES_MAX=1):
        assert [desk.run(card_life.lift_due) for _ in range(3)] == [1, 1, 0]
    assert [desk.reasons(number) for number in ("100", "101", "102")] == [Deny(0), Deny.LOSS, Deny.FROZEN]
    assert desk.core.authorize(make_tap(card_number="100")).result == Result.ACCEPTED
    desk.core.restart()
    assert desk.state("100") == State.ENABLED
    assert desk.lose("100", final=False).result == Result.ACCEPTED


def test_what_comes_between_its_time_and_the_sweep_finds_it_lifted(desk: CardDesk) -> None:
    for number in ("100", "101", "102"):
        desk.register(number)
        desk.lose(number, final=False)
    desk.core.pass_time(8 * DAY_S)
    assert desk.lift("100").result == Result.WRONG_STATE
    assert desk.lose("101", final=False).state == State.TEMPORARILY_LOST
    assert desk.freeze("102").state == State.FROZEN
    allow = deny_pb.AllowCardRequest(request_id=new_id(), card_number="100", reason=deny_pb.DENY_REASON_LOSS)
    assert desk.core.ask(deny_list.allow_card, allow).result == Result.ACCEPTED
    assert desk.run(card_life.lift_due) == 0
    assert [desk.reasons(number) for number in ("100", "101", "102")] == [Deny(0), Deny.LOSS, Deny.FROZEN]


# ---- freezes ----


def test_each_freeze_is_lifted_by_itself_and_by_whom_it_is(desk: CardDesk) -> None:
    card = Card(desk, "100")
    first, second = desk.freeze("100", caller=COURT), desk.freeze("100", caller=POLICE)
    status = desk.status("100")
    assert [(freeze.by, freeze.reason) for freeze in status.freezes] == [(str(COURT), "case 1"), (str(POLICE), "case 1")]
    assert desk.unfreeze("100", first.freeze_id, caller=POLICE).result == Result.FREEZE_NOT_OWN
    assert desk.unfreeze("100", 999, caller=POLICE).result == Result.WRONG_STATE
    assert desk.unfreeze("100", first.freeze_id, caller=COURT).state == State.FROZEN
    assert desk.unfreeze("100", first.freeze_id, caller=COURT).result == Result.WRONG_STATE
    card.check(State.FROZEN)
    assert desk.cancel("100").result == Result.WRONG_STATE
    assert desk.unfreeze("100", second.freeze_id).state == State.ENABLED  # an operator may
    card.check(State.ENABLED)
    with limited(FREEZES_MAX=1):
        desk.freeze("100")
        with pytest.raises(InvalidRequest, match="freezes are in force"):
            desk.freeze("100")


def test_what_the_deny_list_may_not_do(desk: CardDesk) -> None:
    def ask(command: Any, reason: int) -> Any:
        kind = deny_pb.DenyCardRequest if command is deny_list.deny_card else deny_pb.AllowCardRequest
        return desk.core.ask(command, kind(request_id=new_id(), card_number="100", reason=reason))

    card = Card(desk, "100")
    desk.freeze("100", caller=COURT)
    assert ask(deny_list.deny_card, deny_pb.DENY_REASON_CANCELLED).result == Result.WRONG_STATE
    assert ask(deny_list.allow_card, deny_pb.DENY_REASON_FROZEN).result == Result.FREEZE_NOT_OWN
    ask(deny_list.deny_card, deny_pb.DENY_REASON_FROZEN)
    assert ask(deny_list.allow_card, deny_pb.DENY_REASON_FROZEN).result == Result.ACCEPTED
    card.check(State.FROZEN)
    desk.unfreeze("100", desk.status("100").freezes[0].freeze_id)
    assert ask(deny_list.deny_card, deny_pb.DENY_REASON_CANCELLED).result == Result.ACCEPTED
    card.check(State.CANCELLED)
    answer = ask(deny_list.allow_card, deny_pb.DENY_REASON_CANCELLED)
    assert (answer.result, list(answer.reasons)) == (Result.WRONG_STATE, [deny_pb.DENY_REASON_CANCELLED])
    card.check(State.CANCELLED)
    with pytest.raises(InvalidRequest, match="reason"):
        ask(deny_list.allow_card, deny_pb.DENY_REASON_NOT_ENABLED)


# ---- money, callers, bad input ----


def test_debt_is_beside_the_life_and_a_cancelled_card_takes_no_money(desk: CardDesk) -> None:
    desk.core.register_terminal(make_tap().terminal_number)
    desk.register("100")
    (booked,) = desk.core.submit(make_tap(card_number="100"))
    assert booked.result == Result.DEBT_BOOKED
    assert card_state.refusal(desk.memory, desk.slot("100"), desk.core.now_us) is None
    assert card_state.paying_refusal(desk.memory, desk.slot("100"), desk.core.now_us) == Result.CARD_DENIED
    desk.lose("100")
    assert desk.reasons("100") == Deny.DEBT | Deny.LOSS
    assert desk.core.top_up("100", 500).result == Result.ACCEPTED
    assert desk.reasons("100") == Deny.LOSS
    desk.cancel("100")
    assert desk.core.top_up("100", 500).result == Result.CARD_CANCELLED
    assert desk.core.balance("100").balance_fen == 300


def test_who_sees_which_card(desk: CardDesk) -> None:
    person_id = desk.new_person()
    slot = desk.register("100")
    desk.change(lambda change: persons.give_card(change, person_id, slot))
    desk.register("101")  # nobody's on record
    assert desk.lose("100", caller=ELSEWHERE).result == Result.UNKNOWN_CARD
    with pytest.raises(NotFound):
        desk.status("100", caller=ELSEWHERE)
    assert desk.lose("100", caller=COURT).result == Result.ACCEPTED
    desk.freeze("100", caller=COURT)
    bank = Caller(access_pb2.ROLE_BANK, "boc")
    assert (desk.status("100", caller=bank).state, len(desk.status("100", caller=bank).freezes)) == (State.FROZEN_LOST, 0)
    before = desk.core.engine.next_sequence
    assert len(desk.status("100", caller=COURT).freezes) == 1
    assert desk.core.engine.next_sequence == before + 1  # that it was shown
    assert desk.lose("101", caller=ELSEWHERE).result == Result.ACCEPTED
    assert desk.lose("999").result == Result.UNKNOWN_CARD
    with pytest.raises(InvalidRequest, match="card_number"):
        desk.lose("x")
