"""Codes: online ones good for a minute and once, ride codes, and taps by both, which are taps like any other."""

import functools
import secrets
from pathlib import Path
from typing import Any

import auditor
import pytest
from harness import ISSUER, KEY_SET, Harness, authorize_request, local_time_of, make_tap, submit_request
from test_e_cards import CARD, OTHER, bind, cancel, deny, issue, revoke

from yikatong.core import limits
from yikatong.core.access.callers import parse_identity
from yikatong.core.cards import codes, device_proof, e_cards, ride_code
from yikatong.core.cards.codes import CodeChecker, Reserved, RideCodeRules
from yikatong.core.change import Change
from yikatong.core.errors import ConfigError
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.keys.provider import KeyReference, Purpose
from yikatong.core.keys.software import SoftwareProvider
from yikatong.core.sm2 import PrivateKey
from yikatong.core.types import Deny, DocumentKind, Result
from yikatong.v1 import code_service_pb2 as pb
from yikatong.v1 import tap_service_pb2

AUTHORITY, ISSUER_KEY = PrivateKey.make(), PrivateKey.make()
CERTIFICATE = ride_code.make_certificate(ISSUER_KEY.public_key().point(), b"\x59\x80\x00\x01", 203_012, AUTHORITY.sign_raw)
RULES = RideCodeRules(CERTIFICATE, AUTHORITY.public_key())
PROVIDER = SoftwareProvider(
    {
        KeyReference(Purpose.DEVICE, 1): bytes(range(16)),  # as in test_e_cards
        KeyReference(Purpose.TAC, KEY_SET.key_version, KEY_SET.key_index, ISSUER): KEY_SET.master,
        KeyReference(Purpose.CODE_ISSUER, 1): ISSUER_KEY.private_pem(),
    }
)
TERMINAL, OTHER_TERMINAL = bytes.fromhex("112233445566"), bytes.fromhex("665544332211")


class Phone:
    """A device of an e-card, and what the test asks of it."""

    def __init__(self, core: Harness, card: str = CARD) -> None:
        self.core = core
        self.device_id, self.key = bind(core, card)
        self.counter = 0
        self.ride_key = PrivateKey.make()
        document = e_cards.find_device(core.memory, self.device_id)
        assert document is not None
        document.public_key = self.ride_key.public_key().point()
        change = Change(core.memory, core.now_us)
        change.put(DocumentKind.DEVICE, self.device_id, document.SerializeToString())
        change.commit("test")

    def proof(self, method: str, off_s: float = 0) -> bytes:
        self.counter += 1
        message = device_proof.message_of(method, self.device_id)
        return device_proof.make_proof(self.key, self.device_id, message, self.core.now_us + round(off_s * 1e6), self.counter)

    def ask_code(self, off_s: float = 0, proof: bytes = b"") -> pb.GetCodeResponse:
        request = pb.GetCodeRequest(device_id=self.device_id, proof=proof or self.proof("CodeService/GetCode", off_s))
        random = secrets.token_bytes(codes.TOKEN_RANDOM_BYTES)
        return self.core.ask(functools.partial(codes.get_code, PROVIDER, random), request)

    def code(self) -> bytes:
        answer = self.ask_code()
        assert answer.result == Result.ACCEPTED
        return answer.code.encode()

    def issuer_part(self) -> bytes:
        request = pb.GetRideCodeRequest(device_id=self.device_id, proof=self.proof("CodeService/GetRideCode"))
        grant = self.core.ask(functools.partial(codes.grant_ride_code, PROVIDER), request)
        assert isinstance(grant, codes.RideCodeGrant)
        return codes.issue_ride_code(PROVIDER, RULES, grant).issuer_part

    def ride_code(self, off_s: int = 0) -> bytes:
        return ride_code.make_code(self.issuer_part(), self.ride_key, self.core.now_s + off_s)


def item(core: Harness, code: bytes, **fields: Any) -> pb.CodeTap:
    values = {
        "code": code, "terminal_number": TERMINAL, "terminal_sequence": core.engine.next_sequence, "amount_fen": 200,
        "amount_due_fen": 200, "local_time": local_time_of(core.now_s), "kind": 3, "line": 261, "stop": 7,
    }  # fmt: skip
    return pb.CodeTap(**(values | fields))


