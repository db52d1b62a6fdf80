"""The second stage of a day: what was cleared becomes movements between participants, and each one's position.

Every amount is entered on both sides (`_Book.move`), so the positions sum to zero by the way they are made; that they also equal
what the ledger's accounts move is what tests show. Accounts that are no participant's (purses, the funding source, what is held
back) are the float's."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from yikatong.core.day.clear import NO_OPERATOR, FeeTerms, Tally, Terms, fees
from yikatong.core.day.positions import FEES, FLOAT, Line, LineKind, Netted, Position, line_of
from yikatong.core.errors import Damaged
from yikatong.core.rules.agreements import Agreements, CapAction, Per, Refunds, Transfer
from yikatong.core.rules.shares import divide
from yikatong.core.types import PostingKind

SUBSIDY: Final = "subsidy:city"  # bears the city's part of concessions
HELD: Final = "held"  # account of what is kept back; part of the float


@dataclass(frozen=True)
class Movement:
    """A posting that clearing a window makes, between named accounts. `sequence` and `card` are those of the grey record that it
    settles: then it is the card's purse that pays."""

    kind: PostingKind
    debit: str
    credit: str
    amount_fen: int
    sequence: int = 0
    card: int = -1


@dataclass(frozen=True)
class CapPassed:
    """A participant whose position is below its net debit cap."""

    participant: str
    net_fen: int
    cap_fen: int
    blocks: bool


@dataclass(frozen=True)
class Net:
    """A netted window: positions, the postings that bring the ledger to them, and whose debit cap was passed."""

    netted: Netted
    movements: tuple[Movement, ...]
    caps_passed: tuple[CapPassed, ...]


@dataclass
class _Book:
    """Positions in the making, and the postings that clearing adds."""

    lines: dict[tuple[str, LineKind], list[int]] = field(default_factory=dict)
    movements: list[Movement] = field(default_factory=list)

    def move(self, debit: str, credit: str, amount_fen: int, debit_line: LineKind, credit_line: LineKind, count: int) -> None:
        """`amount_fen` from one participant to another; each side under its own line."""
        for participant, line, amount in ((debit, debit_line, -amount_fen), (credit, credit_line, amount_fen)):
            sums = self.lines.setdefault((participant, line), [0, 0])
            sums[0] += count
            sums[1] += amount

    def post(self, kind: PostingKind, debit: str, credit: str, amount_fen: int) -> None:
        """A movement of the ledger; one of a negative amount goes the other way."""
        if amount_fen > 0:
            self.movements.append(Movement(kind, debit, credit, amount_fen))
        elif amount_fen < 0:
            self.movements.append(Movement(kind, credit, debit, -amount_fen))

    def positions(self) -> tuple[Position, ...]:
        by_participant: dict[str, list[Line]] = {}
        for (participant, kind), (count, amount_fen) in self.lines.items():
            if count or amount_fen:
                by_participant.setdefault(participant, []).append(Line(kind, count, amount_fen))
        order = list(LineKind)
        return tuple(
            Position(participant, tuple(sorted(lines, key=lambda line: order.index(line.kind))))
            for participant, lines in sorted(by_participant.items())
        )


def net(tally: Tally, terms: Terms, agreements: Agreements, named: dict[int, str]) -> Net:
    """Net one cleared window. `named` are the names of the accounts that have one, whoever's they are."""
    book = _Book()
    parties = [f"city:{agreement.city:04d}" if agreement.city else name
               for name, agreement in zip(terms.participants, terms.agreements, strict=True)]  # fmt: skip
    _taps(book, tally, terms, parties)
    earned_fen = _postings(book, tally, terms, parties, named)
    _grey(book, tally, terms, parties)
    _concessions(book, tally, terms, parties)
    _inter_city(book, tally)
    _transfers(book, tally, terms, parties, agreements.transfers(tally.window.day))
    _fees(book, tally, terms, parties, earned_fen)
    positions = book.positions()
    if total_fen := sum(position.net_fen for position in positions):
        raise Damaged(f"window {tally.window.date}: positions sum to {total_fen} fen")
    window = tally.window
    return Net(
        Netted(window.date, window.first_sequence, window.last_sequence, positions),
        tuple(book.movements),
        tuple(_caps_passed(positions, terms, parties)),
    )


def _taps(book: _Book, tally: Tally, terms: Terms, parties: list[str]) -> None:
    """What cards paid; and what of it the operator must bear or wait for."""
    for place, party in enumerate(parties):
        line = LineKind.INTER_CITY if terms.agreements[place].city else LineKind.TAPS
        if taps := int(tally.taps[place]):
            book.move(FLOAT, party, int(tally.taps_fen[place]), line, line, taps)
        for counts, amounts_fen, line, kind in (
            (tally.liable, tally.liable_fen, LineKind.LIABILITY, PostingKind.LIABILITY),
            (tally.held, tally.held_fen, LineKind.HELD, PostingKind.HELD),
        ):
            if count := int(counts[place]):
                book.move(party, FLOAT, int(amounts_fen[place]), line, line, count)
                book.post(kind, terms.participants[place], HELD, int(amounts_fen[place]))


