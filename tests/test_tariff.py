"""Tariff files: what is wrong is refused whole, with line and field; versions stand beside each other or do not."""

import datetime

import pytest
from tariffs import CITY, city, parse

from yikatong.clients.pricing import DEFAULT_TARIFF
from yikatong.core import limits
from yikatong.core.rules.compile import compile_tariffs
from yikatong.core.rules.source import RuleError
from yikatong.core.rules.tariff import TariffSet
from yikatong.ext.fares import Evaluator

CELL = '[[fare_products.cells]]\nfrom = "inner"\nto = "inner"\namount_fen = 200\n'
HOLIDAY = '[[timeframes.windows]]\ndays = ["holiday"]'

# What is replaced, by what (the faulty line ends in #!), the field that is named, and a part of the reason.
FAULTS = [
    ('id = "city"', 'id = "a b" #!', "id", "is not of the form"),
    ("version = 3", "version = 0 #!", "version", "1 to"),
    ("version = 3", 'version = "3" #!', "version", "a whole number"),
    ("effective = 2026-01-01", "effective = 2026-01-01T00:00:00 #!", "effective", "a date without a time"),
    ("effective = 2026-01-01", "effective = 1970-01-01 #!", "effective", "2000 to 2099"),
    ("until = 2026-12-31", "until = 2025-12-31 #!", "until", "comes before effective"),
    ('rounding = "half_up"', 'rounding = "up" #!', "rounding", "one of half_up, down"),
    ("rounding_fen = 1", "rounding_fen = 5 #!", "rounding_fen", "1 or 10"),
    ("rounding_fen = 1", "rounding_fen = 1\ncurrency = 1 #!", "currency", "there is no such key"),
    ("holidays = [2026-01-01, 2026-10-01]", "holidays = [2026-01-01, 2026-01-01] #!", "holidays[1]", "stands here twice"),
    ("holidays = [2026-01-01, 2026-10-01]", "holidays = [1] #!", "holidays[0]", "date is wanted"),
    ("working_weekends = [2026-10-10]", "working_weekends = [2026-10-12] #!", "working_weekends[0]", "no Saturday or Sunday"),
    ('id = "museum"\n\n[[areas]]', 'id = "bus" #!\n\n[[areas]]', "networks[3].id", "stands here twice"),
    ("missing_exit_fen = 700", "missing_exit_fen = -1 #!", "networks[0].missing_exit_fen", "0 to"),
    ("journey_minutes_max = 180", "journey_minutes_max = 0 #!", "networks[0].journey_minutes_max", "1 to"),
    # areas and the matrix
    ('stops = ["1-5", "9"]', 'stops = ["5-1"] #!', "areas[0].stops[0]", "is not a range"),
    ('stops = ["1-5", "9"]', 'stops = ["1-5", "5"] #!', "areas[0].stops[1]", "overlaps what stands before"),
    ('stops = ["1-5", "9"]', 'stops = ["x"] #!', "areas[0].stops[0]", "a number or a range"),
    ('stops = ["6-8"]', 'stops = ["5-8"] #!', "areas[1].stops", "overlaps area inner, which holds stops 1 to 5"),
    ('stops = ["6-8"]', "stops = [] #!", "areas[1].stops", "names nothing"),
    ('stops = ["6-8"]', 'stops = ["16777216"] #!', "areas[1].stops[0]", "0 to 16777215"),
    ('id = "outer"\nnetwork = "metro"', 'id = "outer"\nnetwork = "tram" #!', "areas[1].network", "one of metro"),
    ('kind = "zones"\nnetwork = "metro"', 'kind = "zones"\nnetwork = "bus" #!', "fare_products[0].network", "has no areas"),
    ("symmetric = true", "symmetric = false", "fare_products[0].cells", "from outer to inner is missing"),
    (CELL, "", "fare_products[0].cells", "from inner to inner is missing"),
    (CELL, CELL + CELL.replace("cells]]", "cells]] #!"), "fare_products[0].cells[1]", "from inner to inner stands here twice"),
    ('from = "inner"\nto = "outer"', 'from = "inner"\nto = "moon" #!', "fare_products[0].cells[1].to", "one of inner, outer"),
    ('kind = "zones"', 'kind = "magic" #!', "fare_products[0].kind", "one of flat, nominal"),
    # amounts in steps
    ("max_fen = 300", "max_fen = 0 #!", "fare_products[1].rates[0].max_fen", "1 to"),
    ("min_fen = 300", "min_fen = 301 #!", "fare_products[1].rates[1].min_fen", "a gap: 300 is wanted"),
    ("min_fen = 300", "min_fen = 299 #!", "fare_products[1].rates[1].min_fen", "an overlap: 300 is wanted"),
    ("min_fen = 300", "min_fen = 300\nmax_fen = 400 #!", "fare_products[1].rates[1].max_fen", "a gap from 400 on"),
    ("max_fen = 300\n", "", "fare_products[1].rates[1].min_fen", "overlaps the amounts before"),
    ("min_fen = 0\n", "min_fen = 10 #!\n", "fare_products[1].rates[0].min_fen", "a gap: 0 is wanted"),
    ("rate_permille = 750", "rate_permille = 10001 #!", "fare_products[1].rates[1].rate_permille", "0 to"),
    ("rate_permille = 750", "rate_permille = 0.75 #!", "fare_products[1].rates[1].rate_permille", "a whole number"),
    ("amount_fen = 333", "amount_fen = 10000001 #!", "fare_products[2].amount_fen", "0 to"),
    ("amount_fen = 333", "", "fare_products[2].amount_fen", "is missing"),
    # distances
    ("stops = [1, 2, 3]", "stops = [1, 2, 2] #!", "fare_products[3].stops[2]", "stop 2 stands here twice"),
    ("at_m = [0, 4000, 21000]", "at_m = [0, 4000] #!", "fare_products[3].at_m", "as many metres as stops"),
    ("at_m = [0, 4000, 21000]", "at_m = [0, 4000, -1] #!", "fare_products[3].at_m[2]", "0 to"),
    ("min_m = 4000", "min_m = 5000 #!", "fare_products[3].tiers[1].min_m", "leaves distances with a gap: 4000"),
    ("min_m = 4000", "min_m = 3000 #!", "fare_products[3].tiers[1].min_m", "leaves distances with an overlap: 4000"),
    ("max_m = 20000\n", "", "fare_products[3].tiers[2].min_m", "overlaps the distances before"),
    # time
    ("start = 05:30:00", "start = 05:30:01", "fare_leg_rules[2].bands", "leave a weekday with a gap from 05:30:00 on"),
    ("start = 05:30:00", "start = 05:29:59", "fare_leg_rules[2].bands[1].timeframe", "night overlaps another band"),
    ("start = 05:30:00", "start = 05:30:00.5 #!", "timeframes[0].windows[0].start", "whole seconds"),
    ("\nend = 05:30:00", "\nstart = 06:00:00\nend = 05:30:00 #!", "timeframes[1].windows[0].end", "over midnight is two"),
    ('days = ["holiday"]', 'days = ["sunday"] #!', "timeframes[1].windows[2].days[0]", "there is no 'sunday'"),
    (
        HOLIDAY,
        HOLIDAY.replace("]]", "]] #!").replace("holiday", "weekend"),
        "timeframes[1].windows[2]",
        "overlaps another window",
    ),
    (HOLIDAY, "", "fare_leg_rules[2].bands", "leave a holiday with a gap from 00:00:00"),
    ('timeframe = "night"', 'timeframe = "dusk" #!', "fare_leg_rules[2].bands[1].timeframe", "one of day, night"),
    # which rule
    ("industries = [20]", "industries = [32] #!", "fare_leg_rules[4].industries[0]", "0 to 31"),
    ("industries = [20]", "industries = [] #!", "fare_leg_rules[4].industries", "names nothing"),
    ('lines = ["100-199", "7"]', "lines = [] #!", "fare_leg_rules[1].lines", "names nothing"),
    ('lines = ["100-199", "7"]', 'lines = ["4294967296"] #!', "fare_leg_rules[1].lines[0]", "4294967295"),
    ('operators = ["northern"]', "operators = [5] #!", "fare_leg_rules[1].operators[0]", "str is wanted"),
    ('fare_product = "zones"', 'fare_product = "zone" #!', "fare_leg_rules[0].fare_product", "one of zones, bus"),
    ('fare_product = "ticket"', 'fare_product = "zones" #!', "fare_leg_rules[4].fare_product", "is of network metro, not museum"),
    ('fare_product = "ticket"', 'fare_product = "coach" #!', "fare_leg_rules[4].fare_product", "states no missing_entry_fen"),
    ('industries = [20]\nfare_product = "ticket"', "industries = [20]", "fare_leg_rules[4].fare_product", "or bands are wanted"),
    ('network = "museum"', 'network = "zoo" #!', "fare_leg_rules[4].network", "one of metro"),
    # riders, transfers, caps, passes
    ('rider = "senior"', 'rider = "student" #!', "rider_categories[1].rider", "has a category already"),
    ('rider = "senior"', 'rider = "pensioner" #!', "rider_categories[1].rider", "one of ordinary"),
    ("rides_a_month_max = 3", "rides_a_month_max = 0 #!", "rider_categories[0].concessions[0].rides_a_month_max", "1 to"),
    ("rate_permille = 500", "rate_permille = 1001 #!", "rider_categories[0].concessions[0].rate_permille", "0 to 1000"),
    (
        "rides_a_month_max = 3",
        'rides_a_month_max = 3\n\n[[rider_categories.concessions]]\nnetworks = ["bus"] #!\nrate_permille = 1',
        "rider_categories[0].concessions[1].networks",
        "bus has a concession of this category already",
    ),
    ('when = "either"', 'when = "always" #!', "fare_transfer_rules[0].when", "one of time, stated, either"),
    ("min_minutes = 1", "min_minutes = 61 #!", "fare_transfer_rules[0].min_minutes", "0 to 60"),
    ("max_minutes = 60\n", "", "fare_transfer_rules[0].max_minutes", "is missing"),
    ("chain_max = 2", "chain_max = 0 #!", "fare_transfer_rules[0].chain_max", "1 to"),
    ("rate_permille = 905", "", "fare_transfer_rules[1].amount_off_fen", "or rate_permille is wanted"),
    ("rate_permille = 905", "rate_permille = 905\namount_off_fen = 1 #!", "fare_transfer_rules[1].amount_off_fen", "either it"),
    ('when = "time"\nfrom_networks', 'when = "stated"\nfrom_networks', "fare_transfer_rules[1].from_networks", "no such key"),
    ('to_networks = ["metro"]', 'to_networks = ["tram"] #!', "fare_transfer_rules[1].to_networks[0]", "there is no 'tram'"),
    ('period = "week"', 'period = "year" #!', "fare_caps[1].period", "one of day, week, month"),
    ('networks = ["museum"]', 'networks = ["museum", "museum"] #!', "passes[0].networks[1]", "stands here twice"),
    ('networks = ["museum"]', "networks = [] #!", "passes[0].networks", "names nothing"),
]


