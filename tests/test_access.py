"""Who may call what: the options in the protos, and the checks that follow from them."""

import asyncio
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

import yikatong.v1
from yikatong.core.access import access
from yikatong.core.access.access import (
    ACQUIRER,
    BANK,
    DEPARTMENT,
    OPERATOR,
    OTHER_CHECKS,
    OWN,
    TERMINAL,
    Access,
    Resolved,
    Rule,
    rule_of,
)
from yikatong.core.access.callers import LOCAL, ROLES, Caller
from yikatong.core.errors import Forbidden, InvalidRequest, NotFound
from yikatong.core.service import DESCRIPTORS
from yikatong.core.services.resolvers import RESOLVERS
from yikatong.v1 import (
    account_service_pb2,
    authorization_service_pb2,
    clearing_service_pb2,
    exception_service_pb2,
    purse_service_pb2,
    reconciliation_service_pb2,
    settlement_service_pb2,
    tap_service_pb2,
    terminal_service_pb2,
)


def all_methods() -> Iterator[MethodDescriptor]:
    """Every method in every proto of the package, whether the server has it or not."""
    for module in pkgutil.iter_modules(yikatong.v1.__path__, "yikatong.v1."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                yield from service.methods


METHODS = sorted(all_methods(), key=lambda method: method.full_name)
RULES = {rule.name: rule for rule in map(rule_of, METHODS)}
by_name = pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)


def fault(rule: Rule) -> str:
    """What is missing in a method's options; empty where nothing is."""
    if not rule.grants and not rule.anybody:
        return "nobody may call it"
    if 0 in rule.grants or 0 in rule.grants.values() or set(rule.grants) - set(ROLES.values()):
        return "a grant without role or scope"
    for role, scope in rule.grants.items():
        if rule.is_checked_elsewhere(role):
            continue
        shown = bool(rule.request_owners.get(role)) or (rule.only_reads and bool(rule.response_owners.get(role)))
        if scope == OWN and not shown:
            return f"nothing shows what is role {role}'s own"
        near = bool(rule.request_districts) or (rule.only_reads and bool(rule.response_districts))
        if scope == access.DISTRICT and not near:
            return f"nothing shows what is in role {role}'s district"
    return ""


# ---- the protos ----


@by_name
def test_every_method_says_who_may_call_it(rule: Rule) -> None:
    assert fault(rule) == ""


@by_name
def test_grants_name_a_role_once(rule: Rule) -> None:
    grants = rule.method.GetOptions().Extensions[access._ACCESS].grants
    assert len({grant.role for grant in grants}) == len(grants)


@by_name
def test_an_operator_may_call_everything_that_is_not_personal(rule: Rule) -> None:
    """Who runs the core can do by hand what any other caller does; what a person must consent to is left to itself."""
    assert OPERATOR in rule.grants or rule.anybody or rule.method.containing_service.name not in BEFORE


BEFORE = {
    "TapService", "AccountService", "TerminalService", "DenyListService", "ClearingService", "SettlementService",
    "ReconciliationService", "ExceptionService", "AuthorizationService", "MerchantService", "PurseService",
}  # fmt: skip


