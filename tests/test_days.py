"""Days of a small city end balanced, some of them; `python tests/days.py --help` tells how to run ten thousand. And the auditor
is not blind: in a journal that one hand altered and mended, it finds the place."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import auditor
import lmdb
import pytest
from auditor import HEADER, RECORD, Record, Unsound, audit, payload_of, records_of, sm3
from days import CHECKPOINT_FAILPOINTS, COMMIT_FAILPOINTS, CUTS, LIMITS, PARTIES, Days, DaysFailed, in_memory, simulate
from harness import limited

from yikatong.core.acquiring import authorizations
from yikatong.core.day import day, payments
from yikatong.core.day.net import Net
from yikatong.v1 import authorization_service_pb2, clearing_service_pb2, exception_service_pb2, journal_pb2


@pytest.mark.parametrize("seed", range(6))
def test_days_end_balanced(seed: int) -> None:
    simulate(seed, days=25)


def test_what_happens_reaches_everything() -> None:
    """A workload that never meets something proves nothing about it."""
    seen: Counter[str] = Counter()
    for seed in range(100, 103):
        seen += simulate(seed, days=50)
    wanted = {
        "asked again", "late taps", "kill", "files lost", "reversed before it came", "late original REVERSED",
        *COMMIT_FAILPOINTS, *CHECKPOINT_FAILPOINTS, *(name for names in CUTS.values() for name in names),
        *(f"tap {name}" for name in ("ACCEPTED again", "DEBT_BOOKED", "GREY", "TORN", "TEST", "MAC_MISMATCH", "CARD_DENIED")),
        "tap CONFLICT", "take up ACCEPTED",
        *(f"cleared as {name}" for name in ("CLEARED", "DUPLICATE", "GREY_PROVED", "GREY_DISPROVED", "LATE", "DENIED_LIABLE")),
        *(f"posted {name}" for name in ("CAPTURE", "REFUND", "CAPTURE_REVERSAL", "PURSE_FUNDING", "PURSE_RETURN", "CORRECTION")),
        *(f"posted {name}" for name in ("FEE", "SUBSIDY", "SPLIT", "INTER_CITY", "HELD", "GREY", "ADJUSTMENT", "DISPUTE")),
        *(f"posted {name}" for name in ("PAYMENT", "PAYMENT_RETURN", "LIABILITY")),
        "approve SAME_ACTOR", "capture AUTHORIZATION_EXPIRED", "refund REFUND_ABOVE_CAPTURE", "void ACCEPTED",
        "increment ACCEPTED", "clear WINDOW_BEFORE", "seal ACCEPTED", "abort ACCEPTED", "resume ACCEPTED", "reissue ACCEPTED",
    }  # fmt: skip
    assert wanted - set(seen) == set()


# ---- faults of the core are found, and the message says how to see them again ----


def without_last_movement(*arguments: Any) -> Net:
    made = REAL_NET(*arguments)
    return Net(made.netted, made.movements[:-1], made.caps_passed)


def one_fen_more(amount_fen: int, available: list[int]) -> list[int]:
    taken = REAL_TAKE(amount_fen, available)
    return [taken[0] + (available[0] > taken[0]), *taken[1:]]


REAL_NET, REAL_TAKE = day.net, authorizations.take_in_order


@pytest.mark.parametrize(
    ("module", "name", "fault", "found"),
    [
        (day, "net", without_last_movement, "positions are not what moved"),
        (authorizations, "answered", lambda memory, request, response: None, "changed something|does not say so|2 times"),
        (authorizations, "take_in_reverse", one_fen_more, "refund of"),
        (payments, "all_settled", lambda memory, date, changed=None: True, "is settled, and the bank has not paid"),
    ],
)
def test_a_fault_of_the_core_is_found(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Callable[..., Any], found: str
) -> None:
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(DaysFailed, match=r"python tests/days.py --seed 3 --days 40") as failure:
        simulate(3, days=40)
    assert re.search(found, str(failure.value)), failure.value


# ---- the auditor is not blind ----


class Forger:
    """Somebody who can write into a journal: alters a record or a message, and mends what would show it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups = []
        for records, payloads, _ in records_of(path):
            self.groups.append(
                ([*records], {each.sequence: payload_of(each, payloads) for each in records if each.payload_place})
            )
        self.records = [record for records, _ in self.groups for record in records]

    def alter(self, sequence: int, **fields: Any) -> None:
        for records, _ in self.groups:
            for at, record in enumerate(records):
                if record.sequence == sequence:
                    records[at] = record._replace(**fields)

    def alter_event(self, sequence: int, change: Callable[[Any], None]) -> None:
        for _, payloads in self.groups:
            if sequence in payloads:
                event = journal_pb2.Event.FromString(payloads[sequence])
                change(event)
                payloads[sequence] = event.SerializeToString(deterministic=True)

    def event(self, record: Record) -> Any:
        return next(
            journal_pb2.Event.FromString(payloads[record.sequence]) for _, payloads in self.groups if record.sequence in payloads
        )

    def mend(self) -> None:
        """Every balance and sum of holds as the altered records make it."""
        balances: Counter[int] = Counter()
        held: Counter[int] = Counter()
        for records, _ in self.groups:
            for at, record in enumerate(records):
                debit, credit = record.debit_account, record.credit_account
                if record.kind == auditor.HOLD:
                    held[debit] += record.amount_fen
                    records[at] = record._replace(debit_after_fen=balances[debit], credit_after_fen=held[debit])
                elif record.kind in (auditor.TAP, auditor.TOP_UP, auditor.POSTING) and credit != auditor.NONE:
                    balances[debit] -= record.amount_fen
                    balances[credit] += record.amount_fen
                    records[at] = record._replace(debit_after_fen=balances[debit], credit_after_fen=balances[credit])

    def write(self, digests: bool = True, vouched: bool = True) -> None:
        """Put all of it back, with digests that fit, or with those that were there; and so the digests in events' records."""
        environment = lmdb.open(str(self.path / "journal.mdb"), subdir=False, max_dbs=4, map_size=1 << 30, sync=False)
        groups = environment.open_db(b"groups", create=False)
        with environment.begin(write=True) as transaction:
            chain = bytes(32)
            for (key, value), (records, payloads) in zip(list(transaction.cursor(db=groups)), self.groups, strict=True):
                body, behind = b"", b""
                for record in records:
                    place = 0
                    if record.sequence in payloads:
                        place, raw = len(behind) + 1, payloads[record.sequence]
                        length, prefix = len(raw), b""
                        while length > 127:
                            prefix, length = prefix + bytes([length & 127 | 128]), length >> 7
                        behind += prefix + bytes([length]) + raw
                    packed = RECORD.pack(*record._replace(payload_place=place))
                    if vouched and record.kind == auditor.EVENT:
                        packed = packed[:68] + auditor.sm3(payloads[record.sequence]) + packed[100:]
                    body += packed
                fields = list(HEADER.unpack(value[: HEADER.size]))
                fields[5] = len(behind)
                if digests:
                    fields[7:] = [chain, sha256(body + behind).digest()]
                header = HEADER.pack(*fields)
                chain = sm3(header)
                transaction.put(key, header + body + behind, db=groups)
        environment.close()


