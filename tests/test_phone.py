"""A phone, its codes as real QR images read back by a real decoder, a gate without network, and all of it over gRPC."""

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import zxingcpp
from city import new_card, new_terminal
from PIL import Image

from yikatong.clients import phone as phone_module
from yikatong.clients.connection import Connection, call
from yikatong.clients.embedded import EmbeddedServer, ServerFailed
from yikatong.clients.gate import Gate
from yikatong.clients.phone import NotReady, Phone, Refused, qr_code
from yikatong.core import limits
from yikatong.core.cards import codes, ride_code
from yikatong.core.config import settings_table
from yikatong.core.keys import key_sets
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.core.types import Result
from yikatong.v1 import account_service_pb2, code_service_pb2, deny_list_service_pb2
from yikatong.v1 import e_card_service_pb2 as pb


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("issuer")
    certificate, authority = codes.make_test_issuer(folder, key_sets.load_provider(key_file))
    return ["--ride-code-certificate", str(certificate), "--ride-code-authority", str(authority)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, key_file: Path, arguments: list[str]) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("phone") / "data", key_file, *arguments) as running:
        yield running


def new_id() -> bytes:
    return secrets.token_bytes(16)


def activation(connection: Connection, card: str) -> tuple[bytes, bytes]:
    """First-level code and activation secret of a card's e-card, issued where there is none."""
    issued = call(connection.e_cards.IssueECard, pb.IssueECardRequest(request_id=new_id(), card_number=card)).result
    assert issued in (Result.ACCEPTED, Result.E_CARD_EXISTS)
    started = call(connection.e_cards.StartActivation, pb.StartActivationRequest(request_id=new_id(), card_number=card))
    assert started.result == Result.ACCEPTED
    return started.code, started.activation_secret


def new_phone(connection: Connection, key_set: KeySet, path: Path, balance_fen: int = 1_000) -> tuple[Phone, str]:
    card = new_card(connection, key_set, balance_fen).card_number
    phone = Phone(path)
    phone.activate(connection, *activation(connection, card), "test")
    return phone, card


def new_gate(connection: Connection, arguments: list[str], **options: object) -> Gate:
    return Gate(new_terminal(connection).terminal_number, {1: PublicKey.read(Path(arguments[3]))}, **options)  # type: ignore[arg-type]


def balance_fen(connection: Connection, card: str) -> int:
    request = account_service_pb2.GetBalanceRequest(card_number=card)
    return int(call(connection.accounts.GetBalance, request).balance_fen)


def read_image(path: Path) -> bytes:
    """What two decoders that share nothing with us, nor with each other, see in an image: zbar and zxing-cpp."""
    words = ["zbarimg", "--quiet", "--raw", "--oneshot", "-Sdisable", "-Sqrcode.enable", "-Sbinary", path]
    seen = subprocess.run(words, capture_output=True, check=True).stdout
    with Image.open(path) as image:
        (found,) = zxingcpp.read_barcodes(np.asarray(image.convert("L")), formats=zxingcpp.BarcodeFormat.QRCode)
    assert seen == bytes(found.bytes)
    return seen


def test_a_gate_taps_by_what_it_reads_from_the_screen(
    connection: Connection, arguments: list[str], key_set: KeySet, tmp_path: Path
) -> None:
    phone, card = new_phone(connection, key_set, tmp_path / "phone.json")
    gate = new_gate(connection, arguments, line=261, stop=7)

    qr_code(phone.online_code(connection).text).save(str(tmp_path / "online.png"), scale=6)
    shown = read_image(tmp_path / "online.png")
    outcome = gate.authorize(connection, shown, 200)
    assert (outcome.result, outcome.balance_after_fen) == (Result.ACCEPTED, 800)

    assert phone.fetch_ride_code(connection) > time.time() + 3_600
    offline = phone.ride_code()
    qr_code(offline).save(str(tmp_path / "ride.png"), scale=6)
    shown = read_image(tmp_path / "ride.png")
    assert shown == offline
    assert gate.admit(shown, 300) == Result.ACCEPTED
    assert gate.admit(shown, 300) == Result.CODE_USED
    assert balance_fen(connection, card) == 800
    sent = gate.stored
    outcome = call(connection.codes.TapByCode, code_service_pb2.TapByCodeRequest(taps=sent, stored=True)).outcomes[0]
    assert (outcome.result, outcome.balance_after_fen, gate.stored) == (Result.ACCEPTED, 500, sent)  # its answer got lost
    ((_, again),) = gate.upload(connection)
    assert (again.result, again.duplicate, again.sequence, gate.stored) == (Result.ACCEPTED, True, outcome.sequence, [])
    assert balance_fen(connection, card) == 500


