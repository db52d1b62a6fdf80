"""Loads of the chip purse: what each side proves, every decline, and random days with everything torn: never twice or lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from harness import ISSUER, KEY_SET, Harness, local_time_of, make_tap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yikatong.clients.chip import SimulatedChip, load_chip, return_load
from yikatong.clients.connection import Connection
from yikatong.core import commands, limits
from yikatong.core.cards import deny_list, loads
from yikatong.core.day import disputes
from yikatong.core.day.continuity import ROW, CardStates, Continuity, Mark
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.keys import key_sets
from yikatong.core.keys.life import Life
from yikatong.core.keys.provider import KeyReference, Purpose
from yikatong.core.keys.software import HeldKey, SoftwareProvider
from yikatong.core.types import CHIP_PREFIX, ClearingOutcome, Result
from yikatong.ext.key_holder import KeyHolder
from yikatong.v1 import (
    account_service_pb2,
    card_service_pb2,
    clearing_service_pb2,
    deny_list_service_pb2,
    terminal_service_pb2,
)
from yikatong.v1 import exception_service_pb2 as pb_exceptions
from yikatong.v1 import load_service_pb2 as pb

CARD, TERMINAL, OTHER_TERMINAL = "3104416000000017", bytes.fromhex("112233445566"), bytes.fromhex("665544332211")
LOAD_MASTER = bytes.fromhex("00112233445566778899aabbccddeeff")
MASTERS = {KeyReference(Purpose.LOAD, 1, 1, ISSUER): LOAD_MASTER, KeyReference(Purpose.TAC, 1, 1, ISSUER): KEY_SET.master}
MONEY_FEN = 2_000
REFUNDED = 5  # by the operator


class World:
    """A core, a card with money on its account, and its chip. `keep_last` makes nothing durable until told."""

    def __init__(self, path: Path, old_fen: int = 0) -> None:
        self.core = Harness(path)
        self.core.register_terminal(TERMINAL)
        self.core.register_card(CARD)
        self.core.top_up(CARD, MONEY_FEN)
        self.provider = SoftwareProvider(MASTERS)
        self.chip = SimulatedChip(CARD, ISSUER, self.provider, balance_fen=old_fen)
        self._ids = 0

    def new_id(self) -> bytes:
        self._ids += 1
        return b"load" + self._ids.to_bytes(12, "big")

    def call(self, method: Callable[..., Any], request: Any) -> Any:
        command = method if method is loads.get_load else lambda *given: method(self.provider, *given)
        return self.core.ask(command, request)

    def start(self, amount_fen: int, **fields: Any) -> pb.StartLoadRequest:
        """The chip is asked for a load: the request that a terminal makes of its answer."""
        answer = self.chip.initialize_for_load(amount_fen, TERMINAL)
        values = {
            "request_id": self.new_id(), "card_number": CARD, "terminal_number": TERMINAL, "transaction_type": 1,
            "amount_fen": amount_fen, "chip": answer,
        }  # fmt: skip
        return pb.StartLoadRequest(**(values | fields))

    def confirm(self, tac: bytes, online_counter: int, new_balance_fen: int) -> pb.ConfirmLoadRequest:
        return pb.ConfirmLoadRequest(
            request_id=self.new_id(), card_number=CARD, terminal_number=TERMINAL, online_counter=online_counter,
            new_balance_fen=new_balance_fen, tac=tac,
        )  # fmt: skip

    def challenge(self) -> Any:
        request = pb.ChallengeChipRequest(request_id=self.new_id(), card_number=CARD, terminal_number=TERMINAL)
        return self.call(loads.challenge_chip, request)

    def give_back(self, amount_fen: int) -> Any:
        """The chip's answer to a challenge."""
        answer = self.chip.initialize_for_load(amount_fen, TERMINAL)
        request = pb.ReturnLoadRequest(
            request_id=self.new_id(), card_number=CARD, terminal_number=TERMINAL, transaction_type=1, chip=answer
        )
        return self.call(loads.return_load, request)

    def whole(self, amount_fen: int) -> None:
        """A load without a fault."""
        request = self.start(amount_fen)
        started = self.call(loads.start_load, request)
        assert started.result == Result.ACCEPTED
        counter = self.chip.online_counter
        tac = self.chip.credit_for_load(started.local_time, started.mac2)
        assert tac is not None
        assert self.call(loads.confirm_load, self.confirm(tac, counter, self.chip.balance_fen)).result == Result.ACCEPTED

    def load(self, online_counter: int) -> pb.Load | None:
        try:
            return self.state(online_counter)
        except NotFound:
            return None

    def state(self, online_counter: int) -> pb.Load:
        load: pb.Load = self.call(loads.get_load, pb.GetLoadRequest(card_number=CARD, online_counter=online_counter)).load
        return load

    @property
    def account_fen(self) -> int:
        return int(self.core.balance(CARD).balance_fen)

    @property
    def chip_account_fen(self) -> int:
        account = self.core.memory.account(CHIP_PREFIX + CARD)
        return 0 if account is None else int(self.core.engine.balance_fen(account))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "data")
    yield made
    made.core.close()