FORGED = {
    auditor.CAPTURE, auditor.REFUND, auditor.PURSE_FUNDING, auditor.PURSE_RETURN, auditor.FEE, auditor.GREY_PROVED,
    auditor.ADJUSTMENT, auditor.DISPUTE, auditor.PAYMENT, auditor.PAYMENT_RETURN,
}  # fmt: skip


@pytest.fixture(scope="module")
def honest() -> Iterator[Path]:
    """A data directory in which everything has happened that is forged below."""
    with in_memory() as folder, limited(**LIMITS):
        days = Days(101, folder / "data", priced=True)
        while FORGED - set(days.auditor.books.kinds):
            days.day()
            assert days.today < 300, FORGED - set(days.auditor.books.kinds)
        days.finish()
        yield folder / "data"


def is_posting(*kinds: int) -> Callable[[Forger, Record], bool]:
    return lambda _, record: record.kind == auditor.POSTING and record.transaction_type in kinds and record.amount_fen > 1


def is_tap(forger: Forger, record: Record) -> bool:
    return record.kind == auditor.TAP and record.result == auditor.ACCEPTED and record.amount_fen > 1


def is_event(name: str) -> Callable[[Forger, Record], bool]:
    return lambda forger, record: record.kind == auditor.EVENT and forger.event(record).name == name


