"""Restricted purses of cards: documents, their accounts, and what each has for a payment.

A purse is the named account "purse:<card number>:<purse id>", funded from "funder:<funder id>". Commands are as core/commands.py
describes them; those that need the rules take them first."""

import datetime
import re
from collections.abc import Iterator
from typing import Final

from yikatong.core import limits
from yikatong.core.acquiring.merchants import PARTY_ID_WANTED, is_party_id
from yikatong.core.acquiring.paying import Refusal, Source
from yikatong.core.cards import card_state
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory
from yikatong.core.rules.purse_rules import BANK, GENERAL, ID_PATTERN, Limit, PurseRules
from yikatong.core.types import NONE, PURSE_PREFIX, DocumentKind, PostingKind, Result, wire
from yikatong.ext.engine import is_card_number, local_seconds, settlement_date
from yikatong.v1 import purse_service_pb2

BANK_PREFIX: Final = "bank:"
FUNDER_PREFIX: Final = "funder:"
PURSE_ID_WANTED: Final = "1 to 32 lower-case letters, digits and hyphens are wanted"
NEVER: Final = 99_999_999  # a date after all others
_PURSE_ID: Final = re.compile(ID_PATTERN)

Purse = purse_service_pb2.Purse
OPEN, EXPIRED, CLOSED = (
    purse_service_pb2.PURSE_STATE_OPEN,
    purse_service_pb2.PURSE_STATE_EXPIRED,
    purse_service_pb2.PURSE_STATE_CLOSED,
)


def is_purse_id(text: str) -> bool:
    """Whether a restricted purse may be called so."""
    return text != GENERAL and _PURSE_ID.fullmatch(text) is not None


def is_payer(text: str) -> bool:
    """Whether a leg can name this: a purse, "general", or "bank:" and a bank's id."""
    return text == GENERAL or _PURSE_ID.fullmatch(text.removeprefix(BANK_PREFIX)) is not None


def funder_of(memory: Memory, card_number: str, purse_id: str) -> str:
    """Who funds a purse; empty where there is none."""
    card = int(memory.engine.find_card(card_number)) if is_card_number(card_number) else NONE
    purse = None if card == NONE else find_purse(memory, card, purse_id)
    return "" if purse is None else purse.funder_id


def account_name(card_number: str, purse_id: str) -> str:
    return f"{PURSE_PREFIX}{card_number}:{purse_id}"


# ---- documents ----


def purse_key(card: int, purse_id: str) -> bytes:
    """Key of a purse's document: the card's slot, the purse's id."""
    return card.to_bytes(4, "big") + purse_id.encode()


def find_purse(memory: Memory, card: int, purse_id: str) -> Purse | None:
    """A restricted purse of a card (slot), closed ones too."""
    value = memory.documents.get(DocumentKind.PURSE, purse_key(card, purse_id))
    return None if value is None else Purse.FromString(value)


def purses_of(memory: Memory, card: int) -> Iterator[Purse]:
    """All restricted purses of a card (slot), closed ones too, in order of id."""
    end = (card + 1).to_bytes(5, "big")[-4:] if card < NONE else None
    for _, value in memory.documents.scan(DocumentKind.PURSE, card.to_bytes(4, "big"), end):
        yield Purse.FromString(value)


def state_at(purse: Purse, date: int) -> int:
    """A purse's state on a day (YYYYMMDD)."""
    return EXPIRED if purse.state == OPEN and 0 < purse.expires < date else purse.state


def available_fen(memory: Memory, account: int) -> int:
    """Balance less holds; negative where a debt was booked."""
    return int(memory.engine.balance_fen(account)) - int(memory.engine.held_fen(account))


def general_account(memory: Memory, card: int) -> int:
    return int(memory.engine.card(card)["account"])


def closed_funder(memory: Memory, card: int, purse_id: str) -> int | None:
    """The account to which the rest of a purse went that is closed; None where it is not closed, or no restricted one."""
    purse = find_purse(memory, card, purse_id)
    return memory.account(FUNDER_PREFIX + purse.funder_id) if purse is not None and purse.state == CLOSED else None


def account_of(memory: Memory, card: int, card_number: str, purse: str) -> int | None:
    """The account behind a leg's purse, or None where no bank account or purse of that name was ever used."""
    if purse == GENERAL:
        return general_account(memory, card)
    return memory.account(purse if purse.startswith(BANK_PREFIX) else account_name(card_number, purse))


# ---- what pays ----


def general_source(memory: Memory, card: int, overdraft: Limit | None) -> Source:
    """The card's own account, which may go below zero as far as a limit lets it."""
    money_fen = available_fen(memory, general_account(memory, card))
    if overdraft is None:
        return Source(GENERAL, GENERAL, money_fen)
    return Source(GENERAL, GENERAL, money_fen + overdraft.amount_fen_max, Refusal(overdraft.exceeded, overdraft.id))