def reserve(core: Harness, items: list[pb.CodeTap], stored: bool = False) -> list[Any]:
    checked = CodeChecker(RULES).check(items)
    answers = core.command(lambda memory, some, time_us: codes.reserve(PROVIDER, memory, some, stored, time_us), checked)
    core.take()
    core.commit()
    return answers


def tap(core: Harness, *items: pb.CodeTap, stored: bool = False) -> list[tap_service_pb2.TapOutcome]:
    """What the service does: check, reserve, prove, and the way of all taps."""
    answers = reserve(core, list(items), stored)
    reserved = [each for each in answers if isinstance(each, Reserved)]
    codes.prove(PROVIDER, reserved)
    taps = [each.tap for each in reserved]
    if stored and taps:
        (response,) = core.run([submit_request(taps)], [True]).responses
        outcomes = list(tap_service_pb2.SubmitTapsResponse.FromString(response).outcomes)
    else:
        responses = core.run([authorize_request(each) for each in taps], [False] * len(taps)).responses if taps else []
        outcomes = [tap_service_pb2.AuthorizeTapResponse.FromString(each).outcome for each in responses]
    made = iter(outcomes)
    return [next(made) if isinstance(each, Reserved) else each for each in answers]


@pytest.fixture
def core(tmp_path: Path) -> Any:
    with Harness(tmp_path / "data") as made:
        made.register_card(CARD)
        made.register_card(OTHER)
        made.register_terminal(TERMINAL)
        made.register_terminal(OTHER_TERMINAL)
        made.top_up(CARD, 1_000)
        issue(made)
        yield made


@pytest.fixture
def phone(core: Harness) -> Phone:
    return Phone(core)


KINDS = pytest.mark.parametrize("kind", ["online", "ride"])


def code_of(phone: Phone, kind: str) -> bytes:
    return phone.code() if kind == "online" else phone.ride_code()


# ---- taps by code ----


@KINDS
@pytest.mark.parametrize("stored", [False, True])
def test_a_code_pays_once_from_the_cards_account(core: Harness, phone: Phone, kind: str, stored: bool) -> None:
    one = item(core, code_of(phone, kind))
    (outcome,) = tap(core, one, stored=stored)
    assert (outcome.result, outcome.charged_fen, outcome.balance_after_fen) == (Result.ACCEPTED, 200, 800)
    number = core.command(e_cards.get_e_card, e_cards.pb.GetECardRequest(card_number=CARD)).e_card.e_card_number
    kept = core.get_tap(outcome.sequence)
    assert (kept.tap.card_number, kept.tap.terminal_number, kept.tap.atc, kept.tap.stop) == (number, TERMINAL, 1, 7)
    assert kept.stored == stored
    core.restart()
    for again in (core.restart, core.checkpoint, core.rebuild):
        (repeated,) = tap(core, one, stored=stored)
        assert (repeated.result, repeated.duplicate, repeated.sequence) == (Result.ACCEPTED, True, outcome.sequence)
        for other in ({"terminal_number": OTHER_TERMINAL}, {"terminal_sequence": 999}, {"amount_fen": 100}, {"stop": 8}):
            changed = pb.CodeTap()
            changed.CopyFrom(one)
            changed.MergeFrom(pb.CodeTap(**other))
            assert tap(core, changed, stored=stored)[0].result == Result.CODE_USED
        again()
    assert core.balance(CARD).balance_fen == 800
    core.close()
    auditor.audit(core.path)


@KINDS
def test_a_crash_between_the_steps_neither_doubles_nor_loses(core: Harness, phone: Phone, kind: str) -> None:
    one = item(core, code_of(phone, kind))
    before = reserve(core, [one])
    core.restart()
    core.pass_time(limits.CODE_S * 2)  # the reservation outlives the code
    assert [each.tap.atc for each in before] == [each.tap.atc for each in reserve(core, [one])] == [1]
    core.pass_time(-limits.CODE_S * 2)
    (outcome,) = tap(core, one)
    assert (outcome.result, outcome.duplicate, outcome.balance_after_fen) == (Result.ACCEPTED, False, 800)
    (outcome,) = tap(core, one)
    assert outcome.duplicate
    (following,) = tap(core, item(core, code_of(phone, "online"), terminal_sequence=77))
    assert core.get_tap(following.sequence).tap.atc == 2
    assert core.balance(CARD).balance_fen == 600


