"""What is asked of the writer apart from taps: registrations, top-ups, and reads that must see all that was acknowledged.

Each takes the memory, a request message and the journal time, runs on the writer's thread in order with the taps, and returns
the response, which leaves when the group before it is durable. InvalidRequest and NotFound go back to the caller; one bad item
of a batch gets its own answer and leaves the others alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from yikatong.core import limits, types
from yikatong.core.cards import card_state
from yikatong.core.cards.riding import Riding, date_of, day_of, riding_of
from yikatong.core.change import Change, answered
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory, TopUpDone
from yikatong.core.seen import CARDS, TERMINALS
from yikatong.core.types import DocumentKind, Result, wire
from yikatong.ext.engine import NONE, EngineFull, is_card_number, local_seconds, settlement_date
from yikatong.v1 import account_service_pb2, card_service_pb2, clearing_service_pb2, terminal_service_pb2

Command = Callable[[Memory, int], Any]

OF_CARDS = (types.PURSE_PREFIX, types.CHIP_PREFIX)  # named accounts that hold cards' own money
CARD_NUMBER_WANTED = "1 to 20 digits are wanted"


def check_items(field: str, items: Sequence[object]) -> None:
    """A batch request holds 1 to REQUEST_ITEMS_MAX items."""
    if not items:
        raise InvalidRequest(field, "at least one is wanted")
    if len(items) > limits.REQUEST_ITEMS_MAX:
        raise InvalidRequest(field, f"at most {limits.REQUEST_ITEMS_MAX} are taken in one request")


def _card_slot(memory: Memory, card_number: str) -> int:
    if not is_card_number(card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    slot = int(memory.engine.find_card(card_number))
    if slot == NONE:
        raise NotFound("card", card_number)
    return slot


def _terminal_slot(memory: Memory, terminal_number: bytes) -> int:
    if len(terminal_number) != 6:
        raise InvalidRequest("terminal_number", "6 bytes are wanted")
    slot = int(memory.engine.find_terminal(terminal_number))
    if slot == NONE:
        raise NotFound("terminal", terminal_number.hex())
    return slot


# ---- cards ----


def _malformed_card(memory: Memory, card: card_service_pb2.Card) -> tuple[Result, str] | None:
    if not is_card_number(card.card_number):
        return Result.MALFORMED_CARD_NUMBER, "card_number"
    if len(card.issuer_id) != 8:
        return Result.MALFORMED_ISSUER_ID, "issuer_id"
    if card.rider not in range(8):
        return Result.MALFORMED_RIDER, "rider"
    for field in ("expires", "rider_until", "pass_until"):
        if getattr(card, field) and local_seconds(getattr(card, field), 0) < 0:
            return Result.MALFORMED_TIME, field
    if (card.pass_id and card.pass_id not in memory.tariffs.passes) or (card.pass_until and not card.pass_id):
        return Result.MALFORMED_PASS, "pass_id"
    return None


def register_cards(
    memory: Memory, request: card_service_pb2.RegisterCardsRequest, time_us: int
) -> card_service_pb2.RegisterCardsResponse:
    """CardService.RegisterCards."""
    check_items("cards", request.cards)
    response = card_service_pb2.RegisterCardsResponse()
    engine = memory.engine
    for card in request.cards:
        registration = response.registrations.add()
        if malformed := _malformed_card(memory, card):
            registration.result, registration.invalid_field = wire(malformed[0]), malformed[1]
            continue
        kept = card_service_pb2.Card()
        kept.CopyFrom(card)
        kept.DiscardUnknownFields()
        slot = engine.find_card(card.card_number)
        if slot != NONE:
            same = _card_message(memory, slot, time_us) == kept
            registration.result = wire(Result.ACCEPTED if same else Result.CONFLICT)
            registration.duplicate = same
            continue
        engine.add_card(
            card.card_number, card.issuer_id, card.rider, card.expires, time_us, kept.SerializeToString(deterministic=True),
            day_of(card.rider_until), memory.tariffs.passes.get(card.pass_id, 0), day_of(card.pass_until),
        )  # fmt: skip
        registration.result = wire(Result.ACCEPTED)
        registration.sequence = engine.next_sequence - 1
    return response


def _card_message(memory: Memory, slot: int, time_us: int) -> card_service_pb2.Card:
    """A card as it is registered now."""
    card = memory.engine.card(slot)
    rider, rider_until = riding_of(card).on(day_of(settlement_date(time_us)))
    return card_service_pb2.Card(
        card_number=card["card_number"],
        issuer_id=card["issuer_id"],
        rider=wire(rider),
        expires=card["expires"],
        rider_until=date_of(rider_until),
        pass_id=memory.tariffs.pass_ids.get(card["pass_number"], ""),
        pass_until=date_of(card["pass_until"]),
    )


def set_entitlement(
    memory: Memory, request: card_service_pb2.SetEntitlementRequest, time_us: int
) -> card_service_pb2.SetEntitlementResponse:
    """CardService.SetEntitlement: what the card may ride at from now on."""
    response = card_service_pb2.SetEntitlementResponse
    if (answer := answered(memory, request, response)) is not None:
        return answer
    if request.rider not in range(8):
        raise InvalidRequest("rider", "is none of the categories")
    for field in ("rider_until", "pass_until"):
        if getattr(request, field) and local_seconds(getattr(request, field), 0) < 0:
            raise InvalidRequest(field, "a date YYYYMMDD of 2000 to 2099 is wanted")
    if request.pass_id and request.pass_id not in memory.tariffs.passes:
        raise InvalidRequest("pass_id", f"no tariff has a pass {request.pass_id}")
    if request.pass_until and not request.pass_id:
        raise InvalidRequest("pass_until", "is the end of a pass, and there is none")
    slot = _card_slot(memory, request.card_number)
    riding = Riding(request.rider, day_of(request.rider_until))
    change = Change(memory, time_us)
    change.entitle(slot, riding.entitlement(memory.tariffs.passes.get(request.pass_id, 0), day_of(request.pass_until)))
    return change.answer(request, response(result=wire(Result.ACCEPTED)), "entitlement")


def get_card(memory: Memory, request: card_service_pb2.GetCardRequest, time_us: int) -> card_service_pb2.GetCardResponse:
    """CardService.GetCard."""
    slot = _card_slot(memory, request.card_number)
    card = memory.engine.card(slot)
    return card_service_pb2.GetCardResponse(
        card=_card_message(memory, slot, time_us),
        denied=card["denied_since_s"] != 0,
        atc_next=card["atc_next"],
    )


# ---- terminals ----


def _malformed_terminal(terminal: terminal_service_pb2.Terminal) -> tuple[Result, str] | None:
    if len(terminal.terminal_number) != 6:
        return Result.MALFORMED_TERMINAL, "terminal_number"
    if not 1 <= len(terminal.operator_id.encode()) <= limits.OPERATOR_ID_BYTES_MAX or not terminal.operator_id.isprintable():
        return Result.MALFORMED_OPERATOR, "operator_id"
    if terminal.kind not in terminal_service_pb2.TerminalKind.values() or terminal.kind == 0:
        return Result.MALFORMED_KIND, "kind"
    return None


def register_terminals(
    memory: Memory, request: terminal_service_pb2.RegisterTerminalsRequest, time_us: int
) -> terminal_service_pb2.RegisterTerminalsResponse:
    """TerminalService.RegisterTerminals."""
    check_items("terminals", request.terminals)
    response = terminal_service_pb2.RegisterTerminalsResponse()
    engine = memory.engine
    for terminal in request.terminals:
        registration = response.registrations.add()
        if malformed := _malformed_terminal(terminal):
            registration.result, registration.invalid_field = wire(malformed[0]), malformed[1]
            continue
        slot = engine.find_terminal(terminal.terminal_number)
        if slot != NONE:
            known = engine.terminal(slot)
            same = known["kind"] == terminal.kind and memory.account_operators[known["account"]] == terminal.operator_id
            registration.result = wire(Result.ACCEPTED if same else Result.CONFLICT)
            registration.duplicate = same
            continue
        if not engine.room["terminals"]:
            raise EngineFull("the configured number of terminals is reached")  # before an operator is opened for nothing
        account = memory.operator_accounts.get(terminal.operator_id)
        if account is None:
            account = engine.add_operator(time_us, terminal.operator_id.encode())
            memory.open_operator(terminal.operator_id, account)
        kept = terminal_service_pb2.Terminal(
            terminal_number=terminal.terminal_number, operator_id=terminal.operator_id, kind=terminal.kind
        )
        payload = kept.SerializeToString(deterministic=True)
        engine.add_terminal(terminal.terminal_number, terminal.kind, account, time_us, payload)
        memory.terminal_accounts.append(account)
        memory.tariffs.number_terminal(memory, engine.counts["terminals"] - 1, account)
        registration.result = wire(Result.ACCEPTED)
        registration.sequence = engine.next_sequence - 1
    return response


def get_terminal(
    memory: Memory, request: terminal_service_pb2.GetTerminalRequest, _: int
) -> terminal_service_pb2.GetTerminalResponse:
    """TerminalService.GetTerminal."""
    terminal = memory.engine.terminal(_terminal_slot(memory, request.terminal_number))
    return terminal_service_pb2.GetTerminalResponse(
        terminal=terminal_service_pb2.Terminal(
            terminal_number=terminal["terminal_number"],
            operator_id=memory.account_operators[terminal["account"]],
            kind=terminal["kind"],
        )
    )


# ---- accounts ----


def _malformed_top_up(request: account_service_pb2.TopUpRequest) -> tuple[Result, str, str] | None:
    if len(request.request_id) != 16:
        return Result.MALFORMED_REQUEST_ID, "request_id", "16 bytes are wanted"
    if not is_card_number(request.card_number):
        return Result.MALFORMED_CARD_NUMBER, "card_number", CARD_NUMBER_WANTED
    if not 1 <= request.amount_fen <= limits.TOP_UP_FEN_MAX:
        return Result.MALFORMED_AMOUNT, "amount_fen", f"1 to {limits.TOP_UP_FEN_MAX} is wanted"
    return None


def _top_up(memory: Memory, request: account_service_pb2.TopUpRequest, time_us: int) -> account_service_pb2.TopUpResponse:
    """Fund one card; the request is well-formed."""
    if memory.documents.get(DocumentKind.ANSWER, request.request_id) is not None:
        return account_service_pb2.TopUpResponse(result=wire(Result.CONFLICT))  # the id of another kind of request
    done = memory.find_top_up(request.request_id)
    if done is not None:
        if (done.card_number, done.amount_fen) != (request.card_number, request.amount_fen):
            return account_service_pb2.TopUpResponse(result=wire(Result.CONFLICT))
        return account_service_pb2.TopUpResponse(
            result=wire(Result.ACCEPTED), duplicate=True, balance_after_fen=done.balance_after_fen, sequence=done.sequence
        )
    slot = memory.engine.find_card(request.card_number)
    if slot == NONE:
        return account_service_pb2.TopUpResponse(result=wire(Result.UNKNOWN_CARD))
    if refused := card_state.funding_refusal(memory, slot):
        return account_service_pb2.TopUpResponse(result=wire(refused))
    kept = account_service_pb2.TopUpRequest(
        request_id=request.request_id, card_number=request.card_number, amount_fen=request.amount_fen
    )
    sequence, balance_fen = memory.engine.top_up(slot, request.amount_fen, time_us, kept.SerializeToString(deterministic=True))
    memory.top_ups[request.request_id] = TopUpDone(sequence, request.card_number, request.amount_fen, balance_fen)
    return account_service_pb2.TopUpResponse(result=wire(Result.ACCEPTED), balance_after_fen=balance_fen, sequence=sequence)


def top_up(memory: Memory, request: account_service_pb2.TopUpRequest, time_us: int) -> account_service_pb2.TopUpResponse:
    """AccountService.TopUp."""
    if malformed := _malformed_top_up(request):
        raise InvalidRequest(malformed[1], malformed[2])
    return _top_up(memory, request, time_us)


def batch_top_up(
    memory: Memory, request: account_service_pb2.BatchTopUpRequest, time_us: int
) -> account_service_pb2.BatchTopUpResponse:
    """AccountService.BatchTopUp."""
    check_items("requests", request.requests)
    response = account_service_pb2.BatchTopUpResponse()
    for item in request.requests:
        if malformed := _malformed_top_up(item):
            response.responses.add(result=wire(malformed[0]), invalid_field=malformed[1])
        else:
            response.responses.append(_top_up(memory, item, time_us))
    return response


def get_balance(memory: Memory, request: account_service_pb2.GetBalanceRequest, _: int) -> account_service_pb2.GetBalanceResponse:
    """AccountService.GetBalance."""
    card = memory.engine.card(_card_slot(memory, request.card_number))
    return account_service_pb2.GetBalanceResponse(
        balance_fen=memory.engine.balance_fen(card["account"]),
        held_fen=memory.engine.held_fen(card["account"]),
        denied=card["denied_since_s"] != 0,
        sequence=memory.engine.next_sequence - 1,
    )


# ---- places in the journal, for the queries that read it ----


def newest_of_card(memory: Memory, card_number: str) -> tuple[int, int, set[int]]:
    """A card's slot, the sequence of its newest record, and the accounts of its purses."""
    slot = _card_slot(memory, card_number)
    card = memory.engine.card(slot)
    purses = {account for _, account in memory.named_accounts(f"{types.PURSE_PREFIX}{card_number}:")}
    return slot, int(card["last_sequence"]), purses | {int(card["account"])}