def paying_order(
    memory: Memory, rules: PurseRules, card: int, card_number: str, category: str, date: int, overdraft: Limit | None
) -> list[Source]:
    """The purses that fit a merchant category, in the order of the rules: of equal order the one that expires first, then by
    id."""
    found = [((rules.general_order, NEVER, ""), general_source(memory, card, overdraft))]
    for purse in purses_of(memory, card):
        kind = rules.kinds.get(purse.purse_kind)
        if kind is None or state_at(purse, date) != OPEN or category not in kind.categories:
            continue
        account = memory.account(account_name(card_number, purse.purse_id))
        assert account is not None
        source = Source(purse.purse_id, kind.id, available_fen(memory, account))
        found.append(((kind.order, purse.expires or NEVER, purse.purse_id), source))
    return [source for _, source in sorted(found, key=lambda item: item[0])]


def named_source(
    memory: Memory, rules: PurseRules, card: int, card_number: str, category: str, date: int, overdraft: Limit | None, name: str
) -> Source | Result:
    """The source that a leg names, or why it does not pay."""
    if name == GENERAL:
        return general_source(memory, card, overdraft)
    if name.startswith(BANK_PREFIX):
        if name.removeprefix(BANK_PREFIX) not in rules.banks:
            return Result.PURSE_UNKNOWN
        return Source(name, BANK, limits.LIMIT_FEN_MAX)  # the bank owes it; only limits bound it
    purse = find_purse(memory, card, name)
    if purse is None or purse.state == CLOSED:
        return Result.PURSE_UNKNOWN
    if state_at(purse, date) == EXPIRED:
        return Result.PURSE_EXPIRED
    kind = rules.kinds.get(purse.purse_kind)
    if kind is None or category not in kind.categories:
        return Result.PURSE_CATEGORY
    account = memory.account(account_name(card_number, name))
    assert account is not None
    return Source(name, kind.id, available_fen(memory, account))


# ---- rpcs ----


