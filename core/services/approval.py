"""ApprovalService: what waits for a second operator."""

from typing import Final

from yikatong.core.access import approvals
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import approval_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ApprovalService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "ListApprovals": host.command(approvals.list_approvals),
        "GetApproval": host.oversight.get_approval,
        "ApproveRequest": host.oversight.approve,
        "RejectRequest": host.command_by(approvals.reject),
    }