def test_counters_that_were_reserved_are_never_given_twice(core: Harness, phone: Phone) -> None:
    abandoned = item(core, phone.code(), terminal_sequence=500)
    reserve(core, [abandoned])
    (outcome,) = tap(core, item(core, phone.code(), terminal_sequence=501))
    assert core.get_tap(outcome.sequence).tap.atc == 2
    core.restart()
    (late,) = tap(core, abandoned)
    assert (late.result, core.get_tap(late.sequence).tap.atc) == (Result.ACCEPTED, 1)


def test_a_batch_has_its_answers_in_order_and_uses_each_code_once(core: Harness, phone: Phone) -> None:
    issue(core, OTHER)
    other = Phone(core, OTHER)
    core.top_up(OTHER, 500)
    first, second, theirs = phone.code(), phone.ride_code(), other.code()
    items = [
        item(core, first, terminal_sequence=1),
        item(core, b"nonsense", terminal_sequence=2),
        item(core, first, terminal_sequence=3),
        item(core, second, terminal_sequence=4),
        item(core, theirs, terminal_sequence=5),
        item(core, second, terminal_sequence=4),
    ]
    outcomes = tap(core, *items, stored=True)
    assert [each.result for each in outcomes] == [
        Result.ACCEPTED, Result.CODE_MALFORMED, Result.CODE_USED, Result.ACCEPTED, Result.ACCEPTED, Result.ACCEPTED,
    ]  # fmt: skip
    assert outcomes[5].duplicate
    assert (core.balance(CARD).balance_fen, core.balance(OTHER).balance_fen) == (600, 300)


def test_a_code_that_was_used_is_told_before_its_limit(core: Harness, phone: Phone) -> None:
    code = phone.ride_code()
    assert tap(core, item(core, code))[0].result == Result.ACCEPTED
    assert tap(core, item(core, code, amount_fen=limits.RIDE_CODE_LIMIT_FEN + 1))[0].result == Result.CODE_USED


def test_too_little_money_is_told_as_for_any_tap(core: Harness, phone: Phone) -> None:
    assert tap(core, item(core, phone.code(), amount_fen=1_001))[0].result == Result.INSUFFICIENT_FUNDS
    (booked,) = tap(core, item(core, phone.ride_code(), amount_fen=1_100), stored=True)
    assert booked.result == Result.DEBT_BOOKED
    assert core.balance(CARD).balance_fen == -100
    assert core.authorize(make_tap(card_number=CARD, atc=1, terminal_sequence=9_000)).result == Result.CARD_DENIED


# ---- each refusal has its code ----

REFUSED = """
what                          | online               | ride
screenshot of an old code     | CODE_EXPIRED         | CODE_EXPIRED
used at another terminal      | CODE_USED            | CODE_USED
terminal's clock off          | CLOCK_OFF            | CODE_EXPIRED
phone's clock ahead           | CLOCK_OFF            | CLOCK_OFF
device revoked                | DEVICE_REVOKED       | DEVICE_REVOKED
another device's              | DEVICE_PROOF_WRONG   | CODE_USER_SIGNATURE_WRONG
e-card cancelled              | DEVICE_REVOKED       | DEVICE_REVOKED
card lost                     | CARD_DENIED          | CARD_DENIED
card frozen                   | CARD_DENIED          | CARD_DENIED
altered                       | CODE_UNKNOWN         | CODE_USER_SIGNATURE_WRONG
cut short                     | CODE_MALFORMED       | CODE_MALFORMED
unknown terminal              | UNKNOWN_TERMINAL     | UNKNOWN_TERMINAL
above the limit               | INSUFFICIENT_FUNDS   | CODE_LIMIT
authorisation over            | ACCEPTED             | CODE_AUTHORIZATION_EXPIRED
"""


