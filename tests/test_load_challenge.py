"""A chip's answer to a challenge brings money back only while no load was begun after the challenge was given."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_loads import CARD, MONEY_FEN, TERMINAL, World

from yikatong.core.cards import loads
from yikatong.core.types import Result
from yikatong.v1 import load_service_pb2 as pb


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "data")
    yield made
    made.core.close()


def _answer(world: World, amount_fen: int) -> pb.ReturnLoadRequest:
    """The chip's answer to a challenge, kept back."""
    answer = world.chip.initialize_for_load(amount_fen, TERMINAL)
    return pb.ReturnLoadRequest(
        request_id=world.new_id(), card_number=CARD, terminal_number=TERMINAL, transaction_type=1, chip=answer
    )


@pytest.mark.parametrize("began_before", [False, True])
def test_an_answer_kept_back_until_the_chip_has_taken_a_load(world: World, began_before: bool) -> None:
    world.whole(100)
    if began_before:  # a torn attempt with the same counter, as a reason to ask for a challenge
        assert world.call(loads.start_load, world.start(300)).result == Result.ACCEPTED
    kept_back = _answer(world, world.challenge().amount_fen)
    started = world.call(loads.start_load, world.start(300))
    assert started.result == Result.ACCEPTED
    assert world.chip.credit_for_load(started.local_time, started.mac2) is not None
    returned = world.call(loads.return_load, kept_back)
    assert returned.result == Result.DEADLINE_PASSED
    assert returned.returned_fen == 0
    assert world.chip_account_fen == world.chip.balance_fen == 400


def test_the_torn_load_still_comes_back_by_a_challenge_given_after_it(world: World) -> None:
    world.whole(100)
    world.challenge()
    assert world.call(loads.start_load, world.start(300)).result == Result.ACCEPTED
    before_fen = world.account_fen
    assert world.give_back(world.challenge().amount_fen).state == pb.LOAD_STATE_RETURNED
    assert world.account_fen == before_fen + 300
    assert world.chip_account_fen == world.chip.balance_fen == 100


def test_a_refused_load_leaves_the_challenge_good(world: World) -> None:
    world.whole(100)
    assert world.call(loads.start_load, world.start(300)).result == Result.ACCEPTED
    challenge = world.challenge()
    assert world.call(loads.start_load, world.start(MONEY_FEN)).result != Result.ACCEPTED
    assert world.give_back(challenge.amount_fen).state == pb.LOAD_STATE_RETURNED
