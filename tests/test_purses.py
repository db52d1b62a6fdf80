"""Restricted purses: opened, funded, in order, expired, closed; and what comes back to one that is closed."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from payments import Desk

from yikatong.core import limits
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.types import Result
from yikatong.v1 import purse_service_pb2

TODAY = date(2025, 1, 1)  # of the harness


def day(after: int) -> int:
    return int(f"{TODAY + timedelta(after):%Y%m%d}")


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    with Desk(tmp_path / "data") as made:
        made.register_merchants()
        made.card("100", 1_000)
        yield made


def state(name: str) -> int:
    return purse_service_pb2.PurseState.Value(f"PURSE_STATE_{name}")


def test_a_life(desk: Desk) -> None:
    opened = desk.open_purse("o", "100", "m1", "meal", expires=day(3))
    assert (opened.result, opened.expires) == (Result.ACCEPTED, day(3))
    funded = desk.fund_purse("f", "100", "m1", 300)
    assert (funded.result, funded.balance_after_fen) == (Result.ACCEPTED, 300)
    assert desk.account_fen("funder:city") == (-300, 0)
    desk.authorize("a", 100, merchant="canteen")
    assert desk.close_purse("c", "100", "m1").result == Result.PURSE_HELD
    desk.capture("b", "a", 100)
    closed = desk.close_purse("d", "100", "m1")
    assert (closed.result, closed.returned_fen) == (Result.ACCEPTED, 200)
    assert (desk.account_fen("funder:city"), desk.account_fen("purse:100:m1")) == ((-100, 0), (0, 0))
    assert desk.authorize("e", 10, merchant="canteen").legs[0].purse == "general"
    assert desk.authorize("g", 10, merchant="canteen", legs="m1=10").result == Result.PURSE_UNKNOWN
    assert desk.fund_purse("h", "100", "m1", 1).result == Result.PURSE_UNKNOWN
    assert desk.close_purse("i", "100", "m1").result == Result.PURSE_UNKNOWN
    assert desk.open_purse("j", "100", "m1", "meal").result == Result.CONFLICT
    assert desk.core.engine.imbalance_fen() == 0


def test_requests_again(desk: Desk) -> None:
    for ask in (
        lambda: desk.open_purse("o", "100", "m1", "meal"),
        lambda: desk.fund_purse("f", "100", "m1", 300),
        lambda: desk.close_purse("c", "100", "m1"),
        lambda: desk.close_purse("d", "100", "m1"),
    ):
        first, again = ask(), ask()
        assert again.duplicate
        again.duplicate = False
        assert again == first
    assert desk.fund_purse("f", "100", "m1", 301).result == Result.CONFLICT
    assert desk.open_purse("u", "999", "m1", "meal").result == Result.UNKNOWN_CARD
    assert desk.fund_purse("v", "999", "m1", 1).result == Result.UNKNOWN_CARD
    assert desk.account_fen("funder:city") == (0, 0)


def test_refunds_to_a_closed_purse_go_to_its_funder(desk: Desk) -> None:
    desk.open_purse("o", "100", "m1", "meal")
    desk.fund_purse("f", "100", "m1", 200)
    desk.authorize("a", 300, merchant="canteen")
    desk.capture("b", "a", 300)
    desk.refund("r", "a", 150)  # 100 to general, 50 to the meal purse
    assert (desk.available_fen("100"), desk.available_fen("100", "m1")) == (1_000, 50)
    desk.close_purse("c", "100", "m1")
    assert desk.account_fen("funder:city") == (-150, 0)
    answer = desk.refund("s", "a", 150)
    assert [(leg.purse, leg.amount_fen) for leg in answer.legs] == [("m1", 150)]
    assert desk.account_fen("funder:city") == (0, 0)
    assert desk.reverse("x", "s").result == Result.ACCEPTED
    assert desk.account_fen("funder:city") == (-150, 0)
    assert desk.reverse("y", "r").result == Result.ACCEPTED  # the 50 went to the funder with the rest of the purse
    assert (desk.account_fen("funder:city"), desk.available_fen("100"), desk.payable_fen("canteen")) == ((-200, 0), 900, 300)
    assert desk.reverse("z", "b").result == Result.NOT_REVERSIBLE  # nothing can be held there again
    assert desk.refund("t", "a", 300).result == Result.ACCEPTED
    assert desk.account_fen("funder:city") == (0, 0)
    assert desk.core.engine.imbalance_fen() == 0


ORDER = """
purse | kind    | expires | funds
late  | meal    |      20 |   100
soon  | meal    |       5 |   100
ticket | culture |     9 |   100
both  | any     |       1 |   100
"""


def test_purses_pay_in_the_order_of_the_rules(desk: Desk) -> None:
    for line in ORDER.strip().splitlines()[1:]:
        purse, kind, expires, funds = (cell.strip() for cell in line.split("|"))
        desk.open_purse(f"o{purse}", "100", purse, kind, expires=day(int(expires)))
        desk.fund_purse(f"f{purse}", "100", purse, int(funds))
    assert [purse.purse_id for purse in desk.purses("100")] == ["soon", "ticket", "late", "both", "general"]
    for name, merchant, fen, legs in (
        ("a", "canteen", 50, "soon=50"),
        ("b", "canteen", 200, "soon=50 late=100 both=50"),
        ("c", "shop", 60, "both=50 general=10"),
        ("d", "books", 250, "ticket=100 general=150"),
        ("e", "canteen", 50, "general=50"),
    ):
        answer = desk.authorize(name, fen, merchant=merchant)
        assert " ".join(f"{leg.purse}={leg.amount_fen}" for leg in answer.legs) == legs
    found = {purse.purse_id: (purse.balance_fen, purse.held_fen, purse.purse_kind) for purse in desk.purses("100")}
    assert found == {
        "soon": (100, 100, "meal"), "late": (100, 100, "meal"), "ticket": (100, 100, "culture"), "both": (100, 100, "any"),
        "general": (1_000, 210, "general"),
    }  # fmt: skip


def test_an_expired_purse_pays_nothing_but_what_it_held(desk: Desk) -> None:
    desk.open_purse("o", "100", "m1", "meal", expires=day(1))
    desk.fund_purse("f", "100", "m1", 300)
    desk.core.pass_time(86_400)
    assert desk.authorize("a", 100, merchant="canteen", timeout=100_000).legs[0].purse == "m1"  # its last day
    desk.core.pass_time(86_400)
    assert desk.authorize("b", 100, merchant="canteen").legs[0].purse == "general"
    assert desk.authorize("c", 100, merchant="canteen", legs="m1=100").result == Result.PURSE_EXPIRED
    assert desk.fund_purse("g", "100", "m1", 1).result == Result.PURSE_EXPIRED
    assert desk.purses("100")[0].state == state("EXPIRED")
    assert desk.capture("d", "a", 100).result == Result.ACCEPTED
    assert desk.close_purse("e", "100", "m1").returned_fen == 200
    assert desk.purses("100")[0].state == state("CLOSED")


def test_a_month_of_a_kind_of_purse(desk: Desk) -> None:
    for purse in ("c1", "c2"):
        desk.open_purse(f"o{purse}", "100", purse, "culture")
        desk.fund_purse(f"f{purse}", "100", purse, 600)
    answer = desk.authorize("a", 500, merchant="books", legs="c1=500", timeout=100_000)
    assert answer.result == Result.ACCEPTED
    desk.core.pass_time(86_400)
    answer = desk.authorize("b", 201, merchant="books", legs="c2=201")
    assert (answer.result, answer.limit_id) == (Result.LIMIT_PURSE_MONTH, "culture-month")
    answer = desk.authorize("c", 300, merchant="books")
    assert [(leg.purse, leg.amount_fen) for leg in answer.legs] == [("c1", 100), ("c2", 100), ("general", 100)]
    assert desk.authorize("d", 600, merchant="books").result == Result.ACCEPTED  # all of it from the general purse
    assert desk.available_fen("100") == 300


def test_how_long_a_purse_may_be_good(desk: Desk) -> None:
    assert desk.open_purse("a", "100", "m1", "meal").expires == day(30)
    for expires in (day(-1), day(31), 20250230, 7):
        with pytest.raises(InvalidRequest) as caught:
            desk.open_purse("b", "100", "m2", "meal", expires=expires)
        assert caught.value.field == "expires"
    assert desk.open_purse("c", "100", "m2", "meal", expires=day(0)).result == Result.ACCEPTED


def test_a_card_has_so_many_purses(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PURSES_OF_CARD_MAX", 2)
    desk.open_purse("a", "100", "m1", "meal")
    desk.open_purse("b", "100", "m2", "meal")
    with pytest.raises(InvalidRequest, match="2 purses"):
        desk.open_purse("c", "100", "m3", "meal")
    desk.close_purse("d", "100", "m1")
    assert desk.open_purse("c", "100", "m3", "meal").result == Result.ACCEPTED


def test_bad_requests(desk: Desk) -> None:
    for ask, field in (
        (lambda: desk.open_purse("a", "1x", "m1", "meal"), "card_number"),
        (lambda: desk.open_purse("a", "100", "general", "meal"), "purse_id"),
        (lambda: desk.open_purse("a", "100", "bank:x", "meal"), "purse_id"),
        (lambda: desk.open_purse("a", "100", "m1", "food"), "purse_kind"),
        (lambda: desk.open_purse("a", "100", "m1", "meal", funder="a b"), "funder_id"),
        (lambda: desk.fund_purse("a", "100", "m1", 0), "amount_fen"),
        (lambda: desk.close_purse("a", "100", ""), "purse_id"),
        (lambda: desk.purses(""), "card_number"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            ask()
        assert caught.value.field == field
    with pytest.raises(NotFound):
        desk.purses("999")
