"""Keys come and go while taps go on: by journal time in the engine, by ceremony at a running server; and keys that the engine
never holds give the same answers as those that it does."""

import asyncio
import base64
import itertools
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness import ISSUER, KEY_SET, OTHER_ISSUER, OTHER_KEY_SET, START_S, Harness, authorize_request, make_tap, submit_request
from hypothesis import given, settings
from hypothesis import strategies as st
from sdf_device import PIN, TestDevice
from service_port import ServicePort

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer, ServerFailed
from yikatong.clients.terminal import local_time_now
from yikatong.core import limits
from yikatong.core.config import Settings
from yikatong.core.errors import ConfigError, Unavailable
from yikatong.core.keys import key_sets, store
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.keys.life import KeyStep, Life
from yikatong.core.keys.provider import DeviceFailed, KeyReference, Purpose, TapKey
from yikatong.core.keys.software import HeldKey, SoftwareProvider
from yikatong.core.keys.source import KeySource, read_passphrase
from yikatong.core.sm2 import PrivateKey
from yikatong.core.tap_port import TapPort
from yikatong.core.types import Result
from yikatong.ext.key_holder import KeyHolder
from yikatong.v1 import account_service_pb2, card_service_pb2, tap_service_pb2, tap_service_pb2_grpc, terminal_service_pb2

CARD, TERMINAL = "3104416000000017", bytes.fromhex("112233445566")
SERVER, LI, WANG = "nine grey herons", "two brown sparrows", "four white cranes"


# ---- by journal time, in the engine ----

HOUR_S = 3_600
GENERATIONS = [
    TapKey(*KEY_SET[:4], None, 0, START_S + HOUR_S),  # version 1: its grace ends in an hour
    TapKey(ISSUER, 2, 1, 2, None, START_S - HOUR_S),  # version 2 is good already, beside it
    TapKey(ISSUER, 3, 1, 2, None, START_S + HOUR_S),  # version 3 begins in an hour
    TapKey(ISSUER, 4, 1, 2, None, 0, 0, True),  # version 4 is compromised
]


@pytest.mark.parametrize("is_held", [True, False], ids=["in the engine", "at the provider"])
@pytest.mark.parametrize(
    ("after_s", "results"),
    [
        (0, "ACCEPTED ACCEPTED UNKNOWN_KEY KEY_RETIRED UNKNOWN_KEY"),
        (HOUR_S - 1, "ACCEPTED ACCEPTED UNKNOWN_KEY KEY_RETIRED UNKNOWN_KEY"),
        (HOUR_S, "KEY_RETIRED ACCEPTED ACCEPTED KEY_RETIRED UNKNOWN_KEY"),
    ],
)
def test_generations_stand_side_by_side(tmp_path: Path, is_held: bool, after_s: int, results: str) -> None:
    masters = {version: KEY_SET._replace(key_version=version, master=bytes([version]) * 16) for version in range(1, 6)}
    held = {KeyReference(Purpose.TAC, version, 1, ISSUER): masters[version].master for version in range(1, 5)}
    with Harness(tmp_path / "data") as core:
        core.register_card(CARD)
        core.register_terminal(TERMINAL)
        core.top_up(CARD, 10_000)
        core.memory.provider = SoftwareProvider(held, lambda: START_S)
        core.memory.set_keys(
            [key._replace(parent=masters[key.key_version].tap_key().parent if is_held else None) for key in GENERATIONS]
        )
        core.pass_time(after_s)
        taps = [make_tap(masters[version], atc=version, terminal_sequence=version) for version in range(1, 6)]
        assert " ".join(Result(outcome.result).name for outcome in core.submit(*taps)) == results
        wrong = make_tap(masters[2], atc=9, terminal_sequence=9, mac=bytes(4))
        assert core.authorize(wrong).result == Result.MAC_MISMATCH
        # The answer that a tap got stays when its key has gone.
        again = core.submit(taps[1])[0]
        core.memory.set_keys([])
        assert core.submit(taps[1])[0] == again
        assert core.submit(make_tap(masters[2], atc=10, terminal_sequence=10))[0].result == Result.UNKNOWN_KEY


# ---- keys that the engine does not hold ----

FAULTS = ["none", "none", "mac", "card", "amount", "version", "torn"]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> TestDevice:
    return TestDevice(tmp_path_factory.mktemp("device"))


def _taps(drawn: list[tuple[str, int, int, bool]]) -> list[tap_service_pb2.Tap]:
    taps = []
    for at, (fault, profile, amount_fen, is_other) in enumerate(drawn):
        key_set, card = (OTHER_KEY_SET, "99") if is_other else (KEY_SET, CARD)
        made = make_tap(
            key_set,
            card_number=card,
            profile=profile,
            amount_fen=amount_fen,
            atc=at + 1,
            terminal_sequence=at + 1,
            line=at,
            stop=7,
        )
        if fault == "mac":
            made.mac = bytes([made.mac[0] ^ 1]) + made.mac[1:]
        elif fault == "card":
            made.card_number = "5"
        elif fault == "amount":
            made.amount_fen += 1
        elif fault == "version":
            made.key_version = 77
        elif fault == "torn":
            made.mac = b"\xff" * 4
        taps.append(made)
    return taps


