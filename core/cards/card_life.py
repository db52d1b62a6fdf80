"""The life of a card: its states as a table, and what each means for the deny list.

A card and its e-card have one state: they are twins in the engine, which denies both with one record. Every event is one change:
the card's document and that record stand under one sequence number, so there is no moment at which one is live and the other
dead. Two things happen by the journal's time alone: a temporary loss lifts itself, from its very microsecond on, whenever
`lift_due` gets to it; and a card expires with its last day, which nobody needs to write down."""

from enum import Enum, IntEnum, auto
from typing import Final

from yikatong.core import limits
from yikatong.core.cards import card_links
from yikatong.core.change import Change
from yikatong.core.memory import Memory
from yikatong.core.types import Deny, DocumentKind, Result, wire
from yikatong.ext.engine import settlement_date
from yikatong.v1 import card_life_service_pb2 as pb

CardLife = pb.CardLife


class State(IntEnum):
    """Where a card stands (CardState of the proto)."""

    NOT_ENABLED = 1
    ENABLED = 2
    TEMPORARILY_LOST = 3
    LOST = 4
    FROZEN = 5
    FROZEN_TEMPORARILY_LOST = 6
    FROZEN_LOST = 7
    EXPIRED = 8
    FROZEN_EXPIRED = 9
    CANCELLED = 10


class Event(Enum):
    """What can come to it."""

    ENABLE = auto()
    LOSE_TEMPORARILY = auto()
    LOSE = auto()
    LIFT_LOSS = auto()  # found, or its time is over
    FREEZE = auto()
    UNFREEZE = auto()  # the last freeze is lifted
    CANCEL = auto()
    EXPIRE = auto()
    REPLACE = auto()  # another card takes its place


_EVENTS: Final = tuple(Event)
_NO, _OLD = Result.WRONG_STATE, Result.CARD_EXPIRED
_N, _A, _T, _L, _F, _FT, _FL, _E, _FE, _C = State

# One row for each state, one column for each event: the state after it, or why it is refused. A frozen card is neither cancelled
# nor replaced: the money would get away. What expires keeps its freezes and loses its loss report, which has no more to protect.
_TABLE: Final[dict[State, tuple[State | Result, ...]]] = {
    #      ENABLE  TEMPOR. LOSE    LIFT    FREEZE  UNFREEZE CANCEL EXPIRE  REPLACE
    _N:   (_A,     _NO,    _NO,    _NO,    _NO,    _NO,     _C,    _E,     _C),
    _A:   (_NO,    _T,     _L,     _NO,    _F,     _NO,     _C,    _E,     _C),
    _T:   (_NO,    _NO,    _L,     _A,     _FT,    _NO,     _C,    _E,     _C),
    _L:   (_NO,    _NO,    _NO,    _A,     _FL,    _NO,     _C,    _E,     _C),
    _F:   (_NO,    _FT,    _FL,    _NO,    _F,     _A,      _NO,   _FE,    _NO),
    _FT:  (_NO,    _NO,    _FL,    _F,     _FT,    _T,      _NO,   _FE,    _NO),
    _FL:  (_NO,    _NO,    _NO,    _F,     _FL,    _L,      _NO,   _FE,    _NO),
    _E:   (_OLD,   _OLD,   _OLD,   _OLD,   _FE,    _NO,     _C,    _E,     _C),
    _FE:  (_OLD,   _OLD,   _OLD,   _OLD,   _FE,    _E,      _NO,   _FE,    _NO),
    _C:   (_NO,    _NO,    _NO,    _NO,    _NO,    _NO,     _NO,   _NO,    _NO),
}  # fmt: skip

TRANSITIONS: Final[dict[tuple[State, Event], State | Result]] = {
    (state, event): outcome for state, row in _TABLE.items() for event, outcome in zip(_EVENTS, row, strict=True)
}

REASONS: Final[dict[State, Deny]] = {
    _N: Deny.NOT_ENABLED, _A: Deny(0), _T: Deny.LOSS, _L: Deny.LOSS, _F: Deny.FROZEN, _FT: Deny.FROZEN | Deny.LOSS,
    _FL: Deny.FROZEN | Deny.LOSS, _E: Deny(0), _FE: Deny.FROZEN, _C: Deny.CANCELLED,
}  # fmt: skip
"""Why a card in each state is on the deny list. Expired ones are not: terminals read the last day off the card itself."""

TEMPORARY: Final = (State.TEMPORARILY_LOST, State.FROZEN_TEMPORARILY_LOST)


# ---- documents ----


def _key(slot: int) -> bytes:
    return slot.to_bytes(4, "big")


def _due_key(life: CardLife, slot: int) -> bytes:
    return life.lifts_time_us.to_bytes(8, "big") + _key(slot)