@pytest.mark.parametrize(("old", "new", "field", "reason"), FAULTS, ids=[f"{field}: {reason}" for *_, field, reason in FAULTS])
def test_faults_are_told_with_line_and_field(old: str, new: str, field: str, reason: str) -> None:
    assert CITY.count(old) >= 1
    text = CITY.replace(old, new, 1)
    with pytest.raises(RuleError) as caught:
        parse(text)
    assert (caught.value.field, caught.value.file) == (field, "city.toml")
    assert reason in caught.value.reason
    marked = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("#!")]
    if marked:
        assert caught.value.line == marked[0]
    else:  # something is missing: the table that it is missing from
        header = text.splitlines()[caught.value.line - 1]
        assert header.strip("[]").split(".")[-1] in field or header.split(" ")[0] in field


def test_too_many_caps_a_period() -> None:
    more = "".join(f'[[fare_caps]]\nid = "w{at}"\nperiod = "week"\namount_fen = 1\n' for at in range(2))
    with pytest.raises(RuleError, match="at most 2 caps a week") as caught:
        parse(CITY + more)
    assert caught.value.field == "fare_caps[4].period"


def test_too_many_networks() -> None:
    more = "".join(f'[[networks]]\nid = "n{at}"\n' for at in range(limits.TARIFF_NETWORKS_MAX))
    with pytest.raises(RuleError, match="one more than 31") as caught:
        parse(CITY + more)
    assert caught.value.field == "networks[31].id"


