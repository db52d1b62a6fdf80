"""Identity checks and codes of many issuers: yes with what may be seen, and one no that tells nothing."""

import asyncio
import functools
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import people
import pytest
from aiohttp import web
from gmssl import sm3 as gmssl_sm3
from harness import Harness
from hypothesis import given, settings
from hypothesis import strategies as st
from identity_city import HRSS, LIBRARY, PURPOSE, Citizen, City, card_mac, make_provider, new_id

from yikatong.core import limits
from yikatong.core.access import lockout
from yikatong.core.access.callers import LOCAL, Caller, serving
from yikatong.core.cards import codes
from yikatong.core.cards.device_proof import message_of
from yikatong.core.errors import ConfigError, InvalidRequest
from yikatong.core.identity import foreign_codes, identity, portals, visibility
from yikatong.core.identity.foreign_codes import (
    Breaker,
    CodeRefused,
    CodeServiceUnavailable,
    ForeignCodes,
    HttpCodeService,
    ServiceEntry,
)
from yikatong.core.identity.identity_service import Identity, IdentityOptions
from yikatong.core.types import Deny, DocumentKind, Result
from yikatong.v1 import access_pb2, code_service_pb2, journal_pb2
from yikatong.v1 import identity_service_pb2 as pb

OPERATOR = LOCAL


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    with Harness(tmp_path / "data") as core:
        yield City(core, make_provider(tmp_path))


@pytest.fixture
def citizen(city: City) -> Citizen:
    return city.add_citizen()


def verify(city: City, caller: Caller = HRSS, **proof: Any) -> pb.VerifyIdentityResponse:
    request = pb.VerifyIdentityRequest(**({"request_id": new_id()} | PURPOSE | proof))
    identity.check_verify(request)
    answer: pb.VerifyIdentityResponse = city.ask(identity.verify_own, request, caller)
    return answer


def by_name(citizen: Citizen, **change: str) -> dict[str, Any]:
    known = {"citizen_number": citizen.data.citizen_number, "name": citizen.data.name} | change
    return {"number_and_name": pb.NumberAndName(**known)}


def no(answer: pb.VerifyIdentityResponse) -> bytes:
    """An answer as it goes over the wire, but for its place in the journal."""
    answer.sequence = 0
    return answer.SerializeToString(deterministic=True)


NO = no(pb.VerifyIdentityResponse(result=int(Result.IDENTITY_NOT_VERIFIED), person=pb.ShownPerson()))


def notes(city: City, citizen: Citizen) -> list[journal_pb2.Access]:
    found = city.core.memory.documents.scan(DocumentKind.ACCESS, citizen.person_id, citizen.person_id + b"\xff" * 9)
    return [journal_pb2.Access.FromString(value) for _, value in found][::-1]  # oldest first


# ---- the card on a reader, as a card itself computes it ----


def challenge_for(city: City, caller: Caller = HRSS) -> bytes:
    answer: pb.StartCardCheckResponse = city.ask(identity.start_card_check, pb.StartCardCheckRequest(), caller)
    return answer.challenge


def present(citizen: Citizen, given_out: bytes, **change: Any) -> dict[str, Any]:
    known = {
        "card_number": citizen.card_number, "challenge": given_out, "key_version": 1, "key_index": 1,
        "mac": card_mac(citizen.card_number, given_out),
    } | change  # fmt: skip
    return {"card": pb.PresentCard(**known)}


def test_a_card_that_is_there_is_recognised(city: City, citizen: Citizen) -> None:
    answer = verify(city, **present(citizen, challenge_for(city)), fields=["name", "card_number"])
    assert (answer.result, answer.verified) == (Result.ACCEPTED, True)
    assert answer.person == pb.ShownPerson(name=citizen.data.name, card_number=citizen.card_number)
    (note,) = notes(city, citizen)
    assert (note.caller, note.action, list(note.fields)) == (str(HRSS), "IdentityService.VerifyIdentity", ["name", "card_number"])
    assert (note.purpose, note.legal_basis) == tuple(PURPOSE.values())


@pytest.mark.parametrize(
    "change",
    [
        {"mac": bytes(8)}, {"key_version": 9}, {"key_index": 2}, {"card_number": "3104416000009999"},
        {"challenge": bytes(8), "mac": card_mac("3104416000000001", bytes(8))},
    ],
)  # fmt: skip
def test_a_card_that_is_not_there_is_not(city: City, citizen: Citizen, change: dict[str, Any]) -> None:
    answer = verify(city, **present(citizen, challenge_for(city), **change))
    assert no(answer) == NO


