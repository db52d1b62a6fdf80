"""Authorisations: the life cycle over all pairs, and tables of operation, result and what is available afterwards."""

from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import CHINA, START_S
from payments import ACQUIRER, MERCHANTS, OTHER_ACQUIRER, Desk, request_id

from yikatong.core import limits
from yikatong.core.acquiring import authorization, authorizations
from yikatong.core.acquiring.authorization import OPEN, TRANSITIONS, Event, State
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.types import Deny, PostingKind, RecordKind, Result
from yikatong.v1 import authorization_service_pb2 as pb

# ---- the life cycle ----

# One row for each state: what becomes of it under each event, written down a second time and in words.
LIFE_CYCLE = """
state              | increment | capture            | final     | void      | expire    | refund             | reverse        | reverse increment | reverse capture    | reverse last capture | reverse refund
HELD               | HELD      | PARTIALLY_CAPTURED | CAPTURED  | VOIDED    | EXPIRED   | no: never captured | REVERSED       | HELD              | no                 | no                   | no
PARTIALLY_CAPTURED | same      | same               | CAPTURED  | CAPTURED  | EXPIRED   | same               | no             | same              | same               | HELD                 | same
CAPTURED           | no: gone  | no: gone           | no: gone  | no: gone  | no: gone  | same               | no             | no                | PARTIALLY_CAPTURED | HELD                 | same
VOIDED             | no: gone  | no: gone           | no: gone  | no: gone  | no: gone  | no: never captured | same           | same              | no                 | no                   | no
EXPIRED            | no: late  | no: late           | no: late  | no: late  | no: late  | same               | same           | same              | same               | same                 | same
DECLINED           | no: gone  | no: gone           | no: gone  | no: gone  | no: gone  | no: never captured | same           | no                | no                 | no                   | no
REVERSED           | no: undone | no: undone        | no: undone | no: undone | no: undone | no: undone      | same           | same              | no                 | no                   | no
"""  # noqa: E501
WORDS = {
    "no": Result.NOT_REVERSIBLE,
    "no: gone": Result.AUTHORIZATION_NOT_HELD,
    "no: late": Result.AUTHORIZATION_EXPIRED,
    "no: undone": Result.REVERSED,
    "no: never captured": Result.REFUND_ABOVE_CAPTURE,
}


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()[1:]]


def test_every_pair_of_state_and_event() -> None:
    expected: dict[tuple[State, Event], State | Result] = {}
    for name, *cells in rows(LIFE_CYCLE):
        for event, cell in zip(Event, cells, strict=True):
            expected[State[name], event] = WORDS.get(cell) or (State[name] if cell == "same" else State[cell])
    assert expected == TRANSITIONS
    assert set(TRANSITIONS) == {(state, event) for state in State for event in Event}


def test_states_are_those_of_the_proto() -> None:
    names = {name.removeprefix("AUTHORIZATION_STATE_"): number for name, number in pb.AuthorizationState.items() if number}
    assert names == dict(State.__members__)


def test_what_is_on_hold_ends_and_what_ended_is_never_held_by_asking() -> None:
    for event in (Event.CAPTURE_FINAL, Event.VOID, Event.EXPIRE):
        assert all(TRANSITIONS[state, event] not in OPEN for state in OPEN)
    forward = [event for event in Event if not event.name.startswith("REVERSE")]
    for state in set(State) - set(OPEN):
        assert all(TRANSITIONS[state, event] not in OPEN for event in forward)


# ---- tables ----


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    with Desk(tmp_path / "data") as made:
        made.register_merchants()
        made.register_merchants(OTHER_ACQUIRER)
        made.card("100", 1_000)
        made.open_purse("open m1", "100", "m1", "meal")
        made.fund_purse("fund m1", "100", "m1", 300)
        yield made


def run(desk: Desk, line: str) -> Any:
    """capture c1 a1 200 final=1: an operation, its name, and what Desk's method takes."""
    operation, *words = line.split()
    if operation == "wait":
        desk.core.pass_time(float(words[0]))
        desk.sweep()
        return None
    plain = [int(word) if word.isdigit() else word for word in words if "=" not in word]
    named: dict[str, Any] = dict(word.split("=", 1) for word in words if "=" in word)
    for name in ("timeout", "final", "offline"):
        if name in named:
            named[name] = int(named[name])
    return getattr(desk, operation)(*plain, **named)