def _postings(book: _Book, tally: Tally, terms: Terms, parties: list[str], named: dict[int, str]) -> list[int]:
    """What other records of the window moved, by their kind's line; returns what fees by the window are on, by place: captures,
    less what was taken back of them, and less refunds where their fee is given back."""
    place_of = terms.place_of_account
    earned_fen = [0] * len(parties)

    def party(account: int) -> str:
        if account in place_of:
            return parties[place_of[account]]
        name = named.get(account, "")
        return name if name == FEES or name.startswith(("subsidy:", "city:", "operator:", "acquirer:")) else FLOAT

    for (kind, debit, credit), (count, amount_fen) in sorted(tally.postings.items()):
        line = line_of(kind)
        if line is None or party(debit) == party(credit):
            continue
        book.move(party(debit), party(credit), amount_fen, line, line, count)
        for account, sign in ((credit, 1), (debit, -1)):
            place = place_of.get(account)
            if place is None or line not in (LineKind.CAPTURES, LineKind.REFUNDS):
                continue
            if line is LineKind.CAPTURES or terms.agreements[place].fee.refunds is Refunds.RETURNED:
                earned_fen[place] += sign * amount_fen
    return earned_fen


def _grey(book: _Book, tally: Tally, terms: Terms, parties: list[str]) -> None:
    """Debits that a card's next record has proved."""
    proved = tally.proved[tally.proved["operator"] != NO_OPERATOR]
    for row in proved:
        place, amount_fen = int(row["operator"]), int(row["tap_amount_fen"])
        book.move(FLOAT, parties[place], amount_fen, LineKind.TAPS, LineKind.TAPS, 1)
        book.movements.append(
            Movement(PostingKind.GREY, "", terms.participants[place], amount_fen, int(row["sequence"]), int(row["card"]))
        )


def _concessions(book: _Book, tally: Tally, terms: Terms, parties: list[str]) -> None:
    """Fares that riders did not pay: the city's part is paid to the operator, its own part it goes without."""
    for place, agreement in enumerate(terms.agreements):
        given_fen = int(tally.concession_fen[place])
        city_fen, _ = divide(given_fen, (agreement.concession_city, agreement.concession_operator))
        if city_fen:
            count = int(tally.concessions[place])
            book.move(SUBSIDY, parties[place], city_fen, LineKind.CONCESSIONS, LineKind.CONCESSIONS, count)
            book.post(PostingKind.SUBSIDY, SUBSIDY, terms.participants[place], city_fen)


def _inter_city(book: _Book, tally: Tally) -> None:
    """Taps of other cities' cards: that city owes what its cards paid here, and the float, which paid, is owed it."""
    by_city: dict[int, tuple[int, int]] = {}
    for (_, city), (count, amount_fen) in tally.foreign.items():
        before = by_city.get(city, (0, 0))
        by_city[city] = (before[0] + count, before[1] + amount_fen)
    for city, (count, amount_fen) in sorted(by_city.items()):
        name = f"city:{city:04d}"
        book.move(name, FLOAT, amount_fen, LineKind.INTER_CITY, LineKind.INTER_CITY, count)
        book.post(PostingKind.INTER_CITY, name, FLOAT, amount_fen)


def _transfers(book: _Book, tally: Tally, terms: Terms, parties: list[str], rules: Iterable[Transfer]) -> None:
    """What two operators took from riders who went from one to the other is put together and divided anew."""
    places = {name: place for place, name in enumerate(terms.participants)}
    for rule in rules:
        a, b = (places.get(operator, -1) for operator in rule.operators)
        count, took_fen = 0, [0, 0]
        for pair, turned in (((a, b), False), ((b, a), True)):
            pool = tally.pools.get(pair)
            if pool is not None:
                count += pool.taps
                took = (pool.second_fen, pool.first_fen) if turned else (pool.first_fen, pool.second_fen)
                took_fen = [took_fen[0] + took[0], took_fen[1] + took[1]]
        due_fen = divide(sum(took_fen), rule.shares)
        if moves_fen := due_fen[1] - took_fen[1]:  # from the first operator to the second
            book.move(parties[a], parties[b], moves_fen, LineKind.SPLITS, LineKind.SPLITS, count)
            book.post(PostingKind.SPLIT, terms.participants[a], terms.participants[b], moves_fen)


def _fees(book: _Book, tally: Tally, terms: Terms, parties: list[str], earned_fen: list[int]) -> None:
    """Fees by the tap as clearing added them up, or by the window on what was earned in it."""
    proved = tally.proved[tally.proved["operator"] != NO_OPERATOR]
    grey_fen = np.zeros(len(parties), np.int64)
    np.add.at(grey_fen, proved["operator"], proved["tap_amount_fen"])
    grey_fees = np.zeros(len(parties), np.int64)
    by_tap = fees(proved["tap_amount_fen"].astype(np.int64), proved["operator"], FeeTerms(terms.agreements))
    np.add.at(grey_fees, proved["operator"], by_tap)
    for place, agreement in enumerate(terms.agreements):
        fee = agreement.fee
        if fee.per is Per.TAP:
            fee_fen = int(tally.fee_fen[place] + grey_fees[place])
        else:
            base_fen = int(tally.cleared_fen[place] + grey_fen[place]) + earned_fen[place]
            size_fen = min(max((abs(base_fen) * fee.rate_bp + 5_000) // 10_000, fee.minimum_fen), fee.cap_fen)
            fee_fen = 0 if base_fen == 0 else size_fen if base_fen > 0 else -size_fen
        if fee_fen:
            book.move(parties[place], FEES, fee_fen, LineKind.FEES, LineKind.FEES, 1)
            book.post(PostingKind.FEE, terms.participants[place], FEES, fee_fen)


def _caps_passed(positions: Iterable[Position], terms: Terms, parties: list[str]) -> Iterable[CapPassed]:
    agreements = dict(zip(parties, terms.agreements, strict=True))
    for position in positions:
        agreement = agreements.get(position.participant)
        if agreement is None or agreement.debit_cap_fen is None or position.net_fen >= -agreement.debit_cap_fen:
            continue
        blocks = agreement.debit_cap_action is CapAction.BLOCK
        yield CapPassed(position.participant, position.net_fen, agreement.debit_cap_fen, blocks)