def test_a_challenge_is_good_once_for_its_caller_and_for_a_minute(city: City, citizen: Citizen) -> None:
    challenge = challenge_for(city)
    assert verify(city, LIBRARY, **present(citizen, challenge)).result == Result.IDENTITY_NOT_VERIFIED
    assert verify(city, **present(citizen, challenge)).verified
    assert not verify(city, **present(citizen, challenge)).verified
    late = challenge_for(city)
    city.core.pass_time(limits.CHALLENGE_S)
    assert not verify(city, **present(citizen, late)).verified
    wrong = challenge_for(city)
    assert not verify(city, **present(citizen, wrong, mac=bytes(8))).verified
    assert not verify(city, **present(citizen, wrong)).verified  # a wrong answer used it


@given(challenge=st.binary(min_size=8, max_size=8), number=st.from_regex(r"[0-9]{1,20}", fullmatch=True))
@settings(deadline=None)
def test_the_message_is_24_bytes_and_starts_with_its_kind(challenge: bytes, number: str) -> None:
    message = identity.card_message(challenge, number)
    assert (len(message), message[:8], message[8:16]) == (24, b"IDENTITY", challenge)
    assert message[16:].hex() == number[-16:].zfill(16)


# ---- number and name, and what a no tells ----


def test_number_and_name_must_both_be_right_and_the_no_is_always_the_same(city: City, citizen: Citizen) -> None:
    other = city.add_citizen(2)
    assert verify(city, **by_name(citizen)).verified
    before = city.core.engine.next_sequence
    answers = []
    for wrong in (
        by_name(citizen, name=other.data.name),
        by_name(citizen, citizen_number=people.citizen_number(99)),
        by_name(citizen, citizen_number="nonsense"),
    ):
        answer = verify(city, **wrong)
        assert answer.sequence == before  # one event each, so that time tells nothing either
        before = city.core.engine.next_sequence
        answers.append(no(answer))
    city.deny(citizen, Deny.LOSS)
    assert {*answers, no(verify(city, **by_name(citizen)))} == {NO}
    assert [note.action for note in notes(city, citizen)] == [
        "IdentityService.VerifyIdentity",
        *["IdentityService.VerifyIdentity refused"] * 2,
    ]


def wrong_proofs(city: City, citizen: Citizen) -> int:
    return lockout.of(city.core.memory, lockout.of_person(citizen.person_id)).wrong


def test_who_is_locked_out_learns_nothing(city: City, citizen: Citizen) -> None:
    for _ in range(limits.WRONG_PROOFS_MAX):
        assert no(verify(city, **by_name(citizen, name="nobody"))) == NO
    assert no(verify(city, LIBRARY, **by_name(citizen))) == NO  # at another caller too
    assert verify(city, LIBRARY, **by_name(city.add_citizen(2))).verified
    city.core.pass_time(limits.LOCKOUT_S + 1)
    assert verify(city, **by_name(citizen)).verified
    assert wrong_proofs(city, citizen) == 0


def test_a_request_that_comes_again_is_answered_again_and_counted_once(city: City, citizen: Citizen) -> None:
    asked = {"request_id": new_id(), **by_name(citizen, name="nobody")}
    assert [verify(city, **asked).duplicate for _ in range(2)] == [False, True]
    assert wrong_proofs(city, citizen) == 1
    assert verify(city, **(asked | by_name(citizen))).result == Result.CONFLICT
    assert verify(city, LIBRARY, **asked).result == Result.CONFLICT  # another caller's answers are not for it
    good = {"request_id": new_id(), **by_name(citizen)}
    first, again = verify(city, **good), verify(city, **good)
    assert (again.duplicate, again.person) == (True, first.person)
    on_disk = b"".join(path.read_bytes() for path in city.core.path.rglob("*") if path.is_file())
    assert citizen.data.citizen_number.encode() not in on_disk
    assert citizen.data.name.encode() not in on_disk


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("purpose", {"purpose": ""}),
        ("legal_basis", {"legal_basis": ""}),
        ("request_id", {"request_id": b""}),
        ("fields", {"fields": ["x"]}),
        ("proof", {"number_and_name": None}),
        ("code", {"code": "x" * 1_025}),
        ("card.mac", {"card": pb.PresentCard(card_number="1", challenge=bytes(8), mac=b"1")}),
        ("card.card_number", {"card": pb.PresentCard(challenge=bytes(8), mac=bytes(8))}),
        ("number_and_name.name", {"number_and_name": pb.NumberAndName(citizen_number="1")}),
    ],
)
def test_bad_requests_name_their_field(city: City, citizen: Citizen, field: str, change: dict[str, Any]) -> None:
    proof = {} if {"card", "code"} & set(change) else by_name(citizen)
    with pytest.raises(InvalidRequest) as refused:
        verify(city, **(proof | change))
    assert refused.value.field == field


