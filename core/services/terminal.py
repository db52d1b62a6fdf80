"""TerminalService: terminals and whose they are."""

from typing import Final

from yikatong.core import commands
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import terminal_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["TerminalService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "RegisterTerminals": host.command(commands.register_terminals),
        "GetTerminal": host.command(commands.get_terminal),
    }
