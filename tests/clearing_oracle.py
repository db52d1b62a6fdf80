"""A clearer in plain Python, one tap at a time, that shares nothing with the vectorised one; and journals without a store."""

import datetime
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from yikatong.core.types import NONE, RECORD

TAP, POSTING = 1, 7
STORED, FRAUD, DENIED, COUNTED = 1, 4, 8, 16
CHARGED = {1: "CLEARED", 2: "DEBT"}
REFUSALS = {
    3: "TEST", 4: "GREY", 5: "TORN", 40: "CARD_UNKNOWN", 41: "TERMINAL_UNKNOWN", 42: "FORMAT", 43: "FORMAT",
    44: "ISSUER_MISMATCH", 50: "MAC_WRONG", 60: "CARD_EXPIRED",
}  # fmt: skip
QUIET = {"CLEARED", "TEST", "DECLINED"}


@dataclass
class Entry:
    """As core.journal.Entry, of records in memory."""

    first_sequence: int
    count: int
    records: memoryview

    @property
    def array(self):
        return np.frombuffer(self.records, RECORD)


class Records:
    """As core.journal.JournalReader: records numbered from 1, in values of the given sizes (over and over)."""

    def __init__(self, records, sizes=(3,)):
        self.array = records
        self.sizes = list(sizes)

    def entries(self, first_sequence=1):
        at = turn = 0
        while at < len(self.array):
            size = self.sizes[turn % len(self.sizes)]
            part = self.array[at : at + size]
            if at + len(part) >= first_sequence:
                yield Entry(at + 1, len(part), memoryview(part.tobytes()))
            at, turn = at + size, turn + 1

    def let_go(self, entry):
        pass

    def entry(self, sequence):
        return next(entry for entry in self.entries(sequence) if sequence < entry.first_sequence + entry.count)


def make_records(rows):
    """Journal records of dicts; what a dict does not say is nothing."""
    records = np.zeros(len(rows), RECORD)
    for i, row in enumerate(rows):
        for name in ("card", "terminal", "debit_account", "credit_account"):
            records[name][i] = NONE
        records["sequence"][i] = i + 1
        for name, value in row.items():
            records[name][i] = value
    return records


def local(record):
    date, time = int(record["local_date"]), int(record["local_time"])
    return datetime.datetime(
        date // 10000, date // 100 % 100, date % 100, time // 10000, time // 100 % 100, time % 100
    )  # fmt: skip


def fee_of(amount_fen, fee):
    exact = (amount_fen * fee.rate_bp * 2 + 10_000) // 20_000
    return min(max(exact, fee.minimum_fen), fee.cap_fen)


@dataclass
class Answer:
    counts: Counter = field(default_factory=Counter)
    amounts_fen: Counter = field(default_factory=Counter)
    taps_fen: Counter = field(default_factory=Counter)
    liable_fen: Counter = field(default_factory=Counter)
    held_fen: Counter = field(default_factory=Counter)
    cleared_fen: Counter = field(default_factory=Counter)
    concession_fen: Counter = field(default_factory=Counter)
    fee_fen: Counter = field(default_factory=Counter)
    foreign: Counter = field(default_factory=Counter)
    pools: dict = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))
    exceptions: dict = field(default_factory=dict)
    proved: set = field(default_factory=set)


