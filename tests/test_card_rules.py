"""Working days and time limits, as the file says them; and what is wrong with a file, by line and field."""

import datetime
from pathlib import Path

import chinese_calendar
import pytest
from prometheus_client import generate_latest

from yikatong.core.metrics import Metrics
from yikatong.core.rules import card_rules
from yikatong.core.rules.card_rules import CardRules
from yikatong.core.rules.source import RuleError, Source

TEXT = card_rules.DEFAULT.read_text()

# Friday 2026-09-25 is a holiday, Sunday 2026-09-20 a working day; the first week of October is off, Saturday the 10th is not.
AFTER = """
day        | working days | after
2026-09-18 | 0            | 2026-09-18
2026-09-18 | 1            | 2026-09-20
2026-09-19 | 0            | 2026-09-20
2026-09-19 | 1            | 2026-09-20
2026-09-24 | 1            | 2026-09-28
2026-09-30 | 1            | 2026-10-08
2026-09-30 | 3            | 2026-10-10
2026-10-03 | 0            | 2026-10-08
2026-10-03 | 12           | 2026-10-22
2026-12-31 | 1            | 2027-01-01
"""


@pytest.mark.parametrize("row", AFTER.strip().splitlines()[1:])
def test_working_days(row: str) -> None:
    day, working_days, after = (cell.strip() for cell in row.split("|"))
    got = card_rules.default().after(datetime.date.fromisoformat(day), int(working_days))
    assert got == datetime.date.fromisoformat(after)


def test_days_off_are_those_of_the_state_council() -> None:
    """Against a package that follows the notices, for each year that the file has."""
    rules = card_rules.default()
    days = sorted(rules.holidays | rules.working_days)
    day, last = datetime.date(days[0].year, 1, 1), datetime.date(days[-1].year, 12, 31)
    differing = []
    while day <= last:
        if rules.is_working_day(day) != chinese_calendar.is_workday(day):
            differing.append(day)
        day += datetime.timedelta(1)
    assert differing == []


@pytest.mark.parametrize("count", [0, 1, 5, 12, 40])
def test_working_days_one_by_one(count: int) -> None:
    """From every day of a year: as many working days lie in between as were asked for, and the end is one."""
    rules = card_rules.default()
    for ordinal in range(365):
        day = datetime.date(2026, 1, 1) + datetime.timedelta(ordinal)
        end = rules.after(day, count)
        assert rules.is_working_day(end)
        between = [day + datetime.timedelta(days) for days in range(1, (end - day).days + 1)]
        worked = sum(map(rules.is_working_day, between))
        assert worked == count or (count == 0 and worked == 1 and not rules.is_working_day(day))


DUE = """
kind      | step     | applied  | reached  | due
ordinary  | applied  | 20260907 | 20260907 | 20260908
ordinary  | at_bank  | 20260907 | 20260909 | 20260911
ordinary  | produced | 20260907 | 20260918 | 20260921
ordinary  | at_bank  | 20260907 | 20260921 | 20260922
expedited | checked  | 20260907 | 20260907 | 20260907
expedited | produced | 20260907 | 20260914 | 20260914
instant   | checked  | 20260907 | 20260907 | 20260907
ordinary  | enabled  | 20260907 | 20260907 | 0
delivered | applied  | 20260907 | 20260907 | 0
"""


@pytest.mark.parametrize("row", DUE.strip().splitlines()[1:])
def test_limits(row: str) -> None:
    """The earlier of the step's own limit and of what is left of the whole."""
    kind, step, applied, reached, due = (cell.strip() for cell in row.split("|"))
    assert card_rules.default().due(kind, step, int(applied), int(reached)) == int(due)


FAULTS = [
    ("version = 1", "version = 2", "version"),
    ("temporary_loss_days = 7", "temporary_loss_days = 0", "temporary_loss_days"),
    ("temporary_loss_days = 7", "temporary_loss_days = 7\nloss = 1", "loss"),
    ("2026-01-04,", "2026-01-01,", "working_days"),
    ("2026-01-04,", "2026-01-04, 2026-01-04,", "working_days[1]"),
    ("2026-01-04,", '"2026-01-04",', "working_days[0]"),
    ("2026-01-04,", "2026-01-04T00:00:00,", "working_days[0]"),
    ("[kinds.instant]\ntotal = 0", "[kinds.instant]\ntotal = -1", "kinds.instant.total"),
    ("[kinds.instant]\ntotal = 0", "[kinds.instant]\ntotal = 0\nsold = 1", "kinds.instant.sold"),
    ("[kinds.instant]\ntotal = 0\n", "", "kinds.instant"),
    ("[kinds.newborn]", "[kinds.other]\ntotal = 1\n[kinds.newborn]", "kinds.other"),
    ("at_bank = 2", 'at_bank = "2"', "kinds.ordinary.at_bank"),
]


@pytest.mark.parametrize(("before", "after", "field"), FAULTS, ids=[field for _, _, field in FAULTS])
def test_a_wrong_file_names_the_field(tmp_path: Path, before: str, after: str, field: str) -> None:
    assert before in TEXT
    file = tmp_path / "rules.toml"
    file.write_text(TEXT.replace(before, after, 1))
    with pytest.raises(RuleError) as caught:
        card_rules.read(file)
    assert caught.value.field == field
    assert caught.value.line >= 1


def test_usual_rules() -> None:
    assert card_rules.parse(Source("rules", TEXT.encode())) == card_rules.default()
    assert CardRules().temporary_loss_s == card_rules.default().temporary_loss_s == 7 * 86_400


def test_each_step_has_its_series_from_the_start() -> None:
    metrics = Metrics(key_versions=[1])
    metrics.on_overdue_counted({"at_factory": 12})
    text = generate_latest(metrics.registry).decode()
    found = [line for line in text.splitlines() if line.startswith("yikatong_issuance_overdue{")]
    assert len(found) == len(card_rules.STEPS)
    assert 'yikatong_issuance_overdue{step="at_factory"} 12.0' in found