TABLES = {
    "captured whole": """
        operation                       | result   | state    | available | meal | shop | canteen
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        capture c a 400                 | ACCEPTED | CAPTURED |       600 |  300 |  400 |       0
        capture d a 1                   | AUTHORIZATION_NOT_HELD | CAPTURED | 600 | 300 | 400 | 0
        void v a                        | AUTHORIZATION_NOT_HELD | CAPTURED | 600 | 300 | 400 | 0
        """,
    "captured in parts": """
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        capture c a 100                 | ACCEPTED | PARTIALLY_CAPTURED | 600 | 300 | 100 |    0
        capture d a 301                 | CAPTURE_ABOVE_HOLD | PARTIALLY_CAPTURED | 600 | 300 | 100 | 0
        capture e a 100                 | ACCEPTED | PARTIALLY_CAPTURED | 600 | 300 | 200 |    0
        capture f a 50 final=1          | ACCEPTED | CAPTURED |       750 |  300 |  250 |       0
        refund r a 250                  | ACCEPTED | CAPTURED |      1000 |  300 |    0 |       0
        """,
    "a hold counts at once": """
        authorize a 700                 | ACCEPTED | HELD     |       300 |  300 |    0 |       0
        authorize b 301                 | INSUFFICIENT_FUNDS | DECLINED | 300 | 300 | 0 |      0
        authorize c 300                 | ACCEPTED | HELD     |         0 |  300 |    0 |       0
        capture d b 301                 | AUTHORIZATION_NOT_HELD | DECLINED | 0 | 300 | 0 |     0
        refund e b 1                    | REFUND_ABOVE_CAPTURE | DECLINED | 0 | 300 | 0 |       0
        void v a                        | ACCEPTED | VOIDED   |       700 |  300 |    0 |       0
        void w a                        | AUTHORIZATION_NOT_HELD | VOIDED | 700 | 300 | 0 |     0
        """,
    "increments": """
        authorize a 100                 | ACCEPTED | HELD     |       900 |  300 |    0 |       0
        increment i a 850               | ACCEPTED | HELD     |        50 |  300 |    0 |       0
        increment j a 51                | INSUFFICIENT_FUNDS | HELD | 50  |  300 |    0 |       0
        capture c a 900                 | ACCEPTED | PARTIALLY_CAPTURED | 50 | 300 | 900 |     0
        increment k a 10                | ACCEPTED | PARTIALLY_CAPTURED | 40 | 300 | 900 |     0
        void v a                        | ACCEPTED | CAPTURED |       100 |  300 |  900 |       0
        increment l a 10                | AUTHORIZATION_NOT_HELD | CAPTURED | 100 | 300 | 900 | 0
        """,
    "refunds": """
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        refund r a 1                    | REFUND_ABOVE_CAPTURE | HELD | 600 | 300 |   0 |       0
        capture c a 300 final=1         | ACCEPTED | CAPTURED |       700 |  300 |  300 |       0
        refund s a 100                  | ACCEPTED | CAPTURED |       800 |  300 |  200 |       0
        refund t a 201                  | REFUND_ABOVE_CAPTURE | CAPTURED | 800 | 300 | 200 |   0
        refund u a 200                  | ACCEPTED | CAPTURED |      1000 |  300 |    0 |       0
        refund w a 1                    | REFUND_ABOVE_CAPTURE | CAPTURED | 1000 | 300 | 0 |    0
        """,
    "time runs out": """
        authorize a 400 timeout=60      | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        wait 59.9                       |          |          |       600 |  300 |    0 |       0
        capture c a 100                 | ACCEPTED | PARTIALLY_CAPTURED | 600 | 300 | 100 |    0
        wait 0.1                        |          |          |       900 |  300 |  100 |       0
        capture d a 100                 | AUTHORIZATION_EXPIRED | EXPIRED | 900 | 300 | 100 |   0
        increment i a 100               | AUTHORIZATION_EXPIRED | EXPIRED | 900 | 300 | 100 |   0
        void v a                        | AUTHORIZATION_EXPIRED | EXPIRED | 900 | 300 | 100 |   0
        refund r a 101                  | REFUND_ABOVE_CAPTURE | EXPIRED | 900 | 300 | 100 |    0
        refund s a 100                  | ACCEPTED | EXPIRED  |      1000 |  300 |    0 |       0
        """,
    "more time": """
        authorize a 400 timeout=60      | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        wait 50                         |          |          |       600 |  300 |    0 |       0
        increment i a 100 timeout=60    | ACCEPTED | HELD     |       500 |  300 |    0 |       0
        wait 59                         |          |          |       500 |  300 |    0 |       0
        capture c a 500                 | ACCEPTED | CAPTURED |       500 |  300 |  500 |       0
        wait 60                         |          |          |       500 |  300 |  500 |       0
        """,
    "reversal of an authorisation": """
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        reverse x a                     | ACCEPTED | REVERSED |      1000 |  300 |    0 |       0
        reverse y a                     | ACCEPTED | REVERSED |      1000 |  300 |    0 |       0
        capture c a 100                 | REVERSED | REVERSED |      1000 |  300 |    0 |       0
        authorize a 400                 | REVERSED | -        |      1000 |  300 |    0 |       0
        """,
    "reversal before its original": """
        reverse x a                     | ACCEPTED | -        |      1000 |  300 |    0 |       0
        authorize a 400                 | REVERSED | -        |      1000 |  300 |    0 |       0
        authorize a 400                 | REVERSED | -        |      1000 |  300 |    0 |       0
        authorize b 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        reverse y c                     | ACCEPTED | -        |       600 |  300 |    0 |       0
        capture c b 400                 | REVERSED | -        |       600 |  300 |    0 |       0
        capture d b 400                 | ACCEPTED | CAPTURED |       600 |  300 |  400 |       0
        """,
    "reversal of a capture": """
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        capture c a 300 final=1         | ACCEPTED | CAPTURED |       700 |  300 |  300 |       0
        reverse x a                     | NOT_REVERSIBLE | CAPTURED | 700 |  300 |  300 |       0
        reverse y c                     | ACCEPTED | HELD     |       700 |  300 |    0 |       0
        capture d a 200                 | ACCEPTED | PARTIALLY_CAPTURED | 700 | 300 | 200 |    0
        capture e a 100                 | ACCEPTED | CAPTURED |       700 |  300 |  300 |       0
        refund r a 150                  | ACCEPTED | CAPTURED |       850 |  300 |  150 |       0
        reverse z d                     | NOT_REVERSIBLE | CAPTURED | 850 |  300 |  150 |       0
        reverse u r                     | ACCEPTED | CAPTURED |       700 |  300 |  300 |       0
        reverse v d                     | ACCEPTED | PARTIALLY_CAPTURED | 700 | 300 | 100 |    0
        wait 600                        |          |          |       900 |  300 |  100 |       0
        reverse w e                     | ACCEPTED | EXPIRED  |      1000 |  300 |    0 |       0
        """,
    "a capture reversed when time is over": """
        authorize a 400 timeout=60      | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        capture c a 400                 | ACCEPTED | CAPTURED |       600 |  300 |  400 |       0
        wait 60                         |          |          |       600 |  300 |  400 |       0
        reverse x c                     | ACCEPTED | EXPIRED  |      1000 |  300 |    0 |       0
        """,
    "reversal of increments": """
        authorize a 100                 | ACCEPTED | HELD     |       900 |  300 |    0 |       0
        increment i a 200               | ACCEPTED | HELD     |       700 |  300 |    0 |       0
        increment j a 300               | ACCEPTED | HELD     |       400 |  300 |    0 |       0
        reverse x i                     | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        capture c a 150                 | ACCEPTED | PARTIALLY_CAPTURED | 600 | 300 | 150 |    0
        reverse y j                     | NOT_REVERSIBLE | PARTIALLY_CAPTURED | 600 | 300 | 150 | 0
        void v a                        | ACCEPTED | CAPTURED |       850 |  300 |  150 |       0
        reverse z v                     | NOT_REVERSIBLE | CAPTURED | 850 |  300 |  150 |       0
        """,
    "an increment reversed after its base was captured": """
        authorize a 100                 | ACCEPTED | HELD     |       900 |  300 |    0 |       0
        increment i a 200               | ACCEPTED | HELD     |       700 |  300 |    0 |       0
        capture c a 100                 | ACCEPTED | PARTIALLY_CAPTURED | 700 | 300 | 100 |    0
        reverse x i                     | ACCEPTED | CAPTURED |       900 |  300 |  100 |       0
        """,
    "a refund is reversed only with money": """
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        capture c a 400                 | ACCEPTED | CAPTURED |       600 |  300 |  400 |       0
        refund r a 400                  | ACCEPTED | CAPTURED |      1000 |  300 |    0 |       0
        authorize b 601                 | ACCEPTED | HELD     |       399 |  300 |    0 |       0
        reverse x r                     | INSUFFICIENT_FUNDS | CAPTURED | 399 | 300 | 0 |       0
        void v b                        | ACCEPTED | VOIDED   |      1000 |  300 |    0 |       0
        reverse y r                     | ACCEPTED | CAPTURED |       600 |  300 |  400 |       0
        """,
    "the meal purse pays first where it fits": """
        authorize a 100 merchant=shop   | ACCEPTED | HELD     |       900 |  300 |    0 |       0
        authorize b 200 merchant=canteen | ACCEPTED | HELD    |       900 |  100 |    0 |       0
        authorize c 100 merchant=canteen | ACCEPTED | HELD    |       850 |   50 |    0 |       0
        capture d b 200                 | ACCEPTED | CAPTURED |       850 |   50 |    0 |     200
        capture e c 60                  | ACCEPTED | PARTIALLY_CAPTURED | 850 | 50 | 0 |     260
        refund r c 20                   | ACCEPTED | PARTIALLY_CAPTURED | 860 | 60 | 0 |     240
        void v c                        | ACCEPTED | CAPTURED |       900 |   60 |    0 |     240
        """,
    "legs as asked": """
        authorize a 300 merchant=canteen legs=general=200+m1=100 | ACCEPTED | HELD | 800 | 200 | 0 | 0
        capture c a 250                 | ACCEPTED | PARTIALLY_CAPTURED | 800 | 200 | 0 |    250
        refund r a 60                   | ACCEPTED | PARTIALLY_CAPTURED | 810 | 250 | 0 |    190
        refund s a 20 legs=general=20   | ACCEPTED | PARTIALLY_CAPTURED | 830 | 250 | 0 |    170
        refund t a 20 legs=m1=20        | REFUND_ABOVE_CAPTURE | PARTIALLY_CAPTURED | 830 | 250 | 0 | 170
        refund u a 20 legs=m2=20        | REFUND_ABOVE_CAPTURE | PARTIALLY_CAPTURED | 830 | 250 | 0 | 170
        authorize b 10 merchant=shop legs=m1=10 | PURSE_CATEGORY | DECLINED | 830 | 250 | 0 | 170
        authorize d 10 merchant=canteen legs=m9=10 | PURSE_UNKNOWN | DECLINED | 830 | 250 | 0 | 170
        authorize e 10 legs=bank:none=10 | PURSE_UNKNOWN | DECLINED |  830 |  250 |    0 |     170
        """,
    "a leg on a bank account": """
        authorize a 500 merchant=canteen legs=m1=100+bank:icbc=300+general=100 | ACCEPTED | HELD | 900 | 200 | 0 | 0
        capture c a 350                 | ACCEPTED | PARTIALLY_CAPTURED | 900 | 200 | 0 |    350
        authorize b 150 legs=bank:ccb=150 | LIMIT_PURSE_DAY | DECLINED | 900 | 200 |  0 |    350
        capture d a 150                 | ACCEPTED | CAPTURED |       900 |  200 |    0 |     500
        reverse x d                     | ACCEPTED | PARTIALLY_CAPTURED | 900 | 200 | 0 |    350
        void v a                        | ACCEPTED | CAPTURED |      1000 |  200 |    0 |     350
        refund r a 350                  | ACCEPTED | CAPTURED |      1000 |  300 |    0 |       0
        """,
    "all legs or none": """
        authorize a 1301 merchant=canteen | INSUFFICIENT_FUNDS | DECLINED | 1000 | 300 | 0 |   0
        authorize b 1300 merchant=canteen | LIMIT_PURSE_DAY | DECLINED | 1000 | 300 | 0 |      0
        authorize c 1250 merchant=canteen | ACCEPTED | HELD   |         0 |   50 |    0 |       0
        reverse x c                     | ACCEPTED | REVERSED |      1000 |  300 |    0 |       0
        """,
    "offline": """
        authorize a 1100                | INSUFFICIENT_FUNDS | DECLINED | 1000 | 300 | 0 |      0
        authorize b 1101 offline=1      | LIMIT_OVERDRAFT | DECLINED | 1000 | 300 |   0 |       0
        authorize c 1100 offline=1      | ACCEPTED | HELD     |      -100 |  300 |    0 |       0
        authorize d 1 offline=1         | LIMIT_OVERDRAFT | DECLINED | -100 | 300 |   0 |       0
        capture e c 1100                | ACCEPTED | CAPTURED |      -100 |  300 | 1100 |       0
        authorize f 1                   | INSUFFICIENT_FUNDS | DECLINED | -100 | 300 | 1100 |   0
        """,
    "same name, other content": """
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        authorize a 401                 | CONFLICT | -        |       600 |  300 |    0 |       0
        capture c a 100                 | ACCEPTED | PARTIALLY_CAPTURED | 600 | 300 | 100 |    0
        capture c a 101                 | CONFLICT | -        |       600 |  300 |  100 |       0
        capture a a 100                 | CONFLICT | -        |       600 |  300 |  100 |       0
        refund c a 100                  | CONFLICT | -        |       600 |  300 |  100 |       0
        capture c a 100                 | ACCEPTED | PARTIALLY_CAPTURED | 600 | 300 | 100 |    0
        """,
    "another acquirer's": """
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        capture c a 100 acquirer=other  | AUTHORIZATION_UNKNOWN | - |  600 |  300 |    0 |       0
        void v a acquirer=other         | AUTHORIZATION_UNKNOWN | - |  600 |  300 |    0 |       0
        refund r a 1 acquirer=other     | AUTHORIZATION_UNKNOWN | - |  600 |  300 |    0 |       0
        reverse x a acquirer=other      | ACCEPTED | -        |       600 |  300 |    0 |       0
        capture d nothing 1             | AUTHORIZATION_UNKNOWN | - |  600 |  300 |    0 |       0
        void e a acquirer=other         | AUTHORIZATION_UNKNOWN | - |  600 |  300 |    0 |       0
        increment f a 10                | ACCEPTED | HELD     |       590 |  300 |    0 |       0
        capture g f 10                  | AUTHORIZATION_UNKNOWN | - |  590 |  300 |    0 |       0
        reverse y f                     | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        authorize a 400                 | ACCEPTED | HELD     |       600 |  300 |    0 |       0
        """,
    "who is unknown": """
        authorize a 400 card=999        | UNKNOWN_CARD | -    |      1000 |  300 |    0 |       0
        authorize b 400 merchant=nobody | MERCHANT_UNKNOWN | - |     1000 |  300 |    0 |       0
        capture c a 400                 | AUTHORIZATION_UNKNOWN | - | 1000 |  300 |    0 |       0
        reverse x b                     | ACCEPTED | -        |      1000 |  300 |    0 |       0
        """,
}