@KINDS
@pytest.mark.parametrize("row", REFUSED.strip().splitlines()[1:])
def test_each_refusal_has_its_code(core: Harness, phone: Phone, kind: str, row: str) -> None:
    what, *wanted = (part.strip() for part in row.split("|"))
    code = b"" if what in ("phone's clock ahead", "another device's") else code_of(phone, kind)
    fields: dict[str, Any] = {}
    said = None
    match what:
        case "screenshot of an old code":
            core.pass_time(limits.CODE_S)
        case "used at another terminal":
            assert tap(core, item(core, code, terminal_number=OTHER_TERMINAL))[0].result == Result.ACCEPTED
        case "terminal's clock off":
            fields["local_time"] = local_time_of(core.now_s + limits.CODE_CLOCK_S + 1)
        case "phone's clock ahead" if kind == "online":
            said = phone.ask_code(off_s=limits.DEVICE_CLOCK_S + 1).result
        case "phone's clock ahead":
            code = phone.ride_code(limits.RIDE_CODE_VALIDITY_S + 1)
        case "another device's" if kind == "online":
            other = Phone(core)
            said = phone.ask_code(proof=other.proof("CodeService/GetCode")).result
        case "another device's":
            code = ride_code.make_code(phone.issuer_part(), Phone(core).ride_key, core.now_s)
        case "device revoked":
            revoke(core, phone.device_id)
        case "e-card cancelled":
            cancel(core)
        case "card lost":
            deny(core, CARD, Deny.LOSS)
        case "card frozen":
            deny(core, CARD, Deny.FROZEN)
        case "altered":
            code = code[:-1] + bytes([code[-1] ^ 1 if kind == "ride" else ord("A") + (code[-1] == ord("A"))])
        case "cut short":
            code = code[:-1]
        case "unknown terminal":
            fields["terminal_number"] = bytes(6)
        case "above the limit":
            fields["amount_fen"] = limits.RIDE_CODE_LIMIT_FEN + 1
        case "authorisation over" if kind == "ride":
            core.pass_time(limits.RIDE_CODE_HOURS * 3_600 + 1)
            code = ride_code.make_code(read_part(code), phone.ride_key, core.now_s)
    if said is None:
        (outcome,) = tap(core, item(core, code, **fields))
        said = outcome.result
    assert Result(said).name == wanted[kind == "ride"]


def read_part(code: bytes) -> bytes:
    return ride_code.read(code).issued


MALFORMED = [
    ("amount_fen", -1, Result.MALFORMED_AMOUNT), ("amount_due_fen", 1 << 32, Result.MALFORMED_AMOUNT),
    ("transaction_type", 7, Result.MALFORMED_TRANSACTION_TYPE), ("terminal_number", b"1", Result.MALFORMED_TERMINAL),
    ("local_time", 20250229000000, Result.MALFORMED_TIME), ("local_time", 2**63, Result.MALFORMED_TIME),
    ("kind", 5, Result.MALFORMED_KIND), ("stop", 1 << 24, Result.MALFORMED_PLACE), ("direction", 3, Result.MALFORMED_PLACE),
    ("city", 10_000, Result.MALFORMED_PLACE), ("industry", 10, Result.MALFORMED_PLACE),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "result"), MALFORMED)
def test_malformed_items_burn_no_code(core: Harness, phone: Phone, field: str, value: Any, result: Result) -> None:
    code = phone.code()
    (outcome,) = tap(core, item(core, code, **{field: value}))
    assert (outcome.result, outcome.invalid_field) == (result, field)
    assert tap(core, item(core, code))[0].result == Result.ACCEPTED


# ---- rides that were given before ----


def test_a_stored_ride_by_a_device_that_was_revoked_later_is_honoured(core: Harness, phone: Phone) -> None:
    part = phone.issuer_part()
    before = item(core, ride_code.make_code(part, phone.ride_key, core.now_s), terminal_sequence=1)
    core.pass_time(10)
    revoke(core, phone.device_id)
    core.pass_time(10)
    after = item(core, ride_code.make_code(part, phone.ride_key, core.now_s), terminal_sequence=2)
    core.pass_time(3_600)
    assert [each.result for each in tap(core, before, after, stored=True)] == [Result.ACCEPTED, Result.DEVICE_REVOKED]


def test_a_stored_ride_by_a_card_that_was_lost_later_is_honoured_within_the_grace(core: Harness, phone: Phone) -> None:
    one = item(core, phone.ride_code())
    core.pass_time(60)
    deny(core, CARD, Deny.LOSS)
    assert tap(core, one, stored=True)[0].result == Result.ACCEPTED


