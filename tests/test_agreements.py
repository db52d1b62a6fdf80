"""Agreements: what a file may say, what each fault of one is told as, and shares that add up to the fen."""

import datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yikatong.core.day.positions import Payee
from yikatong.core.rules.agreements import AgreementMissing, Agreements, CapAction, Fee, Per, Refunds
from yikatong.core.rules.shares import divide
from yikatong.core.rules.source import RuleError, Source

HEAD = 'version = "1"\ncity = 5980\n'
BUS = """
[[agreement]]
participant = "operator:bus"
from = 2026-01-01
name = "Bus company"
bank_code = "105598000001"
account_number = "440012345678"
category = "4131"
appeal_days = 30
deny_list_hours = 24
"""
METRO = BUS.replace("operator:bus", "operator:metro")
OTHERS = """
[[agreement]]
participant = "operator:*"
from = 2026-01-01
category = "4111"
appeal_days = 5
deny_list_hours = 12
"""


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def read(text: str) -> Agreements:
    return Agreements(Source("agreements.toml", text.encode()))


def test_everything_that_can_be_said() -> None:
    agreements = read(
        HEAD
        + BUS
        + 'until = 2026-06-30\ntap_fen_max = 5000\nfee = { rate_permille = 3, minimum_fen = 1, cap_fen = 9, per = "window", '
        + 'refunds = "returned" }\nconcessions = { city = 7, operator = 3 }\n'
        + 'debit_cap = { amount_fen = 100, action = "block" }\n'
        + METRO
        + "city = 4403\n"
        + TRANSFER.replace("2026-01-01", "2026-02-01").replace("[1, 1]", "[6, 4]")
    )
    bus = agreements.of(["operator:bus"], day("2026-06-30"))["operator:bus"]
    assert bus.payee == Payee("operator:bus", "Bus company", "105598000001", "440012345678")
    assert bus.fee == Fee(30, 1, 9, Per.WINDOW, Refunds.RETURNED)
    assert (bus.concession_city, bus.concession_operator, bus.tap_fen_max) == (7, 3, 5000)
    assert (bus.debit_cap_fen, bus.debit_cap_action, bus.category) == (100, CapAction.BLOCK, "4131")
    metro = agreements.find("operator:metro", day("2030-01-01"))
    assert metro is not None
    assert (metro.city, metro.fee, metro.debit_cap_fen, metro.concession_operator) == (4403, Fee(), None, 1)
    assert agreements.transfers(day("2026-01-31")) == []
    assert agreements.transfers(day("2026-02-01"))[0].shares == (6, 4)
    assert set(agreements.payees(day("2026-07-01"))) == {"operator:metro"}


def test_what_is_not_named_has_the_stated_agreement_or_none() -> None:
    agreements = read(HEAD + BUS + OTHERS)
    ferry = agreements.find("operator:ferry", day("2026-03-01"))
    assert ferry is not None
    assert (ferry.payee, ferry.category) == (None, "4111")
    with pytest.raises(AgreementMissing, match=r"no agreement on 2026-03-01 with acquirer:a, acquirer:b") as caught:
        agreements.of(["operator:bus", "acquirer:b", "operator:ferry", "acquirer:a"], day("2026-03-01"))
    assert caught.value.participants == ["acquirer:a", "acquirer:b"]


def test_one_that_is_named_never_falls_back_on_the_others() -> None:
    agreements = read(HEAD + BUS + "until = 2026-01-31\n" + OTHERS)
    assert agreements.find("operator:bus", day("2026-02-01")) is None


def test_one_without_an_end_ends_where_the_next_begins() -> None:
    agreements = read(HEAD + BUS + BUS.replace("2026-01-01", "2026-03-01").replace("4131", "4112"))
    found = [agreements.find("operator:bus", day(text)) for text in ("2025-12-31", "2026-02-28", "2026-03-01")]
    assert [agreement and agreement.category for agreement in found] == [None, "4131", "4112"]


