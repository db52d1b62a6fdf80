"""Reads of the journal for callers: one tap, a card's transactions. They run beside the writer, on any thread, once the writer
has named a place that is durable."""

from collections.abc import Sequence
from typing import Any, Final

from yikatong.core import types
from yikatong.core.errors import Damaged, InvalidRequest, NotFound
from yikatong.core.journal import Entry, Journal
from yikatong.core.paging import page_token, parse_page_token
from yikatong.core.tariffs import fare_of, priced_tap
from yikatong.ext.engine import outcomes_of_records
from yikatong.v1 import account_service_pb2, tap_service_pb2


def transactions_token(card: int, sequence: int) -> str:
    """A token of ListTransactions: the card's slot, and the sequence to go on from."""
    return page_token(sequence.to_bytes(8, "big"), card.to_bytes(4, "big"))


def parse_transactions_token(token: str, card: int) -> int:
    """The sequence in a token of ListTransactions."""
    return int.from_bytes(parse_page_token(token, card.to_bytes(4, "big"), 8), "big")


KINDS: Final = {
    types.RecordKind.TAP: account_service_pb2.Transaction.KIND_TAP,
    types.RecordKind.TOP_UP: account_service_pb2.Transaction.KIND_TOP_UP,
    types.RecordKind.CARD: account_service_pb2.Transaction.KIND_CARD_REGISTERED,
    types.RecordKind.POSTING: account_service_pb2.Transaction.KIND_POSTING,
    types.RecordKind.HOLD: account_service_pb2.Transaction.KIND_HOLD,
    types.RecordKind.DENY_LIST: account_service_pb2.Transaction.KIND_DENY_LIST,
    types.RecordKind.ENTITLEMENT: account_service_pb2.Transaction.KIND_ENTITLEMENT,
}


def list_transactions(
    journal: Journal, card: int, purses: set[int], start: int, size: int
) -> tuple[list[tuple[account_service_pb2.Transaction, int]], str]:
    """Up to `size` transactions of a card (its slot, and the accounts of its purses), newest first, from sequence `start` on,
    each with its terminal's slot; and the token of the next page.

    Each record names the one before it of the same card, so this walks back along the card."""
    found: list[tuple[account_service_pb2.Transaction, int]] = []
    sequence = start
    with journal.read() as reader:
        while sequence and len(found) < size:
            located = reader.record(sequence)
            if located is None:
                raise Damaged(f"journal: record {sequence} is missing")
            record = located[1][0]
            if int(record["card"]) != card:
                raise InvalidRequest("page_token", "is not a token of this list")
            if not _moves_nothing(record):
                found.append((_transaction(record, purses), int(record["terminal"])))
            sequence = int(record["card_previous"])
    return found, transactions_token(card, sequence) if sequence else ""


def _moves_nothing(record: Any) -> bool:
    """A correction that only says that a fare is another one's sum now, or the opening of the account of a card's chip."""
    return bool(
        record["kind"] == types.RecordKind.ACCOUNT
        or (
            record["kind"] == types.RecordKind.POSTING
            and record["transaction_type"] == types.PostingKind.CORRECTION
            and record["amount_fen"] == 0
        )
    )


def _transaction(record: Any, purses: set[int]) -> account_service_pb2.Transaction:
    kind = types.RecordKind(int(record["kind"]))
    transaction = account_service_pb2.Transaction(
        sequence=int(record["sequence"]),
        kind=KINDS[kind],
        result=types.wire(record["result"]),
        journal_time_us=int(record["time_us"]),
    )
    if kind is types.RecordKind.TOP_UP:
        transaction.change_fen = int(record["amount_fen"])
        transaction.balance_after_fen = int(record["credit_after_fen"])
    elif kind is types.RecordKind.POSTING:
        into = int(record["credit_account"]) in purses
        transaction.change_fen = int(record["amount_fen"]) if into else -int(record["amount_fen"])
        transaction.balance_after_fen = int(record["credit_after_fen"] if into else record["debit_after_fen"])
        reason = types.PostingKind(int(record["transaction_type"]))
        transaction.reason = reason.name.lower()
        if reason is types.PostingKind.CORRECTION:
            _name_tap(transaction, record)
    elif kind is types.RecordKind.HOLD:
        transaction.held_change_fen = int(record["amount_fen"])
        transaction.balance_after_fen = int(record["debit_after_fen"])
    elif kind is types.RecordKind.TAP:
        transaction.change_fen = -int(record["amount_fen"])
        transaction.balance_after_fen = int(record["debit_after_fen"])
        _name_tap(transaction, record)
    return transaction


