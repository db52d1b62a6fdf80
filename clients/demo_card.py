"""The demo's one person: applies for a card, rides by its chip and by the codes of its e-card, loses it, and has all that was on
it on another one. The rides belong to the day that the demo settles."""

import io
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from yikatong.clients.card import SimulatedCard
from yikatong.clients.connection import Connection, call
from yikatong.clients.gate import Gate
from yikatong.clients.phone import Phone, Refused, qr_code
from yikatong.clients.tables import yuan
from yikatong.clients.terminal import LOCAL_ZONE, Terminal
from yikatong.core.cards.card_life import State
from yikatong.core.cards.issuance import PRODUCTION, Step
from yikatong.core.cards.ride_code import make_certificate
from yikatong.core.errors import YikatongError
from yikatong.core.identity.identifiers import citizen_check, social_card_check
from yikatong.core.keys import key_sets
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.keys.provider import Purpose
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.core.types import Result, wire
from yikatong.v1 import (
    account_service_pb2,
    card_life_service_pb2,
    e_card_service_pb2,
    issuance_service_pb2,
    person_service_pb2,
    tap_service_pb2,
    terminal_service_pb2,
)

Tell = Callable[[bool, str, str], None]
Outcome = tap_service_pb2.TapOutcome
TOP_UP_FEN: Final = 5_000
BUS_FEN, METRO_FEN = 200, 300
CARD_NUMBER, NEW_CARD_NUMBER = "4416888800000016", "4416888800000024"
VALIDATOR, GATE = bytes.fromhex("00ff00000001"), bytes.fromhex("00ff00000002")
ISSUER: Final = b"\x59\x80\x00\x01"
CA_INDEX: Final = 1


class RideCodeIssuer(NamedTuple):
    """A test authority that vouches for the core's ride codes: what the server is told, and whom gates trust."""

    arguments: tuple[str, ...]
    authorities: dict[int, PublicKey]


def make_issuer(folder: Path, keys: Path) -> RideCodeIssuer:
    """Make the authority, and the issuer's certificate under it; the server's flags name their files."""
    provider = key_sets.load_provider(keys)
    issuer = PublicKey(provider.public_key(provider.newest(Purpose.CODE_ISSUER)))
    authority = PrivateKey.make()
    expiry = (datetime.now(LOCAL_ZONE).year + 5) * 100 + 12
    certificate, key = folder / "ride-code-certificate", folder / "ride-code-authority.pem"
    certificate.write_bytes(make_certificate(issuer.point(), ISSUER, expiry, authority.sign_raw, ca_index=CA_INDEX))
    key.write_bytes(authority.public_pem())
    # No grace: a ride after the loss was reported is refused when it is uploaded, not only a day later.
    arguments = (
        "--ride-code-certificate", str(certificate), "--ride-code-authority", str(key), "--stored-grace-s", "0",
    )  # fmt: skip
    return RideCodeIssuer(arguments, {CA_INDEX: authority.public_key()})


class Ride(NamedTuple):
    """A tap of this chapter, for whoever adds up what was answered."""

    operator_id: str
    outcome: Outcome


def card_chapter(
    console: Console,
    connection: Connection,
    folder: Path,
    key_set: KeySet,
    issuer: RideCodeIssuer,
    operators: tuple[str, str],
    tell: Tell,
) -> list[Ride]:
    """Play the chapter; the phone keeps its file in `folder`. `operators`: whose the bus and the metro are. Returns every tap."""
    chapter = _Chapter(console, connection, folder, key_set, issuer, operators, tell)
    try:
        chapter.play()
    except _Ended:
        pass  # it was told why
    except YikatongError as error:
        tell(False, "", f"the phone cannot go on: {error}")
    return chapter.rides


class _Ended(YikatongError):
    """An answer was another one than it should be: what comes after it would be no story."""


