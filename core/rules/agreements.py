"""Agreements: what the city, its operators and its acquirers have agreed on, as a TOML file.

    version = "2026-1"
    city = 5980                          # our own clearing-centre code

    [[agreement]]                        # one participant, from a date on
    participant = "operator:bus"         # or "acquirer:…"; "operator:*", "acquirer:*": all that are not named
    from = 2026-01-01
    until = 2026-12-31                   # the last day; without it, until the next one or for ever
    name = "市公交公司"                   # holder of the account that settlement pays to
    bank_code = "105598000001"
    account_number = "44001234567890"
    category = "4131"                    # merchant category
    appeal_days = 30                     # a tap may come in so many days after it was made
    deny_list_hours = 24                 # in which its terminals must fetch the deny list
    tap_fen_max = 50_000                 # more than this in one tap is kept back
    fee = { rate_bp = 30, minimum_fen = 0, cap_fen = 500, per = "tap", refunds = "kept" }
    concessions = { city = 7, operator = 3 }
    debit_cap = { amount_fen = 1_000_000, action = "block" }

    [[transfer]]                         # two taps of one card, one after the other, at two operators
    operators = ["operator:bus", "operator:metro"]
    from = 2026-01-01
    within_minutes = 60
    shares = [6, 4]

    [[account]]                          # of the scheme itself; "float" pays, and must be there to settle
    participant = "float"                # or "fees", "subsidy:city", and "city:NNNN" for other cities
    from = 2026-01-01
    name = "一卡通备付金"
    bank_code = "105598000001"
    account_number = "44009876543210"

Dates of one participant (or pair of operators) must neither overlap nor leave a gap. Who is not named, and no "…:*" stands for,
has no agreement: clearing refuses, and names them."""

import dataclasses
import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from yikatong.core import limits
from yikatong.core.day.positions import Payee
from yikatong.core.errors import YikatongError
from yikatong.core.rules.source import Fields, Source

ACCOUNT_HOLDER: Final = r"float|fees|subsidy:[a-z0-9-]{1,32}|city:[0-9]{4}"
PARTICIPANT: Final = r"(operator|acquirer):[^\x00-\x1f\x7f]{1,64}"
DAY: Final = datetime.timedelta(days=1)
FOR_EVER: Final = datetime.date.max


class Per(StrEnum):
    """What a fee's rate, minimum and cap apply to."""

    TAP = "tap"  # each tap, capture and refund, rounded to the fen, half up
    WINDOW = "window"  # the sum of a settlement date, rounded half up


class Refunds(StrEnum):
    """What becomes of the fee on money that is given back."""

    KEPT = "kept"
    RETURNED = "returned"


class CapAction(StrEnum):
    """What a position below a net debit cap does."""

    WARN = "warn"
    BLOCK = "block"


@dataclass(frozen=True)
class Fee:
    """What the city keeps of what a participant earns. The rate is in basis points (ten-thousandths)."""

    rate_bp: int = 0
    minimum_fen: int = 0
    cap_fen: int = limits.FEE_FEN_MAX
    per: Per = Per.TAP
    refunds: Refunds = Refunds.KEPT


@dataclass(frozen=True)
class Agreement:
    """What is agreed with one participant for some time; `first` and `last` are its first and last settlement dates."""

    participant: str
    first: datetime.date
    last: datetime.date
    payee: Payee | None  # None: a "…:*" names no account, so money waits until one is named
    category: str
    appeal_days: int
    deny_list_hours: int
    tap_fen_max: int
    fee: Fee
    concession_city: int  # shares
    concession_operator: int
    debit_cap_fen: int | None
    debit_cap_action: CapAction
    city: int  # clearing-centre code that the operator stands for, or 0: it is one of ours


@dataclass(frozen=True)
class Transfer:
    """How two operators divide what one card paid them in two taps, one soon after the other; shares in the operators' order."""

    operators: tuple[str, str]
    first: datetime.date
    last: datetime.date
    within_minutes: int
    shares: tuple[int, int]


@dataclass(frozen=True)
class Account:
    """Where money of the scheme itself, or of another city, goes to for some time."""

    payee: Payee
    first: datetime.date
    last: datetime.date


Dated = TypeVar("Dated", Agreement, Transfer, Account)


class AgreementMissing(YikatongError):
    """Participants without an agreement on a date; the message names them all."""

    def __init__(self, participants: list[str], date: datetime.date, file: str) -> None:
        super().__init__(f"{file}: there is no agreement on {date} with {', '.join(participants)}, and none with all others")
        self.participants = participants
        self.date = date


