"""A component that is all zeros is none: whoever has the others would have the key."""

import pytest

from yikatong.core.keys.store import CeremonyRefused
from yikatong.core.keys.transfer import join
from yikatong.ext.key_holder import KeyHolder


@pytest.mark.parametrize(("count", "zero"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_a_component_of_zeros_is_refused(count: int, zero: int) -> None:
    parts = [KeyHolder.random() for _ in range(count)]
    parts[zero] = KeyHolder.take(bytearray(16))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.xor(part)
    with pytest.raises(CeremonyRefused, match="zeros"):
        join(parts, whole.check_value())


def test_others_make_the_key() -> None:
    parts = [KeyHolder.random() for _ in range(3)]
    whole = parts[0].xor(parts[1]).xor(parts[2])
    assert join(parts, whole.check_value()).same(whole)
