"""A tariff with a rule of every kind, and tariffs drawn at random, for the tests of fares."""

import re
from typing import Any

from hypothesis import strategies as st

from yikatong.core.rules.source import Source
from yikatong.core.rules.tariff import RIDERS, Tariff, TariffSet, cap_slots, parse_tariff

CITY = """\
id = "city"
version = 3
effective = 2026-01-01
until = 2026-12-31
rounding = "half_up"
rounding_fen = 1
holidays = [2026-01-01, 2026-10-01]
working_weekends = [2026-10-10]

[[networks]]
id = "metro"
missing_entry_fen = 900
missing_exit_fen = 700
journey_minutes_max = 180

[[networks]]
id = "bus"

[[networks]]
id = "coach"
missing_entry_fen = 3000
missing_exit_fen = 3000

[[networks]]
id = "museum"

[[areas]]
id = "inner"
network = "metro"
stops = ["1-5", "9"]

[[areas]]
id = "outer"
network = "metro"
stops = ["6-8"]

[[fare_products]]
id = "zones"
kind = "zones"
network = "metro"
symmetric = true

[[fare_products.cells]]
from = "inner"
to = "inner"
amount_fen = 200

[[fare_products.cells]]
from = "inner"
to = "outer"
amount_fen = 500

[[fare_products.cells]]
from = "outer"
to = "outer"
amount_fen = 300

[[fare_products]]
id = "bus"
kind = "nominal"

[[fare_products.rates]]
min_fen = 0
max_fen = 300
rate_permille = 800

[[fare_products.rates]]
min_fen = 300
rate_permille = 750

[[fare_products]]
id = "night"
kind = "flat"
amount_fen = 333

[[fare_products]]
id = "coach"
kind = "distance"
stops = [1, 2, 3]
at_m = [0, 4000, 21000]

[[fare_products.tiers]]
min_m = 0
max_m = 4000
amount_fen = 1000

[[fare_products.tiers]]
min_m = 4000
max_m = 20000
amount_fen = 1500

[[fare_products.tiers]]
min_m = 20000
amount_fen = 2500

[[fare_products]]
id = "ticket"
kind = "flat"
amount_fen = 2000

[[timeframes]]
id = "day"

[[timeframes.windows]]
days = ["weekday", "weekend"]
start = 05:30:00
end = 23:00:00

[[timeframes]]
id = "night"

[[timeframes.windows]]
days = ["weekday", "weekend"]
end = 05:30:00

[[timeframes.windows]]
days = ["weekday", "weekend"]
start = 23:00:00

[[timeframes.windows]]
days = ["holiday"]

[[fare_leg_rules]]
id = "metro"
network = "metro"
industries = [1]
fare_product = "zones"

[[fare_leg_rules]]
id = "express"
network = "bus"
industries = [2]
lines = ["100-199", "7"]
operators = ["northern"]
fare_product = "bus"

[[fare_leg_rules]]
id = "bus"
network = "bus"
industries = [2]

[[fare_leg_rules.bands]]
timeframe = "day"
fare_product = "bus"

[[fare_leg_rules.bands]]
timeframe = "night"
fare_product = "night"

[[fare_leg_rules]]
id = "coach"
network = "coach"
industries = [8]
fare_product = "coach"

[[fare_leg_rules]]
id = "museum"
network = "museum"
industries = [20]
fare_product = "ticket"

[[rider_categories]]
id = "student"
rider = "student"

[[rider_categories.concessions]]
networks = ["metro", "bus"]
rate_permille = 500
of = "discounted"
rides_a_month_max = 3

[[rider_categories]]
id = "senior"
rider = "senior"

[[rider_categories.concessions]]
rate_permille = 0

[[rider_categories]]
id = "worker"
rider = "model_worker"

[[rider_categories.concessions]]
networks = ["bus"]
rate_permille = 900
transfers = false

[[fare_transfer_rules]]
id = "to-bus"
when = "either"
from_networks = ["bus", "metro"]
to_networks = ["bus"]
min_minutes = 1
max_minutes = 60
other_line = true
chain_max = 2
amount_off_fen = 100

[[fare_transfer_rules]]
id = "to-metro"
when = "time"
from_networks = ["bus"]
to_networks = ["metro"]
max_minutes = 90
from = "start"
to = "end"
rate_permille = 905

[[fare_caps]]
id = "day"
period = "day"
networks = ["bus", "metro"]
amount_fen = 1000

[[fare_caps]]
id = "week"
period = "week"
amount_fen = 6000

[[fare_caps]]
id = "month"
period = "month"
networks = ["metro"]
amount_fen = 5000

[[passes]]
id = "culture"
networks = ["museum"]
"""