@pytest.mark.parametrize("name", TABLES)
def test_table(desk: Desk, name: str) -> None:
    for line in TABLES[name].strip().splitlines():
        operation, result, state, *money = (cell.strip() for cell in line.split("|"))
        if operation == "operation":
            continue
        answer = run(desk, operation)
        if answer is not None:
            got = State(answer.state).name if answer.state else "-"
            assert (Result(answer.result).name, got) == (result, state), line
            if answer.state:
                assert answer.available_after_fen == desk.available_fen("100"), line
        ledger = [
            desk.available_fen("100"), desk.available_fen("100", "m1"), desk.payable_fen("shop"), desk.payable_fen("canteen")
        ]  # fmt: skip
        assert ledger == [int(cell) for cell in money], line
        assert desk.core.engine.imbalance_fen() == 0


# ---- limits ----

LIMIT_ROWS = """
operation                                     | result               | limit
authorize a 4001                              | LIMIT_TRANSACTION    | once
authorize b 4000                              | ACCEPTED             |
authorize c 1001                              | LIMIT_CARD_DAY       | card-day
authorize d 1000                              | ACCEPTED             |
authorize e 1                                 | LIMIT_CARD_DAY       | card-day
void v d                                      | ACCEPTED             |
authorize f 500                               | ACCEPTED             |
capture g f 100 final=1                       | ACCEPTED             |
authorize h 901                               | LIMIT_CARD_DAY       | card-day
refund r f 100                                | ACCEPTED             |
authorize i 901                               | LIMIT_CARD_DAY       | card-day
authorize j 900 timeout=60                    | ACCEPTED             |
wait 60                                       |                      |
authorize k 900                               | ACCEPTED             |
reverse x k                                   | ACCEPTED             |
wait 86400                                    |                      |
authorize l 901 merchant=books                | LIMIT_CATEGORY_DAY   | books-day
authorize m 900 merchant=books                | ACCEPTED             |
authorize n 1 merchant=books                  | LIMIT_CATEGORY_DAY   | books-day
wait 86400                                    |                      |
authorize o 500 merchant=books                | ACCEPTED             |
increment p o 401                             | LIMIT_CATEGORY_DAY   | books-day
increment q o 100                             | ACCEPTED             |
wait 86400                                    |                      |
authorize s 10 merchant=books                 | LIMIT_CATEGORY_MONTH | books-month
authorize t 1901                              | ACCEPTED             |
authorize u 100 legs=bank:icbc=100            | ACCEPTED             |
authorize w 301 legs=bank:ccb=301             | LIMIT_PURSE_DAY      | bank-day
"""