def tap_by_card_counter(memory: Memory, card_number: str, atc: int) -> int:
    """Sequence of the tap with this card and ATC."""
    if not 0 <= atc <= 0xFFFF:
        raise InvalidRequest("card_counter.atc", "0 to 65535 is wanted")
    key = _card_slot(memory, card_number) << 16 | atc
    sequence = memory.engine.seen_in_memory(key, key)[0]
    if not sequence and memory.segments is not None:
        sequence = memory.segments.find(CARDS, [key])[0]
    if not sequence:
        raise NotFound("tap", f"of card {card_number} with ATC {atc}")
    return int(sequence)


def tap_by_terminal_counter(memory: Memory, terminal_number: bytes, terminal_sequence: int) -> int:
    """Sequence of the tap with this terminal and terminal sequence."""
    key = _terminal_slot(memory, terminal_number) << 32 | terminal_sequence
    sequence = memory.engine.seen_in_memory(key, key)[1]
    if not sequence and memory.segments is not None:
        sequence = memory.segments.find(TERMINALS, [key])[0]
    if not sequence:
        raise NotFound("tap", f"of terminal {terminal_number.hex()} with sequence {terminal_sequence}")
    return int(sequence)


class Names(NamedTuple):
    """What turns slots and accounts in journal records into names."""

    operator_of_account: dict[int, str]
    account_of_terminal: list[int]