class Oracle:
    """Clears windows one after the other. `denied_since_s` is by card."""

    def __init__(self, agreements, operator_of_terminal, city, within_s, denied_since_s):
        self.agreements = agreements
        self.operator_of_terminal = operator_of_terminal
        self.city = city
        self.within_s = within_s
        self.denied_since_s = denied_since_s
        self.newest = {}
        self.pending = []

    def clear(self, records, day):
        answer = Answer()
        outcomes = {}
        taps = [record for record in records if record["kind"] == TAP]
        for record in taps:
            outcomes[int(record["sequence"])] = self.outcome(record, day)
        carried = []
        for record in self.pending:
            agreement = self.agreement(record)
            days = agreement.appeal_days if agreement else 0
            if local(record) + datetime.timedelta(days=days) < datetime.datetime.combine(day, datetime.time()):
                outcomes[int(record["sequence"])] = ("LATE", 0)
            else:
                carried.append(record)
        self.continuity(taps, carried, outcomes)
        self.transfers(taps, outcomes, answer)

        by_sequence = {int(record["sequence"]): record for record in [*taps, *self.pending]}
        for sequence, (outcome, detail) in outcomes.items():
            record = by_sequence[sequence]
            charged = int(record["result"]) in CHARGED
            amount_fen = int(record["amount_fen"] if charged else record["tap_amount_fen"])
            if outcome not in QUIET:
                answer.exceptions[sequence] = (outcome, detail, amount_fen)
            answer.counts[outcome] += 1
            answer.amounts_fen[outcome] += amount_fen
            if outcome == "GREY_PROVED":
                answer.proved.add(sequence)
            if charged:
                self.money(record, outcome, amount_fen, answer)
        self.pending = [
            by_sequence[sequence] for sequence, (outcome, _) in sorted(outcomes.items())
            if outcome in ("GREY", "TORN") and by_sequence[sequence]["card"] != NONE
        ] + [record for record in carried if int(record["sequence"]) not in outcomes]  # fmt: skip
        self.pending.sort(key=lambda record: int(record["sequence"]))
        for record in taps:
            card = int(record["card"])
            if self.is_proved(record) and (card not in self.newest or record["atc"] > self.newest[card]["atc"]):
                self.newest[card] = record
        return answer

    def agreement(self, record):
        terminal = int(record["terminal"])
        return None if terminal == NONE else self.agreements[self.operator_of_terminal[terminal]]

    def outcome(self, record, day):
        result, stored = int(record["result"]), bool(record["flags"] & STORED)
        if result == 30:
            return ("FRAUD" if record["flags"] & FRAUD else "SEQUENCE_REUSED", 0)
        if result not in CHARGED:
            if result == 61 and stored:
                return ("DENIED_LIABLE", 0)
            return (REFUSALS.get(result, "REFUSED" if stored else "DECLINED"), 0)
        agreement = self.agreement(record)
        since = self.denied_since_s.get(int(record["card"]), 0)
        if stored and record["flags"] & DENIED and since:
            told = datetime.datetime(1970, 1, 1, 8) + datetime.timedelta(seconds=since, hours=agreement.deny_list_hours)
            if local(record) > told:
                return ("DENIED_LIABLE", 0)
        if record["amount_fen"] > agreement.tap_fen_max:
            return ("AMOUNT_OVER_LIMIT", 0)
        if local(record).date() < day - datetime.timedelta(days=agreement.appeal_days):
            return ("LATE", 0)
        return (CHARGED[result], 0)

    def is_proved(self, record):
        return (
            record["card"] != NONE
            and (int(record["result"]) in CHARGED or record["flags"] & COUNTED)
            and int(record["result"]) not in (4, 5)
        )

    @staticmethod
    def stated(record):
        return record["profile"] == 1 and (record["chip_before_fen"] or record["chip_after_fen"])

    def continuity(self, taps, carried, outcomes):
        by_card = defaultdict(list)
        for record in [*carried, *taps]:
            if record["card"] != NONE and (self.is_proved(record) or record["result"] in (4, 5)):
                by_card[int(record["card"])].append(record)
        for card, mine in by_card.items():
            proved = sorted((record for record in mine if self.is_proved(record)), key=lambda record: record["atc"])
            pending = {}
            for record in mine:  # in order of sequence
                if not self.is_proved(record):
                    if int(record["atc"]) in pending or any(tap["atc"] == record["atc"] for tap in proved):
                        outcomes[int(record["sequence"])] = ("DUPLICATE", 0)
                    else:
                        pending[int(record["atc"])] = record
            newest = self.newest.get(card)
            known = [*proved, *([newest] if newest is not None else [])]
            for tap in proved:
                if outcomes[int(tap["sequence"])][0] in ("CLEARED", "DEBT"):
                    self.gaps(tap, known, newest, pending, outcomes)
            self.decide(known, pending, outcomes)

    def gaps(self, tap, known, newest, pending, outcomes):
        atc = int(tap["atc"])
        before = max((other for other in known if other["atc"] < atc), key=lambda other: int(other["atc"]), default=None)
        off_by = 0
        if before is not None and before["atc"] == atc - 1 and self.stated(tap) and self.stated(before):
            off_by = int(tap["chip_before_fen"]) - int(before["chip_after_fen"])
        if not off_by and self.stated(tap):
            off_by = int(tap["chip_before_fen"]) - int(tap["tap_amount_fen"]) - int(tap["chip_after_fen"])
        missing = 0
        if before is not None and not (newest is not None and newest["atc"] > atc):
            missing = sum(counter not in pending for counter in range(int(before["atc"]) + 1, atc))
        if off_by:
            outcomes[int(tap["sequence"])] = ("BALANCE_GAP", off_by)
        elif missing:
            outcomes[int(tap["sequence"])] = ("ATC_GAP", missing)

    def decide(self, known, pending, outcomes):
        for atc in sorted(pending, reverse=True):
            record = pending[atc]
            if not self.stated(record):
                continue
            after = next((tap for tap in known if tap["atc"] == atc + 1 and self.stated(tap)), None)
            if after is None and atc + 1 in pending:
                decided = outcomes.get(int(pending[atc + 1]["sequence"]), ("", 0))[0]
                after = pending[atc + 1] if decided in ("GREY_PROVED", "GREY_DISPROVED") else None
            amount_fen = int(record["tap_amount_fen"])
            if after is None or amount_fen == 0:
                continue
            if int(after["chip_before_fen"]) == int(record["chip_before_fen"]) - amount_fen:
                outcomes[int(record["sequence"])] = ("GREY_PROVED", 0)
            elif after["chip_before_fen"] == record["chip_before_fen"]:
                outcomes[int(record["sequence"])] = ("GREY_DISPROVED", 0)

    def transfers(self, taps, outcomes, answer):
        by_card = defaultdict(list)
        for record in taps:
            fine = outcomes[int(record["sequence"])][0] in ("CLEARED", "DEBT", "BALANCE_GAP", "ATC_GAP")
            if int(record["result"]) in CHARGED and fine and record["amount_fen"] > 0:
                by_card[int(record["card"])].append(record)
        for mine in by_card.values():
            mine.sort(key=lambda record: int(record["atc"]))
            at = 0
            while at + 1 < len(mine):
                first, second = mine[at], mine[at + 1]
                pair = tuple(self.operator_of_terminal[int(tap["terminal"])] for tap in (first, second))
                passed_s = (local(second) - local(first)).total_seconds()
                if pair in self.within_s and 0 <= passed_s <= self.within_s[pair]:
                    pool = answer.pools[pair]
                    pool[0] += 1
                    pool[1] += int(first["amount_fen"])
                    pool[2] += int(second["amount_fen"])
                    at += 1
                at += 1

    def money(self, record, outcome, amount_fen, answer):
        operator = self.operator_of_terminal[int(record["terminal"])]
        agreement = self.agreements[operator]
        answer.taps_fen[operator] += amount_fen
        if outcome == "DENIED_LIABLE":
            answer.liable_fen[operator] += amount_fen
        elif outcome in ("LATE", "AMOUNT_OVER_LIMIT"):
            answer.held_fen[operator] += amount_fen
        else:
            answer.cleared_fen[operator] += amount_fen
            answer.concession_fen[operator] += max(int(record["amount_due_fen"]) - amount_fen, 0)
            if agreement.fee.per == "tap":
                answer.fee_fen[operator] += fee_of(amount_fen, agreement.fee)
            if record["city"] not in (0, self.city) and not agreement.city:
                answer.foreign[operator, int(record["city"])] += amount_fen
