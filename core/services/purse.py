"""PurseService: purses beside the account."""

import functools
from typing import Final

from yikatong.core.acquiring import purses
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import purse_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["PurseService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "OpenPurse": host.swept(functools.partial(purses.open_purse, host.purse_rules)),
        "FundPurse": host.swept(purses.fund_purse),
        "ListPurses": host.swept(functools.partial(purses.list_purses, host.purse_rules)),
        "ClosePurse": host.swept(purses.close_purse),
    }
