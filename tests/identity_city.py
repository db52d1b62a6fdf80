"""A small city for tests of identity: a core with keys of every purpose, some people with cards, e-cards and phones."""

import functools
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import people
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from harness import ISSUER, Harness, _card_key, _complement, _sm4

from yikatong.core.access.callers import Caller
from yikatong.core.cards import e_cards
from yikatong.core.cards.device_proof import activation_proof, make_proof, unwrap
from yikatong.core.change import Change
from yikatong.core.identity import login, persons, visibility
from yikatong.core.identity.people import Registers
from yikatong.core.identity.portals import Portal
from yikatong.core.keys import key_sets
from yikatong.core.keys.provider import KeyReference, Purpose
from yikatong.core.keys.software import SoftwareProvider
from yikatong.v1 import access_pb2, e_card_service_pb2
from yikatong.v1 import identity_service_pb2 as pb

TAC = KeyReference(Purpose.TAC, 1, 1, ISSUER)
TAC_MASTER = bytes.fromhex("fedcba98765432100123456789abcdef")
APP = Caller(access_pb2.ROLE_DEPARTMENT, "e-card-app")
HRSS, LIBRARY = (Caller(access_pb2.ROLE_DEPARTMENT, name) for name in ("hrss", "library"))
PURPOSE = {"purpose": "pension statement", "legal_basis": "consent"}
PORTALS = {
    "library": Portal(
        "library", "City library", b"", None, ("https://library.example/login",), ("name", "rider"), "library account", "consent",
        "ES256",
    )
}  # fmt: skip


def card_mac(card_number: str, challenge: bytes) -> bytes:
    """By OpenSSL, from the words of core/identity/identity.py."""
    serial = bytes.fromhex(card_number[-16:].zfill(16))
    key = _sm4(_card_key(key_sets.KeySet(ISSUER, 1, 1, 2, TAC_MASTER), serial), challenge + _complement(challenge))
    padded = b"IDENTITY" + challenge + serial + b"\x80" + bytes(7)
    return Cipher(algorithms.SM4(key), modes.CBC(bytes(16))).encryptor().update(padded)[-16:-8]


def new_id() -> bytes:
    return secrets.token_bytes(16)


def make_provider(folder: Path) -> SoftwareProvider:
    """Keys of every purpose, and the TAC master of profile.md's example."""
    path = folder / "keys.toml"
    key_sets.write(path, key_sets.KeySet(ISSUER, 1, 1, 2, TAC_MASTER), "for tests")
    return key_sets.load_provider(path)


class Phone:
    """A device that makes proofs."""

    def __init__(self, device_id: bytes, key: bytes, clock: Callable[[], int]) -> None:
        self.device_id = device_id
        self._key = key
        self._clock = clock
        self._counter = 0

    def prove(self, message: bytes) -> bytes:
        self._counter += 1
        return make_proof(self._key, self.device_id, message, self._clock(), self._counter)


class Citizen(NamedTuple):
    """A person with a card."""

    person_id: bytes
    data: Any
    card_number: str
    card_slot: int