def _name_tap(transaction: account_service_pb2.Transaction, record: Any) -> None:
    transaction.terminal_sequence = int(record["terminal_sequence"])
    transaction.atc = int(record["atc"])
    transaction.local_time = int(record["local_date"]) * 1_000_000 + int(record["local_time"])


def get_tap(journal: Journal, sequence: int, rules: Sequence[str] = ()) -> tuple[tap_service_pb2.GetTapResponse, int, int]:
    """One journalled tap, with the slots of its card and terminal, whose numbers are still to be filled in. `rules`: ids of fare
    rules by their numbers in the journal."""
    with journal.read() as reader:
        located = reader.record(sequence)
        if located is None or located[1][0]["kind"] != types.RecordKind.TAP:
            raise NotFound("tap", f"at sequence {sequence}")
        entry, array = located
        record = array[0]
        answer = outcomes_of_records(array.view("u1"))[0]
        response = tap_service_pb2.GetTapResponse(
            tap=_tap(entry, record),
            outcome=tap_service_pb2.TapOutcome(
                result=types.wire(answer["result"]),
                charged_fen=int(answer["charged_fen"]),
                balance_after_fen=int(answer["balance_after_fen"]),
                sequence=int(answer["sequence"]),
                settlement_date=int(answer["settlement_date"]),
                conflicting_sequence=int(answer["conflicting_sequence"]),
            ),
            journal_time_us=int(record["time_us"]),
            stored=bool(record["flags"] & types.Flag.STORED),
        )
        if answer["fare_rule"]:
            response.outcome.fare.CopyFrom(fare_of(record, priced_tap(entry, record), rules))
        return response, int(record["card"]), int(record["terminal"])


def _tap(entry: Entry, record: Any) -> tap_service_pb2.Tap:
    """The tap as it came: whole where the journal kept its message, else from the record."""
    priced = bool(record["flags"] & types.Flag.PRICED)
    if priced and (kept := priced_tap(entry, record)).HasField("tap"):
        return kept.tap
    if record["payload_place"] and not priced:
        return tap_service_pb2.Tap.FromString(entry.payload(int(record["payload_place"])))
    return tap_service_pb2.Tap(
        profile=types.wire(record["profile"]),
        algorithm_id=int(record["algorithm_id"]),
        key_version=int(record["key_version"]),
        key_index=int(record["key_index"]),
        transaction_type=int(record["transaction_type"]),
        amount_fen=int(record["tap_amount_fen"]),
        amount_due_fen=int(record["amount_due_fen"]),
        chip_balance_before_fen=0 if priced else int(record["chip_before_fen"]),
        chip_balance_after_fen=0 if priced else int(record["chip_after_fen"]),
        atc=int(record["atc"]),
        terminal_sequence=int(record["terminal_sequence"]),
        local_time=int(record["local_date"]) * 1_000_000 + int(record["local_time"]),
        mac=record["mac"].tobytes(),
        kind=types.wire(record["tap_kind"]),
        line=int(record["line"]),
        stop=int(record["stop"]),
        direction=types.wire(record["direction"]),
        city=int(record["city"]),
        industry=int(record["industry"]),
        rider=types.wire(record["rider"]),
        test=bool(record["flags"] & types.Flag.TEST),
        grey=bool(record["flags"] & types.Flag.GREY),
    )
