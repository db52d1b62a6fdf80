"""The stage of a day after netting: what each participant is told, and what the bank is told to pay.

For one netted window a folder is made, whole or not at all:

    <participant>.utf-8.csv, <participant>.gb18030.csv   each participant's settlement file (see settlement_csv)
    payments.pain.001.xml                                one ISO 20022 credit transfer for each participant that is owed money
    claims.utf-8.csv, claims.gb18030.csv                 one row for each participant that owes: to be drawn from its account
    SM3SUMS                                              the SM3 digest of every file above, by name

Nothing here reads a clock: the time that files show is the journal's, so that writing them again gives the same bytes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from lxml import etree

from yikatong.core import files, limits
from yikatong.core.day.positions import FEES, FLOAT, Line, LineKind, Netted, Payee, Position
from yikatong.core.errors import InvalidRequest
from yikatong.core.files import CODECS, FileError, Sheet
from yikatong.core.journal import sm3
from yikatong.core.money import CURRENCY, parse_yuan, yuan

SETTLEMENT_FORMAT: Final = "yikatong-settlement-1"
CLAIMS_FORMAT: Final = "yikatong-claims-1"
PAIN_NAMESPACE: Final = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"
PAIN_SCHEMA: Final = Path(__file__).parent / "iso20022/pain.001.001.09.subset.xsd"

DESCRIPTIONS: Final[dict[LineKind, str]] = {
    LineKind.TAPS: "刷卡消费",
    LineKind.CAPTURES: "请款",
    LineKind.REFUNDS: "退款",
    LineKind.CORRECTIONS: "票价更正",
    LineKind.CONCESSIONS: "优待补贴",
    LineKind.SPLITS: "换乘分账",
    LineKind.INTER_CITY: "异地互通",
    LineKind.FEES: "手续费",
    LineKind.LIABILITY: "自担损失",
    LineKind.HELD: "暂缓结算",
    LineKind.ADJUSTMENTS: "调账",
    LineKind.DISPUTES: "争议处理",
}
"""What the kinds of line are called on paper."""


@dataclass(frozen=True)
class Instruction:
    """Money that is to move for one participant and window: paid to it (positive) or claimed from it (negative)."""

    instruction_id: str  # unique for good; EndToEndId in the payment message
    settlement_date: int
    participant: str
    amount_fen: int
    attempt: int = 0  # 0 the first time, then one more each time that the bank returned it


def instruction_id(settlement_date: int, participant: str, attempt: int = 0) -> str:
    """The same for the same window, participant and attempt, always: 20260131-<16 hex digits of the name's SM3>-0."""
    return f"{settlement_date}-{sm3(participant.encode())[:8].hex()}-{attempt}"


def check_payee(payee: Payee) -> None:
    """Raises InvalidRequest when a payee cannot stand in a payment message."""
    place = f"payees[{payee.participant}]"
    if not 1 <= len(payee.name) <= 140 or not payee.name.isprintable() or payee.name.strip() != payee.name:
        raise InvalidRequest(f"{place}.name", "1 to 140 printable characters without blanks around them are wanted")
    if not re.fullmatch("[0-9]{12}", payee.bank_code):
        raise InvalidRequest(f"{place}.bank_code", "12 digits are wanted")
    if not re.fullmatch("[0-9]{1,32}", payee.account_number):
        raise InvalidRequest(f"{place}.account_number", "1 to 32 digits are wanted")


def instructions(netted: Netted, payees: Mapping[str, Payee]) -> list[Instruction]:
    """What has to be paid and claimed, in order of participant. The float pays all of it, so it gets none itself; fees stay
    with the float where no account is known for them. Raises InvalidRequest when positions do not sum to zero, or when a
    participant has no usable account."""
    if imbalance_fen := sum(position.net_fen for position in netted.positions):
        raise InvalidRequest("positions", f"sum to {imbalance_fen} fen, not to zero")
    if FLOAT not in payees:
        raise InvalidRequest(f"payees[{FLOAT}]", "the settlement account is wanted: it pays and is paid")
    check_payee(payees[FLOAT])
    if len({file_stem(position.participant) for position in netted.positions}) < len(netted.positions):
        raise InvalidRequest("positions", "a participant stands there twice")
    made: list[Instruction] = []
    for position in netted.positions:
        participant, net_fen = position.participant, position.net_fen
        if not net_fen or participant == FLOAT or (participant == FEES and FEES not in payees):
            continue
        if participant not in payees:
            raise InvalidRequest(f"payees[{participant}]", "no account is known, but there is money to settle")
        check_payee(payees[participant])
        made_id = instruction_id(netted.settlement_date, participant)
        made.append(Instruction(made_id, netted.settlement_date, participant, net_fen))
    return made


