"""The stage of a day at which the books are held against each other: the journal, each participant's own file, and the bank.

Every difference is one of a few kinds (DifferenceKind) and says where it is: the tap or instruction, the line of the file, the
journal's record. What agrees is not told. Nothing here changes anything; commands make exceptions and postings of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from yikatong.core import limits, types
from yikatong.core.day.bank_file import BankEntry, BankFile, BankStatus
from yikatong.core.day.settle import Instruction
from yikatong.core.day.tap_file import TapFile, Taps
from yikatong.core.day.windows import day_of, first_sequence_on, settlement_days
from yikatong.core.files import FileError
from yikatong.core.journal import JournalReader
from yikatong.v1 import reconciliation_service_pb2

Array = npt.NDArray[Any]


class DifferenceKind(IntEnum):
    """How two books differ in one thing."""

    MISSING_HERE = 1  # the other side has it, the journal has not
    MISSING_THERE = 2  # the journal has it, the other side has not
    AMOUNT = 3  # both have it, with other amounts
    DUPLICATE = 4  # the other side has it once more
    LATE = 5  # both have it, but not in the same window; or the bank took longer than it may
    TIME = 6  # both have it, with other local times: another tap under the same counter


# ---- the journal against a participant's file ----


@dataclass(frozen=True)
class OwnTaps:
    """Charged taps of one participant, from the journal: those of the window and those of the windows next to it, so that a
    tap that came late is known as such. `taps` has each (terminal, sequence) once."""

    taps: Taps
    settlement_date: Array  # uint32, YYYYMMDD
    journal_sequence: Array  # uint64


DIFFERENCE: Final = np.dtype(
    [
        ("kind", "u1"),
        ("terminal_number", "u8"),
        ("terminal_sequence", "u4"),
        ("line", "u4"),  # of the file, 0 where it has none
        ("journal_sequence", "u8"),  # 0 where the journal has none
        ("settlement_date", "u4"),  # the window that the journal has it in, 0 where it has none
        ("own_fen", "i8"),
        ("other_fen", "i8"),
        ("own_local_time", "u8"),
        ("other_local_time", "u8"),
    ]
)
"""One difference between the journal and a participant's file."""


def reconcile_taps(own: OwnTaps, other: TapFile) -> Array:
    """Differences (DIFFERENCE), by kind and then by line and journal sequence. A tap of the file is matched by terminal and
    terminal sequence; its first line is the tap, further ones are duplicates. One tap can differ in more than one way."""
    window = other.settlement_date
    # 1. Both sides' taps in order of terminal and sequence; under the same, the journal's first, then the file's line by line.
    is_other, place, is_first = _in_order(own.taps, other.taps)
    # 2. What follows on the journal's tap of the same terminal and sequence is its partner; what follows on another row of the
    #    file is a duplicate of that.
    follows_own, follows_other = np.zeros(len(place), bool), np.zeros(len(place), bool)
    follows_own[1:] = ~is_first[1:] & ~is_other[:-1]
    follows_other[1:] = ~is_first[1:] & is_other[:-1]
    theirs = place[follows_own]
    is_partner = np.zeros(len(place), bool)
    is_partner[:-1] = follows_own[1:]
    ours = place[is_partner]
    duplicate = place[follows_other]
    # 3. What has no partner on the other side. The windows next to this one are nothing that the file should have.
    missing_here = place[is_other & is_first]
    missing_there = place[~is_other & ~is_partner]
    missing_there = missing_there[own.settlement_date[missing_there] == window]
    # 4. What has one, but differs.
    amount = own.taps.amount_fen[ours] != other.taps.amount_fen[theirs]
    late = own.settlement_date[ours] != window
    time = own.taps.local_time[ours] != other.taps.local_time[theirs]
    nothing = np.zeros(0, np.intp)
    differences = [
        _differences(DifferenceKind.MISSING_HERE, own, nothing, other, missing_here),
        _differences(DifferenceKind.MISSING_THERE, own, missing_there, other, nothing),
        _differences(DifferenceKind.AMOUNT, own, ours[amount], other, theirs[amount]),
        _differences(DifferenceKind.DUPLICATE, own, nothing, other, duplicate),
        _differences(DifferenceKind.LATE, own, ours[late], other, theirs[late]),
        _differences(DifferenceKind.TIME, own, ours[time], other, theirs[time]),
    ]
    return np.concatenate([part[np.lexsort((part["journal_sequence"], part["line"]))] for part in differences])


