"""Who pays what: tables of purses and limits, and properties of every split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yikatong.core.acquiring.paying import (
    Part,
    Refusal,
    Room,
    Source,
    split,
    split_as_asked,
    take_in_order,
    take_in_reverse,
    used,
)
from yikatong.core.rules.purse_rules import Limit, Period, Scope
from yikatong.core.types import Result


def limit_of(text: str) -> Room:
    """card/day=500: a room. purse:meal/day=…: of a kind."""
    name, _, left = text.partition("=")
    scope, _, period = name.partition("/")
    scope, _, kind = scope.partition(":")
    return Room(Limit(name, Scope(scope), Period(period), kind, None, 1 << 40), int(left))


def source_of(text: str) -> Source:
    """meal-1:meal=500: a purse of a kind with so much."""
    name, _, money = text.partition("=")
    purse, _, kind = name.partition(":")
    return Source(purse, kind or purse, int(money))


def told(answer: list[Part] | Refusal) -> str:
    if isinstance(answer, Refusal):
        return " ".join(filter(None, (answer.result.name, answer.limit_id)))
    return " ".join(f"{part.purse}={part.amount_fen}" for part in answer)


SPLITS = """
amount | sources                          | limits                            | who pays
   300 | general=500                      |                                   | general=300
   300 | m1:meal=500 general=500          |                                   | m1=300
   700 | m1:meal=500 general=500          |                                   | m1=500 general=200
   700 | m1:meal=500 general=199          |                                   | INSUFFICIENT_FUNDS
   700 | m1:meal=-5 m2:meal=600 general=100 |                                 | m2=600 general=100
   700 | m1:meal=500 general=-9           |                                   | INSUFFICIENT_FUNDS
   700 | m1:meal=500 general=600          | purse:meal/day=100                | m1=100 general=600
   700 | m1:meal=500 general=500          | purse:meal/day=0                  | LIMIT_PURSE_DAY purse:meal/day
   500 | m1:meal=500 general=500          | purse:meal/day=0                  | general=500
   700 | m1:meal=50 m2:meal=60 general=700 | purse:meal/day=80                | m1=50 m2=30 general=620
   700 | m1:meal=500 general=500          | purse:meal/transaction=10         | LIMIT_TRANSACTION purse:meal/transaction
   510 | m1:meal=500 general=500          | purse:meal/transaction=10         | m1=10 general=500
   700 | m1:meal=500 general=100          | purse:meal/day=0                  | INSUFFICIENT_FUNDS
   700 | general=900                      | card/day=699                      | LIMIT_CARD_DAY card/day
   700 | general=900                      | card/month=700 card/day=700       | general=700
   700 | general=900                      | card/month=600 card/day=600       | LIMIT_CARD_MONTH card/month
   700 | general=0                        | category/day=600                  | LIMIT_CATEGORY_DAY category/day
   700 | general=900                      | category/month=600                | LIMIT_CATEGORY_MONTH category/month
   700 | general=900                      | purse:general/month=600           | LIMIT_PURSE_MONTH purse:general/month
