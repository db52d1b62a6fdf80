"""Loading the purse on a card's chip, online (圈存): LoadService.

    StartLoad: MAC1 → account to chip account → MAC2      ConfirmLoad: TAC
    torn in between: the chip's next contact says what became of it

A load has the chip's online counter, which goes up when the chip takes a load. So of all attempts with one counter the chip takes
one at most, and they share the money of the largest: nothing is debited twice. What settles a load:

    PENDING ──TAC──────────────────────────────→ CONFIRMED   the amount is the TAC's, what was debited beyond it goes back
    PENDING ──a contact with a higher counter──→ PROVED      without a TAC it may be any attempt that the balance allows: what is
                                                             beyond the largest of these goes back
    PENDING ──fresh answer, same counter───────→ RETURNED    all of it goes back
    PENDING ──StartLoad, same counter──────────→ PENDING     another attempt

MAC1 alone cannot bring money back: an answer that the chip gave before it took the load proves nothing, so ReturnLoad wants one
to an amount that nobody could foretell, asked for after the last attempt began. A TAC may still come for a load that is PROVED:
then its amount is known."""

import secrets
from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.cards import card_state
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.keys.provider import KeyProvider, KeyReference, KeyRetired, KeyUnknown, Purpose
from yikatong.core.memory import Memory
from yikatong.core.types import CHIP_PREFIX, NONE, Deny, DocumentKind, PostingKind, Result, wire
from yikatong.ext.engine import is_card_number, settlement_date
from yikatong.v1 import load_service_pb2 as pb

US: Final = 1_000_000
UTC8_S: Final = 8 * 3600
ALGORITHM_SM4: Final = 4
TYPES: Final = (1, 2)
PENDING, CONFIRMED = pb.LOAD_STATE_PENDING, pb.LOAD_STATE_CONFIRMED
PROVED, RETURNED = pb.LOAD_STATE_PROVED, pb.LOAD_STATE_RETURNED
Response = TypeVar("Response", bound=Message)


# ---- what chip and host prove to each other (profile.md, "Profile 1": load) ----


def session_data(random: bytes, online_counter: int) -> bytes:
    """X ‖ ¬X of the load's session key: X = random ‖ online counter ‖ 8000."""
    x = random + online_counter.to_bytes(2, "big") + b"\x80\x00"
    return x + bytes(byte ^ 0xFF for byte in x)


def mac1_message(old_balance_fen: int, amount_fen: int, transaction_type: int, terminal_number: bytes) -> bytes:
    return old_balance_fen.to_bytes(4, "big") + amount_fen.to_bytes(4, "big") + bytes([transaction_type]) + terminal_number


def mac2_message(attempt: pb.LoadAttempt) -> bytes:
    return (
        attempt.amount_fen.to_bytes(4, "big")
        + bytes([attempt.transaction_type])
        + attempt.terminal_number
        + bytes.fromhex(f"{attempt.local_time:014d}")
    )


def tac_message(new_balance_fen: int, online_counter: int, attempt: pb.LoadAttempt) -> bytes:
    return new_balance_fen.to_bytes(4, "big") + online_counter.to_bytes(2, "big") + mac2_message(attempt)


def card_serial(card_number: str) -> bytes:
    """The last 16 digits as packed BCD."""
    return bytes.fromhex(card_number[-16:].rjust(16, "0"))