class _Chapter:
    def __init__(
        self,
        console: Console,
        connection: Connection,
        folder: Path,
        key_set: KeySet,
        issuer: RideCodeIssuer,
        operators: tuple[str, str],
        tell: Tell,
    ) -> None:
        self.console = console
        self.connection = connection
        self.key_set = key_set
        self.issuer = issuer
        self.bus, self.metro = operators
        self.tell = tell
        self.rides: list[Ride] = []
        self.balance_fen = 0  # what the card must have
        self.phone = Phone(folder / "phone.json")
        self.chip = SimulatedCard(CARD_NUMBER, key_set)
        self.validator = Terminal(VALIDATOR, terminal_service_pb2.TERMINAL_KIND_BUS, self.bus)
        self.gate = Gate(GATE, issuer.authorities, line=1, industry=1)
        self.person_id = b""
        self.e_card_number = ""
        self.coded_s = 0  # second of the newest ride code

    # ---- telling ----

    def step(self, what: str, answer: Any, wanted: Result = Result.ACCEPTED, *, also: bool = True) -> None:
        """One line: what was done, what was answered, and where it stands in the journal. `also` must hold besides."""
        result = Result(answer.result)
        sequence = f"#{answer.sequence}" if answer.sequence else ""
        self.hold(
            result is wanted and also,
            f"{what:<51} {result.name:<16} {sequence}".rstrip(),
            f"{what}: {result.name} {sequence}, but {wanted.name} was expected{'' if also else ', and more'}",
        )

    def fact(self, holds: bool, what: str, found: object) -> None:
        self.hold(holds, what, f"not so: {what}; found: {found}")

    def hold(self, holds: bool, yes: str, no: str) -> None:
        self.tell(holds, yes, no)
        if not holds:
            raise _Ended(no)

    def part(self, title: str) -> None:
        self.console.print(Text(f"\n{title}", "bold"))

    def ask(self, method: Any, request: Any, **fields: Any) -> Any:
        """A call under a new request id."""
        return call(method, request(request_id=secrets.token_bytes(16), **fields), timeout_s=10, attempts=3)

    # ---- rides ----

    def charged(self, operator_id: str, outcome: Outcome) -> Outcome:
        self.rides.append(Ride(operator_id, outcome))
        self.balance_fen -= outcome.charged_fen
        return outcome

    def hold_chip(self, chip: SimulatedCard) -> Outcome:
        """The chip is held to the bus validator, which asks at once."""
        tap = self.validator.present(chip, BUS_FEN, industry=2, line=105)
        return self.charged(self.bus, self.validator.authorize(self.connection, tap, attempts=3))

    def show_code(self, code: bytes) -> Outcome:
        """A code is shown at the metro gate, which asks at once."""
        return self.charged(self.metro, self.gate.authorize(self.connection, code, METRO_FEN))

    def upload(self, count: int) -> list[Outcome]:
        """The gate comes online with so many rides."""
        outcomes = [self.charged(self.metro, outcome) for _, outcome in self.gate.upload(self.connection)]
        if len(outcomes) != count:
            raise YikatongError(f"the gate has {len(outcomes)} rides, and not {count}")
        return outcomes

    def ride_code(self) -> bytes:
        """A ride code that was not shown yet: there is one a second."""
        while int(time.time()) <= self.coded_s:
            time.sleep(0.02)
        code = self.phone.ride_code()
        self.coded_s = int(time.time())
        return code

    def balance(self, card_number: str) -> int:
        request = account_service_pb2.GetBalanceRequest(card_number=card_number)
        return int(call(self.connection.accounts.GetBalance, request).balance_fen)

    def status(self, card_number: str) -> card_life_service_pb2.GetCardStatusResponse:
        request = card_life_service_pb2.GetCardStatusRequest(card_number=card_number)
        found: card_life_service_pb2.GetCardStatusResponse = call(self.connection.card_life.GetCardStatus, request)
        return found

    # ---- the story ----

    def play(self) -> None:
        self.open_terminals()
        self.part("A person gets a card")
        self.register()
        self.issue(CARD_NUMBER, self.chip, issuance_service_pb2.APPLICATION_KIND_ORDINARY)
        self.ride_by_chip()
        self.part("The card gets its e-card, and a phone carries it")
        self.carry_e_card()
        self.ride_by_codes()
        self.part("The card is lost")
        self.lose()
        self.part("Another card takes its place")
        self.replace()
        self.console.print(self.table())

    def open_terminals(self) -> None:
        kinds = {VALIDATOR: (terminal_service_pb2.TERMINAL_KIND_BUS, self.bus),
                 GATE: (terminal_service_pb2.TERMINAL_KIND_METRO_GATE, self.metro)}  # fmt: skip
        request = terminal_service_pb2.RegisterTerminalsRequest(
            terminals=[
                terminal_service_pb2.Terminal(terminal_number=number, operator_id=operator, kind=kind)
                for number, (kind, operator) in kinds.items()
            ]
        )
        call(self.connection.terminals.RegisterTerminals, request)

    def register(self) -> None:
        first = "44160219900307001"
        data = person_service_pb2.PersonData(
            name="张三", citizen_number=first + citizen_check(first), phone="13800138000", district="441602"
        )
        registered = self.ask(self.connection.persons.RegisterPerson, person_service_pb2.RegisterPersonRequest, data=data)
        self.person_id = registered.person_id
        request = person_service_pb2.GetPersonRequest(
            person_id=self.person_id, purpose="card application", legal_basis="applicant's request"
        )
        shown = call(self.connection.persons.GetPerson, request).person.data
        masked = shown.citizen_number != data.citizen_number and shown.name != data.name
        self.step(f"registered: {shown.name} {shown.citizen_number}", registered, also=masked)

    def issue(self, card_number: str, chip: SimulatedCard, kind: int, **fields: str) -> int:
        """From the application to the card in the person's hand; returns what came over from a card that it replaces."""
        service, pb = self.connection.issuance, issuance_service_pb2
        applied = self.ask(service.ApplyForCard, pb.ApplyForCardRequest, person_id=self.person_id, kind=kind, **fields)
        self.step(f"applied for, to be checked by {applied.due}", applied)
        application_id = applied.application_id
        self.step("data checked", self.ask(service.CheckApplication, pb.CheckApplicationRequest, application_id=application_id))
        for step in PRODUCTION:
            moved = self.ask(
                service.AdvanceApplications, pb.AdvanceApplicationsRequest, application_ids=[application_id], step=wire(step)
            )
            if list(moved.results) != [Result.ACCEPTED]:
                break  # told below
        self.step("through bank, factory and initialisation", moved, also=list(moved.results) == [Result.ACCEPTED])
        printed = f"D{card_number[-7:]}"
        made = pb.ReportProducedRequest.Produced(
            application_id=application_id, card_number=card_number, issuer_id=self.key_set.issuer_id,
            expires=(datetime.now(LOCAL_ZONE).year + 10) * 10_000 + 1231, social_card_number=printed + social_card_check(printed),
            card_identifier=f"441602D156000005{secrets.token_hex(8).upper()}",
        )  # fmt: skip
        produced = self.ask(service.ReportProduced, pb.ReportProducedRequest, cards=[made])
        self.step(f"produced: card {card_number}", produced, also=list(produced.results) == [Result.ACCEPTED])
        way = self.ask(service.DeliverCard, pb.DeliverCardRequest, application_id=application_id, outlet_id="branch-1")
        self.step("waits at the counter", way)
        self.step("a bus, before it is picked up", self.hold_chip(chip), Result.CARD_DENIED)
        taken = self.ask(
            service.PickUpCard, pb.PickUpCardRequest, application_id=application_id, picked_up_by_person_id=self.person_id
        )
        enabled = Step(taken.step) is Step.ENABLED and State(self.status(card_number).state) is State.ENABLED
        self.step("picked up, and enabled", taken, also=enabled)
        return int(taken.moved_fen)

    def ride_by_chip(self) -> None:
        topped = self.ask(
            self.connection.accounts.TopUp, account_service_pb2.TopUpRequest, card_number=CARD_NUMBER, amount_fen=TOP_UP_FEN
        )
        self.balance_fen += TOP_UP_FEN
        self.step(f"topped up by {yuan(TOP_UP_FEN)} CNY", topped)
        self.accepted("a bus, by the chip", self.hold_chip(self.chip), BUS_FEN)

    def accepted(self, what: str, outcome: Outcome, amount_fen: int) -> None:
        """A ride that must be charged with so much, and leave what is left."""
        right = (outcome.charged_fen, outcome.balance_after_fen) == (amount_fen, self.balance_fen)
        self.step(f"{what}: {yuan(outcome.charged_fen)} CNY", outcome, also=right)

    def carry_e_card(self) -> None:
        service, pb = self.connection.e_cards, e_card_service_pb2
        issued = self.ask(service.IssueECard, pb.IssueECardRequest, card_number=CARD_NUMBER)
        self.e_card_number = issued.e_card.e_card_number
        self.step(f"e-card {self.e_card_number} issued", issued)
        started = self.ask(service.StartActivation, pb.StartActivationRequest, card_number=CARD_NUMBER)
        self.step("one-time activation secret given", started)
        self.phone.activate(self.connection, started.code, started.activation_secret, "demo phone")
        devices = call(service.ListDevices, pb.ListDevicesRequest(card_number=CARD_NUMBER)).devices
        own = [device.device_id for device in devices if device.state == pb.DEVICE_STATE_ACTIVE] == [self.phone.device_id]
        self.fact(own, "a phone is activated, with keys of its own", devices)

    def ride_by_codes(self) -> None:
        online = self.phone.online_code(self.connection).text
        shown = self.scan("online code", online)
        self.accepted("a metro, by the online code", self.show_code(shown), METRO_FEN)
        again = Gate(VALIDATOR, {}).authorize(self.connection, shown, METRO_FEN)
        self.step("the same code at another gate", self.charged(self.bus, again), Result.CODE_USED)
        until_s = self.phone.fetch_ride_code(self.connection)
        until = datetime.fromtimestamp(until_s, LOCAL_ZONE)
        self.fact(until_s > time.time(), f"it makes ride codes without network until {until:%Y-%m-%d %H:%M}", until)
        shown = self.scan("ride code", self.ride_code())
        opened = [self.gate.admit(shown, METRO_FEN) for _ in range(2)]
        self.fact(opened == [Result.ACCEPTED, Result.CODE_USED], "the gate opens without network, once for each code", opened)
        (outcome,) = self.upload(1)
        self.accepted("that ride, uploaded", outcome, METRO_FEN)
        self.fact(
            self.balance(CARD_NUMBER) == self.balance_fen, f"balance {yuan(self.balance_fen)} CNY", self.balance(CARD_NUMBER)
        )

    def scan(self, what: str, code: str | bytes) -> bytes:
        """Show a code, and what a camera sees of it."""
        said = code.encode() if isinstance(code, str) else code
        drawn = draw(code)
        lines = drawn.splitlines()
        if len(lines[0]) <= self.console.width and len(lines) < self.console.height:
            self.console.print(Text(drawn.rstrip("\n"), "white on black"), no_wrap=True)
        else:
            self.console.print(f"{what}: a QR code of {len(lines[0])} modules, too large for this screen", highlight=False)
        seen = read_drawing(drawn)
        if seen is None:
            self.console.print(f"{what}: {len(said)} bytes; there is no decoder (zxing-cpp), so they are taken as they are")
            return said
        self.fact(seen == said, f"{what}: the decoder reads {len(said)} bytes from the screen", seen)
        return seen

    def lose(self) -> None:
        self.validator.fetch_deny_list(self.connection)
        before = self.validator.deny_version
        early = self.gate.admit(self.ride_code(), METRO_FEN)
        online, offline = self.phone.online_code(self.connection).text.encode(), self.ride_code()
        lost = self.ask(
            self.connection.card_life.ReportLoss, card_life_service_pb2.ReportLossRequest, card_number=CARD_NUMBER, final=True
        )
        by_chip, by_online, by_offline = self.hold_chip(self.chip), self.show_code(online), self.show_code(offline)
        self.coded_s = int(time.time())  # in whole seconds, the next ride must be later than the report
        self.step("reported lost", lost, also=State(lost.state) is State.LOST)
        self.step("the card's chip, in the next call", by_chip, Result.CARD_DENIED)
        self.step("an online code from before the loss, in the next", by_online, Result.CARD_DENIED)
        self.step("a ride code from before the loss, in the next", by_offline, Result.CARD_DENIED)
        asked = self.refused_code()
        self.fact(asked is Result.CARD_DENIED, "the phone gets no more codes: CARD_DENIED", asked)

        code = self.ride_code()
        late = self.gate.admit(code, METRO_FEN)
        let_in = [early, late] == [Result.ACCEPTED] * 2
        self.fact(let_in, "a gate that has no news let it ride twice, before the loss and after", [early, late])
        first, second = self.upload(2)
        self.accepted("its upload: the ride from before", first, METRO_FEN)
        self.step("its upload: the ride from after", second, Result.CARD_DENIED, also=second.charged_fen == 0)

        changes, version = self.changes_since(before), self.validator.deny_version
        # One version, in the same change as the report, for both: there is no list that has the one without the other.
        self.fact(
            (changes, self.changes_since(version - 1), self.changes_since(version)) == (2, 2, 0)
            and {CARD_NUMBER, self.e_card_number} <= self.validator.denied
            and before < lost.sequence < version < by_chip.sequence,
            f"the deny list got card and e-card in its version #{version}, both at once",
            (changes, before, lost.sequence, version, by_chip.sequence),
        )
        barred = Gate(VALIDATOR, self.issuer.authorities, denied=self.validator.denied).admit(code, METRO_FEN)
        self.fact(barred is Result.CARD_DENIED, "another gate, with that list and without network: CARD_DENIED", barred)

    def changes_since(self, version: int) -> int:
        """Bring the validator's deny list up to date from a version on; how many entries came."""
        self.validator.deny_version = version
        return self.validator.fetch_deny_list(self.connection)

    def refused_code(self) -> Result | None:
        """Why the phone gets no online code."""
        try:
            self.phone.online_code(self.connection)
        except Refused as refused:
            return refused.result
        return None

    def replace(self) -> None:
        before_fen = self.balance(CARD_NUMBER)
        new = SimulatedCard(NEW_CARD_NUMBER, self.key_set)
        kind = issuance_service_pb2.APPLICATION_KIND_REPLACEMENT
        moved_fen = self.issue(NEW_CARD_NUMBER, new, kind, old_card_number=CARD_NUMBER)
        after_fen = self.balance(NEW_CARD_NUMBER)
        self.fact(
            before_fen == moved_fen == after_fen == self.balance_fen and self.balance(CARD_NUMBER) == 0,
            f"all of its {yuan(after_fen)} CNY are there, to the fen",
            (before_fen, moved_fen, after_fen, self.balance(CARD_NUMBER)),
        )
        self.accepted("a bus, by the new chip", self.hold_chip(new), BUS_FEN)
        self.step("a bus, by the old chip", self.hold_chip(self.chip), Result.CARD_DENIED)
        self.step("the old e-card's ride code", self.show_code(self.ride_code()), Result.DEVICE_REVOKED)
        topped = self.ask(
            self.connection.accounts.TopUp, account_service_pb2.TopUpRequest, card_number=CARD_NUMBER, amount_fen=100
        )
        self.step("money for the old card", topped, Result.CARD_CANCELLED)
        self.validator.fetch_deny_list(self.connection)
        listed = {CARD_NUMBER, self.e_card_number, NEW_CARD_NUMBER} & self.validator.denied
        self.fact(listed == {CARD_NUMBER, self.e_card_number}, "the deny list keeps the old two, and has not the new one", listed)
        found = self.status(CARD_NUMBER)
        self.fact(
            (State(found.state), found.replaced_by) == (State.CANCELLED, NEW_CARD_NUMBER),
            "the old card names the one in its place",
            found,
        )

    def table(self) -> Table:
        """Where it all ended."""
        table = Table(title="What became of them", box=box.SIMPLE_HEAVY)
        for column, side in (("", "left"), ("number", "left"), ("state", "left"), ("rides", "left"), ("CNY", "right")):
            table.add_column(column, justify=side)  # type: ignore[arg-type]
        for what, number in (("card", CARD_NUMBER), ("its e-card", self.e_card_number), ("new card", NEW_CARD_NUMBER)):
            found = self.status(number)
            usable = Result(found.usable).name
            table.add_row(what, number, State(found.state).name, usable, yuan(self.balance(number)))
        return table


# ---- the screen ----

_LIGHT: Final = {" ": (0, 0), "▀": (255, 0), "▄": (0, 255), "█": (255, 255)}  # upper and lower half of a character


def draw(code: str | bytes) -> str:
    """A code as half blocks, light on dark, two modules a character."""
    out = io.StringIO()
    qr_code(code).terminal(out, compact=True)
    return out.getvalue()


def read_drawing(drawn: str) -> bytes | None:
    """What a decoder that shares nothing with the encoder sees in half blocks on a screen; None where it is not installed."""
    try:
        import zxingcpp
    except ImportError:
        return None
    halves = np.array([[_LIGHT[character] for character in line] for line in drawn.splitlines()], np.uint8)
    pixels = halves.transpose(0, 2, 1).reshape(-1, halves.shape[1])
    found = zxingcpp.read_barcodes(
        np.kron(pixels, np.ones((4, 4), np.uint8)), formats=zxingcpp.BarcodeFormats(zxingcpp.BarcodeFormat.QRCode)
    )
    return bytes(found[0].bytes) if len(found) == 1 else b""