def test_svg_and_terminal_show_the_same_symbol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    symbol = qr_code(bytes(range(256)))
    symbol.save(str(tmp_path / "code.svg"))
    assert (tmp_path / "code.svg").read_text().count("<path") == 1
    symbol.terminal(compact=True)
    assert len(capsys.readouterr().out.splitlines()) > 20
    symbol.save(str(tmp_path / "code.png"), scale=5)
    assert read_image(tmp_path / "code.png") == bytes(range(256))


def refused(work: object) -> Result:
    with pytest.raises(Refused) as caught:
        work()  # type: ignore[operator]
    return caught.value.result


def test_refusals_over_grpc(connection: Connection, arguments: list[str], key_set: KeySet, tmp_path: Path) -> None:
    phone, card = new_phone(connection, key_set, tmp_path / "phone.json")
    other, _ = new_phone(connection, key_set, tmp_path / "other.json")
    gate, second = new_gate(connection, arguments), new_gate(connection, arguments)
    code = phone.online_code(connection).text.encode()
    assert gate.authorize(connection, code, 1).result == Result.ACCEPTED
    assert second.authorize(connection, code, 1).result == Result.CODE_USED
    assert gate.authorize(connection, b"YK" + b"A" * 32, 1).result == Result.CODE_UNKNOWN
    assert gate.authorize(connection, b"http://example.com", 1).result == Result.CODE_MALFORMED
    phone.fetch_ride_code(connection)
    screenshot = phone.ride_code()
    other._state["device_id"] = phone.device_id.hex()  # another device says that it is this one
    assert refused(lambda: other.online_code(connection)) == Result.DEVICE_PROOF_WRONG
    phone._clock = lambda: time.time() + limits.DEVICE_CLOCK_S + 60
    assert refused(lambda: phone.online_code(connection)) == Result.CLOCK_OFF
    assert gate.authorize(connection, phone.ride_code(), 1).result == Result.CLOCK_OFF
    phone._clock = lambda: time.time() - limits.RIDE_CODE_VALIDITY_S - 60
    assert gate.authorize(connection, phone.ride_code(), 1).result == Result.CODE_EXPIRED
    phone._clock = time.time
    unused = phone.online_code(connection).text.encode()
    lost = deny_list_service_pb2.DenyCardRequest(
        request_id=new_id(), card_number=card, reason=deny_list_service_pb2.DENY_REASON_LOSS
    )
    call(connection.deny_list.DenyCard, lost)
    assert refused(lambda: phone.online_code(connection)) == Result.CARD_DENIED
    assert refused(lambda: phone.fetch_ride_code(connection)) == Result.CARD_DENIED
    assert gate.authorize(connection, unused, 1).result == Result.CARD_DENIED
    assert gate.authorize(connection, screenshot, 1).result in (Result.CARD_DENIED, Result.CODE_EXPIRED)
    found = deny_list_service_pb2.AllowCardRequest(
        request_id=new_id(), card_number=card, reason=deny_list_service_pb2.DENY_REASON_LOSS
    )
    call(connection.deny_list.AllowCard, found)
    unused = phone.online_code(connection).text.encode()
    revoke = pb.RevokeDeviceRequest(request_id=new_id(), card_number=card, device_id=phone.device_id)
    assert call(connection.e_cards.RevokeDevice, revoke).result == Result.ACCEPTED
    assert gate.authorize(connection, unused, 1).result == Result.DEVICE_REVOKED
    assert refused(lambda: phone.online_code(connection)) == Result.DEVICE_REVOKED
    for taps in ([], [code_service_pb2.CodeTap()] * (limits.CODE_ITEMS_MAX + 1)):
        with pytest.raises(grpc.RpcError) as caught:
            connection.codes.TapByCode(code_service_pb2.TapByCodeRequest(taps=taps))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_gate_refuses_what_is_denied_and_what_is_old(
    connection: Connection, arguments: list[str], key_set: KeySet, tmp_path: Path
) -> None:
    phone, card = new_phone(connection, key_set, tmp_path / "phone.json")
    phone.fetch_ride_code(connection)
    code, now = phone.ride_code(), time.time()
    number = call(connection.e_cards.GetECard, pb.GetECardRequest(card_number=card)).e_card.e_card_number
    gate = new_gate(connection, arguments, denied={number})
    assert gate.admit(code) == Result.CARD_DENIED
    gate = new_gate(connection, arguments, clock=lambda: now)
    assert gate.admit(code, limits.RIDE_CODE_LIMIT_FEN + 1) == Result.CODE_LIMIT
    assert gate.admit(code) == Result.ACCEPTED
    for later_s in (31, 100):
        gate._clock = lambda later_s=later_s: now + later_s  # type: ignore[misc]
        assert gate.admit(code) == Result.CODE_EXPIRED
    phone._clock = lambda: now + 100
    assert gate.admit(phone.ride_code()) == Result.ACCEPTED