# ---- what may be seen ----

SEEN = """
caller                          purpose             sees
department:hrss                 pension statement   name name_masked citizen_number citizen_number_masked card_number district
department:health-insurance     medical settlement  name name_masked citizen_number citizen_number_masked card_number
department:health-insurance     curiosity           name_masked citizen_number_masked
department:culture-tourism      concession          name_masked citizen_number_masked rider
department:anybody              anything            name_masked citizen_number_masked
operator:local                  anything            name_masked citizen_number_masked card_number
bank:icbc                       anything
"""


@pytest.mark.parametrize("row", SEEN.strip().splitlines()[1:])
def test_the_table_that_comes_with_the_package(city: City, citizen: Citizen, row: str) -> None:
    who, purpose, *rest = (part.strip() for part in row.split("  ") if part.strip())
    role, name = who.split(":")
    caller = Caller(access_pb2.Role.Value(f"ROLE_{role.upper()}"), name)
    seen = rest[0].split() if rest else []
    assert list(city.rules.visibility.allowed(caller, purpose)) == seen
    answer = verify(city, caller, **by_name(citizen), purpose=purpose)
    assert [field.name for field, _ in answer.person.ListFields()] == seen
    assert answer.verified
    asked = verify(city, caller, **by_name(citizen), purpose=purpose, fields=["citizen_number", "rider"])
    assert {field.name for field, _ in asked.person.ListFields()} == set(seen) & {"citizen_number", "rider"}


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("rule", "x = 1"),
        (r"rule\[0\]", '[[rule]]\nrole = "department"'),
        (r"rule\[0\].role", '[[rule]]\nrole = "king"\nname = "*"\npurpose = "*"\nfields = ["name"]'),
        (r"rule\[0\].name", '[[rule]]\nrole = "*"\nname = "a b"\npurpose = "*"\nfields = ["name"]'),
        (r"rule\[0\].purpose", '[[rule]]\nrole = "*"\nname = "*"\npurpose = ""\nfields = ["name"]'),
        (r"rule\[0\].fields", '[[rule]]\nrole = "*"\nname = "*"\npurpose = "*"\nfields = ["shoe_size"]'),
        ("TOML", "["),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, place: str, text: str) -> None:
    (tmp_path / "visibility.toml").write_text(text)
    with pytest.raises(ConfigError, match=place):
        visibility.read(tmp_path / "visibility.toml")


# ---- portals ----

PORTAL = {
    "id": "library", "title": "City library", "secret_digest": portals.new_secret()[1],
    "redirect_uris": ["https://library.example/login"], "fields": ["name"], "purpose": "account", "legal_basis": "consent",
}  # fmt: skip


def portal_file(folder: Path, **change: Any) -> Path:
    path = folder / "portals.toml"
    values = {name: value for name, value in (PORTAL | change).items() if value is not None}
    path.write_text("[[portal]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path


def test_a_portal_is_read_and_knows_its_secret(tmp_path: Path) -> None:
    secret, digest = portals.new_secret()
    portal = portals.read(portal_file(tmp_path, secret_digest=digest))["library"]
    assert digest == gmssl_sm3.sm3_hash(list(secret.encode()))
    assert portal.has_secret(secret)
    assert not portal.has_secret(secret + "x")
    assert portal.id_token_alg == "ES256"
    assert not portal._replace(secret_digest=b"").has_secret("")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("id", {"id": "a b"}), ("title", {"title": ""}), ("purpose", {"purpose": ""}), ("legal_basis", {"legal_basis": "\n"}),
        ("secret_digest", {"secret_digest": "00"}), ("secret_digest or public_key", {"secret_digest": None}),
        ("public_key", {"secret_digest": None, "public_key": "x"}), ("fields", {"fields": []}),
        ("id_token_alg", {"id_token_alg": "none"}), ("redirect_uris", {"redirect_uris": ["http://library.example/"]}),
        ("redirect_uris", {"redirect_uris": ["https://library.example/#x"]}), ("redirect_uris", {"redirect_uris": []}),
        ("redirect_uris", {"redirect_uris": ["javascript:alert(1)"]}), ("are wanted", {"more": 1}),
    ],
)  # fmt: skip
def test_a_wrong_portal_is_refused(tmp_path: Path, field: str, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=field):
        portals.read(portal_file(tmp_path, **change))