# ---- what each side proves ----


def _sm4(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.SM4(key), modes.ECB()).encryptor().update(block)


def _mac(key: bytes, message: str) -> bytes:
    data = bytes.fromhex(message) + b"\x80"
    padded = data + bytes(-len(data) % 16)
    return Cipher(algorithms.SM4(key), modes.CBC(bytes(16))).encryptor().update(padded)[-16:-12]


def _card_key(master: bytes) -> bytes:
    for factor in (ISSUER, bytes.fromhex(CARD)):
        master = _sm4(master, factor + bytes(255 - byte for byte in factor))
    return master


def test_the_bytes_are_the_profiles(world: World) -> None:
    """MAC1, MAC2 and TAC by OpenSSL, from the fields as profile.md lists them."""
    request = world.start(1_000)
    x = request.chip.random + bytes.fromhex("00008000")
    session_key = _sm4(_card_key(LOAD_MASTER), x + bytes(255 - byte for byte in x))
    assert request.chip.mac1 == _mac(session_key, "00000000000003e801112233445566")
    started = world.call(loads.start_load, request)
    assert started.local_time == local_time_of(world.core.now_s) == 20250101083015
    covered = "000003e80111223344556620250101083015"
    assert started.mac2 == _mac(session_key, covered)
    tac = world.chip.credit_for_load(started.local_time, started.mac2)
    assert tac == _mac(_card_key(KEY_SET.master), "000003e80000" + covered)
    confirmed = world.call(loads.confirm_load, world.confirm(tac, 0, 1_000))
    assert (confirmed.result, confirmed.returned_fen) == (Result.ACCEPTED, 0)
    assert (world.account_fen, world.chip_account_fen, started.balance_after_fen) == (1_000, 1_000, 1_000)
    assert world.state(0).state == pb.LOAD_STATE_CONFIRMED


def test_taps_of_the_chip_are_paid_from_its_own_money(world: World) -> None:
    world.whole(500)
    tap = make_tap(amount_fen=300, chip_balance_before_fen=500, chip_balance_after_fen=200)
    outcome = world.core.authorize(tap)
    assert (outcome.result, outcome.balance_after_fen) == (Result.ACCEPTED, 200)
    assert (world.account_fen, world.chip_account_fen) == (1_500, 200)
    account = make_tap(amount_fen=100, atc=2, terminal_sequence=2, profile=2)
    assert world.core.authorize(account).balance_after_fen == 1_400
    assert world.core.authorize(make_tap(amount_fen=300, atc=3, terminal_sequence=3)).result == Result.INSUFFICIENT_FUNDS
    for again in (world.core.restart, lambda: (world.core.checkpoint(), world.core.restart())):
        again()
        assert (world.account_fen, world.chip_account_fen) == (1_400, 200)
        assert world.core.engine.card(0)["chip_account"] == world.core.memory.account(CHIP_PREFIX + CARD)
    listed = world.core.list_transactions(CARD)
    assert [transaction.reason for transaction in listed if transaction.reason] == ["load"]
    assert world.core.engine.imbalance_fen() == 0


