"""Fares in the tap path: what taps are charged under a tariff, told why, remembered, and told again."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from harness import ISSUER, Harness, authorize_request, limited, make_tap, submit_request
from riders import (
    COMPILED,
    FIRST_DAY,
    RIDERS,
    TARIFF,
    Rider,
    Tap,
    Twin,
    draw_taps,
    fare_message,
    open_city,
    rides_of,
    terminal_number,
)
from tariffs import CITY, parse

from yikatong.core import commands, limits
from yikatong.core.check import check
from yikatong.core.config import Settings
from yikatong.core.errors import ConfigError, InvalidRequest
from yikatong.core.export import export
from yikatong.core.memory import EngineSettings
from yikatong.core.rules.compile import compile_tariffs
from yikatong.core.rules.fares import Outcome
from yikatong.core.rules.source import RuleError
from yikatong.core.rules.tariff import TariffSet
from yikatong.core.server import core_settings
from yikatong.core.tariffs import read_tariffs
from yikatong.core.types import RecordKind, Result
from yikatong.ext.engine import EngineFault
from yikatong.v1 import card_service_pb2, tap_service_pb2

TapOutcome = tap_service_pb2.TapOutcome
DAYS = 40
LIMITS = {"RING_RECORDS": 128, "GROUP_TAPS_MAX": 16, "REQUEST_ITEMS_MAX": 16}


def at_time_of(core: Harness, tap: Tap) -> None:
    """The clock never goes back; taps of profile 2 are taken as they happen."""
    date, time = divmod(tap.local_time, 1_000_000)
    when = FIRST_DAY.replace(
        year=date // 10_000,
        month=date // 100 % 100,
        day=date % 100,
        hour=time // 10_000,
        minute=time // 100 % 100,
        second=time % 100,
    )
    core.now_us = max(core.now_us, int(when.timestamp()) * 1_000_000)


def raw_answer(core: Harness, tap: Tap, stored: bool) -> bytes:
    """The answer's bytes, made durable."""
    request = submit_request([tap]) if stored else authorize_request(tap)
    (response,) = core.run([request], [stored]).responses
    assert isinstance(response, bytes)
    return response


def outcome_of(response: bytes) -> TapOutcome:
    """Both responses hold outcomes in field 1; and no byte is written otherwise than protobuf writes it."""
    parsed = tap_service_pb2.AuthorizeTapResponse.FromString(response)
    assert parsed.SerializeToString(deterministic=True) == response
    return parsed.outcome


@pytest.mark.parametrize("seed", range(6))
def test_taps_in_order(tmp_path: Path, seed: int) -> None:
    """Charges, explanations and memories are the twin's, through restarts, checkpoints that succeed or fail, and repeats."""
    chance = random.Random(seed)
    taps = draw_taps(chance, RIDERS, 150, DAYS)
    twins = {rider.card: Twin(rider) for rider in RIDERS}
    answers: list[tuple[Tap, TapOutcome, bool]] = []
    with limited(**LIMITS), Harness(tmp_path / "data", tariffs=COMPILED) as core:
        open_city(core)
        balances = {rider.card: core.balance(rider.card).balance_fen for rider in RIDERS}
        for tap in taps:
            at_time_of(core, tap)
            charged_fen, fare = twins[tap.card_number].take(tap)
            balances[tap.card_number] -= charged_fen
            stored = chance.random() < 0.5
            outcome = outcome_of(raw_answer(core, tap, stored))
            assert (outcome.result, outcome.charged_fen) == (Result.ACCEPTED, charged_fen), tap
            assert outcome.balance_after_fen == balances[tap.card_number]
            assert outcome.HasField("fare") == (fare.outcome is Outcome.PRICED)
            if fare.outcome is Outcome.PRICED:
                assert outcome.fare == fare_message(fare)
                assert outcome.fare.base_fen + sum(each.amount_fen for each in outcome.fare.adjustments) == charged_fen
            answers.append((tap, outcome, stored))
            what = chance.random()
            if what < 0.05:
                core.checkpoint()
            elif what < 0.08:
                core.checkpoint("checkpoint-middle")
            elif what < 0.12:
                core.restart()
            if chance.random() < 0.3:
                again(core, *chance.choice(answers))
        for rider in RIDERS:
            assert rides_of(core, rider.card) == twins[rider.card].rides
        for answer in answers:
            again(core, *answer)
        core.restart()
        for rider in RIDERS:
            assert rides_of(core, rider.card) == twins[rider.card].rides
            assert core.balance(rider.card).balance_fen == balances[rider.card]
        for answer in answers:
            again(core, *answer)
        core.checkpoint()
        assert core.engine.imbalance_fen() == 0
    with Harness(tmp_path / "data") as core:  # without the tariff: what was told is told again
        core.now_us += 2 * DAYS * 86_400 * 1_000_000 + 366 * 86_400 * 1_000_000
        for answer in answers[::5]:
            again(core, *answer)
    assert check(tmp_path / "data", EngineSettings()).cards == len(RIDERS)


