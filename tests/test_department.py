"""A department's client against a server in a process of its own: the whole way over gRPC, and what it does when answers fail."""

import io
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness import Harness
from identity_city import TAC_MASTER, Citizen, City, Phone, card_mac

from yikatong.clients import consent, department
from yikatong.clients.connection import Connection
from yikatong.clients.department import Department, Refused
from yikatong.clients.embedded import EmbeddedServer
from yikatong.clients.phone import Phone as ClientPhone
from yikatong.clients.phone import Refused as PhoneRefused
from yikatong.core.cards.device_proof import message_of
from yikatong.core.identity import login
from yikatong.core.identity.assertions import AssertionWrong
from yikatong.core.keys import key_sets
from yikatong.core.types import Result
from yikatong.v1 import code_service_pb2, e_card_service_pb2
from yikatong.v1 import identity_service_pb2 as pb

WHY = "counter service", "consent"


class Town:
    """A running server, one citizen with a phone."""

    def __init__(self, connection: Connection, address: str, citizen: Citizen, phone: Phone) -> None:
        self.connection = connection
        self.address = address
        self.citizen = citizen
        self.phone = phone

    def answer(self, qr_content: str, *, consent: bool = True, fields: tuple[str, ...] = ("name",)) -> None:
        given = fields if consent else ()
        scan = pb.ScanLoginRequest(qr_content=qr_content, device_id=self.phone.device_id)
        scan.proof = self.phone.prove(login.proof_message("scan", qr_content))
        assert self.connection.identity.ScanLogin(scan, timeout=10).result == Result.ACCEPTED
        said = pb.AnswerLoginRequest(qr_content=qr_content, device_id=self.phone.device_id, consent=consent, fields=given)
        said.proof = self.phone.prove(login.proof_message("consent" if consent else "deny", qr_content, given))
        assert self.connection.identity.AnswerLogin(said, timeout=10).result == Result.ACCEPTED

    def code(self) -> str:
        request = code_service_pb2.GetCodeRequest(device_id=self.phone.device_id)
        request.proof = self.phone.prove(message_of("CodeService/GetCode", self.phone.device_id))
        return str(self.connection.codes.GetCode(request, timeout=10).code)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("department")
    key_file = folder / "keys.toml"
    key_set = key_sets.KeySet(bytes.fromhex("5980000100000000"), 1, 1, 2, TAC_MASTER)
    key_sets.write(key_file, key_set, "for tests")
    with Harness(folder / "data", [key_set]) as core:
        core.now_us = time.time_ns() // 1000 - 1_000_000
        city = City(core, key_sets.load_provider(key_file))
        citizen = city.add_citizen()
        phone = city.phone(citizen)
    phone._clock = lambda: time.time_ns() // 1000
    with EmbeddedServer(folder / "data", key_file) as server, Connection(server.address) as connection:
        yield Town(connection, server.address, citizen, phone)


@pytest.fixture
def hrss(town: Town) -> Department:
    return Department(town.connection, "hrss", sleep=lambda _: None)


def test_somebody_logs_in_and_on(town: Town, hrss: Department) -> None:
    begun = hrss.begin_login(["name", "card_number"], *WHY, state="s-7")
    assert hrss.ticket(begun) is None
    town.answer(begun.qr_content)
    logged_in = hrss.wait_for_login(begun)
    assert (logged_in.person, logged_in.state) == (pb.ShownPerson(name=town.citizen.data.name), "s-7")
    assert (logged_in.assertion.acr, len(logged_in.assertion.subject)) == ("e-card", 43)
    standing = pb.SetConsentRequest(
        device_id=town.phone.device_id, from_portal_id="hrss", to_portal_id="health-insurance", fields=["name"],
        decided_time_us=time.time_ns() // 1000, until_time_us=time.time_ns() // 1000 + 60_000_000,
    )  # fmt: skip
    standing.proof = town.phone.prove(login.consent_message(standing))
    assert town.connection.identity.SetConsent(standing, timeout=10).result == Result.ACCEPTED
    ticket = hrss.hand_on(logged_in.session, "health-insurance", ["name"], "medical settlement", "consent", nonce="there-1234")
    there = Department(town.connection, "health-insurance").redeem(ticket, "there-1234")
    assert there.assertion.acr == "app"
    assert there.assertion.subject != logged_in.assertion.subject


