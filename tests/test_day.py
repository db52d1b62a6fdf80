"""A whole day: closed, cleared, settled, paid by the bank, sealed; broken off and taken up again; reports to print."""

import os
import secrets
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from day_city import AGREEMENTS, DATE, City

from yikatong.clients.bank import return_file
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.check import check
from yikatong.core.day.exceptions import get_exception
from yikatong.core.day.reconcile import InstructionState
from yikatong.core.day.settle import read_settlement_csv
from yikatong.core.day.windows import WindowEvent
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.keys import key_sets
from yikatong.core.memory import EngineSettings
from yikatong.core.types import Result, WindowState
from yikatong.v1 import clearing_service_pb2, exception_service_pb2, reconciliation_service_pb2, settlement_service_pb2

CLI = [sys.executable, "-m", "yikatong.core.cli"]


@pytest.fixture
def city(tmp_path: Path) -> City:
    with City(tmp_path / "data") as made:
        for card in range(4):
            made.tap(card, ("bus", "metro")[card % 2], 2000, amount_due_fen=2500)
        yield made


def test_settled_when_the_bank_has_paid_everything(city: City) -> None:
    city.cleared()
    before = city.memory.engine.balances_fen().sum()
    response = city.settle_window()
    assert (response.result, response.window.state) == (Result.ACCEPTED, WindowState.CLEARED)
    orders = {each.participant: each.amount_fen for each in city.instructions()}
    assert orders == {name: net for name, net in city.positions().items() if name != "float"}
    assert response.instructions == len(orders)
    assert response.paid_fen - response.claimed_fen == sum(orders.values())
    # One participant's account is closed: the window waits, the payment goes out again, and then it is settled.
    told = city.pay(returned=["operator:bus"])
    assert (told.result, told.paid, told.returned) == (Result.ACCEPTED, len(orders) - 1, 1)
    assert city.state() is WindowState.CLEARED
    assert city.seal_window().result == Result.WINDOW_CLEARED
    (returned,) = [each for each in city.instructions() if each.state == InstructionState.RETURNED]
    from yikatong.core.day.payments import reissue_instruction

    again = reconciliation_service_pb2.ReissueInstructionRequest(
        request_id=city.request_id(), instruction_id=returned.instruction_id
    )
    assert city.ask(reissue_instruction, again).result == Result.ACCEPTED
    assert city.pay().paid == 1
    assert city.state() is WindowState.SETTLED
    assert city.engine.balance_fen(city.memory.account("operator:bus")) == 0
    assert city.engine.balances_fen().sum() == before == 0
    assert city.seal_window().result == Result.ACCEPTED
    assert city.settle_window().result == Result.WINDOW_SETTLED
    city.checkpoint()
    city.close()
    check(city.path, EngineSettings(cards_max=1_000, terminals_max=100))


def test_files_are_the_positions(city: City) -> None:
    city.cleared()
    city.settle_window()
    folder = city.path / "settlement" / str(DATE)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "payments.pain.001.xml" in first
    listed = city.day.list_files(settlement_service_pb2.ListSettlementFilesRequest(settlement_date=DATE))
    assert {file.name: file.size_bytes for file in listed.files} == {name: len(raw) for name, raw in first.items()}
    told = {}
    for name, raw in first.items():
        got = city.day.get_file(settlement_service_pb2.GetSettlementFileRequest(settlement_date=DATE, name=name))
        assert got.content == raw
        if name.endswith(".utf-8.csv") and not name.startswith("claims"):
            read = read_settlement_csv(name, raw)
            told[read.position.participant] = read.position.net_fen
    assert told == city.positions()
    for wrong in ("../../keys.toml", "", "nothing", str(folder / "SM3SUMS")):
        with pytest.raises(NotFound):
            city.day.get_file(settlement_service_pb2.GetSettlementFileRequest(settlement_date=DATE, name=wrong))
    assert city.settle_window().result == Result.ACCEPTED  # again, with another id: the same files
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_broken_off_and_taken_up_again(city: City) -> None:
    def abort() -> Result:
        request = settlement_service_pb2.AbortWindowRequest(request_id=city.request_id(), settlement_date=DATE)
        return Result(city.day.abort(request).result)

    def resume() -> Result:
        request = settlement_service_pb2.ResumeWindowRequest(request_id=city.request_id(), settlement_date=DATE)
        return Result(city.day.resume(request).result)

    assert abort() is Result.WINDOW_OPEN
    city.cleared()
    city.settle_window()
    assert city.instructions()
    assert abort() is Result.ACCEPTED
    assert city.instructions() == []
    assert (city.state(), abort(), city.settle_window().result) == (
        WindowState.ABORTED, Result.WINDOW_ABORTED, Result.WINDOW_ABORTED,
    )  # fmt: skip
    assert resume() is Result.ACCEPTED
    assert resume() is Result.WINDOW_CLEARED
    city.settle_window()
    city.pay()
    # The bank has paid: that is not taken back by forgetting it.
    assert abort() is Result.WRONG_STATE
    assert city.state() is WindowState.SETTLED


def test_nothing_to_pay_is_settled_at_once(tmp_path: Path) -> None:
    with City(tmp_path / "data") as city:
        city.cleared()
        response = city.settle_window()
        assert (response.result, response.window.state, response.instructions) == (Result.ACCEPTED, WindowState.SETTLED, 0)


