"""Tap records as the Shenzhen open-data platform publishes them (data set 29200_00403601), from CSV."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from yikatong.core.errors import DataError

COLUMNS: Final = (
    "card_no", "deal_date", "deal_type", "deal_value", "deal_money", "equ_no", "company_name", "station", "car_no", "conn_mark",
)  # fmt: skip
AMOUNT_FEN_MAX: Final = 0xFFFFFFFF
UNMASK: Final = str.maketrans("ABCDEFGHIJ", "0123456789")
METRO_ENTRY, METRO_EXIT, BUS = "地铁入站", "地铁出站", "巴士"
TAP_KINDS: Final = {METRO_ENTRY: 1, METRO_EXIT: 2, BUS: 3}  # TapKind
INDUSTRY_METRO, INDUSTRY_BUS, INDUSTRY_COACH = 1, 2, 8
INTERCITY: Final = re.compile("深[惠莞汕]")  # lines named after two cities: Shenzhen and Huizhou, Dongguan or Shanwei
VARIANT: Final = re.compile("[(（].*")  # a line's destination or variant


@dataclass(frozen=True, slots=True)
class TapRecord:
    """One record: amounts in fen, time local (UTC+8)."""

    line: int  # in the file, the header being line 1
    card_number: str
    time: str  # YYYYMMDDhhmmss
    deal_type: str
    deal_value_fen: int
    deal_money_fen: int
    equipment: str
    company: str
    station: str
    car: str
    transfer: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """Records that agree in this are one tap."""
        return self.card_number, self.time, self.equipment

    @property
    def industry(self) -> int:
        """Industry code. A bus line to another city is a coach: the city's bus fares are not its own."""
        if self.deal_type != BUS:
            return INDUSTRY_METRO
        return INDUSTRY_COACH if INTERCITY.match(self.station) else INDUSTRY_BUS

    @property
    def line_name(self) -> str:
        """The bus line, both its directions being one line; the metro's station."""
        return (VARIANT.sub("", self.station).strip() or self.station) if self.deal_type == BUS else self.station


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that is no record, and why."""

    line: int
    reason: str


class NotTapRecords(DataError):
    """The file as a whole cannot be read as tap records."""


def _amount(row: dict[str, str], column: str) -> int:
    text = row[column].strip()
    if not (text.isascii() and text.isdigit()) or int(text) > AMOUNT_FEN_MAX:
        raise ValueError(f"{column}: fen from 0 to {AMOUNT_FEN_MAX} are wanted, not {text!r}")
    return int(text)


def _record(line: int, row: dict[str, str]) -> TapRecord:
    card = row["card_no"].strip()
    if not 1 <= len(card) <= 20 or set(card) - set("ABCDEFGHIJ"):
        raise ValueError(f"card_no: 1 to 20 letters A to J are wanted, not {card!r}")
    time = datetime.strptime(row["deal_date"].strip(), "%Y-%m-%d %H:%M:%S")
    if not 2000 <= time.year <= 2099:
        raise ValueError(f"deal_date: a year of 2000 to 2099 is wanted, not {time.year}")
    deal_type = row["deal_type"].strip()
    if deal_type not in (METRO_ENTRY, METRO_EXIT, BUS):
        raise ValueError(f"deal_type: {METRO_ENTRY}, {METRO_EXIT} or {BUS} is wanted, not {deal_type!r}")
    equipment = row["equ_no"].strip()
    if not (equipment.isascii() and equipment.isdigit() and 1 <= len(equipment) <= 9):
        raise ValueError(f"equ_no: 1 to 9 digits are wanted, not {equipment!r}")
    company = row["company_name"].strip()
    if not 1 <= len(company.encode()) <= 64 or not company.isprintable():
        raise ValueError(f"company_name: 1 to 64 bytes of text are wanted, not {company!r}")
    mark = row["conn_mark"].strip()
    if mark not in ("0", "1"):
        raise ValueError(f"conn_mark: 0 or 1 is wanted, not {mark!r}")
    return TapRecord(
        line, card.translate(UNMASK), time.strftime("%Y%m%d%H%M%S"), deal_type, _amount(row, "deal_value"),
        _amount(row, "deal_money"), equipment, company, row["station"].strip(), row["car_no"].strip(), mark == "1",
    )  # fmt: skip


def _rows(path: Path) -> Iterator[tuple[int, list[str] | csv.Error]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        while True:
            line = reader.line_num + 1
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, error


def read_records(path: Path) -> tuple[list[TapRecord], list[BrokenLine]]:
    """All records of a file in file order, and its broken lines. Raises NotTapRecords when the header is not there."""
    try:
        rows = _rows(path)
        _, header = next(rows, (1, []))
    except OSError as error:
        raise NotTapRecords(f"{path}: {error.strerror}") from error
    names = [] if isinstance(header, csv.Error) else [name.strip() for name in header]
    if missing := [column for column in COLUMNS if column not in names]:
        raise NotTapRecords(f"{path}: the header lacks {', '.join(missing)}")
    records, broken = [], []
    for line, row in rows:
        if isinstance(row, csv.Error):
            broken.append(BrokenLine(line, str(row)))
        elif not row:
            continue  # an empty line says nothing
        elif len(row) != len(names):
            broken.append(BrokenLine(line, f"{len(row)} columns instead of {len(names)}"))
        else:
            try:
                if any("\udc80" <= character <= "\udcff" for field in row for character in field):
                    raise ValueError("is not UTF-8")
                records.append(_record(line, dict(zip(names, row, strict=True))))
            except ValueError as error:
                broken.append(BrokenLine(line, str(error).encode(errors="backslashreplace").decode()))
    return records, broken
