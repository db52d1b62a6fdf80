"""The threat table (core/README.md): every test that it names is there, and the scenarios that no other file plays."""

import json
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from day_city import DATE, SEAL_KEY, City
from harness import ISSUER, KEY_SET, Harness, make_tap
from hypothesis import given, settings
from hypothesis import strategies as st
from service_port import ServicePort, department, operator

from yikatong.core import limits
from yikatong.core.access import approvals, lockout
from yikatong.core.access.rate_limits import Rates
from yikatong.core.change import Change
from yikatong.core.check import check
from yikatong.core.day.seal import verify_receipt, verify_seal, verify_seals
from yikatong.core.errors import Damaged, InvalidRequest, RateLimited
from yikatong.core.export import backup
from yikatong.core.journal import JournalReader
from yikatong.core.keys import key_sets
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.keys.provider import KeyReference, Purpose, SealedDataWrong
from yikatong.core.memory import EngineSettings
from yikatong.core.store import DataDirectory
from yikatong.core.types import Deny, DocumentKind, Result
from yikatong.v1 import (
    audit_service_pb2,
    card_service_pb2,
    journal_pb2,
    lockout_service_pb2,
    settlement_service_pb2,
    tap_service_pb2,
)

ROOT = Path(__file__).resolve().parents[1]
THREATS = {
    "cloned card", "replayed tap", "replayed code", "stolen terminal", "rogue acquirer", "curious clerk", "leaked backup",
    "malicious certificate", "key custodian",
}  # fmt: skip
CARD = "3104416000000017"
TERMINAL = bytes.fromhex("112233445566")


# ---- the table ----


def table() -> dict[str, list[str]]:
    """By threat, the tests that are named."""
    text = (ROOT / "core/README.md").read_text("utf-8")
    rows = [line.split("|") for line in text.partition("## Threats")[2].splitlines() if line.startswith("| ")]
    return {row[1].strip(): re.findall(r"`(test_[a-z_]+\.py::test_\w+)`", row[3]) for row in rows[1:] if len(row) == 5}


def test_the_table_has_every_threat() -> None:
    named = {threat for threat in table() if not threat.startswith("---")}
    assert named == THREATS


@pytest.mark.parametrize("threat", sorted(THREATS))
def test_every_named_test_is_there(threat: str) -> None:
    named = table()[threat]
    assert named
    for test in named:
        file, _, name = test.partition("::")
        path = ROOT / "tests" / file
        assert re.search(rf"^def {name}\(", path.read_text("utf-8"), re.MULTILINE), f"{test} is not there"


# ---- cloned card ----


@pytest.fixture
def core(tmp_path: Path) -> Any:
    with Harness(tmp_path / "data") as made:
        made.register_card(CARD)
        made.register_terminal(TERMINAL)
        made.register_terminal(bytes(6), "thief")
        made.top_up(CARD, 10_000)
        yield made


def test_a_cloned_card_without_the_key(core: Harness) -> None:
    """A copy of all that can be read off a card, under keys of one's own or MACs that were seen: it buys nothing, and cannot
    spoil the counters of the original."""
    seen = make_tap()
    core.authorize(seen)
    other_keys = [
        KeySet(ISSUER, 1, 1, 2, secrets.token_bytes(16)),
        KeySet(ISSUER, 1, 1, 1, KEY_SET.master),  # the right master, another level
    ]
    forged = [make_tap(keys, atc=2 + at, terminal_sequence=2 + at) for at, keys in enumerate(other_keys)]
    forged.append(make_tap(atc=9, terminal_sequence=9, mac=seen.mac))
    assert [core.authorize(tap).result for tap in forged] == [Result.MAC_MISMATCH] * 3
    assert core.balance(CARD).balance_fen == 9_800
    for at in (2, 3, 9):
        assert core.authorize(make_tap(atc=at, terminal_sequence=100 + at)).result == Result.ACCEPTED


