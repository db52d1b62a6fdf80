"""AuditService: who was shown what."""

import functools
from typing import Final

from yikatong.core.access import audit
from yikatong.core.identity import persons
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import audit_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["AuditService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "ListAccesses": host.command_by(functools.partial(audit.list_accesses, persons.person_of_card)),
        "ListCallerAccesses": host.command_by(audit.list_caller_accesses),
    }