def test_limits(desk: Desk) -> None:
    """b 4000 … stay on hold for the month that the table runs."""
    desk.core.top_up("100", 50_000)
    for operation, result, limit_id in rows(LIMIT_ROWS):
        line = operation if "timeout=" in operation or not operation.startswith("authorize") else f"{operation} timeout=2000000"
        answer = run(desk, line)
        if answer is not None:
            assert Result(answer.result).name == result, operation
            if operation.split()[0] in ("authorize", "increment"):
                assert answer.limit_id == limit_id, operation


def test_a_month_of_a_card(desk: Desk) -> None:
    desk.core.top_up("100", 50_000)
    for day, fen, result in ((1, 4_000, Result.ACCEPTED), (2, 4_000, Result.ACCEPTED), (3, 1, Result.LIMIT_CARD_MONTH)):
        assert desk.authorize(f"a{day}", fen).result == result
        assert desk.capture(f"c{day}", f"a{day}", fen).result == (
            Result.ACCEPTED if result is Result.ACCEPTED else Result.AUTHORIZATION_NOT_HELD
        )
        desk.core.pass_time(86_400)
    desk.core.now_us = int(datetime(2025, 2, 1, tzinfo=CHINA).timestamp()) * 1_000_000
    assert desk.authorize("new month", 4_000).result == Result.ACCEPTED