def test_a_tariff_without_leg_rules_prices_nothing() -> None:
    with pytest.raises(RuleError, match="fare_leg_rules: is missing"):
        parse('id = "a"\nversion = 1\neffective = 2026-01-01\nrounding = "down"\nrounding_fen = 10\n')


# ---- versions ----


def later(effective: str, version: int = 4, text: str = CITY) -> str:
    return (
        text.replace("effective = 2026-01-01", f"effective = {effective}")
        .replace("version = 3", f"version = {version}")
        .replace("until = 2026-12-31\n", "")
    )


@pytest.mark.parametrize(
    ("other", "field", "line"),
    [
        (later("2026-12-31"), "effective", 3),  # the last day of the version before
        (later("2026-01-01"), "effective", 3),
        (later("2027-01-01", version=3), "version", 2),
        (later("2027-01-01").replace('id = "city"', 'id = "town"', 1), "id", 1),
    ],
)
def test_versions_that_cannot_stand_beside_each_other(other: str, field: str, line: int) -> None:
    with pytest.raises(RuleError) as caught:
        TariffSet([parse(other, "later.toml"), parse(CITY)])
    assert (caught.value.file, caught.value.line, caught.value.field) == ("later.toml", line, field)


def test_versions_follow_each_other() -> None:
    newer = later("2027-03-01")
    newest = later("2027-06-01", 5).replace('id = "culture"', 'id = "art"').replace('id = "week"', 'id = "seven"')
    tariffs = TariffSet([parse(newest), parse(CITY), parse(newer)])
    rows = [("2025-12-31", None), ("2026-01-01", 0), ("2026-12-31", 0), ("2027-01-01", None), ("2027-03-01", 1),
            ("2027-05-31", 1), ("2027-06-01", 2), ("2050-01-01", 2)]  # fmt: skip
    for date, at in rows:
        assert tariffs.in_force(datetime.date.fromisoformat(date)) == at, date
    # What stays keeps its number; what is new gets one that is free.
    assert tariffs.network_number == {"metro": 0, "bus": 1, "coach": 2, "museum": 3}
    assert tariffs.pass_number == {"culture": 1, "art": 2}
    assert [slots["day"] for slots in tariffs.cap_slot] == [0, 0, 0]
    assert [slots.get("week", slots.get("seven")) for slots in tariffs.cap_slot] == [3, 3, 3]
    assert tariffs.rules[tariffs.rule_number(tariffs.tariffs[2], "pass", "art")] == "city/5/pass/art"


