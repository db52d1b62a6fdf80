"""Rule files: every fault with its line and field."""

import pytest

from yikatong.core.rules.source import RuleError, Source

TEXT = b"""# a comment
version = 3
effective = 2026-01-31

[bands]
peak.start = 07:00:00

[[fares]]
id = "bus"
amount_fen = 200

[[fares]]
id = "metro"
amount_fen = -1
[[fares.steps]]
from_m = 0
[[fares.steps]]
from_m = "x"
typo = 1
"""


def fault(read) -> RuleError:
    with pytest.raises(RuleError) as caught:
        read()
    return caught.value


def test_faults_name_line_and_field():
    top = Source("t.toml", TEXT).fields()
    assert top.integer("version", 1, 9) == 3
    assert top.date("effective").isoformat() == "2026-01-31"
    assert top.table("bands").table("peak").time("start").hour == 7
    bus, metro = top.tables("fares")
    assert bus.text("id") == "bus"
    assert str(fault(bus.done)) == "t.toml:10: fares[0].amount_fen: there is no such key here"
    assert str(fault(lambda: metro.integer("amount_fen", 0, 9))) == ("t.toml:14: fares[1].amount_fen: 0 to 9 is wanted, not -1")
    steps = list(metro.tables("steps"))
    wrong = fault(lambda: steps[1].integer("from_m", 0, 9))
    assert (wrong.line, wrong.field) == (18, "fares[1].steps[1].from_m")
    missing = fault(lambda: steps[0].flag("open"))
    assert (missing.line, missing.field) == (15, "fares[1].steps[0].open")
    assert top.choice("nothing", {"a": 1}, None) is None
    assert fault(lambda: bus.choice("id", {"a": 1})).reason == "one of a is wanted, not 'bus'"
    top.done()


@pytest.mark.parametrize(
    ("raw", "line", "reason"),
    [
        (b"a = 1\nb = = 2\n", 2, "is not TOML"),
        (b"a = 1\n\n\xff", 3, "is not UTF-8"),
        (b"a = 1\na = 2\n", 2, "is not TOML"),
        (b"a = [", 1, "is not TOML"),
    ],
)
def test_not_toml(raw, line, reason):
    wrong = fault(lambda: Source("t.toml", raw))
    assert wrong.line == line
    assert wrong.reason.startswith(reason)


@pytest.mark.parametrize("value", ["true", "1.5", '"1"', "[1]"])
def test_types_are_not_guessed(value):
    fields = Source("t.toml", f"n = {value}".encode()).fields()
    assert fault(lambda: fields.integer("n", 0, 9)).line == 1