def test_a_disputed_ride_of_the_chip_goes_back_to_the_account(world: World) -> None:
    world.whole(500)
    sequence = world.core.authorize(make_tap(amount_fen=300)).sequence
    request = pb_exceptions.OpenDisputeRequest(
        request_id=world.new_id(), card_number=CARD, journal_sequence=sequence, disputed_fen=300, reason=1, actor_id="rider"
    )
    dispute = world.core.ask(disputes.open_dispute, request).dispute
    respond = pb_exceptions.RespondToDisputeRequest(request_id=world.new_id(), dispute_id=dispute.dispute_id, actor_id="bus")
    world.core.ask(disputes.respond_to_dispute, respond)
    decide = pb_exceptions.DecideDisputeRequest(
        request_id=world.new_id(), dispute_id=dispute.dispute_id, actor_id="c", outcome=REFUNDED, note="so"
    )
    assert world.core.ask(disputes.decide_dispute, decide).result == Result.ACCEPTED
    assert (world.account_fen, world.chip_account_fen) == (1_800, 200)
    books = world.core.command(commands.get_trial_balance, clearing_service_pb2.GetTrialBalanceRequest())
    assert (books.imbalance_fen, books.purses_fen, books.others_fen) == (0, 2_000, 0)


def test_what_was_on_the_chip_before_its_first_load_leaves_the_account(tmp_path: Path) -> None:
    world = World(tmp_path / "data", old_fen=700)
    world.whole(300)
    assert (world.account_fen, world.chip_account_fen, world.chip.balance_fen) == (1_000, 1_000, 1_000)
    world.core.close()
    poor = World(tmp_path / "poor", old_fen=MONEY_FEN + 1)
    assert poor.call(loads.start_load, poor.start(1)).result == Result.CHIP_BALANCE
    poor.core.close()


# ---- the states of a load ----


def _nothing(world: World) -> None:
    pass


def _tac(world: World) -> Any:
    tac = world.taken  # type: ignore[attr-defined]
    return world.call(loads.confirm_load, world.confirm(*tac))


def _next_load(world: World) -> Any:
    return world.call(loads.start_load, world.start(100))


def _fresh(world: World) -> Any:
    return world.give_back(world.challenge().amount_fen)


EVENTS = {"TAC": _tac, "contact": _next_load, "fresh answer": _fresh}
AFTER = [
    # had the chip taken it, what comes, the result, the load's state, account, chip's account
    (True, ["TAC"], Result.ACCEPTED, "CONFIRMED", 1_500, 500),
    (True, ["contact"], Result.ACCEPTED, "PROVED", 1_400, 600),
    (True, ["fresh answer"], Result.ACCEPTED, "PROVED", 1_500, 500),
    (False, ["contact"], Result.ACCEPTED, "PENDING", 1_500, 500),  # 100 in place of 500, out of the same money
    (False, ["fresh answer"], Result.ACCEPTED, "RETURNED", 2_000, 0),
    (True, ["contact", "TAC"], Result.ACCEPTED, "CONFIRMED", 1_400, 600),
    (True, ["TAC", "TAC"], Result.ACCEPTED, "CONFIRMED", 1_500, 500),
    (True, ["TAC", "contact"], Result.ACCEPTED, "CONFIRMED", 1_400, 600),
    (True, ["TAC", "fresh answer"], Result.ACCEPTED, "CONFIRMED", 1_500, 500),
    (True, ["fresh answer", "TAC"], Result.ACCEPTED, "CONFIRMED", 1_500, 500),
    (False, ["fresh answer", "fresh answer"], Result.ACCEPTED, "RETURNED", 2_000, 0),
    (False, ["fresh answer", "contact"], Result.ACCEPTED, "PENDING", 1_900, 100),
    (False, ["contact", "fresh answer"], Result.ACCEPTED, "RETURNED", 2_000, 0),
]


