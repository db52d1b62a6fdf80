"""An acquirer's desk over a core without sockets: authorisations by short names, for tables and models."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from harness import Harness

from yikatong.core.acquiring import authorization, authorizations, merchants, purses
from yikatong.core.rules.purse_rules import PurseRules, parse
from yikatong.core.rules.source import Source
from yikatong.core.types import Result
from yikatong.v1 import authorization_service_pb2 as pb
from yikatong.v1 import merchant_service_pb2, purse_service_pb2

RULES_TEXT = """\
version = 1
[general]
order = 1000
[[purse_kinds]]
id = "meal"
categories = ["5811-5814"]
order = 10
validity_days = 30
[[purse_kinds]]
id = "culture"
categories = ["5942", "7991-7999"]
order = 10
validity_days = 60
[[purse_kinds]]
id = "any"
categories = ["0000-9999"]
order = 20
validity_days = 60
[[banks]]
id = "icbc"
[[banks]]
id = "ccb"
[[limits]]
id = "once"
scope = "card"
period = "transaction"
amount_fen_max = 4_000
[[limits]]
id = "card-day"
scope = "card"
period = "day"
amount_fen_max = 5_000
[[limits]]
id = "card-month"
scope = "card"
period = "month"
amount_fen_max = 8_000
[[limits]]
id = "meal-day"
scope = "purse"
purse_kind = "meal"
period = "day"
amount_fen_max = 250
[[limits]]
id = "culture-month"
scope = "purse"
purse_kind = "culture"
period = "month"
amount_fen_max = 700
[[limits]]
id = "bank-day"
scope = "purse"
purse_kind = "bank"
period = "day"
amount_fen_max = 400
[[limits]]
id = "books-day"
scope = "category"
categories = ["5942"]
period = "day"
amount_fen_max = 900
[[limits]]
id = "books-month"
scope = "category"
categories = ["5942"]
period = "month"
amount_fen_max = 1_500
[[limits]]
id = "offline"
scope = "card"
period = "overdraft"
amount_fen_max = 100
"""

ACQUIRER = "acq"
OTHER_ACQUIRER = "other"
MERCHANTS = {"shop": "5999", "canteen": "5814", "books": "5942"}


def rules_of(text: str = RULES_TEXT) -> PurseRules:
    return parse(Source("rules.toml", text.encode()))


def request_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def legs_of(text: str) -> list[pb.Leg]:
    """m1=100+general=20: legs."""
    pairs = [each.rpartition("=") for each in text.split("+") if each]
    return [pb.Leg(purse=purse, amount_fen=int(fen)) for purse, _, fen in pairs]


class Desk:
    """Requests are named: the same name and content is the same request. Authorisations go by the name of their request."""

    def __init__(self, path: Path, rules: PurseRules | None = None, **settings: int) -> None:
        self.core = Harness(path, cards_max=1_000, terminals_max=100, **settings)  # type: ignore[arg-type]
        self.rules = rules or rules_of()

    def ask(self, command: Any, request: Any) -> Any:
        return self.core.ask(authorizations.swept(command), request)

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.core.__exit__()

    def sweep(self) -> None:
        """What the server does once a second."""
        while authorization.expire_due(self.core.memory, self.core.now_us):
            pass
        self.core.take()
        self.core.commit()

    # ---- registrations ----

    def register_merchants(self, acquirer_id: str = ACQUIRER, **categories: str) -> Any:
        request = merchant_service_pb2.RegisterMerchantsRequest(
            merchants=[
                merchant_service_pb2.Merchant(acquirer_id=acquirer_id, merchant_id=name, merchant_category=category)
                for name, category in (categories or MERCHANTS).items()
            ]
        )
        return self.core.ask(merchants.register_merchants, request).registrations

    def card(self, card_number: str, funds_fen: int, **fields: Any) -> None:
        assert self.core.register_card(card_number, **fields).result == Result.ACCEPTED
        if funds_fen:
            self.core.top_up(card_number, funds_fen)

    def open_purse(self, name: str, card: str, purse: str, kind: str, *, funder: str = "city", expires: int = 0) -> Any:
        request = purse_service_pb2.OpenPurseRequest(
            request_id=request_id(name), card_number=card, purse_id=purse, purse_kind=kind, funder_id=funder, expires=expires
        )
        return self.ask(partial(purses.open_purse, self.rules), request)

    def fund_purse(self, name: str, card: str, purse: str, fen: int) -> Any:
        request = purse_service_pb2.FundPurseRequest(
            request_id=request_id(name), card_number=card, purse_id=purse, amount_fen=fen
        )
        return self.ask(purses.fund_purse, request)

    def close_purse(self, name: str, card: str, purse: str) -> Any:
        request = purse_service_pb2.ClosePurseRequest(request_id=request_id(name), card_number=card, purse_id=purse)
        return self.ask(purses.close_purse, request)

    def purses(self, card: str) -> list[Any]:
        request = purse_service_pb2.ListPursesRequest(card_number=card)
        return list(self.ask(partial(purses.list_purses, self.rules), request).purses)

    # ---- payments ----

    def authorize_request(self, name: str, fen: int, **fields: Any) -> pb.AuthorizeRequest:
        """`legs` as text; the category is the merchant's."""
        merchant = fields.pop("merchant", "shop")
        return pb.AuthorizeRequest(
            **{
                "request_id": request_id(name),
                "acquirer_id": ACQUIRER,
                "merchant_id": merchant,
                "merchant_category": MERCHANTS.get(merchant, "5999"),
                "card_number": fields.pop("card", "100"),
                "amount_fen": fen,
                "timeout_s": fields.pop("timeout", 600),
                "legs": legs_of(fields.pop("legs", "")),
                **fields,
            }
        )

    def authorize(self, name: str, fen: int, **fields: Any) -> Any:
        return self.ask(partial(authorizations.authorize, self.rules), self.authorize_request(name, fen, **fields))

    def increment(self, name: str, of: str, fen: int, *, legs: str = "", timeout: int = 0, acquirer: str = ACQUIRER) -> Any:
        request = pb.IncrementAuthorizationRequest(
            request_id=request_id(name), acquirer_id=acquirer, authorize_request_id=request_id(of), amount_fen=fen,
            legs=legs_of(legs), timeout_s=timeout,
        )  # fmt: skip
        return self.ask(partial(authorizations.increment_authorization, self.rules), request)

    def capture(self, name: str, of: str, fen: int, *, final: bool = False, acquirer: str = ACQUIRER) -> Any:
        request = pb.CaptureRequest(
            request_id=request_id(name), acquirer_id=acquirer, authorize_request_id=request_id(of), amount_fen=fen, final=final
        )
        return self.ask(authorizations.capture, request)

    def void(self, name: str, of: str, *, acquirer: str = ACQUIRER) -> Any:
        request = pb.VoidAuthorizationRequest(
            request_id=request_id(name), acquirer_id=acquirer, authorize_request_id=request_id(of)
        )
        return self.ask(authorizations.void_authorization, request)

    def refund(self, name: str, of: str, fen: int, *, legs: str = "", acquirer: str = ACQUIRER) -> Any:
        request = pb.RefundRequest(
            request_id=request_id(name), acquirer_id=acquirer, authorize_request_id=request_id(of), amount_fen=fen,
            legs=legs_of(legs),
        )  # fmt: skip
        return self.ask(authorizations.refund, request)

    def reverse(self, name: str, original: str, *, acquirer: str = ACQUIRER) -> Any:
        request = pb.ReverseTransactionRequest(
            request_id=request_id(name), acquirer_id=acquirer, original_request_id=request_id(original)
        )
        return self.ask(authorizations.reverse_transaction, request)

    def get(self, of: str, acquirer: str = ACQUIRER) -> pb.Authorization:
        request = pb.GetAuthorizationRequest(acquirer_id=acquirer, authorize_request_id=request_id(of))
        return self.ask(authorizations.get_authorization, request).authorization

    def list(self, page_size: int = 100, page_token: str = "", **of: str) -> Any:
        request = pb.ListAuthorizationsRequest(page_size=page_size, page_token=page_token, **of)
        return self.ask(authorizations.list_authorizations, request)

    # ---- the ledger ----

    def account_fen(self, name: str) -> tuple[int, int]:
        """Balance and hold of a named account, or of a card's own one; nothing where it was never opened."""
        engine, memory = self.core.engine, self.core.memory
        account = engine.card(engine.find_card(name))["account"] if name.isdigit() else memory.account(name)
        return (0, 0) if account is None else (engine.balance_fen(account), engine.held_fen(account))

    def available_fen(self, card: str, purse: str = "") -> int:
        balance_fen, held_fen = self.account_fen(f"purse:{card}:{purse}" if purse else card)
        return balance_fen - held_fen

    def payable_fen(self, merchant: str = "shop", acquirer: str = ACQUIRER) -> int:
        return self.account_fen(f"acquirer:{acquirer}:{merchant}")[0]