def parse(text: str, name: str = "city.toml") -> Tariff:
    return parse_tariff(Source(name, text.encode()))


def city() -> TariffSet:
    return TariffSet([parse(CITY)])


# ---- random tariffs, as text: whatever is drawn goes through the reader as well ----


CLOCK = re.compile(r"\d\d:\d\d:\d\d")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value) if isinstance(value, int) or CLOCK.fullmatch(value) else f'"{value}"'


def _table(name: str, **keys: Any) -> str:
    lines = [f"{key.rstrip('_')} = {_value(value)}" for key, value in keys.items() if value is not None]
    return f"[[{name}]]\n" + "\n".join(lines) + "\n"


def _steps(draw: st.DrawFn, most: int) -> list[tuple[int, int | None]]:
    edges = sorted(draw(st.sets(st.integers(1, most), max_size=3)))
    return list(zip([0, *edges], [*edges, None], strict=True))


def _clock(time_s: int) -> str:
    return f"{time_s // 3600:02d}:{time_s // 60 % 60:02d}:{time_s % 60:02d}"


NETWORKS = ("metro", "bus", "coach")


@st.composite
def tariff_texts(draw: st.DrawFn, version: int = 1, effective: str = "2026-01-01") -> str:
    """A tariff over three networks whose rules are drawn."""
    fen = st.integers(0, 1500)
    some = st.lists(st.sampled_from(NETWORKS), min_size=1, unique=True)
    permille = st.integers(0, 1000)
    rounding, unit = draw(st.sampled_from(["half_up", "down"])), draw(st.sampled_from([1, 10]))
    parts = [
        f'id = "random"\nversion = {version}\neffective = {effective}\nrounding = "{rounding}"\nrounding_fen = {unit}\n'
        "holidays = [2026-01-01, 2026-02-02]\nworking_weekends = [2026-01-31]\n"
    ]
    for network in NETWORKS:
        minutes = draw(st.sampled_from([30, 240]))
        keys = {"missing_entry_fen": draw(fen), "missing_exit_fen": draw(fen), "journey_minutes_max": minutes}
        parts.append(_table("networks", id=network, **keys))
    parts.append(_table("areas", id="a", network="metro", stops=["1-3", "7"]))
    parts.append(_table("areas", id="b", network="metro", stops=["4-6"]))
    parts.append(_table("areas", id="c", network="bus", stops=["1-9"]))
    parts.append(_table("fare_products", id="zones", kind="zones", network="metro"))
    parts += [_table("fare_products.cells", from_=start, to=end, amount_fen=draw(fen)) for start in "ab" for end in "ab"]
    parts.append(_table("fare_products", id="distance", kind="distance", stops=[5, 1, 2, 7], at_m=[0, 1000, 4000, 9000]))
    parts += [_table("fare_products.tiers", min_m=low, max_m=high, amount_fen=draw(fen)) for low, high in _steps(draw, 8000)]
    parts.append(_table("fare_products", id="nominal", kind="nominal"))
    if draw(st.booleans()):
        parts += [
            _table("fare_products.rates", min_fen=low, max_fen=high, rate_permille=draw(st.integers(0, 1500)))
            for low, high in _steps(draw, 1000)
        ]
    parts.append(_table("fare_products", id="flat", kind="flat", amount_fen=draw(fen)))
    edge = draw(st.integers(1, 86_399))
    parts.append(_table("timeframes", id="early"))
    parts.append(_table("timeframes.windows", days=["weekday", "holiday"], end=_clock(edge)))
    parts.append(_table("timeframes", id="late"))
    parts.append(_table("timeframes.windows", days=["weekday", "holiday"], start=_clock(edge)))
    parts.append(_table("timeframes.windows", days=["weekend"]))
    products = {"metro": ["zones", "nominal", "flat"], "bus": ["nominal", "flat"], "coach": ["distance", "nominal"]}
    for at, (network, industry) in enumerate([("bus", 2), ("metro", 1), ("coach", 8), ("bus", 2)]):
        keys = {"network": network, "industries": [industry]}
        first = at == 0
        product = st.sampled_from(products[network])
        if draw(st.booleans()):
            text = _table("fare_leg_rules", id=f"leg{at}", **keys, operators=["northern"] if first else None)
            text += _table("fare_leg_rules.bands", timeframe="late", fare_product=draw(product))
            text += _table("fare_leg_rules.bands", timeframe="early", fare_product=draw(product))
        else:
            operators = ["northern"] if first and draw(st.booleans()) else None
            lines = ["2-3"] if first else None
            text = _table("fare_leg_rules", id=f"leg{at}", **keys, operators=operators, lines=lines, fare_product=draw(product))
        parts.append(text)
    for rider in draw(st.lists(st.sampled_from(sorted(RIDERS)), max_size=4, unique=True)):
        parts.append(_table("rider_categories", id=rider, rider=rider))
        free = rider == "senior"
        keys = {"rate_permille": 0} if free else {"networks": draw(some), "rate_permille": draw(permille)}
        keys |= {"rides_a_month_max": None if free else draw(st.sampled_from([None, 1, 3]))}
        keys |= {"of": draw(st.sampled_from(["base", "discounted"])), "transfers": draw(st.booleans())}
        parts.append(_table("rider_categories.concessions", **keys))
    for at in range(draw(st.integers(0, 3))):
        when = draw(st.sampled_from(["time", "stated", "either"]))
        keys = {"id": f"t{at}", "when": when, "to_networks": draw(some), "chain_max": draw(st.integers(1, 3))}
        if when != "stated":
            low = draw(st.integers(0, 60))
            keys |= {"from_networks": draw(some), "min_minutes": low, "max_minutes": draw(st.integers(max(low, 1), 120))}
            keys |= {"from": draw(st.sampled_from(["start", "end"])), "to": draw(st.sampled_from(["start", "end"]))}
            keys |= {"other_line": draw(st.booleans())}
        keys |= {"amount_off_fen": draw(fen)} if draw(st.booleans()) else {"rate_permille": draw(permille)}
        parts.append(_table("fare_transfer_rules", **keys))
    for period in ("day", "week", "month"):
        for at in range(draw(st.integers(0, len(cap_slots(period))))):
            covered = draw(st.one_of(st.none(), some))
            parts.append(_table("fare_caps", id=f"{period}{at}", period=period, networks=covered, amount_fen=draw(fen) * 3))
    if draw(st.booleans()):
        parts.append(_table("passes", id="p", networks=draw(some), rate_permille=draw(st.one_of(st.none(), permille))))
    return "\n".join(parts)


@st.composite
def tariff_sets(draw: st.DrawFn) -> TariffSet:
    """One version, or two with a change on a Tuesday in mid-month."""
    texts = [draw(tariff_texts())]
    if draw(st.booleans()):
        texts.append(draw(tariff_texts(2, "2026-01-13")))
    return TariffSet([parse(text, f"v{at}.toml") for at, text in enumerate(texts, 1)])