def test_days_begin_at_midnight_in_china(desk: Desk) -> None:
    desk.core.top_up("100", 50_000)
    midnight = datetime.fromtimestamp(START_S, CHINA).replace(hour=0, minute=0, second=0) + timedelta(days=1)
    desk.core.now_us = int(midnight.timestamp()) * 1_000_000 - 1
    assert desk.authorize("a", 4_000).result == Result.ACCEPTED
    assert desk.authorize("b", 4_000).result == Result.LIMIT_CARD_DAY
    desk.core.now_us += 1
    assert desk.authorize("c", 4_000).result == Result.ACCEPTED


def test_what_yesterday_used_is_not_given_back_to_today(desk: Desk) -> None:
    desk.core.top_up("100", 50_000)
    assert desk.authorize("a", 3_000, timeout=200_000).result == Result.ACCEPTED
    desk.core.pass_time(86_400)
    assert desk.authorize("b", 3_000).result == Result.ACCEPTED
    assert desk.void("v", "a").result == Result.ACCEPTED
    assert desk.authorize("c", 2_001).limit_id == "card-day"
    assert desk.authorize("d", 2_000).result == Result.ACCEPTED  # the month has room again


# ---- more than the tables can say ----


def test_answers_are_given_again_and_say_so(desk: Desk) -> None:
    first = desk.authorize("a", 400)
    captured = desk.capture("c", "a", 400)
    declined = desk.authorize("b", 9_999)
    desk.core.top_up("100", 50_000)
    for answer, again in (
        (first, desk.authorize("a", 400)),
        (captured, desk.capture("c", "a", 400)),
        (declined, desk.authorize("b", 9_999)),
    ):
        assert again.duplicate
        again.duplicate = False
        assert again == answer
    assert first.legs == [pb.Leg(purse="general", amount_fen=400)]
    assert first.sequence == first.authorization_id


