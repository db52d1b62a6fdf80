"""The clients: certificates that are renewed under way, retries by what became of a call, and the runnable examples."""

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from city import new_card, new_terminal
from hypothesis import given
from hypothesis import strategies as st
from test_certificates import SERVER, City, Files, caller_files, terminal_uri, until

from yikatong.clients.connection import FATES, Connection, Fate, call
from yikatong.clients.terminal import Spool
from yikatong.core.access.certificates import Authority, key_pem, new_key, read_certificates, write_pair
from yikatong.core.errors import FileFault
from yikatong.core.keys.key_sets import KeySet
from yikatong.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    deny_list_service_pb2,
    merchant_service_pb2,
    tap_service_pb2,
)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[City]:
    made = City(tmp_path_factory.mktemp("clients"), key_file, "--settlement-bank", "icbc")
    with made.server:
        yield made


def client(module: str, city: City, shown: Files, *arguments: str | Path, ok: bool = True) -> list[dict[str, Any]]:
    """Run an example; the lines of JSON that it printed."""
    assert shown.certificate is not None
    assert shown.key is not None
    command, *rest = arguments
    done = subprocess.run(
        [sys.executable, "-m", f"yikatong.clients.{module}", str(command), "--server", city.server.address, "--ca", str(shown.ca),
         "--certificate", str(shown.certificate), "--key", str(shown.key), *map(str, rest)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()] if ok else [{"error": done.stderr}]


# ---- the examples ----


def test_a_terminals_night(city: City, key_set: KeySet, tmp_path: Path) -> None:
    with Connection(city.server.address, **city.operator._asdict()) as operator:
        card, denied = new_card(operator, key_set, 1_000), new_card(operator, key_set)
        terminal = new_terminal(operator, "bus")
        deny = deny_list_service_pb2.DenyCardRequest(
            request_id=secrets.token_bytes(16), card_number=denied.card_number, reason=deny_list_service_pb2.DENY_REASON_LOSS
        )
        operator.deny_list.DenyCard(deny)
    shown = caller_files(city.authority, terminal_uri(terminal))
    spool, listed = Spool(tmp_path / "taps.spool"), tmp_path / "deny.json"
    taps = [terminal.present(card, amount) for amount in (100, 200, 300)]
    for tap in taps:
        spool.store(tap)
    *outcomes, list_ = client("terminal", city, shown, "sync", "--stored", spool.path, "--deny-list", listed)
    assert [(row["result"], row["charged_fen"], row["duplicate"]) for row in outcomes] == [
        ("ACCEPTED", 100, False), ("ACCEPTED", 200, False), ("ACCEPTED", 300, False),
    ]  # fmt: skip
    assert denied.card_number in json.loads(listed.read_text())["cards"]
    assert list_["changes"] >= 1
    assert spool.taps() == []
    spool.store(taps[0])  # as if the answer had been lost
    again, list_ = client("terminal", city, shown, "sync", "--stored", spool.path, "--deny-list", listed)
    assert (again["result"], again["duplicate"]) == ("ACCEPTED", True)
    assert list_["changes"] == 0
    # Another terminal's spool is not taken, and stays.
    spool.store(taps[0])
    other = caller_files(city.authority, "yikatong:terminal:010203040506")
    (said,) = client("terminal", city, other, "sync", "--stored", spool.path, ok=False)
    assert "PERMISSION_DENIED" in said["error"]
    assert spool.taps() == [taps[0]]
    (said,) = client("terminal", city, city.operator, "sync", ok=False)
    assert "is no terminal" in said["error"]


def test_an_acquirers_till(city: City, key_set: KeySet, tmp_path: Path) -> None:
    merchant = merchant_service_pb2.Merchant(acquirer_id="shops", merchant_id="noodles", merchant_category="5814")
    with Connection(city.server.address, **city.operator._asdict()) as operator:
        card = new_card(operator, key_set, 5_000)
        operator.merchants.RegisterMerchants(merchant_service_pb2.RegisterMerchantsRequest(merchants=[merchant]))
        shown = caller_files(city.authority, "yikatong:acquirer:shops")
        till = ["--queue", tmp_path / "till.db"]
        (held,) = client("acquirer", city, shown, "authorize", *till, "--merchant", "noodles", "--category", "5814",
                         "--card", card.card_number, "--fen", "1200")  # fmt: skip
        assert (held["result"], held["available_after_fen"]) == ("ACCEPTED", 3_800)
        (taken,) = client("acquirer", city, shown, "capture", held["authorization"], *till, "--fen", "1000", "--final")
        assert (taken["state"], taken["result"], taken["waiting"]) == ("done", "ACCEPTED", 0)
        (back,) = client("acquirer", city, shown, "refund", held["authorization"], *till, "--fen", "400")
        assert back["result"] == "ACCEPTED"
        (late,) = client("acquirer", city, shown, "void", held["authorization"], *till)
        assert late["result"] == "AUTHORIZATION_NOT_HELD"
        assert client("acquirer", city, shown, "send", *till, "--seconds", "0") == [{"waiting": 0}]
        balance = operator.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
        assert (balance.balance_fen, balance.held_fen) == (4_400, 0)


def test_the_settlement_bank_and_another(city: City, tmp_path: Path) -> None:
    ours, other = (caller_files(city.authority, f"yikatong:bank:{name}") for name in ("icbc", "boc"))
    assert client("bank", city, ours, "fetch", "--date", "20260101") == []
    (said,) = client("bank", city, other, "fetch", "--date", "20260101", ok=False)
    assert "PERMISSION_DENIED" in said["error"]
    wrong = tmp_path / "returns.csv"
    wrong.write_bytes(b"HEADER,format,something else\n")
    (said,) = client("bank", city, ours, "report", wrong, ok=False)
    assert "INVALID_ARGUMENT" in said["error"]
    (said,) = client("bank", city, other, "report", wrong, ok=False)
    assert "PERMISSION_DENIED" in said["error"]


def test_an_operators_day(city: City) -> None:
    """`yikatong day` shows the operator's certificate; another's is not enough."""
    for shown, said in ((city.operator, ""), (caller_files(city.authority, "yikatong:bank:icbc"), "PERMISSION_DENIED")):
        command = [sys.executable, "-m", "yikatong.core.cli", "day", "list", "--server", city.server.address]
        files = [word for name, path in shown._asdict().items() for word in (f"--{name}", str(path))]
        done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
        assert (done.returncode, said in done.stderr) == (1 if said else 0, True), done.stderr
    done = subprocess.run([*command[:-2], "--data", "x", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "are for --server" in done.stderr


@pytest.mark.parametrize("module", ["terminal", "acquirer", "bank"])
def test_help_and_wrong_usage(module: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", f"yikatong.clients.{module}", "--help"], capture_output=True, text=True, check=True
    )
    assert "Commands:" in shown.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", f"yikatong.clients.{module}", "nothing"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "No such command" in wrong.stderr


# ---- the spool ----


@given(cuts=st.lists(st.integers(0, 400), max_size=4), count=st.integers(0, 6))
def test_a_spool_survives_power_cuts(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], count: int) -> None:
    """Whatever the last write left of a tap: those before it are there, and those after it too."""
    spool = Spool(tmp_path_factory.mktemp("spool") / "taps")
    wanted: list[tap_service_pb2.Tap] = []
    for at in range(count):
        tap = tap_service_pb2.Tap(card_number=str(at), terminal_sequence=at, mac=b"\x0a\x0a\x0a\x0a", amount_fen=200 * at)
        spool.store(tap)
        wanted.append(tap)
        if cuts:
            torn = tap_service_pb2.SubmitTapsRequest(taps=[tap_service_pb2.Tap(card_number="9" * 150, mac=b"1234")])
            whole = torn.SerializeToString()
            with spool.path.open("ab") as file:
                file.write(whole[: cuts.pop() % len(whole)])
            assert spool.taps() == wanted
    assert spool.taps() == wanted


def test_a_file_that_is_no_spool(tmp_path: Path) -> None:
    for content in (b"\xff", b"taps", b"\x0a\x02\xff\xff", b"\x12\x00"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(FileFault):
            Spool(tmp_path / "x").taps()


# ---- renewal under way ----


def test_a_renewed_certificate_is_taken(city: City) -> None:
    """Revoked and renewed: the connection goes on, with the new one, and never with one whose key is not there yet."""
    shown = caller_files(city.authority, "yikatong:operator:renewed")
    assert shown.certificate is not None
    assert shown.key is not None
    request = account_service_pb2.GetBalanceRequest(card_number="404")
    with (
        Connection(city.server.address, **shown._asdict()) as service,
        Connection(city.server.tap_address or "", **shown._asdict()) as taps,
    ):

        def answers() -> set[grpc.StatusCode]:
            found = set()
            for port in (service, taps):
                with pytest.raises(grpc.RpcError) as caught:
                    port.accounts.GetBalance(request, timeout=5)
                found.add(caught.value.code())
            return found

        assert answers() == {grpc.StatusCode.NOT_FOUND}
        old = read_certificates(shown.certificate)[0].serial_number
        key = shown.key.read_bytes()
        shown.key.write_bytes(key_pem(new_key()))  # half of a renewal: not to be used
        until(lambda: answers() == {grpc.StatusCode.NOT_FOUND})
        shown.key.write_bytes(key)
        city.authority.revoke([old])
        until(lambda: answers() == {grpc.StatusCode.UNAUTHENTICATED})
        caller_files(city.authority, "yikatong:operator:renewed")
        until(lambda: answers() == {grpc.StatusCode.NOT_FOUND})


# ---- retries ----


class Stub(account_service_pb2_grpc.AccountServiceServicer):
    """Answers what it is told to, in turn."""

    def __init__(self) -> None:
        self.codes: list[grpc.StatusCode] = []
        self.asked = 0

    def GetBalance(self, request: Any, context: Any) -> Any:
        self.asked += 1
        if self.codes:
            context.abort(self.codes.pop(0), "as it was told")
        return account_service_pb2.GetBalanceResponse(balance_fen=7)


@pytest.fixture(scope="module")
def stub() -> Iterator[tuple[Stub, Connection]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    made = Stub()
    account_service_pb2_grpc.add_AccountServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Connection(f"127.0.0.1:{port}") as connection:
        yield made, connection
    server.stop(0)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=lambda code: code.name)
@pytest.mark.parametrize("patient", [False, True])
def test_what_is_tried_again(stub: tuple[Stub, Connection], code: grpc.StatusCode, patient: bool) -> None:
    served, connection = stub
    served.codes, served.asked = [code, code], 0
    pauses: list[float] = []
    named: dict[str, Any] = {"sleep": pauses.append, "chance": lambda: 0.5} | ({"deadline_s": 30} if patient else {})
    fate = FATES.get(code, Fate.REFUSED)
    again = fate is Fate.NOT_DONE or (patient and fate is Fate.UNKNOWN)
    if again:
        assert call(connection.accounts.GetBalance, account_service_pb2.GetBalanceRequest(), **named).balance_fen == 7
        assert (served.asked, pauses) == (3, [0.1, 0.2])
    else:
        with pytest.raises(grpc.RpcError) as caught:
            call(connection.accounts.GetBalance, account_service_pb2.GetBalanceRequest(), **named)
        assert (caught.value.code(), served.asked, pauses) == (code, 1, [])


def test_bounds(stub: tuple[Stub, Connection]) -> None:
    served, connection = stub
    times: list[float] = [0.0]

    def sleep(pause_s: float) -> None:
        times[0] += pause_s

    def ask(**named: Any) -> Callable[[], Any]:
        method, request = connection.accounts.GetBalance, account_service_pb2.GetBalanceRequest()
        return lambda: call(method, request, sleep=sleep, clock=lambda: times[0], chance=lambda: 0.5, **named)

    for named, wanted in (({"attempts": 3}, 3), ({"attempts": 1}, 1), ({"deadline_s": 1.0}, 4)):
        served.codes, served.asked = [grpc.StatusCode.UNAVAILABLE] * 50, 0
        with pytest.raises(grpc.RpcError):
            ask(**named)()
        assert served.asked == wanted  # 0.1 + 0.2 + 0.4, and 0.8 more would be too late
    served.codes = []


def test_a_server_that_is_renewed(city: City) -> None:
    """The client's authority stays; the server's certificate changes under it."""
    with Connection(city.server.address, **city.operator._asdict()) as operator:
        request = account_service_pb2.GetBalanceRequest(card_number="404")
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                operator.accounts.GetBalance(request)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            write_pair(Authority(city.folder), city.folder / "server", SERVER, 1)
