"""One state at every door: whatever happens to a card, each way of using it says the same right after that change, in whatever
order the doors are tried."""

import functools
import random
import secrets
from pathlib import Path
from typing import Any

import pytest
from harness import Harness, local_time_of, make_tap
from hypothesis import given, settings
from hypothesis import strategies as st
from identity_city import Citizen, City, Phone, make_provider
from payments import RULES_TEXT
from test_identity import challenge_for, present, verify

from yikatong.core.access import lockout
from yikatong.core.access.callers import LOCAL
from yikatong.core.acquiring import authorizations, merchants
from yikatong.core.cards import card_actions, card_life, card_state, codes, deny_list, device_proof, e_cards
from yikatong.core.cards.card_life import State
from yikatong.core.rules.purse_rules import parse
from yikatong.core.rules.source import Source
from yikatong.core.types import Result
from yikatong.v1 import authorization_service_pb2, code_service_pb2, deny_list_service_pb2, merchant_service_pb2
from yikatong.v1 import card_life_service_pb2 as life_pb

RULES = parse(Source("rules", RULES_TEXT.encode()))
SHOP = {"acquirer_id": "acq", "merchant_id": "shop", "merchant_category": "5411"}
DAY_S = 86_400


def new_id() -> bytes:
    return secrets.token_bytes(16)


class Town:
    """A citizen with a card, an e-card and a phone; each door says whether it lets the card in."""

    def __init__(self, folder: Path) -> None:
        self.core = Harness(folder / "data", stored_grace_s=0)
        self.city = City(self.core, make_provider(folder))
        self.citizen: Citizen = self.city.add_citizen()
        self.phone: Phone = self.city.phone(self.citizen)
        self.card = self.citizen.card_number
        e_card = e_cards.e_card_of(self.core.memory, self.citizen.card_slot)
        assert e_card is not None
        self.e_card = e_card.number
        self.core.register_terminal(make_tap().terminal_number)
        self.core.top_up(self.card, 1_000_000)
        shop = merchant_service_pb2.RegisterMerchantsRequest(merchants=[merchant_service_pb2.Merchant(**SHOP)])
        self.core.ask(merchants.register_merchants, shop)
        self.freezes: list[int] = []
        self.taps = 0
        self.code = ""

    # ---- what happens to the card ----

    def act(self, command: Any, kind: Any, number: str, *before: Any, **fields: Any) -> Any:
        request = kind(request_id=new_id(), card_number=number, **fields)
        return self.core.ask(lambda memory, asked, time_us: command(*before, memory, asked, time_us, LOCAL), request)

    def deny(self, command: Any, kind: Any, number: str, reason: int) -> Any:
        return self.core.ask(command, kind(request_id=new_id(), card_number=number, reason=reason))

    def happen(self, event: str, number: str) -> None:
        loss, frozen = deny_list_service_pb2.DENY_REASON_LOSS, deny_list_service_pb2.DENY_REASON_FROZEN
        match event:
            case "lose":
                self.act(card_actions.report_loss, life_pb.ReportLossRequest, number, 7 * DAY_S, final=True)
            case "lose for a while":
                self.act(card_actions.report_loss, life_pb.ReportLossRequest, number, 7 * DAY_S, final=False)
            case "lift":
                self.act(card_actions.lift_loss, life_pb.LiftLossRequest, number)
            case "freeze":
                answer = self.act(card_actions.freeze_card, life_pb.FreezeCardRequest, number, reason="case 1")
                self.freezes += [answer.freeze_id] if answer.freeze_id else []
            case "unfreeze" if self.freezes:
                self.act(card_actions.unfreeze_card, life_pb.UnfreezeCardRequest, number, freeze_id=self.freezes.pop())
            case "cancel":
                self.act(card_actions.cancel_card, life_pb.CancelCardRequest, number)
            case "deny":
                self.deny(deny_list.deny_card, deny_list_service_pb2.DenyCardRequest, number, loss)
            case "allow":
                for reason in (loss, frozen):
                    self.deny(deny_list.allow_card, deny_list_service_pb2.AllowCardRequest, number, reason)
            case "a week":
                self.core.pass_time(8 * DAY_S)
                self.core.ask(lambda memory, _, time_us: card_life.lift_due(memory, time_us), None)
            case "restart" | "checkpoint" | "rebuild":
                getattr(self.core, event)()

    # ---- doors ----

    def tap(self, number: str) -> Any:
        self.taps += 1
        return make_tap(
            card_number=number, atc=self.taps, terminal_sequence=self.taps, amount_fen=1, amount_due_fen=1,
            local_time=local_time_of(self.core.now_s),
        )  # fmt: skip

    def taps_online(self, number: str) -> bool:
        return bool(self.core.authorize(self.tap(number)).result == Result.ACCEPTED)

    def taps_stored(self, number: str) -> bool:
        (outcome,) = self.core.submit(self.tap(number))
        return bool(outcome.result == Result.ACCEPTED)

    def is_off_the_deny_list(self) -> bool:
        asked = deny_list_service_pb2.GetDenyListRequest()
        listed = {entry.card_number for entry in self.core.command(deny_list.get_deny_list, asked).entries}
        assert listed in (set(), {self.card, self.e_card})
        return not listed

    def keep_code(self) -> None:
        """A code that the phone got before whatever happens next."""
        proof = self.phone.prove(device_proof.message_of("CodeService/GetCode", self.phone.device_id))
        request = code_service_pb2.GetCodeRequest(device_id=self.phone.device_id, proof=proof)
        random_part = secrets.token_bytes(codes.TOKEN_RANDOM_BYTES)
        self.code = self.core.ask(functools.partial(codes.get_code, self.city.provider, random_part), request).code

    def rides_by_the_code_from_before(self) -> bool:
        self.taps += 1
        shown = code_service_pb2.CodeTap(
            code=self.code.encode(), terminal_number=make_tap().terminal_number, terminal_sequence=self.taps, amount_fen=1,
            amount_due_fen=1, local_time=local_time_of(self.core.now_s), kind=3, line=261, stop=7,
        )  # fmt: skip
        checked = codes.CodeChecker(codes.RideCodeRules()).check([shown])
        (answer,) = self.core.ask(
            lambda memory, some, time_us: codes.reserve(self.city.provider, memory, some, False, time_us), checked
        )
        if not isinstance(answer, codes.Reserved):
            return False
        codes.prove(self.city.provider, [answer])
        return bool(self.core.authorize(answer.tap).result == Result.ACCEPTED)

    def gets_a_code(self) -> bool:
        proof = self.phone.prove(device_proof.message_of("CodeService/GetCode", self.phone.device_id))
        request = code_service_pb2.GetCodeRequest(device_id=self.phone.device_id, proof=proof)
        random_part = secrets.token_bytes(codes.TOKEN_RANDOM_BYTES)
        answer = self.core.ask(functools.partial(codes.get_code, self.city.provider, random_part), request)
        return bool(answer.result == Result.ACCEPTED)

    def gets_a_ride_code(self) -> bool:
        proof = self.phone.prove(device_proof.message_of("CodeService/GetRideCode", self.phone.device_id))
        request = code_service_pb2.GetRideCodeRequest(device_id=self.phone.device_id, proof=proof)
        granted = self.core.ask(functools.partial(codes.grant_ride_code, self.city.provider), request)
        return isinstance(granted, codes.RideCodeGrant)

    def pays(self, number: str) -> bool:
        request = authorization_service_pb2.AuthorizeRequest(request_id=new_id(), card_number=number, amount_fen=1, **SHOP)
        answer = self.core.ask(lambda memory, asked, time_us: authorizations.authorize(RULES, memory, asked, time_us), request)
        return bool(answer.result == Result.ACCEPTED)

    def logs_in(self) -> bool:
        return bool(self.city.scan(self.city.start().qr_content, self.phone).result == Result.ACCEPTED)

    def forget_refusals(self) -> None:
        """A check of identity that a lost card was refused counts as a wrong guess; here it is the card's state that is asked."""
        person = lockout.of_person(self.citizen.person_id)
        self.city.change(lambda change: lockout.right(change, self.core.memory, person))

    def is_verified_by_card(self) -> bool:
        self.forget_refusals()
        return bool(verify(self.city, **present(self.citizen, challenge_for(self.city))).verified)

    def doors(self) -> dict[str, Any]:
        return {
            "card taps online": lambda: self.taps_online(self.card),
            "e-card taps online": lambda: self.taps_online(self.e_card),
            "card's stored tap": lambda: self.taps_stored(self.card),
            "e-card's stored tap": lambda: self.taps_stored(self.e_card),
            "deny list": self.is_off_the_deny_list,
            "code from before": self.rides_by_the_code_from_before,
            "online code": self.gets_a_code,
            "ride code": self.gets_a_ride_code,
            "card pays": lambda: self.pays(self.card),
            "e-card pays": lambda: self.pays(self.e_card),
            "login": self.logs_in,
            "identity by card": self.is_verified_by_card,
        }


