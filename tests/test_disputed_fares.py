"""Disputes of fares: of a tap that was priced again, no more is given back than it came to."""

import random
from pathlib import Path

import pytest
from harness import Harness
from riders import COMPILED, RIDERS, draw_taps
from test_late_taps import Run, arrivals, final_charges

from yikatong.core.day.disputes import left_fen
from yikatong.core.types import Flag, PostingKind, RecordKind


@pytest.mark.parametrize("seed", range(6))
def test_no_more_is_left_than_the_fare_comes_to(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    riders = chance.sample(RIDERS, 3)
    corrected_down = 0
    with Harness(tmp_path / "data", tariffs=COMPILED) as core:
        Run(core, chance, riders).run(arrivals(chance, draw_taps(chance, riders, 60, 10), 3))
        charges = final_charges(core)
        with core.journal.read() as reader:
            records = [record.copy() for entry in reader.entries() for record in entry.array]
        for record in records:
            is_correction = record["kind"] == RecordKind.POSTING and record["transaction_type"] == PostingKind.CORRECTION
            if (record["kind"] != RecordKind.TAP and not is_correction) or not record["flags"] & Flag.PRICED:
                continue
            card = core.engine.card(int(record["card"]))
            if record["debit_account"] != card["account"] or not record["amount_fen"]:
                continue
            fare_fen = charges[card["card_number"], int(record["atc"])]
            assert left_fen(core.memory, record) == min(int(record["amount_fen"]), fare_fen)
            corrected_down += fare_fen < record["amount_fen"]
    assert corrected_down