def test_a_cloned_card_with_the_key(core: Harness) -> None:
    """A perfect copy: both cards count from where they were. The first tap of a number is good, the second is fraud, whoever it
    was; once the card is denied neither goes on."""
    original = [make_tap(atc=at, terminal_sequence=at) for at in range(1, 6)]
    clone = [make_tap(atc=at, terminal_number=bytes(6), terminal_sequence=at, amount_fen=500) for at in range(3, 8)]
    first = [core.authorize(tap) for tap in original]
    second = [core.authorize(tap) for tap in clone]
    assert [outcome.result for outcome in first] == [Result.ACCEPTED] * 5
    assert [outcome.result for outcome in second] == [Result.CONFLICT] * 3 + [Result.ACCEPTED] * 2
    assert [outcome.conflicting_sequence for outcome in second[:3]] == [outcome.sequence for outcome in first[2:]]
    caught = core.authorize(make_tap(atc=6, terminal_sequence=6))  # and so the original finds the clone out
    assert caught.result == Result.CONFLICT
    assert core.balance(CARD).balance_fen == 10_000 - 5 * 200 - 2 * 500
    fraud = [core.record(outcome.sequence)["flags"] & 4 for outcome in (*second[:3], caught)]
    assert fraud == [4] * 4

    def deny(memory: Any, _: Any, time_us: int) -> None:
        change = Change(memory, time_us)
        change.deny(memory.engine.find_card(CARD), int(Deny.FROZEN))
        change.commit("test")

    core.ask(deny, None)
    after = [make_tap(atc=at, terminal_sequence=200 + at) for at in (20, 21)]
    assert [core.authorize(tap).result for tap in after] == [Result.CARD_DENIED] * 2


# ---- replayed tap ----


def test_a_replayed_tap(core: Harness) -> None:
    """Again at once, in one batch, stored, after a checkpoint, after a restart: one charge, and the first answer each time."""
    tap = make_tap()
    first = core.authorize(tap)
    answers = [core.authorize(tap), *core.submit(tap, tap, tap)]
    core.checkpoint()
    answers.append(core.authorize(tap))
    core.restart()
    answers += [core.authorize(tap), *core.submit(*[tap] * 200)]
    for answer in answers:
        assert answer.duplicate
        answer.duplicate = False
        assert answer == first
    assert core.balance(CARD).balance_fen == 9_800