def stored(memory: Memory, card: int) -> CardLife:
    """A card's life as it was last written. A card that was only ever on the deny list is what its reasons say."""
    value = memory.documents.get(DocumentKind.CARD_LIFE, _key(card))
    if value is not None:
        return CardLife.FromString(value)
    reasons = memory.engine.card(card)["deny_reasons"]
    if reasons & Deny.CANCELLED:
        return CardLife(state=wire(State.CANCELLED))
    if reasons & Deny.NOT_ENABLED:
        return CardLife(state=wire(State.NOT_ENABLED))
    lost, frozen = bool(reasons & Deny.LOSS), bool(reasons & Deny.FROZEN)
    state = {(False, False): _A, (True, False): _L, (False, True): _F, (True, True): _FL}[lost, frozen]
    return CardLife(state=wire(state), freezes=[pb.CardFreeze(by=DENY_LIST)] if frozen else [])


DENY_LIST: Final = "deny-list"
"""Who froze a card that was frozen through the deny list."""


def is_lifted(memory: Memory, slot: int, time_us: int) -> bool:
    """Whether the loss of a card or e-card (slot) was a temporary one that is over, though the deny list still says so."""
    life = stored(memory, card_links.card_of(memory, slot))
    return State(life.state) in TEMPORARY and life.lifts_time_us <= time_us


def at(memory: Memory, card: int, time_us: int) -> CardLife:
    """A card's life at a journal time: lifted and expired if that is due."""
    life = stored(memory, card)
    state = State(life.state)
    if state in TEMPORARY and life.lifts_time_us <= time_us:
        life.since_time_us, life.lifts_time_us = life.lifts_time_us, 0
        state = _after(state, Event.LIFT_LOSS)
    expires = memory.engine.card(card)["expires"]
    if state is not State.CANCELLED and 0 < expires < settlement_date(time_us):
        state = _after(state, Event.EXPIRE)
        life.lifts_time_us = 0
    life.state = wire(state)
    return life


def _after(state: State, event: Event) -> State:
    outcome = TRANSITIONS[state, event]
    assert isinstance(outcome, State)
    return outcome


# ---- events ----


def refused(life: CardLife, event: Event) -> Result | None:
    """Why the event cannot come to a card in this state."""
    outcome = TRANSITIONS[State(life.state), event]
    return outcome if isinstance(outcome, Result) else None


def go(memory: Memory, change: Change, card: int, life: CardLife, event: Event) -> None:
    """Let an event happen to a card whose life at this time is `life`; it is not refused. Freezes and `lifts_time_us` in `life`
    are as they shall be. Moves of money belong before it in the change: they may lift a debt."""
    life.state = wire(_after(State(life.state), event))
    life.since_time_us = change.time_us
    write(memory, change, card, life)


def write(memory: Memory, change: Change, card: int, life: CardLife) -> None:
    """Write a card's life, and with it what the deny list says of the card and its e-card."""
    state = State(life.state)
    before = stored(memory, card)
    if State(before.state) in TEMPORARY:
        change.delete(DocumentKind.CARD_LIFE_DUE, _due_key(before, card))
    if state in TEMPORARY:
        change.put(DocumentKind.CARD_LIFE_DUE, _due_key(life, card), b"")
    else:
        life.lifts_time_us = 0
    change.put(DocumentKind.CARD_LIFE, _key(card), life.SerializeToString(deterministic=True))
    change.deny(card, reasons_in(memory, card, state))
    if state is State.CANCELLED:
        _end_e_card(memory, change, card)


def _end_e_card(memory: Memory, change: Change, card: int) -> None:
    """What is cancelled for good needs its devices no more."""
    from yikatong.core.cards import e_cards

    e_card = e_cards.e_card_of(memory, card)
    if e_card is not None and not e_card.cancelled:
        e_cards.cancel(memory, change, e_card)


def reasons_in(memory: Memory, card: int, state: State) -> Deny:
    """Why a card, and its e-card, will be on the deny list in a state."""
    return Deny(memory.engine.card(card)["deny_reasons"]) & Deny.DEBT | REASONS[state]


def begin(memory: Memory, change: Change, card: int) -> None:
    """A card that was just registered waits to be picked up."""
    write(memory, change, card, CardLife(state=wire(State.NOT_ENABLED), since_time_us=change.time_us))


def lift_due(memory: Memory, time_us: int) -> int:
    """Lift temporary losses whose time is over, at most EXPIRIES_MAX; returns how many. To be run once a second."""
    due: list[int] = []
    for key, _ in memory.documents.scan(DocumentKind.CARD_LIFE_DUE, b"", (time_us + 1).to_bytes(8, "big")):
        due.append(int.from_bytes(key[8:], "big"))
        if len(due) == limits.EXPIRIES_MAX:
            break
    if due:
        change = Change(memory, time_us)
        for card in due:
            write(memory, change, card, at(memory, card, time_us))
        change.commit("losses-lifted")
    return len(due)
