"""ExceptionService: what does not add up, adjustments by two people, and disputes."""

from typing import Final

from yikatong.core.day import disputes, exceptions
from yikatong.core.day.day import Day
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import exception_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ExceptionService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "TakeUpException": host.of_day(Day.take_up),
        "ListExceptions": host.command(exceptions.list_exceptions),
        "GetException": host.command(exceptions.get_exception),
        "AssignException": host.command(exceptions.assign_exception),
        "ResolveException": host.command(exceptions.resolve_exception),
        "ProposeAdjustment": host.command(exceptions.propose_adjustment),
        "ApproveAdjustment": host.command(exceptions.approve_adjustment),
        "RejectAdjustment": host.command(exceptions.reject_adjustment),
        "GetAdjustment": host.command(exceptions.get_adjustment),
        "OpenDispute": host.command(disputes.open_dispute),
        "RespondToDispute": host.command(disputes.respond_to_dispute),
        "DecideDispute": host.command(disputes.decide_dispute),
        "WithdrawDispute": host.command(disputes.withdraw_dispute),
        "GetDispute": host.command(disputes.get_dispute),
        "ListDisputes": host.command(disputes.list_disputes),
    }