def test_an_authorisation_tells_its_life(desk: Desk) -> None:
    desk.authorize("a", 300, merchant="canteen")
    desk.capture("c", "a", 100)
    desk.refund("r", "a", 30)
    desk.reverse("x", "r")
    desk.core.pass_time(600)
    found = desk.get("a")
    kinds = [pb.AuthorizationOperationKind.Name(each.kind).rpartition("_")[2] for each in found.operations]
    assert kinds == ["AUTHORIZE", "CAPTURE", "REFUND", "REVERSE", "EXPIRE"]
    assert [each.amount_fen for each in found.operations] == [300, 100, 30, 30, 200]
    assert [each.reversed for each in found.operations] == [False, False, True, False, False]
    assert found.operations[0].request_id == found.request_id == request_id("a")
    assert (found.held_fen, found.captured_fen, found.refunded_fen, found.authorized_fen) == (0, 100, 0, 300)
    assert {use.limit_id: use.amount_fen for use in found.limit_uses} == {
        "card-day": 100, "card-month": 100, "meal-day": 100,
    }  # fmt: skip
    with pytest.raises(NotFound):
        desk.get("a", OTHER_ACQUIRER)


def test_looked_at_late_it_is_expired_though_nothing_swept(desk: Desk) -> None:
    desk.authorize("a", 400, timeout=60)
    desk.core.pass_time(60)
    request = pb.GetAuthorizationRequest(acquirer_id=ACQUIRER, authorize_request_id=request_id("a"))
    found = desk.core.ask(authorizations.get_authorization, request).authorization  # without the sweep before it
    assert (found.state, found.held_fen) == (State.EXPIRED, 0)
    assert desk.available_fen("100") == 1_000


def test_the_sweep_is_bounded_and_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXPIRIES_MAX", 3)
    for at in range(8):
        desk.authorize(f"a{at}", 10, timeout=60 + at)
    desk.core.pass_time(66)
    memory, now_us = desk.core.memory, desk.core.now_us
    assert [authorization.expire_due(memory, now_us) for _ in range(4)] == [3, 3, 1, 0]
    desk.core.take()
    desk.core.commit()
    assert desk.available_fen("100") == 990
    assert desk.get("a7").state == State.HELD


