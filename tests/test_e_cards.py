"""E-cards and devices: one account and one state with the card, secrets that are kept nowhere, and proofs that are good once."""

import functools
import secrets
from pathlib import Path
from typing import Any

import auditor
import pytest
from harness import ISSUER, Harness, make_tap
from hypothesis import given, settings
from hypothesis import strategies as st

from yikatong.clients.connection import Connection
from yikatong.core import commands, export, limits
from yikatong.core.cards import card_state, device_proof, e_cards
from yikatong.core.cards.deny_list import get_deny_list
from yikatong.core.cards.device_proof import activation_proof, make_proof, message_of, unwrap
from yikatong.core.change import Change
from yikatong.core.check import check
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.keys.provider import KeyReference, KeyUnknown, Purpose, SealedDataWrong
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.memory import EngineSettings
from yikatong.core.types import NONE, Deny, Result
from yikatong.ext.engine import ENTITLEMENT
from yikatong.v1 import card_service_pb2, deny_list_service_pb2
from yikatong.v1 import e_card_service_pb2 as pb

CARD, OTHER = "3104416000000017", "3104416000000025"
PROVIDER = SoftwareProvider({KeyReference(Purpose.DEVICE, 1): bytes(range(16))})
PUBLIC_KEY = b"\2" + bytes(range(32))
TERMINAL = make_tap().terminal_number


def new_id() -> bytes:
    return secrets.token_bytes(16)


def issue(core: Harness, card: str = CARD) -> pb.IssueECardResponse:
    request = pb.IssueECardRequest(request_id=new_id(), card_number=card)
    return core.ask(functools.partial(e_cards.issue_e_card, PROVIDER), request)


def start(core: Harness, card: str = CARD) -> pb.StartActivationResponse:
    request = pb.StartActivationRequest(request_id=new_id(), card_number=card)
    return core.ask(functools.partial(e_cards.start_activation, PROVIDER), request)


def activate(core: Harness, started: pb.StartActivationResponse, device_id: bytes, **fields: Any) -> pb.ActivateDeviceResponse:
    request = pb.ActivateDeviceRequest(request_id=new_id(), code=started.code, device_id=device_id, public_key=PUBLIC_KEY)
    request.proof = activation_proof(started.activation_secret, started.code, device_id, PUBLIC_KEY)
    request.MergeFrom(pb.ActivateDeviceRequest(**fields))
    return core.ask(functools.partial(e_cards.activate_device, PROVIDER, 2), request)


def bind(core: Harness, card: str = CARD) -> tuple[bytes, bytes]:
    """A new device of an e-card: its id and its key."""
    started, device_id = start(core, card), new_id()
    answer = activate(core, started, device_id)
    assert answer.result == Result.ACCEPTED
    return device_id, unwrap(started.activation_secret, device_id, answer.wrapped_device_key)


def revoke(core: Harness, device_id: bytes, card: str = CARD) -> pb.RevokeDeviceResponse:
    return core.ask(e_cards.revoke_device, pb.RevokeDeviceRequest(request_id=new_id(), card_number=card, device_id=device_id))


def cancel(core: Harness, card: str = CARD) -> pb.CancelECardResponse:
    return core.ask(e_cards.cancel_e_card, pb.CancelECardRequest(request_id=new_id(), card_number=card))


def deny(core: Harness, number: str, reasons: int) -> None:
    change = Change(core.memory, core.now_us)
    change.deny(core.engine.find_card(number), reasons)
    change.commit("denied")
    core.take()
    core.commit()


@pytest.fixture
def core(tmp_path: Path) -> Any:
    with Harness(tmp_path / "data") as made:
        made.register_card(CARD)
        made.register_card(OTHER)
        made.register_terminal(TERMINAL)
        yield made


def both(core: Harness, number: str) -> tuple[dict[str, Any], dict[str, Any]]:
    slot = core.engine.find_card(CARD)
    return core.engine.card(slot), core.engine.card(core.engine.find_card(number))


# ---- one account, one state ----


