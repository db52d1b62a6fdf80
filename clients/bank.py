"""A simulated bank: what it says of the instructions that it was given."""

from collections.abc import Collection, Iterable

from yikatong.core.bank_file import BankEntry, BankStatus, bank_csv
from yikatong.v1 import reconciliation_service_pb2


def return_file(
    statement_id: str,
    instructions: Iterable[reconciliation_service_pb2.Instruction],
    booked_at_us: int,
    *,
    opening_fen: int = 0,
    returned: Collection[str] = (),
) -> bytes:
    """The bank's file (core/bank_file.py) in which all instructions were paid at `booked_at_us`, but for those that are
    `returned` (by participant), whose accounts are closed. There must be one at least, all of one settlement account."""
    orders = list(instructions)
    entries = [
        BankEntry(0, order.instruction_id, order.amount_fen, BankStatus.RETURNED, 0, booked_at_us, "account closed")
        if order.participant in returned
        else BankEntry(0, order.instruction_id, order.amount_fen, BankStatus.PAID, -order.amount_fen, booked_at_us, "")
        for order in orders
    ]
    return bank_csv(statement_id, orders[0].from_account, opening_fen, entries)
