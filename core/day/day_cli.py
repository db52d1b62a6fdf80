"""The command line of the day: `yikatong day close|clear|settle|abort|resume|seal|list`, receipts, and their verification."""

import functools
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich import box
from rich.console import Console
from rich.table import Table

from yikatong.core.errors import YikatongError
from yikatong.core.types import ClearingOutcome, Result, WindowState
from yikatong.v1 import clearing_service_pb2, reconciliation_service_pb2, settlement_service_pb2

OUT = Console()

data_option = click.option("--data", type=click.Path(path_type=Path), help="data directory, while no server runs on it")


class Target(NamedTuple):
    """A running server, and what an operator shows it; plaintext without `ca`."""

    address: str
    ca: Path | None
    certificate: Path | None
    key: Path | None


def server_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its `server`, a Target, or None."""

    @click.option("--server", help="address of a running server, HOST:PORT")
    @click.option("--ca", type=click.Path(path_type=Path), help="PEM file of that server's authority; else plaintext")
    @click.option("--certificate", type=click.Path(path_type=Path), help="PEM file of the operator's certificate")
    @click.option("--key", type=click.Path(path_type=Path), help="PEM file of its key")
    @functools.wraps(command)
    def wrapped(server: str | None, ca: Path | None, certificate: Path | None, key: Path | None, **rest: Any) -> None:
        if server is None and (ca or certificate or key):
            raise click.UsageError("--ca, --certificate and --key are for --server")
        command(server=None if server is None else Target(server, ca, certificate, key), **rest)

    return wrapped


date_option = click.option("--date", type=int, required=True, help="settlement date, YYYYMMDD")
agreements_option = click.option("--agreements", type=click.Path(path_type=Path), help="TOML file of agreements; with --data")
key_option = click.option("--seal-key", type=click.Path(path_type=Path), help="PEM file of the SM2 key; with --data")


class Refused(YikatongError):
    """The window stands where what was asked does not lead on."""


def _answered(response: Any) -> Any:
    """The response of a step that was done. Raises Refused."""
    if response.result != Result.ACCEPTED:
        name = Result(response.result).name
        raise Refused(f"{name}: {response.reason}" if getattr(response, "reason", "") else name)
    return response


class _Remote:
    """The steps of core.day.Day at a server."""

    def __init__(self, connection: Any) -> None:
        clearing, settlement = connection.clearing, connection.settlement
        self.close, self.list_windows = clearing.CloseWindow, clearing.ListWindows
        self.clear = lambda request, progress: clearing.ClearWindow(request)
        self.seal = lambda request, progress: settlement.SealWindow(request)
        self.settle, self.abort, self.resume = settlement.SettleWindow, settlement.AbortWindow, settlement.ResumeWindow
        self.get_report = settlement.GetReport
        self.ask_bank = connection.reconciliation.IngestBankFile
        self.get_receipt = settlement.GetReceipt


@contextmanager
def _day(data: Path | None, server: Target | None, agreements: Path | None = None, key: Path | None = None) -> Iterator[Any]:
    """The day of a data directory or of a server."""
    if (data is None) == (server is None):
        raise click.UsageError("either --data or --server is wanted")
    if server is not None:
        from yikatong.clients.connection import Connection

        with Connection(server.address, ca=server.ca, certificate=server.certificate, key=server.key) as connection:
            yield _Remote(connection)
        return
    from yikatong.core.day.day import Day, DayRules
    from yikatong.core.local import LocalCore

    assert data is not None
    if not data.is_dir():
        raise click.UsageError(f"--data: there is no folder {data}")
    rules = DayRules.read(data, str(agreements or ""), str(key or ""))
    with LocalCore(data) as local:
        yield Day(local.core.journal.read, local.ask, rules)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from yikatong.core.cli import progress_bars

    with progress_bars() as advance:
        yield lambda done, total: advance(what, done, total)


def _yuan(amount_fen: int) -> str:
    return f"{amount_fen / 100:,.2f}"


def _show_window(window: clearing_service_pb2.ClearingWindow) -> None:
    table = Table(box=box.SIMPLE, title=f"window of {window.settlement_date}: {WindowState(window.state).name.lower()}")
    table.add_column("outcome")
    for column in ("taps", "CNY"):
        table.add_column(column, justify="right")
    for total in window.outcomes:
        name = ClearingOutcome(total.outcome).name.lower().replace("_", " ")
        table.add_row(name, f"{total.count:,}", _yuan(total.amount_fen))
    OUT.print(table if window.outcomes else table.title, highlight=False)
    for passed in window.caps_passed:
        OUT.print(
            f"{passed.participant}: {_yuan(passed.net_fen)} CNY is below its net debit cap of {_yuan(passed.cap_fen)}",
            style="yellow", highlight=False,
        )  # fmt: skip


@click.group()
def day() -> None:
    """Take the window of a settlement date through the day: close, clear, settle, seal."""


@day.command()
@data_option
@server_option
@date_option
def close(data: Path | None, server: Target | None, date: int) -> None:
    """Let no more records into the window."""
    with _day(data, server) as steps:
        request = clearing_service_pb2.CloseWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        _show_window(_answered(steps.close(request)).window)


@day.command()
@data_option
@server_option
@date_option
@agreements_option
def clear(data: Path | None, server: Target | None, date: int, agreements: Path | None) -> None:
    """Clear and net a closed window, and post what comes out."""
    with _day(data, server, agreements) as steps, _bar("clearing") as progress:
        request = clearing_service_pb2.ClearWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        response = _answered(steps.clear(request, progress))
    _show_window(response.window)


@day.command()
@data_option
@server_option
@date_option
@agreements_option
def settle(data: Path | None, server: Target | None, date: int, agreements: Path | None) -> None:
    """Write the files of a cleared window and give its instructions to the bank; settled once the bank says all was paid."""
    with _day(data, server, agreements) as steps:
        request = settlement_service_pb2.SettleWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        response = _answered(steps.settle(request))
    state = WindowState(response.window.state).name.lower()
    OUT.print(
        f"{date}: {state}; {response.instructions:,} instructions, {_yuan(response.paid_fen)} CNY to pay, "
        f"{_yuan(response.claimed_fen)} CNY to claim",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@day.command(name="bank-file")
@data_option
@server_option
@click.argument("file", type=click.Path(path_type=Path))
def bank_file(data: Path | None, server: Target | None, file: Path) -> None:
    """Book a bank's return file: what was paid, what came back. Windows of which all is paid are settled."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Refused(f"{file}: {error.strerror}") from error
    request = reconciliation_service_pb2.IngestBankFileRequest(
        request_id=secrets.token_bytes(16), name=file.name, content=content
    )
    with _day(data, server) as steps:
        if server is not None:
            response = steps.ask_bank(request)
        else:
            from yikatong.core.day import payments

            bank = payments.read_bank_file(request)
            response = steps.ask(lambda memory, time_us: payments.ingest_bank_file(memory, request, bank, time_us))
    _answered(response)
    OUT.print(
        f"{file.name}: {response.paid:,} paid, {response.returned:,} returned, {response.unknown:,} unknown, "
        f"{response.differences:,} differences" + (" (booked before)" if response.duplicate else ""),
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _turn(data: Path | None, server: Target | None, date: int, step: str, kind: Any) -> None:
    with _day(data, server) as steps:
        window = _answered(getattr(steps, step)(kind(request_id=secrets.token_bytes(16), settlement_date=date))).window
    OUT.print(f"{date}: {WindowState(window.state).name.lower()}", highlight=False)


@day.command()
@data_option
@server_option
@date_option
def abort(data: Path | None, server: Target | None, date: int) -> None:
    """Break the settlement of a window off, while the bank has said nothing of it."""
    _turn(data, server, date, "abort", settlement_service_pb2.AbortWindowRequest)


@day.command()
@data_option
@server_option
@date_option
def resume(data: Path | None, server: Target | None, date: int) -> None:
    """Bring a window whose settlement was broken off back to cleared."""
    _turn(data, server, date, "resume", settlement_service_pb2.ResumeWindowRequest)


@day.command()
@data_option
@server_option
@date_option
@click.option("--participant", default="", help='whose statement, such as "operator:bus"; else the report of the whole window')
@click.option("--out", type=click.Path(path_type=Path), required=True, help="HTML file to write")
def report(data: Path | None, server: Target | None, date: int, participant: str, out: Path) -> None:
    """Write the report of a cleared window, or a participant's statement, as a page to print."""
    with _day(data, server) as steps:
        request = settlement_service_pb2.GetReportRequest(settlement_date=date, participant=participant)
        raw = steps.get_report(request).html
    out.write_bytes(raw)
    OUT.print(f"{out}: {len(raw):,} bytes", highlight=False, soft_wrap=True)


@day.command(name="seal")
@data_option
@server_option
@date_option
@key_option
def seal_command(data: Path | None, server: Target | None, date: int, seal_key: Path | None) -> None:
    """Seal a settled window."""
    with _day(data, server, key=seal_key) as steps, _bar("sealing") as progress:
        request = settlement_service_pb2.SealWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        response = _answered(steps.seal(request, progress))
    OUT.print(f"{date}: sealed, SM3 of the seal {response.window.seal_digest.hex()}", highlight=False, soft_wrap=True)


@day.command(name="list")
@data_option
@server_option
def list_command(data: Path | None, server: Target | None) -> None:
    """All windows."""
    table = Table(box=box.SIMPLE)
    table.add_column("date")
    for column in ("first", "last", "records"):
        table.add_column(column, justify="right")
    table.add_column("state")
    with _day(data, server) as steps:
        token = ""
        while True:
            page = steps.list_windows(clearing_service_pb2.ListWindowsRequest(page_token=token))
            for window in page.windows:
                records = window.last_sequence - window.first_sequence + 1
                state = WindowState(window.state).name.lower() + (", sealed" if window.seal_digest else "")
                table.add_row(
                    str(window.settlement_date), f"{window.first_sequence:,}", f"{window.last_sequence:,}", f"{records:,}", state
                )
            if not (token := page.next_page_token):
                break
    OUT.print(table)


@click.command()
@data_option
@server_option
@click.option("--sequence", type=click.IntRange(1), help="a journal record, by its sequence")
@click.option("--participant", help='a participant\'s total, such as "operator:bus"; with --date')
@click.option("--date", type=int, help="settlement date, YYYYMMDD")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="receipt file to write")
def receipt(
    data: Path | None, server: Target | None, sequence: int | None, participant: str | None, date: int | None, out: Path
) -> None:
    """Make a receipt of a tap, or of a participant's total, in a sealed window."""
    if (sequence is None) == (participant is None) or (participant is None) != (date is None):
        raise click.UsageError("either --sequence, or --participant and --date, is wanted")
    request = settlement_service_pb2.GetReceiptRequest()
    if sequence is not None:
        request.sequence = sequence
    else:
        request.participant_total.participant, request.participant_total.settlement_date = participant or "", date or 0
    with _day(data, server) as steps:
        raw = steps.get_receipt(request).receipt
    out.write_bytes(raw)
    OUT.print(f"{out}: {len(raw):,} bytes", highlight=False, soft_wrap=True)