class City:
    """The core, and what people in it do."""

    def __init__(self, core: Harness, provider: SoftwareProvider, **rules: Any) -> None:
        self.core = core
        self.provider = provider
        made = {
            "issuer": "https://card.example", "visibility": visibility.read(), "portals": PORTALS,
            "levels": {TAC: 2}, "people": Registers(provider),
        } | rules  # fmt: skip
        self.rules = login.Rules(provider, **made)
        self.citizens: list[Citizen] = []

    def ask(self, command: Any, request: Any, caller: Caller, *, rules: login.Rules | None = None) -> Any:
        """Run a command of identity, and make it durable."""
        run = functools.partial(command, rules or self.rules)
        return self.core.ask(lambda memory, message, time_us: run(memory, message, time_us, caller), request)

    def change(self, fill: Callable[[Change], Any]) -> Any:
        def command(memory: Any, _: Any, time_us: int) -> Any:
            change = Change(memory, time_us)
            made = fill(change)
            change.commit("for-a-test")
            return made

        return self.core.ask(command, None)

    def add_citizen(self, serial: int = 1, **fields: str) -> Citizen:
        data = people.person(serial, **fields)
        card_number = f"31044160000{serial:05d}"
        self.core.register_card(card_number)
        slot = self.core.engine.find_card(card_number)
        memory = self.core.memory
        (person_id,) = self.change(lambda change: persons.add(self.provider, memory, change, [data]))
        self.change(lambda change: persons.give_card(change, person_id, slot))
        citizen = Citizen(person_id, data, card_number, slot)
        self.citizens.append(citizen)
        self.issue(citizen)
        return citizen

    def issue(self, citizen: Citizen) -> None:
        request = e_card_service_pb2.IssueECardRequest(request_id=new_id(), card_number=citizen.card_number)
        self.core.ask(functools.partial(e_cards.issue_e_card, self.provider), request)

    def phone(self, citizen: Citizen) -> Phone:
        """A new device of a citizen's e-card."""
        request = e_card_service_pb2.StartActivationRequest(request_id=new_id(), card_number=citizen.card_number)
        started = self.core.ask(functools.partial(e_cards.start_activation, self.provider), request)
        device_id, public_key = new_id(), b"\2" + bytes(range(32))
        activate = e_card_service_pb2.ActivateDeviceRequest(
            request_id=new_id(), code=started.code, device_id=device_id, public_key=public_key,
            proof=activation_proof(started.activation_secret, started.code, device_id, public_key),
        )  # fmt: skip
        answer = self.core.ask(functools.partial(e_cards.activate_device, self.provider, 9), activate)
        key = unwrap(started.activation_secret, device_id, answer.wrapped_device_key)
        return Phone(device_id, key, lambda: self.core.now_us)

    def revoke(self, phone: Phone, citizen: Citizen) -> None:
        request = e_card_service_pb2.RevokeDeviceRequest(
            request_id=new_id(), card_number=citizen.card_number, device_id=phone.device_id
        )
        self.core.ask(e_cards.revoke_device, request)

    def deny(self, citizen: Citizen, reasons: int) -> None:
        self.change(lambda change: change.deny(citizen.card_slot, reasons))

    # ---- logins ----

    def start(self, caller: Caller = HRSS, fields: tuple[str, ...] = ("name", "card_number"), **more: Any) -> Any:
        asked = {"request_id": new_id(), "nonce": "nonce-of-the-portal", "state": "s1"} | PURPOSE | more
        return self.ask(login.start, pb.StartLoginRequest(fields=fields, **asked), caller)

    def scan(self, qr_content: str, phone: Phone, **more: Any) -> Any:
        proof = phone.prove(login.proof_message("scan", qr_content))
        asked = {"qr_content": qr_content, "device_id": phone.device_id, "proof": proof} | more
        return self.ask(login.scan, pb.ScanLoginRequest(**asked), APP)

    def answer(
        self, qr_content: str, phone: Phone, *, consent: bool = True, fields: tuple[str, ...] = ("name",), **more: Any
    ) -> Any:
        given = fields if consent else ()
        proof = phone.prove(login.proof_message("consent" if consent else "deny", qr_content, given))
        asked = {"qr_content": qr_content, "device_id": phone.device_id, "consent": consent, "fields": given, "proof": proof}
        return self.ask(login.answer, pb.AnswerLoginRequest(**(asked | more)), APP)

    def get(self, login_id: bytes, caller: Caller = HRSS) -> Any:
        return self.ask(login.get_login, pb.GetLoginRequest(login_id=login_id), caller)

    def redeem(self, ticket: str, caller: Caller = HRSS, request_id: bytes | None = None) -> Any:
        return self.ask(login.redeem, pb.RedeemTicketRequest(request_id=request_id or new_id(), ticket=ticket), caller)

    def log_in(self, phone: Phone, caller: Caller = HRSS, **more: Any) -> Any:
        """A whole login: what redeeming its ticket gave."""
        started = self.start(caller, **more)
        self.scan(started.qr_content, phone)
        self.answer(started.qr_content, phone)
        return self.redeem(self.get(started.login_id, caller).ticket, caller)
