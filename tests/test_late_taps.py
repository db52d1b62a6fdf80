"""Late taps: whatever order a card's stored taps arrive in, all ends as if each had come in its turn."""

import datetime
import queue
import random
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import CHINA, ISSUER, KEY_SETS, Harness, authorize_request, failing, limited, submit_request
from riders import (
    COMPILED,
    OPERATORS,
    RIDERS,
    Rider,
    Tap,
    Twin,
    draw_taps,
    fare_message,
    in_order,
    open_city,
    rides_of,
    terminal_number,
    wall_clock_s,
)

from yikatong.clients.card import sign
from yikatong.core import commands
from yikatong.core.check import check
from yikatong.core.errors import CommitFailed
from yikatong.core.journal import Group
from yikatong.core.late import Corrections, price_again
from yikatong.core.memory import EngineSettings
from yikatong.core.store import DataDirectory
from yikatong.core.tariffs import fare_of, priced_tap
from yikatong.core.types import PostingKind, RecordKind, Result
from yikatong.core.writer import Core, CoreSettings, Observer, Work
from yikatong.ext import fares as native
from yikatong.v1 import account_service_pb2, card_service_pb2, tap_service_pb2

DAY_S = 86_400
NOON_US = int(datetime.datetime(2026, 3, 2, 12, tzinfo=CHINA).timestamp()) * 1_000_000
ENTRY, EXIT, SINGLE = 1, 2, 3
LIMITS = {"RING_RECORDS": 128, "GROUP_TAPS_MAX": 16, "REQUEST_ITEMS_MAX": 16}


def arrivals(chance: random.Random, taps: list[Tap], delay_days: float) -> list[tuple[int, Tap]]:
    """When each tap comes to the core, in seconds since 1970 (UTC): some at once, others up to so many days later."""
    made = []
    for tap in taps:
        delay_s = chance.choice([0, 0, chance.randrange(int(delay_days * DAY_S) + 1), chance.randrange(7_200)])
        made.append((wall_clock_s(tap.local_time) - 8 * 3_600 + delay_s, tap))
    chance.shuffle(made)
    made.sort(key=lambda pair: pair[0])
    return made


def final_charges(core: Harness) -> dict[tuple[str, int], int]:
    """What each tap was charged in the end, by card and counter, from the journal's records alone."""
    charges: dict[tuple[str, int], int] = defaultdict(int)
    with core.journal.read() as reader:
        for entry in reader.entries():
            for record in entry.array:
                if record["kind"] == RecordKind.TAP and record["result"] in (Result.ACCEPTED, Result.DEBT_BOOKED):
                    card = core.engine.card(int(record["card"]))
                    charges[card["card_number"], int(record["atc"])] += int(record["amount_fen"])
                elif record["kind"] == RecordKind.POSTING and record["transaction_type"] == PostingKind.CORRECTION:
                    card = core.engine.card(int(record["card"]))
                    sign_of = 1 if record["debit_account"] == card["account"] else -1
                    charges[card["card_number"], int(record["atc"])] += sign_of * int(record["amount_fen"])
    return dict(charges)


class Run:
    """Taps through a core in the order in which they come, with trouble on the way."""

    def __init__(self, core: Harness, chance: random.Random, riders: list[Rider]) -> None:
        self.core, self.chance, self.riders = core, chance, riders
        open_city(core, riders)

    def trouble(self) -> None:
        core, what = self.core, self.chance.random()
        if what < 0.08:
            core.restart()
        elif what < 0.16:
            core.checkpoint()
        elif what < 0.2:
            core.checkpoint("checkpoint-middle")
        elif what < 0.25:
            core.rebuild()

    def submit(self, taps: list[Tap]) -> None:
        core = self.core
        (response,) = core.decide([submit_request(taps)], [True]).responses
        if self.chance.random() < 0.1:
            core.take()
            with failing("journal-before-commit"), pytest.raises(CommitFailed):
                core.commit()
            core.rebuild()  # nothing of it was acknowledged: it comes again
            (response,) = core.decide([submit_request(taps)], [True]).responses
        core.take()
        core.commit()
        assert isinstance(response, bytes)
        outcomes = tap_service_pb2.SubmitTapsResponse.FromString(response).outcomes
        assert all(outcome.result == Result.ACCEPTED for outcome in outcomes)

    def run(self, coming: list[tuple[int, Tap]]) -> None:
        at = 0
        while at < len(coming):
            batch = coming[at : at + self.chance.choice([1, 1, 2, 5, 13])]
            at += len(batch)
            self.core.now_us = max(self.core.now_us, batch[-1][0] * 1_000_000)
            taps = [tap for _, tap in batch]
            if self.chance.random() < 0.2:
                taps.append(self.chance.choice(coming[:at])[1])  # again
            self.submit(taps)
            self.trouble()