def _check_card_and_purse(
    request: purse_service_pb2.OpenPurseRequest | purse_service_pb2.FundPurseRequest | purse_service_pb2.ClosePurseRequest,
) -> None:
    if len(request.request_id) != 16:
        raise InvalidRequest("request_id", "16 bytes are wanted")
    if not is_card_number(request.card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    if not is_purse_id(request.purse_id):
        raise InvalidRequest("purse_id", PURSE_ID_WANTED + f", and not {GENERAL!r}")


def _expiry(request: purse_service_pb2.OpenPurseRequest, validity_days: int, time_us: int) -> int:
    """The last day of a new purse. Raises InvalidRequest for one that is over or beyond what the kind allows."""
    today = settlement_date(time_us)
    day = datetime.date(today // 10_000, today // 100 % 100, today % 100) + datetime.timedelta(validity_days)
    last = int(f"{day:%Y%m%d}")
    expires = request.expires or last
    if local_seconds(expires, 0) < 0 or not today <= expires <= last:
        raise InvalidRequest("expires", f"a day from {today} to {last} is wanted, or 0 for the last")
    return expires


def open_purse(
    rules: PurseRules, memory: Memory, request: purse_service_pb2.OpenPurseRequest, time_us: int
) -> purse_service_pb2.OpenPurseResponse:
    """PurseService.OpenPurse."""
    _check_card_and_purse(request)
    if not is_party_id(request.funder_id):
        raise InvalidRequest("funder_id", PARTY_ID_WANTED)
    if (again := answered(memory, request, purse_service_pb2.OpenPurseResponse)) is not None:
        return again
    kind = rules.kinds.get(request.purse_kind)
    if kind is None:
        raise InvalidRequest("purse_kind", f"one of {', '.join(rules.kinds)} is wanted")
    expires = _expiry(request, kind.validity_days, time_us)
    change = Change(memory, time_us)
    response = purse_service_pb2.OpenPurseResponse()
    card = memory.engine.find_card(request.card_number)
    if card == NONE:
        response.result = wire(Result.UNKNOWN_CARD)
        return change.answer(request, response, "purse-declined")
    if refused := card_state.funding_refusal(memory, card):
        response.result = wire(refused)
        return change.answer(request, response, "purse-declined")
    if find_purse(memory, card, request.purse_id) is not None:
        response.result = wire(Result.CONFLICT)
        return change.answer(request, response, "purse-declined")
    if sum(purse.state != CLOSED for purse in purses_of(memory, card)) >= limits.PURSES_OF_CARD_MAX:
        raise InvalidRequest("purse_id", f"the card has {limits.PURSES_OF_CARD_MAX} purses; close one first")
    purse = Purse(
        card_number=request.card_number,
        purse_id=request.purse_id,
        purse_kind=kind.id,
        funder_id=request.funder_id,
        expires=expires,
        state=OPEN,
    )
    change.open_account(account_name(request.card_number, request.purse_id))
    change.open_account(FUNDER_PREFIX + request.funder_id)
    change.put(DocumentKind.PURSE, purse_key(card, request.purse_id), purse.SerializeToString(deterministic=True))
    response.result, response.expires = wire(Result.ACCEPTED), expires
    return change.answer(request, response, "purse-opened")


def fund_purse(memory: Memory, request: purse_service_pb2.FundPurseRequest, time_us: int) -> purse_service_pb2.FundPurseResponse:
    """PurseService.FundPurse."""
    _check_card_and_purse(request)
    if not 1 <= request.amount_fen <= limits.TOP_UP_FEN_MAX:
        raise InvalidRequest("amount_fen", f"1 to {limits.TOP_UP_FEN_MAX} is wanted")
    if (again := answered(memory, request, purse_service_pb2.FundPurseResponse)) is not None:
        return again
    change = Change(memory, time_us)
    response = purse_service_pb2.FundPurseResponse()
    card, purse, result = _find(memory, request.card_number, request.purse_id)
    if purse is not None and state_at(purse, settlement_date(time_us)) == EXPIRED:
        result = Result.PURSE_EXPIRED
    if purse is not None:
        result = card_state.funding_refusal(memory, card) or result
    response.result = wire(result)
    if purse is None or result is not Result.ACCEPTED:
        return change.answer(request, response, "purse-declined")
    account, funder = _accounts(memory, purse)
    change.move(funder, account, request.amount_fen, PostingKind.PURSE_FUNDING, card)
    response.balance_after_fen = int(memory.engine.balance_fen(account)) + request.amount_fen
    return change.answer(request, response, "purse-funded")


def close_purse(
    memory: Memory, request: purse_service_pb2.ClosePurseRequest, time_us: int
) -> purse_service_pb2.ClosePurseResponse:
    """PurseService.ClosePurse."""
    _check_card_and_purse(request)
    if (again := answered(memory, request, purse_service_pb2.ClosePurseResponse)) is not None:
        return again
    change = Change(memory, time_us)
    response = purse_service_pb2.ClosePurseResponse()
    card, purse, result = _find(memory, request.card_number, request.purse_id)
    response.result = wire(result)
    if purse is None:
        return change.answer(request, response, "purse-declined")
    account, funder = _accounts(memory, purse)
    if memory.engine.held_fen(account):
        response.result = wire(Result.PURSE_HELD)
        return change.answer(request, response, "purse-declined")
    response.returned_fen = int(memory.engine.balance_fen(account))
    change.move(account, funder, response.returned_fen, PostingKind.PURSE_RETURN, card)
    purse.state = CLOSED
    change.put(DocumentKind.PURSE, purse_key(card, purse.purse_id), purse.SerializeToString(deterministic=True))
    return change.answer(request, response, "purse-closed")


def _find(memory: Memory, card_number: str, purse_id: str) -> tuple[int, Purse | None, Result]:
    """Card slot and a purse that is not closed; or None and why."""
    card = memory.engine.find_card(card_number)
    if card == NONE:
        return card, None, Result.UNKNOWN_CARD
    purse = find_purse(memory, card, purse_id)
    if purse is None or purse.state == CLOSED:
        return card, None, Result.PURSE_UNKNOWN
    return card, purse, Result.ACCEPTED


def _accounts(memory: Memory, purse: Purse) -> tuple[int, int]:
    """The purse's account and its funder's."""
    account = memory.account(account_name(purse.card_number, purse.purse_id))
    funder = memory.account(FUNDER_PREFIX + purse.funder_id)
    assert account is not None
    assert funder is not None
    return account, funder


def list_purses(
    rules: PurseRules, memory: Memory, request: purse_service_pb2.ListPursesRequest, time_us: int
) -> purse_service_pb2.ListPursesResponse:
    """PurseService.ListPurses."""
    if not is_card_number(request.card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    card = memory.engine.find_card(request.card_number)
    if card == NONE:
        raise NotFound("card", request.card_number)
    date = settlement_date(time_us)
    general = Purse(card_number=request.card_number, purse_id=GENERAL, purse_kind=GENERAL, state=OPEN)
    found = [((rules.general_order, NEVER, ""), general, general_account(memory, card))]
    for purse in purses_of(memory, card):
        purse.state = wire(state_at(purse, date))
        kind = rules.kinds.get(purse.purse_kind)
        order = kind.order if kind else limits.PURSE_ORDER_MAX + 1  # a kind that the rules dropped pays nothing
        found.append(((order, purse.expires or NEVER, purse.purse_id), purse, _accounts(memory, purse)[0]))
    response = purse_service_pb2.ListPursesResponse()
    for _, purse, account in sorted(found, key=lambda item: item[0]):
        purse.balance_fen = memory.engine.balance_fen(account)
        purse.held_fen = memory.engine.held_fen(account)
        response.purses.append(purse)
    return response
