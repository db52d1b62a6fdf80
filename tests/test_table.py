"""The photograph of the engine's tables: exactly what they were at the freeze, however much is written meanwhile."""

import random
import threading
from typing import Any

import numpy as np
import pytest
from harness import ISSUER, KEY_SET, START_S, make_tap, submit_request

from yikatong.clients.card import sign
from yikatong.core.types import RECORD, Flag
from yikatong.ext.engine import PAGE_BYTES, Engine, EngineFault, EngineFull

TABLES = ("cards", "accounts", "terminals")
CARDS, TERMINALS = 6_000, 1_200  # 24 pages of cards, 3 of accounts, 3 of terminals
TAPS = 1_500

Page = tuple[str, int]


class Writer:
    """An engine and the one who writes to it, with a dict of all counters that were used up since the last photograph."""

    def __init__(self, seed: int, cards: int = CARDS, terminals: int = TERMINALS) -> None:
        self.chance = random.Random(seed)
        self.engine = make_engine()
        self.engine.add_key(KEY_SET.issuer_id, KEY_SET.key_version, KEY_SET.key_index, KEY_SET.parent())
        self.operator = self.engine.add_operator(1, b"bus")
        self.cards, self.terminals, self.counter = 0, 0, 0
        self.counters: tuple[dict[int, int], dict[int, int]] = {}, {}
        self.add_cards(cards)
        for _ in range(terminals):
            self.engine.add_terminal(self.terminal_number(self.terminals), 1, self.operator, 1, b"")
            self.terminals += 1
        self.take()

    @staticmethod
    def card_number(card: int) -> str:
        return f"31044160{card:08d}"

    @staticmethod
    def terminal_number(terminal: int) -> bytes:
        return terminal.to_bytes(6, "big")

    def add_cards(self, count: int) -> None:
        for _ in range(count):
            self.engine.add_card(self.card_number(self.cards), ISSUER, 1, 0, 1, b"")
            self.cards += 1

    def make_taps(self, count: int) -> bytes:
        """Stored taps of cards here and there, all of them new; every other one cannot prove itself."""
        taps = []
        for _ in range(count):
            self.counter += 1
            taps.append(
                make_tap(
                    card_number=self.card_number(self.chance.randrange(self.cards)),
                    atc=self.counter % 65_536,
                    terminal_number=self.terminal_number(self.chance.randrange(self.terminals)),
                    terminal_sequence=self.counter,
                    amount_fen=self.chance.randrange(500),
                    mac=b"\0\0\0\0",
                )
            )
        sign(taps[::2], [KEY_SET])
        return submit_request(taps)

    def run(self, request: bytes) -> None:
        engine = self.engine
        assert engine.decode([request], [True], START_S, 300, 8_192)[0] > 0
        engine.lookup()
        engine.verify()
        engine.run(START_S * 1_000_000)
        self.take()

    def top_up(self, count: int) -> None:
        for _ in range(count):
            self.engine.top_up(self.chance.randrange(self.cards), self.chance.randrange(1, 3_000), 1, b"")
        self.take()

    def take(self) -> None:
        records = np.frombuffer(self.engine.take_group()[2], RECORD)
        for record in records[records["flags"] & Flag.COUNTED != 0]:
            sequence = int(record["sequence"])
            self.counters[0][int(record["card"]) << 16 | int(record["atc"])] = sequence
            self.counters[1][int(record["terminal"]) << 32 | int(record["terminal_sequence"])] = sequence

    def forget_counters(self) -> tuple[dict[int, int], dict[int, int]]:
        counters, self.counters = self.counters, ({}, {})
        return counters


def make_engine() -> Engine:
    return Engine(
        cards_max=20_000, terminals_max=5_000, ring_records=1 << 12, batch_taps_max=8_192, stored_grace_s=0, hash_seed=7
    )


def contents(engine: Engine) -> dict[str, Any]:
    """All that can be seen in the tables."""
    counts = engine.counts
    return {
        "cards": [engine.card(slot) for slot in range(counts["cards"])],
        "terminals": [engine.terminal(slot) for slot in range(counts["terminals"])],
        "balances": engine.balances_fen().tolist(),
    }


def restored(album: dict[Page, bytes], photograph: dict[str, Any]) -> dict[str, Any]:
    """All that can be seen in an engine that is made from photographs."""
    engine = make_engine()
    for (table, page), data in album.items():
        engine.restore_page(table, page, data)
    engine.restored(photograph["counts"], photograph["sequence"])
    assert engine.next_sequence == photograph["sequence"] + 1
    return contents(engine)


def places(photograph: dict[str, Any], chance: random.Random) -> list[Page]:
    """Every page of a photograph, in no particular order."""
    found = [(table, i) for table in TABLES for i in range(photograph["pages"][table])]
    chance.shuffle(found)
    return found