@settings(max_examples=15, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(st.sampled_from(FAULTS), st.sampled_from([1, 2]), st.integers(0, 300), st.booleans()), min_size=1, max_size=12
    ),
    which=st.sampled_from(["software", "device", "one of two"]),
)
def test_answers_are_the_same_wherever_the_key_is(
    tmp_path_factory: pytest.TempPathFactory, device: TestDevice, drawn: list[tuple[str, int, int, bool]], which: str
) -> None:
    taps = _taps(drawn)
    folder = tmp_path_factory.mktemp("same")
    answers = []
    for place in ("engine", which):
        with Harness(folder / place) as core:
            core.register_card(CARD)
            core.register_card("99", OTHER_ISSUER)
            core.register_terminal(TERMINAL)
            core.top_up(CARD, 500)
            if place != "engine":
                masters = {each.tap_key().reference: each for each in (KEY_SET, OTHER_KEY_SET)}
                if place == "device":
                    path = folder / "device.json"
                    levels = {key: each.levels for key, each in masters.items()}
                    device.write(path, {key: each.master for key, each in masters.items()}, levels=levels)
                    provider: Any = device.provider(path)
                else:
                    provider = SoftwareProvider(
                        {
                            key: HeldKey(KeyHolder.take(bytearray(each.master)), each.levels, False)
                            for key, each in masters.items()
                        }
                    )
                asked = [each.tap_key()._replace(parent=None) for each in (KEY_SET, OTHER_KEY_SET)]
                core.memory.provider = provider
                core.memory.set_keys([asked[0], OTHER_KEY_SET] if place == "one of two" else asked)
            first = core.run([submit_request(taps)], [True]).responses
            second = core.run([authorize_request(each) for each in taps], [False] * len(taps)).responses
            answers.append((first, second, core.balance(CARD), core.engine.balances_fen().tolist()))
    assert answers[0] == answers[1]


class Away:
    """A key device that does not answer."""

    def mac_many(self, *_: object) -> list[bytes]:
        raise DeviceFailed("SDF_CalculateMAC", 0x01010001)


def test_a_device_that_fails_answers_nothing_and_changes_nothing(tmp_path: Path, device: TestDevice) -> None:
    device.write(tmp_path / "device.json", {KEY_SET.tap_key().reference: KEY_SET.master})
    provider = device.provider(tmp_path / "device.json")
    with Harness(tmp_path / "data") as core:
        core.register_card(CARD)
        core.register_terminal(TERMINAL)
        core.top_up(CARD, 500)
        core.memory.provider = provider
        core.memory.set_keys(provider.tap_keys())
        made, before = make_tap(), core.engine.next_sequence
        device.fail("SDF_CalculateMAC", 0x01010001)
        (refused,) = core.run([authorize_request(made)], [False]).responses
        assert isinstance(refused, Unavailable)
        assert core.engine.next_sequence == before
        assert core.authorize(made).result == Result.ACCEPTED
    provider.close()


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.lists(st.sampled_from(["here", "elsewhere", "unknown card", "malformed", "again"]), min_size=1, max_size=5),
        min_size=1, max_size=8,
    ),
)  # fmt: skip
def test_a_device_that_is_out_stops_nobody_elses_taps(
    tmp_path_factory: pytest.TempPathFactory, requests: list[list[str]]
) -> None:
    """Requests with a tap whose key lies there are refused whole; the others are answered as if these had never been sent."""
    number, made = itertools.count(1), []
    for kinds in requests:
        taps = []
        for kind in kinds:
            at = next(number)
            own: dict[str, Any] = {"card_number": "99", "key_set": OTHER_KEY_SET} if kind == "here" else {"card_number": CARD}
            own |= {"unknown card": {"card_number": "5"}, "malformed": {"city": 10_000}}.get(kind, {})
            taps.append(made[0][0] if kind == "again" and made else make_tap(atc=at, terminal_sequence=at, **own))
        made.append(taps)
    asked = [KEY_SET.tap_key()._replace(parent=None), OTHER_KEY_SET]
    stopped = [any(tap.card_number == CARD and tap.city != 10_000 for tap in taps) for taps in made]
    answers = []
    for sent in (range(len(made)), [at for at in range(len(made)) if not stopped[at]]):
        with Harness(tmp_path_factory.mktemp("out")) as core:
            core.register_card(CARD)
            core.register_card("99", OTHER_ISSUER)
            core.register_terminal(TERMINAL)
            core.top_up("99", 500)
            core.memory.provider = Away()  # type: ignore[assignment]
            core.memory.set_keys(asked)
            responses = core.run([submit_request(made[at]) for at in sent], [True] * len(sent)).responses
            assert [isinstance(response, Unavailable) for response in responses] == [stopped[at] for at in sent]
            answers.append(([each for each in responses if isinstance(each, bytes)], core.engine.balances_fen().tolist()))
            core.restart()
            assert core.engine.balances_fen().tolist() == answers[-1][1]
    assert answers[0] == answers[1]