_WORD_BITS: Final = 64


def _in_order(own: Taps, other: Taps) -> tuple[Array, Array, Array]:
    """All taps in order of terminal, sequence, side and place: whether it is the other side's, its place there, and whether it is
    the first of its terminal and sequence."""
    # Where all four fit into one word, words are sorted, which is several times faster than sorting places by keys.
    terminals = np.union1d(own.terminals, other.terminals)
    sequence_max = max((int(taps.sequence.max()) for taps in (own, other) if len(taps)), default=0)
    sequence_bits = sequence_max.bit_length()
    place_bits = max(len(own), len(other)).bit_length()
    bits = len(terminals).bit_length() + sequence_bits + 1 + place_bits
    words = np.empty(len(own) + len(other), np.uint64)
    for taps, part in ((own, words[: len(own)]), (other, words[len(own) :])):
        part[:] = np.searchsorted(terminals, taps.terminals).astype(np.uint64)[taps.terminal]
        part <<= np.uint64(sequence_bits)
        part |= taps.sequence
    if bits <= _WORD_BITS:
        words <<= np.uint64(1 + place_bits)
        words[: len(own)] |= np.arange(len(own), dtype=np.uint64)
        words[len(own) :] |= np.arange(len(other), dtype=np.uint64) | np.uint64(1 << place_bits)
        words.sort()
        place = (words & np.uint64((1 << place_bits) - 1)).astype(np.intp)
        is_other = (words >> np.uint64(place_bits) & np.uint64(1)).astype(bool)
        words >>= np.uint64(1 + place_bits)
    else:
        place = np.argsort(words, kind="stable")
        words = words[place]
        is_other = place >= len(own)
        place[is_other] -= len(own)
    is_first = np.ones(len(words), bool)
    is_first[1:] = words[1:] != words[:-1]
    return is_other, place, is_first


def _differences(kind: DifferenceKind, own: OwnTaps, ours: Array, other: TapFile, theirs: Array) -> Array:
    """Rows of one kind. Where one side has nothing, its places are empty and its columns 0."""
    made = np.zeros(max(len(ours), len(theirs)), DIFFERENCE)
    made["kind"] = kind
    for taps, places, fen, time in (
        (own.taps, ours, "own_fen", "own_local_time"),
        (other.taps, theirs, "other_fen", "other_local_time"),
    ):
        if len(places):
            made["terminal_number"] = taps.terminals[taps.terminal[places]]
            made["terminal_sequence"] = taps.sequence[places]
            made[fen] = taps.amount_fen[places]
            made[time] = taps.local_time[places]
    if len(theirs):
        made["line"] = theirs + other.first_line
    if len(ours):
        made["journal_sequence"] = own.journal_sequence[ours]
        made["settlement_date"] = own.settlement_date[ours]
    return made


# ---- instructions against the bank ----


class InstructionState(IntEnum):
    """The life of a payment instruction."""

    ISSUED = 1  # the bank was told; nothing is known yet
    PAID = 2  # the money has moved, and the ledger says so
    RETURNED = 3  # it did not arrive, or came back; the participant is owed (or owes) it still
    UNKNOWN = 4  # the bank cannot say, or what it says does not fit
    REISSUED = 5  # returned, and told to the bank anew under another id


class InstructionEvent(IntEnum):
    """What happens to an instruction."""

    PAID = 1
    RETURNED = 2
    UNKNOWN = 3
    REISSUE = 4