def test_postings_carry_their_kind_and_card(desk: Desk) -> None:
    desk.authorize("a", 300)
    answers = [desk.capture("c", "a", 200), desk.refund("r", "a", 50), desk.reverse("x", "r"), desk.reverse("y", "c")]
    kinds = []
    for answer in answers:
        at = answer.sequence + 1
        while desk.core.engine.next_sequence > at and (record := desk.core.record(at))["kind"] != RecordKind.EVENT:
            if record["kind"] == RecordKind.POSTING:
                assert record["card"] == desk.core.engine.find_card("100")
                kinds.append((PostingKind(int(record["transaction_type"])), int(record["amount_fen"])))
            at += 1
    assert kinds == [
        (PostingKind.CAPTURE, 200), (PostingKind.REFUND, 50), (PostingKind.REFUND_REVERSAL, 50),
        (PostingKind.CAPTURE_REVERSAL, 200),
    ]  # fmt: skip


def test_cards_that_may_not_pay(desk: Desk) -> None:
    from yikatong.core.change import Change

    desk.card("101", 500, expires=20250101)
    desk.card("102", 500)
    assert desk.authorize("a", 10, card="101", timeout=0).result == Result.ACCEPTED  # its last day
    assert desk.authorize("b", 10, card="102", timeout=0).result == Result.ACCEPTED
    desk.core.pass_time(86_400)
    change = Change(desk.core.memory, desk.core.now_us)
    change.deny(desk.core.engine.find_card("102"), Deny.LOSS)
    change.commit("loss")
    assert desk.authorize("c", 10, card="101").result == Result.CARD_EXPIRED
    assert desk.authorize("d", 10, card="102").result == Result.CARD_DENIED
    assert desk.increment("i", "b", 10).result == Result.CARD_DENIED
    assert desk.capture("e", "b", 10).result == Result.ACCEPTED  # what is on hold is promised
    assert desk.refund("f", "b", 10).result == Result.ACCEPTED


def test_a_batch_stands_item_by_item(desk: Desk) -> None:
    items = [
        desk.authorize_request("a", 600),
        desk.authorize_request("b", 500),
        desk.authorize_request("c", 0),
        desk.authorize_request("d", 400),
        desk.authorize_request("a", 600),
        desk.authorize_request("e", 1, merchant_category="4111"),
        desk.authorize_request("f", 1, card="9x"),
        desk.authorize_request("g", 2, legs="general=1"),
        desk.authorize_request("h", 1, timeout=limits.HOLD_S_MAX + 1),
    ]
    request = pb.BatchAuthorizeRequest(requests=items)
    answers = desk.ask(partial(authorizations.batch_authorize, desk.rules), request).responses
    assert [(Result(answer.result).name, answer.duplicate, answer.invalid_field) for answer in answers] == [
        ("ACCEPTED", False, ""),
        ("INSUFFICIENT_FUNDS", False, ""),
        ("MALFORMED_AMOUNT", False, "amount_fen"),
        ("ACCEPTED", False, ""),
        ("ACCEPTED", True, ""),
        ("MALFORMED_KIND", False, "merchant_category"),
        ("MALFORMED_CARD_NUMBER", False, "card_number"),
        ("MALFORMED_AMOUNT", False, "legs"),
        ("MALFORMED_TIME", False, "timeout_s"),
    ]
    assert desk.available_fen("100") == 0


