"""AuthorizationService: holds, captures, refunds, reversals."""

import functools
from typing import Final

from yikatong.core import commands, limits
from yikatong.core.acquiring import authorizations
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import authorization_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["AuthorizationService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "Authorize": host.swept(functools.partial(authorizations.authorize, host.purse_rules)),
        "BatchAuthorize": functools.partial(batch_authorize, host),
        "IncrementAuthorization": host.swept(functools.partial(authorizations.increment_authorization, host.purse_rules)),
        "Capture": host.swept(authorizations.capture),
        "VoidAuthorization": host.swept(authorizations.void_authorization),
        "Refund": host.swept(authorizations.refund),
        "ReverseTransaction": host.swept(authorizations.reverse_transaction),
        "GetAuthorization": host.swept(authorizations.get_authorization),
        "ListAuthorizations": host.swept(authorizations.list_authorizations),
    }


async def batch_authorize(host: Host, request: pb.BatchAuthorizeRequest, deadline: float | None) -> pb.BatchAuthorizeResponse:
    """AuthorizationService.BatchAuthorize, part by part. If one fails, those before it are found done when the batch comes
    again."""
    items = request.requests
    commands.check_items("requests", items)
    authorize = host.swept(functools.partial(authorizations.batch_authorize, host.purse_rules))
    response = pb.BatchAuthorizeResponse()
    for at in range(0, len(items), limits.AUTHORIZE_ITEMS_MAX):
        part = pb.BatchAuthorizeRequest(requests=items[at : at + limits.AUTHORIZE_ITEMS_MAX])
        answered = await authorize(part, deadline)
        assert isinstance(answered, pb.BatchAuthorizeResponse)
        response.MergeFrom(answered)
    return response