def test_card_and_e_card_are_one_through_replay_checkpoint_check_and_export(core: Harness, tmp_path: Path) -> None:
    core.top_up(CARD, 1_000)
    issued = issue(core)
    number = issued.e_card.e_card_number
    assert issued.result == Result.ACCEPTED
    assert len(number) == 19
    assert len(issued.e_card.code) == 16
    first = core.authorize(make_tap(card_number=CARD, amount_fen=100, atc=1, terminal_sequence=1))
    second = core.authorize(make_tap(card_number=number, amount_fen=200, atc=1, terminal_sequence=2))
    assert [first.balance_after_fen, second.balance_after_fen] == [900, 700]
    core.top_up(number, 50)
    for again in (core.restart, core.checkpoint, core.restart, core.rebuild):
        again()
        assert [core.balance(each).balance_fen for each in (CARD, number)] == [750, 750]
        card, e_card = both(core, number)
        assert card["account"] == e_card["account"]
        assert core.engine.card(card["twin"])["card_number"] == number
        found = core.command(e_cards.get_e_card, pb.GetECardRequest(card_number=number)).e_card
        assert (found.card_number, found.code, found.state) == (CARD, issued.e_card.code, e_cards.ISSUED)
    third = core.authorize(make_tap(card_number=number, amount_fen=800, atc=2, terminal_sequence=3))
    assert third.result == Result.INSUFFICIENT_FUNDS
    core.close()
    report = check(core.path, EngineSettings(cards_max=100_000, terminals_max=10_000))
    assert (report.cards, report.operators, report.accounts) == (3, 1, 4)
    assert auditor.audit(core.path).accounts == 4
    out = tmp_path / "out.csv"
    export.export(core.path, out, "csv", EngineSettings(cards_max=100_000, terminals_max=10_000))
    rows = [row.split(",") for row in out.read_text().splitlines() if number in row]
    assert len(rows) == 4  # the card, two taps, the top-up


@pytest.mark.parametrize("reasons", [Deny.LOSS, Deny.FROZEN, Deny.CANCELLED, Deny.LOSS | Deny.FROZEN])
@pytest.mark.parametrize("through_card", [True, False])
def test_whatever_denies_one_denies_both_with_one_sequence(core: Harness, reasons: int, through_card: bool) -> None:
    number = issue(core).e_card.e_card_number
    for wanted in (reasons, 0, reasons):
        deny(core, CARD if through_card else number, wanted)
        card, e_card = both(core, number)
        assert card["deny_reasons"] == e_card["deny_reasons"] == wanted
        assert card["denied_since_s"] == e_card["denied_since_s"]
        for each in (CARD, number):
            said = card_state.refusal(core.memory, core.engine.find_card(each), core.now_us)
            assert said == (Result.CARD_DENIED if wanted else None)
        changes = core.engine.denials()[-2:]
        assert len(set(changes["sequence"].tolist())) == 1
        assert {core.engine.card(slot)["card_number"] for slot in changes["card"].tolist()} == {CARD, number}
    assert core.engine.denied_cards == 2
    core.restart()
    assert [each["deny_reasons"] for each in both(core, number)] == [reasons, reasons]
    assert core.engine.denied_cards == 2
    for at, each in enumerate((CARD, number), 1):
        core.top_up(each, 100)
        assert core.authorize(make_tap(card_number=each, atc=1, terminal_sequence=at)).result == Result.CARD_DENIED


def test_debt_of_one_is_debt_of_both_and_paid_for_both(core: Harness) -> None:
    number = issue(core).e_card.e_card_number
    (booked,) = core.submit(make_tap(card_number=number, amount_fen=300, atc=1, terminal_sequence=1))
    assert booked.result == Result.DEBT_BOOKED
    assert core.authorize(make_tap(card_number=CARD, amount_fen=0, atc=1, terminal_sequence=2)).result == Result.CARD_DENIED
    core.restart()
    assert [each["deny_reasons"] for each in both(core, number)] == [Deny.DEBT, Deny.DEBT]
    core.top_up(CARD, 500)
    assert [each["deny_reasons"] for each in both(core, number)] == [0, 0]
    assert core.authorize(make_tap(card_number=number, amount_fen=200, atc=2, terminal_sequence=3)).balance_after_fen == 0
    core.restart()
    assert core.engine.denied_cards == 0