def test_what_is_too_old_to_be_told_from_its_double_is_refused(core: Harness, phone: Phone) -> None:
    one = item(core, phone.ride_code())
    core.pass_time(limits.CODE_USES_KEPT_S)
    assert tap(core, one, stored=True)[0].result == Result.CODE_EXPIRED


def test_a_device_that_was_bound_anew_does_not_lend_its_old_key(core: Harness, phone: Phone) -> None:
    part = phone.issuer_part()
    old_key = phone.ride_key
    document = e_cards.find_device(core.memory, phone.device_id)
    assert document is not None
    document.public_key = PrivateKey.make().public_key().point()
    change = Change(core.memory, core.now_us)
    change.put(DocumentKind.DEVICE, phone.device_id, document.SerializeToString())
    change.commit("test")
    core.take()
    assert tap(core, item(core, ride_code.make_code(part, old_key, core.now_s)))[0].result == Result.DEVICE_PROOF_WRONG


# ---- online codes ----


def test_codes_are_kept_as_digests_and_forgotten_in_time(core: Harness, phone: Phone) -> None:
    given = [phone.code() for _ in range(3)]
    assert len(set(given)) == 3
    tap(core, item(core, given[0]))
    core.checkpoint()
    kept = b"".join(path.read_bytes() for path in core.path.iterdir() if path.is_file())
    for code in given:
        assert code not in kept
        assert codes._raw_token(code) not in kept
    core.pass_time(limits.CODE_S + limits.CODE_KEPT_S + 1)
    assert codes.resolve(core.memory, PROVIDER, given[1], core.now_us) == Result.CODE_EXPIRED
    phone.code()
    assert codes.resolve(core.memory, PROVIDER, given[1], core.now_us) == Result.CODE_UNKNOWN
    assert len(list(core.memory.documents.scan(DocumentKind.CODE))) == 2
    core.pass_time(limits.CODE_USES_KEPT_S)
    phone.code()
    assert not list(core.memory.documents.scan(DocumentKind.CODE_USE))
    core.restart()
    assert len(list(core.memory.documents.scan(DocumentKind.CODE))) == 2


def test_a_proof_gives_one_code_only(core: Harness, phone: Phone) -> None:
    proof = phone.proof("CodeService/GetCode")
    assert phone.ask_code(proof=proof).result == Result.ACCEPTED
    assert phone.ask_code(proof=proof).result == Result.DEVICE_PROOF_WRONG
    assert phone.ask_code(proof=phone.proof("CodeService/GetRideCode")).result == Result.DEVICE_PROOF_WRONG


def test_resolving_is_single_use_too(core: Harness, phone: Phone) -> None:
    code = phone.code()
    found = codes.resolve(core.memory, PROVIDER, code, core.now_us)
    assert isinstance(found, codes.Resolved)
    assert (found.card_slot, found.device_id) == (core.engine.find_card(CARD), phone.device_id)
    change = Change(core.memory, core.now_us)
    codes.use(change, found, bytes(16))
    change.commit("resolved")
    core.take()
    core.commit()
    core.restart()
    assert codes.resolve(core.memory, PROVIDER, code, core.now_us) == Result.CODE_USED
    assert tap(core, item(core, code))[0].result == Result.CODE_USED
    assert codes.resolve(core.memory, PROVIDER, b"x", core.now_us) == Result.CODE_MALFORMED
    second = phone.code()
    deny(core, CARD, Deny.LOSS)
    assert codes.resolve(core.memory, PROVIDER, second, core.now_us) == Result.CARD_DENIED


# ---- what ride codes are issued with ----


