"""ReconciliationService: files of banks and participants beside the journal."""

import asyncio
import functools
from typing import Final

from yikatong.core.access import access
from yikatong.core.access.callers import current
from yikatong.core.day import exceptions, participant_files, payments, reconcile
from yikatong.core.services.host import Host, Methods
from yikatong.core.writer import Work
from yikatong.v1 import reconciliation_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ReconciliationService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "IngestBankFile": host.of_bank(functools.partial(ingest_bank_file, host)),
        "IngestParticipantFile": functools.partial(ingest_participant_file, host),
        "ListDifferences": host.command(exceptions.list_differences),
        "GetReconciliation": host.command(payments.get_reconciliation),
        "ListInstructions": host.of_bank(host.command(payments.list_instructions)),
        "ReissueInstruction": host.command(payments.reissue_instruction),
    }


async def ingest_bank_file(host: Host, request: pb.IngestBankFileRequest, deadline: float | None) -> pb.IngestBankFileResponse:
    """ReconciliationService.IngestBankFile."""
    bank = await asyncio.to_thread(payments.read_bank_file, request)
    work = Work(command=lambda memory, time_us: payments.ingest_bank_file(memory, request, bank, time_us), deadline=deadline)
    response: pb.IngestBankFileResponse = await host.submit(work)
    return response


async def ingest_participant_file(
    host: Host, request: pb.IngestParticipantFileRequest, deadline: float | None
) -> pb.IngestParticipantFileResponse:
    """ReconciliationService.IngestParticipantFile."""
    other = await asyncio.to_thread(participant_files.read, request)
    access.check_participant(current(), other.participant)
    before = await host.ask(lambda memory: participant_files.before(memory, request, other), deadline)
    if isinstance(before, pb.IngestParticipantFileResponse):
        return before

    def own_taps() -> reconcile.OwnTaps:
        with host.core.journal.read() as reader:
            return reconcile.own_taps(reader, before, other.settlement_date)

    slots = await asyncio.to_thread(own_taps)
    own = await host.ask(lambda memory: participant_files.named(memory, slots), deadline)
    differences = await asyncio.to_thread(reconcile.reconcile_taps, own, other)
    work = Work(
        command=lambda memory, time_us: participant_files.book(memory, request, other, own, differences, time_us),
        deadline=deadline,
    )
    response: pb.IngestParticipantFileResponse = await host.submit(work)
    return response
