"""Replay published tap records against a server: register, fund, tap, upload, clear, compare with the file's own totals."""

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from yikatong.clients.card import sign
from yikatong.clients.connection import Connection, call
from yikatong.clients.counters import Counters
from yikatong.clients.taps_csv import BUS, METRO_ENTRY, METRO_EXIT, TapRecord
from yikatong.core.errors import YikatongError
from yikatong.core.keys import KeySet
from yikatong.v1 import (
    account_service_pb2,
    card_service_pb2,
    clearing_service_pb2,
    result_pb2,
    tap_service_pb2,
    terminal_service_pb2,
)

BATCH: Final = 2_000  # items a request: a good deal below the limit, so that the progress bar moves
KINDS: Final = {
    METRO_ENTRY: tap_service_pb2.TAP_KIND_ENTRY,
    METRO_EXIT: tap_service_pb2.TAP_KIND_EXIT,
    BUS: tap_service_pb2.TAP_KIND_SINGLE,
}
INDUSTRY_METRO, INDUSTRY_BUS = 1, 2

Advance = Callable[[str, int, int], None]  # what is being done, how much is done, of how much
Item = TypeVar("Item")


class ReplayFailed(YikatongError):
    """The server refused something that the replay stands on."""


@dataclass
class ReplayReport:
    """What came of a replay. `operators` are the server's cleared totals for these taps: (operator, taps, amount in fen)."""

    records: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    operators: list[tuple[str, int, int]] = field(default_factory=list)
    expected: list[tuple[str, int, int]] = field(default_factory=list)  # the same, worked out from the file
    journal_records: int = 0
    imbalance_fen: int = 0

    @property
    def total_fen(self) -> int:
        return sum(amount_fen for _, _, amount_fen in self.operators)

    @property
    def agrees(self) -> bool:
        """The server's totals are the file's own, to the fen."""
        return self.operators == self.expected

    def as_json(self) -> dict[str, Any]:
        """The object that --json writes."""
        return {
            "records": self.records,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "rejected": dict(sorted(self.rejected.items())),
            "operators": [
                {"operator": operator, "taps": taps, "amount_fen": amount_fen} for operator, taps, amount_fen in self.operators
            ],
            "total_fen": self.total_fen,
            "journal_records": self.journal_records,
            "balanced": self.imbalance_fen == 0,
            "agrees_with_file": self.agrees,
        }


def _batches(items: Sequence[Item], what: str, advance: Advance) -> Iterator[Sequence[Item]]:
    advance(what, 0, len(items))
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
        advance(what, min(start + BATCH, len(items)), len(items))


def _check(results: Iterable[Any], names: Iterable[str], what: str) -> None:
    for item, name in zip(results, names, strict=True):
        if item.result != result_pb2.RESULT_ACCEPTED:
            raise ReplayFailed(f"{what} {name}: the server answers {result_name(item.result)}")


def result_name(result: int) -> str:
    """ACCEPTED for RESULT_ACCEPTED, and so on."""
    return result_pb2.Result.Name(result).removeprefix("RESULT_")


def file_totals(records: Iterable[TapRecord]) -> list[tuple[str, int, int]]:
    """Taps and fen per operator, repeated records counted once, in order of operator."""
    taps: Counter[str] = Counter()
    amounts: Counter[str] = Counter()
    for record in {record.key: record for record in reversed(list(records))}.values():
        taps[record.company] += 1
        amounts[record.company] += record.deal_money_fen
    return sorted((operator, count, amounts[operator]) for operator, count in taps.items())


def _register(
    connection: Connection,
    records: list[TapRecord],
    numbers: dict[tuple[str, str], bytes],
    key_set: KeySet,
    advance: Advance,
) -> None:
    cards = sorted({record.card_number for record in records})
    for batch in _batches(cards, "registering cards", advance):
        request = card_service_pb2.RegisterCardsRequest(
            cards=[card_service_pb2.Card(card_number=card, issuer_id=key_set.issuer_id) for card in batch]
        )
        _check(call(connection.cards.RegisterCards, request).registrations, batch, "card")
    types = {(record.equipment, record.company): record.deal_type for record in records}
    terminals = [
        terminal_service_pb2.Terminal(
            terminal_number=number,
            operator_id=pair[1],
            kind=terminal_service_pb2.TERMINAL_KIND_BUS if types[pair] == BUS else terminal_service_pb2.TERMINAL_KIND_METRO_GATE,
        )
        for pair, number in numbers.items()
    ]
    for terminal_batch in _batches(terminals, "registering terminals", advance):
        request_t = terminal_service_pb2.RegisterTerminalsRequest(terminals=terminal_batch)
        names = [terminal.terminal_number.hex() for terminal in terminal_batch]
        _check(call(connection.terminals.RegisterTerminals, request_t).registrations, names, "terminal")


def _fund(connection: Connection, records: list[TapRecord], advance: Advance) -> dict[str, int]:
    """Give each card what its taps will cost. The request id stands for exactly these taps: funding them again is a repeat."""
    needs: defaultdict[str, int] = defaultdict(int)
    digests: dict[str, Any] = {}
    for record in records:
        needs[record.card_number] += record.deal_money_fen
        digest = digests.setdefault(record.card_number, hashlib.sha256(b"replay"))
        digest.update(f"{record.key}{record.deal_money_fen}".encode())
    requests = [
        account_service_pb2.TopUpRequest(request_id=digests[card].digest()[:16], card_number=card, amount_fen=need)
        for card, need in needs.items()
        if need
    ]
    for batch in _batches(requests, "funding cards", advance):
        answers = call(connection.accounts.BatchTopUp, account_service_pb2.BatchTopUpRequest(requests=batch)).responses
        _check(answers, [request.card_number for request in batch], "funding card")
    return dict(needs)