class _Card:
    """A card's chip: its keys, its accounts, its documents."""

    def __init__(self, memory: Memory, provider: KeyProvider, slot: int) -> None:
        self.memory = memory
        self.provider = provider
        self.slot = slot
        self.known = memory.engine.card(slot)
        self.account = int(self.known["account"])
        value = memory.documents.get(DocumentKind.CHIP, self._key())
        self.chip = None if value is None else pb.Chip.FromString(value)

    def _key(self) -> bytes:
        return self.slot.to_bytes(4, "big")

    def load(self, online_counter: int) -> pb.Load | None:
        value = self.memory.documents.get(DocumentKind.LOAD, self._key() + online_counter.to_bytes(2, "big"))
        return None if value is None else pb.Load.FromString(value)

    def put(self, change: Change, load: pb.Load) -> None:
        key = self._key() + load.online_counter.to_bytes(2, "big")
        change.put(DocumentKind.LOAD, key, load.SerializeToString(deterministic=True))

    def put_chip(self, change: Change, chip: pb.Chip) -> None:
        change.put(DocumentKind.CHIP, self._key(), chip.SerializeToString(deterministic=True))

    def chip_account(self, change: Change) -> int:
        return change.open_account(CHIP_PREFIX + self.known["card_number"], chip_of=self.slot)

    def mac(self, purpose: Purpose, version: int, index: int, session: bytes, message: bytes) -> bytes:
        """4 bytes. Raises KeyUnknown or KeyRetired."""
        issuer_id = bytes(self.known["issuer_id"])
        key = KeyReference(purpose, version, index, issuer_id)
        serial = card_serial(self.known["card_number"])
        factors = (issuer_id, serial) if self.provider.levels(key) == 2 else (serial,)
        return self.provider.mac(key, factors, session, message)[:4]

    def give_back(self, change: Change, load: pb.Load, keep_fen: int) -> int:
        """What was debited for a load beyond `keep_fen` goes back to the account. Returns how much."""
        more_fen = max(load.debited_fen - keep_fen, 0)
        change.move(self.chip_account(change), self.account, more_fen, PostingKind.LOAD_RETURN, self.slot)
        load.debited_fen -= more_fen
        return more_fen


# ---- checks that every request of a chip goes through ----