def names(memory: Memory) -> Names:
    """Copies, for a thread that is not the writer's."""
    return Names(dict(memory.account_operators), list(memory.terminal_accounts))


def card_and_terminal(memory: Memory, card: int, terminal: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
    """The card and the terminal in two slots (None where there is none) and the terminal's operator."""
    known_terminal = None if terminal == NONE else memory.engine.terminal(terminal)
    operator_id = memory.account_operators[known_terminal["account"]] if known_terminal else ""
    return None if card == NONE else memory.engine.card(card), known_terminal, operator_id


def get_trial_balance(
    memory: Memory, _request: clearing_service_pb2.GetTrialBalanceRequest, _: int
) -> clearing_service_pb2.GetTrialBalanceResponse:
    """ClearingService.GetTrialBalance."""
    balances = memory.engine.balances_fen()
    operators = int(balances[list(memory.account_operators)].sum()) if memory.account_operators else 0
    funding = int(balances[types.ACCOUNT_FUNDING])
    others = sum(int(balances[account]) for name, account in memory.named_accounts() if not name.startswith(OF_CARDS))
    total = int(balances.sum())
    return clearing_service_pb2.GetTrialBalanceResponse(
        imbalance_fen=total,
        purses_fen=total - operators - funding - others,
        others_fen=others,
        operators_fen=operators,
        funding_fen=funding,
        accounts=len(balances),
        journal_records=memory.engine.next_sequence - 1,
    )
