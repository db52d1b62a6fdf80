"""bench restart: from nothing to serving, with a journal whose tail no checkpoint stands for.

Baseline: the same tail applied by running its taps again through the engine, as a core that journalled requests would."""

import tempfile
import time
from pathlib import Path

from yikatong.bench.engine import BATCH, fill
from yikatong.bench.result import BenchResult, Progress, machine, median, timed
from yikatong.bench.taps import bench_key_set, random_taps
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.journal import Group, Journal
from yikatong.core.keys import key_sets
from yikatong.core.memory import EngineSettings, Memory
from yikatong.core.store import DataDirectory
from yikatong.core.tap import TapRules, run_taps

CHUNK = 1_000_000  # taps made at a time


def _grow(data: Path, cards: int, taps: int, tail: int, progress: Progress) -> float:
    """Make a data directory as a server would have left it when killed; seconds that the tail's taps took in the engine."""
    key_set, terminals = bench_key_set(), max(cards // 1000, 1)
    tail_s = 0.0
    with DataDirectory(data) as directory:
        journal = Journal(directory.journal)
        memory = Memory(directory, journal, [key_set], EngineSettings(hash_seed=7))
        memory.restore()

        def append() -> None:
            first, count, records, payloads = memory.engine.take_group()
            journal.append(Group(first, count, records, payloads, 1_735_700_000_000_000))

        fill(memory, cards, terminals, progress, append)
        done = 0
        while done < taps:
            if done == taps - tail:
                photograph = memory.photograph()
                memory.write_checkpoint(photograph, journal.head)
                memory.settle_checkpoint(photograph, written=True)
            n = min(CHUNK, (taps - tail if done < taps - tail else taps) - done)
            for request in random_taps(n, cards, terminals, key_set, seed=5, start=done).submit_requests(BATCH):
                begun = time.perf_counter()
                run_taps(memory, [request], [True], 1_735_700_000_000_000, TapRules())
                tail_s += time.perf_counter() - begun if done >= taps - tail else 0.0
                append()
            done += n
            progress("journalling taps", done, taps)
        assert memory.engine.imbalance_fen() == 0
        memory.close()
    return tail_s


def run(
    cards: int = 1_000_000, taps: int = 10_000_000, tail: int = 1_000_000, turns: int = 3, *, progress: Progress
) -> list[BenchResult]:
    """Seconds from starting the process until it serves, and of these how many the restore takes; killed in between."""
    with tempfile.TemporaryDirectory(prefix="yikatong-bench-") as name:
        folder = Path(name)
        key_sets.write(folder / "keys.toml", bench_key_set(), "The worked example of profile.md, for benches.")
        tail_s = _grow(folder / "data", cards, taps, tail, progress)
        starts: list[float] = []
        restores: list[float] = []
        for i in range(turns):
            with DataDirectory(folder / "data") as directory:
                memory = Memory(directory, Journal(directory.journal), [bench_key_set()], EngineSettings(hash_seed=i))
                restores.append(timed(memory.restore))
                assert memory.engine.next_sequence > taps
                memory.close()
            begun = time.perf_counter()
            server = EmbeddedServer(folder / "data", folder / "keys.toml", "--checkpoint-s", "86400")
            starts.append(time.perf_counter() - begun)
            server.kill()
            progress("restarting", i + 1, turns)
    conditions = machine() | {
        "cards": cards, "journalled_taps": taps, "tail_taps": tail, "files": "in the page cache", "durability": "fsync a group",
        "restore_s": round(median(restores), 3),
    }  # fmt: skip
    return [
        {
            "name": "restart, process start to serving", "value": median(starts), "unit": "s",
            "baseline": "the tail's taps run again through the engine, nothing else", "baseline_value": tail_s,
            "ratio": median(starts) / tail_s, "conditions": conditions,
        }
    ]  # fmt: skip
