"""CardService: cards that are registered without an application, and what riders they carry."""

from typing import Final

from yikatong.core import commands
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import card_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["CardService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "RegisterCards": host.command(commands.register_cards),
        "GetCard": host.command(commands.get_card),
        "SetEntitlement": host.command(commands.set_entitlement),
    }
