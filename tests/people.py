"""Made-up people for tests: citizen numbers whose check character is right by a rule of its own."""

import secrets
from collections.abc import Iterator

from yikatong.core.keys.provider import KeyReference, Purpose
from yikatong.core.keys.software import SoftwareProvider
from yikatong.v1 import person_service_pb2 as pb


def citizen_number(serial: int, district: str = "441602", birth: str = "19900307") -> str:
    """The `serial`-th of a day. ISO 7064 MOD 11-2, digit by digit, and not by weights."""
    first = f"{district}{birth}{serial:03d}"
    rest = 0
    for digit in first:
        rest = (rest + int(digit)) * 2 % 11
    return first + "10X98765432"[rest]


def person(serial: int = 1, **fields: str) -> pb.PersonData:
    known = {
        "name": f"王小明{serial}", "citizen_number": citizen_number(serial), "phone": "13800138000",
        "address": "河源市源城区东城路1号", "district": "441602",
    }  # fmt: skip
    return pb.PersonData(**(known | fields))


def new_id() -> bytes:
    return secrets.token_bytes(16)


def provider(*versions: int) -> SoftwareProvider:
    """Keys of these versions (1 unless given) for persons and their devices, random."""
    return SoftwareProvider(dict(keys(*versions)))


def keys(*versions: int) -> Iterator[tuple[KeyReference, bytes]]:
    for version in versions or (1,):
        for purpose in (Purpose.PERSON_DATA, Purpose.PERSON_INDEX, Purpose.DEVICE):
            yield KeyReference(purpose, version), secrets.token_bytes(16)
