"""Segments of counters in the state file, against a dict."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import Harness, limited
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yikatong.core import limits
from yikatong.core.errors import CommitFailed
from yikatong.core.seen import CARDS, TERMINALS, Segments, add_segment
from yikatong.core.store import DataDirectory, Store

KEY_MAX = (1 << 64) - 2  # no key is all ones: see ext/index.h


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Store]:
    with DataDirectory(tmp_path / "data") as directory:
        yield directory.state


def add(state: Store, kind: bytes, found: dict[int, int]) -> None:
    """What a checkpoint does with the counters that it photographed."""
    keys = np.array(sorted(found), np.uint64)
    sequences = np.array([found[key] for key in sorted(found)], np.uint64)
    with state.read() as reader, state.write() as writer:
        add_segment(writer, Segments(reader), kind, keys, sequences)


def find(state: Store, kind: bytes, keys: list[int]) -> list[int]:
    with state.read() as reader:
        return Segments(reader).find(kind, keys)


def sizes(state: Store, kind: bytes) -> list[int]:
    """How many keys each segment holds, oldest first; each must be in order."""
    with state.read() as reader:
        found = []
        for segment in Segments(reader)._kinds[kind]:
            assert len(segment.keys) == len(segment.sequences)
            assert (np.diff(segment.keys.astype(object)) > 0).all()
            found.append(len(segment.keys))
    return found


# ---- against a dict ----


class Twin:
    """The same counters as segments and in dicts."""

    def __init__(self, state: Store) -> None:
        self.state = state
        self.dicts: dict[bytes, dict[int, int]] = {CARDS: {}, TERMINALS: {}}
        self.sequence = 1

    def add(self, kind: bytes, keys: set[int]) -> None:
        fresh = {}
        for key in sorted(keys - set(self.dicts[kind])):  # a counter is used up once, so no key comes twice
            fresh[key] = self.sequence
            self.sequence += 1
        self.dicts[kind] |= fresh
        add(self.state, kind, fresh)

    def agree(self, others: list[int]) -> None:
        for kind, known in self.dicts.items():
            keys = [*known, *others]
            assert find(self.state, kind, keys) == [known.get(key, 0) for key in keys]
            assert sum(sizes(self.state, kind) or [0]) == len(known)


keys = st.integers(0, 40) | st.integers(0, KEY_MAX) | st.integers(KEY_MAX - 3, KEY_MAX)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from((CARDS, TERMINALS)), st.sets(keys, max_size=20)), max_size=25),
    st.lists(keys, max_size=10),
)
def test_finds_what_a_dict_finds(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[bytes, set[int]]], others: list[int]
) -> None:
    with DataDirectory(tmp_path_factory.mktemp("seen") / "data") as directory:
        twin = Twin(directory.state)
        for kind, batch in rounds:
            twin.add(kind, batch)
        twin.agree(others)


def test_many_checkpoints(state: Store) -> None:
    """Checkpoints of very different sizes, as on a day from its quiet hours to its peak."""
    chance = np.random.default_rng(1)
    twin = Twin(state)
    for _ in range(120):
        size = int(10 ** chance.uniform(0, 3.5))
        twin.add(CARDS, set(chance.integers(0, 1 << 40, size).tolist()))
    twin.agree(chance.integers(0, 1 << 40, 100).tolist())
    assert len(sizes(state, CARDS)) < 24


# ---- merging ----

MERGES = """
what                       | added, one checkpoint after another | segments then
one                        | 10                                  | 10
like ones wait             | 10 10 10                            | 10 10 10
the fourth merges          | 10 10 10 10                         | 40
and so on                  | 10 10 10 10 10 10 10                | 40 10 10 10
twice                      | 10 10 10 10 10 10 10 10             | 40 40
sixteen are one            | 10 10 10 10 10 10 10 10 10 10 10 10 10 10 10 10 | 160
a large one is left alone  | 90 10 10 10 10                      | 90 40
a large one in between     | 10 10 90 10                         | 10 10 90 10
twice as large is alike    | 20 20 20 10                         | 70
no larger than twice       | 21 20 20 10                         | 21 20 20 10
a large one takes small    | 1 1 1 50                            | 53
nothing adds nothing       | 10 0 10                             | 10 10
"""


@pytest.mark.parametrize("row", MERGES.strip().splitlines()[1:], ids=lambda row: row.split("|")[0].strip())
def test_merges(state: Store, row: str) -> None:
    added, wanted = ([int(size) for size in part.split()] for part in row.split("|")[1:])
    twin, start = Twin(state), 0
    for size in added:
        twin.add(CARDS, set(range(start, start + size)))
        start += size
    assert sizes(state, CARDS) == wanted
    twin.agree([start, KEY_MAX])


def test_largest_are_left_alone(state: Store) -> None:
    with limited(SEGMENT_KEYS_MAX=25):
        twin = Twin(state)
        for start in range(0, 160, 10):
            twin.add(CARDS, set(range(start, start + 10)))
        # 40 keys are more than 25: such segments are never merged again.
        assert sizes(state, CARDS) == [40, 40, 40, 40]
        twin.agree([160])


def test_kinds_are_kept_apart(state: Store) -> None:
    add(state, CARDS, {7: 1})
    add(state, TERMINALS, {7: 2, 8: 3})
    assert find(state, CARDS, [7, 8]) == [1, 0]
    assert find(state, TERMINALS, [7, 8]) == [2, 3]


def test_no_segments(state: Store) -> None:
    assert find(state, CARDS, [1, 2]) == [0, 0]
    add(state, CARDS, {})
    assert find(state, CARDS, []) == []


def test_failed_checkpoint_leaves_segments_alone(state: Store) -> None:
    """The merge deletes old segments in the same transaction that puts the new one: both or neither."""

    def broken_checkpoint() -> None:
        with state.read() as reader, state.write() as writer:
            add_segment(writer, Segments(reader), CARDS, np.array([9], np.uint64), np.array([9], np.uint64))
            raise OSError("no space left on device")

    for start in range(3):
        add(state, CARDS, {start: start + 1})
    with pytest.raises(CommitFailed):
        broken_checkpoint()
    assert sizes(state, CARDS) == [1, 1, 1]
    assert find(state, CARDS, [0, 1, 2, 9]) == [1, 2, 3, 0]


def test_open_picture_does_not_change(tmp_path: Path) -> None:
    """The writer goes on finding in the old segments while a checkpoint merges and deletes them."""
    with Harness(tmp_path / "data") as core:
        state = core.directory.state
        for start in range(limits.SEGMENTS_MERGE - 1):
            add(state, CARDS, {start: start + 1})
        core.memory.refresh()
        before = core.memory.segments
        assert before is not None
        add(state, CARDS, {9: 9})
        assert sizes(state, CARDS) == [4]
        assert before.find(CARDS, [0, 1, 2, 9]) == [1, 2, 3, 0]
        core.memory.refresh()
        assert core.memory.segments is not None
        assert core.memory.segments.find(CARDS, [0, 1, 2, 9]) == [1, 2, 3, 9]