def _span(fields: Fields) -> tuple[datetime.date, datetime.date]:
    first: datetime.date = fields.date("from")
    until: datetime.date = fields.date("until", FOR_EVER)
    if until < first:
        raise fields.error("until", f"{until} is before {first}, where it begins")
    return first, until


def _fee(fields: Fields) -> Fee:
    if "rate_bp" in fields and "rate_permille" in fields:
        raise fields.error("rate_permille", "rate_bp stands there too: one of them is wanted")
    if "rate_permille" in fields:
        rate_bp = 10 * fields.integer("rate_permille", 0, 1_000)
    else:
        rate_bp = fields.integer("rate_bp", 0, 10_000, 0)
    minimum_fen = fields.integer("minimum_fen", 0, limits.FEE_FEN_MAX, 0)
    cap_fen = fields.integer("cap_fen", 0, limits.FEE_FEN_MAX, limits.FEE_FEN_MAX)
    if cap_fen < minimum_fen:
        raise fields.error("cap_fen", f"{cap_fen} is below minimum_fen, {minimum_fen}")
    fee = Fee(
        rate_bp, minimum_fen, cap_fen,
        fields.choice("per", {per.value: per for per in Per}, Per.TAP),
        fields.choice("refunds", {refunds.value: refunds for refunds in Refunds}, Refunds.KEPT),
    )  # fmt: skip
    fields.done()
    return fee


def _concessions(fields: Fields) -> tuple[int, int]:
    city = fields.integer("city", 0, limits.SHARE_MAX, 0)
    operator = fields.integer("operator", 0, limits.SHARE_MAX, 0)
    fields.done()
    if city + operator == 0:
        raise fields.error("", "somebody must bear them: a share above 0 is wanted")
    return city, operator


def _debit_cap(fields: Fields) -> tuple[int, CapAction]:
    amount_fen = fields.integer("amount_fen", 0, limits.DEBIT_CAP_FEN_MAX)
    action = fields.choice("action", {action.value: action for action in CapAction})
    fields.done()
    return amount_fen, action


def _payee(fields: Fields, participant: str) -> Payee | None:
    if participant.endswith(":*"):
        for name in ("name", "bank_code", "account_number"):
            if name in fields:
                raise fields.error(name, "is one participant's, and this agreement is with all that are not named")
        return None
    return _account_of(fields, participant)


def _account_of(fields: Fields, participant: str) -> Payee:
    return Payee(
        participant,
        fields.text("name", pattern=r"[^\x00-\x1f\x7f]{1,70}"),  # Max70Text of ISO 20022
        fields.text("bank_code", pattern=r"[0-9]{12}"),
        fields.text("account_number", pattern=r"[0-9]{1,32}"),
    )


def _agreement(fields: Fields) -> Agreement:
    participant = fields.text("participant", pattern=PARTICIPANT)
    first, last = _span(fields)
    cap_fen, cap_action = _debit_cap(fields.table("debit_cap")) if "debit_cap" in fields else (None, CapAction.WARN)
    city, operator = _concessions(fields.table("concessions")) if "concessions" in fields else (0, 1)
    agreement = Agreement(
        participant, first, last,
        payee=_payee(fields, participant),
        category=fields.text("category", pattern=r"[0-9]{4}"),
        appeal_days=fields.integer("appeal_days", 0, limits.APPEAL_DAYS_MAX),
        deny_list_hours=fields.integer("deny_list_hours", 0, limits.DENY_LIST_HOURS_MAX),
        tap_fen_max=fields.integer("tap_fen_max", 1, limits.TAP_FEN_MAX, limits.TAP_FEN_MAX),
        fee=_fee(fields.table("fee")) if "fee" in fields else Fee(),
        concession_city=city, concession_operator=operator, debit_cap_fen=cap_fen, debit_cap_action=cap_action,
        city=fields.integer("city", 1, 9999, 0),
    )  # fmt: skip
    if agreement.city and not participant.startswith("operator:"):
        raise fields.error("city", "only an operator can stand for another city")
    fields.done()
    return agreement


def _transfer(fields: Fields, agreements: dict[str, list[Agreement]]) -> Transfer:
    operators = fields.items("operators", str)
    if len(operators) != 2 or operators[0] == operators[1]:
        raise fields.error("operators", f"two operators are wanted, not {operators}")
    for operator in operators:
        if operator.endswith(":*") or operator not in agreements:
            raise fields.error("operators", f"there is no agreement with {operator!r}")
    first, last = _span(fields)
    shares = fields.items("shares", int)
    if len(shares) != 2 or not all(0 <= share <= limits.SHARE_MAX for share in shares) or sum(shares) == 0:
        raise fields.error("shares", f"two shares of 0 to {limits.SHARE_MAX}, not both 0, are wanted, not {shares}")
    transfer = Transfer(
        (operators[0], operators[1]), first, last,
        fields.integer("within_minutes", 1, limits.TRANSFER_MINUTES_MAX), (shares[0], shares[1]),
    )  # fmt: skip
    fields.done()
    return transfer