def expected(riders: list[Rider], taps: list[Tap]) -> tuple[dict[tuple[str, int], int], dict[str, Twin]]:
    twins = {rider.card: Twin(rider) for rider in riders}
    return {(tap.card_number, tap.atc): twins[tap.card_number].take(tap)[0] for tap in in_order(taps)}, twins


@pytest.mark.parametrize("seed", range(24))
def test_any_order_ends_the_same(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    riders = chance.sample(RIDERS, 3)
    days = chance.choice([2, 10, 90])
    taps = draw_taps(chance, riders, chance.choice([30, 90]), days)
    charges, twins = expected(riders, taps)
    memories = []
    with ExitStack() as stack:
        if seed % 3:
            stack.enter_context(limited(**LIMITS))
        if seed % 4 == 1:
            stack.enter_context(limited(LATE_RECORDS_MAX=3))  # so that cards wait for the next group
        for name, delay_days in (("in turn", 0.0), ("late", chance.choice([0.1, 3, days]))):
            with Harness(tmp_path / name, tariffs=COMPILED) as core:
                coming = (
                    arrivals(chance, taps, delay_days)
                    if delay_days
                    else [(wall_clock_s(tap.local_time) - 8 * 3_600, tap) for tap in in_order(taps)]
                )
                run = Run(core, chance, riders)
                opened = {rider.card: core.balance(rider.card).balance_fen for rider in riders}
                run.run(coming)
                assert final_charges(core) == charges
                for card, twin in twins.items():
                    assert rides_of(core, card) == twin.rides
                    paid_fen = sum(fen for (number, _), fen in charges.items() if number == card)
                    assert core.balance(card).balance_fen == opened[card] - paid_fen
                for at, operator in enumerate(OPERATORS):
                    earned = {(tap.card_number, tap.atc) for tap in taps if tap.terminal_number[-1] % 2 == at}
                    assert core.operator_balance_fen(operator) == sum(charges[key] for key in earned)
                memories.append([core.engine.rides(core.engine.find_card(rider.card)) for rider in riders])
                assert core.engine.imbalance_fen() == 0
                assert core.memory.late == {}
                core.restart()
                assert memories[-1] == [core.engine.rides(core.engine.find_card(rider.card)) for rider in riders]
            check(tmp_path / name, EngineSettings())
    assert memories[0] == memories[1]


def metro(card: str, atc: int, kind: int, time: str, stop: int, **fields: Any) -> Tap:
    values = {
        "card_number": card, "issuer_id": ISSUER, "profile": 2, "algorithm_id": 4, "key_version": 1,
        "key_index": 1, "transaction_type": 6, "atc": atc, "terminal_number": terminal_number(0), "terminal_sequence": 1000 + atc,
        "local_time": int(time), "kind": kind, "line": 1, "stop": stop, "industry": 1,
    }  # fmt: skip
    tap = Tap(**(values | fields))
    sign([tap], KEY_SETS)
    return tap


@pytest.fixture
def core(tmp_path: Path) -> Any:
    with Harness(tmp_path, tariffs=COMPILED) as core:
        open_city(core, RIDERS[:1], funds_fen=2_000)
        core.now_us = NOON_US
        yield core


CARD = RIDERS[0].card


def test_an_entry_after_its_exit(core: Harness) -> None:
    """The exit was charged as one without an entry; then the entry comes, and 700 fen go back."""
    exit_tap = metro(CARD, 2, EXIT, "20260302093000", 9)
    (first,) = core.submit(exit_tap)
    assert (first.charged_fen, first.fare.base_rule) == (900, "city/3/missing_entry/metro")
    assert not first.fare.provisional
    (late,) = core.submit(metro(CARD, 1, ENTRY, "20260302090000", 3))
    assert (late.result, late.charged_fen, late.fare.provisional) == (Result.ACCEPTED, 0, True)
    assert core.balance(CARD).balance_fen == 1_800
    assert core.operator_balance_fen("northern") == 200
    newest = core.list_transactions(CARD)[0]
    assert (newest.kind, newest.reason, newest.change_fen, newest.atc) == (
        account_service_pb2.Transaction.KIND_POSTING, "correction", 700, 2,
    )  # fmt: skip
    assert newest.local_time == 20260302093000
    first.duplicate = True  # what was answered stays what was answered
    assert core.submit(exit_tap) == [first]
    assert core.get_tap(first.sequence).outcome.charged_fen == 900


def test_corrections_tell_their_fare(core: Harness) -> None:
    """Each is a posting of the card whose record and payload say what the tap's would say now; linked, behind one event."""
    core.submit(metro(CARD, 2, EXIT, "20260302093000", 9))
    before = core.engine.next_sequence
    core.submit(metro(CARD, 1, ENTRY, "20260302090000", 3))
    with core.journal.read() as reader:
        entry = reader.entry(before)
        assert entry is not None
        records = entry.array
        assert records["kind"].tolist() == [RecordKind.TAP, RecordKind.EVENT, RecordKind.POSTING, RecordKind.RIDES]
        correction = records[2]
        fare = fare_of(correction, priced_tap(entry, correction), core.memory.tariffs.rules)
        assert fare == tap_service_pb2.Fare(base_fen=200, base_rule="city/3/leg/metro", tariff="city/3")
        assert (correction["atc"], correction["terminal"]) == (2, 0)
    assert np.frombuffer(core.engine.rides(0), native.RIDES)["newest_atc"].tolist() == [2]


def test_a_correction_may_book_debt_and_lift_it(tmp_path: Path) -> None:
    with Harness(tmp_path, tariffs=COMPILED, overdraft_fen=100) as core:
        open_city(core, RIDERS[:1], funds_fen=300)
        core.now_us = NOON_US
        bus = metro(CARD, 3, SINGLE, "20260302103000", 9, industry=2, amount_fen=100)
        core.submit(bus, metro(CARD, 5, ENTRY, "20260302110000", 3))
        assert (core.balance(CARD).balance_fen, core.balance(CARD).denied) == (220, False)
        # An entry that never found its exit: with the next one it costs 700.
        (late,) = core.submit(metro(CARD, 2, ENTRY, "20260302093000", 3))
        assert (late.charged_fen, late.fare.provisional) == (0, True)
        assert (core.balance(CARD).balance_fen, core.balance(CARD).denied) == (220 - 700, True)
        core.restart()
        assert core.balance(CARD).denied
        # Its exit: provisionally 900, for one without an entry; in its place 200 less a transfer from the bus, and no 700.
        (late,) = core.submit(metro(CARD, 4, EXIT, "20260302104500", 3))
        assert (late.result, late.charged_fen, late.fare.provisional) == (Result.DEBT_BOOKED, 900, True)
        assert (core.balance(CARD).balance_fen, core.balance(CARD).denied) == (300 - 80 - 181, False)
        core.restart()
        assert not core.balance(CARD).denied


def test_online_taps_come_late_too(core: Harness) -> None:
    """A terminal whose clock is behind: the tap is decided at once, and its card is priced again."""
    core.submit(metro(CARD, 2, EXIT, "20260302093000", 9))
    (response,) = core.run([authorize_request(metro(CARD, 1, ENTRY, "20260302090000", 3))], [False]).responses
    outcome = tap_service_pb2.AuthorizeTapResponse.FromString(response).outcome
    assert outcome.fare.provisional
    assert core.balance(CARD).balance_fen == 1_800


def test_in_one_second_the_counter_decides(core: Harness) -> None:
    entry, exit_tap = metro(CARD, 1, ENTRY, "20260302090000", 3), metro(CARD, 2, EXIT, "20260302090000", 9)
    first, second = core.submit(entry, exit_tap)
    assert (second.charged_fen, first.fare.provisional, second.fare.provisional) == (200, False, False)
    exit_again, entry_again = metro(CARD, 4, EXIT, "20260302100000", 9), metro(CARD, 3, ENTRY, "20260302100000", 3)
    first, second = core.submit(exit_again, entry_again)
    assert (first.charged_fen, second.fare.provisional) == (800, True)  # 900, and the cap of the day
    assert core.balance(CARD).balance_fen == 2_000 - 200 - 200


def test_entitlements_that_change_do_not_touch_rides_before(core: Harness) -> None:
    """A late tap makes its neighbours anew with the rider category that they were priced with."""
    core.submit(metro(CARD, 2, SINGLE, "20260302093000", 9, industry=2, amount_fen=300))
    assert core.balance(CARD).balance_fen == 2_000 - 240
    request = card_service_pb2.SetEntitlementRequest(request_id=bytes(16), card_number=CARD, rider=3)  # rides free from now on
    core.ask(commands.set_entitlement, request)
    (late,) = core.submit(metro(CARD, 1, SINGLE, "20260302091500", 9, industry=2, amount_fen=300, line=2))
    assert late.charged_fen == 0
    told = core.list_transactions(CARD)
    assert (told[0].reason, told[0].change_fen) == ("correction", 100)  # a transfer now, from another line, but no senior's fare
    assert core.balance(CARD).balance_fen == 2_000 - 140


def test_what_waits_is_priced_after_a_restart(tmp_path: Path) -> None:
    """A late tap is durable before its card was priced again: a core that comes back does that first."""
    with limited(LATE_RECORDS_MAX=0), Harness(tmp_path, tariffs=COMPILED) as core:
        open_city(core, RIDERS[:1], funds_fen=2_000)
        core.now_us = NOON_US
        core.submit(metro(CARD, 2, EXIT, "20260302093000", 9))
        core.decide([submit_request([metro(CARD, 1, ENTRY, "20260302090000", 3)])], [True])
        assert core.memory.late
        waiting = dict(core.memory.late)
        first_sequence, count, records, payloads = core.engine.take_group()
        core.journal.append(Group(first_sequence, count, records, payloads, core.now_us))
        with pytest.raises(AssertionError):
            core.memory.photograph()
        core.restart()
        assert core.memory.late == waiting
    with limited(), Harness(tmp_path, tariffs=COMPILED) as core:
        core.now_us = NOON_US + 3_600_000_000
        assert price_again(core.memory, core.now_us).given_fen == 700
        core.take()
        core.commit()
        assert core.balance(CARD).balance_fen == 1_800
        core.restart()
        assert core.memory.late == {}


def test_fare_message_is_there_for_both(core: Harness) -> None:
    """The provisional fare is that of a card without a past."""
    taps = [
        metro(CARD, 2, SINGLE, "20260302093000", 9, industry=2, amount_fen=300),
        metro(CARD, 1, SINGLE, "20260302093000", 9, industry=2),
    ]
    core.submit(taps[0])
    (late,) = core.submit(taps[1])
    assert late.fare == fare_message(Twin(RIDERS[0]).take(taps[1])[1], provisional=True)


@pytest.mark.parametrize("records_max", [0, 2, 10_000])
def test_the_writer_prices_again_what_waits(tmp_path: Path, records_max: int) -> None:
    """Threads and all: cards that found no room in a group are priced in the next, also when nothing more comes, and when the
    core is closed at once; then the next start finds nothing left."""
    taps = in_order(draw_taps(random.Random(7), RIDERS, 400, 20))
    charges, twins = expected(RIDERS, taps)
    with Harness(tmp_path, tariffs=COMPILED) as core:
        open_city(core)
        now_ns = (core.now_us + 40 * DAY_S * 1_000_000) * 1_000
    seen: list[Corrections] = []

    class Watch(Observer):
        def on_corrections(self, corrections: Corrections) -> None:
            seen.append(corrections)

    done: queue.SimpleQueue[Work] = queue.SimpleQueue()
    settings = CoreSettings(
        engine=EngineSettings(cards_max=100, terminals_max=100, tariffs=COMPILED), checkpoint_s=0.05, checkpoint_records=1
    )
    with DataDirectory(tmp_path) as directory, limited(LATE_RECORDS_MAX=records_max or 1):
        threaded = Core(
            directory, KEY_SETS, settings, lambda works: [done.put(work) for work in works], Watch(), clock_ns=lambda: now_ns
        )
        shuffled = random.Random(8).sample(taps, len(taps))
        for at in range(0, len(shuffled), 50):
            threaded.submit(Work(request=submit_request(shuffled[at : at + 50]), stored=True))
            assert done.get(timeout=30).error is None
        threaded.close()
    assert sum(corrections.cards for corrections in seen) > len(RIDERS)
    with Harness(tmp_path, tariffs=COMPILED) as core:
        assert core.memory.late == {}
        assert core.memory.checkpoint_sequence == core.engine.next_sequence - 1
        assert final_charges(core) == charges
        for card, twin in twins.items():
            assert rides_of(core, card) == twin.rides
