"""The service port as a client sees it: a real client over a real socket, good calls and bad ones."""

import secrets
import threading

import grpc
import pytest
from city import new_card, new_terminal, top_up
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core import limits
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.service import SERVICES
from yikatong.core.types import Result
from yikatong.v1 import (
    account_service_pb2,
    card_service_pb2,
    clearing_service_pb2,
    tap_service_pb2,
    terminal_service_pb2,
)


def today(connection: Connection, outcome: tap_service_pb2.TapOutcome) -> dict[str, tuple[int, int]]:
    totals = connection.clearing.GetOperatorTotals(
        clearing_service_pb2.GetOperatorTotalsRequest(settlement_date=outcome.settlement_date)
    )
    return {operator.operator_id: (operator.taps, operator.amount_fen) for operator in totals.operators}


def violated_field(error: grpc.RpcError) -> str:
    """The field that BadRequest names."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.message
    bad_request = error_details_pb2.BadRequest()
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details if detail.Is(info.DESCRIPTOR))
    assert info.domain == "yikatong"
    assert any(detail.Unpack(bad_request) for detail in status.details if detail.Is(bad_request.DESCRIPTOR))
    return bad_request.field_violations[0].field


# ---- a day in the life ----


def test_a_tap_moves_money_and_clears(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set, 1_000), new_terminal(connection, "day operator")
    outcome = terminal.authorize(connection, terminal.present(card, 300))
    assert (outcome.result, outcome.charged_fen, outcome.balance_after_fen) == (Result.ACCEPTED, 300, 700)
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
    assert (balance.balance_fen, balance.denied) == (700, False)
    assert balance.sequence >= outcome.sequence
    assert today(connection, outcome)["day operator"] == (1, 300)


def test_the_same_tap_again_gets_the_first_answer(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set), new_terminal(connection)
    tap = terminal.present(card, 250)
    first, again = terminal.authorize(connection, tap), terminal.authorize(connection, tap)
    assert again.duplicate
    again.duplicate = False
    assert again == first


def test_answers_stand_in_request_order(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set, 1_000), new_terminal(connection)
    good = [terminal.present(card, amount) for amount in (100, 200, 300)]
    forged = terminal.present(card, 100)
    forged.mac = b"\0\0\0\0" if forged.mac != b"\0\0\0\0" else b"\1\0\0\0"
    malformed = tap_service_pb2.Tap(card_number="12a")
    taps = [good[0], forged, good[1], malformed, good[0], good[2]]
    outcomes = connection.taps.SubmitTaps(tap_service_pb2.SubmitTapsRequest(taps=taps)).outcomes
    assert [(outcome.result, outcome.duplicate, outcome.charged_fen) for outcome in outcomes] == [
        (Result.ACCEPTED, False, 100),
        (Result.MAC_MISMATCH, False, 0),
        (Result.ACCEPTED, False, 200),
        (Result.MALFORMED_CARD_NUMBER, False, 0),
        (Result.ACCEPTED, True, 100),
        (Result.ACCEPTED, False, 300),
    ]
    assert outcomes[3].invalid_field == "card_number"


def test_get_tap_by_each_key(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set), new_terminal(connection, "finder")
    tap = terminal.present(card, 250, line=105, stop=7, rider=3, direction=1, city=5980, industry=2)
    outcome = terminal.authorize(connection, tap)
    keys = (
        tap_service_pb2.GetTapRequest(sequence=outcome.sequence),
        tap_service_pb2.GetTapRequest(
            card_counter=tap_service_pb2.GetTapRequest.CardCounter(card_number=card.card_number, atc=tap.atc)
        ),
        tap_service_pb2.GetTapRequest(
            terminal_counter=tap_service_pb2.GetTapRequest.TerminalCounter(
                terminal_number=terminal.terminal_number, terminal_sequence=tap.terminal_sequence
            )
        ),
    )
    for key in keys:
        found = connection.taps.GetTap(key)
        assert found.tap == tap
        assert found.outcome == outcome
        assert (found.operator_id, found.stored) == ("finder", False)
    unknown = tap_service_pb2.GetTapRequest.CardCounter(card_number=card.card_number, atc=999)
    with pytest.raises(grpc.RpcError) as caught:
        connection.taps.GetTap(tap_service_pb2.GetTapRequest(card_counter=unknown))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_an_unknown_cards_tap_is_kept_whole(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set), new_terminal(connection)
    tap = terminal.present(card, 250)
    tap.card_number = "999"
    outcome = terminal.authorize(connection, tap)
    assert outcome.result == Result.UNKNOWN_CARD
    assert connection.taps.GetTap(tap_service_pb2.GetTapRequest(sequence=outcome.sequence)).tap == tap


def test_transactions_come_in_pages_newest_first(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set, 100_000), new_terminal(connection, "pages")
    for amount in range(1, 26):
        terminal.store(terminal.present(card, amount))
    terminal.upload(connection)
    pages, token = [], ""
    while True:
        request = account_service_pb2.ListTransactionsRequest(card_number=card.card_number, page_size=10, page_token=token)
        page = connection.accounts.ListTransactions(request)
        pages.append(list(page.transactions))
        token = page.next_page_token
        if not token:
            break
    assert [len(page) for page in pages] == [10, 10, 7]  # 25 taps, the top-up, the registration
    transactions = [transaction for page in pages for transaction in page]
    assert [transaction.change_fen for transaction in transactions] == [*range(-25, 0), 100_000, 0]
    assert transactions[0].operator_id == "pages"
    assert transactions[0].terminal_number == terminal.terminal_number
    assert [transaction.sequence for transaction in transactions] == sorted(
        (transaction.sequence for transaction in transactions), reverse=True
    )


def test_top_up_is_safe_to_repeat(connection: Connection, key_set: KeySet) -> None:
    card, request_id = new_card(connection, key_set, 0), secrets.token_bytes(16)
    first = top_up(connection, card.card_number, 500, request_id)
    top_up(connection, card.card_number, 70)
    again = top_up(connection, card.card_number, 500, request_id)
    assert (again.duplicate, again.sequence, again.balance_after_fen) == (True, first.sequence, 500)
    assert top_up(connection, card.card_number, 501, request_id).result == Result.CONFLICT
    assert top_up(connection, "9" * 20, 1).result == Result.UNKNOWN_CARD
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
    assert balance.balance_fen == 570


def test_registering_again(connection: Connection, key_set: KeySet) -> None:
    card = new_card(connection, key_set, 0, rider=2)
    same = card_service_pb2.Card(card_number=card.card_number, issuer_id=key_set.issuer_id, rider=2)  # type: ignore[arg-type]
    other = card_service_pb2.Card(card_number=card.card_number, issuer_id=bytes(8), rider=2)  # type: ignore[arg-type]
    answers = connection.cards.RegisterCards(card_service_pb2.RegisterCardsRequest(cards=[same, other])).registrations
    assert [(answer.result, answer.duplicate) for answer in answers] == [(Result.ACCEPTED, True), (Result.CONFLICT, False)]
    found = connection.cards.GetCard(card_service_pb2.GetCardRequest(card_number=card.card_number))
    assert (found.card, found.denied, found.atc_next) == (same, False, 0)
    terminal = new_terminal(connection, "first")
    moved = terminal_service_pb2.Terminal(
        terminal_number=terminal.terminal_number, operator_id="second", kind=terminal_service_pb2.TERMINAL_KIND_BUS
    )
    answer = connection.terminals.RegisterTerminals(terminal_service_pb2.RegisterTerminalsRequest(terminals=[moved]))
    assert answer.registrations[0].result == Result.CONFLICT
    known = connection.terminals.GetTerminal(
        terminal_service_pb2.GetTerminalRequest(terminal_number=terminal.terminal_number)
    ).terminal
    assert known.operator_id == "first"


def test_test_taps_are_counted_and_never_charged(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set, 1_000), new_terminal(connection, "tested")
    outcome = terminal.authorize(connection, terminal.present(card, 300, test=True))
    assert (outcome.result, outcome.charged_fen, outcome.balance_after_fen) == (Result.TEST, 0, 1_000)
    totals = connection.clearing.GetOperatorTotals(
        clearing_service_pb2.GetOperatorTotalsRequest(settlement_date=outcome.settlement_date)
    )
    tested = next(operator for operator in totals.operators if operator.operator_id == "tested")
    assert (tested.taps, tested.amount_fen, tested.test_taps) == (0, 0, 1)


def test_clearing_a_part_of_the_journal(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set), new_terminal(connection, "parts")
    outcomes = [terminal.authorize(connection, terminal.present(card, amount)) for amount in (1, 20, 300)]
    totals = connection.clearing.GetOperatorTotals(
        clearing_service_pb2.GetOperatorTotalsRequest(
            settlement_date=outcomes[0].settlement_date, sequence_first=outcomes[1].sequence, sequence_last=outcomes[2].sequence
        )
    )
    assert {operator.operator_id: operator.amount_fen for operator in totals.operators}["parts"] == 320
    nothing = connection.clearing.GetOperatorTotals(clearing_service_pb2.GetOperatorTotalsRequest(settlement_date=20010101))
    assert (len(nothing.operators), nothing.total_fen) == (0, 0)


# ---- bad input ----

VALID_ID = bytes(range(16))
BAD_CALLS = [
    # service, method, request, the field that must be named
    ("taps", "SubmitTaps", tap_service_pb2.SubmitTapsRequest(), "taps"),
    ("taps", "SubmitTaps", tap_service_pb2.SubmitTapsRequest(taps=[tap_service_pb2.Tap()] * 8_193), "taps"),
    ("taps", "AuthorizeTap", tap_service_pb2.AuthorizeTapRequest(), "taps"),
    ("taps", "GetTap", tap_service_pb2.GetTapRequest(), "key"),
    ("taps", "GetTap", tap_service_pb2.GetTapRequest(sequence=1 << 60), "sequence"),
    ("accounts", "GetBalance", account_service_pb2.GetBalanceRequest(), "card_number"),
    ("accounts", "GetBalance", account_service_pb2.GetBalanceRequest(card_number="12x"), "card_number"),
    ("accounts", "GetBalance", account_service_pb2.GetBalanceRequest(card_number="1" * 21), "card_number"),
    ("accounts", "TopUp", account_service_pb2.TopUpRequest(request_id=b"short", card_number="1", amount_fen=1), "request_id"),
    ("accounts", "TopUp", account_service_pb2.TopUpRequest(request_id=VALID_ID, card_number="1", amount_fen=-1), "amount_fen"),
    ("accounts", "TopUp", account_service_pb2.TopUpRequest(request_id=VALID_ID, card_number="1"), "amount_fen"),
    ("accounts", "TopUp",
     account_service_pb2.TopUpRequest(request_id=VALID_ID, card_number="1", amount_fen=1 << 62), "amount_fen"),
    ("accounts", "BatchTopUp", account_service_pb2.BatchTopUpRequest(), "requests"),
    ("cards", "RegisterCards", card_service_pb2.RegisterCardsRequest(), "cards"),
    ("cards", "RegisterCards", card_service_pb2.RegisterCardsRequest(cards=[card_service_pb2.Card()] * 8_193), "cards"),
    ("terminals", "RegisterTerminals", terminal_service_pb2.RegisterTerminalsRequest(), "terminals"),
    ("terminals", "GetTerminal", terminal_service_pb2.GetTerminalRequest(terminal_number=b"12345"), "terminal_number"),
    ("clearing", "GetOperatorTotals", clearing_service_pb2.GetOperatorTotalsRequest(), "settlement_date"),
    ("clearing", "GetOperatorTotals", clearing_service_pb2.GetOperatorTotalsRequest(settlement_date=20250230), "settlement_date"),
    ("clearing", "GetOperatorTotals",
     clearing_service_pb2.GetOperatorTotalsRequest(settlement_date=20250101, sequence_first=9, sequence_last=8), "sequence_last"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("service", "method", "request_", "field"), BAD_CALLS, ids=[f"{row[1]}-{row[3]}-{i}" for i, row in enumerate(BAD_CALLS)]
)
def test_a_bad_request_is_told_which_field(
    connection: Connection, service: str, method: str, request_: object, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(getattr(connection, service), method)(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violated_field(caught.value) == field
    assert field in caught.value.details()


BAD_TAPS = [
    # what is changed in a good tap, the result, the field that must be named
    ({"amount_fen": -1}, Result.MALFORMED_AMOUNT, "amount_fen"),
    ({"amount_due_fen": 1 << 32}, Result.MALFORMED_AMOUNT, "amount_due_fen"),
    ({"local_time": 20250230120000}, Result.MALFORMED_TIME, "local_time"),
    ({"local_time": 20250101240000}, Result.MALFORMED_TIME, "local_time"),
    ({"local_time": 20990101000000}, Result.MALFORMED_CLOCK_AHEAD, "local_time"),
    ({"mac": b"123"}, Result.MALFORMED_MAC, "mac"),
    ({"terminal_number": b"1234567"}, Result.MALFORMED_TERMINAL, "terminal_number"),
    ({"issuer_id": b""}, Result.MALFORMED_ISSUER_ID, "issuer_id"),
    ({"card_number": ""}, Result.MALFORMED_CARD_NUMBER, "card_number"),
    ({"profile": 99}, Result.MALFORMED_PROFILE, "profile"),
    ({"kind": 77}, Result.MALFORMED_KIND, "kind"),
    ({"rider": 55}, Result.MALFORMED_RIDER, "rider"),
    ({"direction": -3}, Result.MALFORMED_PLACE, "direction"),
    ({"stop": 1 << 24}, Result.MALFORMED_PLACE, "stop"),
    ({"atc": 65_536}, Result.MALFORMED_ATC, "atc"),
    ({"key_index": 256}, Result.MALFORMED_KEY, "key_index"),
    ({"transaction_type": 1}, Result.MALFORMED_TRANSACTION_TYPE, "transaction_type"),
    ({"algorithm_id": 0}, Result.ALGORITHM_UNSUPPORTED, ""),
    ({"key_version": 9}, Result.UNKNOWN_KEY, ""),
]


@pytest.mark.parametrize(
    ("changes", "result", "field"), BAD_TAPS, ids=[f"{next(iter(row[0]))}-{i}" for i, row in enumerate(BAD_TAPS)]
)
def test_a_bad_tap_is_answered_and_leaves_the_others_alone(
    connection: Connection, key_set: KeySet, changes: dict[str, object], result: Result, field: str
) -> None:
    card, terminal = new_card(connection, key_set), new_terminal(connection)
    good, bad = terminal.present(card, 100), terminal.present(card, 100)
    for name, value in changes.items():
        setattr(bad, name, value)
    outcomes = connection.taps.SubmitTaps(tap_service_pb2.SubmitTapsRequest(taps=[bad, good])).outcomes
    assert (outcomes[0].result, outcomes[0].invalid_field) == (result, field)
    assert (outcomes[0].charged_fen, outcomes[0].duplicate) == (0, False)
    assert outcomes[1].result == Result.ACCEPTED


def test_malformed_items_of_a_batch_are_named(connection: Connection, key_set: KeySet) -> None:
    good = new_card(connection, key_set, 0).card_number
    cards = [
        card_service_pb2.Card(card_number="x", issuer_id=bytes(8)),
        card_service_pb2.Card(card_number="1", issuer_id=bytes(7)),
        card_service_pb2.Card(card_number="1", issuer_id=bytes(8), rider=99),  # type: ignore[arg-type]
        card_service_pb2.Card(card_number="1", issuer_id=bytes(8), expires=20250231),
    ]
    answers = connection.cards.RegisterCards(card_service_pb2.RegisterCardsRequest(cards=cards)).registrations
    assert [answer.invalid_field for answer in answers] == ["card_number", "issuer_id", "rider", "expires"]
    terminals = [
        terminal_service_pb2.Terminal(terminal_number=b"1", operator_id="x", kind=1),  # type: ignore[arg-type]
        terminal_service_pb2.Terminal(terminal_number=bytes(6), operator_id="", kind=1),  # type: ignore[arg-type]
        terminal_service_pb2.Terminal(terminal_number=bytes(6), operator_id="a\nb", kind=1),  # type: ignore[arg-type]
        terminal_service_pb2.Terminal(terminal_number=bytes(6), operator_id="x", kind=88),  # type: ignore[arg-type]
    ]
    request = terminal_service_pb2.RegisterTerminalsRequest(terminals=terminals)
    answers_t = connection.terminals.RegisterTerminals(request).registrations
    assert [answer.invalid_field for answer in answers_t] == ["terminal_number", "operator_id", "operator_id", "kind"]
    top_ups = [
        account_service_pb2.TopUpRequest(request_id=secrets.token_bytes(16), card_number=good, amount_fen=5),
        account_service_pb2.TopUpRequest(request_id=secrets.token_bytes(16), card_number=good, amount_fen=-5),
        account_service_pb2.TopUpRequest(request_id=secrets.token_bytes(15), card_number=good, amount_fen=5),
    ]
    responses = connection.accounts.BatchTopUp(account_service_pb2.BatchTopUpRequest(requests=top_ups)).responses
    assert [(response.result, response.invalid_field) for response in responses] == [
        (Result.ACCEPTED, ""),
        (Result.MALFORMED_AMOUNT, "amount_fen"),
        (Result.MALFORMED_REQUEST_ID, "request_id"),
    ]


@pytest.mark.parametrize("token", ["x", "AAAA", "MTEyMzQ1Njc4OTAxMg==", "é"])
def test_a_page_token_that_is_not_ours(connection: Connection, key_set: KeySet, token: str) -> None:
    card = new_card(connection, key_set)
    request = account_service_pb2.ListTransactionsRequest(card_number=card.card_number, page_token=token)
    with pytest.raises(grpc.RpcError) as caught:
        connection.accounts.ListTransactions(request)
    assert violated_field(caught.value) == "page_token"


@pytest.mark.parametrize("size", [-1, 1_001])
def test_a_page_size_out_of_range(connection: Connection, key_set: KeySet, size: int) -> None:
    card = new_card(connection, key_set)
    with pytest.raises(grpc.RpcError) as caught:
        connection.accounts.ListTransactions(
            account_service_pb2.ListTransactionsRequest(card_number=card.card_number, page_size=size)
        )
    assert violated_field(caught.value) == "page_size"


def raw(connection: Connection, method: str, request: bytes, timeout: float = 5) -> bytes:
    answer: bytes = connection.channel.unary_unary(f"/yikatong.v1.{method}")(request, timeout=timeout)
    return answer


@pytest.mark.parametrize(
    "method", ["TapService/AuthorizeTap", "TapService/SubmitTaps", "AccountService/TopUp", "CardService/GetCard"]
)
@pytest.mark.parametrize(
    "rubbish", [b"\xff\xff\xff", b"\x0a\x7f", b"\x00", secrets.token_bytes(2000)], ids=["tag", "cut", "zero", "random"]
)
def test_rubbish_is_refused(connection: Connection, method: str, rubbish: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(connection, method, rubbish)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_oversize_message_is_refused(server: EmbeddedServer) -> None:
    with (
        grpc.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/yikatong.v1.TapService/SubmitTaps")(bytes(limits.REQUEST_BYTES_MAX + 1), timeout=10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in caught.value.details()


def test_a_deadline_that_is_over(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set, 1_000), new_terminal(connection)
    request = tap_service_pb2.AuthorizeTapRequest(tap=terminal.present(card, 100))
    with pytest.raises(grpc.RpcError) as caught:
        connection.taps.AuthorizeTap(request, timeout=-1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    again = connection.taps.AuthorizeTap(request)  # whether it arrived or not, it counts once
    assert (again.outcome.result, again.outcome.balance_after_fen) == (Result.ACCEPTED, 900)


def test_unknown_fields_are_fine(connection: Connection, key_set: KeySet) -> None:
    card, terminal = new_card(connection, key_set), new_terminal(connection)
    tap = terminal.present(card, 100).SerializeToString() + b"\xba\x3e\x03new" + b"\xc0\x3e\x07"
    request = (
        b"\x0a" + bytes([len(tap) & 0x7F | 0x80, len(tap) >> 7]) + tap if len(tap) > 127 else b"\x0a" + bytes([len(tap)]) + tap
    )
    answer = tap_service_pb2.AuthorizeTapResponse.FromString(raw(connection, "TapService/AuthorizeTap", request))
    assert answer.outcome.result == Result.ACCEPTED


# ---- what the ecosystem expects ----


def test_health(connection: Connection) -> None:
    stub = health_pb2_grpc.HealthStub(connection.channel)
    for name in ("", *SERVICES):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("package", ["grpc.reflection.v1alpha", "grpc.reflection.v1"])
def test_reflection(connection: Connection, package: str) -> None:
    class Renamed:
        """A channel on which v1alpha's stub speaks to the package under test."""

        def __getattr__(self, name: str) -> object:
            return getattr(connection.channel, name)

        def stream_stream(self, method: str, *args: object, **kwargs: object) -> object:
            return connection.channel.stream_stream(method.replace("grpc.reflection.v1alpha", package), *args, **kwargs)  # type: ignore[arg-type]

    database = ProtoReflectionDescriptorDatabase(Renamed())
    assert set(SERVICES) <= set(database.get_services())
    assert database.FindFileContainingSymbol("yikatong.v1.TapService").name == "yikatong/v1/tap_service.proto"


def test_many_callers_at_once_lose_nothing(connection: Connection, key_set: KeySet, server: EmbeddedServer) -> None:
    card = new_card(connection, key_set, 1_000_000)
    terminals = [new_terminal(connection, "crowd") for _ in range(8)]
    taps = [[terminal.present(card, 1) for _ in range(50)] for terminal in terminals]
    failures: list[BaseException] = []

    def run(mine: list[tap_service_pb2.Tap]) -> None:
        try:
            with Connection(server.address) as own:
                for tap in mine:
                    answer = own.taps.AuthorizeTap(tap_service_pb2.AuthorizeTapRequest(tap=tap), timeout=20)
                    assert answer.outcome.result == Result.ACCEPTED
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in taps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    balance = connection.accounts.GetBalance(account_service_pb2.GetBalanceRequest(card_number=card.card_number))
    assert balance.balance_fen == 1_000_000 - 400


def test_books_balance_after_all_that(connection: Connection) -> None:
    books = connection.clearing.GetTrialBalance(clearing_service_pb2.GetTrialBalanceRequest())
    assert books.imbalance_fen == 0
    assert books.purses_fen + books.operators_fen + books.funding_fen == 0
    assert books.journal_records > 0
