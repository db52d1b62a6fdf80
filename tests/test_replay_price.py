"""`yikatong replay --price`: fares of published records from nominal fare, rider category and stated transfer."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED_TAPS
from test_cli import HEADER, write, yikatong

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.clients.pricing import DEFAULT_TARIFF, Pricing, read_tariff
from yikatong.clients.replay import unique_taps
from yikatong.clients.taps_csv import read_records
from yikatong.core.rules.tariff import RIDERS
from yikatong.v1 import card_service_pb2

ENTRY, EXIT, BUS = "地铁入站", "地铁出站", "巴士"
ORDINARY, STUDENT, SENIOR = (RIDERS[name] for name in ("ordinary", "student", "senior"))


def record(
    card: str,
    time: str,
    deal_type: str,
    nominal_fen: int,
    charged_fen: int,
    mark: int = 0,
    station: str = "M1",
    company: str = "",
) -> str:
    """A line of a file. Terminals are of one company each."""
    company = company or ("地铁五号线" if deal_type != BUS else "金华南巴士")
    equipment = {ENTRY: "263032105", EXIT: "263031101"}.get(deal_type, f"22{sum(company.encode())}")
    return (
        f'"2018-09-02 {time}","2018-09-02 00:00:00",{card},{nominal_fen},{deal_type},{company},X-1,{station},{mark},'
        f"{charged_fen},{equipment}"
    )


def riders_of(folder: Path, lines: list[str]) -> dict[str, int]:
    records, broken = read_records(write(folder / "taps.csv", *lines))
    assert not broken
    taps = unique_taps(sorted(records, key=lambda record: record.time))
    return Pricing(read_tariff(None), taps).infer_riders()


# Rides of one card as (type, nominal, charged), and the category that they tell of.
INFERENCE = [
    ([(ENTRY, 0, 0)], ORDINARY),
    ([(EXIT, 200, 190)], ORDINARY),
    ([(EXIT, 200, 100)], STUDENT),
    ([(EXIT, 200, 0)], SENIOR),
    ([(BUS, 400, 315)], ORDINARY),
    ([(BUS, 400, 200)], STUDENT),
    ([(BUS, 400, 0)], SENIOR),
    ([(BUS, 400, 399)], ORDINARY),  # fits none
    ([(EXIT, 200, 100), (EXIT, 300, 285)], ORDINARY),  # one each: a tie goes to ordinary
    ([(EXIT, 200, 100), (EXIT, 300, 285), (EXIT, 400, 200)], STUDENT),
    ([(EXIT, 200, 190), (EXIT, 300, 285), (EXIT, 400, 0)], ORDINARY),
    ([(ENTRY, 0, 0), (EXIT, 300, 0), (ENTRY, 0, 0), (EXIT, 200, 0)], SENIOR),
]


@pytest.mark.parametrize(("rides", "rider"), INFERENCE)
def test_one_category_a_card(tmp_path: Path, rides: list[tuple[str, int, int]], rider: int) -> None:
    lines = [record("ABC", f"{8 + hour:02d}:00:00", *ride) for hour, ride in enumerate(rides)]
    assert riders_of(tmp_path, lines) == {"012": rider}
    assert riders_of(tmp_path, lines[::-1]) == {"012": rider}  # the file's order says nothing


def test_what_a_transfer_explains_is_counted_before_a_category_is_chosen(tmp_path: Path) -> None:
    lines = [record("A", "08:00:00", EXIT, 400, 340, mark=1), record("B", "08:00:00", EXIT, 400, 160, mark=1)]
    assert riders_of(tmp_path, lines) == {"0": ORDINARY, "1": STUDENT}


FILE = [
    record("AA", "08:00:00", ENTRY, 0, 0),
    record("AA", "08:30:00", EXIT, 700, 665),
    record("AA", "09:00:00", BUS, 800, 555),  # 595, and 40 off: half an hour after the metro
    record("BA", "08:00:00", BUS, 300, 240, station="331(松岗）"),
    record("BA", "08:40:00", BUS, 300, 240, station="331(蛇口)"),  # the same line the other way is no transfer
    record("BA", "10:10:00", BUS, 300, 200, station="E24"),  # another line, 90 minutes later
    record("BA", "11:40:01", BUS, 300, 240, station="M433"),
    record("CA", "08:00:00", EXIT, 600, 530, mark=1),
    record("DA", "08:00:00", EXIT, 600, 300),
    record("DA", "18:00:00", BUS, 500, 250, company="新公司"),
    record("EA", "08:00:00", EXIT, 200, 0),
    record("FA", "08:00:00", BUS, 200, 200, station="深惠3A线", company="华程交通"),
    record("FA", "08:30:00", BUS, 200, 120, company="华程交通"),
    record("GA", "08:00:00", BUS, 200, 111),  # nothing explains these
    record("HA", "08:00:00", BUS, 200, 111),
    record("HA", "12:00:00", EXIT, 300, 111),
    record("HA", "12:00:00", EXIT, 300, 111),  # repeated
]


def priced(file: Path, *arguments: str | Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(yikatong("replay", file, "--price", "--json", "-", *arguments).stdout)
    return result


def test_records_are_charged_by_the_tariff(tmp_path: Path) -> None:
    file = write(tmp_path / "taps.csv", *FILE, FILE[0].replace("AA,0", "AK,0"))
    first = priced(file, "--data", tmp_path / "data")
    assert (first["records"], first["skipped"], first["accepted"], first["duplicates"]) == (17, 1, 16, 1)
    assert (first["priced"], first["exact"], first["exact_share"]) == (17, 13, 13 / 17)
    assert (first["nominal_records"], first["nominal_exact"], first["nominal_exact_share"]) == (16, 12, 0.75)
    assert first["riders"] == {"ordinary": 6, "senior": 1, "student": 1}
    columns = ("deal_type", "nominal_fen", "charged_fen", "deal_money_fen", "records")
    assert [tuple(row[column] for column in columns) for row in first["rest"]] == [
        (EXIT, 300, 285, 111, 2), (BUS, 200, 160, 111, 2),
    ]  # fmt: skip
    # The taps carry the tariff's amounts, and that is what is cleared.
    assert (first["agrees_with_file"], first["balanced"], first["tariff"]) == (True, True, "shenzhen/1")
    assert {row["operator"]: (row["taps"], row["amount_fen"]) for row in first["operators"]} == {
        "地铁五号线": (6, 0 + 665 + 530 + 300 + 0 + 285), "金华南巴士": (7, 555 + 240 + 240 + 200 + 240 + 160 + 160),
        "新公司": (1, 250), "华程交通": (2, 320),
    }  # fmt: skip
    again = priced(file, "--data", tmp_path / "data")
    assert (again["accepted"], again["duplicates"], again["total_fen"]) == (0, 17, first["total_fen"])
    assert again["journal_records"] == first["journal_records"]
    shown = yikatong("replay", file, "--price", "--data", tmp_path / "data").stdout
    assert "13 of 17 records, 76.47%" in shown
    assert "the totals are the tariff's, to the fen" in shown


def test_cards_are_registered_with_their_category_and_keep_it(tmp_path: Path, key_file: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with EmbeddedServer(data, key_file) as server:
        file = write(tmp_path / "one.csv", *FILE)
        where = ["--server", server.address, "--keys", key_file, "--counters", tmp_path / "counters"]
        priced(file, *where)
        with Connection(server.address) as connection:
            for card, rider in [("00", ORDINARY), ("30", STUDENT), ("40", SENIOR)]:
                request = card_service_pb2.GetCardRequest(card_number=card)
                assert connection.cards.GetCard(request).card.rider == rider
        # On another day the student's card pays like anybody's; the card is a student's still, and charged as one.
        other = write(tmp_path / "two.csv", record("DA", "20:00:00", EXIT, 200, 190), record("IA", "20:00:00", EXIT, 200, 190))
        second = priced(other, *where)
        assert second["riders"] == {"ordinary": 1, "student": 1}
        assert (second["exact"], second["total_fen"]) == (1, 290)


def test_another_tariff(tmp_path: Path) -> None:
    file = write(tmp_path / "taps.csv", *FILE)
    own = tmp_path / "own.toml"
    text = DEFAULT_TARIFF.read_text("utf-8").replace('id = "shenzhen"', 'id = "own"').replace("= 950", "= 1000")
    own.write_text(text, "utf-8")
    result = priced(file, "--tariff", own)
    assert result["tariff"] == "own/1"
    assert result["exact"] == 11  # two ordinary metro rides less
    own.write_text(text.replace("effective = 2018-01-01", "effective = 2018-09-03"), "utf-8")
    later = priced(file, "--tariff", own)
    assert (later["priced"], later["exact"], later["total_fen"], later["agrees_with_file"]) == (0, 0, 0, True)


def test_a_wrong_tariff_does_nothing_at_all(tmp_path: Path) -> None:
    file = write(tmp_path / "taps.csv", *FILE)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(DEFAULT_TARIFF.read_text("utf-8").replace("min_fen = 300", "min_fen = 310"), "utf-8")
    done = yikatong("replay", file, "--price", "--tariff", wrong, "--data", tmp_path / "data", ok=False)
    assert "wrong.toml:40: fare_products[1].rates[1].min_fen: leaves amounts with a gap: 300 is wanted, not 310" in done.stderr
    assert not (tmp_path / "data").exists()
    assert "--tariff is for --price" in yikatong("replay", file, "--tariff", wrong, ok=False).stderr


def test_a_file_of_nothing(tmp_path: Path) -> None:
    result = priced(write(tmp_path / "taps.csv"))
    assert (result["records"], result["priced"], result["exact"], result["exact_share"]) == (0, 0, 0, 1.0)
    assert HEADER.startswith("deal_date")


def test_the_published_records(tmp_path: Path) -> None:
    """Reads the shared file where there is one. Every record counts; the tariff names no card and no record."""
    if not SHARED_TAPS.exists():
        pytest.skip("the published records are not here")
    result = priced(SHARED_TAPS, "--data", tmp_path / "data")
    with SHARED_TAPS.open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert (result["records"], result["accepted"], result["priced"]) == (len(rows), len(rows), len(rows))
    assert result["exact"] + sum(row["records"] for row in result["rest"]) == len(rows)
    assert result["exact_share"] >= 0.999
    assert result["nominal_exact_share"] >= 0.99
    assert (result["agrees_with_file"], result["balanced"]) == (True, True)
    published = sum(int(row["deal_money"]) for row in rows)
    assert result["total_fen"] - published == sum(
        row["records"] * (row["charged_fen"] - row["deal_money_fen"]) for row in result["rest"]
    )
