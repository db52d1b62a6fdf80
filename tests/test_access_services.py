"""What only the services know of who may see what: what core/access/access.py names in OTHER_CHECKS, each against a real core."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import make_tap
from service_port import ServicePort, department

from yikatong.core.access import access
from yikatong.core.access.callers import LOCAL, Caller
from yikatong.core.day.settle import file_stem
from yikatong.core.day.tap_file import Taps, tap_csv
from yikatong.core.errors import Forbidden
from yikatong.core.keys import key_sets
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.services.settlement import may_fetch
from yikatong.core.types import Result
from yikatong.v1 import exception_service_pb2

BUS, TRAM = Caller(access.ACQUIRER, "bus"), Caller(access.ACQUIRER, "tram")
UNION, CIVIL = department("union"), department("civil")
NEAR = department("hrss:441602")
CARD = "3104416000000017"
TERMINAL = bytes.fromhex("112233445566")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[ServicePort]:
    with ServicePort(tmp_path_factory.mktemp("access") / "data", key_file) as made:
        card = {"card_number": CARD, "issuer_id": key_sets.load(key_file)[0].issuer_id, "rider": 1}
        made.call("CardService/RegisterCards", cards=[card])
        made.call("AccountService/TopUp", card_number=CARD, amount_fen=10_000)
        for number, operator_id in ((TERMINAL, "bus"), (bytes(6), "tram")):
            terminal = {"terminal_number": number, "operator_id": operator_id, "kind": 1}
            made.call("TerminalService/RegisterTerminals", terminals=[terminal])
        yield made


_counter = iter(range(1, 1000))


def tap(port: ServicePort, key_set: KeySet, terminal: bytes = TERMINAL, amount_fen: int = 200) -> Any:
    """A ride; its outcome."""
    at = next(_counter)
    made = make_tap(key_set, card_number=CARD, terminal_number=terminal, atc=at, terminal_sequence=at, amount_fen=amount_fen)
    outcome = port.call("TapService/SubmitTaps", taps=[made]).outcomes[0]
    assert outcome.result == Result.ACCEPTED
    return outcome


def refused(port: ServicePort, method: str, caller: Caller, **fields: Any) -> str:
    with pytest.raises(Forbidden) as caught:
        port.call(method, caller=caller, **fields)
    return caught.value.why


# ---- purses: a funder's own ----


def test_a_purse_is_its_funders(port: ServicePort) -> None:
    own = {"card_number": CARD, "purse_id": "meal"}
    opening = own | {"purse_kind": "meal", "funder_id": "union"}
    assert refused(port, "PurseService/OpenPurse", CIVIL, **opening) == "own"
    opened = port.call("PurseService/OpenPurse", caller=UNION, **opening)
    assert opened.result == Result.ACCEPTED
    for method, more in (("PurseService/FundPurse", {"amount_fen": 500}), ("PurseService/ClosePurse", {})):
        assert refused(port, method, CIVIL, **own, **more) == "own"
        for not_there in ({"purse_id": "none"}, {"card_number": "404"}, {"card_number": "x"}):
            assert refused(port, method, UNION, **(own | more | not_there)) == "own"
        assert port.call(method, caller=UNION, **own, **more).result == Result.ACCEPTED


# ---- disputes: of who was paid, and of the card's district ----


def dispute_of(port: ServicePort, sequence: int) -> str:
    made = port.call(
        "ExceptionService/OpenDispute", card_number=CARD, journal_sequence=sequence, disputed_fen=1, actor_id="hall",
        reason=exception_service_pb2.Dispute.REASON_WRONG_AMOUNT,
    )  # fmt: skip
    assert made.result == Result.ACCEPTED
    return str(made.dispute.dispute_id)


def test_a_dispute_is_answered_by_who_was_paid(port: ServicePort, key_set: KeySet) -> None:
    dispute = dispute_of(port, tap(port, key_set).sequence)
    answer = {"dispute_id": dispute, "actor_id": "clerk", "accept": False}
    assert refused(port, "ExceptionService/RespondToDispute", TRAM, **answer) == "own"
    assert refused(port, "ExceptionService/RespondToDispute", BUS, **(answer | {"dispute_id": "f" * 16})) == "own"
    assert port.call("ExceptionService/RespondToDispute", caller=BUS, **answer).result == Result.ACCEPTED


def test_a_dispute_of_a_purchase(port: ServicePort) -> None:
    merchant = {"acquirer_id": "shops", "merchant_id": "noodles", "merchant_category": "5814"}
    port.call("MerchantService/RegisterMerchants", merchants=[merchant])
    held = port.call("AuthorizationService/Authorize", **merchant, card_number=CARD, amount_fen=300)
    taken = port.call(
        "AuthorizationService/Capture", acquirer_id="shops", authorization_id=held.authorization_id, amount_fen=300, final=True
    )
    assert taken.result == Result.ACCEPTED
    rows = port.call("AccountService/ListTransactions", card_number=CARD).transactions
    capture = next(row.sequence for row in rows if row.reason == "capture")
    answer = {"dispute_id": dispute_of(port, capture), "actor_id": "clerk", "accept": True}
    assert refused(port, "ExceptionService/RespondToDispute", BUS, **answer) == "own"
    shops = Caller(access.ACQUIRER, "shops")
    assert port.call("ExceptionService/RespondToDispute", caller=shops, **answer).result == Result.ACCEPTED


def test_a_dispute_is_taken_back_in_its_district(port: ServicePort, key_set: KeySet) -> None:
    withdrawal = {"dispute_id": dispute_of(port, tap(port, key_set).sequence), "actor_id": "hall"}
    assert refused(port, "ExceptionService/WithdrawDispute", NEAR, **withdrawal) == "district"  # nobody knows whose card it is
    assert refused(port, "ExceptionService/GetDispute", NEAR, dispute_id=withdrawal["dispute_id"]) == "district"
    assert port.call("ExceptionService/GetDispute", caller=department("hrss"), dispute_id=withdrawal["dispute_id"])
    withdrawn = port.call("ExceptionService/WithdrawDispute", caller=department("hrss"), **withdrawal)
    assert withdrawn.result == Result.ACCEPTED


def test_the_district_of_a_persons_card(port: ServicePort, key_set: KeySet) -> None:
    """Registered with the person's district, a card is seen there, in the whole city's, and nowhere else."""
    from yikatong.core.change import Change
    from yikatong.core.identity import persons
    from yikatong.v1 import person_service_pb2

    number = f"31044160{secrets.randbelow(10**8):08d}"
    port.call("CardService/RegisterCards", cards=[{"card_number": number, "issuer_id": key_set.issuer_id, "rider": 1}])

    def link(memory: Any, time_us: int) -> None:
        person = secrets.token_bytes(16)
        change = Change(memory, time_us)
        document = person_service_pb2.PersonDocument(district="441602")
        change.put(persons.DocumentKind.PERSON, person, document.SerializeToString())
        persons.give_card(change, person, int(memory.engine.find_card(number)))
        change.commit("test-person")

    port.ask(link)
    request = {"card_number": number}
    for caller in (NEAR, department("hrss:441600"), department("hrss"), LOCAL):
        assert port.call("AccountService/GetBalance", caller=caller, **request).balance_fen == 0
    assert refused(port, "AccountService/GetBalance", department("hrss:441621"), **request) == "district"


# ---- clearing: one's own part ----


def test_totals_are_ones_own(port: ServicePort, key_set: KeySet) -> None:
    tap(port, key_set, amount_fen=70)
    date = tap(port, key_set, terminal=bytes(6), amount_fen=90).settlement_date
    whole = port.call("ClearingService/GetOperatorTotals", settlement_date=date)
    assert {row.operator_id for row in whole.operators} == {"bus", "tram"}
    for caller in (BUS, TRAM):
        seen = port.call("ClearingService/GetOperatorTotals", caller=caller, settlement_date=date)
        (own,) = [row for row in whole.operators if row.operator_id == caller.name]
        assert list(seen.operators) == [own]
        assert (seen.total_taps, seen.total_fen) == (own.taps, own.amount_fen)
    nobody = port.call("ClearingService/GetOperatorTotals", caller=Caller(access.ACQUIRER, "x"), settlement_date=date)
    assert (list(nobody.operators), nobody.total_taps, nobody.total_fen) == ([], 0, 0)


def test_a_participants_file_is_its_own(port: ServicePort, key_set: KeySet) -> None:
    date = tap(port, key_set).settlement_date
    none = Taps(*(np.empty(0, kind) for kind in (np.uint64, np.uint32, np.uint32, np.int64, np.uint64)))
    content = tap_csv("operator:bus", date, none)
    file = {"name": "bus.csv", "content": content}
    assert refused(port, "ReconciliationService/IngestParticipantFile", TRAM, **file) == "own"
    answer = port.call("ReconciliationService/IngestParticipantFile", caller=BUS, **file)
    assert answer.file_taps == 0
    assert answer.journal_taps > 0
    listed = port.call("ReconciliationService/ListDifferences", caller=BUS, sequence=answer.sequence)
    assert listed.differences
    assert not port.call("ReconciliationService/ListDifferences", caller=TRAM, sequence=answer.sequence).differences


def test_which_settlement_files_are_whose() -> None:
    names = {
        f"{file_stem('operator:bus')}.utf-8.csv": {"bus"}, f"{file_stem('acquirer:bus')}.gb18030.csv": {"bus"},
        f"{file_stem('operator:tram')}.utf-8.csv": {"tram"}, f"{file_stem('operator:bus2')}.utf-8.csv": set(),
        "payments.pain.001.xml": {"bank"}, "claims.utf-8.csv": {"bank"}, "SM3SUMS": set(), "": set(),
    }  # fmt: skip
    callers = {"bus": BUS, "tram": TRAM, "bank": Caller(access.BANK, "icbc")}
    for name, wanted in names.items():
        assert {who for who, caller in callers.items() if may_fetch(caller, name)} == wanted, name
        assert may_fetch(LOCAL, name)


def test_no_bank_is_the_settlement_bank_unless_named(port: ServicePort) -> None:
    bank = Caller(access.BANK, "icbc")
    assert refused(port, "ReconciliationService/ListInstructions", bank, settlement_date=20260101) == "own"
    assert refused(port, "ReconciliationService/IngestBankFile", bank, name="x", content=b"x") == "own"
    assert refused(port, "SettlementService/ListSettlementFiles", bank, settlement_date=20260101) == "own"
    assert refused(port, "SettlementService/GetSettlementFile", bank, settlement_date=20260101, name="x") == "own"


def test_rides_by_code_of_ones_own_terminals(port: ServicePort) -> None:
    """Who reads a code's bytes at a gate says which gate it is; the code itself is no good here, but that is an answer."""
    gate = Caller(access.TERMINAL, TERMINAL.hex())

    def taps(*numbers: bytes) -> dict[str, Any]:
        return {"taps": [{"code": b"x", "terminal_number": number, "local_time": 20260101120000} for number in numbers]}

    for caller in (gate, BUS, LOCAL):
        (outcome,) = port.call("CodeService/TapByCode", caller=caller, **taps(TERMINAL)).outcomes
        assert outcome.result != Result.ACCEPTED
    for caller in (gate, BUS):
        for others in ((bytes(6),), (TERMINAL, bytes(6)), (b"\x01" * 6,), (b"",), ()):
            assert refused(port, "CodeService/TapByCode", caller, **taps(*others)) == "own"
    assert refused(port, "CodeService/TapByCode", NEAR, **taps(TERMINAL)) == "role"