# ---- a participant's settlement file ----


@dataclass(frozen=True)
class SettlementFile:
    """What a participant is told about one window."""

    settlement_date: int
    first_sequence: int  # of the window's journal records
    last_sequence: int
    made_at_us: int
    instruction_id: str  # empty where no money moves
    position: Position


_SETTLEMENT_HEADERS: Final = (
    "format", "participant", "settlement_date", "first_sequence", "last_sequence", "currency", "made_at", "instruction_id",
)  # fmt: skip
_SETTLEMENT_COLUMNS: Final = ("kind", "description", "count", "amount_fen", "amount")
_SETTLEMENT_TOTALS: Final = ("records", "amount_fen", "amount")


def settlement_csv(told: SettlementFile, encoding: str) -> bytes:
    """A settlement file's bytes (files.py has the form): a row LINE for each line of the position; `amount` says in yuan what
    `amount_fen` says in fen; positive is owed to the participant. TOTAL: rows, records, net. Encoding "UTF-8" or "GB18030"."""
    position = told.position
    return files.build(
        encoding,
        list(zip(_SETTLEMENT_HEADERS, (
            SETTLEMENT_FORMAT, position.participant, told.settlement_date, told.first_sequence, told.last_sequence, CURRENCY,
            files.local_time(told.made_at_us), told.instruction_id,
        ), strict=True)),
        "LINE",
        _SETTLEMENT_COLUMNS,
        [
            (line.kind.value, DESCRIPTIONS[line.kind], line.count, line.amount_fen, yuan(line.amount_fen))
            for line in position.lines
        ],
        (sum(line.count for line in position.lines), position.net_fen, yuan(position.net_fen)),
    )  # fmt: skip


def read_settlement_csv(name: str, raw: bytes) -> SettlementFile:
    """A settlement file, read back and checked: digest, encoding, every field, no kind of line twice, totals. Raises
    FileError with line and field; then nothing of the file counts."""
    sheet = Sheet(
        name,
        raw,
        headers=_SETTLEMENT_HEADERS,
        tag="LINE",
        columns=_SETTLEMENT_COLUMNS,
        totals=_SETTLEMENT_TOTALS,
        digest_wanted=True,
        rows_max=limits.FILE_ROWS_MAX,
    )
    sheet.header("format", files.among({SETTLEMENT_FORMAT: None}))
    sheet.header("currency", files.among({CURRENCY: None}))
    lines: dict[LineKind, Line] = {}
    for row in sheet.rows:
        kind = row.get("kind", files.among({kind.value: kind for kind in LineKind}))
        if kind in lines:
            row.fail("kind", f"{kind.value} is there twice")
        row.get("description", files.among({DESCRIPTIONS[kind]: None}))
        line = Line(kind, row.get("count", files.parse_count), row.get("amount_fen", files.parse_integer))
        if row.get("amount", parse_yuan) != line.amount_fen:
            row.fail("amount", f"is not what amount_fen says, {yuan(line.amount_fen)}")
        lines[kind] = line
    position = Position(sheet.header("participant", files.text_of(limits.PARTICIPANT_CHARACTERS_MAX)), tuple(lines.values()))
    records = sum(line.count for line in lines.values())
    if sheet.total.get("records", files.parse_count) != records:
        sheet.total.fail("records", f"the rows come to {records}")
    if sheet.total.get("amount_fen", files.parse_integer) != position.net_fen:
        sheet.total.fail("amount_fen", f"the rows come to {position.net_fen}")
    if sheet.total.get("amount", parse_yuan) != position.net_fen:
        sheet.total.fail("amount", f"the rows come to {yuan(position.net_fen)}")
    told = SettlementFile(
        settlement_date=sheet.header("settlement_date", files.parse_date),
        first_sequence=sheet.header("first_sequence", files.parse_count),
        last_sequence=sheet.header("last_sequence", files.parse_count),
        made_at_us=sheet.header("made_at", files.parse_local_time),
        instruction_id=sheet.header("instruction_id", files.text_of(35, "[0-9a-f-]*")),
        position=position,
    )
    if told.instruction_id.rpartition("-")[0] not in ("", instruction_id(told.settlement_date, position.participant)[:-2]):
        raise FileError(name, sheet.headers["instruction_id"].line, "instruction_id", "is of another window or participant")
    return told