def test_a_denial_is_a_refusal_and_another_nonce_is_none_of_ours(town: Town, hrss: Department) -> None:
    begun = hrss.begin_login(["name"], *WHY)
    town.answer(begun.qr_content, consent=False)
    with pytest.raises(Refused) as refused:
        hrss.wait_for_login(begun)
    assert refused.value.result is Result.LOGIN_DENIED
    begun = hrss.begin_login(["name"], *WHY)
    town.answer(begun.qr_content)
    ticket = hrss.ticket(begun)
    assert ticket is not None
    with pytest.raises(AssertionWrong, match="another login"):
        hrss.redeem(ticket, "another-nonce")
    with pytest.raises(Refused, match="TICKET_USED"):
        hrss.redeem(ticket, begun.nonce)
    with pytest.raises(grpc.RpcError) as wrong:
        hrss.begin_login(["shoe_size"], *WHY)
    assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_codes_cards_numbers_and_names(town: Town, hrss: Department) -> None:
    citizen = town.citizen
    operator = pb.ShownPerson(name_masked="王*", citizen_number_masked="4***************12", card_number=citizen.card_number)
    assert hrss.resolve_code(town.code(), *WHY) == operator  # without TLS whoever calls is the machine's operator
    with pytest.raises(Refused, match="CODE_KIND_UNKNOWN"):
        hrss.resolve_code("nobody's", *WHY)
    assert hrss.verify_code(town.code(), *WHY).verified
    challenge = hrss.card_challenge()
    card = pb.PresentCard(
        card_number=citizen.card_number, challenge=challenge, key_version=1, key_index=1,
        mac=card_mac(citizen.card_number, challenge),
    )  # fmt: skip
    assert hrss.verify_card(card, *WHY).verified
    assert not hrss.verify_card(card, *WHY).verified
    assert hrss.verify_number_and_name(citizen.data.citizen_number, citizen.data.name, *WHY, ["name_masked"]).person == (
        pb.ShownPerson(name_masked="王*")
    )
    assert not hrss.verify_number_and_name(citizen.data.citizen_number, "李四", *WHY).verified


