"""Groups joined for one commit hold the same records, and each payload stays where its record says."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from yikatong.core import types
from yikatong.core.journal import Group, join

DAY_US = 86_400_000_000
NOON_US = 1_735_700_000_000_000


def group(first_sequence: int, count: int, with_payload: bool, time_us: int) -> Group:
    records = np.zeros(count, types.RECORD)
    records["sequence"] = np.arange(first_sequence, first_sequence + count)
    records["payload_place"][0] = with_payload
    return Group(first_sequence, count, records.tobytes(), b"\x03abc" if with_payload else b"", time_us)


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.sampled_from([0, 1000, DAY_US])), min_size=1, max_size=12))
def test_joined(parts: list[tuple[int, bool, int]]) -> None:
    groups, sequence, time_us = [], 1, NOON_US
    for count, with_payload, later_us in parts:
        time_us += later_us
        groups.append(group(sequence, count, with_payload, time_us))
        sequence += count
    joined = join(groups)
    assert b"".join(part.records for part in joined) == b"".join(part.records for part in groups)
    assert [part.first_sequence for part in joined] == np.cumsum([1, *(part.count for part in joined)])[:-1].tolist()
    assert [part.time_us for part in joined] == sorted(part.time_us for part in joined)
    assert len({part.time_us // DAY_US for part in joined}) == len({part.time_us // DAY_US for part in groups})
    for part in joined:
        records = np.frombuffer(part.records, types.RECORD)
        assert part.payloads == (b"\x03abc" if records["payload_place"].any() else b"")  # one payload, at its place
        assert np.count_nonzero(records["payload_place"]) <= 1


def test_what_can_be_one_value_is_one() -> None:
    plain = [group(i, 1, False, NOON_US) for i in range(1, 9)]
    assert len(join(plain)) == 1
    assert join(plain[:1]) == plain[:1]
    assert join([]) == []
