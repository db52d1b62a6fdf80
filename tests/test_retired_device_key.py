"""A phone that was bound under a key that is retired is told so by its own code, and no sooner than the grace is over."""

import functools

import pytest
from harness import Harness
from test_e_cards import bind, core, issue

from yikatong.core.cards import codes
from yikatong.core.cards.device_proof import make_proof, message_of
from yikatong.core.keys.life import KeyState, Life
from yikatong.core.keys.provider import KeyReference, Purpose
from yikatong.core.keys.software import HeldKey, SoftwareProvider
from yikatong.core.types import Result
from yikatong.ext.key_holder import KeyHolder
from yikatong.v1 import code_service_pb2

__all__ = ["core"]  # the fixture
OLD, NEW = KeyReference(Purpose.DEVICE, 1), KeyReference(Purpose.DEVICE, 2)


@pytest.mark.parametrize(
    ("past_grace_s", "fate", "result"),
    [
        (-1, None, Result.ACCEPTED),
        (0, None, Result.KEY_RETIRED),
        (1, None, Result.KEY_RETIRED),
        (-1, KeyState.COMPROMISED, Result.KEY_RETIRED),
    ],
)
def test_a_proof_under_a_retired_key(core: Harness, past_grace_s: int, fate: KeyState | None, result: Result) -> None:
    issue(core)
    device_id, key = bind(core)
    held = {
        OLD: HeldKey(KeyHolder.take(bytearray(range(16))), life=Life(0, 1, core.now_s - past_grace_s, fate)),
        NEW: HeldKey(KeyHolder.random()),
    }
    rotated = SoftwareProvider(held, now_s=lambda: core.now_s)
    proof = make_proof(key, device_id, message_of("CodeService/GetCode", device_id), core.now_us, 1)
    request = code_service_pb2.GetCodeRequest(device_id=device_id, proof=proof)
    assert core.ask(functools.partial(codes.get_code, rotated, bytes(18)), request).result == result


def test_a_key_that_is_gone(core: Harness) -> None:
    issue(core)
    device_id, key = bind(core)
    rotated = SoftwareProvider({NEW: bytes(16)})
    proof = make_proof(key, device_id, message_of("CodeService/GetCode", device_id), core.now_us, 1)
    request = code_service_pb2.GetCodeRequest(device_id=device_id, proof=proof)
    assert core.ask(functools.partial(codes.get_code, rotated, bytes(18)), request).result == Result.UNKNOWN_KEY
