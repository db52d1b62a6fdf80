"""Tariffs: what a ride costs, as a versioned TOML file. `Tariff` is such a file, checked as a whole; `TariffSet` is all versions
of one tariff, each in force from its `effective` date to its `until`, or without one until the next version.

The terms are those of GTFS-Fares v2 where it has them. A file says, in this order of use for one tap:

* `[[fare_leg_rules]]`: the first rule in file order whose `industries`, `lines` and `operators` (those that it states) fit the
  tap applies. It names the tap's `network` and its fare product: one (`fare_product`), or one for each time band (`bands`), which
  together cover every second of every kind of day once; the time is that of the ride's beginning. A tap that no rule fits is
  not priced, and the answer says so.
* `[[fare_products]]`: the base fare, by `kind`: `flat` (`amount_fen`), `nominal` (what the terminal states), `distance` (`tiers`
  over the metres between the `stops` of entry and exit) or `zones` (`cells` from area to area; `symmetric` reads each both ways).
  A product's `rates` are marginal, in permille: what is charged of the base's part between `min_fen` and `max_fen`. Entry taps
  are charged nothing; the exit is.
* `[[networks]]`: what holds for all rides of a network. `missing_entry_fen` is the base fare of an exit whose entry is not known,
  where the product needs one. `missing_exit_fen` is charged with the next entry or exit when an entry was never followed by its
  exit (or only after `journey_minutes_max`).
* `[[rider_categories]]`: concessions by rider and network: `rate_permille` of the base fare (0 is free), or of the fare after the
  product's rates with `of = "discounted"`; after `rides_a_month_max` such rides in a calendar month (of the card, over all
  networks) the ordinary fare applies. `transfers = false` keeps such rides from transfer discounts.
* `[[passes]]`: a ride in a pass's networks is charged `rate_permille` of the base (0 unless stated) while the card's pass is
  valid; it comes before concessions.
* `[[fare_transfer_rules]]`: the first rule that fits takes `amount_off_fen` off, or charges `rate_permille`. `when` says what
  proves the transfer: "time" (the card's last ride was in `from_networks`, `min_minutes` to `max_minutes` ago, from its `from` =
  "start" or "end" to this ride's `to`; with `other_line` only on another line), "stated" (the terminal says so) or "either". At
  most `chain_max` transfers follow each other.
* `[[fare_caps]]`: a card pays at most `amount_fen` a `period` ("day", "week" beginning on Monday, "month") in `networks`. All
  that a tap is charged, a missing exit too, counts in the network of the tap.

Every percentage is rounded once, to `rounding_fen` (1 or 10), half up or down."""

import datetime
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from yikatong.core import limits
from yikatong.core.rules.source import Fields, Source

Span = tuple[int, int]  # first and last, both included
DayKind = Literal["weekday", "weekend", "holiday"]
DAY_KINDS: Final[tuple[DayKind, ...]] = ("weekday", "weekend", "holiday")
DAY_S: Final = 86_400
RIDERS: Final = {
    "ordinary": 1, "student": 2, "senior": 3, "test": 4, "military": 5, "disabled": 6, "model_worker": 7,
}  # fmt: skip
RIDER_ORDINARY: Final = RIDERS["ordinary"]
NEEDS_ENTRY: Final = ("distance", "zones")
PERIODS: Final = ("day", "week", "month")
ID: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"
U32_MAX: Final = 0xFFFF_FFFF
STOP_MAX: Final = 0xFF_FFFF


@dataclass(frozen=True, slots=True)
class Network:
    id: str
    missing_entry_fen: int | None
    missing_exit_fen: int
    journey_s_max: int


@dataclass(frozen=True, slots=True)
class Area:
    id: str
    network: str
    stops: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """What of a base fare is charged between two amounts; `max_fen` None: without end."""

    min_fen: int
    max_fen: int | None
    rate_permille: int


@dataclass(frozen=True, slots=True)
class Tier:
    min_m: int
    max_m: int | None  # excluded
    amount_fen: int