def test_on_the_tap_port_too(tmp_path: Path, key_file: Path) -> None:
    """Calls that came in together: those under a key of the device are UNAVAILABLE, the others are answered."""
    with ServicePort(tmp_path / "data", key_file) as port:

        async def listen() -> TapPort:
            return await TapPort.listen(port.core, port.metrics, Settings(insecure=True, tap_port=0), 0, port.service, None)

        for number, issuer in ((CARD, ISSUER), ("99", OTHER_ISSUER)):
            card = card_service_pb2.Card(card_number=number, issuer_id=issuer, rider=1)
            port.call("CardService/RegisterCards", card_service_pb2.RegisterCardsRequest(cards=[card]))
        terminal = terminal_service_pb2.Terminal(terminal_number=TERMINAL, operator_id="bus", kind=1)
        port.call("TerminalService/RegisterTerminals", terminal_service_pb2.RegisterTerminalsRequest(terminals=[terminal]))
        port.core._memory.provider = Away()  # type: ignore[assignment]
        port.core.set_keys([KEY_SET.tap_key()._replace(parent=None), OTHER_KEY_SET])
        taps = asyncio.run_coroutine_threadsafe(listen(), port._loop).result(10)
        made = [
            make_tap(atc=at, terminal_sequence=at, amount_fen=0, amount_due_fen=0)
            if at % 3 == 0
            else make_tap(OTHER_KEY_SET, card_number="99", atc=at, terminal_sequence=at, amount_fen=0, amount_due_fen=0)
            for at in range(1, 200)
        ]
        with grpc.insecure_channel(f"127.0.0.1:{taps.port}") as channel:
            stub = tap_service_pb2_grpc.TapServiceStub(channel)
            calls = [stub.AuthorizeTap.future(tap_service_pb2.AuthorizeTapRequest(tap=tap), timeout=10) for tap in made]
            for tap, answered in zip(made, calls, strict=True):
                if tap.card_number == CARD:
                    assert answered.exception().code() == grpc.StatusCode.UNAVAILABLE
                else:
                    assert answered.result().outcome.result == Result.ACCEPTED
        asyncio.run_coroutine_threadsafe(taps.stop(1), port._loop).result(10)


# ---- where a server has its keys from ----


def _settings(path: Path, **more: Any) -> Settings:
    return Settings(keys=str(path), insecure=True, **more)


def test_plain_keys_are_for_tests_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key_sets.make_test_keys(path)
    KeySource(_settings(path))
    with pytest.raises(ConfigError, match="loopback address only"):
        KeySource(Settings(keys=str(path), host="0.0.0.0"))
    path.write_text(path.read_text().replace("test = true", ""))
    with pytest.raises(ConfigError, match="plain keys are for tests only"):
        KeySource(_settings(path))
    with pytest.raises(ConfigError, match="No such file"):
        KeySource(_settings(tmp_path / "none"))


def test_a_passphrase_comes_from_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "passphrase"
    path.write_text(f"{SERVER}\n")
    path.chmod(0o600)
    assert read_passphrase(str(path)) == SERVER.encode()
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="only its owner"):
        read_passphrase(str(path))
    monkeypatch.setenv("SECRET", SERVER)
    assert read_passphrase("env:SECRET") == SERVER.encode()
    with pytest.raises(ConfigError, match="OTHER is not set"):
        read_passphrase("env:OTHER")
    with pytest.raises(ConfigError, match="no terminal"):
        read_passphrase("")


# ---- at a running server ----


def _ceremony(path: Path) -> store.Ceremony:
    return store.KeyStore.read(path).open_by({"li": bytearray(LI.encode()), "wang": bytearray(WANG.encode())})


def _until(result: Result, connection: Connection, key_set: KeySet, first: int) -> int:
    """Tap until a result comes; returns how many taps that took."""
    for n in range(first, first + 400):
        made = make_tap(key_set, atc=n, terminal_sequence=n, amount_fen=1, local_time=local_time_now())
        outcome = connection.taps.AuthorizeTap(tap_service_pb2.AuthorizeTapRequest(tap=made)).outcome
        if outcome.result == result:
            return n + 1
        time.sleep(0.02)
    raise AssertionError(f"no {result.name}")