def again(core: Harness, tap: Tap, first: TapOutcome, stored: bool) -> None:
    """The same answer but for the mark; and GetTap tells it, and the tap as it came."""
    repeated = TapOutcome()
    repeated.CopyFrom(first)
    repeated.duplicate = True
    assert outcome_of(raw_answer(core, tap, stored)) == repeated
    told = core.get_tap(first.sequence)
    assert told.outcome == first
    shown = Tap()
    shown.CopyFrom(tap)
    if told.tap.chip_balance_before_fen == 0:  # its record tells the fare in their place
        assert not tap.HasField("transfer")
        shown.chip_balance_before_fen = shown.chip_balance_after_fen = 0
    assert told.tap == shown


def test_without_a_tariff_and_of_profile_1_what_is_stated_is_charged(tmp_path: Path) -> None:
    taps = draw_taps(random.Random(1), RIDERS[:2], 30, DAYS)
    with Harness(tmp_path / "without") as core:
        open_city(core, RIDERS[:2])
        core.now_us += DAYS * 86_400 * 1_000_000
        for outcome, tap in zip(core.submit(*taps), taps, strict=True):
            assert (outcome.result, outcome.charged_fen) == (Result.ACCEPTED, tap.amount_fen)
            assert not outcome.HasField("fare")
        assert core.engine.rides(0) == bytes(64)
    with Harness(tmp_path / "with", tariffs=COMPILED) as core:
        open_city(core, RIDERS[:2])
        core.now_us += DAYS * 86_400 * 1_000_000
        tap = make_tap(
            card_number=RIDERS[0].card,
            terminal_number=terminal_number(0),
            local_time=taps[0].local_time,
            industry=2,
            amount_fen=321,
        )
        (outcome,) = core.submit(tap)
        assert (outcome.result, outcome.charged_fen, outcome.HasField("fare")) == (Result.ACCEPTED, 321, False)
        assert core.engine.rides(0) == bytes(64)


def test_an_answer_of_the_largest_size(tmp_path: Path) -> None:
    """Ids as long as a tariff may have them."""
    text = CITY.replace('id = "city"', f'id = "{"c" * 32}"').replace("version = 3", f"version = {limits.TARIFF_VERSION_MAX}")
    for name in ("day", "bus", "student", "to-bus"):
        text = text.replace(f'id = "{name}"', f'id = "{name:x<32}"')
        text = text.replace(f'product = "{name}"', f'product = "{name:x<32}"').replace(
            f'timeframe = "{name}"', f'timeframe = "{name:x<32}"'
        )
        text = text.replace(f'network = "{name}"', f'network = "{name:x<32}"').replace(f'"{name}"]', f'"{name:x<32}"]')
        text = text.replace(f'["{name}"', f'["{name:x<32}"')
    text = text.replace('rider = "student' + "x" * 25, 'rider = "student')
    compiled = compile_tariffs(TariffSet([parse(text)]))
    rider = RIDERS[2]
    taps = [tap for tap in draw_taps(random.Random(5), [rider], 300, 3) if tap.industry == 2][:60]
    with Harness(tmp_path, tariffs=compiled) as core:
        open_city(core, [rider])
        core.now_us += DAYS * 86_400 * 1_000_000
        (response,) = core.run([submit_request(taps)], [True]).responses
        parsed = tap_service_pb2.SubmitTapsResponse.FromString(response)
        assert parsed.SerializeToString(deterministic=True) == response
        longest = max(len(outcome.SerializeToString()) for outcome in parsed.outcomes)
        assert max(len(outcome.fare.adjustments) for outcome in parsed.outcomes) >= 3
        assert longest > 300


# ---- money ----

MONEY = """
balance_fen | overdraft_fen | stored | amount_fen | result             | denied
500         | 0             | no     | 400        | ACCEPTED           | no
500         | 0             | no     | 700        | INSUFFICIENT_FUNDS | no
500         | 0             | yes    | 700        | DEBT_BOOKED        | yes
500         | 100           | yes    | 600        | ACCEPTED           | no
500         | 100           | yes    | 601        | DEBT_BOOKED        | yes
500         | 100           | no     | 501        | INSUFFICIENT_FUNDS | no
0           | 1000000       | yes    | 1000000    | ACCEPTED           | no
"""


