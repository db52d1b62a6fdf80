"""AccountService: balances, top-ups, and what moved."""

import asyncio
import functools
from typing import Final

from yikatong.core import commands, queries
from yikatong.core.memory import Memory
from yikatong.core.paging import page_size
from yikatong.core.services.host import Host, Methods
from yikatong.ext.engine import NONE
from yikatong.v1 import account_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["AccountService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "GetBalance": host.command(commands.get_balance),
        "ListTransactions": functools.partial(list_transactions, host),
        "TopUp": host.command(commands.top_up),
        "BatchTopUp": host.command(commands.batch_top_up),
    }


async def list_transactions(
    host: Host, request: pb.ListTransactionsRequest, deadline: float | None
) -> pb.ListTransactionsResponse:
    """AccountService.ListTransactions."""
    size = page_size(request.page_size)
    card, newest, purses = await host.ask(lambda memory: commands.newest_of_card(memory, request.card_number), deadline)
    start = queries.parse_transactions_token(request.page_token, card) if request.page_token else newest
    found, token = await asyncio.to_thread(queries.list_transactions, host.core.journal, card, purses, start, size)
    await host.ask(lambda memory: _name_terminals(memory, found), deadline)
    return pb.ListTransactionsResponse(transactions=[transaction for transaction, _ in found], next_page_token=token)


def _name_terminals(memory: Memory, found: list[tuple[pb.Transaction, int]]) -> None:
    for transaction, slot in found:
        _, terminal, operator_id = commands.card_and_terminal(memory, NONE, slot)
        if terminal:
            transaction.terminal_number = terminal["terminal_number"]
            transaction.operator_id = operator_id