@pytest.mark.parametrize(("is_taken", "events", "result", "state", "account_fen", "chip_fen"), AFTER)
def test_what_becomes_of_a_load(
    world: World, is_taken: bool, events: list[str], result: Result, state: str, account_fen: int, chip_fen: int
) -> None:
    started = world.call(loads.start_load, world.start(500))
    if is_taken:
        tac = world.chip.credit_for_load(started.local_time, started.mac2)
        world.taken = tac, 0, 500  # type: ignore[attr-defined]
    answer = None
    for event in events:
        answer = EVENTS[event](world)
    assert answer is not None
    assert answer.result == result
    assert pb.LoadState.Name(world.state(0).state) == f"LOAD_STATE_{state}"
    assert (world.account_fen, world.chip_account_fen) == (account_fen, chip_fen)
    assert world.core.engine.imbalance_fen() == 0


def test_of_attempts_with_one_counter_the_chip_takes_one(world: World) -> None:
    small = world.call(loads.start_load, world.start(200))
    world.chip.credit_for_load(small.local_time, bytes(4))  # a broken line: the chip refuses and forgets
    large = world.call(loads.start_load, world.start(700))
    assert (world.account_fen, world.chip_account_fen) == (1_300, 700)
    answer = world.start(200)
    again = world.call(loads.start_load, answer)
    assert (world.account_fen, world.chip_account_fen) == (1_300, 700)
    assert world.chip.credit_for_load(large.local_time, large.mac2) is None  # of an earlier session
    world.chip.initialize_for_load(200, TERMINAL)
    answer = world.start(200)
    again = world.call(loads.start_load, answer)
    tac = world.chip.credit_for_load(again.local_time, again.mac2)
    assert tac is not None
    confirmed = world.call(loads.confirm_load, world.confirm(tac, 0, 200))
    assert (confirmed.result, confirmed.returned_fen) == (Result.ACCEPTED, 500)
    assert (world.account_fen, world.chip_account_fen) == (1_800, 200)


def test_without_a_tac_all_that_the_chip_may_have_taken_stays(world: World) -> None:
    """The counter says that one of two attempts was taken; where the balance allows both, the larger one stays until the TAC."""
    for attempts, taken, kept_fen in (((100, 300), 300, 300), ((300, 100), 100, 300)):
        counter, on_chip_fen, before_fen = world.chip.online_counter, world.chip.balance_fen, world.chip_account_fen
        tac = None
        for amount_fen in attempts:
            started = world.call(loads.start_load, world.start(amount_fen))
            if amount_fen == taken:
                tac = world.chip.credit_for_load(started.local_time, started.mac2)
        assert tac is not None
        assert world.give_back(world.challenge().amount_fen).state == pb.LOAD_STATE_PROVED
        assert world.chip_account_fen == before_fen + kept_fen
        world.call(loads.confirm_load, world.confirm(tac, counter, on_chip_fen + taken))
        assert world.chip_account_fen == world.chip.balance_fen == on_chip_fen + taken
    counter = world.chip.online_counter
    world.call(loads.start_load, world.start(500))
    started = world.call(loads.start_load, world.start(200))
    world.chip.credit_for_load(started.local_time, started.mac2)
    world.chip.balance_fen -= 1  # a purchase that is not here yet: 500 would fit too
    world.give_back(world.challenge().amount_fen)
    assert world.state(counter).debited_fen == 500


def test_an_old_answer_brings_no_money_back(world: World) -> None:
    """The chip is asked twice; the first answer is kept back, the second load is taken, its TAC too; then the first comes."""
    kept = world.start(10)
    started = world.call(loads.start_load, world.start(500))
    assert world.chip.credit_for_load(started.local_time, started.mac2) is not None
    world.call(loads.start_load, kept)
    assert (world.account_fen, world.chip_account_fen) == (1_500, 500)
    challenge = world.challenge()
    request = pb.ReturnLoadRequest(
        request_id=world.new_id(), card_number=CARD, terminal_number=TERMINAL, transaction_type=1, chip=kept.chip
    )
    assert world.call(loads.return_load, request).result == Result.MAC_MISMATCH
    assert world.give_back(challenge.amount_fen).state == pb.LOAD_STATE_PROVED
    assert (world.account_fen, world.chip_account_fen) == (1_500, 500)
    assert world.call(loads.start_load, kept.__class__(**{**_fields(kept), "request_id": world.new_id()})).result == (
        Result.LOAD_COUNTER_PAST
    )


