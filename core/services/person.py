"""PersonService: who holds a card."""

from typing import Final

from yikatong.core.identity import persons
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import person_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["PersonService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    return {
        "RegisterPerson": host.keyed(persons.register_person),
        "GetPerson": host.keyed(persons.get_person),
        "CorrectPerson": host.then_destroyed(host.keyed(persons.correct_person)),
        "ErasePerson": host.then_destroyed(host.command_by(persons.erase_person)),
        "SetConcession": host.command_by(persons.set_concession),
        "CancelPendingConcession": host.command_by(persons.cancel_pending_concession),
        "ListConcessionsDue": host.command_by(persons.list_concessions_due),
    }
