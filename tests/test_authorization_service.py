"""Authorisations, merchants and purses as a client sees them: over gRPC, with the rules that a file says."""

import secrets
from pathlib import Path

import grpc
import pytest
from city import new_card
from payments import RULES_TEXT
from test_service import violated_field

from yikatong.clients.connection import Connection, call
from yikatong.clients.embedded import EmbeddedServer, ServerFailed
from yikatong.core.config import read_settings
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import Result
from yikatong.v1 import authorization_service_pb2 as pb
from yikatong.v1 import merchant_service_pb2, purse_service_pb2


def authorize_request(card: str, fen: int, **fields: object) -> pb.AuthorizeRequest:
    known = {"acquirer_id": "acq", "merchant_id": "canteen", "merchant_category": "5814"} | fields
    return pb.AuthorizeRequest(request_id=secrets.token_bytes(16), card_number=card, amount_fen=fen, **known)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> object:
    folder = tmp_path_factory.mktemp("rules")
    rules = folder / "rules.toml"
    rules.write_text(RULES_TEXT)
    with EmbeddedServer(folder / "data", key_file, "--purse-rules", str(rules)) as running:
        yield running


@pytest.fixture(scope="module")
def card(connection: Connection, key_set: KeySet) -> str:
    merchant = merchant_service_pb2.Merchant(acquirer_id="acq", merchant_id="canteen", merchant_category="5814")
    call(connection.merchants.RegisterMerchants, merchant_service_pb2.RegisterMerchantsRequest(merchants=[merchant]))
    return new_card(connection, key_set, 100_000).card_number


def test_a_meal(connection: Connection, card: str) -> None:
    opened = connection.purses.OpenPurse(
        purse_service_pb2.OpenPurseRequest(
            request_id=secrets.token_bytes(16), card_number=card, purse_id="m1", purse_kind="meal", funder_id="school"
        )
    )
    funded = connection.purses.FundPurse(
        purse_service_pb2.FundPurseRequest(request_id=secrets.token_bytes(16), card_number=card, purse_id="m1", amount_fen=1_000)
    )
    assert (opened.result, funded.balance_after_fen) == (Result.ACCEPTED, 1_000)
    held = connection.authorizations.Authorize(authorize_request(card, 300))
    assert [(leg.purse, leg.amount_fen) for leg in held.legs] == [("m1", 250), ("general", 50)]  # the file's limit of a day
    captured = connection.authorizations.Capture(
        pb.CaptureRequest(
            request_id=secrets.token_bytes(16), acquirer_id="acq", authorization_id=held.authorization_id, amount_fen=260
        )
    )
    assert (captured.captured_fen, captured.held_fen) == (260, 40)
    merchant = connection.merchants.GetMerchant(merchant_service_pb2.GetMerchantRequest(acquirer_id="acq", merchant_id="canteen"))
    assert (merchant.account_name, merchant.payable_fen) == ("acquirer:acq:canteen", 260)
    purses = connection.purses.ListPurses(purse_service_pb2.ListPursesRequest(card_number=card)).purses
    assert [(purse.purse_id, purse.balance_fen, purse.held_fen) for purse in purses] == [("m1", 750, 0), ("general", 99_990, 40)]
    found = connection.authorizations.GetAuthorization(
        pb.GetAuthorizationRequest(acquirer_id="acq", authorization_id=held.authorization_id)
    ).authorization
    assert [operation.sequence for operation in found.operations] == [held.sequence, captured.sequence]
    listed = connection.authorizations.ListAuthorizations(pb.ListAuthorizationsRequest(card_number=card)).authorizations
    assert [each.authorization_id for each in listed] == [held.authorization_id]


def test_a_large_batch_is_answered_in_order(connection: Connection, key_set: KeySet, card: str) -> None:
    requests = [authorize_request(card, 1 + at % 7, legs=[pb.Leg(purse="general", amount_fen=1 + at % 7)]) for at in range(200)]
    requests[130].amount_fen = -1
    requests[199].request_id = requests[0].request_id
    answers = call(connection.authorizations.BatchAuthorize, pb.BatchAuthorizeRequest(requests=requests)).responses
    assert len(answers) == 200
    for at, answer in enumerate(answers):
        if at == 130:
            assert (answer.result, answer.invalid_field) == (Result.MALFORMED_AMOUNT, "amount_fen")
        elif at == 199:
            assert answer.result == Result.CONFLICT
        else:
            assert (answer.result, answer.legs[0].amount_fen) == (Result.ACCEPTED, 1 + at % 7)
    again = call(connection.authorizations.BatchAuthorize, pb.BatchAuthorizeRequest(requests=requests)).responses
    assert {answer.duplicate for at, answer in enumerate(again) if at not in (130, 199)} == {True}
    for wrong in ([], [pb.AuthorizeRequest()] * 8_193):
        with pytest.raises(grpc.RpcError) as caught:
            connection.authorizations.BatchAuthorize(pb.BatchAuthorizeRequest(requests=wrong))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert violated_field(caught.value) == "requests"


def test_bad_calls_name_the_field(connection: Connection, card: str) -> None:
    for method, request, field in (
        ("Authorize", authorize_request(card, 0), "amount_fen"),
        ("Authorize", authorize_request(card, 1, merchant_category="4111"), "merchant_category"),
        ("Capture", pb.CaptureRequest(request_id=bytes(16), acquirer_id="acq", amount_fen=1), "key"),
        ("ListAuthorizations", pb.ListAuthorizationsRequest(), "acquirer_id"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(connection.authorizations, method)(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert violated_field(caught.value) == field
    with pytest.raises(grpc.RpcError) as caught:
        connection.authorizations.GetAuthorization(pb.GetAuthorizationRequest(acquirer_id="acq", authorization_id=1))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_wrong_rule_file_is_told_with_line_and_field(tmp_path: Path, key_file: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES_TEXT.replace('period = "day"', 'period = "week"', 1))
    line = RULES_TEXT[: RULES_TEXT.index('period = "day"')].count("\n") + 1
    with pytest.raises(ServerFailed, match=rf"rules.toml:{line}: limits\[1\].period: one of"):
        EmbeddedServer(tmp_path / "data", key_file, "--purse-rules", str(rules))


def test_the_rule_file_is_found_beside_the_settings(tmp_path: Path) -> None:
    settings = tmp_path / "yikatong.toml"
    settings.write_text('purse_rules = "rules.toml"\n')
    assert read_settings(settings, {}).purse_rules == str(tmp_path / "rules.toml")
    settings.write_text('purse_rules = ""\n')
    assert read_settings(settings, {}).purse_rules == ""