def _fields(message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field, _ in message.ListFields()}


def test_a_challenge_is_for_one_answer_one_terminal_and_a_minute(world: World) -> None:
    world.call(loads.start_load, world.start(500))
    assert world.give_back(1).result == Result.DEADLINE_PASSED  # none was given
    challenge = world.challenge()
    world.core.pass_time(limits.CHALLENGE_S + 1)
    assert world.give_back(challenge.amount_fen).result == Result.DEADLINE_PASSED
    challenge = world.challenge()
    assert world.give_back(challenge.amount_fen).state == pb.LOAD_STATE_RETURNED
    assert world.give_back(challenge.amount_fen).result == Result.DEADLINE_PASSED
    world.core.register_terminal(OTHER_TERMINAL)
    challenge = world.challenge()
    answer = world.chip.initialize_for_load(challenge.amount_fen, OTHER_TERMINAL)
    request = pb.ReturnLoadRequest(
        request_id=world.new_id(), card_number=CARD, terminal_number=OTHER_TERMINAL, transaction_type=1, chip=answer
    )
    assert world.call(loads.return_load, request).result == Result.DEADLINE_PASSED


# ---- declines ----


def _change_chip(**fields: Any) -> Callable[[World], pb.StartLoadRequest]:
    def make(world: World) -> pb.StartLoadRequest:
        request = world.start(100)
        for name, value in fields.items():
            setattr(request.chip, name, value)
        return request

    return make


def _of(**fields: Any) -> Callable[[World], pb.StartLoadRequest]:
    return lambda world: world.start(100, **fields)


def _denied(world: World) -> pb.StartLoadRequest:
    reason = deny_list_service_pb2.DENY_REASON_LOSS
    request = deny_list_service_pb2.DenyCardRequest(request_id=world.new_id(), card_number=CARD, reason=reason)
    world.core.ask(deny_list.deny_card, request)
    return world.start(100)


def _key(life: Life) -> Callable[[World], pb.StartLoadRequest]:
    def make(world: World) -> pb.StartLoadRequest:
        request = world.start(100)
        held = {key: HeldKey(KeyHolder.take(bytearray(value)), life=life) for key, value in MASTERS.items()}
        world.provider = SoftwareProvider(dict(held), lambda: 100)
        return request

    return make


def _full(world: World) -> pb.StartLoadRequest:
    world.core.top_up(CARD, limits.CHIP_FEN_MAX)
    world.whole(limits.CHIP_FEN_MAX)
    return world.start(1)


def _too_much_on_the_chip(world: World) -> pb.StartLoadRequest:
    world.whole(100)
    world.chip.balance_fen += 1
    return world.start(1)


def _fits_no_attempt(world: World) -> pb.StartLoadRequest:
    world.call(loads.start_load, world.start(100))
    world.chip.online_counter += 1
    world.chip.balance_fen += 101
    return world.start(1)


DECLINES = [
    ("another MAC", _change_chip(mac1=bytes(4)), Result.MAC_MISMATCH),
    ("another balance", _change_chip(old_balance_fen=1), Result.MAC_MISMATCH),
    ("another counter", _change_chip(online_counter=1), Result.MAC_MISMATCH),
    ("another amount", lambda world: _with_amount(world.start(100), 101), Result.MAC_MISMATCH),
    ("another type", _of(transaction_type=2), Result.MAC_MISMATCH),
    ("3DES", _change_chip(algorithm_id=0), Result.ALGORITHM_UNSUPPORTED),
    ("no such key", _change_chip(key_version=9), Result.UNKNOWN_KEY),
    ("no such card", _of(card_number="1"), Result.UNKNOWN_CARD),
    ("no such terminal", _of(terminal_number=OTHER_TERMINAL), Result.UNKNOWN_TERMINAL),
    ("too little money", lambda world: world.start(MONEY_FEN + 1), Result.INSUFFICIENT_FUNDS),
    ("a lost card", _denied, Result.CARD_DENIED),
    ("a key of the past", _key(Life(0, 10, 50)), Result.KEY_RETIRED),
    ("a key of the future", _key(Life(1_000)), Result.UNKNOWN_KEY),
    ("a full chip", _full, Result.CHIP_FULL),
    ("money from nowhere", _too_much_on_the_chip, Result.CHIP_BALANCE),
    ("more than any attempt", _fits_no_attempt, Result.LOAD_UNRESOLVED),
]


