"""The flow of a tap, to be read first:

    bytes → decode → lookup → verify → decide, post → (journal) → respond
                                 └ (key device), where policy keeps the key there

Each stage takes the whole batch and stands in ext/ under its own name: decode.c, lookup.c, verify.c, decide.c, post.c, respond.c.
Decide and post alternate tap by tap, since a tap stands on the balance that the one before it left. The journal (journal.py)
comes between post and respond in time: the writer lets no answer out before its group commit has returned."""

import logging
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

import numpy as np
import numpy.typing as npt

from yikatong.core import limits
from yikatong.core.access.callers import OPERATORS
from yikatong.core.errors import DeadlineOver, Forbidden, InvalidRequest, Unavailable, YikatongError
from yikatong.core.keys.provider import DeviceFailed, KeyReference, KeyUnknown, Purpose
from yikatong.core.late import Corrections, note_late, price_again
from yikatong.core.memory import OPERATOR_PREFIX, Memory
from yikatong.core.seen import CARDS, TERMINALS
from yikatong.core.tariffs import read_notes
from yikatong.core.types import NONE, RECORD
from yikatong.ext.engine import DEADLINE_OVER, KEY_AWAY, NOT_OWN, Calls

log = logging.getLogger(__name__)

DECODE_ERRORS: Final = {
    -1: ("request", "ends in the middle of a field"),
    -2: ("request", "is not protobuf: a tag, a length or a number cannot be read"),
    -3: ("taps", "at least one is wanted"),
    -4: ("taps", f"at most {limits.REQUEST_ITEMS_MAX} are taken in one request"),
    -5: ("tap", "stands there twice"),
}
"""What each negative answer of decode.h means: the field and the reason."""


@dataclass(frozen=True)
class TapRules:
    """Settings that decide about a tap's form."""

    clock_ahead_s_max: int = limits.CLOCK_AHEAD_S


class TapBatch:
    """What came of a batch: for each request its response, or an error, or None where there was no room for it in this batch."""

    def __init__(
        self, responses: list[bytes | YikatongError | None], outcomes: npt.NDArray[np.void], corrections: Corrections
    ) -> None:
        self.responses = responses
        self.corrections = corrections
        self.outcomes = outcomes  # one for each tap, good until the next batch


def run_taps(
    memory: Memory, requests: list[bytes], stored: list[bool], time_us: int, rules: TapRules, bounds: list[int] | None = None
) -> TapBatch:
    """Take AuthorizeTapRequest (stored: False) and SubmitTapsRequest (True) messages through the flow, up to the journal.

    `time_us` is the journal time: microseconds since 1970, UTC. `bounds` say whose taps each caller may bring
    (access.py); without them everybody may bring all. Raises EngineFault when memory must be rebuilt."""
    engine = memory.engine
    accounts = None if bounds is None else _accounts_of_operators(memory)
    counts = engine.decode(
        requests, stored, time_us // 1_000_000, rules.clock_ahead_s_max, limits.REQUEST_ITEMS_MAX, bounds, accounts
    )
    engine.lookup()
    priors, notes = _find_priors(memory)
    if engine.verify(time_us):
        _ask_provider(memory)
    outcomes = engine.run(time_us, priors, notes)
    responses = engine.respond()
    corrections = _price_late(memory, time_us)
    return TapBatch([_answer(*pair) for pair in zip(counts, responses, strict=True)], outcomes, corrections)


def run_calls(
    memory: Memory, batch: list[Calls], time_us: int, rules: TapRules, now: float
) -> tuple[npt.NDArray[np.void], Corrections]:
    """The same for requests that the tap port gathered: their responses and errors are written into them. `now` is
    time.monotonic(), for their deadlines. Returns the outcomes, good until the next batch, and what late taps made anew."""
    engine = memory.engine
    now_us = int(now * 1e6)
    accounts = _accounts_of_operators(memory)
    engine.decode_calls(batch, time_us // 1_000_000, rules.clock_ahead_s_max, limits.REQUEST_ITEMS_MAX, now_us, accounts)
    engine.lookup()
    priors, notes = _find_priors(memory)
    if engine.verify(time_us):
        _ask_provider(memory)
    outcomes = engine.run(time_us, priors, notes)
    engine.respond_calls()
    return outcomes, _price_late(memory, time_us)


def _ask_provider(memory: Memory) -> None:
    """Prove the taps whose keys are elsewhere: a batch for each key. Where a key device does not answer, the requests with taps
    under its keys are refused, and nothing of them is done; the others go on."""
    provider = memory.provider
    unanswered: list[int] = []
    for key, taps in memory.engine.asked().items():
        issuer_id, key_version, key_index = key
        levels = memory.tap_levels[key]
        items = [((issuer_id, serial) if levels == 2 else (serial,), session, message) for _, serial, session, message, _ in taps]
        try:
            macs = (
                [] if provider is None else provider.mac_many(KeyReference(Purpose.TAC, key_version, key_index, issuer_id), items)
            )
        except KeyUnknown:  # it went in this very moment: these taps are not proved
            continue
        except DeviceFailed as error:
            log.warning("%d taps cannot be proved now: %s", len(taps), error)
            unanswered += [tap[0] for tap in taps]
            continue
        right = [tap[0] for tap, mac in zip(taps, macs, strict=provider is not None) if compare_digest(mac[:4], tap[4])]
        memory.engine.prove(right)
    if unanswered:
        memory.engine.refuse(unanswered, KEY_AWAY)


def decode_error(code: int) -> YikatongError:
    """The error that a negative answer of the decoder stands for."""
    if code == DEADLINE_OVER:
        return DeadlineOver("the deadline had passed before the work began")
    if code == KEY_AWAY:
        return Unavailable("the device that holds a tap's key does not answer; nothing was done")
    if code == NOT_OWN:
        return Forbidden("own", "a caller brings taps of its own only: a terminal those it made, an acquirer its terminals'")
    return InvalidRequest(*DECODE_ERRORS[code])


def _accounts_of_operators(memory: Memory) -> npt.NDArray[np.uint32] | None:
    """Accounts of the operators that callers are bound to, by their place; NONE of one that no terminal has. None where there
    are no such callers."""
    if not OPERATORS:
        return None
    accounts = (memory.account(OPERATOR_PREFIX + name) for name in list(OPERATORS))
    return np.array([NONE if account is None else account for account in accounts], np.uint32)


def _price_late(memory: Memory, time_us: int) -> Corrections:
    """Cards of which a tap came late are priced again at once, in the same group: see late.py."""
    note_late(memory)
    return price_again(memory, time_us)


def _find_priors(memory: Memory) -> tuple[bytes, bytes]:
    """Records of earlier taps with the same counters, as far as they are no longer in the engine's own memory, and what explains
    their fares."""
    engine = memory.engine
    searches = engine.searches()
    if searches is not None and memory.segments is not None:
        cards, terminals = searches
        of_cards = memory.segments.find(CARDS, [key for _, key in cards])
        of_terminals = memory.segments.find(TERMINALS, [key for _, key in terminals])
        engine.found(
            [(i, sequence) for (i, _), sequence in zip(cards, of_cards, strict=True)],
            [(i, sequence) for (i, _), sequence in zip(terminals, of_terminals, strict=True)],
        )
    wanted = engine.priors_wanted()
    if not wanted:
        return b"", b""
    with memory.journal.read() as reader:
        records = reader.records(wanted)
        return records, read_notes(reader, np.frombuffer(records, RECORD)).tobytes()


def _answer(count: int | None, response: bytes | None) -> bytes | YikatongError | None:
    if count is None or response is not None:
        return response
    return decode_error(count)
