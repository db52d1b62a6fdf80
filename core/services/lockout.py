"""LockoutService: who is locked out after wrong proofs."""

from typing import Final

from yikatong.core.access import lockout
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import lockout_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["LockoutService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "GetLockout": host.command(lockout.get_lockout),
        "ListLockouts": host.command(lockout.list_lockouts),
        "LiftLockout": host.command(lockout.lift_lockout),
    }