"""


@pytest.mark.parametrize("row", SPLITS.strip().splitlines()[1:])
def test_split(row: str) -> None:
    amount, sources, rooms, expected = (part.strip() for part in row.split("|"))
    answer = split(int(amount), [source_of(each) for each in sources.split()], [limit_of(each) for each in rooms.split()])
    assert told(answer) == expected


ASKED = """
asked               | sources                      | limits             | who pays
general=300 m1=200  | m1:meal=200 general=300      |                    | general=300 m1=200
general=300 m1=201  | m1:meal=200 general=300      |                    | INSUFFICIENT_FUNDS
m1=100 m2=100       | m1:meal=200 m2:meal=300      | purse:meal/day=199 | LIMIT_PURSE_DAY purse:meal/day
m1=100 m2=100       | m1:meal=200 m2:meal=300      | purse:meal/day=200 | m1=100 m2=100
m1=100 bank:a=100   | m1:meal=200 bank:a=9999      | purse:meal/day=100 | m1=100 bank:a=100
m1=100 general=100  | m1:meal=200 general=100      | card/day=199       | LIMIT_CARD_DAY card/day
"""


@pytest.mark.parametrize("row", ASKED.strip().splitlines()[1:])
def test_split_as_asked(row: str) -> None:
    asked, sources, rooms, expected = (part.strip() for part in row.split("|"))
    pairs = [(name, int(fen)) for name, _, fen in (each.rpartition("=") for each in asked.split())]
    purses = {
        name: Source(name, "bank" if name.startswith("bank:") else kind.partition(":")[0] or name, int(fen))
        for name, kind, fen in (
            (each.rpartition("=")[0] if "bank:" in each else each.partition("=")[0].partition(":")[0],
             each.partition("=")[0].partition(":")[2], each.rpartition("=")[2])
            for each in sources.split()
        )
    }  # fmt: skip
    assert told(split_as_asked(pairs, purses, [limit_of(each) for each in rooms.split()])) == expected


def test_an_overdraft_says_so() -> None:
    over = Refusal(Result.LIMIT_OVERDRAFT, "offline")
    meal, general = Source("m1", "meal", 100), Source("general", "general", 50, over)
    assert split(151, [meal, general], []) == over
    assert split_as_asked([("general", 51)], {"general": general}, []) == over
    assert split_as_asked([("m1", 101)], {"m1": meal}, []) == Refusal(Result.INSUFFICIENT_FUNDS)


# ---- properties ----

KINDS = ("meal", "culture", "general")
SOURCES = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(-50, 300)), max_size=5).map(
    lambda rows: [Source(f"p{at}", kind, money_fen) for at, (kind, money_fen) in enumerate(rows)]
)
ROOMS = st.lists(
    st.builds(
        lambda scope, period, kind, left_fen, at: Room(
            Limit(f"{at}", scope, period, kind if scope is Scope.PURSE else "", None, 1 << 40), left_fen
        ),
        st.sampled_from(list(Scope)),
        st.sampled_from([Period.TRANSACTION, Period.DAY, Period.MONTH]),
        st.sampled_from(KINDS),
        st.integers(-5, 400),
        st.integers(),
    ),
    max_size=4,
    unique_by=lambda room: room.limit.id,
)


def within(parts: list[Part], sources: list[Source], rooms: list[Room]) -> bool:
    money = {source.purse: source.money_fen for source in sources}
    return all(0 < part.amount_fen <= money[part.purse] for part in parts) and all(
        used(parts, room.limit) <= max(room.left_fen, 0) for room in rooms
    )


@given(st.integers(1, 600), SOURCES, ROOMS)
def test_a_split_is_exact_in_order_and_within_limits(amount_fen: int, sources: list[Source], rooms: list[Room]) -> None:
    answer = split(amount_fen, sources, rooms)
    if isinstance(answer, Refusal):
        # Nobody could have paid it: the most that can be had, whole limits first, then kind by kind.
        whole = min((room.left_fen for room in rooms if room.limit.scope is not Scope.PURSE), default=amount_fen)
        most = 0
        for kind in KINDS:
            money = sum(max(source.money_fen, 0) for source in sources if source.kind == kind)
            bounds = [max(room.left_fen, 0) for room in rooms if room.limit.purse_kind == kind]
            most += min([money, *bounds])
        assert amount_fen > whole or most < amount_fen
        return
    assert sum(part.amount_fen for part in answer) == amount_fen
    assert within(answer, sources, rooms)
    order = [source.purse for source in sources]
    assert [part.purse for part in answer] == [purse for purse in order if purse in {part.purse for part in answer}]


@given(st.lists(st.integers(0, 50), min_size=1), st.data())
def test_taking_is_exact(available: list[int], data: st.DataObject) -> None:
    amount_fen = data.draw(st.integers(0, sum(available)))
    for taken, order in ((take_in_order(amount_fen, available), 1), (take_in_reverse(amount_fen, available), -1)):
        assert sum(taken) == amount_fen
        assert all(0 <= fen <= place for fen, place in zip(taken, available, strict=True))
        # Who comes later pays nothing before who comes earlier has paid all.
        left = [place - fen for fen, place in zip(taken, available, strict=True)][::order]
        begun = [fen > 0 for fen in taken][::order]
        assert all(not any(begun[at + 1 :]) for at, rest in enumerate(left) if rest)
