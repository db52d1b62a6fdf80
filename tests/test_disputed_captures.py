"""Disputes of captures: what was given back, by refund, reversal or dispute, is not given back once more."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from payments import Desk, request_id

from yikatong.core.day import disputes
from yikatong.core.types import PostingKind, RecordKind, Result
from yikatong.v1 import exception_service_pb2 as pb

REFUNDED = 5  # by the operator


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Desk(tmp_path / "data") as made:
        made.register_merchants()
        made.card("100", 1_000)
        made.open_purse("open", "100", "m1", "meal")
        made.fund_purse("fund", "100", "m1", 100)
        made.authorize("a", 300, merchant="canteen")  # 100 of the purse, 200 of the card
        yield made
        assert made.core.engine.imbalance_fen() == 0


def captured(desk: Desk, name: str, fen: int) -> list[int]:
    """Capture, and where its postings stand."""
    first = desk.capture(name, "a", fen).sequence
    records = [desk.core.record(sequence) for sequence in range(first, desk.core.engine.next_sequence)]
    return [
        int(each["sequence"])
        for each in records
        if each["kind"] == RecordKind.POSTING and each["transaction_type"] == PostingKind.CAPTURE
    ]


def opened(desk: Desk, name: str, sequence: int, fen: int) -> Any:
    request = pb.OpenDisputeRequest(
        request_id=request_id(name), card_number="100", journal_sequence=sequence, disputed_fen=fen, reason=1, actor_id="rider"
    )
    return desk.ask(disputes.open_dispute, request)


def decided(desk: Desk, name: str, dispute: Any) -> Result:
    respond = pb.RespondToDisputeRequest(request_id=request_id(name + "r"), dispute_id=dispute.dispute_id, actor_id="b")
    desk.ask(disputes.respond_to_dispute, respond)
    decide = pb.DecideDisputeRequest(
        request_id=request_id(name), dispute_id=dispute.dispute_id, actor_id="c", outcome=REFUNDED, note="so"
    )
    return Result(desk.ask(disputes.decide_dispute, decide).result)


def test_what_was_refunded_is_disputed_no_more(desk: Desk) -> None:
    of_purse, of_card = captured(desk, "c", 300)
    desk.refund("r", "a", 150)  # all but 50 of the card's part
    assert opened(desk, "d1", of_card, 51).result == Result.ABOVE_CHARGE
    before = opened(desk, "d2", of_card, 50).dispute
    assert opened(desk, "d3", of_purse, 100).result == Result.ACCEPTED
    # Refunded while the dispute is open: what remains is less than what is disputed.
    desk.refund("r2", "a", 1)
    assert decided(desk, "e", before) is Result.ABOVE_CHARGE
    assert desk.available_fen("100") == 951


def test_what_a_dispute_gave_back_is_refunded_no_more(desk: Desk) -> None:
    first = captured(desk, "c1", 200)[1]
    second = captured(desk, "c2", 100)[0]
    assert decided(desk, "e1", opened(desk, "d1", first, 100).dispute) is Result.ACCEPTED
    assert (desk.get("a").refunded_fen, desk.available_fen("100"), desk.payable_fen("canteen")) == (100, 900, 200)
    assert desk.refund("r", "a", 201).result == Result.REFUND_ABOVE_CAPTURE
    assert desk.refund("r2", "a", 200).result == Result.ACCEPTED
    assert opened(desk, "d2", second, 1).result == Result.ABOVE_CHARGE
    assert (desk.available_fen("100"), desk.available_fen("100", "m1"), desk.payable_fen("canteen")) == (1_000, 100, 0)


def test_a_reversed_capture_is_disputed_no_more(desk: Desk) -> None:
    of_purse, of_card = captured(desk, "c", 300)
    dispute = opened(desk, "d", of_card, 200).dispute
    assert desk.reverse("v", "c").result == Result.ACCEPTED
    assert decided(desk, "e", dispute) is Result.ABOVE_CHARGE
    assert opened(desk, "d2", of_purse, 1).result == Result.ABOVE_CHARGE


def test_of_a_closed_purse_the_funder_gets_it(desk: Desk) -> None:
    of_purse, _ = captured(desk, "c", 300)
    dispute = opened(desk, "d", of_purse, 60).dispute
    desk.close_purse("x", "100", "m1")
    assert decided(desk, "e", dispute) is Result.ACCEPTED
    assert (desk.account_fen("funder:city"), desk.account_fen("purse:100:m1")) == ((-40, 0), (0, 0))