# ---- what the bank is told ----


@cache
def _schema() -> etree.XMLSchema:
    return etree.XMLSchema(etree.parse(str(PAIN_SCHEMA)))


def _add(parent: etree._Element, path: str, text: str) -> etree._Element:
    """Put text under a path of elements, "Id/Othr/Id", that is made new below `parent`."""
    for tag in path.split("/"):
        parent = etree.SubElement(parent, f"{{{PAIN_NAMESPACE}}}{tag}")
    parent.text = text
    return parent


def _add_bank(parent: etree._Element, tag: str, bank_code: str) -> None:
    member = etree.SubElement(
        etree.SubElement(etree.SubElement(parent, f"{{{PAIN_NAMESPACE}}}{tag}"), f"{{{PAIN_NAMESPACE}}}FinInstnId"),
        f"{{{PAIN_NAMESPACE}}}ClrSysMmbId",
    )
    _add(member, "ClrSysId/Cd", "CNAPS")
    _add(member, "MmbId", bank_code)


def payments_xml(message_id: str, made_at_us: int, paid: Sequence[Instruction], payees: Mapping[str, Payee]) -> bytes:
    """An ISO 20022 pain.001.001.09 message with one credit transfer for each instruction, which must all pay (and be one at
    least); to be executed on the day (UTC+8) that it was made. It has been validated against iso20022/."""
    count, sum_fen = str(len(paid)), sum(instruction.amount_fen for instruction in paid)
    payer = payees[FLOAT]
    document = etree.Element(f"{{{PAIN_NAMESPACE}}}Document", nsmap={None: PAIN_NAMESPACE})
    initiation = etree.SubElement(document, f"{{{PAIN_NAMESPACE}}}CstmrCdtTrfInitn")
    header = etree.SubElement(initiation, f"{{{PAIN_NAMESPACE}}}GrpHdr")
    _add(header, "MsgId", message_id)
    _add(header, "CreDtTm", files.local_time(made_at_us))
    _add(header, "NbOfTxs", count)
    _add(header, "CtrlSum", yuan(sum_fen))
    _add(header, "InitgPty/Nm", payer.name)
    block = etree.SubElement(initiation, f"{{{PAIN_NAMESPACE}}}PmtInf")
    _add(block, "PmtInfId", message_id)
    _add(block, "PmtMtd", "TRF")
    _add(block, "NbOfTxs", count)
    _add(block, "CtrlSum", yuan(sum_fen))
    _add(block, "ReqdExctnDt/Dt", files.local_time(made_at_us)[:10])
    _add(block, "Dbtr/Nm", payer.name)
    _add(block, "DbtrAcct/Id/Othr/Id", payer.account_number)
    _add_bank(block, "DbtrAgt", payer.bank_code)
    for instruction in paid:
        payee = payees[instruction.participant]
        transfer = etree.SubElement(block, f"{{{PAIN_NAMESPACE}}}CdtTrfTxInf")
        _add(transfer, "PmtId/EndToEndId", instruction.instruction_id)
        _add(transfer, "Amt/InstdAmt", yuan(instruction.amount_fen)).set("Ccy", CURRENCY)
        _add_bank(transfer, "CdtrAgt", payee.bank_code)
        _add(transfer, "Cdtr/Nm", payee.name)
        _add(transfer, "CdtrAcct/Id/Othr/Id", payee.account_number)
        _add(transfer, "RmtInf/Ustrd", f"一卡通清算 {instruction.settlement_date} {instruction.participant}"[:140])
    written = etree.tostring(document, xml_declaration=True, encoding="UTF-8", pretty_print=True)
    check_payments_xml("payments", written)
    return bytes(written)