def is_hold(forger: Forger, record: Record) -> bool:
    return record.kind == auditor.HOLD and record.amount_fen > 0


def more(fen: int, mended: bool = True) -> Callable[[Forger, Record], None]:
    def alter(forger: Forger, record: Record) -> None:
        forger.alter(record.sequence, amount_fen=record.amount_fen + fen)
        if mended:
            forger.mend()

    return alter


def set_to(**fields: Any) -> Callable[[Forger, Record], None]:
    return lambda forger, record: forger.alter(record.sequence, **fields)


def changed(kind: int, message: Any, change: Callable[[Any], None]) -> Callable[[Forger, Record], None]:
    """Alter the first document of a kind in an event."""

    def alter(forger: Forger, record: Record) -> None:
        def change_event(event: Any) -> None:
            document = next(each for each in event.documents if each.kind == kind)
            content = message.FromString(document.value)
            change(content)
            document.value = content.SerializeToString(deterministic=True)

        forger.alter_event(record.sequence, change_event)

    return alter


def used_again(forger: Forger, record: Record) -> None:
    """A card's next tap gets the counter of this one."""
    following = next(
        each for each in forger.records if each.sequence > record.sequence and each.card == record.card and is_tap(forger, each)
    )
    forger.alter(following.sequence, atc=record.atc)


def off_balance(window: Any) -> None:
    window.positions[0].net_fen += 1
    window.positions[0].lines[0].amount_fen += 1


def shifted(window: Any) -> None:
    """A fen of the first participant's for the last."""
    for position, fen in ((window.positions[0], -1), (window.positions[-1], 1)):
        position.net_fen += fen
        position.lines[0].amount_fen += fen


def in_secret(adjustment: Any) -> None:
    adjustment.decided_by = adjustment.proposed_by


def one_fen_less_held(authorization: Any) -> None:
    authorization.held_fen -= 1


def backdated(forger: Forger, record: Record) -> None:
    later = next(each for each in forger.records if each.settlement_day > record.settlement_day)
    forger.alter(later.sequence, settlement_day=record.settlement_day)


def left_out(forger: Forger, record: Record) -> None:
    """The last group of all, so that the chain still holds, is numbered as if one had gone before."""
    records, payloads = forger.groups[-1]
    shifted_by_one = {sequence + 1: raw for sequence, raw in payloads.items()}
    payloads.clear()
    payloads.update(shifted_by_one)
    records[:] = [each._replace(sequence=each.sequence + 1) for each in records]


