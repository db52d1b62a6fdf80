"""Replay published tap records against a server: register, fund, tap, upload, clear, compare with the file's own totals."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from yikatong.clients.card import sign
from yikatong.clients.connection import Connection, call
from yikatong.clients.counters import Counters
from yikatong.clients.pricing import Key, PriceReport, Pricing, compare, line_number, stop_number
from yikatong.clients.taps_csv import BUS, TAP_KINDS, TapRecord
from yikatong.core.errors import YikatongError
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.rules.compile import Compiled
from yikatong.v1 import (
    account_service_pb2,
    card_service_pb2,
    clearing_service_pb2,
    result_pb2,
    tap_service_pb2,
    terminal_service_pb2,
)

BATCH: Final = 2_000  # items a request: a good deal below the limit, so that the progress bar moves

Advance = Callable[[str, int, int], None]  # what is being done, how much is done, of how much
Item = TypeVar("Item")


class ReplayFailed(YikatongError):
    """The server refused something that the replay stands on."""


@dataclass
class ReplayReport:
    """What came of a replay. `operators` are the server's cleared totals for these taps: (operator, taps, amount in fen);
    `expected` are the same totals worked out from the file alone: of what it says was deducted, or with --price of what the
    tariff makes of it."""

    records: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    operators: list[tuple[str, int, int]] = field(default_factory=list)
    expected: list[tuple[str, int, int]] = field(default_factory=list)
    price: PriceReport | None = None  # with --price
    journal_records: int = 0
    imbalance_fen: int = 0

    @property
    def total_fen(self) -> int:
        return sum(amount_fen for _, _, amount_fen in self.operators)

    @property
    def agrees(self) -> bool:
        """The server's totals are those expected, to the fen."""
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
        } | (self.price.as_json() if self.price else {})


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


def unique_taps(records: Iterable[TapRecord]) -> list[TapRecord]:
    """Each tap once: the first of records that are the same tap."""
    return list({record.key: record for record in reversed(list(records))}.values())[::-1]


def published_fen(records: Iterable[TapRecord]) -> dict[Key, int]:
    """What the file says was deducted, by tap."""
    return {record.key: record.deal_money_fen for record in unique_taps(records)}


def file_totals(records: Iterable[TapRecord], charges_fen: dict[Key, int] | None = None) -> list[tuple[str, int, int]]:
    """Taps and fen per operator, repeated records counted once, in order of operator. What each tap is charged is `charges_fen`,
    or what the file says."""
    taps: Counter[str] = Counter()
    amounts: Counter[str] = Counter()
    for record in unique_taps(records):
        taps[record.company] += 1
        amounts[record.company] += record.deal_money_fen if charges_fen is None else charges_fen[record.key]
    return sorted((operator, count, amounts[operator]) for operator, count in taps.items())


def _register_cards(connection: Connection, riders: dict[str, int], key_set: KeySet, advance: Advance) -> dict[str, int]:
    """Register cards with their rider categories (0: none). A card that the server knows already keeps the category that it has
    there; the categories in force are returned."""
    in_force = dict(riders)
    for batch in _batches(sorted(riders), "registering cards", advance):
        cards = [card_service_pb2.Card(card_number=card, issuer_id=key_set.issuer_id, rider=riders[card]) for card in batch]  # type: ignore[arg-type]
        answers = call(connection.cards.RegisterCards, card_service_pb2.RegisterCardsRequest(cards=cards)).registrations
        for answer, card in zip(answers, batch, strict=True):
            if answer.result == result_pb2.RESULT_CONFLICT:
                known = call(connection.cards.GetCard, card_service_pb2.GetCardRequest(card_number=card)).card
                if known.issuer_id == key_set.issuer_id:
                    answer.result = result_pb2.RESULT_ACCEPTED
                    in_force[card] = known.rider or riders[card]
        _check(answers, batch, "card")
    return in_force


