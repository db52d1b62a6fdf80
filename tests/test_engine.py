"""What becomes of a tap, as tables.

A script is played row by row, each row in a group commit of its own (a `+` joins it to the batch of the row before):

    operation  card  ATC  terminal/sequence  fen  changes | result  charged  balance  marks

* The operation is `online`, `stored` or `top_up`; or, alone in its row, `checkpoint`, `restart`, or `pass` some seconds.
* `=1` instead of a card sends the tap of row 1 again. Rows are counted from 1, and only those with an operation.
* Changes: `field=value` before the card answers, `field:=value` after it has (so that the MAC does not stand under it), `-60`
  or `+60` for a tap made so many seconds before or after the core's clock, and `!mac` for a MAC that is wrong.
* Marks: `again=1` is the answer of row 1 as a duplicate, `with=1` a conflict with row 1, `fraud` and `denied` are flags of
  the record. What is not marked must not be there.
"""

import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from harness import (
    DAY_S,
    ISSUER,
    KEY_SET,
    KEY_SETS,
    OTHER_ISSUER,
    OTHER_KEY_SET,
    START_S,
    U32,
    Harness,
    authorize_request,
    limited,
    local_time_of,
    make_tap,
    reference_mac,
    submit_request,
)

from yikatong.clients.card import SimulatedCard, sign
from yikatong.core import commands
from yikatong.core.check import check
from yikatong.core.errors import Damaged
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import NONE, RECORD, Flag, RecordKind, Result
from yikatong.ext.engine import Engine, EngineFault, EngineFull, audit, outcomes_of_records
from yikatong.v1 import account_service_pb2, card_service_pb2, tap_service_pb2, terminal_service_pb2

CARDS = {
    # name   number                   issuer        expires
    "A":   ("3104416000000017",       ISSUER,       0),
    "B":   ("3104416000000025",       ISSUER,       0),
    "E":   ("3104416000000033",       ISSUER,       20250102),
    "O":   ("4416000000000001",       OTHER_ISSUER, 0),
    # Five card numbers, one number, one card serial.
    "N1":  ("7",                      ISSUER,       0),
    "N2":  ("07",                     ISSUER,       0),
    "N9":  ("000000007",              ISSUER,       0),
    "N16": ("0000000000000007",       ISSUER,       0),
    "N20": ("00000000000000000007",   ISSUER,       0),
    "A20": ("98013104416000000017",   ISSUER,       0),
}  # fmt: skip
UNKNOWN_CARD = "31044160000000170"
TERMINALS = {
    # name   number                               operator
    "T1":  (bytes.fromhex("112233445566"),        "bus"),
    "T2":  (bytes.fromhex("000000000000"),        "bus"),
    "T3":  (bytes.fromhex("ffffffffffff"),        "metro"),
}  # fmt: skip
UNKNOWN_TERMINAL = b"nobody"


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path / "data", stored_grace_s=DAY_S) as harness:
        populate(harness)
        yield harness


def populate(core: Harness) -> None:
    for number, issuer_id, expires in CARDS.values():
        assert core.register_card(number, issuer_id, expires=expires).result == Result.ACCEPTED
    for number, operator_id in TERMINALS.values():
        assert core.register_terminal(number, operator_id).result == Result.ACCEPTED


def key_set_of(card: str) -> KeySet:
    return OTHER_KEY_SET if card == "O" else KEY_SET


# ---- scripts ----


class Played(NamedTuple):
    """One row that was played: the tap or None, and its answer."""

    tap: tap_service_pb2.Tap | None
    outcome: Any


class Row(NamedTuple):
    operation: str
    card: str
    atc: str
    place: str
    fen: str
    changes: list[str]
    result: Result
    charged: str
    balance: str
    marks: list[str]

    @classmethod
    def parse(cls, line: str) -> "Row":
        asked, expected = line.split("|")
        operation, card, atc, place, fen, changes = asked.split()
        result, charged, balance, marks = expected.split()
        return cls(
            operation, card, atc, place, fen,
            [] if changes == "." else changes.split(","),
            Result[result], charged, balance,
            [] if marks == "." else marks.split(","),
        )  # fmt: skip