def _check_form(request: Any) -> None:
    if not is_card_number(request.card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    if len(request.terminal_number) != 6:
        raise InvalidRequest("terminal_number", "6 bytes are wanted")


def _check_chip(request: Any) -> None:
    chip: pb.ChipAnswer = request.chip
    if request.transaction_type not in TYPES:
        raise InvalidRequest("transaction_type", "1 or 2 is wanted")
    if len(chip.random) != 4:
        raise InvalidRequest("chip.random", "4 bytes are wanted")
    if len(chip.mac1) != 4:
        raise InvalidRequest("chip.mac1", "4 bytes are wanted")
    for field, most in (("algorithm_id", 255), ("key_version", 255), ("key_index", 255), ("online_counter", 0xFFFF)):
        if getattr(chip, field) > most:
            raise InvalidRequest(f"chip.{field}", f"0 to {most} is wanted")


def _card(memory: Memory, provider: KeyProvider, request: Any) -> tuple[_Card | None, Result]:
    """The card of a request, or why it is none that is served."""
    slot = memory.engine.find_card(request.card_number)
    if slot == NONE:
        return None, Result.UNKNOWN_CARD
    if memory.engine.find_terminal(request.terminal_number) == NONE:
        return None, Result.UNKNOWN_TERMINAL
    return _Card(memory, provider, int(slot)), Result.ACCEPTED


def _proof(card: _Card, request: Any, amount_fen: int) -> Result:
    """Whether MAC1 is the chip's own, over this amount."""
    chip: pb.ChipAnswer = request.chip
    if chip.algorithm_id != ALGORITHM_SM4:
        return Result.ALGORITHM_UNSUPPORTED
    message = mac1_message(chip.old_balance_fen, amount_fen, request.transaction_type, request.terminal_number)
    try:
        mac1 = card.mac(Purpose.LOAD, chip.key_version, chip.key_index, session_data(chip.random, chip.online_counter), message)
    except KeyRetired:
        return Result.KEY_RETIRED
    except KeyUnknown:
        return Result.UNKNOWN_KEY
    return Result.ACCEPTED if compare_digest(mac1, chip.mac1) else Result.MAC_MISMATCH


def _contact(card: _Card, change: Change, chip: pb.Chip, answer: pb.ChipAnswer) -> tuple[Result, int]:
    """What a chip's proved answer says of the load before it, and what of it goes back to the account. `chip` learns from it."""
    returned_fen, most_fen = 0, chip.balance_fen_max
    if answer.online_counter < chip.online_counter:
        return Result.LOAD_COUNTER_PAST, 0
    load = card.load(chip.online_counter) if answer.online_counter > chip.online_counter else None
    if load is not None and load.state == PENDING:
        fitting = [each.amount_fen for each in load.attempts if answer.old_balance_fen <= most_fen + each.amount_fen]
        if not fitting:
            return Result.LOAD_UNRESOLVED, 0
        most_fen += max(fitting)
        load.state = PROVED
        returned_fen = card.give_back(change, load, max(fitting))
        card.put(change, load)
    if answer.old_balance_fen > most_fen:
        return Result.CHIP_BALANCE, 0
    chip.online_counter = answer.online_counter
    chip.balance_fen_max = answer.old_balance_fen
    return Result.ACCEPTED, returned_fen


# ---- the methods ----


def start_load(provider: KeyProvider, memory: Memory, request: pb.StartLoadRequest, time_us: int) -> pb.StartLoadResponse:
    """LoadService.StartLoad."""
    _check_form(request)
    _check_chip(request)
    if not 1 <= request.amount_fen <= limits.CHIP_FEN_MAX:
        raise InvalidRequest("amount_fen", f"1 to {limits.CHIP_FEN_MAX} is wanted")
    if (again := answered(memory, request, pb.StartLoadResponse)) is not None:
        return again
    response = pb.StartLoadResponse()
    card, result = _card(memory, provider, request)
    if card is not None:
        result = _proof(card, request, request.amount_fen)
        if result is Result.ACCEPTED:
            result = _usable(card, time_us)
    if card is None or result is not Result.ACCEPTED:
        return _declined(memory, request, response, result, time_us)
    change = Change(memory, time_us)
    result = _start(card, change, request, response)
    if result is not Result.ACCEPTED:
        return _declined(memory, request, response, result, time_us)
    response.result = wire(Result.ACCEPTED)
    return change.answer(request, response, "load-started")


def _start(card: _Card, change: Change, request: pb.StartLoadRequest, response: pb.StartLoadResponse) -> Result:
    """The attempt, into a change that is only committed when it is accepted."""
    answer, amount_fen, engine = request.chip, request.amount_fen, card.memory.engine
    balance_fen = int(engine.balance_fen(card.account))
    held_fen = int(engine.held_fen(card.account))
    chip = pb.Chip()
    if card.chip is None:
        # What is on the chip already was the account's until now: taps of profile 1 were paid from it.
        if answer.old_balance_fen > balance_fen - held_fen:
            return Result.CHIP_BALANCE
        change.move(card.account, card.chip_account(change), answer.old_balance_fen, PostingKind.CHIP_OPENING, card.slot)
        balance_fen -= answer.old_balance_fen
        chip.online_counter, chip.balance_fen_max = answer.online_counter, answer.old_balance_fen
    else:
        chip.CopyFrom(card.chip)
        result, returned_fen = _contact(card, change, chip, answer)
        if result is not Result.ACCEPTED:
            return result
        balance_fen += returned_fen
    if answer.old_balance_fen + amount_fen > limits.CHIP_FEN_MAX:
        return Result.CHIP_FULL
    load = card.load(answer.online_counter)
    if load is None or load.state == RETURNED:
        load = pb.Load(card_number=request.card_number, online_counter=answer.online_counter, state=PENDING)
    if load.state != PENDING:  # only where the counter stands at its end
        return Result.LOAD_COUNTER_PAST
    if len(load.attempts) >= limits.LOAD_ATTEMPTS_MAX:
        return Result.LOAD_UNRESOLVED
    more_fen = max(amount_fen - load.debited_fen, 0)
    if more_fen > balance_fen - held_fen:
        return Result.INSUFFICIENT_FUNDS
    change.move(card.account, card.chip_account(change), more_fen, PostingKind.LOAD, card.slot)
    load.debited_fen += more_fen
    attempt = load.attempts.add(
        terminal_number=request.terminal_number,
        transaction_type=request.transaction_type,
        old_balance_fen=answer.old_balance_fen,
        amount_fen=amount_fen,
        local_time=_local_time(change.time_us),
        key_version=answer.key_version,
        key_index=answer.key_index,
    )
    card.put(change, load)
    chip.challenge_fen = 0  # an answer to it may have been made before the chip takes this load
    card.put_chip(change, chip)
    session = session_data(answer.random, answer.online_counter)
    response.mac2 = card.mac(Purpose.LOAD, answer.key_version, answer.key_index, session, mac2_message(attempt))
    response.local_time = attempt.local_time
    response.balance_after_fen = balance_fen - more_fen
    return Result.ACCEPTED


def confirm_load(provider: KeyProvider, memory: Memory, request: pb.ConfirmLoadRequest, time_us: int) -> pb.ConfirmLoadResponse:
    """LoadService.ConfirmLoad."""
    _check_form(request)
    if request.online_counter > 0xFFFF:
        raise InvalidRequest("online_counter", "0 to 65535 is wanted")
    if len(request.tac) != 4:
        raise InvalidRequest("tac", "4 bytes are wanted")
    if (again := answered(memory, request, pb.ConfirmLoadResponse)) is not None:
        return again
    response = pb.ConfirmLoadResponse()
    card, result = _card(memory, provider, request)
    load = None if card is None else card.load(request.online_counter)
    if card is None or load is None:
        return _declined(memory, request, response, Result.LOAD_UNKNOWN if card else result, time_us)
    try:
        taken = next((each for each in load.attempts if _is_tac(card, request, each)), None)
    except KeyUnknown as error:
        result = Result.KEY_RETIRED if isinstance(error, KeyRetired) else Result.UNKNOWN_KEY
        return _declined(memory, request, response, result, time_us)
    if taken is None:
        return _declined(memory, request, response, Result.MAC_MISMATCH, time_us)
    if load.state == RETURNED:
        return _declined(memory, request, response, Result.LOAD_RETURNED, time_us)
    change = Change(memory, time_us)
    assert card.chip is not None
    was_pending = load.state == PENDING
    if load.state != CONFIRMED:
        load.state = CONFIRMED
        response.returned_fen = card.give_back(change, load, taken.amount_fen)
        card.put(change, load)
    if was_pending and card.chip.online_counter == load.online_counter:
        card.chip.online_counter = min(load.online_counter + 1, 0xFFFF)
        card.chip.balance_fen_max = request.new_balance_fen
        card.put_chip(change, card.chip)
    response.result = wire(Result.ACCEPTED)
    return change.answer(request, response, "load-confirmed")


def _is_tac(card: _Card, request: pb.ConfirmLoadRequest, attempt: pb.LoadAttempt) -> bool:
    if attempt.old_balance_fen + attempt.amount_fen != request.new_balance_fen:
        return False
    message = tac_message(request.new_balance_fen, request.online_counter, attempt)
    return compare_digest(card.mac(Purpose.TAC, attempt.key_version, attempt.key_index, b"", message), request.tac)


def challenge_chip(
    provider: KeyProvider,
    memory: Memory,
    request: pb.ChallengeChipRequest,
    time_us: int,
    draw: Callable[[int], int] = secrets.randbelow,
) -> pb.ChallengeChipResponse:
    """LoadService.ChallengeChip."""
    _check_form(request)
    if (again := answered(memory, request, pb.ChallengeChipResponse)) is not None:
        return again
    response = pb.ChallengeChipResponse()
    card, result = _card(memory, provider, request)
    if card is not None and card.chip is None:
        result = Result.LOAD_UNKNOWN
    if card is None or card.chip is None:
        return _declined(memory, request, response, result, time_us)
    change = Change(memory, time_us)
    card.chip.challenge_fen = response.amount_fen = 1 + draw(limits.CHIP_FEN_MAX)
    card.chip.challenge_until_us = response.until_time_us = time_us + limits.CHALLENGE_S * US
    card.chip.challenge_terminal = request.terminal_number
    card.put_chip(change, card.chip)
    response.result = wire(Result.ACCEPTED)
    return change.answer(request, response, "chip-challenged")


def return_load(provider: KeyProvider, memory: Memory, request: pb.ReturnLoadRequest, time_us: int) -> pb.ReturnLoadResponse:
    """LoadService.ReturnLoad."""
    _check_form(request)
    _check_chip(request)
    if (again := answered(memory, request, pb.ReturnLoadResponse)) is not None:
        return again
    response = pb.ReturnLoadResponse()
    card, result = _card(memory, provider, request)
    if card is None or card.chip is None:
        return _declined(memory, request, response, Result.LOAD_UNKNOWN if card else result, time_us)
    chip = card.chip
    if not chip.challenge_fen or chip.challenge_terminal != request.terminal_number or time_us > chip.challenge_until_us:
        return _declined(memory, request, response, Result.DEADLINE_PASSED, time_us)
    result = _proof(card, request, chip.challenge_fen)
    change = Change(memory, time_us)
    before = card.load(chip.online_counter)
    returned_fen = 0
    if result is Result.ACCEPTED:
        result, returned_fen = _contact(card, change, chip, request.chip)
    if result is not Result.ACCEPTED:
        return _declined(memory, request, response, result, time_us)
    chip.challenge_fen = 0  # good for one answer
    load = card.load(request.chip.online_counter)
    if load is not None and load.state == PENDING:
        load.state = RETURNED
        returned_fen += card.give_back(change, load, 0)
        card.put(change, load)
        response.state = RETURNED
    elif before is not None and request.chip.online_counter > before.online_counter:
        response.state = CONFIRMED if before.state == CONFIRMED else PROVED
    card.put_chip(change, chip)
    response.returned_fen = returned_fen
    response.result = wire(Result.ACCEPTED)
    return change.answer(request, response, "load-returned")


def get_load(memory: Memory, request: pb.GetLoadRequest, _: int) -> pb.GetLoadResponse:
    """LoadService.GetLoad."""
    if not is_card_number(request.card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    if request.online_counter > 0xFFFF:
        raise InvalidRequest("online_counter", "0 to 65535 is wanted")
    slot = memory.engine.find_card(request.card_number)
    key = int(slot).to_bytes(4, "big") + request.online_counter.to_bytes(2, "big")
    value = memory.documents.get(DocumentKind.LOAD, key)
    if slot == NONE or value is None:
        raise NotFound("load", f"of this card with online counter {request.online_counter}")
    return pb.GetLoadResponse(load=pb.Load.FromString(value))


def _usable(card: _Card, time_us: int) -> Result:
    """Money goes onto a chip only where the card may be used and owes nothing."""
    refused = card_state.refusal(card.memory, card.slot, time_us)
    if refused is None and card.known["deny_reasons"] & Deny.DEBT:
        refused = Result.CARD_DENIED
    return Result.ACCEPTED if refused is None else refused


def _declined(memory: Memory, request: Message, response: Response, result: Result, time_us: int) -> Response:
    """A decline is remembered: its answer must not change."""
    response.result = wire(result)  # type: ignore[attr-defined]
    return Change(memory, time_us).answer(request, response, "load-declined")


def _local_time(time_us: int) -> int:
    """YYYYMMDDhhmmss (UTC+8) of a journal time."""
    second = (time_us // US + UTC8_S) % 86_400
    return settlement_date(time_us) * 1_000_000 + second // 3600 * 10_000 + second // 60 % 60 * 100 + second % 60


def explain(memory: Memory, cards: Sequence[int], more_fen: Sequence[int]) -> list[bool]:
    """For each card (slot): whether a chip that has so much more than its tap before left it with was loaded with that: whether
    consecutive loads of it, any attempt of each, come to the sum."""
    return [_comes_to(memory, int(card), int(fen)) for card, fen in zip(cards, more_fen, strict=True)]


def _comes_to(memory: Memory, card: int, fen: int) -> bool:
    start = card.to_bytes(4, "big")
    sums: set[int] = set()  # of loads up to the one that is looked at
    for key, value in memory.documents.scan(DocumentKind.LOAD, start):
        if not key.startswith(start):
            break
        load = pb.Load.FromString(value)
        if load.state == RETURNED:
            continue
        amounts = {load.debited_fen} if load.state == CONFIRMED else {attempt.amount_fen for attempt in load.attempts}
        sums = {before + amount for before in sums | {0} for amount in amounts if before + amount <= fen}
        if fen in sums:
            return True
    return False