def _make_taps(
    records: list[TapRecord],
    numbers: dict[tuple[str, str], bytes],
    counters: Counters,
    key_set: KeySet,
    purses_fen: dict[str, int],
) -> list[tap_service_pb2.Tap]:
    """The tap that each record is of, in the order of the records; a repeated record is the same tap again."""
    assigned = counters.assign(record.key for record in records)
    made: dict[tuple[str, str, str], tap_service_pb2.Tap] = {}
    for record in records:
        if record.key in made:
            continue
        atc, sequence = assigned[record.key]
        before_fen = purses_fen[record.card_number]
        purses_fen[record.card_number] = after_fen = before_fen - record.deal_money_fen
        made[record.key] = tap = tap_service_pb2.Tap(
            card_number=record.card_number,
            issuer_id=key_set.issuer_id,
            profile=tap_service_pb2.PROFILE_PURSE,
            algorithm_id=4,
            key_version=key_set.key_version,
            key_index=key_set.key_index,
            transaction_type=6,
            amount_fen=record.deal_money_fen,
            amount_due_fen=record.deal_value_fen,
            chip_balance_before_fen=before_fen,
            chip_balance_after_fen=after_fen,
            atc=atc,
            terminal_number=numbers[record.equipment, record.company],
            terminal_sequence=sequence,
            local_time=int(record.time),
            kind=KINDS[record.deal_type],
            line=zlib.crc32(record.station.encode()),
            stop=zlib.crc32(record.car.encode()) & 0xFFFFFF,
            industry=INDUSTRY_BUS if record.deal_type == BUS else INDUSTRY_METRO,
        )
        if record.transfer:
            tap.transfer.SetInParent()
    sign(list(made.values()), [key_set])
    return [made[record.key] for record in records]


def _upload(
    connection: Connection, taps: list[tap_service_pb2.Tap], report: ReplayReport, advance: Advance
) -> list[tap_service_pb2.TapOutcome]:
    outcomes: list[tap_service_pb2.TapOutcome] = []
    for batch in _batches(taps, "uploading taps", advance):
        outcomes.extend(call(connection.taps.SubmitTaps, tap_service_pb2.SubmitTapsRequest(taps=batch)).outcomes)
    for outcome in outcomes:
        if outcome.duplicate:
            report.duplicates += 1
        elif outcome.result in (result_pb2.RESULT_ACCEPTED, result_pb2.RESULT_DEBT_BOOKED):
            report.accepted += 1
        else:
            report.rejected[result_name(outcome.result)] += 1
    return outcomes


def _clear(connection: Connection, outcomes: list[tap_service_pb2.TapOutcome]) -> list[tuple[str, int, int]]:
    """Totals per operator of the part of the journal that holds these taps, over the settlement dates that they fell on."""
    journalled = [outcome for outcome in outcomes if outcome.sequence]
    requests = []
    for date in sorted({outcome.settlement_date for outcome in journalled}):
        sequences = [outcome.sequence for outcome in journalled if outcome.settlement_date == date]
        requests.append(
            clearing_service_pb2.GetOperatorTotalsRequest(
                settlement_date=date, sequence_first=min(sequences), sequence_last=max(sequences)
            )
        )
    return operator_totals(connection, requests)


def operator_totals(
    connection: Connection, requests: Iterable[clearing_service_pb2.GetOperatorTotalsRequest]
) -> list[tuple[str, int, int]]:
    """Taps and fen per operator over all that is asked for, in order of operator."""
    taps: Counter[str] = Counter()
    amounts: Counter[str] = Counter()
    for request in requests:
        for operator in call(connection.clearing.GetOperatorTotals, request).operators:
            taps[operator.operator_id] += operator.taps
            amounts[operator.operator_id] += operator.amount_fen
    return sorted((operator, count, amounts[operator]) for operator, count in taps.items())


def replay(
    connection: Connection, records: list[TapRecord], key_set: KeySet, counters: Counters, advance: Advance = lambda *_: None
) -> ReplayReport:
    """Replay records against a server. Every step may be repeated; the same replay again changes no balance."""
    ordered = sorted(records, key=lambda record: record.time)
    # What is funded and charged is each tap once: the first of records that are the same tap.
    unique = list({record.key: record for record in reversed(ordered)}.values())[::-1]
    numbers = counters.terminal_numbers(dict.fromkeys((record.equipment, record.company) for record in ordered))
    report = ReplayReport(records=len(records), expected=file_totals(ordered))
    if records:
        _register(connection, ordered, numbers, key_set, advance)
        purses_fen = _fund(connection, unique, advance)
        taps = _make_taps(ordered, numbers, counters, key_set, purses_fen)
        outcomes = _upload(connection, taps, report, advance)
        report.operators = _clear(connection, outcomes)
    books = call(connection.clearing.GetTrialBalance, clearing_service_pb2.GetTrialBalanceRequest())
    report.journal_records, report.imbalance_fen = books.journal_records, books.imbalance_fen
    return report
