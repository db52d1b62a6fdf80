"""ClearingService: what a day comes to."""

import asyncio
import functools
from typing import Final

from yikatong.core import commands
from yikatong.core.access import access
from yikatong.core.access.callers import current
from yikatong.core.day.day import Day
from yikatong.core.day.totals import operator_totals
from yikatong.core.errors import InvalidRequest
from yikatong.core.services.host import Host, Methods
from yikatong.ext.engine import local_seconds
from yikatong.v1 import clearing_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ClearingService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "GetOperatorTotals": functools.partial(get_operator_totals, host),
        "GetTrialBalance": host.command(commands.get_trial_balance),
        "CloseWindow": host.of_day(Day.close),
        "ClearWindow": host.of_day(Day.clear),
        "GetWindow": host.of_day(Day.get_window),
        "ListWindows": host.of_day(Day.list_windows),
        "ListClearingExceptions": host.of_day(Day.list_exceptions),
        "ListPositions": host.of_day(Day.list_positions),
    }


async def get_operator_totals(
    host: Host, request: pb.GetOperatorTotalsRequest, deadline: float | None
) -> pb.GetOperatorTotalsResponse:
    """ClearingService.GetOperatorTotals."""
    if local_seconds(request.settlement_date, 0) < 0:
        raise InvalidRequest("settlement_date", f"{request.settlement_date} is no date YYYYMMDD of 2000 to 2099")
    if request.sequence_last and request.sequence_last < request.sequence_first:
        raise InvalidRequest("sequence_last", "is before sequence_first")
    names = await host.ask(commands.names, deadline)
    caller = current()
    whose = caller.name if caller.role == access.ACQUIRER else None

    def work() -> pb.GetOperatorTotalsResponse:
        with host.core.journal.read() as reader:
            totals = operator_totals(reader, names, request.settlement_date, request.sequence_first, request.sequence_last)
        shown = [operator for operator in totals.operators if whose in (None, operator.operator_id)]
        response = pb.GetOperatorTotalsResponse(
            total_taps=sum(operator.taps for operator in shown),
            total_fen=sum(operator.amount_fen for operator in shown),
            sequence=totals.sequence,
        )
        for operator in shown:
            response.operators.add(
                operator_id=operator.operator_id,
                taps=operator.taps,
                amount_fen=operator.amount_fen,
                test_taps=operator.test_taps,
            )
        return response

    return await asyncio.to_thread(work)