def copy_pages(engine: Engine, wanted: list[Page], into: dict[Page, bytes]) -> None:
    for table, i in wanted:
        page, data = engine.frozen_page(table, i)
        into[table, page] = data


def as_dicts(seen: tuple[Any, Any, Any, Any]) -> tuple[dict[int, int], dict[int, int]]:
    card_keys, card_sequences, terminal_keys, terminal_sequences = seen
    for keys in (card_keys, terminal_keys):
        assert (np.diff(keys.astype(object)) > 0).all()
    return (
        dict(zip(card_keys.tolist(), card_sequences.tolist(), strict=True)),
        dict(zip(terminal_keys.tolist(), terminal_sequences.tolist(), strict=True)),
    )


# ---- a photograph while the writer goes on ----


@pytest.mark.parametrize("when", ["copied first", "written first", "at the same time"])
def test_photograph_is_the_table_at_the_freeze(when: str) -> None:
    """Round after round, with new cards, taps and top-ups between freeze and copy; every third photograph comes to nothing."""
    writer = Writer(seed=len(when))
    engine, chance = writer.engine, writer.chance
    album: dict[Page, bytes] = {}
    lost: tuple[dict[int, int], dict[int, int]] = {}, {}
    for number in range(90):
        writer.run(writer.make_taps(50))
        expected = contents(engine)
        counters = writer.forget_counters()
        photograph = engine.freeze()
        assert photograph["sequence"] == engine.next_sequence - 1

        requests = [writer.make_taps(TAPS // 3) for _ in range(3)]
        new_pages: dict[Page, bytes] = {}
        copier = threading.Thread(target=copy_pages, args=(engine, places(photograph, chance), new_pages))
        if when != "written first":
            copier.start()
        if when == "copied first":
            copier.join()
        writer.add_cards(100)
        for request in requests:
            writer.run(request)
        writer.top_up(200)
        if when == "written first":
            copier.start()
        copier.join()

        assert len(new_pages) == sum(photograph["pages"].values())
        for known, of_round in zip(lost, counters, strict=True):
            known.update(of_round)
        assert as_dicts(engine.frozen_seen()) == lost
        if number % 3 == 2:
            engine.thaw()
            continue
        lost = {}, {}
        engine.release()
        album |= new_pages
        assert restored(album, photograph) == expected
        assert len(counters[0]) >= 25  # half of the 50 taps of before the freeze had proved themselves
    assert engine.imbalance_fen() == 0


@pytest.mark.parametrize("seed", range(6))
def test_thaw_at_any_moment(seed: int) -> None:
    """A checkpoint fails when some pages were fetched, some saved by the writer, and some neither: nothing is lost.

    Few taps, so that most pages change only before the photographs that came to nothing."""
    writer = Writer(seed)
    engine, chance = writer.engine, writer.chance
    for _ in range(4):
        wanted = places(engine.freeze(), chance)
        copy_pages(engine, wanted[: chance.randrange(len(wanted))], {})
        writer.run(writer.make_taps(chance.randrange(1, 5)))
        writer.top_up(chance.randrange(3))
        if chance.random() < 0.5:
            writer.add_cards(300)  # pages that the photograph does not know
        engine.thaw()
        assert all(engine.seen_in_memory(key, 0)[0] == sequence for key, sequence in writer.counters[0].items())
    expected, photograph, album = contents(engine), engine.freeze(), {}
    pages_of = {"cards": 256, "accounts": 1_024, "terminals": 512}
    assert photograph["pages"] == {table: -(-engine.counts[table] // slots) for table, slots in pages_of.items()} | {"rides": 0}
    copy_pages(engine, places(photograph, chance), album)
    assert as_dicts(engine.frozen_seen()) == writer.counters
    engine.release()
    assert restored(album, photograph) == expected


def test_counters_are_found_during_and_after_a_photograph() -> None:
    """A tap of before the freeze is a duplicate during the photograph, and after one that came to nothing."""
    writer = Writer(1, cards=10, terminals=10)
    engine = writer.engine
    first = writer.make_taps(1)
    writer.run(first)
    ((card_key, sequence),) = writer.counters[0].items()
    ((terminal_key, _),) = writer.counters[1].items()

    def places_found() -> tuple[int, int]:
        found: tuple[int, int] = engine.seen_in_memory(card_key, terminal_key)
        return found

    assert places_found() == (sequence, sequence)
    engine.freeze()
    assert places_found() == (sequence, sequence)
    writer.run(writer.make_taps(100))
    engine.thaw()
    assert places_found() == (sequence, sequence)
    before = engine.next_sequence
    writer.run(first)  # nothing is journalled for a duplicate
    assert engine.next_sequence == before
    engine.freeze()
    engine.release()
    assert places_found() == (0, 0)  # from here on the segments know it


# ---- which pages a photograph holds ----

PAGES = """
what happens                      | cards | accounts | terminals
nothing                           | 0     | 0        | 0
a top-up of a near card           | 1     | 1        | 0
a top-up of a far card            | 1     | 2        | 0
two top-ups of near cards         | 1     | 1        | 0
an operator                       | 0     | 1        | 0
a card                            | 1     | 1        | 0
a terminal                        | 0     | 0        | 1
a tap of a near card              | 1     | 1        | 1
a tap of a far card               | 1     | 2        | 1
a tap that is not proved          | 1     | 0        | 0
a tap again                       | 0     | 0        | 0
a malformed tap                   | 0     | 0        | 0
a tap of an unknown card          | 0     | 0        | 0
"""


@pytest.fixture(scope="module")
def photographed() -> Writer:
    """2,100 cards whose tables were photographed."""
    writer = Writer(3, cards=2_100, terminals=600)
    _shoot(writer.engine)
    return writer


def _shoot(engine: Engine) -> dict[str, int]:
    photograph = engine.freeze()
    copy_pages(engine, places(photograph, random.Random(0)), {})
    engine.release()
    pages: dict[str, int] = photograph["pages"]
    return pages


def _happen(writer: Writer, what: str) -> None:
    engine = writer.engine
    writer.counter += 1
    card = 2_090 if "far" in what else 3  # its slot and its account stand on other pages
    fields: dict[str, Any] = {
        "card_number": writer.card_number(card),
        "atc": writer.counter,
        "terminal_number": writer.terminal_number(2),
        "terminal_sequence": writer.counter,
    }
    match what:
        case "nothing":
            pass
        case "a top-up of a near card" | "a top-up of a far card":
            engine.top_up(card, 5, 1, b"")
        case "two top-ups of near cards":
            engine.top_up(1, 5, 1, b"")
            engine.top_up(2, 5, 1, b"")
        case "an operator":
            engine.add_operator(1, b"metro")
        case "a card":
            writer.add_cards(1)
        case "a terminal":
            engine.add_terminal(b"\xff" + writer.counter.to_bytes(5, "big"), 1, writer.operator, 1, b"")
        case "a tap of a near card" | "a tap of a far card":
            writer.run(submit_request([make_tap(**fields)]))
        case "a tap that is not proved":
            writer.run(submit_request([make_tap(**fields, mac=b"\0\0\0\0")]))
        case "a tap again":
            tap = make_tap(**fields)
            writer.run(submit_request([tap]))
            wanted = places(engine.freeze(), writer.chance)
            copy_pages(engine, wanted, {})
            writer.run(submit_request([tap]))  # until the release, memory knows it
            engine.release()
        case "a malformed tap":
            writer.run(submit_request([make_tap(**fields, kind=9, mac=b"\0\0\0\0")]))
        case "a tap of an unknown card":
            writer.run(submit_request([make_tap(**fields | {"card_number": "1"})]))
        case _:
            raise ValueError(what)


@pytest.mark.parametrize("row", PAGES.strip().splitlines()[1:], ids=lambda row: row.split("|")[0].strip())
def test_pages_of_a_photograph(photographed: Writer, row: str) -> None:
    what, *pages = (part.strip() for part in row.split("|"))
    _happen(photographed, what)
    assert _shoot(photographed.engine) == dict(zip(TABLES, map(int, pages), strict=True)) | {"rides": 0}
    assert _shoot(photographed.engine) == dict.fromkeys((*TABLES, "rides"), 0)


# ---- misuse ----


def test_one_photograph_at_a_time() -> None:
    writer = Writer(1, cards=1, terminals=1)
    writer.engine.freeze()
    with pytest.raises(RuntimeError, match="already"):
        writer.engine.freeze()
    writer.engine.thaw()
    writer.engine.freeze()


def test_places_that_are_not_there() -> None:
    engine = Writer(1, cards=1, terminals=1).engine
    pages = engine.freeze()["pages"]
    for table in TABLES:
        with pytest.raises(IndexError):
            engine.frozen_page(table, pages[table])
    with pytest.raises(KeyError):
        engine.frozen_page("payloads", 0)
    with pytest.raises(EngineFull, match="beyond the configured number"):
        make_engine().restore_page("cards", 1 << 31, bytes(PAGE_BYTES))
    with pytest.raises(EngineFault, match="has 16383 bytes"):
        make_engine().restore_page("cards", 0, bytes(PAGE_BYTES - 1))
    holed = make_engine()
    holed.restore_page("cards", 0, bytes(PAGE_BYTES))
    with pytest.raises(EngineFault, match="page 1 of cards is missing"):
        holed.restored({"cards": 300, "accounts": 1, "terminals": 0}, 1)
