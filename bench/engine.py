"""bench engine: decode → lookup → verify → decide → post → respond on one core, without a disk; memory a card; and the same with
a tariff, caps and an overdraft on.

Baseline: the same taps taken as one would write it first in Python: the protobuf runtime, OpenSSL's SM4 one tap at a time, a
dict of balances. With a tariff: the same taps of profile 2 without one, in turns."""

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from yikatong.bench.naive import NaiveCore
from yikatong.bench.result import BenchResult, Progress, machine, median
from yikatong.bench.taps import (
    AMOUNT_FEN,
    bench_key_set,
    card_number,
    random_taps,
    register_card_requests,
    register_terminal_requests,
)
from yikatong.bench.tariff import CHARGED_FEN, OVERDRAFT_FEN, compile_tariff
from yikatong.core import commands
from yikatong.core.journal import Journal
from yikatong.core.memory import EngineSettings, Memory
from yikatong.core.store import DataDirectory
from yikatong.core.tap import TapRules, run_taps
from yikatong.ext import sm4
from yikatong.v1 import account_service_pb2, tap_service_pb2

BATCH = 8_192
FUNDS_FEN = 1_000_000
TIME_US = 1_735_700_000_000_000


def fill(
    memory: Memory,
    cards: int,
    terminals: int,
    progress: Progress,
    append: Callable[[], object] | None = None,
    operators: int = 10,
    time_us: int = 1,
) -> None:
    """Register and fund cards, and register terminals; `append` takes each group for the journal, else it is dropped."""
    append = append or memory.engine.take_group
    for request in register_terminal_requests(terminals, BATCH, operators):
        commands.register_terminals(memory, request, time_us)
        append()
    done = 0
    for request_of_cards in register_card_requests(cards, BATCH):
        commands.register_cards(memory, request_of_cards, time_us)
        for card in request_of_cards.cards:
            top_up = account_service_pb2.TopUpRequest(card_number=card.card_number, amount_fen=FUNDS_FEN)
            memory.engine.top_up(memory.engine.find_card(card.card_number), FUNDS_FEN, time_us, top_up.SerializeToString())
        append()
        done += len(request_of_cards.cards)
        progress("filling the engine", done, cards)