def test_certificate_authority_and_key_belong_together(tmp_path: Path) -> None:
    certificate, authority, stranger = (tmp_path / name for name in ("certificate", "authority.pem", "stranger.pem"))
    certificate.write_bytes(CERTIFICATE)
    authority.write_bytes(AUTHORITY.public_pem())
    stranger.write_bytes(ISSUER_KEY.public_pem())
    read = functools.partial(RideCodeRules.read, hours=1, limit_fen=2)
    rules = read(str(certificate), str(authority), provider=PROVIDER)
    assert (rules.certificate, rules.hours, rules.limit_fen) == (CERTIFICATE, 1, 2)
    assert read("", "", provider=PROVIDER).certificate == b""
    other = SoftwareProvider({KeyReference(Purpose.CODE_ISSUER, 1): AUTHORITY.private_pem()})
    for arguments, provider, reason in (
        ((str(certificate), ""), PROVIDER, "go together"),
        ((str(certificate), str(stranger)), PROVIDER, "was not signed"),
        ((str(certificate), str(authority)), other, "another key"),
        ((str(authority), str(authority)), PROVIDER, "117 bytes"),
        ((str(tmp_path / "none"), str(authority)), PROVIDER, "No such file"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read(*arguments, provider=provider)


def test_without_a_certificate_none_are_issued(core: Harness, phone: Phone) -> None:
    request = pb.GetRideCodeRequest(device_id=phone.device_id, proof=phone.proof("CodeService/GetRideCode"))
    grant = core.ask(functools.partial(codes.grant_ride_code, PROVIDER), request)
    with pytest.raises(ConfigError, match="ride_code_certificate"):
        codes.issue_ride_code(PROVIDER, RideCodeRules(), grant)


# ---- whose terminals ----


@pytest.mark.parametrize(
    ("caller", "wanted"),
    [
        ("yikatong:terminal:112233445566", Result.ACCEPTED),
        ("yikatong:terminal:665544332211", Result.UNKNOWN_TERMINAL),
        ("yikatong:acquirer:bus", Result.ACCEPTED),
        ("yikatong:acquirer:metro", Result.UNKNOWN_TERMINAL),
        ("yikatong:operator:one", Result.ACCEPTED),
    ],
)
def test_others_terminals_use_up_no_code(core: Harness, phone: Phone, caller: str, wanted: Result) -> None:
    checked = CodeChecker(RULES).check([item(core, phone.code())])
    by = parse_identity(caller)
    (answer,) = codes.reserve(PROVIDER, core.memory, checked, False, core.now_us, by)
    assert (Result.ACCEPTED if isinstance(answer, Reserved) else answer.result) == wanted
    again = codes.reserve(PROVIDER, core.memory, checked, False, core.now_us)
    assert isinstance(again[0], Reserved)
    if wanted == Result.ACCEPTED:
        assert again == [answer]
    assert [type(each) for each in codes.reserve(PROVIDER, core.memory, checked, False, core.now_us, by)] == [type(answer)]


# ---- generations of keys ----


def test_what_was_made_under_an_older_key_stays_good(core: Harness, phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device, a code and a reservation of before a rotation; new ones use the new keys."""
    newer = KeySet(ISSUER, KEY_SET.key_version + 1, 1, 2, bytes(range(16, 32)))
    code, abandoned = phone.code(), item(core, phone.code(), terminal_sequence=700)
    reserve(core, [abandoned])
    core.engine.add_key(newer.issuer_id, newer.key_version, newer.key_index, newer.parent())
    rotated = SoftwareProvider(
        {
            KeyReference(Purpose.DEVICE, 1): bytes(range(16)),
            KeyReference(Purpose.DEVICE, 2): bytes(16),
            KeyReference(Purpose.TAC, KEY_SET.key_version, KEY_SET.key_index, ISSUER): KEY_SET.master,
            KeyReference(Purpose.TAC, newer.key_version, 1, ISSUER): newer.master,
            KeyReference(Purpose.CODE_ISSUER, 1): ISSUER_KEY.private_pem(),
        }
    )
    monkeypatch.setattr("test_codes.PROVIDER", rotated)
    (late,) = tap(core, abandoned)
    (old,) = tap(core, item(core, code))
    (new,) = tap(core, item(core, phone.code()))
    assert [each.result for each in (late, old, new)] == [Result.ACCEPTED] * 3
    assert [core.get_tap(each.sequence).tap.key_version for each in (late, old, new)] == [1, 2, 2]


def test_a_key_that_is_gone_is_told(core: Harness, phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    code = phone.code()
    without = SoftwareProvider({KeyReference(Purpose.DEVICE, 2): bytes(16)})
    monkeypatch.setattr("test_codes.PROVIDER", without)
    assert tap(core, item(core, code))[0].result == Result.CODE_UNKNOWN
    no_masters = SoftwareProvider({KeyReference(Purpose.DEVICE, 1): bytes(range(16))})
    monkeypatch.setattr("test_codes.PROVIDER", no_masters)
    assert tap(core, item(core, code))[0].result == Result.UNKNOWN_KEY