def _register(connection: Connection) -> None:
    card = card_service_pb2.Card(card_number=CARD, issuer_id=ISSUER, rider=1)
    connection.cards.RegisterCards(card_service_pb2.RegisterCardsRequest(cards=[card]))
    terminal = terminal_service_pb2.Terminal(terminal_number=TERMINAL, operator_id="bus", kind=1)
    connection.terminals.RegisterTerminals(terminal_service_pb2.RegisterTerminalsRequest(terminals=[terminal]))
    top_up = account_service_pb2.TopUpRequest(request_id=bytes(16), card_number=CARD, amount_fen=10_000)
    connection.accounts.TopUp(top_up)


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_running_server_takes_up_what_a_ceremony_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(limits, "SCRYPT_N", limits.SCRYPT_N_MIN)
    path = tmp_path / "keys.json"
    store.create(path, bytearray(SERVER.encode()), {"li": bytearray(LI.encode()), "wang": bytearray(WANG.encode())})
    new = KEY_SET._replace(key_version=2, master=bytes(range(16)))
    ceremony = _ceremony(path)
    ceremony.add(KEY_SET.tap_key().reference, KeyHolder.take(bytearray(KEY_SET.master)), Life(1))
    ceremony.commit("import")
    with pytest.raises(ServerFailed, match="the passphrase is wrong"):
        EmbeddedServer(tmp_path / "none", path, "--key-passphrase-file", "env:P", environment={"P": "some other words"})
    with (
        EmbeddedServer(tmp_path / "data", path, "--key-passphrase-file", "env:P", environment={"P": SERVER}) as server,
        Connection(server.address) as connection,
    ):
        _register(connection)
        n = _until(Result.ACCEPTED, connection, KEY_SET, 1)
        n = _until(Result.UNKNOWN_KEY, connection, new, n)

        def told() -> None:
            if how == "signal":
                server.process.send_signal(signal.SIGHUP)

        ceremony = _ceremony(path)
        ceremony.add(new.tap_key().reference, KeyHolder.take(bytearray(new.master)), Life(1))
        ceremony.step(KEY_SET.tap_key().reference, KeyStep.RETIRE, int(time.time()), grace_s=3_600)
        ceremony.commit("rotate")
        told()
        n = _until(Result.ACCEPTED, connection, new, n)
        n = _until(Result.ACCEPTED, connection, KEY_SET, n)  # in its grace
        ceremony = _ceremony(path)
        ceremony.step(KEY_SET.tap_key().reference, KeyStep.RETIRE, int(time.time()), grace_s=0)
        ceremony.commit("retire")
        told()
        n = _until(Result.KEY_RETIRED, connection, KEY_SET, n)
        n = _until(Result.ACCEPTED, connection, new, n)
        content = path.read_bytes()
        path.write_bytes(content[:-100])  # a half-written file, as another tool might leave it: the keys stay
        told()
        time.sleep(0.3)
        n = _until(Result.ACCEPTED, connection, new, n)
        assert SERVER not in server.log_path.read_text()


def test_a_server_on_a_device_answers_nothing_while_it_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = PrivateKey.make().private_pem().decode()
    pair = base64.b64decode("".join(pem.splitlines()[1:-1])).hex()
    away = tmp_path / "away"
    monkeypatch.setenv("SDF_DEVICE_PAIR", pair)
    device = TestDevice(tmp_path)
    device.set_kek(bytes(16))
    device.kek = bytes(16)
    path, pin = tmp_path / "device.json", tmp_path / "pin"
    device.write(path, {KEY_SET.tap_key().reference: KEY_SET.master})
    pin.write_bytes(PIN)
    pin.chmod(0o600)
    arguments = "--sdf-library", str(device.library), "--sdf-pin-file", str(pin)
    environment = {"SDF_DEVICE_PAIR": pair, "SDF_DEVICE_AWAY": str(away)}
    with (
        EmbeddedServer(tmp_path / "data", path, *arguments, environment=environment) as server,
        Connection(server.address) as connection,
        Connection(server.tap_address or server.address) as taps,
    ):
        _register(connection)
        n = 1
        for port in (connection, taps):
            n = _until(Result.ACCEPTED, port, KEY_SET, n)
            away.touch()
            for _ in range(2):
                with pytest.raises(grpc.RpcError) as caught:
                    _until(Result.ACCEPTED, port, KEY_SET, n)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
                assert "device" in caught.value.details()  # type: ignore[attr-defined]
            balance = account_service_pb2.GetBalanceRequest(card_number=CARD)
            assert connection.accounts.GetBalance(balance).balance_fen == 10_000 - (n - 1)
            away.unlink()
            n = _until(Result.ACCEPTED, port, KEY_SET, n)
        assert "0x01000003" in server.log_path.read_text()
