"""bench journal: durable appends of group commits, 64, 1,024 and 8,192 records each.

Baseline: balances in LMDB updated in place, in durable batches of 1,024, of as many accounts as a city has cards."""

import hashlib
import tempfile
import time
from pathlib import Path

from yikatong.bench.inplace import BATCH, InPlaceLedger
from yikatong.bench.result import BenchResult, Progress, machine, median, percentile, timed
from yikatong.core.journal import RECORD_BYTES, Group, Journal
from yikatong.core.store import DataDirectory

SIZES = (64, 1_024, 8_192)


def run(accounts: int = 1_000_000, seconds: float = 3.0, *, progress: Progress) -> list[BenchResult]:
    """Records a second and latency of a commit, for each size of group; measured and baseline take turns."""
    with tempfile.TemporaryDirectory(prefix="yikatong-bench-") as folder, DataDirectory(Path(folder) / "data") as directory:
        journal = Journal(directory.journal)
        progress("filling the baseline", 0, 1)
        ledger = InPlaceLedger(Path(folder) / "inplace", accounts)
        progress("filling the baseline", 1, 1)
        records = {size: bytes(range(256)) * (size * RECORD_BYTES // 256) for size in SIZES}
        commits: dict[int, list[float]] = {size: [] for size in SIZES}
        updates: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end or not updates:
            for size in SIZES:
                group = Group(journal.next_sequence, size, records[size], b"", time.time_ns() // 1000)
                commits[size].append(timed(lambda group=group: journal.append(group)))  # type: ignore[misc]
            updates.append(timed(ledger.batch))
            progress("appending", min(int(time.monotonic() - end + seconds), int(seconds)), int(seconds) or 1)
        ledger.close()
        with journal.read() as reader:
            digest = hashlib.sha256(b"".join(entry.digest for entry in reader.entries(1))).hexdigest()[:16]
    baseline = BATCH / median(updates)
    results: list[BenchResult] = []
    for size in SIZES:
        value = size / median(commits[size])
        results.append(
            {
                "name": f"journal append, {size} records a group", "value": value, "unit": "records/s",
                "baseline": f"LMDB, random in-place updates of {accounts} accounts, durable batches of {BATCH}",
                "baseline_value": baseline, "ratio": value / baseline,
                "conditions": machine() | {
                    "cores_used": 1, "durability": "fsync a group", "record_bytes": RECORD_BYTES, "commits": len(commits[size]),
                },
                "result_hash": digest,
                "p50_ms": 1e3 * median(commits[size]), "p99_ms": 1e3 * percentile(commits[size], 0.99),
            }
        )  # fmt: skip
    return results