class Player:
    """Plays a script against a core and holds each answer, and its record, against the row."""

    def __init__(self, core: Harness) -> None:
        self.core = core
        self.played: list[Played] = []

    def play(self, script: str) -> None:
        batch: list[Row] = []
        for line in [*filter(None, map(str.strip, script.splitlines())), ""]:
            if line.startswith("#"):
                continue
            if not line.startswith("+") and batch:
                self._run(batch)
                batch = []
            match line.split():
                case []:
                    pass
                case ["checkpoint"]:
                    assert self.core.checkpoint()
                case ["restart"]:
                    self.core.restart()
                case ["pass", seconds]:
                    self.core.pass_time(int(seconds))
                case _:
                    batch.append(Row.parse(line.lstrip("+ ")))

    def _run(self, rows: list[Row]) -> None:
        self.core.pass_time(0.001)
        taps: list[tuple[bool, tap_service_pb2.Tap]] = []
        outcomes: list[Any] = []
        for row in rows:
            if row.operation == "top_up":
                outcomes.append(self.core.top_up(CARDS[row.card][0], int(row.fen)))
                self.played.append(Played(None, outcomes[-1]))
            else:
                tap = self._tap(row)
                taps.append((row.operation == "stored", tap))
                self.played.append(Played(tap, None))
        if taps:
            requests = [submit_request([tap]) if stored else authorize_request(tap) for stored, tap in taps]
            batch = self.core.run(requests, [stored for stored, _ in taps])
            for (stored, _), response in zip(taps, batch.responses, strict=True):
                kind = tap_service_pb2.SubmitTapsResponse if stored else tap_service_pb2.AuthorizeTapResponse
                answer: Any = kind.FromString(response)
                outcomes.append(answer.outcomes[0] if stored else answer.outcome)
            assert [bool("fraud" in row.marks) for row in rows] == batch.outcomes["fraud"].astype(bool).tolist()
        first = len(self.played) - len(rows)
        for at, (row, outcome) in enumerate(zip(rows, outcomes, strict=True), first):
            self.played[at] = self.played[at]._replace(outcome=outcome)
            self._compare(at + 1, row, outcome)
        assert self.core.engine.imbalance_fen() == 0

    def _tap(self, row: Row) -> tap_service_pb2.Tap:
        if row.card.startswith("="):
            tap = tap_service_pb2.Tap()
            earlier = self.played[int(row.card[1:]) - 1].tap
            assert earlier is not None
            tap.CopyFrom(earlier)
            key_set = next(each for each in KEY_SETS if each.issuer_id == tap.issuer_id)
        else:
            terminal, sequence = row.place.split("/")
            key_set = key_set_of(row.card)
            tap = make_tap(
                key_set,
                card_number=CARDS[row.card][0] if row.card in CARDS else UNKNOWN_CARD,
                atc=int(row.atc),
                terminal_number=TERMINALS[terminal][0] if terminal in TERMINALS else UNKNOWN_TERMINAL,
                terminal_sequence=int(sequence),
                amount_fen=int(row.fen),
                local_time=local_time_of(self.core.now_s),
            )
        late = []
        for change in row.changes:
            if change[0] in "+-":
                tap.local_time = local_time_of(self.core.now_s + int(change))
            elif ":=" in change or change == "!mac":
                late.append(change)
            else:
                self._set(tap, *change.split("="))
        if row.changes:
            tap.mac = reference_mac(tap, key_set)
        for change in late:
            if change == "!mac":
                tap.mac = bytes(byte ^ 1 for byte in tap.mac)
            else:
                self._set(tap, *change.split(":="))
        return tap

    def _set(self, tap: tap_service_pb2.Tap, field: str, value: str) -> None:
        if field == "card":
            tap.card_number = CARDS[value][0] if value in CARDS else UNKNOWN_CARD
        elif field == "terminal":
            tap.terminal_number = TERMINALS[value][0] if value in TERMINALS else UNKNOWN_TERMINAL
        elif isinstance(getattr(tap, field), bytes):
            setattr(tap, field, bytes.fromhex(value))
        else:
            setattr(tap, field, int(value))

    def _compare(self, number: int, row: Row, outcome: Any) -> None:
        place = f"row {number}: {row}\ngot {outcome}"
        assert outcome.result == row.result, place
        assert outcome.balance_after_fen == int(row.balance), place
        marks = dict(mark.split("=") for mark in row.marks if "=" in mark)
        assert outcome.duplicate == ("again" in marks), place
        if "again" in marks:
            first = tap_service_pb2.TapOutcome(duplicate=True)
            first.MergeFrom(self.played[int(marks["again"]) - 1].outcome)
            assert outcome == first, place
            return
        record = self.core.record(outcome.sequence)
        assert record["result"] == row.result, place
        assert bool(record["flags"] & Flag.DENIED) == ("denied" in row.marks), place
        if row.operation == "top_up":
            return
        assert outcome.charged_fen == int(row.charged), place
        assert bool(record["flags"] & Flag.FRAUD) == ("fraud" in row.marks), place
        assert bool(record["flags"] & Flag.STORED) == (row.operation == "stored"), place
        conflicting = self.played[int(marks["with"]) - 1].outcome.sequence if "with" in marks else 0
        assert outcome.conflicting_sequence == conflicting, place