FORGERIES: dict[str, tuple[Callable[[Forger, Record], bool], Callable[[Forger, Record], None], str]] = {
    "an amount": (is_tap, more(1, mended=False), "states another balance"),
    "an amount, and all balances after it": (is_tap, more(1), "positions are not what moved"),
    "a balance after": (is_posting(auditor.CAPTURE), set_to(credit_after_fen=1 << 40), "states another balance of the credit"),
    "a sum of holds": (is_hold, set_to(credit_after_fen=1 << 40), "states another sum of holds"),
    "more held than asked for": (is_hold, more(1), "an authorisation states"),
    "a missing link": (is_event("purse-funded"), set_to(flags=0), "a link to its event is missing"),
    "a card's list": (is_tap, set_to(card_previous=1), "card's list is broken"),
    "a counter used twice": (is_tap, used_again, "counter was used up before"),
    "a tap that was not proved": (is_tap, set_to(flags=auditor.STORED), "that its card did not prove"),
    "a purse overdrawn": (is_posting(auditor.PURSE_RETURN), more(10**6), "restricted purse paid what it did not have"),
    "a capture above the hold": (is_posting(auditor.CAPTURE), more(10**7), "captures more than was held|purse paid"),
    "a refund above the capture": (is_posting(auditor.REFUND), more(10**7), "refunds more than was captured"),
    "a refund that is not the one asked for": (is_posting(auditor.REFUND), more(-1), "an authorisation states"),
    "an authorisation's own word": (
        is_event("authorization-made"),
        changed(auditor.AUTHORIZATIONS, authorization_service_pb2.Authorization, one_fen_less_held),
        "an authorisation states",
    ),
    "a fee": (is_posting(auditor.FEE), more(1), "positions are not what moved"),
    "a grey record's debit": (is_posting(auditor.GREY_PROVED), more(1), "positions are not what moved|grey records come to"),
    "a payment": (is_posting(auditor.PAYMENT), more(1), "the bank's word comes to"),
    "a payment that came back": (is_posting(auditor.PAYMENT_RETURN), more(1), "the bank's word comes to"),
    "a payment called something else": (
        is_posting(auditor.PAYMENT), set_to(transaction_type=auditor.ADJUSTMENT), "the bank's word comes to"
    ),
    "a dispute above the charge": (is_posting(auditor.DISPUTE), more(10**7), "gives back more than the charge"),
    "an adjustment": (is_posting(auditor.ADJUSTMENT), more(1), "what was agreed to is not what was posted"),
    "an adjustment by one person": (
        is_event("adjustment-posted"),
        changed(auditor.ADJUSTMENTS, exception_service_pb2.Adjustment, in_secret),
        "one person alone adjusts",
    ),
    "a position": (
        is_event("window-cleared"),
        changed(auditor.WINDOWS, clearing_service_pb2.WindowDocument, off_balance),
        "do not sum to zero",
    ),
    "two positions": (
        is_event("window-cleared"),
        changed(auditor.WINDOWS, clearing_service_pb2.WindowDocument, shifted),
        "positions are not what moved",
    ),
    "a record in a window that was closed": (is_event("window-closed"), backdated, "into a window that was closed|goes back"),
    "a record left out": (is_tap, left_out, "under another key|comes as number"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_auditor_finds(tmp_path: Path, honest: Path, forgery: str) -> None:
    found, alter, told = FORGERIES[forgery]
    shutil.copytree(honest, tmp_path / "data")
    forger = Forger(tmp_path / "data")
    alter(forger, next(record for record in forger.records if found(forger, record)))
    forger.write()
    with pytest.raises(Unsound, match=told):
        audit(tmp_path / "data", PARTIES)


def test_auditor_finds_what_the_digests_show(tmp_path: Path, honest: Path) -> None:
    shutil.copytree(honest, tmp_path / "data")
    forger = Forger(tmp_path / "data")
    forger.write()
    assert audit(tmp_path / "data", PARTIES).records == len(forger.records)  # nothing was altered yet
    record = next(record for record in forger.records if is_tap(forger, record))
    forger.alter(record.sequence, stop=record.stop + 1)  # what no account shows
    forger.write(digests=False)
    with pytest.raises(Unsound, match="its digest is another"):
        audit(tmp_path / "data", PARTIES)
    forger = Forger(honest)
    forger.path = tmp_path / "data"
    event = next(record for record in forger.records if record.kind == auditor.EVENT)
    forger.alter_event(event.sequence, lambda event: setattr(event, "name", event.name + "-"))
    forger.write(vouched=False)
    with pytest.raises(Unsound, match=f"sequence {event.sequence}: another event"):
        audit(tmp_path / "data", PARTIES)