def _with_amount(request: pb.StartLoadRequest, amount_fen: int) -> pb.StartLoadRequest:
    request.amount_fen = amount_fen
    return request


@pytest.mark.parametrize(("make", "result"), [row[1:] for row in DECLINES], ids=[row[0] for row in DECLINES])
def test_a_decline_moves_nothing_and_stays_the_same(
    world: World, make: Callable[[World], pb.StartLoadRequest], result: Result
) -> None:
    request = make(world)
    before = world.account_fen, world.chip_account_fen
    answer = world.call(loads.start_load, request)
    assert (answer.result, answer.mac2) == (result, b"")
    assert (world.account_fen, world.chip_account_fen) == before
    again = world.call(loads.start_load, request)
    assert (again.result, again.duplicate) == (result, True)


def test_a_request_made_twice_is_one_load(world: World) -> None:
    request = world.start(400)
    first, second = world.call(loads.start_load, request), world.call(loads.start_load, request)
    assert (second.duplicate, second.mac2, second.sequence) == (True, first.mac2, first.sequence)
    assert world.account_fen == 1_600
    request.amount_fen = 401
    assert world.call(loads.start_load, request).result == Result.CONFLICT


def test_too_many_attempts_at_one_load(world: World) -> None:
    for _ in range(limits.LOAD_ATTEMPTS_MAX):
        assert world.call(loads.start_load, world.start(10)).result == Result.ACCEPTED
    assert world.call(loads.start_load, world.start(10)).result == Result.LOAD_UNRESOLVED
    assert world.account_fen == MONEY_FEN - 10


MALFORMED = [
    ({"card_number": "x"}, "card_number"),
    ({"terminal_number": b"1"}, "terminal_number"),
    ({"transaction_type": 6}, "transaction_type"),
    ({"amount_fen": 0}, "amount_fen"),
    ({"amount_fen": limits.CHIP_FEN_MAX + 1}, "amount_fen"),
    ({"chip": pb.ChipAnswer(random=b"1", mac1=b"1234")}, "chip.random"),
    ({"chip": pb.ChipAnswer(random=b"1234", mac1=b"1")}, "chip.mac1"),
    ({"chip": pb.ChipAnswer(random=b"1234", mac1=b"1234", online_counter=1 << 16)}, "chip.online_counter"),
    ({"request_id": b"1"}, "request_id"),
]


@pytest.mark.parametrize(("fields", "field"), MALFORMED, ids=[str(row[0]) for row in MALFORMED])
def test_what_is_malformed_is_named(world: World, fields: dict[str, Any], field: str) -> None:
    request = pb.StartLoadRequest(**(_fields(world.start(100)) | fields))
    with pytest.raises(InvalidRequest) as caught:
        world.call(loads.start_load, request)
    assert caught.value.field == field


def test_no_such_load(world: World) -> None:
    with pytest.raises(NotFound):
        world.state(0)
    assert world.call(loads.confirm_load, world.confirm(bytes(4), 0, 1)).result == Result.LOAD_UNKNOWN
    assert world.challenge().result == Result.LOAD_UNKNOWN
    world.call(loads.start_load, world.start(100))
    assert world.call(loads.confirm_load, world.confirm(bytes(4), 0, 100)).result == Result.MAC_MISMATCH
    with pytest.raises(InvalidRequest, match="tac"):
        world.call(loads.confirm_load, world.confirm(b"1", 0, 1))


# ---- random days ----

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["load", "load", "load", "load", "load", "purchase", "return", "old answer", "late TACs", "restart", "checkpoint"]
        ),
        st.sampled_from([100, 300, 500]),
        st.sampled_from(["whole", "answer lost", "TAC lost", "TAC late", "killed", "sent twice"]),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, old_fen=st.sampled_from([0, 200]))