def test_lists_are_newest_first_in_pages(desk: Desk) -> None:
    desk.card("101", 1_000)
    for at in range(7):
        desk.authorize(f"a{at}", 10 + at, merchant=("shop", "canteen")[at % 2], card=("100", "101")[at // 4], timeout=60 + at)
    desk.authorize("o", 99, acquirer_id=OTHER_ACQUIRER)
    desk.core.pass_time(62)

    def amounts(**of: str) -> list[int]:
        found: list[int] = []
        token = ""
        while True:
            page = desk.list(2, token, **of)
            assert 1 <= len(page.authorizations) <= 2
            found += [each.authorized_fen for each in page.authorizations]
            token = page.next_page_token
            if not token:
                return found

    assert amounts(card_number="100") == [99, 13, 12, 11, 10]
    assert amounts(card_number="101") == [16, 15, 14]
    assert amounts(acquirer_id=ACQUIRER) == [16, 15, 14, 13, 12, 11, 10]
    assert amounts(acquirer_id=ACQUIRER, merchant_id="canteen") == [15, 13, 11]
    assert amounts(acquirer_id=OTHER_ACQUIRER) == [99]
    assert [State(each.state) for each in desk.list(acquirer_id=ACQUIRER).authorizations] == [State.HELD] * 4 + [
        State.EXPIRED
    ] * 3
    assert list(desk.list(acquirer_id="nobody").authorizations) == []
    token = desk.list(2, acquirer_id=ACQUIRER).next_page_token
    for of, field in (
        ({"card_number": "100", "page_token": token}, "page_token"),
        ({"acquirer_id": ACQUIRER, "page_token": "x"}, "page_token"),
        ({"acquirer_id": ACQUIRER, "page_size": 1_001}, "page_size"),
        ({"card_number": "100", "acquirer_id": ACQUIRER}, "card_number"),
        ({"card_number": "1x"}, "card_number"),
        ({}, "acquirer_id"),
        ({"acquirer_id": ACQUIRER, "merchant_id": "a:b"}, "merchant_id"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            desk.list(**of)  # type: ignore[arg-type]
        assert caught.value.field == field


BAD_REQUESTS = [
    # operation, what of it, the field that is named
    ("authorize a 10", {"request_id": b"short"}, "request_id"),
    ("authorize a 10", {"acquirer_id": "a:b"}, "acquirer_id"),
    ("authorize a 10", {"acquirer_id": "a" * 33}, "acquirer_id"),
    ("authorize a 10", {"merchant_id": ""}, "merchant_id"),
    ("authorize a 10", {"merchant_category": "599"}, "merchant_category"),
    ("authorize a 10", {"merchant_category": "59９9"}, "merchant_category"),
    ("authorize a 10", {"merchant_category": "5814"}, "merchant_category"),
    ("authorize a 0", {}, "amount_fen"),
    (f"authorize a {limits.AUTHORIZATION_FEN_MAX + 1}", {}, "amount_fen"),
    ("authorize a 10", {"legs": "general=9"}, "legs"),
    ("authorize a 10", {"legs": "general=5+general=5"}, "legs[1].purse"),
    ("authorize a 10", {"legs": "general=10+m1=0"}, "legs[1].amount_fen"),
    ("authorize a 10", {"legs": "bank:=10"}, "legs[0].purse"),
    ("authorize a 10", {"legs": "M1=10"}, "legs[0].purse"),
    ("authorize a 30", {"legs": "+".join(f"p{at}=1" for at in range(30))}, "legs"),
    ("capture c a 0", {}, "amount_fen"),
    ("refund c a 0", {}, "amount_fen"),
    ("refund c a 10", {"legs": "general=9"}, "legs"),
    ("increment c a 0", {}, "amount_fen"),
    ("increment c a 10", {"timeout": limits.HOLD_S_MAX + 1}, "timeout_s"),
    ("void v a", {"acquirer": ""}, "acquirer_id"),
    ("reverse x x", {}, "original_request_id"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "fields", "field"), BAD_REQUESTS, ids=[f"{row[2]}-{i}" for i, row in enumerate(BAD_REQUESTS)]
)
def test_a_bad_request_is_told_which_field(desk: Desk, operation: str, fields: dict[str, Any], field: str) -> None:
    name, *words = operation.split()
    before = desk.core.engine.next_sequence
    with pytest.raises(InvalidRequest) as caught:
        getattr(desk, name)(*[int(word) if word.isdigit() else word for word in words], **fields)
    assert caught.value.field == field
    assert desk.core.engine.next_sequence == before


def test_a_request_without_key(desk: Desk) -> None:
    for request, field in (
        (pb.CaptureRequest(request_id=bytes(16), acquirer_id=ACQUIRER, amount_fen=1), "key"),
        (pb.CaptureRequest(request_id=bytes(16), acquirer_id=ACQUIRER, amount_fen=1, authorize_request_id=b"1"),
         "authorize_request_id"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            desk.ask(authorizations.capture, request)
        assert caught.value.field == field


def test_an_authorisation_takes_so_many_operations(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPERATIONS_MAX", 3)
    desk.authorize("a", 100)
    desk.capture("c", "a", 10)
    desk.capture("d", "a", 10)
    with pytest.raises(InvalidRequest, match="3 operations"):
        desk.capture("e", "a", 10)
    assert desk.reverse("x", "d").result == Result.ACCEPTED
    desk.core.pass_time(600)
    desk.sweep()
    assert desk.get("a").state == State.EXPIRED
    assert desk.available_fen("100") == 990


def test_merchants_are_registered_once(desk: Desk) -> None:
    answers = desk.register_merchants(shop="5999", canteen="5999", new="4111")
    assert [(Result(answer.result).name, answer.duplicate) for answer in answers] == [
        ("ACCEPTED", True), ("CONFLICT", False), ("ACCEPTED", False),
    ]  # fmt: skip
    assert desk.account_fen("acquirer:acq:new") == (0, 0)
    for fields, field in (({"a:b": "5999"}, "merchant_id"), ({"x": "59"}, "merchant_category")):
        (answer,) = desk.register_merchants(**fields)
        assert answer.invalid_field == field
    (answer,) = desk.register_merchants("", x="5999")
    assert (answer.result, answer.invalid_field) == (Result.MALFORMED_OPERATOR, "acquirer_id")
    assert set(MERCHANTS) == {"shop", "canteen", "books"}