@pytest.mark.parametrize("row", MONEY.strip().splitlines()[1:])
def test_overdraft_of_stored_taps(tmp_path: Path, row: str) -> None:
    balance_fen, overdraft_fen, stored, amount_fen, result, denied = (part.strip() for part in row.split("|"))
    with Harness(tmp_path, overdraft_fen=int(overdraft_fen)) as core:
        core.register_card("3104416000000017")
        core.register_terminal(bytes.fromhex("112233445566"))
        if int(balance_fen):
            core.top_up("3104416000000017", int(balance_fen))
        tap = make_tap(amount_fen=int(amount_fen))
        outcome = core.submit(tap)[0] if stored == "yes" else core.authorize(tap)
        assert outcome.result == Result[result]
        assert core.balance("3104416000000017").denied == (denied == "yes")


# ---- entitlements ----


def entitle(core: Harness, request_id: int = 1, **fields: Any) -> Any:
    request = card_service_pb2.SetEntitlementRequest(request_id=request_id.to_bytes(16, "big"), **fields)
    return core.ask(commands.set_entitlement, request)


def test_entitlement_is_set_kept_and_asked_for(tmp_path: Path) -> None:
    card = RIDERS[0].card
    with Harness(tmp_path, tariffs=COMPILED) as core:
        open_city(core, RIDERS[:1])
        values = {"rider": 2, "rider_until": 20260131, "pass_id": "culture", "pass_until": 20991231}
        answer = entitle(core, card_number=card, **values)
        assert (answer.result, answer.duplicate) == (Result.ACCEPTED, False)
        assert core.record(answer.sequence + 1)["kind"] == RecordKind.ENTITLEMENT
        again = entitle(core, card_number=card, **values)
        assert (again.result, again.duplicate, again.sequence) == (Result.ACCEPTED, True, answer.sequence)
        assert entitle(core, card_number=card).result == Result.CONFLICT
        for step in (lambda: None, core.restart, core.checkpoint, core.restart):
            step()
            told = core.command(commands.get_card, card_service_pb2.GetCardRequest(card_number=card)).card
            assert told == card_service_pb2.Card(card_number=card, issuer_id=ISSUER, **values)
        assert core.list_transactions(card)[0].kind == 7
        entitle(core, 2, card_number=card, rider=1)
        core.restart()
        told = core.command(commands.get_card, card_service_pb2.GetCardRequest(card_number=card)).card
        assert told == card_service_pb2.Card(card_number=card, issuer_id=ISSUER, rider=1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rider": 8}, "rider"),
        ({"rider_until": 20260230}, "rider_until"),
        ({"pass_id": "culture", "pass_until": 1}, "pass_until"),
        ({"pass_id": "none such"}, "pass_id"),
        ({"pass_until": 20260101}, "pass_until"),
    ],
)
def test_entitlement_that_makes_no_sense(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    with Harness(tmp_path, tariffs=COMPILED) as core:
        open_city(core, RIDERS[:1])
        before = core.engine.next_sequence
        with pytest.raises(InvalidRequest) as error:
            entitle(core, card_number=RIDERS[0].card, **fields)
        assert error.value.field == named
        registration = card_service_pb2.Card(card_number="123", issuer_id=ISSUER, **fields)
        told = core.ask(commands.register_cards, card_service_pb2.RegisterCardsRequest(cards=[registration])).registrations[0]
        assert told.result in (Result.MALFORMED_RIDER, Result.MALFORMED_TIME, Result.MALFORMED_PASS)
        assert told.invalid_field == ("pass_id" if named == "pass_until" and "pass_id" not in fields else named)
        assert core.engine.next_sequence == before


def test_a_card_is_registered_with_its_entitlement(tmp_path: Path) -> None:
    with Harness(tmp_path, tariffs=COMPILED) as core:
        open_city(core)
        for step in (lambda: None, core.restart, core.checkpoint, core.restart):
            step()
            for rider in RIDERS:
                told = core.command(commands.get_card, card_service_pb2.GetCardRequest(card_number=rider.card)).card
                assert Rider(told.card_number, told.rider, told.rider_until, told.pass_id, told.pass_until) == rider
                again = core.ask(commands.register_cards, card_service_pb2.RegisterCardsRequest(cards=[told])).registrations[0]
                assert (again.result, again.duplicate) == (Result.ACCEPTED, True)
                told.pass_until = 20991231
                told.pass_id = "culture"
                other = core.ask(commands.register_cards, card_service_pb2.RegisterCardsRequest(cards=[told])).registrations[0]
                assert other.result == Result.CONFLICT


# ---- tariffs and their names ----


def test_numbers_of_rules_stay(tmp_path: Path) -> None:
    """A tariff whose rules come in another order, with more of them, explains old taps as before."""
    tap = draw_taps(random.Random(3), RIDERS[:1], 60, 5)
    older = compile_tariffs(TariffSet([parse(TARIFF.replace("version = 3", "version = 2"))]))
    with Harness(tmp_path, tariffs=older) as core:
        open_city(core, RIDERS[:1])
        core.now_us += DAYS * 86_400 * 1_000_000
        first = core.submit(*tap[:30])
        names = list(core.memory.tariffs.rules)
        core.settings = EngineSettings(cards_max=100, terminals_max=100, tariffs=COMPILED)
        core.restart()
        assert list(core.memory.tariffs.rules)[: len(names)] == names
        assert len(core.memory.tariffs.rules) > len(names)
        second = core.submit(*tap)
        for before, after in zip(first, second, strict=False):
            before.duplicate = True
            assert after == before
        assert {outcome.fare.tariff for outcome in second if outcome.HasField("fare")} == {"city/2", "city/3"}
        written = core.engine.next_sequence
        core.restart()
        assert core.engine.next_sequence == written  # nothing new: nothing is written


def test_setting_names_the_fault(tmp_path: Path) -> None:
    folder = tmp_path / "tariffs"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"tariffs: .*there is no \*.toml"):
        read_tariffs(folder)
    (folder / "b.toml").write_text(
        TARIFF.replace("version = 3", "version = 4").replace("2026-01-01\nuntil = 2026-12-31", "2027-01-01")
    )
    (folder / "a.toml").write_text(TARIFF)
    assert [tariff.version for tariff in read_tariffs(folder).tariffs.tariffs] == [3, 4]
    (folder / "a.toml").write_text(TARIFF.replace("amount_fen = 333", "amount_fen = -1"))
    with pytest.raises(RuleError, match=r"a.toml:\d+: fare_products\[2\].amount_fen"):
        core_settings(Settings(tariffs=str(folder), overdraft_fen=5))
    (folder / "a.toml").write_text(TARIFF)
    settings = core_settings(Settings(tariffs=str(folder), overdraft_fen=5))
    assert settings.engine.overdraft_fen == 5
    assert settings.engine.tariffs is not None
    with pytest.raises(ConfigError, match="overdraft_fen"):
        Settings(overdraft_fen=-1)