def test_reading_is_all_or_nothing(tmp_path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(CITY)
    bad.write_text(later("2027-01-01") + "x = 1\n")
    with pytest.raises(RuleError, match=r"bad\.toml:\d+: passes\[0\]\.x: there is no such key"):
        TariffSet.read([good, bad])
    with pytest.raises(RuleError, match="No such file"):
        TariffSet.read([tmp_path / "none.toml"])


def test_the_tariff_in_the_package_is_good() -> None:
    assert TariffSet.read([DEFAULT_TARIFF]).tariffs[0].name == "shenzhen/1"


# ---- the blob ----


def test_the_same_tariff_compiles_to_the_same_bytes() -> None:
    assert compile_tariffs(city()).blob == compile_tariffs(city()).blob


def test_other_bytes_are_refused() -> None:
    """Nothing that is cut short, or whose header or indices are not those of a compiled tariff, is ever read from."""
    blob = compile_tariffs(city()).blob
    for wrong in (b"", blob[:8], blob[:-4], blob + b"\0\0\0\0", b"\0" + blob[1:]):
        with pytest.raises(ValueError, match="no compiled tariff"):
            Evaluator(wrong)
    for word in range(2, 2 + 3 * 17):
        damaged = bytearray(blob)
        damaged[4 * word : 4 * word + 4] = b"\xff\xff\xff\x7f"
        with pytest.raises(ValueError, match="no compiled tariff"):
            Evaluator(bytes(damaged))
