"""IssuanceService: from an application to a card in somebody's hands, and batches of them."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Final

from yikatong.core.access.callers import current
from yikatong.core.cards import assignment, batches, issuance
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import issuance_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["IssuanceService"]


def methods(host: Host) -> Methods:
    """By rpc."""

    def ruled(command: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(command, host.card_rules)

    return {
        "ApplyForCard": host.keyed(ruled(issuance.apply_for_card)),
        "CheckApplication": host.command_by(ruled(issuance.check_application)),
        "AdvanceApplications": host.command_by(ruled(issuance.advance_applications)),
        "ReportProduced": host.command_by(ruled(issuance.report_produced)),
        "DeliverCard": host.command_by(ruled(issuance.deliver_card)),
        "PickUpCard": host.command_by(ruled(issuance.pick_up_card)),
        "WithdrawApplication": host.command_by(ruled(issuance.withdraw_application)),
        "AssignCard": host.command_by(assignment.assign_card),
        "SetBankAccount": host.command_by(issuance.set_bank_account),
        "GetApplication": host.command_by(issuance.get_application),
        "ListOverdue": host.command_by(issuance.list_overdue),
        "OpenBatch": host.command_by(batches.open_batch),
        "UploadBatchRows": functools.partial(upload_batch_rows, host),
        "GetBatch": host.command_by(batches.get_batch),
        "ListBatchRows": host.command_by(batches.list_batch_rows),
    }


async def upload_batch_rows(host: Host, request: pb.UploadBatchRowsRequest, deadline: float | None) -> pb.UploadBatchRowsResponse:
    """IssuanceService.UploadBatchRows, slice by slice. If it ends in between, those before are found done when it comes
    again."""
    del deadline  # each slice is done or not; the caller asks how far it came
    return await asyncio.to_thread(batches.upload, host.card_rules, host.keys(), request, current(), host.ask_blocking)