def messages(kind: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    if kind.full_name not in seen:
        seen.add(kind.full_name)
        yield kind
        for field in kind.fields:
            if field.message_type is not None:
                yield from messages(field.message_type, seen)


def test_owner_fields_can_hold_a_name() -> None:
    seen: set[str] = set()
    owners = [
        field
        for method in METHODS
        for top in (method.input_type, method.output_type)
        for kind in messages(top, seen)
        for field in kind.fields
        if access.owner_of(field)
    ]
    assert owners
    for field in owners:
        wanted = FieldDescriptor.TYPE_BYTES if access.owner_of(field) == TERMINAL else FieldDescriptor.TYPE_STRING
        assert field.type == wanted, field.full_name
        assert access.owner_of(field) in ROLES.values(), field.full_name


def test_every_card_number_is_personal() -> None:
    seen: set[str] = set()
    for method in METHODS:
        for top in (method.input_type, method.output_type):
            for kind in messages(top, seen):
                for field in kind.fields:
                    if field.name == "card_number":
                        assert access.personal_level(field), field.full_name


def test_other_checks_are_wanted() -> None:
    """Each stands for a grant that is there and that no field could show; none is left from what was renamed."""
    for name, role in OTHER_CHECKS:
        if name.endswith(".*"):
            assert any(rule.grants.get(role) for rule in RULES.values() if rule.name.startswith(name[:-1])), name
            continue
        rule = RULES[name]
        assert rule.grants[role] in (OWN, access.DISTRICT)
        assert role == BANK or name in NOT_BY_ROWS or not rule.only_reads or not rule.response_owners.get(role), name
    for name in RESOLVERS:
        assert any(key[0] == name for key in OTHER_CHECKS), name


NOT_BY_ROWS = {"ClearingService.GetOperatorTotals"}  # its rows are filtered too, but its sums must not count the others'


def test_a_method_without_option_would_be_seen() -> None:
    good = RULES["TapService.GetTap"]
    assert fault(good) == ""
    assert fault(good._replace(grants={})) == "nobody may call it"
    assert fault(good._replace(grants={0: OWN})) != ""
    assert fault(good._replace(grants={TERMINAL: 0})) != ""
    assert fault(good._replace(grants={BANK: OWN})) == f"nothing shows what is role {BANK}'s own"
    assert fault(RULES["TerminalService.RegisterTerminals"]._replace(grants={DEPARTMENT: access.DISTRICT})) != ""


def test_the_server_serves_what_has_rules() -> None:
    assert {method.full_name for service in DESCRIPTORS for method in service.methods} <= {m.full_name for m in METHODS}


# ---- calls ----

BUS, TRAM = Caller(ACQUIRER, "bus"), Caller(ACQUIRER, "tram")
GATE = Caller(TERMINAL, "112233445566")
UNION = Caller(DEPARTMENT, "union")
NEAR = Caller(DEPARTMENT, "hrss", "441602")
CITY = Caller(DEPARTMENT, "hrss")
CLERK = Caller(OPERATOR, "anna")
DISTRICTS = {"11": "441602", "12": "441602", "21": "441621"}

authorize, authorize_all = authorization_service_pb2.AuthorizeRequest, authorization_service_pb2.BatchAuthorizeRequest
listing = authorization_service_pb2.ListAuthorizationsRequest
get_tap = tap_service_pb2.GetTapRequest
tap_found = tap_service_pb2.GetTapResponse
total = settlement_service_pb2.GetReceiptRequest.ParticipantTotal
purse = purse_service_pb2
books = exception_service_pb2


async def ask(command: Callable[[Any], Any]) -> Any:
    return command(None)


def resolve(memory: Any, message: Any) -> Resolved:
    if getattr(message, "dispute_id", "d") == "none":
        raise NotFound("dispute", "none")
    return Resolved(("bus", "union"), "11")


CHECKS = Access(RULES.values(), ask, lambda memory, card: DISTRICTS.get(card), dict.fromkeys(RESOLVERS, resolve))


def run(name: str, caller: Caller, request: Message | bytes, response: Message | Exception | None = None) -> Any:
    """A call's answer; or, where it is refused, why."""
    rule = RULES[name]
    served = []

    async def serve() -> bytes:
        served.append(True)
        if isinstance(response, Exception):
            raise response
        return b"" if response is None else response.SerializeToString()

    raw = request if isinstance(request, bytes) else request.SerializeToString()
    method = rule.method.containing_service.full_name, rule.method.name
    try:
        answer = asyncio.run(CHECKS.run(*method, caller, raw, serve))
    except Forbidden as error:
        assert not served or rule.only_reads  # nothing was done
        return error.why
    assert served
    return None if response is None else type(response).FromString(answer)


CASES: list[tuple[str, Caller, Message, str | None]] = [
    # roles
    ("AccountService.TopUp", BUS, account_service_pb2.TopUpRequest(card_number="11"), "role"),
    ("AccountService.TopUp", GATE, account_service_pb2.TopUpRequest(card_number="11"), "role"),
    ("AccountService.TopUp", Caller(BANK, "icbc"), account_service_pb2.TopUpRequest(card_number="11"), None),
    ("ClearingService.ClearWindow", BUS, clearing_service_pb2.ClearWindowRequest(), "role"),
    ("ClearingService.ClearWindow", LOCAL, clearing_service_pb2.ClearWindowRequest(), None),
    # one's own, in the request
    ("AuthorizationService.Authorize", BUS, authorize(acquirer_id="bus"), None),
    ("AuthorizationService.Authorize", BUS, authorize(acquirer_id="tram"), "own"),
    ("AuthorizationService.Authorize", BUS, authorize(acquirer_id="bus "), "own"),
    ("AuthorizationService.Authorize", BUS, authorize(), "own"),
    ("AuthorizationService.Authorize", CLERK, authorize(acquirer_id="tram"), None),
    ("AuthorizationService.BatchAuthorize", BUS, authorize_all(requests=[authorize(acquirer_id="bus")] * 3), None),
    ("AuthorizationService.BatchAuthorize", BUS,
     authorize_all(requests=[authorize(acquirer_id="bus"), authorize(acquirer_id="tram")]), "own"),
    ("AuthorizationService.BatchAuthorize", BUS, authorize_all(), "own"),
    ("AuthorizationService.ListAuthorizations", BUS, listing(card_number="11"), "own"),
    ("AuthorizationService.ListAuthorizations", BUS, listing(acquirer_id="bus"), None),
    ("SettlementService.GetReport", BUS, settlement_service_pb2.GetReportRequest(participant="operator:bus"), None),
    ("SettlementService.GetReport", BUS, settlement_service_pb2.GetReportRequest(participant="acquirer:bus"), None),
    ("SettlementService.GetReport", BUS, settlement_service_pb2.GetReportRequest(participant="bus"), "own"),
    ("SettlementService.GetReport", BUS, settlement_service_pb2.GetReportRequest(), "own"),
    ("SettlementService.GetReceipt", BUS, settlement_service_pb2.GetReceiptRequest(sequence=7), "own"),
    ("SettlementService.GetReceipt", BUS,
     settlement_service_pb2.GetReceiptRequest(participant_total=total(participant="operator:bus")), None),
    ("SettlementService.GetReceipt", TRAM,
     settlement_service_pb2.GetReceiptRequest(participant_total=total(participant="operator:bus")), "own"),
    # people who sign for what they do
    ("ExceptionService.ApproveAdjustment", CLERK, books.ApproveAdjustmentRequest(actor_id="anna"), None),
    ("ExceptionService.ApproveAdjustment", CLERK, books.ApproveAdjustmentRequest(actor_id="ben"), "own"),
    ("ExceptionService.ApproveAdjustment", LOCAL, books.ApproveAdjustmentRequest(actor_id="ben"), None),
    # what is behind an id
    ("ExceptionService.RespondToDispute", BUS, books.RespondToDisputeRequest(dispute_id="d"), None),
    ("ExceptionService.RespondToDispute", TRAM, books.RespondToDisputeRequest(dispute_id="d"), "own"),
    ("ExceptionService.RespondToDispute", BUS, books.RespondToDisputeRequest(dispute_id="none"), "own"),
    ("ExceptionService.RespondToDispute", CLERK, books.RespondToDisputeRequest(dispute_id="d", actor_id="anna"), None),
    ("ExceptionService.WithdrawDispute", NEAR, books.WithdrawDisputeRequest(dispute_id="d"), None),
    ("ExceptionService.WithdrawDispute", Caller(DEPARTMENT, "hrss", "441621"), books.WithdrawDisputeRequest(dispute_id="d"),
     "district"),
    ("PurseService.FundPurse", UNION, purse.FundPurseRequest(card_number="11", purse_id="meal"), None),
    ("PurseService.FundPurse", CITY, purse.FundPurseRequest(card_number="11", purse_id="meal"), "own"),
    ("PurseService.OpenPurse", UNION, purse.OpenPurseRequest(card_number="11", funder_id="union"), None),
    ("PurseService.OpenPurse", UNION, purse.OpenPurseRequest(card_number="11", funder_id="city"), "own"),
    ("PurseService.OpenPurse", Caller(DEPARTMENT, "union", "441621"),
     purse.OpenPurseRequest(card_number="11", funder_id="union"), "district"),
    # districts
    ("AccountService.GetBalance", NEAR, account_service_pb2.GetBalanceRequest(card_number="11"), None),
    ("AccountService.GetBalance", NEAR, account_service_pb2.GetBalanceRequest(card_number="21"), "district"),
    ("AccountService.GetBalance", NEAR, account_service_pb2.GetBalanceRequest(card_number="404"), "district"),
    ("AccountService.GetBalance", NEAR, account_service_pb2.GetBalanceRequest(), "district"),
    ("AccountService.GetBalance", CITY, account_service_pb2.GetBalanceRequest(card_number="21"), None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "caller", "request_", "why"), CASES)
def test_requests(name: str, caller: Caller, request_: Message, why: str | None) -> None:
    assert run(name, caller, request_) == why


@pytest.mark.parametrize(
    ("caller", "request_", "answer", "why"),
    [
        (BUS, get_tap(sequence=5), tap_found(operator_id="bus"), None),
        (TRAM, get_tap(sequence=5), tap_found(operator_id="bus"), "own"),
        (TRAM, get_tap(sequence=5), tap_found(), "own"),
        (TRAM, get_tap(sequence=404), NotFound("tap", "404"), "own"),  # in the same words
        (GATE, get_tap(sequence=5), tap_found(tap=tap_service_pb2.Tap(terminal_number=bytes.fromhex("112233445566"))), None),
        (GATE, get_tap(sequence=5), tap_found(tap=tap_service_pb2.Tap(terminal_number=bytes.fromhex("112233445567"))), "own"),
        (GATE, get_tap(sequence=5), tap_found(operator_id="112233445566"), "own"),
    ],
)
def test_a_tap_is_shown_to_whose_it_is(caller: Caller, request_: Message, answer: Any, why: str | None) -> None:
    assert run("TapService.GetTap", caller, request_, answer) == (answer if why is None else why)


def test_a_terminal_hears_that_its_own_tap_is_not_there() -> None:
    """It named itself, so nothing is told of others."""
    counter = get_tap.TerminalCounter(terminal_number=bytes.fromhex("112233445566"), terminal_sequence=9)
    with pytest.raises(NotFound):
        run("TapService.GetTap", GATE, get_tap(terminal_counter=counter), NotFound("tap", "9"))
    counter.terminal_number = bytes.fromhex("665544332211")
    assert run("TapService.GetTap", GATE, get_tap(terminal_counter=counter), NotFound("tap", "9")) == "own"


def test_rows_of_others_are_left_out() -> None:
    position = clearing_service_pb2.ParticipantPosition
    answer = clearing_service_pb2.ListPositionsResponse(
        positions=[position(participant=name, net_fen=at) for at, name in enumerate(("operator:bus", "operator:tram", "fees",
                                                                                      "acquirer:bus", "bus"))]
    )  # fmt: skip
    request = clearing_service_pb2.ListPositionsRequest(settlement_date=20260101)
    shown = run("ClearingService.ListPositions", BUS, request, answer)
    assert [(row.participant, row.net_fen) for row in shown.positions] == [("operator:bus", 0), ("acquirer:bus", 3)]
    assert run("ClearingService.ListPositions", LOCAL, request, answer) == answer
    differences = reconciliation_service_pb2.ListDifferencesResponse(
        differences=[reconciliation_service_pb2.Difference(party=party) for party in ("bank", "operator:bus", "operator:tram")]
    )
    shown = run("ReconciliationService.ListDifferences", TRAM, reconciliation_service_pb2.ListDifferencesRequest(), differences)
    assert [row.party for row in shown.differences] == ["operator:tram"]


def test_a_list_with_cards_of_another_district_is_refused() -> None:
    request = books.ListDisputesRequest()
    near = books.ListDisputesResponse(disputes=[books.Dispute(card_number="11"), books.Dispute(card_number="12")])
    far = books.ListDisputesResponse(disputes=[books.Dispute(card_number="11"), books.Dispute(card_number="21")])
    assert run("ExceptionService.ListDisputes", NEAR, request, near) == near
    assert run("ExceptionService.ListDisputes", NEAR, request, far) == "district"
    assert run("ExceptionService.ListDisputes", CITY, request, far) == far


def test_a_terminal_of_one_operator() -> None:
    terminal = terminal_service_pb2.Terminal(terminal_number=bytes.fromhex("112233445566"), operator_id="bus")
    answer = terminal_service_pb2.GetTerminalResponse(terminal=terminal)
    request = terminal_service_pb2.GetTerminalRequest(terminal_number=terminal.terminal_number)
    assert run("TerminalService.GetTerminal", BUS, request, answer) == answer
    assert run("TerminalService.GetTerminal", GATE, request, answer) == answer
    assert run("TerminalService.GetTerminal", TRAM, request, answer) == "own"
    request.terminal_number = bytes(6)
    assert run("TerminalService.GetTerminal", GATE, request, NotFound("terminal", "0")) == "own"


def test_what_is_no_protobuf_is_told_so() -> None:
    with pytest.raises(InvalidRequest, match="request: is not protobuf"):
        run("AuthorizationService.Authorize", BUS, b"\xff")


def test_local_is_not_a_name() -> None:
    """An operator whose certificate says `local` is not the machine's own."""
    assert run("ExceptionService.ApproveAdjustment", Caller(*LOCAL), books.ApproveAdjustmentRequest(actor_id="ben")) == "own"


@by_name
def test_every_grant_can_be_used_and_no_other(rule: Rule) -> None:
    service, method = rule.method.containing_service.full_name, rule.method.name
    for role in ROLES.values():
        caller = Caller(role, "someone")
        if role in rule.grants:
            assert CHECKS.scope_of(service, method, caller) == rule.grants[role]
        elif not rule.anybody:
            with pytest.raises(Forbidden) as caught:
                CHECKS.scope_of(service, method, caller)
            assert caught.value.wanted == rule.wanted


def test_the_other_checks() -> None:
    access.check_bank(Caller(BANK, "icbc"), "icbc")
    access.check_bank(CLERK, "icbc")
    access.check_participant(BUS, "operator:bus")
    access.check_participant(CLERK, "operator:bus")
    access.check_district(CITY, None)
    access.check_district(NEAR, "441602")
    for wrong in (
        lambda: access.check_bank(Caller(BANK, "icbc"), ""),
        lambda: access.check_bank(Caller(BANK, "icbc"), "boc"),
        lambda: access.check_participant(TRAM, "operator:bus"),
        lambda: access.check_district(NEAR, None),
        lambda: access.check_district(NEAR, "441621"),
    ):
        with pytest.raises(Forbidden):
            wrong()