TRANSFER = (
    '[[transfer]]\noperators = ["operator:bus", "operator:metro"]\nfrom = 2026-01-01\nwithin_minutes = 9\nshares = [1, 1]\n'
)
FAULTS = [
    # what is added to HEAD, line, field, what is said
    ("", 1, "agreement", "at least one"),
    (BUS + "colour = 1\n", 13, "agreement[0].colour", "no such key"),
    (BUS.replace("operator:bus", "bus"), 5, "agreement[0].participant", "not of the form"),
    (BUS.replace('"4131"', "4131"), 10, "agreement[0].category", "a string is wanted"),
    (BUS.replace("105598000001", "1055"), 8, "agreement[0].bank_code", "not of the form"),
    (BUS.replace("appeal_days = 30\n", ""), 4, "agreement[0].appeal_days", "is missing"),
    (BUS + "until = 2025-01-01\n", 13, "agreement[0].until", "is before 2026-01-01"),
    (BUS + "until = 2026-06-01\n" + BUS.replace("2026-01-01", "2026-06-01"), 17, "agreement[1].from", "lies within another"),
    (BUS + BUS, 16, "agreement[1].from", "lies within another"),
    (BUS + "until = 2026-06-01\n" + BUS.replace("2026-01-01", "2026-06-03"), 17, "agreement[1].from", "2026-06-02 to 2026-06-02"),
    (BUS + "city = 5980\n", 13, "agreement[0].city", "is our own"),
    (BUS + "fee = { rate_bp = 1, rate_permille = 1 }\n", 13, "agreement[0].fee.rate_permille", "one of them"),
    (BUS + "fee = { minimum_fen = 5, cap_fen = 4 }\n", 13, "agreement[0].fee.cap_fen", "below minimum_fen"),
    (BUS + "fee = { rate_bp = 10001 }\n", 13, "agreement[0].fee.rate_bp", "0 to 10000"),
    (BUS + 'fee = { per = "week" }\n', 13, "agreement[0].fee.per", "one of tap, window"),
    (BUS + "concessions = { city = 0 }\n", 13, "agreement[0].concessions", "somebody must bear"),
    (BUS + "concessions = { state = 1 }\n", 13, "agreement[0].concessions.state", "no such key"),
    (BUS + "debit_cap = { amount_fen = 1 }\n", 13, "agreement[0].debit_cap.action", "is missing"),
    (OTHERS + 'name = "all"\n', 10, "agreement[0].name", "is one participant's"),
    (BUS + TRANSFER, 14, "transfer[0].operators", "no agreement with 'operator:metro'"),
    (BUS + METRO + TRANSFER.replace("[1, 1]", "[0, 0]"), 27, "transfer[0].shares", "not both 0"),
    (BUS + METRO + TRANSFER.replace("metro", "bus"), 24, "transfer[0].operators", "two operators"),
    (BUS + METRO + TRANSFER + TRANSFER, 30, "transfer[1].from", "lies within another"),
]


@pytest.mark.parametrize(("text", "line", "field", "says"), FAULTS, ids=[f"{row[2]}: {row[3]}" for row in FAULTS])
def test_faults_are_told_with_line_and_field(text: str, line: int, field: str, says: str) -> None:
    with pytest.raises(RuleError) as caught:
        read(HEAD + text)
    assert (caught.value.line, caught.value.field) == (line, field)
    assert says in caught.value.reason


# ---- shares ----

SHARES = st.lists(st.integers(0, 1_000_000), min_size=1, max_size=8).filter(any)


@given(st.integers(-(10**15), 10**15), SHARES)
def test_parts_add_up_and_each_is_within_a_fen_of_its_share(amount_fen: int, shares: list[int]) -> None:
    parts = divide(amount_fen, shares)
    assert sum(parts) == amount_fen
    for part, share in zip(parts, shares, strict=True):
        assert abs(part - Fraction(amount_fen * share, sum(shares))) < 1


@given(st.integers(0, 10**12), SHARES)
def test_a_larger_share_never_gets_less(amount_fen: int, shares: list[int]) -> None:
    ordered = sorted(shares)
    parts = divide(amount_fen, ordered[::-1])
    assert parts == sorted(parts, reverse=True)


@pytest.mark.parametrize(
    ("amount_fen", "shares", "parts"),
    [(10, [1, 1, 1], [4, 3, 3]), (-10, [1, 1, 1], [-4, -3, -3]), (1, [1, 3], [0, 1]), (0, [2, 1], [0, 0]), (5, [0, 1], [0, 5])],
)
def test_what_is_left_goes_to_the_largest_remainder(amount_fen: int, shares: list[int], parts: list[int]) -> None:
    assert divide(amount_fen, shares) == parts


@pytest.mark.parametrize("shares", [[], [0], [0, 0], [1, -1], [-1, 3]])
def test_shares_that_are_none(shares: list[int]) -> None:
    with pytest.raises(ValueError, match="shares"):
        divide(1, shares)