def test_a_core_that_is_killed_between_reservation_and_tap_doubles_and_loses_nothing(
    tmp_path: Path, key_file: Path, key_set: KeySet, arguments: list[str]
) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(data, key_file, *arguments) as server, Connection(server.address) as connection:
        phone, card = new_phone(connection, key_set, tmp_path / "phone.json")
        gate = new_gate(connection, arguments)
        phone.fetch_ride_code(connection)
    assert gate.admit(phone.ride_code(), 200) == Result.ACCEPTED
    server = EmbeddedServer(data, key_file, *arguments, environment={"YIKATONG_FAILPOINT": "code-reserved"})
    with Connection(server.address) as connection, pytest.raises(grpc.RpcError):
        connection.codes.TapByCode(code_service_pb2.TapByCodeRequest(taps=gate.stored, stored=True), timeout=10)
    server.process.wait(10)
    with EmbeddedServer(data, key_file, *arguments) as server, Connection(server.address) as connection:
        assert balance_fen(connection, card) == 1_000
        again = code_service_pb2.TapByCodeRequest(taps=gate.stored, stored=True)
        (outcome,) = call(connection.codes.TapByCode, again).outcomes
        assert (outcome.result, outcome.duplicate, outcome.balance_after_fen) == (Result.ACCEPTED, False, 800)
        ((_, outcome),) = gate.upload(connection)
        assert (outcome.duplicate, balance_fen(connection, card)) == (True, 800)