def check_payments_xml(name: str, raw: bytes) -> None:
    """Raises FileError, with the line, when a payment message does not follow the schema or its control sums are wrong."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        document = etree.fromstring(raw, parser)
    except etree.XMLSyntaxError as error:
        raise FileError(name, error.lineno or 1, "", f"is not XML: {error.msg}") from error
    schema = _schema()
    if not schema.validate(document):
        fault = schema.error_log[0]
        raise FileError(name, fault.line, fault.path or "", fault.message)
    spaces = {"p": PAIN_NAMESPACE}
    amounts = [parse_yuan(amount.text or "") for amount in document.iterfind(".//p:InstdAmt", spaces)]
    for tag, wanted in (("NbOfTxs", str(len(amounts))), ("CtrlSum", yuan(sum(amounts)))):
        for element in document.iterfind(f".//p:{tag}", spaces):
            if element.text != wanted:
                raise FileError(name, element.sourceline, tag, f"{wanted} is wanted, not {element.text}")


def claims_csv(
    settlement_date: int, made_at_us: int, claimed: Sequence[Instruction], payees: Mapping[str, Payee], encoding: str
) -> bytes:
    """Claims on participants that owe, as the bank collects them under the city's standing mandates: a row CLAIM each with
    the account to draw on and a positive amount in yuan. TOTAL: rows, sum."""
    rows = []
    for instruction in claimed:
        payee = payees[instruction.participant]
        rows.append((
            instruction.instruction_id, instruction.participant, payee.name, payee.bank_code, payee.account_number,
            yuan(-instruction.amount_fen),
        ))  # fmt: skip
    return files.build(
        encoding,
        [
            ("format", CLAIMS_FORMAT), ("settlement_date", settlement_date), ("currency", CURRENCY),
            ("made_at", files.local_time(made_at_us)), ("to_account", payees[FLOAT].account_number),
        ],
        "CLAIM",
        ("instruction_id", "participant", "name", "bank_code", "account_number", "amount"),
        rows,
        (yuan(-sum(instruction.amount_fen for instruction in claimed)),),
    )  # fmt: skip


def bank_files(
    settlement_date: int, attempt: int, made_at_us: int, orders: Iterable[Instruction], payees: Mapping[str, Payee]
) -> dict[str, bytes]:
    """What goes to the bank, by file name; a file that would be empty is left out. For instructions that were returned and
    are issued anew, `attempt` keeps the message's id apart from the first one's."""
    orders = list(orders)
    paid = [order for order in orders if order.amount_fen > 0]
    claimed = [order for order in orders if order.amount_fen < 0]
    made = {}
    if paid:
        made["payments.pain.001.xml"] = payments_xml(f"YKT-{settlement_date}-{attempt}", made_at_us, paid, payees)
    if claimed:
        for encoding, codec in CODECS.items():
            made[f"claims.{codec}.csv"] = claims_csv(settlement_date, made_at_us, claimed, payees, encoding)
    return made


# ---- the folder ----


def file_stem(participant: str) -> str:
    """A participant's part of a file name: safe in every file system, and apart from all other participants'."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', participant)[:64].strip('-')}-{sm3(participant.encode())[:8].hex()}"


def settlement_files(netted: Netted, payees: Mapping[str, Payee], made_at_us: int) -> dict[str, bytes]:
    """All files of one window, by name. `made_at_us` is journal time. Raises InvalidRequest as `instructions` does."""
    orders = instructions(netted, payees)
    id_of = {order.participant: order.instruction_id for order in orders}
    made: dict[str, bytes] = {}
    for position in netted.positions:
        told = SettlementFile(
            netted.settlement_date, netted.first_sequence, netted.last_sequence, made_at_us,
            id_of.get(position.participant, ""), position,
        )  # fmt: skip
        for encoding, codec in CODECS.items():
            made[f"{file_stem(position.participant)}.{codec}.csv"] = settlement_csv(told, encoding)
    made |= bank_files(netted.settlement_date, 0, made_at_us, orders, payees)
    made["SM3SUMS"] = "".join(f"{sm3(made[name]).hex()}  {name}\n" for name in sorted(made)).encode()
    return made


def write_settlement(folder: Path, netted: Netted, payees: Mapping[str, Payee], made_at_us: int) -> Path:
    """Write all files of one window into a folder of its own (named by the settlement date) under `folder`: all or nothing,
    durable when this returns; again, it finds the same bytes there and does nothing. Returns the folder. Raises InvalidRequest,
    or DataError when the disk refuses or other content is there."""
    target = folder / str(netted.settlement_date)
    files.write_folder(target, settlement_files(netted, payees, made_at_us))
    return target