def test_the_example_runs(town: Town, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = town.citizen.data
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{data.citizen_number}\n{data.name}\n"))
    assert department.main(["--server", town.address, "number"]) == 0
    assert "verified: yes" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("nonsense\n"))
    assert department.main(["--server", town.address, "code"]) == 1
    assert "CODE_KIND_UNKNOWN" in capsys.readouterr().err
    command = [sys.executable, "-m", "yikatong.clients.department", "--server", town.address, "--fields", "name", "--", "login"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as example:
        assert example.stdout is not None
        shown = next(line for line in iter(example.stdout.readline, "") if line.startswith(login.QR_PREFIX))
        town.answer(shown.strip())
        out = example.stdout.read()
        assert example.wait(30) == 0
    assert f"name: {data.name}" in out


def test_a_phone_of_the_clients_consents_denies_and_hands_on(town: Town, hrss: Department, tmp_path: Path) -> None:
    start = e_card_service_pb2.StartActivationRequest(request_id=secrets.token_bytes(16), card_number=town.citizen.card_number)
    started = town.connection.e_cards.StartActivation(start, timeout=10)
    phone = ClientPhone(tmp_path / "phone.json")
    phone.activate(town.connection, started.code, started.activation_secret)
    begun = hrss.begin_login(["name", "district"], *WHY)
    asked = consent.scan(town.connection, phone, begun.qr_content)
    assert (asked.portal_id, asked.fields, asked.purpose, asked.legal_basis) == ("hrss", ("name", "district"), *WHY)
    consent.consent(town.connection, phone, asked, ["district"])
    logged_in = hrss.wait_for_login(begun)
    assert logged_in.person == pb.ShownPerson(district="441602")
    asked_on = (logged_in.session, "health-insurance", ["name"], "medical settlement", "consent")
    consent.let_hand_on(town.connection, phone, "hrss", "health-insurance", ["name"], 30)
    assert hrss.hand_on(*asked_on, nonce="there-1234")
    consent.let_hand_on(town.connection, phone, "hrss", "health-insurance", [], 0)
    with pytest.raises(Refused, match="CONSENT_MISSING"):
        hrss.hand_on(*asked_on, nonce="there-1234")
    begun = hrss.begin_login(["name"], *WHY)
    consent.deny(town.connection, phone, consent.scan(town.connection, phone, begun.qr_content))
    with pytest.raises(Refused, match="LOGIN_DENIED"):
        hrss.wait_for_login(begun)
    with pytest.raises(PhoneRefused, match="LOGIN_UNKNOWN"):
        consent.scan(town.connection, phone, login.QR_PREFIX + "AAAA")


# ---- answers that fail ----


class Failed(grpc.RpcError):
    """As a channel raises it."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code


class Faulty:
    """IdentityService that answers as it is told, and remembers what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []

    def ResolveCode(self, request: pb.ResolveCodeRequest, timeout: float) -> Any:
        self.asked.append(request.request_id)
        answer = self.answers.pop(0)
        if isinstance(answer, grpc.StatusCode):
            raise Failed(answer)
        return pb.ResolveCodeResponse(result=int(answer))


def asked_of(stub: Faulty, **more: Any) -> Any:
    class Made:
        identity = stub

    return Department(Made(), "hrss", sleep=lambda _: None).resolve_code("x", *WHY, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "first",
    [Result.FOREIGN_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL],
)
def test_what_passes_is_asked_again_under_the_same_id(first: Any) -> None:
    stub = Faulty(first, first, Result.ACCEPTED)
    asked_of(stub)
    assert len(stub.asked) == 3
    assert len(set(stub.asked)) == 1


@pytest.mark.parametrize("result", [Result.FOREIGN_REFUSED, Result.PERSON_UNKNOWN, Result.CODE_USED, Result.CARD_DENIED])
def test_a_no_is_not_asked_again(result: Result) -> None:
    stub = Faulty(result)
    with pytest.raises(Refused) as refused:
        asked_of(stub)
    assert (refused.value.result, len(stub.asked)) == (result, 1)


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED])
def test_a_wrong_call_is_not_made_again(code: grpc.StatusCode) -> None:
    stub = Faulty(code)
    with pytest.raises(grpc.RpcError):
        asked_of(stub)
    assert len(stub.asked) == 1


def test_the_deadline_is_over_all_attempts() -> None:
    with pytest.raises(grpc.RpcError):
        asked_of(Faulty(grpc.StatusCode.UNAVAILABLE), deadline_s=0.0)
    with pytest.raises(Refused, match="FOREIGN_UNAVAILABLE"):
        asked_of(Faulty(Result.FOREIGN_UNAVAILABLE), deadline_s=0.0)


def test_the_key_set_is_json(town: Town) -> None:
    answer = town.connection.identity.GetKeySet(pb.GetKeySetRequest(), timeout=10)
    assert [key["kid"] for key in json.loads(answer.key_set)["keys"]] == ["assertion-1-1", "oidc-1-1"]
    assert answer.issuer == "yikatong"


def test_keys_are_read_from_the_file(tmp_path: Path) -> None:
    """A key file made before there were keys for logins serves all else; logins then say what is missing."""
    key_file = tmp_path / "keys.toml"
    key_sets.make_test_keys(key_file)
    entries = key_file.read_text().split("\n[[key]]")
    key_file.write_text("\n[[key]]".join(entry for entry in entries if '"login"' not in entry))
    with EmbeddedServer(tmp_path / "data", key_file) as server, Connection(server.address) as connection:
        with pytest.raises(grpc.RpcError) as refused:
            Department(connection, "hrss").begin_login(["name"], *WHY)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