def test_state_of_format_2_is_read(tmp_path: Path) -> None:
    """It had no memory of rides."""
    with Harness(tmp_path) as core:
        core.register_card("3104416000000017")
        core.checkpoint()
        with core.directory.state.read() as reader:
            meta = json.loads(bytes(reader.get("meta", b"checkpoint")))
        with core.directory.state.write() as writer:
            writer.put("meta", b"checkpoint", json.dumps(meta | {"format": 2}).encode())
        core.restart()
        assert core.memory.checkpoint_sequence == 1
        assert core.engine.rides(0) == bytes(64)
        environment = core.directory.state.environment
        with environment.begin(write=True) as transaction:
            transaction.drop(core.directory.state.databases["rides"])
    assert check(tmp_path, EngineSettings()).cards == 1  # it only reads, and does without


def test_a_priced_journal_is_exported(tmp_path: Path) -> None:
    taps = draw_taps(random.Random(2), RIDERS[:3], 40, 10)
    with Harness(tmp_path / "data", tariffs=COMPILED) as core:
        open_city(core, RIDERS[:3])
        core.now_us += DAYS * 86_400 * 1_000_000
        core.submit(*reversed(taps))  # all but the last come late: corrections, and memories of rides
        records = core.engine.next_sequence - 1
    out = tmp_path / "journal.parquet"
    assert export(tmp_path / "data", out, "parquet", EngineSettings()) == records
    rows = pyarrow.parquet.read_table(out).to_pylist()
    kinds = {row["kind"] for row in rows}
    assert {"TAP", "EVENT", "POSTING", "RIDES"} <= kinds
    told = {(row["card_number"], row["atc"]): row for row in rows if row["kind"] == "TAP"}
    for tap in taps:
        row = told[tap.card_number, tap.atc]
        assert (row["tap_amount_fen"], row["terminal_number"]) == (tap.amount_fen, tap.terminal_number.hex())
        assert row["chip_balance_before_fen"] in (None, 77)


def test_rides_in_a_record_must_be_whole(tmp_path: Path) -> None:
    with Harness(tmp_path, tariffs=COMPILED) as core:
        open_city(core, RIDERS[:1])
        core.now_us += DAYS * 86_400 * 1_000_000
        with pytest.raises(ValueError, match="not there"):
            core.engine.commit(1, b"", bytes(32), [(RecordKind.RIDES, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0, b"short")])
        core.engine.commit(1, b"", bytes(32), [(RecordKind.RIDES, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0, bytes(range(64)))])
        _, _, records, payloads = core.engine.take_group()
        assert core.engine.rides(0) == bytes(range(64))
        core.restart()
        core.engine.replay(records, payloads)
        assert core.engine.rides(0) == bytes(range(64))
        core.restart()
        with pytest.raises(EngineFault):
            core.engine.replay(records, payloads[:-1])
