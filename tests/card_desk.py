"""A core with people, cards and their e-cards, for tests: the whole of issue and life by one-line calls."""

import secrets
from pathlib import Path
from typing import Any

from harness import Harness
from people import new_id, person, provider

from yikatong.core.access.callers import LOCAL, Caller
from yikatong.core.cards import batches, card_actions, card_life, issuance
from yikatong.core.cards.card_life import State
from yikatong.core.change import Change
from yikatong.core.identity import persons
from yikatong.core.identity.identifiers import social_card_check
from yikatong.core.rules import card_rules
from yikatong.core.types import Deny
from yikatong.v1 import card_life_service_pb2 as life_pb
from yikatong.v1 import card_service_pb2, person_service_pb2
from yikatong.v1 import issuance_service_pb2 as pb

ISSUER = bytes.fromhex("5980000100000000")
DAY_S = 86_400
BATCHED, AT_INITIALISATION = issuance.Step.BATCHED, issuance.Step.AT_INITIALISATION


class CardDesk:
    """A core, its keys and rules."""

    def __init__(self, path: Path, **settings: int) -> None:
        self.core = Harness(path, **settings)
        self.provider = provider()
        self.rules = card_rules.default()
        self.people = 0
        self.begun_us = self.core.now_us

    def close(self) -> None:
        self.core.close()

    @property
    def memory(self) -> Any:
        return self.core.memory

    def ask(self, command: Any, request: Any, *before: Any, caller: Caller = LOCAL) -> Any:
        return self.core.ask(lambda memory, message, time_us: command(*before, memory, message, time_us, caller), request)

    def run(self, command: Any) -> Any:
        """A command without a request."""
        return self.core.ask(lambda memory, _, time_us: command(memory, time_us), None)

    def change(self, fill: Any) -> None:
        def command(memory: Any, time_us: int) -> None:
            made = Change(memory, time_us)
            fill(made)
            made.commit("test")

        self.run(command)

    # ---- life ----

    def slot(self, card_number: str) -> int:
        return int(self.core.engine.find_card(card_number))

    def register(self, card_number: str, expires: int = 0) -> int:
        self.core.register_card(card_number, expires=expires)
        return self.slot(card_number)

    def give_e_card(self, card_number: str, e_card_number: str) -> int:
        """An e-card that pays from the card's account, as helpers of e-cards make it."""
        card = self.slot(card_number)
        expires = self.core.engine.card(card)["expires"]
        kept = card_service_pb2.Card(card_number=e_card_number, issuer_id=ISSUER, rider=1, expires=expires)
        payload = kept.SerializeToString()

        def command(memory: Any, time_us: int) -> int:
            return int(memory.engine.add_card(e_card_number, ISSUER, 1, expires, time_us, payload, twin=card))

        return int(self.run(command))

    def not_enabled(self, slot: int) -> None:
        self.change(lambda change: card_life.begin(self.memory, change, slot))

    def lose(self, card_number: str, *, final: bool = True, **fields: Any) -> Any:
        request = life_pb.ReportLossRequest(request_id=new_id(), card_number=card_number, final=final)
        return self.ask(card_actions.report_loss, request, self.rules.temporary_loss_s, **fields)

    def lift(self, card_number: str, **fields: Any) -> Any:
        return self.ask(card_actions.lift_loss, life_pb.LiftLossRequest(request_id=new_id(), card_number=card_number), **fields)

    def freeze(self, card_number: str, **fields: Any) -> Any:
        request = life_pb.FreezeCardRequest(request_id=new_id(), card_number=card_number, reason="case 1")
        return self.ask(card_actions.freeze_card, request, **fields)

    def unfreeze(self, card_number: str, freeze_id: int, **fields: Any) -> Any:
        request = life_pb.UnfreezeCardRequest(request_id=new_id(), card_number=card_number, freeze_id=freeze_id)
        return self.ask(card_actions.unfreeze_card, request, **fields)

    def cancel(self, card_number: str, **fields: Any) -> Any:
        request = life_pb.CancelCardRequest(request_id=new_id(), card_number=card_number)
        return self.ask(card_actions.cancel_card, request, **fields)

    def status(self, card_number: str, **fields: Any) -> Any:
        return self.ask(card_actions.get_card_status, life_pb.GetCardStatusRequest(card_number=card_number), **fields)

    def state(self, card_number: str) -> State:
        return State(self.status(card_number).state)

    def reasons(self, card_number: str) -> Deny:
        return Deny(self.core.engine.card(self.slot(card_number))["deny_reasons"])

    # ---- people and applications ----

    def new_person(self, **fields: str) -> bytes:
        self.people += 1
        request = person_service_pb2.RegisterPersonRequest(request_id=new_id(), data=person(self.people, **fields))
        return bytes(self.ask(persons.register_person, request, self.provider).person_id)

    def apply(self, person_id: bytes, kind: int = issuance.ORDINARY, caller: Caller = LOCAL, **fields: Any) -> Any:
        request = pb.ApplyForCardRequest(request_id=new_id(), person_id=person_id, kind=kind, **fields)
        return self.ask(issuance.apply_for_card, request, self.rules, self.provider, caller=caller)

    def check(self, application_id: bytes, rejected: str = "", caller: Caller = LOCAL) -> Any:
        request = pb.CheckApplicationRequest(request_id=new_id(), application_id=application_id, rejected=rejected)
        return self.ask(issuance.check_application, request, self.rules, caller=caller)

    def advance(self, step: int, *ids: bytes, caller: Caller = LOCAL) -> list[int]:
        request = pb.AdvanceApplicationsRequest(request_id=new_id(), application_ids=ids, step=step)
        return list(self.ask(issuance.advance_applications, request, self.rules, caller=caller).results)

    def produced(self, *cards: tuple[bytes, str], caller: Caller = LOCAL, **fields: Any) -> Any:
        made = [
            pb.ReportProducedRequest.Produced(
                **(
                    {
                        "application_id": application_id, "card_number": number, "issuer_id": ISSUER,
                        "social_card_number": (first := f"A{int(number) % 10**7:07d}") + social_card_check(first),
                        "card_identifier": "441600D156000005" + secrets.token_hex(8).upper(),
                    }
                    | fields
                )
            )
            for application_id, number in cards
        ]  # fmt: skip
        request = pb.ReportProducedRequest(request_id=new_id(), cards=made)
        return self.ask(issuance.report_produced, request, self.rules, caller=caller)

    def deliver(self, application_id: bytes, caller: Caller = LOCAL, **way: str) -> Any:
        request = pb.DeliverCardRequest(request_id=new_id(), application_id=application_id, **(way or {"outlet_id": "branch-1"}))
        return self.ask(issuance.deliver_card, request, self.rules, caller=caller)

    def pick_up(self, application_id: bytes, by: bytes = b"", caller: Caller = LOCAL) -> Any:
        by = by or issuance.load(self.memory, application_id).person_id  # type: ignore[union-attr]
        request = pb.PickUpCardRequest(request_id=new_id(), application_id=application_id, picked_up_by_person_id=by)
        return self.ask(issuance.pick_up_card, request, self.rules, caller=caller)

    def withdraw(self, application_id: bytes, caller: Caller = LOCAL) -> Any:
        request = pb.WithdrawApplicationRequest(request_id=new_id(), application_id=application_id, reason="not wanted")
        return self.ask(issuance.withdraw_application, request, self.rules, caller=caller)

    def bank(self, application_id: bytes, state: int, bank_id: str = "boc", caller: Caller = LOCAL) -> Any:
        request = pb.SetBankAccountRequest(request_id=new_id(), application_id=application_id, bank_id=bank_id, state=state)
        return self.ask(issuance.set_bank_account, request, caller=caller)

    def application(self, application_id: bytes) -> pb.Application:
        return self.ask(issuance.get_application, pb.GetApplicationRequest(application_id=application_id)).application

    def overdue(self, caller: Caller = LOCAL, **fields: Any) -> Any:
        return self.ask(issuance.list_overdue, pb.ListOverdueRequest(**fields), caller=caller)

    def issue(self, person_id: bytes, number: str, kind: int = issuance.INSTANT, *, pick_up: bool = True, **fields: Any) -> bytes:
        """A card for a person, all the way."""
        applied = self.apply(person_id, kind, **fields)
        assert applied.result == 1, applied
        application_id = bytes(applied.application_id)
        self.check(application_id)
        if kind != issuance.INSTANT:
            for step in range(BATCHED, AT_INITIALISATION + 1):
                assert self.advance(step, application_id) == [1]
        assert list(self.produced((application_id, number)).results) == [1]
        if kind != issuance.INSTANT:
            self.deliver(application_id)
        if pick_up:
            assert self.pick_up(application_id).result == 1
        return application_id

    # ---- batches ----

    def open_batch(self, columns: list[str], rows: int, encoding: int = pb.BATCH_ENCODING_UTF8, caller: Caller = LOCAL) -> bytes:
        request = pb.OpenBatchRequest(
            request_id=new_id(), kind=issuance.ORDINARY, encoding=encoding, columns=columns, rows_total=rows
        )
        return bytes(self.ask(batches.open_batch, request, caller=caller).batch_id)

    def upload(self, batch_id: bytes, first_line: int, content: bytes, caller: Caller = LOCAL) -> pb.Batch:
        request = pb.UploadBatchRowsRequest(batch_id=batch_id, first_line=first_line, content=content)
        return batches.upload(self.rules, self.provider, request, caller, self.run).batch

    def rows(self, batch_id: bytes, caller: Caller = LOCAL, **fields: Any) -> list[pb.BatchRow]:
        found: list[pb.BatchRow] = []
        token = ""
        while True:
            request = pb.ListBatchRowsRequest(batch_id=batch_id, page_token=token, **fields)
            page = self.ask(batches.list_batch_rows, request, caller=caller)
            found += page.rows
            token = page.next_page_token
            if not token:
                return found