def run(
    cards: int = 1_000_000, taps: int = 2_000_000, naive_taps: int = 4_000, turns: int = 5, *, progress: Progress
) -> list[BenchResult]:
    """Taps a second on one core; and bytes of memory a card, all of the engine counted."""
    key_set, terminals = bench_key_set(), max(cards // 1000, 1)
    with tempfile.TemporaryDirectory(prefix="yikatong-bench-") as folder, DataDirectory(Path(folder)) as directory:
        memory = Memory(directory, Journal(directory.journal), [key_set], EngineSettings(hash_seed=7))
        memory.restore()
        fill(memory, cards, terminals, progress)
        requests = random_taps(taps, cards, terminals, key_set, seed=1).submit_requests(BATCH)
        naive = NaiveCore(key_set, cards, FUNDS_FEN, card_number)
        naive_requests = random_taps(naive_taps, cards, terminals, key_set, seed=1).submit_requests(min(1000, naive_taps))
        rates: list[float] = []
        naive_rates: list[float] = []
        digest = hashlib.sha256()
        accepted = 0
        a_turn = max(len(requests) // turns, 1)
        for turn in range(min(turns, len(requests))):
            batches = requests[turn * a_turn : (turn + 1) * a_turn]
            begun = time.perf_counter()
            responses = []
            for request in batches:
                responses.extend(run_taps(memory, [request], [True], TIME_US, TapRules()).responses)
                memory.engine.take_group()
            seconds = time.perf_counter() - begun
            count = 0
            for response in responses:
                assert isinstance(response, bytes)
                outcomes = tap_service_pb2.SubmitTapsResponse.FromString(response).outcomes
                count += len(outcomes)
                accepted += sum(outcome.result == 1 and not outcome.duplicate for outcome in outcomes)
                digest.update(response)
            rates.append(count / seconds)
            part = naive_requests[turn % len(naive_requests)]
            begun = time.perf_counter()
            done = naive.submit(part)
            naive_rates.append(done / (time.perf_counter() - begun))
            progress("running taps", turn + 1, turns)
        assert accepted == min(turns, len(requests)) * a_turn * BATCH or accepted == taps, accepted
        assert memory.engine.imbalance_fen() == 0
        sizes = memory.engine.memory_bytes()
        bytes_a_card = (sizes["tables"] + sizes["indexes"]) / cards
        memory.close()
    del memory
    tariff_rates, tariff_hash, sizes_with_rides = run_with_tariff(cards, taps, turns, progress)
    conditions = machine() | {
        "cards": cards,
        "taps": taps,
        "batch": BATCH,
        "cores_used": 1,
        "durability": "none",
        "sm4": sm4.path(),
    }
    result_hash = digest.hexdigest()[:16]
    value, baseline = median(rates), median(naive_rates)
    return [
        {
            "name": "engine", "value": value, "unit": "taps/s",
            "baseline": "protobuf runtime, OpenSSL one tap at a time, dict of balances, in Python", "baseline_value": baseline,
            "ratio": value / baseline, "conditions": conditions, "result_hash": result_hash,
        },
        {
            "name": "engine memory", "value": bytes_a_card, "unit": "bytes/card", "baseline": "the bar of 256 bytes",
            "baseline_value": 256.0, "ratio": bytes_a_card / 256,
            "conditions": conditions
            | {"counters_seen_bytes_a_tap": round(sizes["seen"] / taps, 1), "buffers_bytes": sizes["buffers"]},
            "result_hash": result_hash,
        },
        {
            "name": "engine, tariffs on", "value": median(tariff_rates["on"]), "unit": "taps/s",
            "baseline": "the same taps of profile 2 without a tariff", "baseline_value": median(tariff_rates["off"]),
            "ratio": median(tariff_rates["on"]) / median(tariff_rates["off"]),
            "conditions": conditions
            | {"tariff": "Shenzhen, and caps a day, a week, a month", "tables_bytes_a_card": round(sizes_with_rides / cards, 1)},
            "result_hash": tariff_hash,
        },
    ]  # fmt: skip


def run_with_tariff(cards: int, taps: int, turns: int, progress: Progress) -> tuple[dict[str, list[float]], str, int]:
    """Taps a second with a tariff and without, turn by turn; a digest of the answers with it; and bytes of tables and indexes."""
    key_set, terminals = bench_key_set(), max(cards // 1000, 1)
    requests = random_taps(taps, cards, terminals, key_set, seed=1, profile=2).submit_requests(BATCH)
    a_turn = max(len(requests) // turns, 1)
    rates: dict[str, list[float]] = {"off": [], "on": []}
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yikatong-bench-")))
        memories: dict[str, Memory] = {}
        for name in rates:
            tariffs = compile_tariff(folder) if name == "on" else None
            settings = EngineSettings(hash_seed=7, tariffs=tariffs, overdraft_fen=OVERDRAFT_FEN if tariffs else 0)
            directory = stack.enter_context(DataDirectory(folder / name))
            memories[name] = memory = Memory(directory, Journal(directory.journal), [key_set], settings)
            memory.restore()
            memory.tariffs.adopt(memory, 1)
            stack.callback(memory.close)
            fill(memory, cards, terminals, progress)
        for turn in range(min(turns, len(requests))):
            for name in ("off", "on") if turn % 2 else ("on", "off"):
                memory, charged_fen = memories[name], CHARGED_FEN if name == "on" else AMOUNT_FEN
                batches = requests[turn * a_turn : (turn + 1) * a_turn]
                responses = []
                begun = time.perf_counter()
                for request in batches:
                    responses.extend(run_taps(memory, [request], [True], TIME_US, TapRules()).responses)
                    memory.engine.take_group()
                seconds = time.perf_counter() - begun
                count = 0
                for response in responses:
                    assert isinstance(response, bytes)
                    outcomes = tap_service_pb2.SubmitTapsResponse.FromString(response).outcomes
                    assert all((each.result, each.charged_fen) == (1, charged_fen) for each in outcomes)
                    assert all(each.HasField("fare") == (name == "on") for each in outcomes)
                    count += len(outcomes)
                    if name == "on":
                        digest.update(response)
                rates[name].append(count / seconds)
            progress("running taps with a tariff", turn + 1, turns)
        assert all(memory.engine.imbalance_fen() == 0 for memory in memories.values())
        sizes = memories["on"].engine.memory_bytes()
        return rates, digest.hexdigest()[:16], sizes["tables"] + sizes["indexes"]