TRANSITIONS: Final[dict[tuple[InstructionState, InstructionEvent], InstructionState]] = {
    (InstructionState.ISSUED, InstructionEvent.PAID): InstructionState.PAID,
    (InstructionState.ISSUED, InstructionEvent.RETURNED): InstructionState.RETURNED,
    (InstructionState.ISSUED, InstructionEvent.UNKNOWN): InstructionState.UNKNOWN,
    (InstructionState.UNKNOWN, InstructionEvent.PAID): InstructionState.PAID,
    (InstructionState.UNKNOWN, InstructionEvent.RETURNED): InstructionState.RETURNED,
    (InstructionState.UNKNOWN, InstructionEvent.UNKNOWN): InstructionState.UNKNOWN,
    (InstructionState.PAID, InstructionEvent.RETURNED): InstructionState.RETURNED,
    (InstructionState.RETURNED, InstructionEvent.REISSUE): InstructionState.REISSUED,
}
"""What may happen in which state, and what comes of it. All else is a contradiction and becomes a difference."""

_EVENT_OF: Final = {
    BankStatus.PAID: InstructionEvent.PAID,
    BankStatus.RETURNED: InstructionEvent.RETURNED,
    BankStatus.UNKNOWN: InstructionEvent.UNKNOWN,
}


@dataclass(frozen=True)
class Known:
    """An instruction as the ledger has it."""

    instruction: Instruction
    state: InstructionState
    due_us: int  # until when the bank has to have done it


@dataclass(frozen=True)
class Step:
    """What a bank file does to one instruction: the state that it comes to, and what is to be posted from its participant's
    payable to the bank's account (negative: back; 0: nothing)."""

    known: Known
    entry: BankEntry
    state: InstructionState
    posted_fen: int


@dataclass(frozen=True)
class BankDifference:
    """One difference between the instructions and a bank file."""

    kind: DifferenceKind
    instruction_id: str
    line: int  # of the file, 0 where it has none
    own_fen: int
    other_fen: int


def reconcile_bank(bank: BankFile, known: Mapping[str, Known]) -> tuple[list[Step], list[BankDifference]]:
    """What a bank file does, in order of its lines. Raises FileError for an instruction that was never given; then nothing of
    the file counts. An entry that contradicts what is known does nothing, but is a difference:

    | the bank says | of an instruction that | difference |
    | --- | --- | --- |
    | another amount, or another booked | may become so | AMOUNT; where nothing was posted yet, it becomes UNKNOWN |
    | PAID or RETURNED | is so already | DUPLICATE |
    | PAID | is returned or issued anew | MISSING_HERE: money moved that no instruction stands for |
    | UNKNOWN | was paid or returned | MISSING_THERE |
    | PAID, after it was due | may become so | LATE; it counts all the same |
    """
    steps: list[Step] = []
    differences: list[BankDifference] = []

    def differs(kind: DifferenceKind, entry: BankEntry, own_fen: int, other_fen: int) -> None:
        differences.append(BankDifference(kind, entry.instruction_id, entry.line, own_fen, other_fen))

    for entry in bank.entries:
        if entry.instruction_id not in known:
            raise FileError(
                bank.name, entry.line, "instruction_id", f"no instruction {entry.instruction_id} was given; nothing is booked"
            )
        ours = known[entry.instruction_id]
        amount_fen = ours.instruction.amount_fen
        after = TRANSITIONS.get((ours.state, _EVENT_OF[entry.status]))
        if after is None:
            _contradiction(ours, entry, differs)
            continue
        posted_fen = 0
        if after is InstructionState.PAID:
            posted_fen = amount_fen
        elif ours.state is InstructionState.PAID:
            posted_fen = -amount_fen
        if entry.amount_fen != amount_fen or entry.booked_fen != -posted_fen:
            wrong = (amount_fen, entry.amount_fen) if entry.amount_fen != amount_fen else (-posted_fen, entry.booked_fen)
            differs(DifferenceKind.AMOUNT, entry, *wrong)
            if (ours.state, InstructionEvent.UNKNOWN) in TRANSITIONS:
                steps.append(Step(ours, entry, InstructionState.UNKNOWN, 0))
            continue
        if after is InstructionState.PAID and entry.booked_at_us > ours.due_us:
            differs(DifferenceKind.LATE, entry, amount_fen, entry.amount_fen)
        steps.append(Step(ours, entry, after, posted_fen))
    return steps, differences


