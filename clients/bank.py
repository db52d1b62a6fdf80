"""The bank that keeps the settlement account: it fetches what it is to pay and to claim, and says what became of it.

python -m yikatong.clients.bank --server HOST:PORT --ca ca.pem --certificate b.pem --key b.key fetch --date 20260131 --out DIR
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import click

from yikatong.clients.command import connected, name_of, run, say
from yikatong.clients.connection import Connection, call
from yikatong.core.access.callers import Caller
from yikatong.core.day.bank_file import BankEntry, BankStatus, bank_csv
from yikatong.core.journal import sm3
from yikatong.v1 import access_pb2, reconciliation_service_pb2, settlement_service_pb2

DEADLINE_S = 60.0


class Bank:
    """A bank's calls."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def instructions(self, settlement_date: int) -> Iterator[reconciliation_service_pb2.Instruction]:
        """Everything that it was told to move for a settlement date (YYYYMMDD). Raises grpc.RpcError."""
        token = ""
        while True:
            request = reconciliation_service_pb2.ListInstructionsRequest(
                settlement_date=settlement_date, page_size=1_000, page_token=token
            )
            page = call(self._connection.reconciliation.ListInstructions, request, deadline_s=DEADLINE_S)
            yield from page.instructions
            token = page.next_page_token
            if not token:
                return

    def files(self, settlement_date: int) -> Iterator[tuple[str, bytes]]:
        """Its files of a settlement date: payments (pain.001) and claims. Raises grpc.RpcError."""
        settlement = self._connection.settlement
        listing = settlement_service_pb2.ListSettlementFilesRequest(settlement_date=settlement_date)
        for file in call(settlement.ListSettlementFiles, listing, deadline_s=DEADLINE_S).files:
            request = settlement_service_pb2.GetSettlementFileRequest(settlement_date=settlement_date, name=file.name)
            yield file.name, call(settlement.GetSettlementFile, request, deadline_s=DEADLINE_S).content

    def send_return_file(self, name: str, content: bytes) -> reconciliation_service_pb2.IngestBankFileResponse:
        """Say what became of instructions (core/day/bank_file.py has the form). The same file again changes nothing. Raises
        grpc.RpcError: INVALID_ARGUMENT names line and field of a file that is not what it should be."""
        request = reconciliation_service_pb2.IngestBankFileRequest(request_id=sm3(content)[:16], name=name, content=content)
        answer: reconciliation_service_pb2.IngestBankFileResponse = call(
            self._connection.reconciliation.IngestBankFile, request, deadline_s=DEADLINE_S
        )
        return answer


def return_file(
    statement_id: str,
    instructions: Iterable[reconciliation_service_pb2.Instruction],
    booked_at_us: int,
    *,
    opening_fen: int = 0,
    returned: Collection[str] = (),
) -> bytes:
    """The bank's file (core/day/bank_file.py) in which all instructions were paid at `booked_at_us`, but for those that are
    `returned` (by participant), whose accounts are closed. There must be one at least, all of one settlement account."""
    orders = list(instructions)
    entries = [
        BankEntry(0, order.instruction_id, order.amount_fen, BankStatus.RETURNED, 0, booked_at_us, "account closed")
        if order.participant in returned
        else BankEntry(0, order.instruction_id, order.amount_fen, BankStatus.PAID, -order.amount_fen, booked_at_us, "")
        for order in orders
    ]
    return bank_csv(statement_id, orders[0].from_account, opening_fen, entries)


@click.group()
def bank() -> None:
    """The settlement bank's side of a day."""


@bank.command()
@click.option("--date", type=int, required=True, help="settlement date, YYYYMMDD")
@click.option("--out", type=click.Path(path_type=Path), help="folder to write the files to")
@connected
def fetch(connection: Connection, caller: Caller, date: int, out: Path | None) -> None:
    """Fetch what is to be paid and claimed. Prints a line an instruction and a line a file."""
    name_of(caller, access_pb2.ROLE_BANK, "bank")
    own = Bank(connection)
    for instruction in own.instructions(date):
        say(instruction)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in own.files(date):
            (out / Path(name).name).write_bytes(content)
            say({"file": name, "bytes": len(content), "sm3": sm3(content).hex()})


@bank.command()
@click.argument("file", type=click.Path(path_type=Path))
@connected
def report(connection: Connection, caller: Caller, file: Path) -> None:
    """Send a return FILE: what became of the instructions."""
    name_of(caller, access_pb2.ROLE_BANK, "bank")
    say(Bank(connection).send_return_file(file.name, file.read_bytes()))


if __name__ == "__main__":
    run(bank)