@click.command(name="verify-receipt")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--public-key", type=click.Path(path_type=Path), required=True, help="PEM file of the key that seals are made with")
def verify_receipt_command(file: Path, public_key: Path) -> None:
    """Prove from a receipt alone that what it shows is in a sealed window. Exit status 1, and the reason, otherwise."""
    from yikatong.core.day.seal import ReceiptWrong, verify_receipt
    from yikatong.core.sm2 import PublicKey

    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ReceiptWrong(f"{file}: {error.strerror}") from error
    proved = verify_receipt(raw, PublicKey.read(public_key))
    OUT.print("proved: " + proved.words(), highlight=False, markup=False, soft_wrap=True)


@click.command(name="seal-key")
@click.option("--private", type=click.Path(path_type=Path), required=True, help="PEM file to make, for its owner alone")
@click.option("--public", type=click.Path(path_type=Path), required=True, help="PEM file to make, for everybody")
def seal_key_command(private: Path, public: Path) -> None:
    """Make a pair of SM2 keys to seal with, for demonstrations and tests."""
    from yikatong.core.sm2 import make_key_files

    make_key_files(private, public)
    OUT.print(f"{private}: keep it; {public}: give it to everybody", highlight=False, soft_wrap=True)


def add_day_commands(group: click.Group) -> None:
    """Put these commands into the command line."""
    for command in (day, receipt, verify_receipt_command, seal_key_command):
        group.add_command(command)
