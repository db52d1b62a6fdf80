"""Windows: their life cycle over all pairs, that nothing is outside one, and that clearing, netting and the ledger agree; also
when the process is killed between any two steps."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from day_city import AGREEMENTS, DATE, OPERATORS, City
from harness import make_tap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yikatong.core import failpoints, limits
from yikatong.core.acquiring.merchants import register_merchants
from yikatong.core.change import Change
from yikatong.core.check import check
from yikatong.core.day.positions import FLOAT, LINES, LineKind
from yikatong.core.day.windows import IN_THE_WAY, WindowEvent, after, day_of, prove_membership, settlement_days, windows_from
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import EngineSettings
from yikatong.core.types import ClearingOutcome, Deny, PostingKind, Result, WindowState
from yikatong.v1 import clearing_service_pb2, merchant_service_pb2

# ---- the life cycle ----

LIFE = """
state   | CLOSE  | CLEAR   | SETTLE  | ABORT   | RESUME
OPEN    | CLOSED | -       | -       | -       | -
CLOSED  | -      | CLEARED | -       | -       | -
CLEARED | -      | -       | SETTLED | ABORTED | -
SETTLED | -      | -       | -       | ABORTED | -
ABORTED | -      | -       | -       | -       | CLEARED
"""


def test_life_cycle_over_all_pairs() -> None:
    head, *rows = [[cell.strip() for cell in line.split("|")] for line in LIFE.strip().splitlines()]
    assert head[1:] == [event.name for event in WindowEvent]
    assert [row[0] for row in rows] == [state.name for state in WindowState]
    for state, *cells in rows:
        for event, cell in zip(head[1:], cells, strict=True):
            wanted = IN_THE_WAY[WindowState[state]] if cell == "-" else WindowState[cell]
            assert after(WindowState[state], WindowEvent[event]) is wanted


def test_states_are_those_of_the_proto() -> None:
    of_proto = {name.removeprefix("WINDOW_STATE_"): number for name, number in clearing_service_pb2.WindowState.items()}
    assert {"UNSPECIFIED": 0} | {state.name: state.value for state in WindowState} == of_proto


@pytest.fixture
def city(tmp_path: Path):
    with City(tmp_path / "data") as made:
        yield made


def test_a_window_from_open_to_sealed(city: City) -> None:
    """Every step, and before and after it every other one, which is refused with a code and changes nothing."""

    def refuse(*steps) -> None:
        before = city.engine.next_sequence
        for step, result in steps:
            assert step() == result
        assert city.engine.next_sequence == before

    close = lambda: city.close_window().result  # noqa: E731
    clear = lambda: city.clear_window().result  # noqa: E731
    seal = lambda: city.seal_window().result  # noqa: E731
    settle, abort, resume = ((lambda event=event: city.step(event)) for event in list(WindowEvent)[2:])
    city.tap()
    refuse(*((step, Result.WINDOW_OPEN) for step in (clear, settle, abort, resume, seal)))
    assert close() == Result.ACCEPTED
    refuse(*((step, Result.WINDOW_CLOSED) for step in (close, settle, abort, resume, seal)))
    assert clear() == Result.ACCEPTED
    refuse(*((step, Result.WINDOW_CLEARED) for step in (close, clear, resume, seal)))
    assert settle() == Result.ACCEPTED
    refuse(*((step, Result.WINDOW_SETTLED) for step in (close, clear, settle, resume)))
    assert abort() == Result.ACCEPTED
    refuse(*((step, Result.WINDOW_ABORTED) for step in (close, clear, settle, abort, seal)))
    assert [resume(), settle(), seal()] == [Result.ACCEPTED] * 3
    refuse((seal, Result.WINDOW_SEALED), (abort, Result.WINDOW_SEALED))
    city.restart()
    assert city.state() is WindowState.SETTLED


def test_a_step_that_is_asked_for_again_gets_its_first_answer(city: City) -> None:
    city.tap()
    for step in (city.close_window, city.clear_window):
        request_id = city.request_id()
        first = step(request_id=request_id)
        city.restart()
        again = step(request_id=request_id)
        assert (first.duplicate, again.duplicate, again.sequence, again.window) == (False, True, first.sequence, first.window)
        other = step(DATE + 1, request_id)
        assert other.result == Result.CONFLICT
    city.step(WindowEvent.SETTLE)
    request_id = city.request_id()
    assert not city.seal_window(request_id=request_id).duplicate
    assert city.seal_window(request_id=request_id).duplicate


def test_dates_without_records(city: City) -> None:
    for date in (20241231, DATE + 1):
        assert city.close_window(date).result == Result.WINDOW_NOT_FOUND
        assert city.clear_window(date).result == Result.WINDOW_NOT_FOUND
    with pytest.raises(InvalidRequest, match="settlement_date"):
        city.close_window(20251301)
    with pytest.raises(NotFound):
        city.day.get_window(clearing_service_pb2.GetWindowRequest(settlement_date=DATE + 1))
    with pytest.raises(NotFound):
        city.day.list_positions(clearing_service_pb2.ListPositionsRequest(settlement_date=DATE))


def test_what_comes_after_closing_belongs_to_the_next_date(city: City) -> None:
    assert city.tap().settlement_date == DATE
    city.close_window()
    assert city.tap().settlement_date == DATE + 1
    city.restart()
    assert city.tap().settlement_date == DATE + 1
    first, second = city.windows()
    assert (first.state, second.state) == (WindowState.CLOSED, WindowState.OPEN)
    assert second.first_sequence == first.last_sequence + 1
    assert city.clear_window().result == Result.ACCEPTED
    assert city.outcomes(city.windows()[0]) == {"CLEARED": (1, 200)}


def test_a_day_that_passed_can_be_closed_afterwards(city: City) -> None:
    city.tap()
    city.to_date(1)
    city.tap()
    assert city.close_window().result == Result.ACCEPTED
    assert city.tap().settlement_date == DATE + 1  # the day that runs is not closed by it


def test_windows_are_cleared_one_after_the_other(city: City) -> None:
    city.tap()
    city.to_date(1)
    city.tap()
    assert city.close_window(DATE + 1).result == Result.ACCEPTED
    response = city.clear_window(DATE + 1)
    assert (response.result, response.reason) == (Result.WINDOW_BEFORE, "the window before it is OPEN")
    city.cleared(DATE)
    assert city.clear_window(DATE + 1).result == Result.ACCEPTED


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["tap", "close", "clear", "restart", "next"])), max_size=25))
def test_nothing_is_ever_outside_a_window(tmp_path_factory, steps) -> None:
    with City(tmp_path_factory.mktemp("city") / "data", folder=False) as city:
        for card, what in steps:
            dates = [window.settlement_date for window in city.windows()]
            if what == "tap":
                outcome = city.tap(card)
                assert outcome.settlement_date >= dates[-1]
            elif what == "close":
                city.close_window(dates[card % len(dates)])
            elif what == "clear":
                city.clear_window(dates[card % len(dates)])
            elif what == "restart":
                city.restart()
            else:
                city.pass_time(86_400 // 3)
        with city.journal.read() as reader:
            windows = prove_membership(reader)
            days = [day for entry in reader.entries() for day in settlement_days(entry.array).tolist()]
        assert [day_of(window.date) for window in windows] == [day for day, _ in itertools.groupby(days)]
        assert sum(window.last_sequence - window.first_sequence + 1 for window in windows) == len(days)


def test_two_dates_in_one_journal_value(city: City) -> None:
    """A group that a date is closed in the middle of."""
    city.decide([_submit(city.make())], [True])
    request = clearing_service_pb2.CloseWindowRequest(request_id=bytes(16), settlement_date=DATE)
    from yikatong.core.day.day_changes import close_window

    city.command(lambda memory, request, time_us: close_window(memory, request, time_us, has_records=True), request)
    city.decide([_submit(city.make())], [True])
    city.take()
    city.commit()
    with city.journal.read() as reader:
        first, second = windows_from(reader, DATE)
        prove_membership(reader)
    assert (first.last_sequence + 1, second.first_sequence) == (second.first_sequence, second.last_sequence)


def _submit(tap) -> bytes:
    from harness import submit_request

    return submit_request([tap])


# ---- netting and the ledger ----


def test_every_posting_kind_has_its_line() -> None:
    assert {kind.name for kind in PostingKind} <= set(LINES)


def test_what_a_day_comes_to(city: City) -> None:
    city.tap(0, "bus", 1000, amount_due_fen=1010)  # 10 fen of concession, 7 borne by the city; fee 7
    city.pass_time(600)
    city.tap(0, "metro", 500)  # a transfer: of 1,500 together each gets 750
    city.tap(1, "bus", 5001)  # over the limit: kept back
    city.tap(2, "metro", 300, city=4403)  # another city's card
    city.tap(3, "next-city", 100)  # our card in another city
    window = city.cleared()
    assert city.outcomes(window) == {"CLEARED": (4, 1900), "AMOUNT_OVER_LIMIT": (1, 5001)}
    got = {
        (position.participant, line.kind.value): (line.count, line.amount_fen)
        for position in city.day.netted(DATE).positions
        for line in position.lines
    }
    assert got == {
        ("operator:bus", "taps"): (2, 6001),
        ("operator:bus", "held"): (1, -5001),
        ("operator:bus", "concessions"): (1, 7),
        ("operator:bus", "splits"): (1, -250),
        ("operator:bus", "fees"): (1, -7),
        ("operator:metro", "taps"): (2, 800),
        ("operator:metro", "splits"): (1, 250),
        ("operator:metro", "fees"): (1, -4),  # 5 ‰ of 800
        ("city:4403", "inter-city"): (2, -200),  # it owes 300 and is owed 100
        ("subsidy:city", "concessions"): (1, -7),
        ("fees", "fees"): (2, 11),
        ("float", "taps"): (4, -6801),
        ("float", "held"): (1, 5001),
        ("float", "inter-city"): (2, 200),
    }
    assert sum(city.positions().values()) == 0
    assert city.moved() == {name: net for name, net in city.positions().items() if net}


SHOP = """
[[agreement]]
participant = "acquirer:*"
from = 2025-01-01
category = "5411"
appeal_days = 3
deny_list_hours = 24
fee = { rate_bp = 100, cap_fen = 40, refunds = "kept" }
"""


@pytest.mark.parametrize(
    ("fee", "captured_fee", "refunded_fee"),
    [
        ('rate_bp = 100, cap_fen = 40, refunds = "kept"', 25 + 40, 0),
        ('rate_bp = 100, cap_fen = 40, refunds = "returned"', 25 + 40, -10),
        ('rate_bp = 100, cap_fen = 60, refunds = "kept", per = "window"', 60, 0),
        ('rate_bp = 100, cap_fen = 60, refunds = "returned", per = "window"', 60, -10),
    ],
)
def test_captures_refunds_and_their_fees(tmp_path: Path, fee: str, captured_fee: int, refunded_fee: int) -> None:
    """Of an acquirer and two of its merchants, which are settled with it, on two days."""
    text = AGREEMENTS + SHOP.replace('rate_bp = 100, cap_fen = 40, refunds = "kept"', fee)
    with City(tmp_path / "data", text) as city:
        merchant = merchant_service_pb2.Merchant(acquirer_id="bank", merchant_id="shop", merchant_category="5411")
        other = merchant_service_pb2.Merchant(acquirer_id="bank", merchant_id="bar", merchant_category="5411")
        city.ask(register_merchants, merchant_service_pb2.RegisterMerchantsRequest(merchants=[merchant, other]))
        city.post("purse:x", "acquirer:bank:shop", 2_500, PostingKind.CAPTURE)
        city.post("purse:x", "acquirer:bank:bar", 9_000, PostingKind.CAPTURE)
        city.cleared()
        assert city.positions() == {"acquirer:bank": 11_500 - captured_fee, "fees": captured_fee, "float": -11_500}
        assert city.moved() == city.positions()
        city.to_date(1)
        city.post("acquirer:bank:bar", "purse:x", 1_000, PostingKind.REFUND)
        city.cleared(DATE + 1)
        wanted = {"acquirer:bank": -1_000 - refunded_fee, "fees": refunded_fee, "float": 1_000}
        assert city.positions(DATE + 1) == {name: net for name, net in wanted.items() if net}
        assert city.moved(DATE + 1) == city.positions(DATE + 1)
        city.to_date(2)
        city.post("purse:x", "acquirer:bank:bar", 700, PostingKind.CAPTURE)
        city.post("acquirer:bank:bar", "purse:x", 700, PostingKind.CAPTURE_REVERSAL)
        city.post("acquirer:bank:shop", "purse:x", 600, PostingKind.REFUND)
        city.post("purse:x", "acquirer:bank:shop", 600, PostingKind.REFUND_REVERSAL)
        city.cleared(DATE + 2)
        assert set(city.positions(DATE + 2).values()) == {0}  # what was undone costs nothing


RANDOM_STEPS = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(OPERATORS), st.sampled_from([0, 1, 199, 2000, 5001]), st.sampled_from([0, 1, 99]),
        st.sampled_from([5980, 5980, 4403, 4401]), st.sampled_from(["tap", "tap", "grey", "old", "online", "poor", "post"]),
    ),
    min_size=1, max_size=20,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(RANDOM_STEPS, RANDOM_STEPS)
def test_positions_sum_to_zero_and_are_what_the_ledger_moves(tmp_path_factory, first, second) -> None:
    with City(tmp_path_factory.mktemp("city") / "data") as city:
        for days, steps in enumerate((first, second)):
            city.to_date(days)
            for step in steps:
                _random_step(city, *step)
            window = city.cleared(DATE + days)
            assert sum(city.positions(DATE + days).values()) == 0
            assert city.moved(DATE + days) == {name: net for name, net in city.positions(DATE + days).items() if net}
            with city.journal.read() as reader:
                taps = sum(
                    int((entry.array["kind"] == 1).sum())
                    for entry in reader.entries(window.first_sequence)
                    if entry.first_sequence <= window.last_sequence
                )
            carried = sum(exception.sequence < window.first_sequence for exception in _exceptions(city, DATE + days))
            assert sum(count for count, _ in city.outcomes(window).values()) == taps + carried
        assert city.engine.imbalance_fen() == 0
    check(city.path, EngineSettings())


def _random_step(city: City, card: int, operator: str, amount_fen: int, given_fen: int, code: int, what: str) -> None:
    city.pass_time(300)
    fields = {"amount_due_fen": amount_fen + given_fen, "city": code}
    if what == "grey":
        city.tap(card, operator, amount_fen, grey=True, mac=b"none", **fields)
    elif what == "old":
        city.tap(card, operator, amount_fen, local_time=20241220080000, **fields)
    elif what == "online":
        city.authorize(city.make(card, operator, amount_fen, **fields))
    elif what == "poor":
        city.tap(card, operator, 90_000, **fields)
    elif what == "post":
        city.post("acquirer:shop", f"city:{code:04d}", amount_fen, PostingKind.NONE)  # carries nothing into a position
    else:
        city.tap(card, operator, amount_fen, **fields)


def _exceptions(city: City, date: int = DATE, outcome: int = 0, page_size: int = 0) -> list:
    found, token = [], ""
    while True:
        request = clearing_service_pb2.ListClearingExceptionsRequest(
            settlement_date=date, outcome=outcome, page_size=page_size, page_token=token
        )
        page = city.day.list_exceptions(request)
        found += page.exceptions
        if not (token := page.next_page_token):
            return found


def test_exceptions_are_paged_and_explained(city: City) -> None:
    city.tap(0, "bus", 5001)
    city.tap(1, "bus", 5001)
    city.atcs[1] += 3
    city.tap(1, "metro", 7)
    city.submit(make_tap(card_number="99", terminal_number=city.terminal("bus"), terminal_sequence=77))
    city.cleared()
    rows = _exceptions(city, page_size=1)
    assert [(ClearingOutcome(row.outcome).name, row.amount_fen, row.operator_id, row.card_number) for row in rows] == [
        ("AMOUNT_OVER_LIMIT", 5001, "bus", city.card(0)),
        ("AMOUNT_OVER_LIMIT", 5001, "bus", city.card(1)),
        ("ATC_GAP", 7, "metro", city.card(1)),
        ("CARD_UNKNOWN", 200, "bus", ""),
    ]
    assert rows[2].why == "3 counters of the card are missing before it; an upload is to be waited for"
    assert rows == _exceptions(city)
    assert _exceptions(city, outcome=ClearingOutcome.ATC_GAP) == [rows[2]]
    request = clearing_service_pb2.ListClearingExceptionsRequest(settlement_date=DATE, page_token="bm9uc2Vuc2U=")
    with pytest.raises(InvalidRequest, match="page_token"):
        city.day.list_exceptions(request)


# ---- grey records ----


def grey(city: City, card: int = 0, amount_fen: int = 300):
    return city.make(card, "bus", amount_fen, grey=True, mac=b"none")


def test_a_grey_record_is_settled_by_the_next_record_and_once(city: City) -> None:
    pulled = grey(city)
    assert city.submit(pulled)[0].result == Result.GREY
    assert city.outcomes(city.cleared()) == {"GREY": (1, 300)}
    city.to_date(1)
    city.tap(0, "metro", 100)
    before = city.balance(city.card(0)).balance_fen
    assert city.outcomes(city.cleared(DATE + 1)) == {"CLEARED": (1, 100), "GREY_PROVED": (1, 300)}
    assert city.balance(city.card(0)).balance_fen == before - 300
    assert city.moved(DATE + 1) == {name: net for name, net in city.positions(DATE + 1).items() if net}
    city.to_date(2)
    # The same record once more, and then the tap as it really was: neither is paid again.
    pulled.terminal_sequence += 100
    city.submit(pulled)
    whole = make_tap(**{field.name: value for field, value in pulled.ListFields() if field.name not in ("mac", "grey")})
    whole_outcome = city.submit(whole)[0]
    assert whole_outcome.result == Result.ACCEPTED
    window = city.cleared(DATE + 2)
    assert city.outcomes(window) == {"DUPLICATE": (2, 600)}
    assert city.positions(DATE + 2).get("operator:bus", 0) == 0
    assert city.moved(DATE + 2) == {}


def test_a_grey_debit_that_the_balance_does_not_cover_is_a_debt(city: City) -> None:
    city.register_card("4416000000000099")
    city.top_up("4416000000000099", 100)
    common = {"card_number": "4416000000000099", "terminal_number": city.terminal("bus")}
    chip = {"chip_balance_before_fen": 900, "chip_balance_after_fen": 700}
    city.submit(make_tap(**common, **chip, terminal_sequence=1, grey=True, mac=b"none", local_time=20250101083000))
    city.submit(
        make_tap(
            **common, terminal_sequence=2, atc=2, amount_fen=0, local_time=20250101083000, chip_balance_before_fen=700,
            chip_balance_after_fen=700,
        )
    )  # fmt: skip
    city.cleared()
    balance = city.balance("4416000000000099")
    assert (balance.balance_fen, balance.denied) == (-100, True)


def test_more_grey_debits_than_fit_go_to_the_next_window(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLEAR_GREY_MAX", 2)
    for _ in range(3):
        city.submit(grey(city, 0, 100))
    city.tap(0)
    assert city.outcomes(city.cleared()) == {"CLEARED": (1, 200), "GREY": (1, 100), "GREY_PROVED": (2, 200)}
    city.to_date(1)
    city.tap(1)
    assert city.outcomes(city.cleared(DATE + 1)) == {"CLEARED": (1, 200), "GREY_PROVED": (1, 100)}
    assert city.balance(city.card(0)).balance_fen == 100_000 - 500


# ---- denied cards ----


def test_the_operator_bears_what_its_terminals_took_from_denied_cards(tmp_path: Path) -> None:
    """From when the list could be there, as the journal tells it: what becomes of the card later does not matter."""

    def deny(reasons: int) -> None:
        def command(memory, _, time_us: int) -> None:
            change = Change(memory, time_us)
            change.deny(memory.engine.find_card(city.card(0)), reasons)
            change.commit("test")

        city.ask(command, None)

    with City(tmp_path / "data", AGREEMENTS.replace("deny_list_hours = 24", "deny_list_hours = 1", 1)) as city:
        city.tap(0)
        deny(Deny.LOSS)
        city.pass_time(3_600)
        assert city.tap(0, amount_fen=300).result == Result.ACCEPTED  # stored, and no later than the list could be there
        city.pass_time(1)
        assert city.tap(0, amount_fen=500).result == Result.ACCEPTED
        deny(0)
        city.tap(0)
        window = city.cleared()
        assert city.outcomes(window) == {"CLEARED": (3, 700), "DENIED_LIABLE": (1, 500)}
        assert city.moved() == {name: net for name, net in city.positions().items() if net}
        lines = {line.kind: line.amount_fen for line in city.day.netted(DATE).positions[-1].lines}
        assert (lines[LineKind.TAPS], lines[LineKind.LIABILITY]) == (1200, -500)


# ---- refusals that post nothing ----


def test_a_participant_without_agreement_is_named(tmp_path: Path) -> None:
    with City(tmp_path / "data", AGREEMENTS.replace("operator:metro", "operator:metro-2")) as city:
        city.tap(0, "bus")
        city.cleared()
        city.to_date(1)
        city.tap(0, "metro")
        city.close_window(DATE + 1)
        before = city.engine.next_sequence
        response = city.clear_window(DATE + 1)
        assert response.result == Result.NO_AGREEMENT
        assert response.reason == "there is no agreement on 2025-01-02 with operator:metro"
        assert city.engine.next_sequence == before


@pytest.mark.parametrize("action", ["warn", "block"])
def test_net_debit_caps(tmp_path: Path, action: str) -> None:
    cap = f'city = 4403\ndebit_cap = {{ amount_fen = 299, action = "{action}" }}\n'
    with City(tmp_path / "data", AGREEMENTS.replace("city = 4403\n", cap)) as city:
        city.tap(0, "next-city", 1)
        city.tap(1, "bus", 301, city=4403)
        city.close_window()
        before = city.engine.next_sequence
        response = city.clear_window()
        if action == "block":
            assert response.result == Result.NET_DEBIT_CAP
            assert response.reason == "city:4403 would owe 300 fen, its cap is 299"
            assert city.engine.next_sequence == before
            city.text = AGREEMENTS
            assert city.clear_window().result == Result.ACCEPTED
        else:
            assert response.result == Result.ACCEPTED
            assert [(passed.participant, passed.net_fen) for passed in response.window.caps_passed] == [("city:4403", -300)]


# ---- restarts ----


def _three_days(city: City) -> None:
    for days in range(3):
        city.to_date(days)
        for card in range(4):
            city.submit(grey(city, card, 100 + card))
            city.tap(card, OPERATORS[card % 3], 200)
            if (card + days) % 2:
                city.atcs[card] += 1
        city.submit(grey(city, 0, 50))
        city.close_window(DATE + days)


def test_files_that_are_lost_are_made_anew(tmp_path: Path) -> None:
    """What clearing keeps between windows may be gone before any of them: the days come to the same."""
    with City(tmp_path / "kept") as kept, City(tmp_path / "lost", folder=False) as lost, City(tmp_path / "torn") as torn:
        for city in (kept, lost, torn):
            _three_days(city)
        for days in range(3):
            windows = [city.clear_window(DATE + days).window for city in (kept, lost, torn)]
            assert windows[0].outcomes == windows[1].outcomes == windows[2].outcomes
            assert "GREY_PROVED" in kept.outcomes(windows[0])
            assert kept.positions(DATE + days) == lost.positions(DATE + days) == torn.positions(DATE + days)
            for path in torn.folder.iterdir() if torn.folder else ():
                path.write_bytes(path.read_bytes()[:-7])
            for date in range(DATE, DATE + days + 1):
                assert _exceptions(kept, date) == _exceptions(lost, date) == _exceptions(torn, date)


CLI = [sys.executable, "-m", "yikatong.core.cli"]


@pytest.fixture(scope="module")
def closed_day(tmp_path_factory) -> Path:
    """A data directory with a closed window, and the files that the command line wants beside it."""
    folder = tmp_path_factory.mktemp("day")
    with City(folder / "data") as city:
        for card in range(4):
            city.submit(grey(city, card, 100 + card))
            city.tap(card, OPERATORS[card % 3], 2000, amount_due_fen=2500)
        city.close_window()
        city.checkpoint()
    (folder / "agreements.toml").write_text(AGREEMENTS)
    subprocess.run([*CLI, "seal-key", "--private", folder / "seal.pem", "--public", folder / "public.pem"], check=True)
    return folder


def _run(folder: Path, data: Path, step: str, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    agreements = ["--agreements", folder / "agreements.toml"]
    options = {"clear": agreements, "settle": agreements, "seal": ["--seal-key", folder / "seal.pem"]}
    command = [*CLI, "day", step, "--data", data, "--date", str(DATE), *options.get(step, [])]
    environment = os.environ | ({"YIKATONG_FAILPOINT": failpoint} if failpoint else {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


STEPS = ("clear", "settle", "pay", "seal")


def _do(folder: Path, data: Path, step: str) -> None:
    """A step that nothing disturbs; the bank pays everything."""
    if step == "pay":
        with City.__new__(City) as city:
            Harness_open(city, data)
            assert city.pay().result == Result.ACCEPTED
            assert city.state() is WindowState.SETTLED
        return
    done = _run(folder, data, step)
    assert done.returncode == 0, done.stderr


def _books(data: Path) -> tuple:
    with City.__new__(City) as city:
        Harness_open(city, data)
        return city.engine.balances_fen().tolist(), city.positions(), city.engine.imbalance_fen()


def Harness_open(city: City, data: Path) -> None:
    from harness import Harness

    Harness.__init__(city, data)
    city.text, city.folder = AGREEMENTS, data / "clearing"
    city.now_us = max(city.now_us, city.journal.last_time_us)  # the command line wrote at the clock's time


@pytest.fixture(scope="module")
def wanted(closed_day: Path, tmp_path_factory) -> tuple:
    """The books after a day that nothing disturbed."""
    data = tmp_path_factory.mktemp("wanted") / "data"
    shutil.copytree(closed_day / "data", data)
    for step in STEPS:
        _do(closed_day, data, step)
    return _books(data)


IN_JOURNAL = ("journal-before-append", "journal-before-commit", "journal-after-commit")
CUTS = [
    (step, name)
    for step in ("clear", "settle", "seal")
    for name in (*(own for own in failpoints.DAY_NAMES if own.startswith(step)), *IN_JOURNAL)
]


@pytest.mark.parametrize(("step", "name"), CUTS)
def test_killed_between_any_two_steps(closed_day: Path, wanted: tuple, tmp_path: Path, step: str, name: str) -> None:
    """The process is killed; what is asked for again is then done once in all, and the books are those of an undisturbed day."""
    data = tmp_path / "data"
    shutil.copytree(closed_day / "data", data)
    for before in itertools.takewhile(lambda each: each != step, STEPS):
        _do(closed_day, data, before)
    assert _run(closed_day, data, step, name).returncode == -signal.SIGKILL
    check(data, EngineSettings())
    again = _run(closed_day, data, step)
    done_before = name in ("clear-posted", "seal-kept", "journal-after-commit")
    if step == "settle":  # may be asked for as long as not all is paid: it finds the same files and instructions
        done_before = False
    assert again.returncode == (1 if done_before else 0), again.stderr
    if done_before:
        assert ("WINDOW_CLEARED" if step == "clear" else "WINDOW_SEALED") in again.stderr
    for rest in STEPS[STEPS.index(step) + 1 :]:
        _do(closed_day, data, rest)
    assert _books(data) == wanted
    check(data, EngineSettings())


def test_float_pays_what_others_get(city: City) -> None:
    city.tap()
    city.cleared()
    positions = city.positions()
    assert positions[FLOAT] == -sum(net for name, net in positions.items() if name != FLOAT)
    assert LineKind.HELD.value == "held"


def test_a_cleared_day_exported(city: City, tmp_path: Path) -> None:
    """Events and what they moved have names, dates and balances."""
    import pyarrow.parquet

    city.submit(grey(city))
    city.tap(0, "bus", 200, amount_due_fen=300)
    city.cleared()
    command = [*CLI, "export", "--data", city.path, "--format", "parquet", "--out", tmp_path / "journal.parquet"]
    subprocess.run(command, check=True, capture_output=True)
    rows = pyarrow.parquet.read_table(tmp_path / "journal.parquet").to_pylist()
    assert [row["event"] for row in rows if row["kind"] == "EVENT"] == ["window-closed", "window-cleared"]
    postings = {row["reason"]: row for row in rows if row["kind"] == "POSTING"}
    assert set(postings) == {"GREY", "SUBSIDY", "FEE"}
    assert (postings["GREY"]["card_number"], postings["GREY"]["amount_fen"]) == (city.card(0), 300)
    assert postings["GREY"]["balance_after_fen"] == city.balance(city.card(0)).balance_fen == 100_000 - 500
    assert (postings["FEE"]["balance_after_fen"], postings["FEE"]["local_time"]) == (None, None)
    dates = [row["settlement_date"].strftime("%Y%m%d") for row in rows]
    assert sorted(set(dates)) == [str(DATE), str(DATE + 1)]
    assert dates == sorted(dates)