@dataclass(frozen=True, slots=True)
class Product:
    id: str
    kind: str
    amount_fen: int
    rates: tuple[Rate, ...]
    tiers: tuple[Tier, ...]
    at_m: dict[int, int]  # metres along the line, by stop
    network: str  # of a zone matrix
    cells: dict[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds of one kind of day; the end is excluded."""

    day: DayKind
    start_s: int
    end_s: int


@dataclass(frozen=True, slots=True)
class LegRule:
    id: str
    network: str
    industries: tuple[int, ...]
    lines: tuple[Span, ...]
    operators: tuple[str, ...]
    product: str | None
    bands: tuple[tuple[Window, str], ...]  # all of the three days, in order


@dataclass(frozen=True, slots=True)
class Concession:
    id: str
    networks: tuple[str, ...]
    rate_permille: int
    of_discounted: bool
    rides_a_month_max: int  # 0: without end
    transfers: bool


@dataclass(frozen=True, slots=True)
class TransferRule:
    id: str
    from_networks: tuple[str, ...]
    to_networks: tuple[str, ...]
    min_s: int
    max_s: int
    from_start: bool
    to_start: bool
    amount_off_fen: int | None
    rate_permille: int
    chain_max: int
    other_line: bool
    by_time: bool
    by_statement: bool


@dataclass(frozen=True, slots=True)
class Cap:
    id: str
    period: str
    networks: tuple[str, ...]
    amount_fen: int


@dataclass(frozen=True, slots=True)
class Pass:
    id: str
    networks: tuple[str, ...]
    rate_permille: int


@dataclass(frozen=True)
class Tariff:
    """One version of a tariff. Its parts by id, in file order."""

    id: str
    version: int
    effective: datetime.date
    until: datetime.date | None  # the last day; None: until the next version
    rounding_fen: int
    rounding_down: bool
    special_days: dict[datetime.date, DayKind]
    networks: dict[str, Network]
    areas: dict[str, Area]
    products: dict[str, Product]
    leg_rules: dict[str, LegRule]
    riders: dict[int, tuple[Concession, ...]]
    transfers: dict[str, TransferRule]
    caps: dict[str, Cap]
    passes: dict[str, Pass]
    source: Source = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"{self.id}/{self.version}"


# ---- reading ----


def _spans(fields: Fields, name: str, high: int, default: Any = None) -> tuple[Span, ...]:
    """Numbers and ranges such as "7" and "10-19", in order, none twice."""
    texts = fields.items(name, str) if default is None else fields.items(name, str, default)
    spans: list[Span] = []
    for at, text in enumerate(texts):
        place = (*fields.place, name, at)
        numbers = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", text)
        if numbers is None:
            raise fields.source.error(place, f'a number or a range such as "10-19" is wanted, not {text!r}')
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if not first <= last <= high:
            raise fields.source.error(place, f"{text!r} is not a range within 0 to {high}")
        if any(first <= other[1] and other[0] <= last for other in spans):
            raise fields.source.error(place, f"{text!r} overlaps what stands before it")
        spans.append((first, last))
    return tuple(sorted(spans))


def _known(fields: Fields, name: str, known: Iterable[str], default: Any = None) -> tuple[str, ...]:
    """Names of what the file has defined, none twice; `default` stands for a key that is not there."""
    among = list(known)
    names = fields.items(name, str) if default is None else fields.items(name, str, default)
    for at, item in enumerate(names):
        place = (*fields.place, name, at)
        if item not in among:
            raise fields.source.error(place, f"there is no {item!r}; there is {', '.join(among) or 'none'}")
        if item in names[:at]:
            raise fields.source.error(place, f"{item!r} stands here twice")
    if not names:
        raise fields.error(name, "names nothing")
    return tuple(names)


def _one(fields: Fields, name: str, known: Iterable[str]) -> str:
    return fields.choice(name, {item: item for item in known})


def _new_id(fields: Fields, taken: Iterable[str], most: int) -> str:
    made = fields.text("id", pattern=ID)
    if made in taken:
        raise fields.error("id", f"{made!r} stands here twice")
    if len(list(taken)) >= most:
        raise fields.error("id", f"is one more than {most}")
    return made


def _amount(fields: Fields, name: str, default: Any = ...) -> Any:
    return fields.integer(name, 0, limits.FARE_FEN_MAX, *(() if default is ... else (default,)))


def _steps(tables: list[Fields], low: str, high: str, most: int, what: str) -> Iterator[tuple[Fields, int, int | None]]:
    """Tables that cover all numbers from 0 on without gap or overlap: each with its low (included) and high (excluded)."""
    reached: int | None = 0
    for at, step in enumerate(tables):
        first = step.integer(low, 0, most)
        last = step.integer(high, 1, most, None)
        if reached is None:
            raise step.error(low, f"overlaps the {what} before, which has no {high}")
        if first != reached:
            raise step.error(
                low, f"leaves {what} with {'a gap' if first > reached else 'an overlap'}: {reached} is wanted, not {first}"
            )
        if last is not None and last <= first:
            raise step.error(high, f"more than {first} is wanted, not {last}")
        if at + 1 == len(tables) and last is not None:
            raise step.error(high, f"leaves {what} with a gap from {last} on: the last has no {high}")
        yield step, first, last
        reached = last


def _dates(fields: Fields, name: str) -> list[datetime.date]:
    dates = fields.items(name, datetime.date, ())
    for at, date in enumerate(dates):
        if isinstance(date, datetime.datetime):
            raise fields.source.error((*fields.place, name, at), "a date without a time is wanted")
    return dates


def _special_days(top: Fields) -> dict[datetime.date, DayKind]:
    days: dict[datetime.date, DayKind] = {}
    kinds: tuple[tuple[str, DayKind], ...] = (("holidays", "holiday"), ("working_weekends", "weekday"))
    for name, kind in kinds:
        for at, date in enumerate(_dates(top, name)):
            if date in days:
                raise top.source.error((name, at), f"{date} stands here twice")
            if kind == "weekday" and date.weekday() < 5:
                raise top.source.error((name, at), f"{date} is no Saturday or Sunday")
            days[date] = kind
    return days


def _network(fields: Fields, made: str) -> Network:
    return Network(
        made,
        _amount(fields, "missing_entry_fen", None),
        _amount(fields, "missing_exit_fen", 0),
        fields.integer("journey_minutes_max", 1, limits.JOURNEY_MINUTES_MAX, limits.JOURNEY_MINUTES_DEFAULT) * 60,
    )


def _read_areas(top: Fields, networks: Iterable[str]) -> dict[str, Area]:
    areas: dict[str, Area] = {}
    for fields in top.tables("areas"):
        made = _new_id(fields, areas, limits.TARIFF_AREAS_MAX)
        network = _one(fields, "network", networks)
        stops = _spans(fields, "stops", STOP_MAX)
        if not stops:
            raise fields.error("stops", "names nothing")
        for other in areas.values():
            for first, last in other.stops if other.network == network else ():
                if any(first <= span[1] and span[0] <= last for span in stops):
                    raise fields.error("stops", f"overlaps area {other.id}, which holds stops {first} to {last}")
        areas[made] = Area(made, network, stops)
        fields.done()
    return areas


def _cells(fields: Fields, areas: list[str]) -> dict[tuple[str, str], int]:
    symmetric = fields.flag("symmetric", False)
    cells: dict[tuple[str, str], int] = {}
    for cell in fields.tables("cells"):
        pair = _one(cell, "from", areas), _one(cell, "to", areas)
        amount_fen = _amount(cell, "amount_fen")
        for way in {pair, pair[::-1]} if symmetric else {pair}:
            if way in cells:
                raise cell.error("", f"the cell from {way[0]} to {way[1]} stands here twice")
            cells[way] = amount_fen
        cell.done()
    for start in areas:
        for end in areas:
            if (start, end) not in cells:
                raise fields.error("cells", f"the cell from {start} to {end} is missing")
    return cells


def _positions(fields: Fields) -> dict[int, int]:
    stops, at_m = fields.items("stops", int), fields.items("at_m", int)
    if len(stops) != len(at_m) or not stops:
        raise fields.error("at_m", f"as many metres as stops are wanted: {len(stops)}, not {len(at_m)}")
    positions: dict[int, int] = {}
    for at, (stop, metres) in enumerate(zip(stops, at_m, strict=True)):
        if not 0 <= stop <= STOP_MAX or stop in positions:
            reason = "stands here twice" if stop in positions else f"is not within 0 to {STOP_MAX}"
            raise fields.source.error((*fields.place, "stops", at), f"stop {stop} {reason}")
        if not 0 <= metres <= limits.DISTANCE_M_MAX:
            raise fields.source.error((*fields.place, "at_m", at), f"0 to {limits.DISTANCE_M_MAX} is wanted, not {metres}")
        positions[stop] = metres
    return positions


def _product(fields: Fields, made: str, areas: dict[str, Area], networks: Iterable[str]) -> Product:
    kind = _one(fields, "kind", ("flat", "nominal", "distance", "zones"))
    amount_fen = _amount(fields, "amount_fen") if kind == "flat" else 0
    tiers: list[Tier] = []
    positions: dict[int, int] = {}
    network, cells = "", {}
    if kind == "distance":
        positions = _positions(fields)
        tables = list(fields.tables("tiers"))
        if not tables:
            raise fields.error("tiers", "is missing: tables of min_m, max_m and amount_fen are wanted")
        for step, low, high in _steps(tables, "min_m", "max_m", limits.DISTANCE_M_MAX, "distances"):
            tiers.append(Tier(low, high, _amount(step, "amount_fen")))
            step.done()
    if kind == "zones":
        network = _one(fields, "network", networks)
        among = [area.id for area in areas.values() if area.network == network]
        if not among:
            raise fields.error("network", f"{network} has no areas")
        cells = _cells(fields, among)
    rates: list[Rate] = []
    for step, low, high in _steps(list(fields.tables("rates")), "min_fen", "max_fen", U32_MAX, "amounts"):
        rates.append(Rate(low, high, step.integer("rate_permille", 0, limits.RATE_PERMILLE_MAX)))
        step.done()
    return Product(made, kind, amount_fen, tuple(rates), tuple(tiers), positions, network, cells)


def _seconds(time: datetime.time, fields: Fields, name: str) -> int:
    if time.microsecond:
        raise fields.error(name, "whole seconds are wanted")
    return time.hour * 3600 + time.minute * 60 + time.second


def _windows(fields: Fields) -> tuple[Window, ...]:
    windows: list[Window] = []
    for window in fields.tables("windows"):
        days = _known(window, "days", DAY_KINDS)
        start_s = _seconds(window.time("start", datetime.time()), window, "start")
        end = window.time("end", None)
        end_s = DAY_S if end is None else _seconds(end, window, "end")
        if end_s <= start_s:
            raise window.error("end", "comes before its start; a window over midnight is two")
        for kind in DAY_KINDS:
            if kind in days:
                made = Window(kind, start_s, end_s)
                if any(_overlap(made, other) for other in windows):
                    raise window.error("", f"overlaps another window of this time frame on a {kind}")
                windows.append(made)
        window.done()
    if not windows:
        raise fields.error("windows", "is missing: tables of days, start and end are wanted")
    return tuple(windows)


def _overlap(one: Window, other: Window) -> bool:
    return one.day == other.day and one.start_s < other.end_s and other.start_s < one.end_s


def _clock(time_s: int) -> str:
    return f"{time_s // 3600:02d}:{time_s // 60 % 60:02d}:{time_s % 60:02d}"


def _bands(fields: Fields, frames: dict[str, tuple[Window, ...]], products: Iterable[str]) -> tuple[tuple[Window, str], ...]:
    bands: list[tuple[Window, str]] = []
    for band in fields.tables("bands"):
        frame, product = _one(band, "timeframe", frames), _one(band, "fare_product", products)
        for window in frames[frame]:
            if any(_overlap(window, other) for other, _ in bands):
                raise band.error("timeframe", f"{frame} overlaps another band of this rule on a {window.day}")
            bands.append((window, product))
        band.done()
    bands.sort(key=lambda band: (DAY_KINDS.index(band[0].day), band[0].start_s))
    for kind in DAY_KINDS:
        reached_s = 0
        for window in [window for window, _ in bands if window.day == kind]:
            if window.start_s > reached_s:
                break
            reached_s = window.end_s
        if reached_s < DAY_S:
            raise fields.error("bands", f"leave a {kind} with a gap from {_clock(reached_s)} on")
    return tuple(bands)


def _leg_rule(
    fields: Fields, made: str, networks: dict[str, Network], frames: dict[str, tuple[Window, ...]], products: dict[str, Product]
) -> LegRule:
    network = _one(fields, "network", networks)
    industries = fields.items("industries", int)
    for at, industry in enumerate(industries):
        if not 0 <= industry <= limits.INDUSTRY_MAX or industry in industries[:at]:
            raise fields.source.error(
                (*fields.place, "industries", at), f"an industry code of 0 to {limits.INDUSTRY_MAX} is wanted once"
            )
    if not industries:
        raise fields.error("industries", "names nothing")
    lines = _spans(fields, "lines", U32_MAX, ())
    operators = tuple(fields.items("operators", str, ()))
    for name, items in (("lines", lines), ("operators", operators)):
        if name in fields and not items:
            raise fields.error(name, "names nothing")
    if ("fare_product" in fields) == ("bands" in fields):
        raise fields.error("fare_product", "either it or bands are wanted")
    product = _one(fields, "fare_product", products) if "fare_product" in fields else None
    bands = _bands(fields, frames, products) if product is None else ()
    where = "fare_product" if product else "bands"
    for used in [product] if product else [name for _, name in bands]:
        needs = products[used]
        if needs.kind == "zones" and needs.network != network:
            raise fields.error(where, f"{used} is of network {needs.network}, not {network}")
        if needs.kind in NEEDS_ENTRY and networks[network].missing_entry_fen is None:
            raise fields.error(where, f"{used} needs the entry, and network {network} states no missing_entry_fen")
    return LegRule(made, network, tuple(industries), lines, operators, product, bands)


def _concessions(fields: Fields, made: str, networks: list[str]) -> tuple[Concession, ...]:
    concessions: list[Concession] = []
    for table in fields.tables("concessions"):
        covered = _known(table, "networks", networks, networks)
        if twice := [network for other in concessions for network in other.networks if network in covered]:
            raise table.error("networks", f"{twice[0]} has a concession of this category already")
        concessions.append(
            Concession(
                made,
                covered,
                table.integer("rate_permille", 0, 1000),
                table.choice("of", {"base": False, "discounted": True}, False),
                table.integer("rides_a_month_max", 1, limits.RIDES_A_MONTH_MAX, None) or 0,
                table.flag("transfers", True),
            )
        )
        table.done()
    return tuple(concessions)


def _transfer(fields: Fields, made: str, networks: list[str]) -> TransferRule:
    when = _one(fields, "when", ("time", "stated", "either"))
    by_time = when != "stated"
    ends = {"start": True, "end": False}
    min_minutes, max_minutes, from_start, to_start, other_line = 0, 0, False, True, False
    from_networks: tuple[str, ...] = ()
    if by_time:
        from_networks = _known(fields, "from_networks", networks)
        max_minutes = fields.integer("max_minutes", 1, limits.TRANSFER_MINUTES_MAX)
        min_minutes = fields.integer("min_minutes", 0, max_minutes, 0)
        from_start, to_start = fields.choice("from", ends, False), fields.choice("to", ends, True)
        other_line = fields.flag("other_line", False)
    if ("amount_off_fen" in fields) == ("rate_permille" in fields):
        raise fields.error("amount_off_fen", "either it or rate_permille is wanted")
    return TransferRule(
        made, from_networks, _known(fields, "to_networks", networks), min_minutes * 60, max_minutes * 60, from_start, to_start,
        _amount(fields, "amount_off_fen", None), fields.integer("rate_permille", 0, 1000, 1000),
        fields.integer("chain_max", 1, limits.TRANSFER_CHAIN_MAX, limits.TRANSFER_CHAIN_MAX), other_line,
        by_time, when != "time",
    )  # fmt: skip


def parse_tariff(source: Source) -> Tariff:
    """One tariff file. Raises RuleError with line and field at its first fault; nothing of it is in force then."""
    top = source.fields()
    tariff_id = top.text("id", pattern=ID)
    version = top.integer("version", 1, limits.TARIFF_VERSION_MAX)
    effective = top.date("effective")
    until = top.date("until", None)
    for name, date in (("effective", effective), ("until", until)):
        if date is not None and not 2000 <= date.year <= 2099:
            raise top.error(name, "a date of 2000 to 2099 is wanted")
    if until is not None and until < effective:
        raise top.error("until", f"comes before effective, {effective}")
    rounding_down = top.choice("rounding", {"half_up": False, "down": True})
    rounding_fen = top.integer("rounding_fen", 1, 10)
    if rounding_fen not in (1, 10):
        raise top.error("rounding_fen", f"1 or 10 is wanted, not {rounding_fen}")
    special_days = _special_days(top)

    networks: dict[str, Network] = {}
    for fields in top.tables("networks"):
        made = _new_id(fields, networks, limits.TARIFF_NETWORKS_MAX)
        networks[made] = _network(fields, made)
        fields.done()
    areas = _read_areas(top, networks)
    products: dict[str, Product] = {}
    for fields in top.tables("fare_products"):
        made = _new_id(fields, products, limits.TARIFF_RULES_MAX)
        products[made] = _product(fields, made, areas, networks)
        fields.done()
    frames: dict[str, tuple[Window, ...]] = {}
    for fields in top.tables("timeframes"):
        made = _new_id(fields, frames, limits.TARIFF_RULES_MAX)
        frames[made] = _windows(fields)
        fields.done()
    leg_rules: dict[str, LegRule] = {}
    for fields in top.tables("fare_leg_rules"):
        made = _new_id(fields, leg_rules, limits.TARIFF_RULES_MAX)
        leg_rules[made] = _leg_rule(fields, made, networks, frames, products)
        fields.done()
    if not leg_rules:
        raise top.error("fare_leg_rules", "is missing: without one nothing is priced")
    names = list(networks)
    riders: dict[int, tuple[Concession, ...]] = {}
    category_ids: set[str] = set()
    for fields in top.tables("rider_categories"):
        made = _new_id(fields, category_ids, limits.TARIFF_RULES_MAX)
        category_ids.add(made)
        rider = fields.choice("rider", RIDERS)
        if rider in riders:
            raise fields.error("rider", "has a category already")
        riders[rider] = _concessions(fields, made, names)
        fields.done()
    transfers: dict[str, TransferRule] = {}
    for fields in top.tables("fare_transfer_rules"):
        made = _new_id(fields, transfers, limits.TARIFF_RULES_MAX)
        transfers[made] = _transfer(fields, made, names)
        fields.done()
    caps: dict[str, Cap] = {}
    for fields in top.tables("fare_caps"):
        made = _new_id(fields, caps, limits.TARIFF_RULES_MAX)
        period = _one(fields, "period", PERIODS)
        if sum(cap.period == period for cap in caps.values()) == len(cap_slots(period)):
            raise fields.error("period", f"a tariff has at most {len(cap_slots(period))} caps a {period}")
        caps[made] = Cap(made, period, _known(fields, "networks", names, names), _amount(fields, "amount_fen"))
        fields.done()
    passes: dict[str, Pass] = {}
    for fields in top.tables("passes"):
        made = _new_id(fields, passes, limits.TARIFF_PASSES_MAX)
        covered = _known(fields, "networks", names)
        passes[made] = Pass(made, covered, fields.integer("rate_permille", 0, 1000, 0))
        fields.done()
    top.done()
    return Tariff(
        tariff_id, version, effective, until, rounding_fen, rounding_down, special_days, networks, areas, products, leg_rules,
        riders, transfers, caps, passes, source,
    )  # fmt: skip


def cap_slots(period: str) -> range:
    """Which of a card's memories of amounts spent (yk_rides.spent_fen) are for caps of this period."""
    return {"day": range(3), "week": range(3, 5), "month": range(5, 7)}[period]


# ---- all versions together ----


class TariffSet:
    """The versions of one tariff in order of date, and the numbers by which the evaluator and a card's memory know their parts.

    Numbers are given in order of date, so that a new version leaves those of the versions before it as they are.
    Raises RuleError when two versions cannot stand beside each other."""

    def __init__(self, tariffs: Iterable[Tariff]) -> None:
        self.tariffs: Sequence[Tariff] = sorted(tariffs, key=lambda tariff: (tariff.effective, tariff.version))
        self.network_number: dict[str, int] = {}  # 0 … 30
        self.pass_number: dict[str, int] = {}  # 1 …; 0 is no pass
        self.operator_number: dict[str, int] = {}  # 1 …; 0 is any that no tariff names
        self.cap_slot: list[dict[str, int]] = []  # for each version
        self.rules: list[str] = [""]  # rule ids by rule number; 0 is none
        self._rule_number: dict[str, int] = {}
        for before, after in pairwise(self.tariffs):
            self._check_pair(before, after)
        for tariff in self.tariffs:
            self._number(tariff)

    @classmethod
    def read(cls, paths: Iterable[Path]) -> "TariffSet":
        """All of these files, or RuleError and none of them."""
        return cls([parse_tariff(Source.read(path)) for path in paths])

    def _check_pair(self, before: Tariff, after: Tariff) -> None:
        if after.id != before.id:
            raise after.source.error(("id",), f"{after.id} is not {before.id}, the tariff of {before.source.name}")
        if after.version <= before.version:
            raise after.source.error(("version",), f"more than {before.version} is wanted, that of {before.source.name}")
        if after.effective <= (before.until or before.effective):
            last = before.until or before.effective
            raise after.source.error(("effective",), f"overlaps {before.source.name}, which is in force until {last} at least")

    def _number(self, tariff: Tariff) -> None:
        for network in tariff.networks:
            self.network_number.setdefault(network, len(self.network_number))
        if len(self.network_number) > limits.TARIFF_NETWORKS_MAX:
            raise tariff.source.error(("networks",), f"with the versions before it has more than {limits.TARIFF_NETWORKS_MAX}")
        for name in tariff.passes:
            self.pass_number.setdefault(name, len(self.pass_number) + 1)
        if len(self.pass_number) > limits.TARIFF_PASSES_MAX:
            raise tariff.source.error(("passes",), f"with the versions before it has more than {limits.TARIFF_PASSES_MAX}")
        for leg in tariff.leg_rules.values():
            for operator in leg.operators:
                self.operator_number.setdefault(operator, len(self.operator_number) + 1)
        # A cap that goes on keeps its slot, so that a change of version in mid-month forgets nothing.
        before = self.cap_slot[-1] if self.cap_slot else {}
        slots = {cap.id: before[cap.id] for cap in tariff.caps.values() if before.get(cap.id, -1) in cap_slots(cap.period)}
        for cap in tariff.caps.values():
            if cap.id not in slots:
                slots[cap.id] = next(slot for slot in cap_slots(cap.period) if slot not in slots.values())
        self.cap_slot.append(slots)
        for kind, names in (
            ("leg", tariff.leg_rules), ("rates", tariff.products), ("missing_entry", tariff.networks),
            ("missing_exit", tariff.networks), ("transfer", tariff.transfers), ("cap", tariff.caps), ("pass", tariff.passes),
            ("rider", {concession.id for concessions in tariff.riders.values() for concession in concessions}),
        ):  # fmt: skip
            for name in sorted(names) if isinstance(names, set) else names:
                text = f"{tariff.name}/{kind}/{name}"
                self._rule_number[text] = len(self.rules)
                self.rules.append(text)
        if len(self.rules) > limits.TARIFF_RULE_NUMBERS_MAX:
            raise tariff.source.error((), f"with the versions before it has more than {limits.TARIFF_RULE_NUMBERS_MAX} rules")

    def rule_number(self, tariff: Tariff, kind: str, name: str) -> int:
        return self._rule_number[f"{tariff.name}/{kind}/{name}"]

    def last_day(self, at: int) -> datetime.date:
        """The last day on which a version is in force."""
        tariff = self.tariffs[at]
        if tariff.until is not None:
            return tariff.until
        if at + 1 < len(self.tariffs):
            return self.tariffs[at + 1].effective - datetime.timedelta(days=1)
        return datetime.date(2099, 12, 31)

    def in_force(self, date: datetime.date) -> int | None:
        """The index of the version that holds on a date, if one does."""
        for at, tariff in enumerate(self.tariffs):
            if tariff.effective <= date <= self.last_day(at):
                return at
        return None