# ---- codes of ours: as they will be resolved ----


@pytest.fixture
def give_code(city: City, citizen: Citizen) -> Callable[[], str]:
    """What the citizen's phone shows, each time another."""
    phone = city.phone(citizen)

    def give() -> str:
        request = code_service_pb2.GetCodeRequest(device_id=phone.device_id)
        request.proof = phone.prove(message_of("CodeService/GetCode", phone.device_id))
        answer = city.core.ask(functools.partial(codes.get_code, city.provider, secrets.token_bytes(18)), request)
        assert answer.result == Result.ACCEPTED
        return str(answer.code)

    return give


def resolve(city: City, code: str, caller: Caller = HRSS, **more: Any) -> pb.ResolveCodeResponse:
    request = pb.ResolveCodeRequest(**({"request_id": new_id(), "code": code} | PURPOSE | more))
    identity.check_resolve(request)
    answer: pb.ResolveCodeResponse = city.ask(identity.resolve_own, request, caller)
    return answer


def test_a_code_of_ours_is_used_up_and_answered_again_under_its_request(
    city: City, citizen: Citizen, give_code: Callable[[], str]
) -> None:
    request_id, code = new_id(), give_code()
    answers = [resolve(city, code, request_id=request_id, fields=["name"]) for _ in range(2)]
    assert [answer.duplicate for answer in answers] == [False, True]
    assert {answer.person.name for answer in answers} == {citizen.data.name}
    assert {answer.source for answer in answers} == {"e-card"}
    assert resolve(city, code).result == Result.CODE_USED
    assert not verify(city, code=code).verified
    assert resolve(city, "X" + code) is None  # another issuer's, perhaps
    assert resolve(city, "YK" + "A" * 32).result == Result.CODE_UNKNOWN
    assert resolve(city, "YK1").result == Result.CODE_MALFORMED
    answer = verify(city, code=give_code(), fields=["citizen_number"])
    assert (answer.verified, answer.person.citizen_number) == (True, citizen.data.citizen_number)
    old = give_code()
    city.core.pass_time(limits.CODE_S)
    assert resolve(city, old).result == Result.CODE_EXPIRED


def test_a_denied_card_behind_a_code_leads_to_nobody(city: City, citizen: Citizen, give_code: Callable[[], str]) -> None:
    code, other = give_code(), give_code()
    city.deny(citizen, Deny.FROZEN)
    answer = resolve(city, code)
    assert answer.result == Result.CARD_DENIED
    assert not answer.person.ListFields()
    assert no(verify(city, code=other)) == NO


# ---- codes of others: real servers, small and made to misbehave ----

SECRET = bytes(range(32))
KINDS = ("province", "health-code", "medical-insurance")


def other_signature(kind: str, request_id: str, body: bytes) -> str:
    """HMAC by its definition over gmssl's SM3."""

    def sm3(data: bytes) -> bytes:
        return bytes.fromhex(gmssl_sm3.sm3_hash(list(data)))

    key = SECRET.ljust(64, b"\0")
    inner = sm3(bytes(byte ^ 0x36 for byte in key) + kind.encode() + b"\0" + request_id.encode() + b"\0" + body)
    return sm3(bytes(byte ^ 0x5C for byte in key) + inner).hex()