EVENTS = (
    "lose", "lose for a while", "lift", "lift", "freeze", "unfreeze", "unfreeze", "deny", "allow", "allow", "a week", "restart",
    "checkpoint", "rebuild",
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_all_doors_say_the_same_after_each_change(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    chance = random.Random(seed)
    town = Town(tmp_path_factory.mktemp("doors"))
    try:
        events = [chance.choice(EVENTS) for _ in range(10)] + ["cancel"]
        for event in events:
            town.keep_code()
            town.happen(event, chance.choice([town.card, town.e_card]))
            town.core.pass_time(2)  # a stored tap of the very second is a ride that was given in good faith
            state = State(card_life.at(town.core.memory, town.citizen.card_slot, town.core.now_us).state)
            doors = list(town.doors().items())
            chance.shuffle(doors)
            wanted = dict.fromkeys(town.doors(), state is State.ENABLED)
            if state is State.ENABLED and (not town.code or event == "a week"):
                wanted["code from before"] = False  # there was none, or its minute is over
            assert {name: door() for name, door in doors} == wanted, event
    finally:
        town.core.close()


@pytest.mark.parametrize("door", ["online code", "ride code", "card pays", "login", "identity by card"])
def test_a_door_that_does_not_ask_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    town = Town(tmp_path)
    town.happen("lose", town.card)
    town.core.pass_time(2)
    assert not town.doors()[door]()
    for module in (card_state, e_cards, codes):
        for name in ("refusal", "paying_refusal"):
            monkeypatch.setattr(module, name, lambda *_: None, raising=False)
    assert town.doors()[door]()
    town.core.close()
