"""Changes: the ledger and the documents move together, wholly or not at all, and a restart finds them as they were."""

import json
import random
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness import START_S, Harness, make_tap

from yikatong.core.change import Change, answered
from yikatong.core.check import check
from yikatong.core.day.windows import day_of, settlement_days
from yikatong.core.errors import Damaged, DataError, InvalidRequest
from yikatong.core.memory import EngineSettings
from yikatong.core.types import ACCOUNT_FUNDING, NONE, Deny, DocumentKind, Flag, PostingKind, RecordKind, Result
from yikatong.ext.engine import EngineFull
from yikatong.v1 import account_service_pb2

CARDS = ("100", "101")
KIND = DocumentKind.ANSWER  # any will do
SETTINGS = EngineSettings(cards_max=1_000, terminals_max=100)


def change(core: Harness) -> Change:
    return Change(core.memory, core.now_us)


def settle(core: Harness) -> None:
    core.take()
    core.commit()


class Model:
    """What a data directory holds, by name."""

    def __init__(self) -> None:
        self.balances: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.documents: dict[bytes, bytes] = {}
        self.reasons = dict.fromkeys(CARDS, 0)
        self.closed_day = 0

    def check(self, core: Harness) -> None:
        for name in set(self.balances) | set(self.held):
            account = self.account(core, name)
            assert core.engine.balance_fen(account) == self.balances[name], name
            assert core.engine.held_fen(account) == self.held[name], name
        assert dict(core.memory.documents.scan(KIND)) == self.documents
        assert [key for key, _ in core.memory.documents.scan(KIND)] == sorted(self.documents)
        for card, reasons in self.reasons.items():
            known = core.engine.card(core.engine.find_card(card))
            assert known["deny_reasons"] == reasons
            assert (known["denied_since_s"] != 0) == (reasons != 0)
        assert core.engine.settlement_day == (self.closed_day + 1 if self.closed_day else 0)
        assert core.engine.imbalance_fen() == 0

    @staticmethod
    def account(core: Harness, name: str) -> int:
        if name == "funding":
            return ACCOUNT_FUNDING
        if name in CARDS:
            return int(core.engine.card(core.engine.find_card(name))["account"])
        account = core.memory.account(name)
        assert account is not None
        return account