def _register_terminals(
    connection: Connection, records: list[TapRecord], numbers: dict[tuple[str, str], bytes], advance: Advance
) -> None:
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


def _fund(connection: Connection, records: list[TapRecord], charges_fen: dict[Key, int], advance: Advance) -> dict[str, int]:
    """Give each card what its taps will cost. The request id stands for exactly these taps: funding them again is a repeat."""
    needs: defaultdict[str, int] = defaultdict(int)
    digests: dict[str, Any] = {}
    for record in records:
        needs[record.card_number] += charges_fen[record.key]
        digest = digests.setdefault(record.card_number, hashlib.sha256(b"replay"))
        digest.update(f"{record.key}{charges_fen[record.key]}".encode())
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
    charges_fen: dict[Key, int],
    riders: dict[str, int],
) -> list[tap_service_pb2.Tap]:
    """The tap that each record is of, in the order of the records; a repeated record is the same tap again."""
    assigned = counters.assign(record.key for record in records)
    made: dict[tuple[str, str, str], tap_service_pb2.Tap] = {}
    for record in records:
        if record.key in made:
            continue
        atc, sequence = assigned[record.key]
        before_fen = purses_fen[record.card_number]
        purses_fen[record.card_number] = after_fen = before_fen - charges_fen[record.key]
        made[record.key] = tap = tap_service_pb2.Tap(
            card_number=record.card_number,
            issuer_id=key_set.issuer_id,
            profile=tap_service_pb2.PROFILE_PURSE,
            algorithm_id=4,
            key_version=key_set.key_version,
            key_index=key_set.key_index,
            transaction_type=6,
            amount_fen=charges_fen[record.key],
            amount_due_fen=record.deal_value_fen,
            chip_balance_before_fen=before_fen,
            chip_balance_after_fen=after_fen,
            atc=atc,
            terminal_number=numbers[record.equipment, record.company],
            terminal_sequence=sequence,
            local_time=int(record.time),
            kind=TAP_KINDS[record.deal_type],  # type: ignore[arg-type]
            line=line_number(record),
            stop=stop_number(record),
            industry=record.industry,
            rider=riders[record.card_number],  # type: ignore[arg-type]
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
    connection: Connection,
    records: list[TapRecord],
    key_set: KeySet,
    counters: Counters,
    advance: Advance = lambda *_: None,
    tariff: Compiled | None = None,
) -> ReplayReport:
    """Replay records against a server. Every step may be repeated; the same replay again changes no balance.

    With a tariff, taps carry what it makes of them in place of what the file says was deducted, and cards the rider category that
    was inferred of them."""
    ordered = sorted(records, key=lambda record: record.time)
    unique = unique_taps(ordered)  # what is funded and charged
    numbers = counters.terminal_numbers(dict.fromkeys((record.equipment, record.company) for record in ordered))
    pricing = Pricing(tariff, unique) if tariff else None
    riders = pricing.infer_riders() if pricing else {record.card_number: 0 for record in unique}
    charges_fen = published_fen(ordered)
    report = ReplayReport(records=len(records))
    if records:
        riders = _register_cards(connection, riders, key_set, advance)
        _register_terminals(connection, ordered, numbers, advance)
    if tariff and pricing:
        priced = pricing.price(riders)
        charges_fen = priced.charged_fen
        report.price = compare(tariff.tariffs.tariffs[0].name, ordered, priced, riders)
    report.expected = file_totals(ordered, charges_fen)
    if records:
        purses_fen = _fund(connection, unique, charges_fen, advance)
        taps = _make_taps(ordered, numbers, counters, key_set, purses_fen, charges_fen, riders)
        outcomes = _upload(connection, taps, report, advance)
        report.operators = _clear(connection, outcomes)
    books = call(connection.clearing.GetTrialBalance, clearing_service_pb2.GetTrialBalanceRequest())
    report.journal_records, report.imbalance_fen = books.journal_records, books.imbalance_fen
    return report
