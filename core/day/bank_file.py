"""Bank return files: what became of payment instructions, in the manner of camt.053 but as CSV (files.py has the form).

    HEADER,encoding,UTF-8                 or GB18030
    HEADER,format,yikatong-bank-1
    HEADER,statement_id,<1 to 35 characters>     the bank's own name of the file, used once
    HEADER,account,<digits>               the settlement account
    HEADER,currency,CNY
    HEADER,opening_balance,<yuan>         before the first entry
    HEADER,closing_balance,<yuan>         after the last: opening balance and all that was booked
    COLUMNS,instruction_id,amount,status,booked,booked_at,reason
    ENTRY,…
    TOTAL,<entries>,<sum of amount>,<sum of booked>
    DIGEST,SM3,…                          may be left out

One entry for each instruction at most. `amount` is the instruction's: positive to pay, negative to draw. `status` is PAID (the
money has arrived), RETURNED (it has not, or it came back; `reason` says why) or UNKNOWN (the bank cannot say yet). `booked` is
what the entry changed the account's balance by: a payment of 10.00 books -10.00, its later return 10.00, an entry without
movement 0.00."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from yikatong.core import files, limits
from yikatong.core.files import Sheet
from yikatong.core.money import CURRENCY, parse_yuan, yuan

FORMAT: Final = "yikatong-bank-1"
_HEADERS: Final = ("format", "statement_id", "account", "currency", "opening_balance", "closing_balance")
_COLUMNS: Final = ("instruction_id", "amount", "status", "booked", "booked_at", "reason")
_TOTALS: Final = ("amount", "booked")


class BankStatus(Enum):
    """What the bank says of an instruction."""

    PAID = "PAID"
    RETURNED = "RETURNED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class BankEntry:
    """One row."""

    line: int
    instruction_id: str
    amount_fen: int
    status: BankStatus
    booked_fen: int
    booked_at_us: int
    reason: str


@dataclass(frozen=True)
class BankFile:
    """One bank return file, in order of its lines."""

    name: str
    statement_id: str
    account_number: str
    opening_fen: int
    closing_fen: int
    entries: tuple[BankEntry, ...]
    digest: bytes  # SM3 of the bytes before the digest's line, or of all where there is none

    def line_of(self, header: str) -> int:
        """The line of a header."""
        return 2 + _HEADERS.index(header)


def read_bank_csv(name: str, raw: bytes) -> BankFile:
    """A bank return file, checked: digest where there is one, encoding, every field, no instruction twice, totals, balances.
    Raises FileError with line and field; then nothing of the file counts."""
    sheet = Sheet(
        name,
        raw,
        headers=_HEADERS,
        tag="ENTRY",
        columns=_COLUMNS,
        totals=_TOTALS,
        digest_wanted=False,
        rows_max=limits.FILE_ROWS_MAX,
    )
    sheet.header("format", files.among({FORMAT: None}))
    sheet.header("currency", files.among({CURRENCY: None}))
    lines: dict[str, int] = {}
    entries: list[BankEntry] = []
    for row in sheet.rows:
        entry = BankEntry(
            line=row.line,
            instruction_id=row.get("instruction_id", files.text_of(35, "[0-9a-f-]+")),
            amount_fen=row.get("amount", parse_yuan),
            status=row.get("status", files.among({status.value: status for status in BankStatus})),
            booked_fen=row.get("booked", parse_yuan),
            booked_at_us=row.get("booked_at", files.parse_local_time),
            reason=row.get("reason", files.text_of(140, ".*")),
        )
        if entry.instruction_id in lines:
            row.fail("instruction_id", f"{entry.instruction_id} is on line {lines[entry.instruction_id]} already")
        if not entry.amount_fen:
            row.fail("amount", "0.00 is no amount of an instruction")
        if entry.status is BankStatus.UNKNOWN and entry.booked_fen:
            row.fail("booked", "what the bank does not know it cannot have booked")
        if entry.status is BankStatus.RETURNED and not entry.reason:
            row.fail("reason", "is wanted where an instruction was returned")
        lines[entry.instruction_id] = entry.line
        entries.append(entry)
    amount_fen = sum(entry.amount_fen for entry in entries)
    booked_fen = sum(entry.booked_fen for entry in entries)
    for field, wanted_fen in (("amount", amount_fen), ("booked", booked_fen)):
        if sheet.total.get(field, parse_yuan) != wanted_fen:
            sheet.total.fail(field, f"the rows come to {yuan(wanted_fen)}")
    opening_fen, closing_fen = sheet.header("opening_balance", parse_yuan), sheet.header("closing_balance", parse_yuan)
    if opening_fen + booked_fen != closing_fen:
        sheet.headers["closing_balance"].fail(
            "closing_balance", f"opening balance and rows come to {yuan(opening_fen + booked_fen)}"
        )
    return BankFile(
        name=name,
        statement_id=sheet.header("statement_id", files.text_of(35)),
        account_number=sheet.header("account", files.text_of(32, "[0-9]+")),
        opening_fen=opening_fen,
        closing_fen=closing_fen,
        entries=tuple(entries),
        digest=sheet.digest,
    )


def bank_csv(
    statement_id: str, account_number: str, opening_fen: int, entries: Sequence[BankEntry], encoding: str = "UTF-8"
) -> bytes:
    """A bank return file's bytes, for simulated banks. The entries' lines do not matter."""
    booked_fen = sum(entry.booked_fen for entry in entries)
    return files.build(
        encoding,
        [
            ("format", FORMAT), ("statement_id", statement_id), ("account", account_number), ("currency", CURRENCY),
            ("opening_balance", yuan(opening_fen)), ("closing_balance", yuan(opening_fen + booked_fen)),
        ],
        "ENTRY",
        _COLUMNS,
        [
            (entry.instruction_id, yuan(entry.amount_fen), entry.status.value, yuan(entry.booked_fen),
             files.local_time(entry.booked_at_us), entry.reason)
            for entry in entries
        ],
        (yuan(sum(entry.amount_fen for entry in entries)), yuan(booked_fen)),
    )  # fmt: skip
