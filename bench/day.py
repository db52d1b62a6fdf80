"""bench day: a day's window cleared, netted, settled (files written, paid by a simulated bank) and sealed, step by step, and the
memory that it takes.

The window is made as the engine would have made it, by running its taps; what the engine does not look at (the chip's balances,
the fare before concessions, the card's city, the terminal's clock) is then written into the records, so that balances join on to
each other, and concessions, transfers between operators and other cities' cards all occur. One tap in two thousand is torn.

Baseline: the same done for a sample by a loop over the records in plain Python, hashlib's SM3 in the tree, as long as it would
take for all of them."""

import datetime
import hashlib
import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np

from yikatong.bench.engine import BATCH, fill
from yikatong.bench.result import BenchResult, Progress, machine
from yikatong.bench.taps import AMOUNT_FEN, ATC_FIRST, SEQUENCE_FIRST, Taps, bench_key_set, make_taps
from yikatong.clients.bank import return_file
from yikatong.core import types
from yikatong.core.day import payments
from yikatong.core.day.day import Day, DayRules
from yikatong.core.journal import Group, Journal, sm3
from yikatong.core.local import LocalCore
from yikatong.core.memory import EngineSettings, Memory
from yikatong.core.rules.agreements import Agreements
from yikatong.core.rules.source import Source
from yikatong.core.sm2 import PrivateKey
from yikatong.core.store import DataDirectory
from yikatong.core.tap import TapRules, run_taps
from yikatong.core.types import Result
from yikatong.v1 import clearing_service_pb2, reconciliation_service_pb2, settlement_service_pb2, tap_service_pb2

DATE: Final = 20250101
DATE_BEFORE: Final = 20241231  # cards and terminals were registered then
TIME_US: Final = 1_735_700_000_000_000  # 10:53 of that day in UTC+8
CHUNK: Final = 500_000  # taps made at a time
TORN: Final = 2_000  # one in so many
CHIP_FEN: Final = 1_000_000  # on each chip at the day's beginning
MIB: Final = 1 << 20


def agreements(operators: int) -> Agreements:
    """All kinds of terms; every operator and its neighbour divide transfers."""
    parts = ['version = "bench"\ncity = 5980\n']
    for i in range(operators):
        fee = "rate_bp = 60, minimum_fen = 1, cap_fen = 50" if i % 2 else 'rate_bp = 60, per = "window"'
        parts.append(
            f'[[agreement]]\nparticipant = "operator:operator {i}"\nfrom = 2025-01-01\nname = "Operator {i}"\n'
            f'bank_code = "105598000001"\naccount_number = "{10**12 + i}"\ncategory = "4131"\nappeal_days = 30\n'
            f"deny_list_hours = 24\nfee = {{ {fee} }}\nconcessions = {{ city = 7, operator = 3 }}\n"
        )
    for i in range(0, operators - 1, 2):
        parts.append(
            f'[[transfer]]\noperators = ["operator:operator {i}", "operator:operator {i + 1}"]\nfrom = 2025-01-01\n'
            "within_minutes = 60\nshares = [3, 2]\n"
        )
    for i, participant in enumerate(("float", "fees", "subsidy:city", "city:4403")):
        parts.append(
            f'[[account]]\nparticipant = "{participant}"\nfrom = 2024-01-01\nname = "{participant}"\n'
            f'bank_code = "105598000001"\naccount_number = "{2 * 10**12 + i}"\n'
        )
    return Agreements(Source("bench", "\n".join(parts).encode()))