def test_never_twice_never_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str]], old_fen: int
) -> None:
    world = World(tmp_path_factory.mktemp("days") / "data", old_fen)
    late: list[tuple[bytes, int, int]] = []
    seen: list[pb.StartLoadRequest] = []
    spent_fen, atc, lost_tacs = 0, 0, 0
    try:
        for kind, amount_fen, fate in steps:
            if kind == "load":
                request = world.start(amount_fen)
                seen.append(request)
                counter = world.chip.online_counter
                if fate == "killed":  # decided, and the power goes before it is on disk
                    world.core.command(lambda *given: loads.start_load(world.provider, *given), request)
                    world.core.restart()
                started = world.call(loads.start_load, request)
                if fate == "sent twice":
                    assert world.call(loads.start_load, request).mac2 == started.mac2
                if started.result != Result.ACCEPTED or fate == "answer lost":
                    continue
                tac = world.chip.credit_for_load(started.local_time, started.mac2)
                assert tac is not None
                proof = tac, counter, world.chip.balance_fen
                if fate == "TAC late":
                    late.append(proof)
                elif fate == "TAC lost":
                    lost_tacs += 1
                else:
                    assert world.call(loads.confirm_load, world.confirm(*proof)).result == Result.ACCEPTED
            elif kind == "purchase" and world.chip_account_fen and world.chip.balance_fen >= amount_fen:
                atc += 1
                world.chip.balance_fen -= amount_fen
                tap = make_tap(amount_fen=amount_fen, atc=atc, terminal_sequence=atc)
                assert world.core.submit(tap)[0].result == Result.ACCEPTED
                spent_fen += amount_fen
            elif kind == "return" and world.chip_account_fen:
                assert world.give_back(world.challenge().amount_fen).result == Result.ACCEPTED
            elif kind == "old answer" and seen:
                old = pb.StartLoadRequest(**(_fields(seen[amount_fen % len(seen)]) | {"request_id": world.new_id()}))
                world.call(loads.start_load, old)
            elif kind == "late TACs":
                for proof in late:
                    assert world.call(loads.confirm_load, world.confirm(*proof)).result == Result.ACCEPTED
                late.clear()
            elif kind == "restart":
                world.core.restart()
            elif kind == "checkpoint":
                world.core.checkpoint()
            on_chip_fen = world.chip.balance_fen if world.chip_account_fen else 0
            assert world.chip_account_fen >= on_chip_fen  # what the chip can spend is there
            assert world.account_fen >= 0
            for counter in range(world.chip.online_counter + 1):
                if world.chip_account_fen and (load := world.load(counter)) is not None:
                    assert load.debited_fen <= max(attempt.amount_fen for attempt in load.attempts)
            assert world.account_fen + world.chip_account_fen + spent_fen == MONEY_FEN
        if not world.chip_account_fen:
            return
        for proof in late:
            assert world.call(loads.confirm_load, world.confirm(*proof)).result == Result.ACCEPTED
        assert world.give_back(world.challenge().amount_fen).result == Result.ACCEPTED
        # All is settled: the accounts are to the fen what the chip has, but where a TAC is gone for good and amounts differed.
        assert world.chip_account_fen >= world.chip.balance_fen
        if not lost_tacs:
            assert world.chip_account_fen == world.chip.balance_fen
        assert world.core.engine.imbalance_fen() == 0
    finally:
        world.core.close()


# ---- in clearing ----


def test_loads_explain_what_a_chip_has_more(world: World) -> None:
    for amount_fen in (100, 300):
        world.whole(amount_fen)
    world.call(loads.start_load, world.start(50))
    started = world.call(loads.start_load, world.start(70))
    world.chip.credit_for_load(started.local_time, started.mac2)
    world.core.register_card("99")
    wanted = {1: False, 50: True, 70: True, 100: True, 300: True, 120: False, 370: True, 400: True, 470: True, 471: False}
    cards, more_fen = [0] * len(wanted), list(wanted)
    assert world.core.command(lambda memory, *_: loads.explain(memory, cards, more_fen), None) == list(wanted.values())
    assert world.core.command(lambda memory, *_: loads.explain(memory, [1], [100]), None) == [False]