ALTERED = st.sampled_from(
    [("amount_fen", 1), ("atc", 7), ("terminal_sequence", 7), ("local_time", 20250101083016), ("line", 9), ("stop", 9),
     ("terminal_number", bytes(6)), ("transaction_type", 9), ("kind", tap_service_pb2.TAP_KIND_ENTRY)]
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(changes=st.lists(ALTERED, min_size=1, max_size=4, unique_by=lambda change: change[0]))
def test_a_replayed_tap_that_was_altered(changes: list[tuple[str, Any]], tmp_path_factory: Any) -> None:
    """Whatever of a tap that was seen is altered under its MAC, it moves nothing."""
    with Harness(tmp_path_factory.mktemp("core") / "data") as core:
        core.register_card(CARD)
        core.register_terminal(TERMINAL)
        core.register_terminal(bytes(6), "thief")
        core.top_up(CARD, 10_000)
        tap = make_tap(profile=tap_service_pb2.PROFILE_ACCOUNT)
        first = core.authorize(tap)
        assert first.result == Result.ACCEPTED
        altered = tap_service_pb2.Tap()
        altered.CopyFrom(tap)
        for field, value in changes:
            setattr(altered, field, value)
        outcome = core.authorize(altered)
        if outcome.duplicate:  # its counters and MAC are those that were seen: it is told what was charged then
            assert (outcome.sequence, outcome.charged_fen) == (first.sequence, 200)
        else:
            assert outcome.result in (Result.MAC_MISMATCH, Result.CONFLICT)
        assert core.balance(CARD).balance_fen == 9_800


# ---- stolen terminal ----


def test_a_terminal_makes_no_tap_of_its_own(core: Harness) -> None:
    """It has seen cards and their taps, and guesses: four thousand taps of fifty cards, none is taken."""
    taps = [
        make_tap(atc=1 + at, terminal_sequence=1 + at, amount_fen=1, amount_due_fen=1, mac=secrets.token_bytes(4))
        for at in range(4_000)
    ]
    outcomes = core.submit(*taps)
    assert {outcome.result for outcome in outcomes} == {Result.MAC_MISMATCH}
    assert core.balance(CARD).balance_fen == 10_000
    assert core.authorize(make_tap()).result == Result.ACCEPTED


# ---- curious clerk ----


def test_a_curious_clerk(tmp_path: Path, key_file: Path) -> None:
    """A clerk looks at cards for no reason: must give one, stands in the trail under it, is slowed, and cannot make it undone; an
    operator alone cannot lift a lock-out to guess on."""
    clerk, rates = department("civil-affairs"), Rates(personal_per_s=5.0)
    with ServicePort(tmp_path / "data", key_file, rates) as port:
        cards = [card_service_pb2.Card(card_number=f"31044160000000{at:02}", issuer_id=ISSUER, rider=4) for at in range(30)]
        port.call("CardService/RegisterCards", cards=cards)
        looked_at = 0

        def look_at_all() -> None:
            nonlocal looked_at
            for card in cards:
                port.call("CardService/GetCard", caller=clerk, card_number=card.card_number)
                looked_at += 1

        with pytest.raises(RateLimited):
            look_at_all()
        with pytest.raises(InvalidRequest, match="purpose"):
            port.call("AuditService/ListAccesses", caller=clerk, card_number=cards[0].card_number)
        asked = audit_service_pb2.ListCallerAccessesRequest(caller=str(clerk), purpose="why so many")
        found = port.call("AuditService/ListCallerAccesses", asked, caller=operator("auditor")).accesses
        assert len(found) == looked_at
        assert looked_at >= 5 * limits.RATE_BURST_S

        def try_to_hide(memory: Any, time_us: int) -> None:
            change = Change(memory, time_us)
            for key, _ in list(memory.documents.scan(DocumentKind.ACCESS_BY_CALLER)):
                with pytest.raises(ValueError, match="never deleted"):
                    change.delete(DocumentKind.ACCESS_BY_CALLER, key)

        port.ask(try_to_hide)
        key = lockout.of_card(CARD)
        request = lockout_service_pb2.LiftLockoutRequest(request_id=bytes(16), subject=str(key), reason="let me")
        assert port.call("LockoutService/LiftLockout", request, caller=operator("li")).result == Result.APPROVAL_PENDING


# ---- leaked backup ----


def test_a_leaked_backup_opens_nothing(tmp_path: Path, key_file: Path) -> None:
    """Whoever has the backup and not the key file has no key, can read nothing that was sealed, and can use no tap of it."""
    data, stolen = tmp_path / "data", tmp_path / "stolen"
    secret = f"reason {secrets.token_hex(8)}"
    with ServicePort(data, key_file) as port:
        request = lockout_service_pb2.LiftLockoutRequest(request_id=bytes(16), subject="card:1", reason=secret)
        held = port.call("LockoutService/LiftLockout", request, caller=operator("li"))
    backup(data, stolen)
    raw = b"".join(path.read_bytes() for path in stolen.iterdir())
    assert secret.encode() not in raw
    for key_set in key_sets.load(key_file):
        assert key_set.master not in raw
        assert key_set.parent() not in raw
    own_keys = tmp_path / "own-keys.toml"
    key_sets.make_test_keys(own_keys)
    thief = key_sets.load_provider(own_keys)
    with Harness(stolen) as core:
        kept = core.memory.documents.get(DocumentKind.APPROVAL, bytes.fromhex(held.approval_id))
        sealed = journal_pb2.HeldRequest.FromString(kept)
        associated = approvals._associated(sealed.approval.method, sealed.approval.request_digest)
        with pytest.raises(SealedDataWrong):
            thief.open(KeyReference(Purpose.PERSON_DATA, sealed.key_version, sealed.key_index), sealed.sealed, associated)
    owner = key_sets.load_provider(key_file)
    opened = owner.open(KeyReference(Purpose.PERSON_DATA, sealed.key_version, sealed.key_index), sealed.sealed, associated)
    assert lockout_service_pb2.LiftLockoutRequest.FromString(opened).reason == secret


def test_a_backup_put_back_shows(tmp_path: Path) -> None:
    """Somebody puts an older copy in place of the data, to undo a day: it is sound in itself, and does not stand against the seal
    and the receipt that others hold."""
    data, old = tmp_path / "data", tmp_path / "old"
    with City(data) as city:
        city.tap()
        command = [sys.executable, "-m", "yikatong.core.cli", "backup", "--data", str(data), "--to", str(old)]
        subprocess.run(command, check=True, capture_output=True)
        tap = city.tap(1)
        city.sealed()
        seal = city.day.get_seal(settlement_service_pb2.GetSealRequest(settlement_date=DATE)).seal
        receipt = city.day.get_receipt(settlement_service_pb2.GetReceiptRequest(sequence=tap.sequence)).receipt
    assert check(data, EngineSettings(), seal_key=SEAL_KEY.public_key()).seals == 1
    assert check(old, EngineSettings()).seals == 0
    proved = verify_receipt(receipt, SEAL_KEY.public_key())
    assert int(proved.record["sequence"][0]) == tap.sequence
    assert verify_seal(seal, SEAL_KEY.public_key())["last_sequence"] >= tap.sequence
    with DataDirectory(old, readonly=True) as directory, JournalReader(directory.journal) as reader:
        last = reader.last()
        assert last is not None
        assert last.first_sequence + last.count - 1 < tap.sequence
        with pytest.raises(Damaged, match=f"the seal of {json.loads(seal)['settlement_date']}"):
            verify_seals(reader, [seal], SEAL_KEY.public_key())