class CodeServer:
    """A service that keeps the contract, unless it is told to misbehave."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[dict[str, Any]] = []
        self.fault = ""
        self.seen: set[str] = set()
        self.waiting = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked = json.loads(body)
        self.asked.append(asked)
        if self.fault == "slow":
            await asyncio.sleep(30)
        if self.fault == "wait":
            await self.waiting.wait()
        fresh = asked["request_id"] not in self.seen and abs(asked["time_ms"] / 1000 - time.time()) < 300
        self.seen.add(asked["request_id"])
        if not fresh or request.headers["X-Signature"] != other_signature("request", asked["request_id"], body):
            return web.Response(status=403)
        number = self.answers.get(asked["code"])
        answer = {"request_id": asked["request_id"], "status": "ok" if number else "refused", "citizen_number": number}
        if self.fault == "other-request":
            answer["request_id"] = "0" * 32
        if self.fault == "no-number":
            answer |= {"status": "ok", "citizen_number": None}
        said = b"{" if self.fault == "no-json" else json.dumps(answer).encode()
        said += b" " * 20_000 if self.fault == "long" else b""
        signed = other_signature("answer", asked["request_id"], said)
        if self.fault == "unsigned":
            signed = ""
        if self.fault == "replayed":
            signed = other_signature("answer", "0" * 32, said)
        if self.fault == "redirect":
            return web.Response(status=307, headers={"Location": "/elsewhere"})
        status = 500 if self.fault == "500" else 200
        return web.Response(body=said, status=status, headers={"X-Signature": signed}, content_type="application/json")


def served(answers: dict[str, str], test: Callable[[CodeServer, ServiceEntry], Awaitable[None]]) -> None:
    async def run() -> None:
        server = CodeServer(answers)
        application = web.Application()
        application.router.add_post("/resolve", server.handle)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/resolve"
        try:
            await test(server, ServiceEntry("health-code", "HC1:", url, "key-1", SECRET))
        finally:
            await runner.cleanup()

    asyncio.run(run())


def test_each_kind_of_code_is_asked_of_its_own_service_and_shown_as_may_be(city: City, citizen: Citizen) -> None:
    answers = {f"{kind}/1": citizen.data.citizen_number for kind in KINDS} | {"province/2": people.citizen_number(77)}

    async def test(server: CodeServer, entry: ServiceEntry) -> None:
        services = [HttpCodeService(entry._replace(name=kind, prefix=f"{kind}/")) for kind in KINDS]

        async def submit(work: Any) -> Any:
            return city.core.ask(lambda memory, _, time_us: work.command(memory, time_us), None)

        served_here = Identity(city.provider, IdentityOptions(foreign=ForeignCodes(services)), submit)
        methods = {"ResolveCode": served_here.resolve_code, "VerifyIdentity": served_here.verify_identity}

        async def ask(code: str, caller: Caller = HRSS, method: str = "ResolveCode", **more: Any) -> Any:
            kind = getattr(pb, f"{method}Request")
            request = kind(**({"request_id": new_id(), "code": code} | PURPOSE | more))
            with serving(caller):
                return await methods[method](request, None)

        for kind in KINDS:
            answer = await ask(f"{kind}/1")
            assert (answer.result, answer.source) == (Result.ACCEPTED, kind)
            assert answer.person.name == citizen.data.name
            masked = await ask(f"{kind}/1", LIBRARY)
            assert {field.name for field, _ in masked.person.ListFields()} == {"name_masked", "citizen_number_masked"}
        again = {"request_id": new_id()}
        before = len(server.asked)
        assert [(await ask("province/1", **again)).duplicate for _ in range(2)] == [False, True]
        assert len(server.asked) == before + 1  # the service was not asked for what is known
        assert (await ask("province/2")).result == Result.PERSON_UNKNOWN
        assert (await ask("province/3")).result == Result.FOREIGN_REFUSED
        assert (await ask("nobody/1")).result == Result.CODE_KIND_UNKNOWN
        assert (await ask("province/1", method="VerifyIdentity")).verified
        for code in ("province/2", "province/3", "nobody/1"):
            assert (await ask(code, method="VerifyIdentity")).result == Result.IDENTITY_NOT_VERIFIED
        server.fault, retried = "500", {"request_id": new_id()}
        assert (await ask("province/1", **retried)).result == Result.FOREIGN_UNAVAILABLE
        assert (await ask("province/1", method="VerifyIdentity")).result == Result.FOREIGN_UNAVAILABLE
        server.fault = ""
        assert (await ask("province/1", **retried)).result == Result.ACCEPTED
        city.deny(citizen, Deny.LOSS)
        assert (await ask("province/1")).result == Result.CARD_DENIED
        await served_here.close()

    served(answers, test)
    actions = [(note.caller, note.action) for note in notes(city, citizen)]
    assert actions.count((str(HRSS), "IdentityService.ResolveCode")) == 5
    assert actions.count((str(LIBRARY), "IdentityService.ResolveCode")) == 3
    assert actions.count((str(HRSS), "IdentityService.ResolveCode refused")) == 1


FAULTS = ["500", "no-json", "no-number", "other-request", "unsigned", "replayed", "redirect", "long", "slow"]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_not_as_agreed_is_none(fault: str) -> None:
    async def test(server: CodeServer, entry: ServiceEntry) -> None:
        service = HttpCodeService(entry._replace(timeout_s=0.2))
        server.fault = fault
        with pytest.raises(CodeServiceUnavailable) as refused:
            await service.resolve("HC1:x", 5)
        assert "HC1:x" not in str(refused.value)
        server.fault = ""
        if fault != "slow":
            assert await service.resolve("HC1:x", 5) == "1"
            with pytest.raises(CodeRefused):
                await service.resolve("HC1:y", 5)
        await service.close()

    served({"HC1:x": "1"}, test)


def test_a_service_that_fails_is_left_alone_and_tried_again() -> None:
    now = [0.0]

    async def test(server: CodeServer, entry: ServiceEntry) -> None:
        service = HttpCodeService(entry, breaker=Breaker(lambda: now[0]))
        server.fault = "500"

        async def fails() -> None:
            with pytest.raises(CodeServiceUnavailable):
                await service.resolve("HC1:x", 5)

        for _ in range(limits.FOREIGN_FAILURES_MAX + 3):
            await fails()
        assert len(server.asked) == limits.FOREIGN_FAILURES_MAX
        now[0] = limits.FOREIGN_PAUSE_S
        await fails()
        await fails()
        assert len(server.asked) == limits.FOREIGN_FAILURES_MAX + 1  # one call tried it
        now[0] = 2 * limits.FOREIGN_PAUSE_S
        server.fault = ""
        assert await service.resolve("HC1:x", 5) == "1"
        with pytest.raises(CodeRefused):  # a refusal is an answer
            await service.resolve("HC1:y", 5)
        assert await service.resolve("HC1:x", 5) == "1"
        await service.close()

    served({"HC1:x": "1"}, test)


def test_no_more_calls_than_agreed_are_made_at_once() -> None:
    async def test(server: CodeServer, entry: ServiceEntry) -> None:
        service = HttpCodeService(entry._replace(calls_max=2, timeout_s=30))
        server.fault = "wait"
        under_way = [asyncio.create_task(service.resolve("HC1:x", 30)) for _ in range(2)]
        while len(server.asked) < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(CodeServiceUnavailable, match="2 calls"):
            await service.resolve("HC1:x", 30)
        server.waiting.set()
        assert await asyncio.gather(*under_way) == ["1", "1"]
        assert await service.resolve("HC1:x", 30) == "1"
        await service.close()

    served({"HC1:x": "1"}, test)


def test_the_longest_prefix_wins() -> None:
    entry = ServiceEntry("a", "H", "http://127.0.0.1/", "k", SECRET)
    codes = ForeignCodes([HttpCodeService(entry), HttpCodeService(entry._replace(name="b", prefix="HC"))])
    found = [codes.service_of(code) for code in ("Hx", "HCx", "x")]
    assert [None if service is None else service.name for service in found] == ["a", "b", None]
    assert ForeignCodes().service_of("Hx") is None


ENTRY = {"name": "health-code", "prefix": "HC1:", "url": "https://health.example/r", "key_id": "k", "secret": SECRET.hex()}


def service_file(folder: Path, **change: Any) -> Path:
    path = folder / "services.toml"
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in (ENTRY | change).items()]
    path.write_text("[[code_service]]\n" + "".join(lines))
    path.chmod(0o600)
    return path


def test_services_are_read_and_their_secrets_stay_untold(tmp_path: Path) -> None:
    (entry,) = foreign_codes.read(service_file(tmp_path, timeout_s=1, calls_max=3))
    assert (entry.prefix, entry.secret, entry.timeout_s, entry.calls_max) == ("HC1:", SECRET, 1.0, 3)
    assert SECRET.hex() not in repr(entry)
    path = service_file(tmp_path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod"):
        foreign_codes.read(path)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("name", {"name": "e-card"}), ("name", {"name": "A"}), ("prefix", {"prefix": ""}), ("secret", {"secret": "00"}),
        ("secret", {"secret": "x" * 64}), ("url", {"url": "http://health.example/"}), ("timeout_s", {"timeout_s": 0}),
        ("url", {"url": "http://127.0.0.1.evil.example/"}),
        ("calls_max", {"calls_max": True}), ("nothing else", {"more": 1}),
    ],
)  # fmt: skip
def test_a_wrong_service_is_refused(tmp_path: Path, field: str, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=field) as refused:
        foreign_codes.read(service_file(tmp_path, **change))
    assert SECRET.hex() not in str(refused.value)