def _in_order(read: list[tuple[Fields, Dated]], of: str) -> list[Dated]:
    """What is agreed with one participant or pair, in order of dates: each begins on the day after the one before it ends. One
    without an end of its own ends where the next begins."""
    read = sorted(read, key=lambda pair: pair[1].first)
    ordered = [read[0][1]]
    for fields, after in read[1:]:
        before = ordered[-1]
        if before.last == FOR_EVER and before.first < after.first:
            before = ordered[-1] = dataclasses.replace(before, last=after.first - DAY)
        if after.first <= before.last:
            raise fields.error("from", f"{after.first} lies within another with {of}, of {before.first} to {before.last}")
        if after.first != before.last + DAY:
            raise fields.error("from", f"{of} has none from {before.last + DAY} to {after.first - DAY}")
        ordered.append(after)
    return ordered


class Agreements:
    """All agreements of a file. Raises RuleError: then nothing of the file is in force."""

    def __init__(self, source: Source) -> None:
        self.file = source.name
        top = source.fields()
        self.version = top.text("version", pattern=r"[A-Za-z0-9._-]{1,32}")
        self.city = top.integer("city", 1, 9999)
        read: dict[str, list[tuple[Fields, Agreement]]] = {}
        for fields in top.tables("agreement"):
            agreement = _agreement(fields)
            if agreement.city == self.city:
                raise fields.error("city", f"{self.city} is our own")
            read.setdefault(agreement.participant, []).append((fields, agreement))
        if not read:
            raise top.error("agreement", "at least one [[agreement]] is wanted")
        self._agreements = {participant: _in_order(found, participant) for participant, found in read.items()}
        pairs: dict[tuple[str, ...], list[tuple[Fields, Transfer]]] = {}
        for fields in top.tables("transfer"):
            transfer = _transfer(fields, self._agreements)
            pairs.setdefault(tuple(sorted(transfer.operators)), []).append((fields, transfer))
        self._transfers = [transfer for pair, found in pairs.items() for transfer in _in_order(found, " and ".join(pair))]
        accounts: dict[str, list[tuple[Fields, Account]]] = {}
        for fields in top.tables("account"):
            participant = fields.text("participant", pattern=ACCOUNT_HOLDER)
            account = Account(_account_of(fields, participant), *_span(fields))
            fields.done()
            accounts.setdefault(participant, []).append((fields, account))
        self._accounts = {participant: _in_order(found, participant) for participant, found in accounts.items()}
        top.done()

    @classmethod
    def read(cls, path: Path) -> "Agreements":
        return cls(Source.read(path))

    def find(self, participant: str, date: datetime.date) -> Agreement | None:
        """The agreement with a participant on a settlement date: its own, else the one with all that are not named."""
        for name in (participant, participant.partition(":")[0] + ":*"):
            for agreement in self._agreements.get(name, ()):
                if agreement.first <= date <= agreement.last:
                    return agreement
            if name in self._agreements:
                return None  # named, but not on this date: the agreement with all others is not meant for it
        return None

    def of(self, participants: Iterable[str], date: datetime.date) -> dict[str, Agreement]:
        """The agreement with each participant on a date. Raises AgreementMissing, which names all that have none."""
        found = {participant: self.find(participant, date) for participant in participants}
        if missing := sorted(participant for participant, agreement in found.items() if agreement is None):
            raise AgreementMissing(missing, date, self.file)
        return {participant: agreement for participant, agreement in found.items() if agreement is not None}

    def transfers(self, date: datetime.date) -> list[Transfer]:
        """The rules for transfers in force on a date."""
        return [transfer for transfer in self._transfers if transfer.first <= date <= transfer.last]

    def payees(self, date: datetime.date) -> dict[str, Payee]:
        """Where the money of each participant that names an account goes to on a date."""
        found: dict[str, Payee] = {}
        for agreements in self._agreements.values():
            for agreement in agreements:
                if agreement.payee is not None and agreement.first <= date <= agreement.last:
                    found[agreement.participant] = agreement.payee
        for accounts in self._accounts.values():
            found |= {account.payee.participant: account.payee for account in accounts if account.first <= date <= account.last}
        return found