@pytest.mark.parametrize(("more_fen", "gaps"), [(0, 0), (300, 0), (301, 1), (-300, 1)])
def test_a_load_between_two_taps_is_no_gap(more_fen: int, gaps: int) -> None:
    rows = np.zeros(2, ROW)
    rows["sequence"], rows["atc"], rows["tap_amount_fen"] = [1, 2], [1, 2], 100
    rows["before_fen"] = [500, 400 + more_fen]
    rows["after_fen"] = rows["before_fen"] - 100
    rows["marks"] = Mark.COUNTED | Mark.CLEARED | Mark.BALANCES
    continuity = Continuity(None, 1, 2, CardStates(), {}, lambda cards, fen: fen == 300)
    continuity.add(rows)
    outcomes = np.concatenate([each["outcome"] for each in continuity.run().findings])
    assert np.count_nonzero(outcomes == ClearingOutcome.BALANCE_GAP) == gaps


@pytest.mark.parametrize(
    ("witness_fen", "verdict"),
    [(400, "proved"), (500, "disproved"), (700, "proved"), (800, "disproved"), (600, "pending"), (900, "pending")],
)
def test_a_grey_record_before_a_load_is_decided(witness_fen: int, verdict: str) -> None:
    """100 of 500 fen; then 300 were loaded, or 400, of which neither can be told apart where both would fit."""
    rows = np.zeros(2, ROW)
    rows["sequence"], rows["atc"], rows["tap_amount_fen"] = [1, 2], [1, 2], 100
    rows["before_fen"] = [500, witness_fen]
    rows["after_fen"] = rows["before_fen"] - 100
    rows["marks"] = [Mark.PENDING | Mark.BALANCES, Mark.COUNTED | Mark.CLEARED | Mark.BALANCES]
    explained = {300} if witness_fen < 900 else {400, 500}
    continuity = Continuity(None, 1, 2, CardStates(), {}, lambda cards, fen: np.isin(fen, list(explained)))
    continuity.add(rows)
    found = continuity.run()
    kinds = ("proved", "disproved", "pending")
    assert {kind for kind in kinds if sum(map(len, getattr(found, kind)))} == {verdict}


# ---- over the port ----


def test_a_load_over_grpc(connection: Connection, key_file: Path) -> None:
    provider = key_sets.load_provider(key_file)
    number, terminal = "3104416000004321", bytes.fromhex("0a0b0c0d0e0f")
    card = card_service_pb2.Card(card_number=number, issuer_id=ISSUER, rider=1)
    connection.cards.RegisterCards(card_service_pb2.RegisterCardsRequest(cards=[card]))
    registered = terminal_service_pb2.Terminal(terminal_number=terminal, operator_id="counter", kind=1)
    connection.terminals.RegisterTerminals(terminal_service_pb2.RegisterTerminalsRequest(terminals=[registered]))
    request = account_service_pb2.TopUpRequest(request_id=b"load over grpc..", card_number=number, amount_fen=5_000)
    assert connection.accounts.TopUp(request).result == Result.ACCEPTED
    chip = SimulatedChip(number, ISSUER, provider)
    assert load_chip(connection, chip, terminal, 1_500).balance_after_fen == 3_500
    assert chip.balance_fen == 1_500
    got = connection.loads.GetLoad(pb.GetLoadRequest(card_number=number, online_counter=0)).load
    assert got.state == pb.LOAD_STATE_CONFIRMED
    chip.balance_fen -= 500  # somewhere else
    chip.credit_for_load = lambda *_: None  # type: ignore[method-assign]
    assert load_chip(connection, chip, terminal, 1_000).balance_after_fen == 2_500
    returned = return_load(connection, chip, terminal)
    assert (returned.state, returned.returned_fen) == (pb.LOAD_STATE_RETURNED, 1_000)
    with pytest.raises(grpc.RpcError, match="random"):
        connection.loads.StartLoad(
            pb.StartLoadRequest(
                request_id=bytes(16),
                card_number=number,
                terminal_number=terminal,
                transaction_type=1,
                amount_fen=1,
                chip=pb.ChipAnswer(),
            )
        )