def test_a_card_in_debt_gets_an_e_card_in_debt(core: Harness) -> None:
    core.submit(make_tap(card_number=CARD, amount_fen=300))
    number = issue(core).e_card.e_card_number
    for _ in range(2):
        assert [each["deny_reasons"] for each in both(core, number)] == [Deny.DEBT, Deny.DEBT]
        assert core.engine.denied_cards == 2
        core.restart()
    core.close()
    assert auditor.audit(core.path).accounts == 4


def test_entitlements_are_of_both(core: Harness) -> None:
    number = issue(core).e_card.e_card_number
    request = card_service_pb2.SetEntitlementRequest(request_id=new_id(), card_number=CARD, rider=3, rider_until=20300101)
    core.ask(commands.set_entitlement, request)
    for _ in range(2):
        card, e_card = both(core, number)
        assert [card[name] for name in ENTITLEMENT.names] == [e_card[name] for name in ENTITLEMENT.names]
        assert e_card["rider"] == 3
        core.restart()


def test_a_page_of_the_deny_list_never_parts_a_card_from_its_e_card(core: Harness) -> None:
    number = issue(core).e_card.e_card_number
    deny(core, OTHER, Deny.LOSS)
    version = core.engine.deny_version
    deny(core, CARD, Deny.LOSS)
    deny(core, OTHER, 0)
    seen, token = [], ""
    while True:
        request = deny_list_service_pb2.GetDenyListRequest(version=version, page_size=1, page_token=token)
        page = core.command(get_deny_list, request)
        seen += [entry.card_number for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == sorted([CARD, number, OTHER])


def test_an_expired_card_has_an_expired_e_card(core: Harness) -> None:
    core.register_card("77", expires=20250101)
    number = issue(core, "77").e_card.e_card_number
    core.pass_time(86_400)
    assert card_state.refusal(core.memory, core.engine.find_card(number), core.now_us) == Result.CARD_EXPIRED
    assert start(core, "77").result == Result.CARD_EXPIRED


def test_the_engine_takes_one_twin_only(core: Harness) -> None:
    issue(core)
    slot = core.engine.find_card(CARD)
    for wrong in (slot, core.engine.counts["cards"]):
        with pytest.raises(ValueError, match="twin"):
            core.engine.add_card("5", ISSUER, 1, 0, core.now_us, b"", twin=wrong)
    assert core.engine.find_card("5") == NONE


# ---- issue and cancel ----


def test_one_for_one_and_for_live_cards_only(core: Harness) -> None:
    issued = issue(core)
    number = issued.e_card.e_card_number
    assert issue(core).result == Result.E_CARD_EXISTS
    assert issue(core, "999").result == Result.UNKNOWN_CARD
    deny(core, OTHER, Deny.FROZEN)
    assert issue(core, OTHER).result == Result.CARD_DENIED
    with pytest.raises(InvalidRequest, match="e-card"):
        issue(core, number)
    with pytest.raises(NotFound):
        core.command(e_cards.get_e_card, pb.GetECardRequest(card_number=OTHER))


def test_a_cancelled_e_card_comes_back_under_a_new_code_without_devices(core: Harness) -> None:
    first = issue(core).e_card
    device_id, key = bind(core)
    assert cancel(core).result == Result.ACCEPTED
    assert cancel(core).result == Result.E_CARD_CANCELLED
    assert start(core).result == Result.E_CARD_CANCELLED
    assert prove(core, device_id, key) == Result.DEVICE_REVOKED
    assert card_state.refusal(core.memory, core.engine.find_card(CARD), core.now_us) is None
    second = issue(core).e_card
    assert second.e_card_number == first.e_card_number
    assert second.code != first.code
    assert e_cards.find_code(core.memory, first.code) is None
    assert prove(core, device_id, key, counter=2) == Result.DEVICE_REVOKED
    assert isinstance(prove(core, *bind(core)), e_cards.Device)


def test_without_the_key_nothing_is_half_done(core: Harness) -> None:
    before = core.engine.counts, core.engine.next_sequence
    request = pb.IssueECardRequest(request_id=new_id(), card_number=CARD)
    with pytest.raises(KeyUnknown):
        core.command(functools.partial(e_cards.issue_e_card, SoftwareProvider({})), request)
    assert (core.engine.counts, core.engine.next_sequence) == before
    assert issue(core).result == Result.ACCEPTED


def test_requests_are_safe_to_repeat(core: Harness) -> None:
    request = pb.IssueECardRequest(request_id=new_id(), card_number=CARD)
    command = functools.partial(e_cards.issue_e_card, PROVIDER)
    first, again = core.ask(command, request), core.ask(command, request)
    assert again.duplicate
    assert (first.e_card, first.sequence) == (again.e_card, again.sequence)
    request.card_number = OTHER
    assert core.ask(command, request).result == Result.CONFLICT


def test_nobody_elses_number_is_taken(core: Harness) -> None:
    taken = e_cards._new_number(core.memory)
    core.register_card(str(int(taken) + 0))  # the next slot's number is another
    for _ in range(3):
        core.register_card(e_cards._new_number(core.memory)[:-1] + "0")
    number = issue(core).e_card.e_card_number
    assert core.engine.card(core.engine.find_card(number))["twin"] == core.engine.find_card(CARD)


# ---- devices ----


MESSAGE = message_of("CodeService/GetCode", b"\1")


def prove(
    core: Harness, device_id: bytes, key: bytes, *, counter: int = 1, off_s: float = 0, message: bytes = MESSAGE
) -> e_cards.Device | Result:
    proof = make_proof(key, device_id, message, core.now_us + round(off_s * 1e6), counter)
    return e_cards.check_device(core.memory, PROVIDER, device_id, MESSAGE, proof, core.now_us)


def test_a_device_proves_itself_once_a_counter(core: Harness) -> None:
    issue(core)
    device_id, key = bind(core)
    device = prove(core, device_id, key, counter=7)
    assert isinstance(device, e_cards.Device)
    assert device.e_card.card_slot == core.engine.find_card(CARD)
    change = Change(core.memory, core.now_us)
    e_cards.use_proof(change, device)
    change.commit("proved")
    core.take()
    core.commit()
    for _ in range(2):
        assert prove(core, device_id, key, counter=7) == Result.DEVICE_PROOF_WRONG
        assert prove(core, device_id, key, counter=6) == Result.DEVICE_PROOF_WRONG
        assert isinstance(prove(core, device_id, key, counter=8), e_cards.Device)
        core.restart()


REFUSED = """
what                     | result
unknown device           | DEVICE_UNKNOWN
no device id             | DEVICE_UNKNOWN
another device's key     | DEVICE_PROOF_WRONG
another message          | DEVICE_PROOF_WRONG
no proof                 | DEVICE_PROOF_WRONG
revoked                  | DEVICE_REVOKED
clock ahead by minutes   | CLOCK_OFF
clock behind by minutes  | CLOCK_OFF
card lost                | CARD_DENIED
e-card denied            | CARD_DENIED
e-card cancelled         | DEVICE_REVOKED
"""


@pytest.mark.parametrize("row", REFUSED.strip().splitlines()[1:])
def test_devices_are_refused_each_with_its_code(core: Harness, row: str) -> None:
    what, wanted = (part.strip() for part in row.split("|"))
    number = issue(core).e_card.e_card_number
    device_id, key = bind(core)
    _, other_key = bind(core)
    said: object = None
    match what:
        case "unknown device":
            said = prove(core, new_id(), key)
        case "no device id":
            said = prove(core, b"", key)
        case "another device's key":
            said = prove(core, device_id, other_key)
        case "another message":
            said = prove(core, device_id, key, message=message_of("CodeService/GetCode", b"\2"))
        case "no proof":
            said = e_cards.check_device(core.memory, PROVIDER, device_id, MESSAGE, b"", core.now_us)
        case "revoked":
            assert revoke(core, device_id).result == Result.ACCEPTED
            assert revoke(core, device_id).result == Result.DEVICE_REVOKED
        case "clock ahead by minutes":
            said = prove(core, device_id, key, off_s=limits.DEVICE_CLOCK_S + 1)
        case "clock behind by minutes":
            said = prove(core, device_id, key, off_s=-limits.DEVICE_CLOCK_S - 1)
        case "card lost":
            deny(core, CARD, Deny.LOSS)
        case "e-card denied":
            deny(core, number, Deny.FROZEN)
        case "e-card cancelled":
            cancel(core)
    assert (said or prove(core, device_id, key)) == Result[wanted]


def test_clocks_may_be_off_a_little(core: Harness) -> None:
    issue(core)
    device_id, key = bind(core)
    for off_s in (-limits.DEVICE_CLOCK_S, limits.DEVICE_CLOCK_S):
        assert isinstance(prove(core, device_id, key, off_s=off_s), e_cards.Device)


def test_activation_is_for_once_for_a_while_and_for_few_tries(core: Harness) -> None:
    issue(core)
    assert start(core, OTHER).result == Result.E_CARD_UNKNOWN
    started = start(core)
    assert len(started.activation_secret) == 32
    assert activate(core, started, new_id(), proof=bytes(16)).result == Result.ACTIVATION_WRONG
    assert activate(core, started, new_id()).result == Result.ACCEPTED
    assert activate(core, started, new_id()).result == Result.ACTIVATION_EXPIRED  # it was used
    late = start(core)
    core.pass_time(limits.ACTIVATION_S)
    assert activate(core, late, new_id()).result == Result.ACTIVATION_EXPIRED
    replaced, newest = start(core), start(core)
    assert activate(core, replaced, new_id()).result == Result.ACTIVATION_WRONG
    for _ in range(limits.ACTIVATION_TRIES_MAX - 1):
        assert activate(core, newest, new_id(), proof=bytes(16)).result == Result.ACTIVATION_WRONG
    assert activate(core, newest, new_id()).result == Result.ACTIVATION_EXPIRED
    assert activate(core, start(core), new_id(), code=bytes(16)).result == Result.E_CARD_UNKNOWN
    open_one = start(core)
    deny(core, CARD, Deny.LOSS)
    assert activate(core, open_one, new_id()).result == Result.CARD_DENIED


def test_as_many_devices_as_allowed_and_each_bound_once(core: Harness) -> None:
    issue(core)
    issue(core, OTHER)
    (first, key), _ = bind(core), bind(core)
    assert activate(core, start(core), new_id()).result == Result.DEVICES_MAX
    assert activate(core, start(core, OTHER), first).result == Result.CONFLICT
    revoke(core, first)
    again = start(core)
    answer = activate(core, again, first)
    assert answer.result == Result.ACCEPTED
    new_key = unwrap(again.activation_secret, first, answer.wrapped_device_key)
    assert new_key != key
    assert prove(core, first, key) == Result.DEVICE_PROOF_WRONG
    assert isinstance(prove(core, first, new_key), e_cards.Device)
    devices = core.command(e_cards.list_devices, pb.ListDevicesRequest(card_number=CARD)).devices
    assert [device.state for device in devices] == [e_cards.ACTIVE, e_cards.ACTIVE]
    assert revoke(core, first, OTHER).result == Result.DEVICE_UNKNOWN


def test_old_devices_are_forgotten(core: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEVICES_KEPT_MAX", 3)
    issue(core)
    ids = []
    for _ in range(5):
        ids.append(bind(core)[0])
        revoke(core, ids[-1])
    devices = core.command(e_cards.list_devices, pb.ListDevicesRequest(card_number=CARD)).devices
    assert [device.device_id for device in devices] == ids[-3:]
    assert e_cards.find_device(core.memory, ids[0]) is None


def test_secret_and_key_are_told_again_only_as_long_as_they_are_wanted_and_kept_nowhere(core: Harness) -> None:
    issue(core)
    begin = pb.StartActivationRequest(request_id=new_id(), card_number=CARD)
    command = functools.partial(e_cards.start_activation, PROVIDER)
    started, again = core.ask(command, begin), core.ask(command, begin)
    assert again.duplicate
    assert started.activation_secret == again.activation_secret
    device_id = new_id()
    request = pb.ActivateDeviceRequest(request_id=new_id(), code=started.code, device_id=device_id, public_key=PUBLIC_KEY)
    request.proof = activation_proof(started.activation_secret, started.code, device_id, PUBLIC_KEY)
    ask = functools.partial(e_cards.activate_device, PROVIDER, 2)
    keys = [unwrap(started.activation_secret, device_id, core.ask(ask, request).wrapped_device_key) for _ in range(2)]
    assert keys[0] == keys[1]
    assert not core.ask(command, begin).activation_secret
    revoke(core, device_id)
    assert not core.ask(ask, request).wrapped_device_key
    core.checkpoint()
    kept = b"".join(path.read_bytes() for path in core.path.iterdir() if path.is_file())
    assert device_id in kept
    for secret in (keys[0], started.activation_secret, started.activation_secret[:16], started.activation_secret[16:]):
        assert secret not in kept


@pytest.mark.parametrize(
    ("field", "value"),
    [("code", b"1"), ("device_id", bytes(15)), ("proof", bytes(17)), ("public_key", bytes(33)), ("name", "x" * 65)],
)
def test_malformed_activations_name_the_field(core: Harness, field: str, value: Any) -> None:
    fields = {"code": bytes(16), "device_id": bytes(16), "proof": bytes(16), "public_key": PUBLIC_KEY} | {field: value}
    request = pb.ActivateDeviceRequest(request_id=new_id(), **fields)
    with pytest.raises(InvalidRequest, match=field):
        e_cards.activate_device(PROVIDER, 2, core.memory, request, core.now_us)


@settings(deadline=None)
@given(at=st.integers(0, 43), bit=st.integers(0, 7))
def test_a_wrapped_key_that_was_touched_is_refused(at: int, bit: int) -> None:
    secret, device_id = bytes(range(32)), bytes(16)
    wrapped = bytearray(device_proof.wrap(secret, device_id, bytes(16)))
    assert unwrap(secret, device_id, bytes(wrapped)) == bytes(16)
    wrapped[at] ^= 1 << bit
    with pytest.raises(SealedDataWrong):
        unwrap(secret, device_id, bytes(wrapped))
    with pytest.raises(SealedDataWrong):
        unwrap(secret, device_id, bytes(wrapped)[1:])


def test_over_grpc(connection: Connection) -> None:
    card = card_service_pb2.Card(card_number="310441600000" + str(secrets.randbelow(10_000)).zfill(4), issuer_id=ISSUER, rider=1)
    connection.cards.RegisterCards(card_service_pb2.RegisterCardsRequest(cards=[card]))
    issued = connection.e_cards.IssueECard(pb.IssueECardRequest(request_id=new_id(), card_number=card.card_number))
    assert issued.result == Result.ACCEPTED
    started = connection.e_cards.StartActivation(pb.StartActivationRequest(request_id=new_id(), card_number=card.card_number))
    device_id = new_id()
    request = pb.ActivateDeviceRequest(request_id=new_id(), code=started.code, device_id=device_id, public_key=PUBLIC_KEY)
    request.proof = activation_proof(started.activation_secret, started.code, device_id, PUBLIC_KEY)
    answer = connection.e_cards.ActivateDevice(request)
    assert len(unwrap(started.activation_secret, device_id, answer.wrapped_device_key)) == 16
    found = connection.e_cards.GetECard(pb.GetECardRequest(card_number=issued.e_card.e_card_number)).e_card
    assert found.card_number == card.card_number