def _dress(records: Any, rank: Any, place: Any, taps: int) -> None:
    """What the engine does not look at, by each tap's rank among its card's and its place in the day."""
    second = (place * 57_600 // max(taps, 1) + 21_600).astype(np.int64)  # from 06:00 to 22:00
    records["local_time"] = second // 3600 * 10_000 + second // 60 % 60 * 100 + second % 60
    records["chip_before_fen"] = CHIP_FEN - AMOUNT_FEN * rank
    records["chip_after_fen"] = CHIP_FEN - AMOUNT_FEN * (rank + 1)
    records["amount_due_fen"] = AMOUNT_FEN + np.where(place % 3 == 0, AMOUNT_FEN, 0)
    records["city"] = np.where(place % 50 == 0, 4403, 5980)


def grow(data: Path, cards: int, taps: int, operators: int, progress: Progress) -> None:
    """Make the data directory, with a checkpoint at the end."""
    key_set, terminals = bench_key_set(), max(cards // 500, operators)
    random = np.random.default_rng(11)
    card = np.arange(taps, dtype=np.int64) % cards
    random.shuffle(card)
    order = np.argsort(card, kind="stable")
    ordered = card[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    rank = np.empty(taps, np.int64)
    rank[order] = np.arange(taps) - np.maximum.accumulate(np.where(first, np.arange(taps), 0))
    del order, ordered, first
    with DataDirectory(data) as directory:
        journal = Journal(directory.journal)
        memory = Memory(directory, journal, [key_set], EngineSettings(hash_seed=7))
        memory.restore()

        def append(dress: Any = None) -> None:
            sequence, count, records, payloads = memory.engine.take_group()
            if dress is not None:
                array = np.frombuffer(bytearray(records), types.RECORD)
                dress(array)
                records = array.tobytes()
            journal.append(Group(sequence, count, records, payloads, TIME_US))

        fill(memory, cards, terminals, progress, append, operators, TIME_US - 86_400_000_000)
        for start in range(0, taps, CHUNK):
            part = slice(start, min(start + CHUNK, taps))
            n = part.stop - start
            made = make_taps(
                card[part],
                ATC_FIRST + rank[part],
                random.integers(0, terminals, n),
                SEQUENCE_FIRST + start + np.arange(n),
                key_set,
            )
            _tear(made, start)
            for at, request in zip(range(start, part.stop, BATCH), made.submit_requests(BATCH), strict=True):
                these = slice(at, min(at + BATCH, part.stop))
                run_taps(memory, [request], [True], TIME_US, TapRules())
                append(lambda array, these=these: _dress(array, rank[these], np.arange(these.start, these.stop), taps))
            progress("journalling the day", part.stop, taps)
        photograph = memory.photograph()
        memory.write_checkpoint(photograph, journal.head)
        memory.settle_checkpoint(photograph, written=True)
        memory.close()


def _tear(made: Taps, start: int) -> None:
    """Some cards are pulled away: their MAC is all ones."""
    first = made.messages[0].tobytes()
    at = first.index(tap_service_pb2.Tap.FromString(first).mac)  # all messages are of one form
    torn = np.flatnonzero((start + np.arange(len(made))) % TORN == 7)
    made.messages[torn, at : at + 4] = 0xFF


class _Peak(threading.Thread):
    """Watches what the process holds: its own memory and all that is resident, the mapped journal with it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own_bytes = self.resident_bytes = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self._look()

    def _look(self) -> None:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own, resident = (int(lines[name].split()[0]) << 10 for name in ("RssAnon", "VmRSS"))
        self.own_bytes, self.resident_bytes = max(self.own_bytes, own), max(self.resident_bytes, resident)

    def end(self) -> None:
        self._look()
        self._ended.set()


def _measure(data: Path, operators: int, out: Any) -> None:
    """In a process of its own, so that its memory is the day's and nothing else: seconds of each step, and peaks."""
    with LocalCore(data) as local:
        day = Day(local.core.journal.read, local.ask, DayRules(data / "clearing", agreements(operators), PrivateKey.make()))
        watch = _Peak()
        if Path("/proc/self/status").exists():
            watch.start()
        seconds: dict[str, float] = {}

        def step(name: str, work: Any) -> Any:
            begun = time.perf_counter()
            answer = work()
            seconds[name] = time.perf_counter() - begun
            assert answer in (None, Result.ACCEPTED) or answer.result == Result.ACCEPTED, answer
            return answer

        for date in (DATE_BEFORE, DATE):
            request_ids = iter(date.to_bytes(15, "big") + bytes([i]) for i in range(4))
            close = clearing_service_pb2.CloseWindowRequest(request_id=next(request_ids), settlement_date=date)
            clear = clearing_service_pb2.ClearWindowRequest(request_id=next(request_ids), settlement_date=date)
            seal = settlement_service_pb2.SealWindowRequest(request_id=next(request_ids), settlement_date=date)
            settle = settlement_service_pb2.SettleWindowRequest(request_id=next(request_ids), settlement_date=date)
            step("close", lambda close=close: day.close(close))
            window = step("clear and net", lambda clear=clear: day.clear(clear)).window
            step("settle", lambda settle=settle: day.settle(settle))
            step("pay", lambda date=date: _pay(local, date))
            step("seal", lambda seal=seal: day.seal(seal))
        watch.end()
        digest = hashlib.sha256()
        for total in window.outcomes:
            digest.update(f"{total.outcome} {total.count} {total.amount_fen}\n".encode())
        for position in day.netted(DATE).positions:
            digest.update(f"{position.participant} {position.net_fen}\n".encode())
        out.send((seconds, watch.own_bytes, watch.resident_bytes, digest.hexdigest()))


def _pay(local: LocalCore, date: int) -> Any:
    """A bank that pays everything, and its return file."""
    orders = local.ask(lambda memory, _: payments.instructions_of(memory, date))
    if not orders:
        return None
    request = reconciliation_service_pb2.IngestBankFileRequest(
        request_id=date.to_bytes(16, "big"), name="bank.csv", content=return_file(f"bench-{date}", orders, TIME_US)
    )
    bank = payments.read_bank_file(request)
    return local.ask(lambda memory, time_us: payments.ingest_bank_file(memory, request, bank, time_us))


# ---- the baseline ----


def _naive(data: Path, operators: int, sample: int) -> tuple[float, float]:
    """Seconds a tap of clearing and netting, and of the tree, in plain Python."""
    terms = agreements(operators)
    day = datetime.date(2025, 1, 1)
    with DataDirectory(data, readonly=True) as directory, Journal(directory.journal).read() as reader:
        last = reader.last()
        assert last is not None
        end = last.first_sequence + last.count - 1
        raw = [reader.records([sequence]) for sequence in range(end - sample + 1, end + 1)]
    with DataDirectory(data, readonly=True) as directory:
        memory = Memory(directory, Journal(directory.journal), [], EngineSettings())
        memory.restore()
        owner = [f"operator:{memory.account_operators[account]}" for account in memory.terminal_accounts]
        memory.close()
    begun = time.perf_counter()
    counts: Counter[int] = Counter()
    money: Counter[tuple[str, str]] = Counter()
    newest: dict[int, tuple[int, int]] = {}
    last_at: dict[int, tuple[str, int]] = {}
    gaps = 0
    for data_of_record in raw:
        record = dict(zip(types.RECORD.names or (), np.frombuffer(data_of_record, types.RECORD)[0].tolist(), strict=True))
        counts[record["result"]] += 1
        if record["result"] != Result.ACCEPTED:
            continue
        operator, amount_fen = owner[record["terminal"]], record["amount_fen"]
        agreement = terms.find(operator, day)
        assert agreement is not None
        fee = agreement.fee
        money[operator, "taps"] += amount_fen
        money[operator, "concessions"] += max(record["amount_due_fen"] - amount_fen, 0)
        money[operator, "fees"] += min(max((amount_fen * fee.rate_bp + 5000) // 10000, fee.minimum_fen), fee.cap_fen)
        if record["city"] != 5980:
            money[f"city:{record['city']}", "taps"] -= amount_fen
        card, atc = record["card"], record["atc"]
        before = newest.get(card)
        if before and (before[0] + 1 != atc or before[1] != record["chip_before_fen"]):
            gaps += 1
        newest[card] = atc, record["chip_after_fen"]
        came_from = last_at.get(card)
        if came_from and came_from[0] != operator:
            money[operator, "transfers"] += amount_fen + came_from[1]
        last_at[card] = operator, amount_fen
    cleared_s = (time.perf_counter() - begun) / sample
    begun = time.perf_counter()
    level = [sm3(b"\0" + record) for record in raw]
    while len(level) > 1:
        pairs = [sm3(b"\1" + left + right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return cleared_s, (time.perf_counter() - begun) / sample


def run(
    cards: int = 2_000_000, taps: int = 10_000_000, operators: int = 200, sample: int = 100_000, *, progress: Progress
) -> list[BenchResult]:
    """Seconds of each step."""
    with tempfile.TemporaryDirectory(prefix="yikatong-bench-") as name:
        data = Path(name) / "data"
        grow(data, cards, taps, operators, progress)
        naive_clear_s, naive_seal_s = _naive(data, operators, sample)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_measure, args=(data, operators, theirs))
        child.start()
        theirs.close()
        try:
            seconds, own_bytes, resident_bytes, digest = ours.recv()
        except EOFError as error:
            raise RuntimeError("the measured process ended before it was done") from error
        finally:
            child.join()
        progress("clearing and sealing", 1, 1)
    conditions = machine() | {
        "cards": cards, "taps": taps, "operators": operators, "close_s": round(seconds["close"], 3),
        "settle_s": round(seconds["settle"], 3), "pay_s": round(seconds["pay"], 3),
        "own_memory_mib": own_bytes // MIB, "resident_mib": resident_bytes // MIB,
        "files": "in the page cache", "durability": "fsync a step",
    }  # fmt: skip
    baseline = f"a loop in plain Python over {sample:,} taps, times as many as there are"
    return [
        {
            "name": f"day, {what}", "value": seconds[what], "unit": "s", "baseline": baseline, "baseline_value": a_tap_s * taps,
            "ratio": seconds[what] / (a_tap_s * taps), "conditions": conditions, "result_hash": digest,
        }
        for what, a_tap_s in (("clear and net", naive_clear_s), ("seal", naive_seal_s))
    ]  # fmt: skip