def test_the_example_runs(
    server: EmbeddedServer,
    connection: Connection,
    arguments: list[str],
    key_set: KeySet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = new_card(connection, key_set, 1_000).card_number
    code, secret = activation(connection, card)
    (tmp_path / "secret").write_text(secret.hex() + "\n")
    state = tmp_path / "phone.json"
    common = ["--server", server.address, "--state", str(state)]
    run = phone_module.main
    assert run([*common, "ride"]) == 1
    assert "must be fetched" in capsys.readouterr().err
    assert run([*common, "activate", code.hex(), "--secret-file", str(tmp_path / "secret")]) == 0
    assert os.stat(state).st_mode & 0o777 == 0o600
    assert run([*common, "fetch"]) == 0
    assert run([*common, "--out", str(tmp_path / "ride.png"), "ride"]) == 0
    assert ride_code.read(read_image(tmp_path / "ride.png")).part.custom == Phone(state).device_id
    assert run([*common, "--out", str(tmp_path / "code.png"), "code"]) == 0
    assert new_gate(connection, arguments).authorize(connection, read_image(tmp_path / "code.png"), 1).result == Result.ACCEPTED
    assert run([*common, "code"]) == 0
    assert capsys.readouterr().out.count("\n") > 10
    assert run([*common, "activate", bytes(16).hex(), "--secret-file", str(tmp_path / "secret")]) == 1
    assert "E_CARD_UNKNOWN" in capsys.readouterr().err
    assert secret.hex() not in state.read_text()
    assert state.read_text() not in repr(Phone(state))


def test_a_phone_without_an_e_card_is_not_ready(connection: Connection, tmp_path: Path) -> None:
    phone = Phone(tmp_path / "phone.json")
    for work in (phone.ride_code, lambda: phone.online_code(connection)):
        with pytest.raises(NotReady):
            work()
    assert not (tmp_path / "phone.json").exists()


def test_a_wrong_certificate_is_told_at_the_start(tmp_path: Path, key_file: Path, arguments: list[str]) -> None:
    (tmp_path / "other.pem").write_bytes(PrivateKey.make().public_pem())
    with pytest.raises(ServerFailed, match="was not signed by ride_code_authority"):
        EmbeddedServer(tmp_path / "data", key_file, *arguments[:3], str(tmp_path / "other.pem"))
    assert "ride_code_authority" in settings_table()


def test_of_many_terminals_at_once_one_gets_the_code(
    connection: Connection, arguments: list[str], key_set: KeySet, tmp_path: Path
) -> None:
    phone, card = new_phone(connection, key_set, tmp_path / "phone.json")
    phone.fetch_ride_code(connection)
    gates = [new_gate(connection, arguments) for _ in range(8)]
    for code in (phone.online_code(connection).text.encode(), phone.ride_code()):
        before_fen = balance_fen(connection, card)
        with ThreadPoolExecutor(len(gates)) as pool:
            outcomes = list(pool.map(lambda gate, code=code: gate.authorize(connection, code, 100), gates))
        assert sorted(each.result for each in outcomes) == [Result.ACCEPTED, *[Result.CODE_USED] * 7]
        assert balance_fen(connection, card) == before_fen - 100


def test_the_same_tap_sent_many_times_at_once_is_one(
    connection: Connection, arguments: list[str], key_set: KeySet, tmp_path: Path
) -> None:
    phone, card = new_phone(connection, key_set, tmp_path / "phone.json")
    gate = new_gate(connection, arguments)
    tap = gate._next_tap(phone.online_code(connection).text.encode(), 100, int(time.time()))
    request = code_service_pb2.TapByCodeRequest(taps=[tap])
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: connection.codes.TapByCode(request, timeout=10).outcomes[0], range(8)))
    assert {each.result for each in outcomes} == {Result.ACCEPTED}
    assert len({each.sequence for each in outcomes}) == 1
    assert sum(each.duplicate for each in outcomes) == 7
    assert balance_fen(connection, card) == 900


def test_a_large_batch_is_answered_in_order(
    connection: Connection, arguments: list[str], key_set: KeySet, tmp_path: Path
) -> None:
    phone, card = new_phone(connection, key_set, tmp_path / "phone.json")
    gate, now_s = new_gate(connection, arguments), int(time.time())
    good = [gate._next_tap(phone.online_code(connection).text.encode(), 1, now_s) for _ in range(3)]
    taps = [gate._next_tap(b"nonsense", 1, now_s) for _ in range(2 * limits.CODES_AT_ONCE + 5)]
    places = {0: good[0], limits.CODES_AT_ONCE: good[1], limits.CODES_AT_ONCE + 1: good[0], len(taps) - 1: good[2]}
    for at, tap in places.items():
        taps[at] = tap
    outcomes = call(connection.codes.TapByCode, code_service_pb2.TapByCodeRequest(taps=taps, stored=True)).outcomes
    assert len(outcomes) == len(taps)
    assert {at for at, each in enumerate(outcomes) if each.result == Result.ACCEPTED} == set(places)
    assert {at for at, each in enumerate(outcomes) if each.duplicate} == {limits.CODES_AT_ONCE + 1}
    assert balance_fen(connection, card) == 997