def random_change(core: Harness, model: Model, chance: random.Random) -> None:
    made = change(core)
    names = ["funding", *CARDS, *(f"acquirer:{i}" for i in range(chance.randrange(4)))]
    accounts = {
        name: Model.account(core, name) if name == "funding" or name in CARDS else made.open_account(name) for name in names
    }
    for name in names:
        model.balances[name] += 0
    for _ in range(chance.randrange(5)):
        debit, credit = chance.sample(names, 2)
        amount = chance.randrange(5_000)
        card = core.engine.find_card(credit) if credit in CARDS else NONE
        made.move(accounts[debit], accounts[credit], amount, PostingKind.NONE, card)
        model.balances[debit] -= amount
        model.balances[credit] += amount
        if card != NONE and amount and model.balances[credit] >= 0:
            model.reasons[credit] &= ~Deny.DEBT
    for name in CARDS:
        amount = chance.randrange(-model.held[name], 3_000)
        made.hold(accounts[name], amount, core.engine.find_card(name))
        model.held[name] += amount
        if chance.random() < 0.2:
            model.reasons[name] = chance.randrange(16)
            made.deny(core.engine.find_card(name), model.reasons[name])
    for _ in range(chance.randrange(4)):
        key = bytes([chance.randrange(20)])
        if chance.random() < 0.3:
            made.delete(KIND, key)
            model.documents.pop(key, None)
        else:
            model.documents[key] = chance.randbytes(chance.randrange(40))
            made.put(KIND, key, model.documents[key])
    if chance.random() < 0.05:
        model.closed_day = max(model.closed_day, core.now_us // 86_400_000_000) + 1
        made.close_date(model.closed_day)
    sequence = made.sequence
    assert made.commit("test") == sequence


@pytest.mark.parametrize("seed", range(20))
def test_model(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    model = Model()
    with Harness(tmp_path / "data") as core:
        for card in CARDS:
            core.register_card(card)
        for _ in range(60):
            random_change(core, model, chance)
            core.pass_time(chance.randrange(100_000))
            settle(core)
            match chance.randrange(8):
                case 0:
                    core.checkpoint()
                case 1:
                    core.checkpoint("checkpoint-middle")
                case 2:
                    core.photograph()
                    random_change(core, model, chance)
                    settle(core)
                    core.settle_photograph(core.write_photograph(*(["checkpoint-before-commit"] * chance.randrange(2))))
                case 3:
                    core.restart()
                case 4:
                    core.rebuild()
            model.check(core)
        with core.journal.read() as reader:
            days = [day for entry in reader.entries() for day in settlement_days(entry.array).tolist()]
        assert days == sorted(days)
    check(tmp_path / "data", SETTINGS)


def test_records_are_linked_and_in_order(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        made = change(core)
        acquirer = made.open_account("acquirer:a")
        assert made.open_account("acquirer:a") == acquirer
        made.move(ACCOUNT_FUNDING, acquirer, 500, PostingKind.NONE)
        made.move(acquirer, Model.account(core, "100"), 0, PostingKind.NONE)  # nothing
        made.hold(Model.account(core, "100"), 0)
        first = made.commit("test")
        settle(core)
        records = [core.record(sequence) for sequence in range(first, core.engine.next_sequence)]
        assert [record["kind"] for record in records] == [RecordKind.EVENT, RecordKind.ACCOUNT, RecordKind.POSTING]
        assert [bool(record["flags"] & Flag.LINKED) for record in records] == [True, True, False]
        assert core.memory.account("acquirer:a") == acquirer
        assert core.memory.account("acquirer:b") is None


def test_nothing_is_written_when_something_does_not_fit(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        purse = Model.account(core, "100")
        before = core.engine.next_sequence

        def spoilt(fill: Any) -> None:
            made = change(core)
            made.put(KIND, b"key", b"value")
            made.move(ACCOUNT_FUNDING, purse, 100, PostingKind.NONE)
            fill(made)
            made.commit("test")

        def refused(kind: type[Exception], fill: Any) -> None:
            with pytest.raises(kind):
                spoilt(fill)
            assert core.engine.next_sequence == before
            assert core.engine.balance_fen(purse) == 0
            assert core.engine.held_fen(purse) == 0
            assert core.memory.documents.get(KIND, b"key") is None

        refused(ValueError, lambda made: made.hold(purse, -1))
        refused(ValueError, lambda made: (made.hold(purse, 5), made.hold(purse, -6)))
        refused(ValueError, lambda made: made.move(purse, 99, 1, PostingKind.NONE))
        refused(ValueError, lambda made: made.move(purse, purse, 1, PostingKind.NONE))
        refused(ValueError, lambda made: made.move(purse, ACCOUNT_FUNDING, -1, PostingKind.NONE))
        refused(ValueError, lambda made: made.move(purse, ACCOUNT_FUNDING, 1, PostingKind.NONE, card=7))
        refused(ValueError, lambda made: made.deny(0, 32))
        refused(ValueError, lambda made: made.put(KIND, b"", b""))
        refused(EngineFull, lambda made: made.move(ACCOUNT_FUNDING, purse, 2**63 - 1, PostingKind.NONE))
        refused(EngineFull, lambda made: [made.open_account(f"bank:{i}") for i in range(20_000_000)])
        refused(InvalidRequest, lambda made: made.open_account("x" * 300))


def test_a_request_is_answered_once(tmp_path: Path) -> None:
    request = account_service_pb2.TopUpRequest(request_id=b"0123456789abcdef", card_number="100", amount_fen=5)
    other = account_service_pb2.TopUpRequest(request_id=request.request_id, card_number="100", amount_fen=6)
    response = account_service_pb2.TopUpResponse
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        assert answered(core.memory, request, response) is None
        first = change(core).answer(request, response(result=Result.ACCEPTED, balance_after_fen=7), "test")
        settle(core)
        for again in (core.checkpoint, core.restart, lambda: None):
            again()
            same = answered(core.memory, request, response)
            assert same == response(result=Result.ACCEPTED, duplicate=True, balance_after_fen=7, sequence=first.sequence)
            assert answered(core.memory, other, response) == response(result=Result.CONFLICT)
        # The id of one kind of request is no other kind's.
        assert core.top_up("100", 5, request.request_id).result == Result.CONFLICT
        core.top_up("100", 5, b"fedcba9876543210")
        assert answered(core.memory, account_service_pb2.TopUpRequest(request_id=b"fedcba9876543210"), response) == response(
            result=Result.CONFLICT
        )
        with pytest.raises(InvalidRequest, match="request_id"):
            answered(core.memory, account_service_pb2.TopUpRequest(request_id=b"short"), response)


def test_held_money_does_not_pay_for_taps(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        core.register_terminal(make_tap(card_number="100").terminal_number)
        core.top_up("100", 1_000)
        made = change(core)
        made.hold(Model.account(core, "100"), 600, core.engine.find_card("100"))
        made.commit("test")
        settle(core)
        assert core.authorize(make_tap(card_number="100", atc=1, terminal_sequence=1, amount_fen=401)).result == (
            Result.INSUFFICIENT_FUNDS
        )
        assert core.authorize(make_tap(card_number="100", atc=2, terminal_sequence=2, amount_fen=400)).result == Result.ACCEPTED
        assert (core.balance("100").balance_fen, core.balance("100").held_fen) == (600, 600)
        listed = core.list_transactions("100")
        assert [each.held_change_fen for each in listed] == [0, 0, 600, 0, 0]


def test_a_payment_lifts_debt_and_no_other_reason(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        slot = core.engine.find_card("100")
        core.register_terminal(make_tap(card_number="100").terminal_number)
        core.submit(make_tap(card_number="100", atc=1, terminal_sequence=1, amount_fen=300))
        assert core.engine.card(slot)["deny_reasons"] == Deny.DEBT
        made = change(core)
        made.deny(slot, Deny.DEBT | Deny.LOSS)
        made.commit("loss-reported")
        core.top_up("100", 300)
        assert core.engine.card(slot)["deny_reasons"] == Deny.LOSS
        core.restart()
        assert core.engine.card(slot)["deny_reasons"] == Deny.LOSS
        assert core.balance("100").denied


def test_settlement_date_closed_early(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        core.register_terminal(make_tap(card_number="100").terminal_number)
        today = day_of(20250101)
        first = core.authorize(make_tap(card_number="100", atc=1, terminal_sequence=1, amount_fen=0))
        assert first.settlement_date == 20250101
        made = change(core)
        made.close_date(today)
        closing = made.commit("window-closed")
        settle(core)
        late = core.authorize(make_tap(card_number="100", atc=2, terminal_sequence=2, amount_fen=0))
        assert late.settlement_date == 20250102
        core.restart()
        assert core.authorize(make_tap(card_number="100", atc=2, terminal_sequence=2, amount_fen=0)).settlement_date == 20250102
        assert core.engine.settlement_day == today + 1
        assert (core.record(closing)["settlement_day"], core.record(late.sequence)["settlement_day"]) == (today, today + 1)
        core.now_us = (START_S + 5 * 86_400) * 1_000_000
        assert core.authorize(make_tap(card_number="100", atc=3, terminal_sequence=3, amount_fen=0)).settlement_date == 20250106


def test_state_of_an_older_format_is_made_anew(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        core.top_up("100", 500)
        core.checkpoint()
        with core.directory.state.write() as writer:
            meta = json.loads(bytes(writer.get("meta", b"checkpoint") or b""))
            writer.put("meta", b"checkpoint", json.dumps(meta | {"format": 1}).encode())
    with pytest.raises(DataError, match="older format"):
        check(tmp_path / "data", SETTINGS)
    with Harness(tmp_path / "data") as core:
        assert core.balance("100").balance_fen == 500
        assert core.memory.checkpoint_sequence == 0
    check(tmp_path / "data", SETTINGS)


def test_check_finds_a_hold_that_does_not_add_up(tmp_path: Path) -> None:
    with Harness(tmp_path / "data") as core:
        core.register_card("100")
        made = change(core)
        made.hold(Model.account(core, "100"), 600)
        made.commit("test")
        settle(core)
        core.checkpoint()
        with core.directory.state.read() as reader:
            page = bytearray(reader.items("accounts").__next__()[1])
        at = page.index((600).to_bytes(8, "little"))
        page[at] ^= 1
        with core.directory.state.write() as writer:
            writer.put("accounts", bytes(4), bytes(page[:-4]) + zlib.crc32(page[:-4]).to_bytes(4, "big"))
    with pytest.raises(Damaged, match="account 1: 601 fen of it are held, its holds sum to 600"):
        check(tmp_path / "data", SETTINGS)