def _contradiction(ours: Known, entry: BankEntry, differs: Any) -> None:
    own_fen = ours.instruction.amount_fen
    returned = ours.state in (InstructionState.RETURNED, InstructionState.REISSUED)
    if entry.status is BankStatus.UNKNOWN:
        differs(DifferenceKind.MISSING_THERE, entry, own_fen, 0)
    elif entry.status is BankStatus.PAID and returned:
        differs(DifferenceKind.MISSING_HERE, entry, 0, entry.amount_fen)
    else:
        differs(DifferenceKind.DUPLICATE, entry, own_fen, entry.amount_fen)


def overdue(known: Iterable[Known], bank: BankFile, time_us: int) -> list[BankDifference]:
    """Instructions that are due, that nothing is known of, and that a bank file does not name either: MISSING_THERE."""
    named = {entry.instruction_id for entry in bank.entries}
    return [
        BankDifference(DifferenceKind.MISSING_THERE, ours.instruction.instruction_id, 0, ours.instruction.amount_fen, 0)
        for ours in known
        if ours.state is InstructionState.ISSUED and ours.due_us < time_us and ours.instruction.instruction_id not in named
    ]


# ---- a participant's own taps, from the journal ----


def own_taps(reader: JournalReader, account: int, date: int) -> OwnTaps:
    """Charged taps that were credited to an account, of one settlement date and RECONCILE_DAYS_BESIDE on either side. `terminals`
    has slots for now: `named` puts in the numbers."""
    day = day_of(date)
    last_day = day + limits.RECONCILE_DAYS_BESIDE
    parts = []
    for entry in reader.entries(first_sequence_on(reader, day - limits.RECONCILE_DAYS_BESIDE)):
        records = entry.array
        days = settlement_days(records)
        if int(days[0]) > last_day:
            break
        wanted = (records["credit_account"] == account) & (records["kind"] == types.RecordKind.TAP)
        wanted &= (days >= day - limits.RECONCILE_DAYS_BESIDE) & (days <= last_day) & np.isin(records["result"], types.CHARGED)
        if wanted.any():
            parts.append((records[wanted], days[wanted]))
    records = np.concatenate([part for part, _ in parts]) if parts else np.zeros(0, types.RECORD)
    days = np.concatenate([part for _, part in parts]) if parts else np.zeros(0, np.int64)
    slots, terminal = np.unique(records["terminal"], return_inverse=True)
    dates = {int(each): int(np.datetime64(int(each), "D").item().strftime("%Y%m%d")) for each in np.unique(days)}
    settlement_date = np.zeros(len(days), np.uint32)
    for each, its_date in dates.items():
        settlement_date[days == each] = its_date
    taps = Taps(
        terminals=slots.astype(np.uint64),
        terminal=terminal.astype(np.uint32),
        sequence=records["terminal_sequence"],
        amount_fen=records["amount_fen"],
        local_time=records["local_date"].astype(np.uint64) * 1_000_000 + records["local_time"],
    )
    return OwnTaps(taps, settlement_date, records["sequence"])


def named(own: OwnTaps, number_of: Callable[[int], bytes]) -> OwnTaps:
    """The same with terminal numbers instead of slots."""
    numbers = [int.from_bytes(number_of(int(slot)), "big") for slot in own.taps.terminals]
    return replace(own, taps=replace(own.taps, terminals=np.array(numbers, np.uint64)))


def message_of(difference: Any, participant: str, date: int) -> reconciliation_service_pb2.Difference:
    """One row of DIFFERENCE as the message that exceptions hold."""
    return reconciliation_service_pb2.Difference(
        kind=types.wire(difference["kind"]),
        party=participant,
        settlement_date=date,
        line=int(difference["line"]),
        own_fen=int(difference["own_fen"]),
        other_fen=int(difference["other_fen"]),
        terminal_number=int(difference["terminal_number"]).to_bytes(6, "big"),
        terminal_sequence=int(difference["terminal_sequence"]),
        journal_sequence=int(difference["journal_sequence"]),
        own_settlement_date=int(difference["settlement_date"]),
        own_local_time=int(difference["own_local_time"]),
        other_local_time=int(difference["other_local_time"]),
    )
