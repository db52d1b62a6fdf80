"""What simulated chips and terminals remember: which counter each tap used. In a file, a tap keeps its counters from run to
run, so that the same tap is the same tap; new ones go on counting."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Self


class Counters:
    """Counters by card and by terminal. Without a path they are forgotten at the end."""

    def __init__(self, path: Path | None) -> None:
        self._database = sqlite3.connect(path or ":memory:")
        self._database.executescript(
            """
            PRAGMA synchronous = FULL;
            CREATE TABLE IF NOT EXISTS tap (
                card TEXT, time TEXT, terminal TEXT, atc INTEGER NOT NULL, sequence INTEGER NOT NULL,
                PRIMARY KEY (card, time, terminal)) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS card (card TEXT PRIMARY KEY, atc INTEGER NOT NULL) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS terminal (terminal TEXT PRIMARY KEY, sequence INTEGER NOT NULL) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS number (
                equipment TEXT, company TEXT, number TEXT NOT NULL UNIQUE, PRIMARY KEY (equipment, company)) WITHOUT ROWID;
            """
        )

    def terminal_numbers(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        """A terminal number (6 bytes of BCD) for each equipment number and company. Equipment that is seen under a second
        company is another terminal: its number gets a prefix."""
        numbers: dict[tuple[str, str], bytes] = {}
        with self._database as database:
            for equipment, company in pairs:
                known = database.execute(
                    "SELECT number FROM number WHERE equipment = ? AND company = ?", (equipment, company)
                ).fetchone()
                if known is None:
                    (others,) = database.execute("SELECT count(*) FROM number WHERE equipment = ?", (equipment,)).fetchone()
                    known = (f"{others:03d}{equipment:>09s}",)
                    database.execute("INSERT INTO number VALUES (?, ?, ?)", (equipment, company, known[0]))
                numbers[equipment, company] = bytes.fromhex(known[0])
        return numbers

    def assign(self, taps: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], tuple[int, int]]:
        """ATC and terminal sequence for each tap (card, time, terminal), in the order given; kept before this returns."""
        assigned: dict[tuple[str, str, str], tuple[int, int]] = {}
        with self._database as database:
            for tap in taps:
                if tap in assigned:
                    continue
                known = database.execute(
                    "SELECT atc, sequence FROM tap WHERE card = ? AND time = ? AND terminal = ?", tap
                ).fetchone()
                if known is None:
                    card, _, terminal = tap
                    (atc,) = database.execute(
                        "INSERT INTO card VALUES (?, 1) ON CONFLICT DO UPDATE SET atc = atc + 1 RETURNING atc", (card,)
                    ).fetchone()
                    (sequence,) = database.execute(
                        "INSERT INTO terminal VALUES (?, 1) ON CONFLICT DO UPDATE SET sequence = sequence + 1 RETURNING sequence",
                        (terminal,),
                    ).fetchone()
                    known = (atc, sequence)
                    database.execute("INSERT INTO tap VALUES (?, ?, ?, ?, ?)", (*tap, *known))
                assigned[tap] = known
        return assigned

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
