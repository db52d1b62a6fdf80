"""MerchantService: who takes money."""

from typing import Final

from yikatong.core.acquiring import merchants
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import merchant_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["MerchantService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "RegisterMerchants": host.command(merchants.register_merchants),
        "GetMerchant": host.command(merchants.get_merchant),
    }
