"""Purse rules: the default file is good, and every fault is told with line and field."""

import pytest

from yikatong.core.rules.purse_rules import DEFAULT, EXCEEDED, Period, Scope, parse, read
from yikatong.core.rules.source import RuleError, Source
from yikatong.core.types import Result

GOOD = """\
version = 1
[general]
order = 1000
[[purse_kinds]]
id = "meal"
categories = ["5811-5814", "8299"]
order = 10
validity_days = 30
[[banks]]
id = "bank-a"
[[limits]]
id = "card-day"
scope = "card"
period = "day"
amount_fen_max = 500
[[limits]]
id = "bank-day"
scope = "purse"
purse_kind = "bank"
period = "day"
amount_fen_max = 100
[[limits]]
id = "canteen-month"
scope = "category"
categories = ["5814"]
period = "month"
amount_fen_max = 700
[[limits]]
id = "offline"
scope = "card"
period = "overdraft"
amount_fen_max = 20
[[limits]]
id = "offline-canteen"
scope = "card"
period = "overdraft"
categories = ["5814"]
amount_fen_max = 5
"""


def test_the_default_file_is_good() -> None:
    rules = read()
    assert {"meal", "culture", "transit"} == set(rules.kinds)
    assert len({limit.id for limit in rules.limits}) == len(rules.limits)
    assert DEFAULT.exists()


def test_what_a_file_says() -> None:
    rules = parse(Source("rules.toml", GOOD.encode()))
    meal = rules.kinds["meal"]
    assert [code in meal.categories for code in ("5810", "5811", "5813", "5814", "5815", "8299", "8298")] == [
        False, True, True, True, False, True, False,
    ]  # fmt: skip
    assert (meal.order, meal.validity_days, rules.general_order, rules.banks) == (10, 30, 1000, {"bank-a"})
    by_id = {limit.id: limit for limit in rules.limits}
    assert by_id["card-day"].exceeded is Result.LIMIT_CARD_DAY
    assert by_id["card-day"].concerns("0000")
    assert not by_id["canteen-month"].concerns("5813")
    for category, limit_id in (("5814", "offline-canteen"), ("5813", "offline")):
        overdraft = rules.overdraft(category)
        assert overdraft is not None
        assert overdraft.id == limit_id


def test_every_limit_has_a_code_of_its_own_that_names_it() -> None:
    for (scope, period), result in EXCEEDED.items():
        expected = {
            Period.TRANSACTION: "LIMIT_TRANSACTION",
            Period.OVERDRAFT: "LIMIT_OVERDRAFT",
        }.get(period, f"LIMIT_{scope.name}_{period.name}")
        assert result.name == expected
    assert len(EXCEEDED) == len(Scope) * 3 + 1


FAULTS = [
    # what is replaced, by what, line, field, reason
    ("version = 1", "version = 2", 1, "version", "1 to 1 is wanted"),
    ("version = 1", "versions = 1", 1, "version", "is missing"),
    ("order = 1000\n", "", 2, "general.order", "is missing"),
    ("order = 1000", "order = 1000\nname = 1", 4, "general.name", "no such key"),
    ('id = "meal"', 'id = "Meal"', 5, "purse_kinds[0].id", "not of the form"),
    ('id = "meal"', 'id = "general"', 5, "purse_kinds[0].id", "taken"),
    ('id = "meal"', 'id = "bank"', 5, "purse_kinds[0].id", "taken"),
    ('"5811-5814", "8299"', "", 6, "purse_kinds[0].categories", "at least one"),
    ('"8299"', '"829"', 6, "purse_kinds[0].categories[1]", "4 digits"),
    ('"8299"', '"8299-8211"', 6, "purse_kinds[0].categories[1]", "4 digits"),
    ('"8299"', "8299", 6, "purse_kinds[0].categories[1]", "str is wanted"),
    ("validity_days = 30", "validity_days = 0", 8, "purse_kinds[0].validity_days", "1 to"),
    ("validity_days = 30", "validity_days = 30.0", 8, "purse_kinds[0].validity_days", "whole number"),
    ('id = "bank-a"', 'id = "bank-a"\n[[banks]]\nid = "bank-a"', 12, "banks[1].id", "twice"),
    ('id = "bank-day"', 'id = "card-day"', 17, "limits[1].id", "twice"),
    ('scope = "card"\nperiod = "day"', 'scope = "cards"\nperiod = "day"', 13, "limits[0].scope", "one of card, purse, category"),
    ('period = "month"', 'period = "year"', 26, "limits[2].period", "one of transaction, day, month, overdraft"),
    ('period = "month"', 'period = "overdraft"', 26, "limits[2].period", "scope 'card' only"),
    ('purse_kind = "bank"', 'purse_kind = "food"', 19, "limits[1].purse_kind", "there is no kind"),
    ('purse_kind = "bank"', 'purse_kind = "meal"', 1, "banks", "a limit with scope"),
    ('purse_kind = "bank"\n', "", 16, "limits[1].purse_kind", "is missing"),
    ('scope = "card"\nperiod = "day"', 'scope = "card"\npurse_kind = "meal"\nperiod = "day"', 14, "limits[0].purse_kind", "no"),
    ("amount_fen_max = 500", "amount_fen_max = -1", 15, "limits[0].amount_fen_max", "0 to"),
    ('scope = "category"\ncategories = ["5814"]\n', 'scope = "category"\n', 22, "limits[2].categories", "is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "field", "reason"), FAULTS, ids=[f"{row[3]}-{i}" for i, row in enumerate(FAULTS)])
def test_a_fault_names_line_and_field(old: str, new: str, line: int, field: str, reason: str) -> None:
    assert old in GOOD
    with pytest.raises(RuleError) as caught:
        parse(Source("rules.toml", GOOD.replace(old, new, 1).encode()))
    assert (caught.value.file, caught.value.line, caught.value.field) == ("rules.toml", line, field)
    assert reason in caught.value.reason