def test_a_participant_without_an_account_is_named(tmp_path: Path) -> None:
    accounts = AGREEMENTS.index("[[account]]")
    with City(tmp_path / "data", AGREEMENTS[:accounts] + AGREEMENTS[AGREEMENTS.index("[[transfer]]") :]) as city:
        city.tap()
        city.cleared()
        with pytest.raises(InvalidRequest, match=r"payees\[float\]"):
            city.settle_window()
        assert city.instructions() == []
        assert city.state() is WindowState.CLEARED


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def test_report_and_statement(city: City) -> None:
    city.cleared()
    city.settle_window()
    city.pay()
    for participant in ("", "operator:bus"):
        request = settlement_service_pb2.GetReportRequest(settlement_date=DATE, participant=participant)
        page = _Text()
        page.feed(city.day.get_report(request).html.decode())
        text = " ".join(page.text)
        assert "operator:bus" in text
        assert f"{city.positions()['operator:bus'] / 100:,.2f}" in text
        assert "script" not in page.tags
    with pytest.raises(NotFound):
        city.day.get_report(settlement_service_pb2.GetReportRequest(settlement_date=DATE, participant="operator:none"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, arguments)], capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "150"}
    )


def test_a_day_from_the_command_line(tmp_path: Path) -> None:
    """As an operator does it: over a running server, ending in a statement and a receipt that proves itself."""
    with City(tmp_path / "data") as city:
        outcomes = [city.tap(card, ("bus", "metro")[card % 2], 2000, amount_due_fen=2500) for card in range(4)]
        city.checkpoint()
    (tmp_path / "agreements.toml").write_text(AGREEMENTS)
    key_sets.make_test_keys(tmp_path / "keys.toml")
    private, public = tmp_path / "seal.pem", tmp_path / "public.pem"
    assert run("seal-key", "--private", private, "--public", public).returncode == 0
    rules = ("--agreements", str(tmp_path / "agreements.toml"), "--seal-key", str(private))
    with EmbeddedServer(tmp_path / "data", tmp_path / "keys.toml", *rules) as server:
        at = ("--server", server.address, "--date", DATE)
        for step in ("close", "clear"):
            done = run("day", step, *at)
            assert done.returncode == 0, done.stderr
        assert "cleared" in done.stdout
        again = run("day", "close", *at)
        assert (again.returncode, "WINDOW_CLEARED" in again.stderr) == (1, True)
        done = run("day", "settle", *at)
        assert "instructions" in done.stdout, done.stderr
        with Connection(server.address) as connection:
            orders = connection.reconciliation.ListInstructions(
                reconciliation_service_pb2.ListInstructionsRequest(settlement_date=DATE)
            ).instructions
            raw = return_file("from-the-bank", orders, outcomes[0].sequence + 10**15)
            wrong = tmp_path / "wrong.csv"
            wrong.write_bytes(raw.replace(b"PAID", b"PAYD", 1))
            done = run("day", "bank-file", wrong, "--server", server.address)
            assert done.returncode == 1
            assert "wrong.csv" in done.stderr
            (tmp_path / "bank.csv").write_bytes(raw)
            for words in ("paid", "booked before"):
                done = run("day", "bank-file", tmp_path / "bank.csv", "--server", server.address)
                assert words in done.stdout, done.stderr
            windows = connection.clearing.ListWindows(clearing_service_pb2.ListWindowsRequest()).windows
            assert WindowState(windows[0].state) is WindowState.SETTLED
            closed = connection.clearing.CloseWindow(
                clearing_service_pb2.CloseWindowRequest(request_id=secrets.token_bytes(16), settlement_date=DATE)
            )
            assert closed.result == Result.WINDOW_SETTLED
        assert run("day", "seal", *at).returncode == 0
        assert "settled, sealed" in run("day", "list", "--server", server.address).stdout
        page = tmp_path / "statement.html"
        assert run("day", "report", *at, "--participant", "operator:bus", "--out", page).returncode == 0
        assert page.read_text().startswith("<!")
        receipt = tmp_path / "receipt.json"
        done = run("receipt", "--server", server.address, "--sequence", outcomes[0].sequence, "--out", receipt)
        assert done.returncode == 0, done.stderr
    done = run("verify-receipt", receipt, "--public-key", public)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("proved: ")
    receipt.write_bytes(receipt.read_bytes().replace(b'"', b"'", 1))
    assert run("verify-receipt", receipt, "--public-key", public).returncode == 1


def test_events_do_not_lead_anywhere_else(city: City) -> None:
    assert city.step(WindowEvent.RESUME) is Result.WINDOW_OPEN


def test_a_row_of_the_queue_is_taken_up_once(city: City) -> None:
    city.atcs[0] += 1  # a tap of it is missing
    outcome = city.tap()
    city.cleared()

    def queue() -> list:
        request = clearing_service_pb2.ListClearingExceptionsRequest(settlement_date=DATE)
        return list(city.day.list_exceptions(request).exceptions)

    def take_up(request_id: bytes, sequence: int) -> exception_service_pb2.TakeUpExceptionResponse:
        return city.day.take_up(
            exception_service_pb2.TakeUpExceptionRequest(request_id=request_id, settlement_date=DATE, journal_sequence=sequence)
        )

    (row,) = queue()
    assert (row.sequence, row.exception_id) == (outcome.sequence, "")
    first = take_up(bytes(16), outcome.sequence)
    assert (first.result, first.duplicate) == (Result.ACCEPTED, False)
    for request_id in (bytes(16), bytes(15) + b"1"):
        again = take_up(request_id, outcome.sequence)
        assert (again.result, again.duplicate, again.exception_id) == (Result.ACCEPTED, True, first.exception_id)
    assert queue()[0].exception_id == first.exception_id
    found = city.ask(get_exception, exception_service_pb2.GetExceptionRequest(exception_id=first.exception_id)).exception
    assert (found.clearing.outcome, found.clearing.journal_sequence) == ("ATC_GAP", outcome.sequence)
    with pytest.raises(NotFound):
        take_up(bytes(16), outcome.sequence + 1)
