"""What a finance clerk prints: the settlement report of one window, and each participant's statement of it.

Each is one HTML file that needs nothing else: no scripts, no network, A4 when printed. Amounts are yuan, times UTC+8. Names come
from other parties and are shown as text, whatever they hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from yikatong.core import files, types
from yikatong.core.day import charts
from yikatong.core.day.charts import escaped
from yikatong.core.day.positions import FLOAT, Netted, Payee, Position
from yikatong.core.day.reconcile import DifferenceKind, InstructionState
from yikatong.core.day.settle import DESCRIPTIONS, Instruction
from yikatong.core.journal import JournalReader
from yikatong.core.money import grouped_yuan

BARS_MAX: Final = 20  # in one chart; what is less stands together
_UTC8_US: Final = 8 * 3_600_000_000
_HOUR_US: Final = 3_600_000_000

STYLE: Final = """
@page { size: A4; margin: 16mm 14mm; }
:root { --ink: #1d2733; --soft: #5c6773; --rule: #c9d0d8; --owed: #2f6f9f; --owes: #b4552d; }
* { box-sizing: border-box; }
body { color: var(--ink); background: #fff; max-width: 190mm; margin: 8mm auto; padding: 0 4mm;
       font: 10.5pt/1.45 "Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", sans-serif; }
h1 { font-size: 17pt; margin: 0 0 1mm; } h2 { font-size: 12pt; margin: 8mm 0 2mm; break-after: avoid; }
p.sub, .note { color: var(--soft); margin: 0 0 3mm; font-size: 9pt; }
dl { display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: .6mm 4mm; margin: 3mm 0;
     font-size: 9.5pt; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: 9.5pt; }
thead { display: table-header-group; } tfoot { display: table-row-group; } tr { break-inside: avoid; }
th { text-align: left; font-weight: 600; border-bottom: 1.2pt solid var(--ink); padding: 1mm 1.5mm; vertical-align: bottom; }
td { border-bottom: .4pt solid var(--rule); padding: .9mm 1.5mm; overflow-wrap: anywhere; vertical-align: top; }
tfoot td { border-top: 1.2pt solid var(--ink); border-bottom: 0; font-weight: 600; }
.n { text-align: right; white-space: nowrap; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
.t { white-space: nowrap; overflow-wrap: normal; }
td.id { font: 8pt ui-monospace, "Noto Sans Mono", Consolas, monospace; }
svg.chart { width: 100%; height: auto; break-inside: avoid; } svg text { font-size: 11px; fill: var(--ink); }
.owed { fill: var(--owed); } .owes { fill: var(--owes); }
.axis { stroke: var(--ink); stroke-width: 1; } .grid { stroke: var(--rule); stroke-width: .6; }
.sign { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10mm; margin-top: 16mm; break-inside: avoid; }
.sign div { border-top: .6pt solid var(--ink); padding-top: 1mm; color: var(--soft); font-size: 9pt; }
@media print { body { margin: 0; padding: 0; max-width: none; } * { print-color-adjust: exact; } }
"""

STATES: Final[dict[InstructionState, str]] = {
    InstructionState.ISSUED: "已发送 issued",
    InstructionState.PAID: "已到账 paid",
    InstructionState.RETURNED: "已退回 returned",
    InstructionState.UNKNOWN: "待查 unknown",
    InstructionState.REISSUED: "已重发 reissued",
}
DIFFERENCES: Final[dict[DifferenceKind, str]] = {
    DifferenceKind.MISSING_HERE: "我方缺 missing here",
    DifferenceKind.MISSING_THERE: "对方缺 missing there",
    DifferenceKind.AMOUNT: "金额不符 amount",
    DifferenceKind.DUPLICATE: "重复 duplicate",
    DifferenceKind.LATE: "跨日或逾期 late",
    DifferenceKind.TIME: "时间不符 time",
}


@dataclass(frozen=True)
class Figures:
    """Counts of one window's taps."""

    taps_per_hour: tuple[int, ...]  # 24, charged taps by the hour (UTC+8) at which the core took them
    outcomes: Mapping[str, int]  # by name of result, all taps


def figures_of(reader: JournalReader, first_sequence: int, last_sequence: int) -> Figures:
    """Figures of a range of the journal, both ends included."""
    per_hour, outcomes = np.zeros(24, np.int64), np.zeros(256, np.int64)
    for entry in reader.entries(first_sequence):
        if entry.first_sequence > last_sequence:
            break
        records: npt.NDArray[Any] = entry.array
        if entry.first_sequence < first_sequence or entry.first_sequence + entry.count - 1 > last_sequence:
            records = records[(records["sequence"] >= first_sequence) & (records["sequence"] <= last_sequence)]
        taps = records[records["kind"] == types.RecordKind.TAP]
        outcomes += np.bincount(taps["result"], minlength=256)
        charged = taps[np.isin(taps["result"], types.CHARGED)]
        per_hour += np.bincount((charged["time_us"] + _UTC8_US) // _HOUR_US % 24, minlength=24)
    named = {result.name: int(outcomes[result]) for result in types.Result if outcomes[result]}
    return Figures(tuple(per_hour.tolist()), named)


@dataclass(frozen=True)
class Payment:
    """An instruction and what became of it."""

    instruction: Instruction
    state: InstructionState
    booked_at_us: int = 0  # 0: not yet
    reason: str = ""  # of a return


# ---- parts of a page ----


def _page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="zh-CN"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{escaped(title)}</h1><p class="sub">{escaped(subtitle)}</p>\n{chr(10).join(parts)}\n</body></html>\n'
    )


def _facts(pairs: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in pairs) + "</dl>"


def _table(headings: Sequence[str], kinds: str, rows: Sequence[Sequence[str]], foot: Sequence[str] = ()) -> str:
    """A table; `kinds` has a letter for each column: t text, w text that is not wrapped, n number (right-aligned), i
    an id."""
    classes = {"t": "", "w": ' class="t"', "n": ' class="n"', "i": ' class="id"'}

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{classes[kind]}>{escaped(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    bottom = f"<tfoot><tr>{cells('td', foot)}</tr></tfoot>" if foot else ""
    return f"<table><thead><tr>{cells('th', headings)}</tr></thead>\n<tbody>{body}</tbody>{bottom}</table>"


def _date(date: int) -> str:
    return f"{date // 10000:04d}-{date // 100 % 100:02d}-{date % 100:02d}"


def _time(time_us: int) -> str:
    return files.local_time(time_us).replace("T", " ").removesuffix("+08:00") if time_us else "—"


def _signatures() -> str:
    return '<div class="sign"><div>制表 prepared by</div><div>复核 checked by</div><div>日期 date</div></div>'


def _payments_table(payments: Sequence[Payment]) -> str:
    rows = [
        (
            payment.instruction.participant, payment.instruction.instruction_id, grouped_yuan(payment.instruction.amount_fen),
            STATES[payment.state], _time(payment.booked_at_us), payment.reason,
        )
        for payment in payments
    ]  # fmt: skip
    headings = ("参与方 participant", "指令 instruction", "金额 CNY", "状态 state", "入账 booked", "原因 reason")
    return _table(headings, "tinwwt", rows)


def _hours_chart(figures: Figures) -> str:
    hours = [f"{hour:02d}" for hour in range(24)]
    return charts.columns("每小时刷卡 Charged taps per hour (UTC+8)", hours, figures.taps_per_hour)


# ---- the two papers ----


def settlement_report(
    netted: Netted,
    made_at_us: int,
    figures: Figures,
    payments: Sequence[Payment] = (),
    differences: Mapping[DifferenceKind, int] | None = None,
) -> str:
    """The report of one window: positions, where they come from, payments, differences found so far, and charts."""
    positions = netted.positions
    owed_fen = sum(position.net_fen for position in positions if position.net_fen > 0)
    owes_fen = sum(position.net_fen for position in positions if position.net_fen < 0)
    parts = [
        _facts([
            ("清算日期 settlement date", _date(netted.settlement_date)),
            ("编制时间 made at (UTC+8)", _time(made_at_us)),
            ("日志序号 journal records", f"{netted.first_sequence:,} – {netted.last_sequence:,}"),
            ("参与方 participants", f"{len(positions):,}"),
            ("应付合计 owed to participants", f"{grouped_yuan(owed_fen)} CNY"),
            ("应收合计 owed by participants", f"{grouped_yuan(-owes_fen)} CNY"),
        ]),
        "<h2>轧差头寸 Net positions</h2>",
        _table(
            ("参与方 participant", "笔数 records", "应付 owed to it", "应收 owed by it"),
            "tnnn",
            [
                (
                    position.participant,
                    f"{sum(line.count for line in position.lines):,}",
                    grouped_yuan(position.net_fen) if position.net_fen > 0 else "",
                    grouped_yuan(-position.net_fen) if position.net_fen < 0 else "",
                )
                for position in positions
            ],
            ("合计 total", "", grouped_yuan(owed_fen), grouped_yuan(-owes_fen)),
        ),
        "<h2>各参与方净额 Net amount per participant (CNY, without the float)</h2>",
        charts.bars("Net amount per participant, CNY", _largest(positions), grouped_yuan),
        "<h2>每小时刷卡 Charged taps per hour (UTC+8)</h2>",
        _hours_chart(figures),
        "<h2>处理结果 Outcomes of taps</h2>",
        charts.bars(
            "Outcomes of taps", sorted(figures.outcomes.items(), key=lambda item: (-item[1], item[0])), lambda count: f"{count:,}"
        ),
        "<h2>构成 What positions come from</h2>",
        _by_kind(positions),
    ]  # fmt: skip
    if payments:
        parts += ["<h2>收付指令 Payments and claims</h2>", _payments_table(payments)]
    if differences is not None:
        rows = [(DIFFERENCES[kind], f"{count:,}") for kind, count in sorted(differences.items()) if count]
        parts.append("<h2>对账差异 Differences</h2>")
        parts.append(_table(("种类 kind", "笔数 count"), "tn", rows) if rows else '<p class="note">无差异 none</p>')
    parts.append(_signatures())
    return _page(f"结算报告 Settlement report {_date(netted.settlement_date)}", "一卡通清算 Yikatong clearing", parts)


def _largest(positions: Sequence[Position]) -> list[tuple[str, int]]:
    """The positions furthest from zero, largest first, and the rest together; without the float, which is the other side of all
    of them."""
    others = [position for position in positions if position.participant != FLOAT]
    ordered = sorted(others, key=lambda position: (-abs(position.net_fen), position.participant))
    shown = [(position.participant, position.net_fen) for position in ordered[:BARS_MAX]]
    if rest := ordered[BARS_MAX:]:
        shown.append((f"其余 {len(rest)} others", sum(position.net_fen for position in rest)))
    return shown


def _by_kind(positions: Sequence[Position]) -> str:
    rows = []
    for kind, description in DESCRIPTIONS.items():
        lines = [line for position in positions for line in position.lines if line.kind is kind]
        if lines:
            to_fen = sum(line.amount_fen for line in lines if line.amount_fen > 0)
            by_fen = sum(line.amount_fen for line in lines if line.amount_fen < 0)
            rows.append((f"{description} {kind.value}", grouped_yuan(to_fen), grouped_yuan(-by_fen)))
    return _table(("项目 kind", "应付 owed to", "应收 owed by"), "tnn", rows)


def statement(
    netted: Netted,
    position: Position,
    made_at_us: int,
    figures: Figures | None = None,
    payments: Sequence[Payment] = (),
    payee: Payee | None = None,
) -> str:
    """One participant's statement of one window."""
    facts = [
        ("参与方 participant", position.participant),
        ("清算日期 settlement date", _date(netted.settlement_date)),
        ("编制时间 made at (UTC+8)", _time(made_at_us)),
        ("日志序号 journal records", f"{netted.first_sequence:,} – {netted.last_sequence:,}"),
    ]
    if payee is not None:
        # The account's number is for whoever knows it already.
        facts += [("户名 account holder", payee.name), ("账号 account", f"…{payee.account_number[-4:]}")]
    parts = [
        _facts(facts),
        "<h2>明细 Lines</h2>",
        _table(
            ("项目 kind", "笔数 records", "金额 CNY"),
            "tnn",
            [(f"{DESCRIPTIONS[line.kind]} {line.kind.value}", f"{line.count:,}", grouped_yuan(line.amount_fen))
             for line in position.lines],
            ("净额 net", f"{sum(line.count for line in position.lines):,}", grouped_yuan(position.net_fen)),
        ),
    ]  # fmt: skip
    if figures is not None:
        parts += ["<h2>每小时刷卡 Charged taps per hour (UTC+8)</h2>", _hours_chart(figures)]
    if payments:
        parts += ["<h2>收付指令 Payments and claims</h2>", _payments_table(payments)]
    parts.append(_signatures())
    return _page(
        f"对账单 Statement {position.participant} {_date(netted.settlement_date)}", "一卡通清算 Yikatong clearing", parts
    )
