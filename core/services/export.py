"""ExportService: permits to write the journal out."""

from typing import Final

from yikatong.core.access import export_permits
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import export_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ExportService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "PermitExport": host.command(export_permits.permit_export),
        "ListExportPermits": host.command(export_permits.list_export_permits),
    }