SCRIPTS = {
    "money": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  1  T1/1              300  .               | ACCEPTED          300    700  .
        stored  A  2  T1/2              100  .               | ACCEPTED          100    600  .
        online  A  3  T1/3              601  .               | INSUFFICIENT_FUNDS  0    600  .
        online  A  4  T1/4              600  .               | ACCEPTED          600      0  .
        online  A  5  T1/5                1  .               | INSUFFICIENT_FUNDS  0      0  .
        online  A  6  T1/6                0  .               | ACCEPTED            0      0  .
        online  B  1  T1/7                0  .               | ACCEPTED            0      0  .
        """,
    "the chip deducts another amount than is due": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  1  T1/1              300  amount_due_fen=600 | ACCEPTED       300    700  .
        """,
    "largest amounts": """
        top_up  A  .  .           100000000  .               | ACCEPTED            .  100000000  .
        online  A  1  T1/1       4294967295  .               | INSUFFICIENT_FUNDS  0  100000000  .
        stored  A  2  T1/2       4294967295  .               | DEBT_BOOKED  4294967295  -4194967295  denied
        stored  A  3  T1/3       4294967295  .               | DEBT_BOOKED  4294967295  -8489934590  denied
        """,
    "one batch stands on the balances that its taps leave": """
        top_up  A  .  .                 500  .               | ACCEPTED            .    500  .
        online  A  1  T1/1              300  .               | ACCEPTED          300    200  .
        +online A  2  T1/2              300  .               | INSUFFICIENT_FUNDS  0    200  .
        +stored A  3  T1/3              300  .               | DEBT_BOOKED       300   -100  denied
        +online A  4  T1/4                0  .               | CARD_DENIED         0   -100  denied
        +online B  1  T3/1                0  .               | ACCEPTED            0      0  .
        """,
    "debt, deny list, lifting by top-up": """
        top_up  A  .  .                 100  .               | ACCEPTED            .    100  .
        stored  A  1  T1/1              300  .               | DEBT_BOOKED       300   -200  denied
        online  A  2  T1/2                0  .               | CARD_DENIED         0   -200  denied
        top_up  A  .  .                 199  .               | ACCEPTED            .     -1  denied
        online  A  3  T1/3                0  .               | CARD_DENIED         0     -1  denied
        restart
        online  A  4  T1/4                0  .               | CARD_DENIED         0     -1  denied
        top_up  A  .  .                   1  .               | ACCEPTED            .      0  .
        online  A  5  T1/5                0  .               | ACCEPTED            0      0  .
        top_up  A  .  .                  50  .               | ACCEPTED            .     50  .
        restart
        online  A  6  T1/6               50  .               | ACCEPTED           50      0  .
        """,
    "a denied card's stored taps are honoured for a day": """
        stored  A  1  T1/1              300  .               | DEBT_BOOKED       300   -300  denied
        pass    86400
        stored  A  2  T1/2              100  .               | DEBT_BOOKED       100   -400  denied
        pass    1
        stored  A  3  T1/3              100  .               | CARD_DENIED         0   -400  denied
        stored  A  4  T1/4                0  .               | CARD_DENIED         0   -400  denied
        stored  A  5  T1/5              100  -1              | DEBT_BOOKED       100   -500  denied
        online  A  6  T1/6                0  -1              | CARD_DENIED         0   -500  denied
        pass    2592000
        stored  A  7  T1/7              100  .               | CARD_DENIED         0   -500  denied
        stored  A  8  T1/8              100  -2678400        | DEBT_BOOKED       100   -600  denied
        checkpoint
        restart
        stored  A  9  T1/9              100  .               | CARD_DENIED         0   -600  denied
        stored  A  10 T1/10             100  -2678400        | DEBT_BOOKED       100   -700  denied
        """,
    "a second debt does not renew the grace": """
        stored  A  1  T1/1              100  .               | DEBT_BOOKED       100   -100  denied
        pass    80000
        stored  A  2  T1/2              100  .               | DEBT_BOOKED       100   -200  denied
        pass    6401
        stored  A  3  T1/3              100  .               | CARD_DENIED         0   -200  denied
        """,
    "debt after the lifting begins a grace of its own": """
        stored  A  1  T1/1              100  .               | DEBT_BOOKED       100   -100  denied
        top_up  A  .  .                 100  .               | ACCEPTED            .      0  .
        pass    200000
        stored  A  2  T1/2              100  .               | DEBT_BOOKED       100   -100  denied
        stored  A  3  T1/3              100  .               | DEBT_BOOKED       100   -200  denied
        """,
    "the test mark counts and charges nothing": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  1  T1/1              300  test=1          | TEST                0   1000  .
        stored  A  2  T1/2             9999  test=1          | TEST                0   1000  .
        online  =2 .  .                   .  .               | TEST                0   1000  again=2
        # The MAC does not cover the mark: without it, it is still the same tap.
        online  =2 .  .                   .  test:=0         | TEST                0   1000  again=2
        online  A  1  T1/3              300  .               | CONFLICT            0      0  fraud,with=2
        stored  B  1  T1/4              300  .               | DEBT_BOOKED       300   -300  denied
        online  B  2  T1/5              300  test=1          | CARD_DENIED         0   -300  denied
        """,
    "expiry goes by the day of the tap": """
        top_up  E  .  .                1000  .               | ACCEPTED            .   1000  .
        online  E  1  T1/1              100  .               | ACCEPTED          100    900  .
        pass    86400
        online  E  2  T1/2              100  .               | ACCEPTED          100    800  .
        pass    86400
        online  E  3  T1/3              100  .               | CARD_EXPIRED        0    800  .
        stored  E  4  T1/4              100  .               | CARD_EXPIRED        0    800  .
        stored  E  5  T1/5              100  -86400          | ACCEPTED          100    700  .
        """,
    "a wrong MAC does not use up the counter": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  1  T1/1              300  !mac            | MAC_MISMATCH        0      0  .
        online  A  1  T1/1              300  amount_fen:=3   | MAC_MISMATCH        0      0  .
        online  A  1  T1/1              300  .               | ACCEPTED          300    700  .
        online  A  1  T1/1              300  !mac            | CONFLICT            0      0  fraud,with=4
        """,
    "no other refusal before the MAC uses it up either": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  1  T1/1              300  algorithm_id:=0 | ALGORITHM_UNSUPPORTED 0  0  .
        online  A  1  T1/1              300  key_version:=2  | UNKNOWN_KEY         0      0  .
        online  A  1  T?/1              300  .               | UNKNOWN_TERMINAL    0      0  .
        online  ?  1  T1/1              300  .               | UNKNOWN_CARD        0      0  .
        online  A  1  T1/1              300  issuer_id:=4416000200000000 | ISSUER_MISMATCH 0 0 .
        online  A  1  T1/1              300  .               | ACCEPTED          300    700  .
        """,
    "every other refusal does": """
        stored  E  1  T1/1              100  .               | DEBT_BOOKED       100   -100  denied
        online  E  2  T1/2                0  .               | CARD_DENIED         0   -100  denied
        online  E  2  T1/3                0  .               | CONFLICT            0      0  fraud,with=2,denied
        online  A  1  T1/4              100  .               | INSUFFICIENT_FUNDS  0      0  .
        online  A  1  T1/5              100  .               | CONFLICT            0      0  fraud,with=4
        pass    259200
        online  E  3  T1/6                0  .               | CARD_EXPIRED        0   -100  denied
        online  E  3  T1/7                0  .               | CONFLICT            0      0  fraud,with=6,denied
        online  =6 .  .                   .  .               | CARD_EXPIRED        0   -100  again=6
        """,
    "conflicts": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  1  T1/1              100  .               | ACCEPTED          100    900  .
        online  A  2  T2/7              100  .               | ACCEPTED          100    800  .
        # One card counter twice is fraud, whatever else is or is not the same.
        online  A  1  T1/1              100  !mac            | CONFLICT            0      0  fraud,with=2
        online  A  1  T1/1              101  .               | CONFLICT            0      0  fraud,with=2
        online  A  1  T1/2              100  .               | CONFLICT            0      0  fraud,with=2
        online  A  1  T2/1              100  .               | CONFLICT            0      0  fraud,with=2
        online  A  1  T?/1              100  .               | CONFLICT            0      0  fraud,with=2
        # The card's earlier record is named when both counters were seen, each in another tap.
        online  A  1  T2/7              100  .               | CONFLICT            0      0  fraud,with=2
        # One terminal sequence twice is the terminal's fault.
        online  B  1  T1/1              100  .               | CONFLICT            0      0  with=2
        online  A  3  T1/1              100  .               | CONFLICT            0      0  with=2
        online  ?  1  T1/1              100  .               | CONFLICT            0      0  with=2
        # A conflict uses nothing up.
        online  A  3  T1/2              100  .               | ACCEPTED          100    700  .
        """,
    "what the MAC does not cover may differ in a repeat": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  1  T1/1              100  .               | ACCEPTED          100    900  .
        stored  =2 .  .                   .  city:=5980      | ACCEPTED          100    900  again=2
        online  =2 .  .                   .  line:=7         | ACCEPTED          100    900  again=2
        online  A  2  T1/2              100  profile=2       | ACCEPTED          100    800  .
        online  =5 .  .                   .  city:=5980      | ACCEPTED          100    800  again=5
        online  =5 .  .                   .  line=7          | CONFLICT            0      0  fraud,with=5
        """,
    "counters may come in any order": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  9  T1/9              100  .               | ACCEPTED          100    900  .
        online  A  3  T1/3              100  .               | ACCEPTED          100    800  .
        +online A  2  T1/8              100  .               | ACCEPTED          100    700  .
        +online A  0  T1/0              100  .               | ACCEPTED          100    600  .
        online  A  3  T1/4              100  .               | CONFLICT            0      0  fraud,with=3
        """,
    "the last ATC": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  65535 T1/1           100  .               | ACCEPTED          100    900  .
        online  =2 .  .                   .  .               | ACCEPTED          100    900  again=2
        online  A  65535 T1/2           100  .               | CONFLICT            0      0  fraud,with=2
        online  A  65534 T1/2           100  .               | ACCEPTED          100    800  .
        online  A  0  T1/3              100  .               | ACCEPTED          100    700  .
        restart
        online  =2 .  .                   .  .               | ACCEPTED          100    900  again=2
        checkpoint
        online  =2 .  .                   .  .               | ACCEPTED          100    900  again=2
        online  A  1  T1/4              100  .               | ACCEPTED          100    600  .
        """,
    "the last terminal sequence": """
        top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
        online  A  1  T1/4294967295     100  .               | ACCEPTED          100    900  .
        online  =2 .  .                   .  .               | ACCEPTED          100    900  again=2
        online  A  2  T1/4294967295     100  .               | CONFLICT            0      0  with=2
        online  A  2  T1/0              100  .               | ACCEPTED          100    800  .
        checkpoint
        restart
        online  =2 .  .                   .  .               | ACCEPTED          100    900  again=2
        online  A  3  T1/4294967295     100  .               | CONFLICT            0      0  with=2
        online  A  3  T1/4294967294     100  .               | ACCEPTED          100    700  .
        """,
    "leading zeros make another card": """
        top_up  N1 .  .                   1  .               | ACCEPTED            .      1  .
        top_up  N2 .  .                  20  .               | ACCEPTED            .     20  .
        top_up  N9 .  .                 900  .               | ACCEPTED            .    900  .
        top_up  N16 . .                1600  .               | ACCEPTED            .   1600  .
        top_up  N20 . .               20000  .               | ACCEPTED            .  20000  .
        online  N1  5 T1/1                1  .               | ACCEPTED            1      0  .
        online  N2  5 T1/2                1  .               | ACCEPTED            1     19  .
        online  N9  5 T1/3                1  .               | ACCEPTED            1    899  .
        online  N16 5 T1/4                1  .               | ACCEPTED            1   1599  .
        online  N20 5 T1/5                1  .               | ACCEPTED            1  19999  .
        # Under one card serial the MAC is the same, so the number alone tells these cards apart.
        online  =6  . .                   .  card:=N2        | CONFLICT            0      0  fraud,with=7
        checkpoint
        restart
        online  N9  6 T1/6                1  .               | ACCEPTED            1    898  .
        online  A20 1 T1/7                1  .               | INSUFFICIENT_FUNDS  0      0  .
        """,
    "two issuers, two and one levels, both profiles": """
        top_up  O  .  .                1000  .               | ACCEPTED            .   1000  .
        online  O  1  T1/1              100  .               | ACCEPTED          100    900  .
        online  O  2  T1/2              100  profile=2       | ACCEPTED          100    800  .
        online  O  3  T1/3              100  transaction_type=9 | ACCEPTED       100    700  .
        online  A  1  T1/4                0  profile=2,line=4294967295,stop=16777215,kind=4 | ACCEPTED 0 0 .
        online  A  2  T1/5                0  profile:=2      | MAC_MISMATCH        0      0  .
        online  A  2  T1/5                0  profile=2,stop:=8 | MAC_MISMATCH      0      0  .
        online  A  2  T1/5                0  stop:=8         | ACCEPTED            0      0  .
        # The other issuer's keys are known, but they are not this card's.
        online  A  3  T1/6                0  issuer_id:=4416000200000000,key_version:=3,key_index:=2 | ISSUER_MISMATCH 0 0 .
        """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(core: Harness, name: str) -> None:
    Player(core).play(SCRIPTS[name])
    before = core.engine.balances_fen()
    core.restart()
    assert core.engine.balances_fen().tolist() == before.tolist()
    core.close()
    check(core.path, core.settings)


# ---- duplicates, however late ----

BETWEEN = {
    "in a later batch": "",
    "after a checkpoint, from the segments alone": "checkpoint",
    "after a restart, from the journal's tail": "restart",
    "after a checkpoint and a restart": "checkpoint \n restart",
    "30 days late": "checkpoint \n pass 2592000 \n checkpoint \n restart",
    "when the ring has forgotten it": "ring",
    "when memory and ring have forgotten it": "checkpoint \n ring \n checkpoint",
}


@pytest.mark.parametrize("between", BETWEEN)
def test_duplicates(tmp_path: Path, between: str) -> None:
    with (
        limited(RING_RECORDS=64, GROUP_TAPS_MAX=16, REQUEST_ITEMS_MAX=16),
        Harness(tmp_path / "data", stored_grace_s=DAY_S) as core,
    ):
        populate(core)
        player = Player(core)
        player.play("""
            top_up  A  .  .                1000  .               | ACCEPTED            .   1000  .
            online  A  3  T1/3              100  .               | ACCEPTED          100    900  .
            stored  A  4  T1/4              100  .               | ACCEPTED          100    800  .
            stored  B  1  T1/5              100  .               | DEBT_BOOKED       100   -100  denied
            online  A  5  T1/6             9999  .               | INSUFFICIENT_FUNDS  0    800  .
            online  B  2  T1/7                0  .               | CARD_DENIED         0   -100  denied
            """)
        for step in BETWEEN[between].split("\n"):
            if step.strip() == "ring":
                for counter in range(100, 200):
                    core.authorize(make_tap(card_number=CARDS["E"][0], atc=counter, terminal_sequence=counter))
            else:
                player.play(step)
        player.play("""
            online  =2 .  .                   .  .               | ACCEPTED          100    900  again=2
            stored  =2 .  .                   .  .               | ACCEPTED          100    900  again=2
            online  =3 .  .                   .  .               | ACCEPTED          100    800  again=3
            +stored =4 .  .                   .  .               | DEBT_BOOKED       100   -100  again=4
            +online =5 .  .                   .  .               | INSUFFICIENT_FUNDS  0    800  again=5
            +online =6 .  .                   .  .               | CARD_DENIED         0   -100  again=6
            online  =2 .  .                   .  amount_fen=1    | CONFLICT            0      0  fraud,with=2
            online  =2 .  .                   .  card=B          | CONFLICT            0      0  with=2,denied
            online  A  2  T1/2              100  .               | ACCEPTED          100    700  .
            """)


def test_duplicates_in_one_batch(core: Harness) -> None:
    Player(core).play("""
        top_up   A  .  .                1000  .               | ACCEPTED            .   1000  .
        online   A  3  T1/3              100  .               | ACCEPTED          100    900  .
        +stored  A  3  T1/3              100  .               | ACCEPTED          100    900  again=2
        +stored  A  3  T1/3              101  .               | CONFLICT            0      0  fraud,with=2
        +stored  A  2  T1/2              100  .               | ACCEPTED          100    800  .
        +stored  A  2  T1/2              100  .               | ACCEPTED          100    800  again=5
        +stored  B  1  T1/2              100  .               | CONFLICT            0      0  with=5
        """)


def test_many_cards_with_the_same_counters(core: Harness) -> None:
    """A request as large as they come, then all of it again: every answer is the first one."""
    numbers = [f"5{card:015d}" for card in range(1_000)]
    cards = [card_service_pb2.Card(card_number=number, issuer_id=ISSUER, rider=1) for number in numbers]
    core.ask(commands.register_cards, card_service_pb2.RegisterCardsRequest(cards=cards))
    taps = [
        make_tap(card_number=number, atc=atc, terminal_sequence=atc * 1_000 + at, amount_fen=at, mac=bytes(4))
        for atc in range(8)
        for at, number in enumerate(numbers)
    ]
    sign(taps, [KEY_SET])
    first = core.submit(*taps)
    assert {outcome.result for outcome in first} == {Result.ACCEPTED, Result.DEBT_BOOKED}
    assert [outcome.sequence for outcome in first] == list(range(first[0].sequence, first[0].sequence + 8_000))
    for step in (lambda: None, core.checkpoint, core.restart):
        step()
        again = core.submit(*reversed(taps))[::-1]
        for outcome in again:
            assert outcome.duplicate
            outcome.duplicate = False
        assert again == first
    assert core.operator_balance_fen("bus") == 8 * sum(range(1_000))


# ---- precedence: each step wins over all later ones ----


class Step(NamedTuple):
    """Something wrong with a tap, and the result when nothing before it is wrong too."""

    result: Result
    spoil: Callable[[dict[str, Any]], Any]
    late: bool = False  # spoils what the card has already answered for


SEEN = 77  # a terminal sequence that was used up
POOR, DEBTOR, OLD, OLD_DEBTOR = "1001", "1002", "1003", "1004"  # cards: little money, denied, expired, both

STEPS: tuple[Step, ...] = (
    Step(Result.MALFORMED_CARD_NUMBER,      lambda tap: tap.update(card_number="x"), late=True),
    Step(Result.MALFORMED_ISSUER_ID,        lambda tap: tap.update(issuer_id=b"x"), late=True),
    Step(Result.MALFORMED_PROFILE,          lambda tap: tap.update(profile=0), late=True),
    Step(Result.MALFORMED_KEY,              lambda tap: tap.update(key_index=256), late=True),
    Step(Result.MALFORMED_TRANSACTION_TYPE, lambda tap: tap.update(transaction_type=2), late=True),
    Step(Result.MALFORMED_AMOUNT,           lambda tap: tap.update(amount_due_fen=-1), late=True),
    Step(Result.MALFORMED_ATC,              lambda tap: tap.update(atc=65_536), late=True),
    Step(Result.MALFORMED_TERMINAL,         lambda tap: tap.update(terminal_number=b"x"), late=True),
    Step(Result.MALFORMED_TIME,             lambda tap: tap.update(local_time=0), late=True),
    Step(Result.MALFORMED_CLOCK_AHEAD,      lambda tap: tap.update(local_time=20990101000000), late=True),
    Step(Result.MALFORMED_MAC,              lambda tap: tap.update(mac=b""), late=True),
    Step(Result.MALFORMED_KIND,             lambda tap: tap.update(kind=0), late=True),
    Step(Result.MALFORMED_PLACE,            lambda tap: tap.update(city=10_000), late=True),
    Step(Result.MALFORMED_RIDER,            lambda tap: tap.update(rider=8), late=True),
    Step(Result.CONFLICT,                   lambda tap: tap.update(terminal_sequence=SEEN)),
    Step(Result.UNKNOWN_CARD,               lambda tap: tap.update(card_number=UNKNOWN_CARD)),
    Step(Result.UNKNOWN_TERMINAL,           lambda tap: tap.update(terminal_number=UNKNOWN_TERMINAL)),
    Step(Result.ALGORITHM_UNSUPPORTED,      lambda tap: tap.update(algorithm_id=0)),
    Step(Result.ISSUER_MISMATCH,            lambda tap: tap.update(issuer_id=OTHER_ISSUER)),
    Step(Result.UNKNOWN_KEY,                lambda tap: tap.update(key_version=9)),
    Step(Result.TORN,                       lambda tap: tap.update(mac=b"\xff\xff\xff\xff", profile=1), late=True),
    Step(Result.GREY,                       lambda tap: tap.update(mac=b"\0\1\2\3", profile=1, grey=True), late=True),
    Step(Result.MAC_MISMATCH,               lambda tap: tap.update(mac=b"\0\1\2\3"), late=True),
    Step(Result.CARD_EXPIRED,               lambda tap: tap.update(card_number=_with(tap, OLD))),
    Step(Result.CARD_DENIED,                lambda tap: tap.update(card_number=_with(tap, DEBTOR))),
    Step(Result.TEST,                       lambda tap: tap.update(test=True)),
    Step(Result.INSUFFICIENT_FUNDS,         lambda tap: tap.update(amount_fen=U32)),
)  # fmt: skip


def _with(tap: dict[str, Any], card_number: str) -> str:
    """The card that has this trouble and those that were asked for before."""
    if tap["card_number"] == UNKNOWN_CARD:
        return UNKNOWN_CARD
    return OLD_DEBTOR if {tap["card_number"], card_number} == {OLD, DEBTOR} else card_number


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path / "data", stored_grace_s=DAY_S) as core:
        for number, expires in ((POOR, 0), (DEBTOR, 0), (OLD, 20241231), (OLD_DEBTOR, 20241231)):
            core.register_card(number, expires=expires)
        core.register_terminal(TERMINALS["T1"][0])
        before = local_time_of(START_S - DAY_S)  # when the old cards were still good
        for sequence, number in enumerate((DEBTOR, OLD_DEBTOR), SEEN):
            tap = make_tap(card_number=number, atc=0, terminal_sequence=sequence, amount_fen=1, local_time=before)
            assert core.submit(tap)[0].result == Result.DEBT_BOOKED
        yield core


def _answer_to(core: Harness, steps: tuple[Step, ...] | list[Step], counter: int) -> tap_service_pb2.TapOutcome:
    """The answer to an online tap with all these things wrong with it."""
    fields: dict[str, Any] = {"card_number": POOR, "atc": counter, "terminal_sequence": 1_000 + counter, "amount_fen": 0}
    for step in steps:
        if not step.late:
            step.spoil(fields)
    tap = make_tap(**fields)
    late: dict[str, Any] = {}
    for step in reversed(steps):  # of two that spoil the same field the first one wins
        if step.late:
            step.spoil(late)
    for name, value in late.items():
        setattr(tap, name, value)
    return core.authorize(tap)


def test_each_step_alone(troubled: Harness) -> None:
    for counter, step in enumerate(STEPS, 1):
        assert _answer_to(troubled, [step], counter).result == step.result
    assert _answer_to(troubled, [], len(STEPS) + 1).result == Result.ACCEPTED


def test_each_step_wins_over_each_later_one(troubled: Harness) -> None:
    counter = 0
    for at, first in enumerate(STEPS):
        for later in STEPS[at + 1 :]:
            if (first.result, later.result) == (Result.CONFLICT, Result.UNKNOWN_TERMINAL):
                continue  # a terminal that is not known has used up no sequence
            counter += 1
            got = _answer_to(troubled, [first, later], counter).result
            assert got == first.result, f"{first.result.name} before {later.result.name}: got {Result(got).name}"


def test_each_step_wins_over_all_later_ones_together(troubled: Harness) -> None:
    for counter, first in enumerate(STEPS, 1):
        steps = STEPS[counter - 1 :]
        if first.result <= Result.CONFLICT:
            steps = tuple(step for step in steps if step.result != Result.UNKNOWN_TERMINAL)
        got = _answer_to(troubled, steps, counter).result
        assert got == first.result, f"{first.result.name}: got {Result(got).name}"


def test_steps_stand_in_order_and_are_complete() -> None:
    of_taps = {result for result in Result if result <= Result.INSUFFICIENT_FUNDS} - {
        Result.MALFORMED_OPERATOR, Result.MALFORMED_REQUEST_ID, Result.MALFORMED_PASS, Result.ACCEPTED, Result.DEBT_BOOKED,
    }  # fmt: skip
    assert {step.result for step in STEPS} == of_taps
    # Whole groups of codes stand in the order of their numbers; TEST, which is no refusal, comes where money would.
    decades = [step.result // 10 for step in STEPS if step.result not in (Result.TEST,) and step.result >= Result.CONFLICT]
    assert all(one <= next_one for one, next_one in pairwise(decades))


# ---- keys and MACs: profile.md's worked examples ----

MACS = """
levels | profile | type | kind | line | stop | mac      | result
2      | 1       | 6    | 3    | 0    | 0    | f99d1b15 | ACCEPTED
2      | 1       | 9    | 3    | 0    | 0    | bedefa72 | ACCEPTED
2      | 1       | 6    | 1    | 105  | 7    | f99d1b15 | ACCEPTED
2      | 1       | 9    | 3    | 0    | 0    | f99d1b15 | MAC_MISMATCH
2      | 1       | 6    | 3    | 0    | 0    | 91f50fc0 | MAC_MISMATCH
1      | 1       | 6    | 3    | 0    | 0    | 91f50fc0 | ACCEPTED
1      | 1       | 9    | 3    | 0    | 0    | 83de8660 | ACCEPTED
1      | 1       | 6    | 3    | 0    | 0    | f99d1b15 | MAC_MISMATCH
2      | 2       | 6    | 3    | 105  | 7    | b343e913 | ACCEPTED
2      | 2       | 6    | 4    | 105  | 7    | b343e913 | MAC_MISMATCH
2      | 2       | 6    | 3    | 106  | 7    | b343e913 | MAC_MISMATCH
2      | 2       | 6    | 3    | 105  | 8    | b343e913 | MAC_MISMATCH
2      | 2       | 9    | 3    | 105  | 7    | b343e913 | MAC_MISMATCH
2      | 1       | 6    | 3    | 105  | 7    | b343e913 | MAC_MISMATCH
1      | 2       | 6    | 3    | 105  | 7    | b343e913 | MAC_MISMATCH
"""


@pytest.mark.parametrize("row", MACS.strip().splitlines()[1:])
@pytest.mark.parametrize("card_number", ["3104416000000017", "98013104416000000017"])
def test_worked_examples(tmp_path: Path, row: str, card_number: str) -> None:
    """The MACs are those of profile.md, not computed here. The digits before the card serial do not matter to them."""
    levels, profile, transaction_type, kind, line, stop, mac, result = (part.strip() for part in row.split("|"))
    with Harness(tmp_path / "data", [KEY_SET._replace(levels=int(levels))]) as core:
        core.register_card(card_number)
        core.register_terminal(bytes.fromhex("112233445566"))
        core.top_up(card_number, 1_000)
        outcome = core.authorize(
            tap_service_pb2.Tap(
                card_number=card_number,
                issuer_id=bytes.fromhex("5980000100000000"),
                profile=int(profile),
                algorithm_id=4,
                key_version=1,
                key_index=1,
                transaction_type=int(transaction_type),
                amount_fen=0xC8,
                atc=1,
                terminal_number=bytes.fromhex("112233445566"),
                terminal_sequence=1,
                local_time=20250101083015,
                mac=bytes.fromhex(mac),
                kind=int(kind),
                line=int(line, 16),
                stop=int(stop, 16),
            )
        )
    assert Result(outcome.result).name == result
    assert outcome.charged_fen == (200 if result == "ACCEPTED" else 0)


def test_every_covered_field_is_covered(core: Harness) -> None:
    """One changed bit in any field under the MAC is MAC_MISMATCH; in any other field it is not."""
    covered = {
        1: ("amount_fen", "transaction_type", "terminal_number", "terminal_sequence", "local_time"),
        2: ("amount_fen", "transaction_type", "terminal_number", "terminal_sequence", "local_time", "atc", "kind", "line",
            "stop"),
    }  # fmt: skip
    changes: dict[str, Callable[[Any], Any]] = {
        "transaction_type": lambda value: 15 - value,
        "terminal_number": lambda _: TERMINALS["T2"][0],
        "local_time": lambda value: value - 1,
        "kind": lambda value: value ^ 7,
        "rider": lambda value: value ^ 1,
    }
    free = ("amount_due_fen", "chip_balance_before_fen", "chip_balance_after_fen", "direction", "city", "industry", "rider")
    for profile, fields in covered.items():
        for number, field in enumerate((*fields, *free), 1):
            tap = make_tap(profile=profile, atc=profile * 100 + 2 * number, terminal_sequence=profile * 100 + 2 * number)
            value = getattr(tap, field)
            setattr(tap, field, changes.get(field, lambda value: value ^ 1)(value))
            result = core.submit(tap)[0].result
            assert (result == Result.MAC_MISMATCH) == (field in fields), (profile, field)


def test_simulated_card_answers_as_openssl_does() -> None:
    for key_set in KEY_SETS:
        card = SimulatedCard("31044160000000170", key_set, 5_000)
        for profile in (1, 2):
            tap = card.tap(b"\1\2\3\4\5\6", 7, 20250101083015, 250, profile=profile, line=5, stop=6, kind=2)
            assert tap.mac == reference_mac(tap, key_set)


# ---- engine, journal and replay ----


def _engine(**values: int) -> Engine:
    settings = {"cards_max": 10, "terminals_max": 10, "ring_records": 64, "batch_taps_max": 16, "stored_grace_s": 0}
    engine = Engine(**(settings | values), hash_seed=1)
    for key_set in KEY_SETS:
        engine.add_key(key_set.issuer_id, key_set.key_version, key_set.key_index, key_set.parent())
    return engine


def _taps(engine: Engine, *taps: tap_service_pb2.Tap, stored: bool = True) -> list[Any]:
    engine.decode([submit_request(taps)], [stored], START_S, 300, 16)
    engine.lookup()
    engine.verify()
    engine.run(START_S * 1_000_000)
    (response,) = engine.respond()
    return list(tap_service_pb2.SubmitTapsResponse.FromString(response).outcomes)


INT64_MAX = (1 << 63) - 1


def test_balances_to_the_limits_of_int64() -> None:
    """Nothing on the way cuts a balance: not the posting, not the answer, not the record, not the replay."""
    engine, twin, records = _twins()
    twin.replay(records)
    assert engine.top_up(0, INT64_MAX - 1_000, 1, b"")[1] == INT64_MAX - 200
    assert engine.balance_fen(0) == -INT64_MAX
    (outcome,) = _taps(engine, make_tap(amount_fen=U32, atc=2, terminal_sequence=2))
    assert (outcome.result, outcome.balance_after_fen) == (Result.ACCEPTED, INT64_MAX - 200 - U32)
    twin.replay(engine.take_group()[2])
    wanted = [-INT64_MAX, U32 + 200, INT64_MAX - 200 - U32]
    assert twin.balances_fen().tolist() == engine.balances_fen().tolist() == wanted
    assert twin.imbalance_fen() == engine.imbalance_fen() == 0


def test_full_engine_says_so_and_stays_whole(tmp_path: Path) -> None:
    """The registration that has no room fails; those before it stand, and everything else goes on."""
    with Harness(tmp_path / "data", cards_max=3, terminals_max=2) as core:
        numbers = [CARDS[name][0] for name in "ABEO"]
        cards = [card_service_pb2.Card(card_number=number, issuer_id=ISSUER, rider=1) for number in numbers]
        with pytest.raises(EngineFull, match="configured number"):
            core.command(commands.register_cards, card_service_pb2.RegisterCardsRequest(cards=cards))
        core.take()
        core.commit()
        terminals = [
            terminal_service_pb2.Terminal(terminal_number=number, operator_id="bus", kind=1) for number, _ in TERMINALS.values()
        ]
        with pytest.raises(EngineFull, match="configured number"):
            core.command(commands.register_terminals, terminal_service_pb2.RegisterTerminalsRequest(terminals=terminals))
        core.take()
        core.commit()
        assert core.engine.counts == {"cards": 3, "terminals": 2, "accounts": 5}

        for step in (lambda: None, core.restart, core.checkpoint, core.restart):
            step()
            for number in numbers[:3]:
                assert core.register_card(number).duplicate
            with pytest.raises(EngineFull):
                core.register_card(numbers[3])
            assert core.engine.find_card(numbers[3]) == NONE
            counter = core.engine.next_sequence
            outcome = core.submit(make_tap(card_number=numbers[2], atc=counter, terminal_sequence=counter))[0]
            assert outcome.result == Result.DEBT_BOOKED
            outcome = core.submit(make_tap(card_number=numbers[3], atc=counter, terminal_sequence=counter + 1))[0]
            assert outcome.result == Result.UNKNOWN_CARD
            assert core.top_up(numbers[2], 1).result == Result.ACCEPTED
        core.close()
        assert check(core.path, core.settings).cards == 3


def test_many_operators_leave_room_for_cards(tmp_path: Path) -> None:
    """Accounts are opened for operators and cards alike: as many terminals as fit, each with an operator of its own, and all
    cards that were configured still find room."""
    with Harness(tmp_path / "data", cards_max=4, terminals_max=3) as core:
        for number in range(3):
            core.register_terminal(bytes([number] * 6), f"operator {number}")
        for number in range(4):
            assert core.register_card(str(number)).result == Result.ACCEPTED
        assert core.engine.counts == {"cards": 4, "terminals": 3, "accounts": 8}


def _twins() -> tuple[Engine, Engine, bytes]:
    """Two engines with one card and one terminal; and the records of a top-up and a tap, which the first has and the second
    has not."""
    engine, twin = _engine(), _engine()
    for each in (engine, twin):
        bus = each.add_operator(1, b"bus")
        each.add_card("3104416000000017", ISSUER, 1, 0, 1, b"")
        each.add_terminal(bytes.fromhex("112233445566"), 1, bus, 1, b"")
        each.take_group()
    engine.top_up(0, 1_000, 1, b"")
    assert _taps(engine, make_tap())[0].result == Result.ACCEPTED
    return engine, twin, engine.take_group()[2]


CORRUPTIONS: tuple[tuple[str, int, str, Callable[[Any], Any]], ...] = (
    # what                               record  field               value
    ("a sequence that is not next",          0,  "sequence",         lambda value: value + 1),
    ("a kind that nobody knows",             0,  "kind",             lambda value: 13),
    ("a registration",                       0,  "kind",             lambda value: RecordKind.CARD),
    ("another amount",                       0,  "amount_fen",       lambda value: value + 1),
    ("another balance of the debit side",    1,  "debit_after_fen",  lambda value: value + 1),
    ("another balance of the credit side",   1,  "credit_after_fen", lambda value: value - 1),
    ("another account",                      1,  "debit_account",    lambda value: value + 1),
    ("a debit account that is not there",    1,  "debit_account",    lambda value: 1 << 20),
    ("a credit account that is not there",   1,  "credit_account",   lambda value: NONE - 1),
    ("half a posting",                       1,  "credit_account",   lambda value: NONE),
    ("a card that is not there",             1,  "card",             lambda value: 1 << 20),
    ("a terminal that is not there",         1,  "terminal",         lambda value: 1 << 20),
    ("no terminal",                          1,  "terminal",         lambda value: NONE),
)  # fmt: skip


@pytest.mark.parametrize(("what", "at", "field", "value"), CORRUPTIONS, ids=[row[0] for row in CORRUPTIONS])
def test_replay_names_what_does_not_follow(what: str, at: int, field: str, value: Any) -> None:
    _, twin, records = _twins()
    spoiled = np.frombuffer(records, RECORD).copy()
    spoiled[field][at] = value(spoiled[field][at])
    with pytest.raises(EngineFault, match=rf"record {spoiled['sequence'][at]} does not follow"):
        twin.replay(spoiled.tobytes())


def test_replay_makes_a_twin() -> None:
    engine, twin, records = _twins()
    twin.replay(records)
    assert (twin.card(0), twin.terminal(0)) == (engine.card(0), engine.terminal(0))
    assert twin.balances_fen().tolist() == engine.balances_fen().tolist() == [-1_000, 200, 800]
    assert twin.next_sequence == engine.next_sequence
    assert _taps(twin, make_tap()) == _taps(engine, make_tap())  # the same duplicate


def test_audit_finds_the_first_record_that_does_not_add_up() -> None:
    engine, twin, records = _twins()
    balances = twin.balances_fen()
    assert audit(balances, records) == -1
    assert balances.tolist() == engine.balances_fen().tolist()
    for at, field in ((0, "amount_fen"), (0, "credit_after_fen"), (1, "debit_after_fen"), (1, "amount_fen")):
        spoiled = np.frombuffer(records, RECORD).copy()
        spoiled[field][at] += 1
        assert audit(twin.balances_fen(), spoiled.tobytes()) == at, field
    assert audit(twin.balances_fen(), b"") == -1


def test_books_that_do_not_balance_are_not_restored(core: Harness) -> None:
    """The sum over all accounts is looked at on every start, whatever the pages' check sums say."""
    core.top_up(CARDS["A"][0], 1_000)
    core.checkpoint()
    with core.directory.state.read() as state:
        ((key, page),) = state.items("accounts")
        accounts = np.frombuffer(page[:-4], np.int64).copy()
    accounts[2] += 1
    with core.directory.state.write() as writer:
        data = accounts.tobytes()
        writer.put("accounts", key, data + zlib.crc32(data).to_bytes(4, "big"))
    with pytest.raises(Damaged, match="the books do not balance: all accounts sum to 1 fen"):
        core.restart()


def test_outcomes_of_records_are_the_first_answers(core: Harness) -> None:
    """What a duplicate and GetTap say comes from the record: it must be what the tap was told."""
    core.top_up(CARDS["A"][0], 300)
    taps = [
        make_tap(atc=1, terminal_sequence=1, amount_fen=200),
        make_tap(atc=2, terminal_sequence=2, amount_fen=200),
        make_tap(atc=2, terminal_sequence=3, amount_fen=200),
        make_tap(atc=3, terminal_sequence=4, mac=bytes(4)),
        make_tap(atc=4, terminal_sequence=5, test=True),
        make_tap(card_number="123", atc=4, terminal_sequence=6),
    ]
    told = core.submit(*taps)
    wanted = ["ACCEPTED", "DEBT_BOOKED", "CONFLICT", "MAC_MISMATCH", "TEST", "UNKNOWN_CARD"]
    assert [Result(outcome.result).name for outcome in told] == wanted
    with core.journal.read() as reader:
        records = reader.records([outcome.sequence for outcome in told])
    for outcome, row in zip(told, outcomes_of_records(records), strict=True):
        fields = ("result", "charged_fen", "balance_after_fen", "sequence", "settlement_date", "conflicting_sequence")
        assert {name: getattr(outcome, name) for name in fields} == {name: int(row[name]) for name in fields}


KEPT = """
what                           | changes
a known card and terminal      | .
an unknown card                | card_number=999
an unknown terminal            | terminal_number=6e6f626f6479
another issuer                 | issuer_id=4416000200000000
another issuer, 3DES           | issuer_id=4416000200000000,algorithm_id=0
another issuer, seen before    | issuer_id=4416000200000000,terminal_sequence=77
every field                    | profile=2,line=4294967295,stop=16777215,direction=2,city=5980,industry=9,rider=7,test=1
chip balances                  | chip_balance_before_fen=4294967295,chip_balance_after_fen=4294967094
"""


@pytest.mark.parametrize("row", KEPT.strip().splitlines()[1:], ids=lambda row: row.split("|")[0].strip())
@pytest.mark.parametrize("transfer", [False, True], ids=["", "transfer"])
def test_journal_keeps_the_whole_tap(core: Harness, row: str, transfer: bool) -> None:
    """Whatever became of a tap, GetTap shows it as it came, after a restart too."""
    core.submit(make_tap(card_number=CARDS["B"][0], terminal_sequence=77))
    tap = make_tap(atc=5, terminal_sequence=5)
    for change in filter(lambda text: text != ".", row.split("|")[1].strip().split(",")):
        field, value = change.split("=")
        kind = type(getattr(tap, field))
        setattr(tap, field, bytes.fromhex(value) if kind is bytes else kind(value))
    if transfer:
        tap.transfer.last_local_time, tap.transfer.last_amount_fen, tap.transfer.last_line = 20250101080000, 150, 7
    (outcome,) = core.submit(tap)
    core.restart()
    got = core.get_tap(outcome.sequence)
    assert got.tap == tap
    assert got.outcome == outcome
    assert got.stored
    assert got.journal_time_us == core.now_us
    assert got.operator_id == ("" if "terminal_number" in row else "bus")


def test_keys_of_a_card_are_chosen_by_version_and_index(tmp_path: Path) -> None:
    """The same master under another version is another key set, and none is ever guessed."""
    versions = [KEY_SET._replace(key_version=v, key_index=i, master=bytes([v, i] * 8)) for v in (1, 2) for i in (1, 2)]
    with Harness(tmp_path / "data", versions) as core:
        core.register_card("3104416000000017")
        core.register_terminal(bytes.fromhex("112233445566"))
        for counter, key_set in enumerate(versions, 1):
            tap = make_tap(key_set, atc=counter, terminal_sequence=counter, amount_fen=0)
            for other in versions:
                if other is not key_set:
                    wrong = tap_service_pb2.Tap()
                    wrong.CopyFrom(tap)
                    wrong.key_version, wrong.key_index = other.key_version, other.key_index
                    assert core.authorize(wrong).result == Result.MAC_MISMATCH
            wrong.key_version = 3
            assert core.authorize(wrong).result == Result.UNKNOWN_KEY
            assert core.authorize(tap).result == Result.ACCEPTED


def test_top_ups_are_answered_once(core: Harness) -> None:
    """Request ids, in memory, in the state file and in the journal's tail."""
    request_id = bytes(range(16))
    first = core.top_up(CARDS["A"][0], 500, request_id)
    core.top_up(CARDS["A"][0], 100)
    for step in (lambda: None, core.restart, core.checkpoint, core.restart):
        step()
        again = core.top_up(CARDS["A"][0], 500, request_id)
        assert (again.result, again.duplicate) == (Result.ACCEPTED, True)
        assert (again.sequence, again.balance_after_fen) == (first.sequence, 500)
        assert core.top_up(CARDS["A"][0], 501, request_id) == account_service_pb2.TopUpResponse(result=Result.CONFLICT)
        assert core.top_up(CARDS["B"][0], 500, request_id).result == Result.CONFLICT
        assert core.balance(CARDS["A"][0]).balance_fen == 600
    assert not core.checkpoint("checkpoint-middle")
    assert core.top_up(CARDS["A"][0], 500, request_id).duplicate
