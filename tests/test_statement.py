"""The papers: what they say is what was netted, names cannot break them, and they need nothing but themselves."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from yikatong.core.day import charts, statement
from yikatong.core.day.positions import Line, LineKind, Netted, Payee, Position
from yikatong.core.day.reconcile import DifferenceKind, InstructionState
from yikatong.core.day.settle import Instruction
from yikatong.core.day.statement import Figures, Payment
from yikatong.core.money import grouped_yuan

MADE_AT_US = 1_769_882_400_000_000  # 2026-02-01T02:00:00+08:00
HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "</title></style></table></svg>",
    "&lt;b&gt; & ' \" <!--",
    "]]> <![CDATA[ <?php",
    "=HYPERLINK(\"http://x\")",
    "‮abc\x00\x1b[31m\n",
    "河" * 60,
]  # fmt: skip
FIGURES = Figures(tuple(range(0, 2400, 100)), {"ACCEPTED": 27_000, "MAC_MISMATCH": 3, "TEST": 12})
VOID = {"meta", "rect", "line", "br"}


class Page(HTMLParser):
    """Elements and texts of a page; fails on anything that is not nested as it should be."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")

    handle_pi = unknown_decl


def day(*names: str) -> Netted:
    positions = [
        Position(f"operator:{name}", (Line(LineKind.TAPS, 1000, 123_456_700 + at), Line(LineKind.FEES, 1000, -700)))
        for at, name in enumerate(names)
    ]
    total_fen = sum(position.net_fen for position in positions)
    return Netted(20260131, 1, 28_000, (Position("float", (Line(LineKind.TAPS, 1000 * len(names), -total_fen),)), *positions))


def payments(netted: Netted) -> list[Payment]:
    states = list(InstructionState)
    return [
        Payment(
            Instruction(f"20260131-{at}", 20260131, position.participant, position.net_fen), states[at % 5], MADE_AT_US, "退<汇>"
        )
        for at, position in enumerate(netted.positions)
    ]


def check_page(text: str) -> Page:
    """It is well nested, needs nothing else, and its charts are SVG."""
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "a", "b"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "src", "style")]
    assert "url(" not in text
    assert "@import" not in text
    assert "@page { size: A4" in text
    assert '<meta charset="utf-8">' in text[:200]
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        check_svg(svg)
    return page


def check_svg(svg: str) -> None:
    """It parses, and nothing is drawn outside."""
    root = etree.fromstring(svg)
    _, _, width, height = (float(number) for number in root.get("viewBox").split())
    for rect in root.iter("{*}rect"):
        x, y, w, h = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width + 0.1
        assert 0 <= y <= y + h <= height + 0.1
    for text in root.iter("{*}text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 <= float(text.get("y")) <= height


def test_report_says_what_was_netted():
    netted = day("bus", "metro", "coach")
    differences = {DifferenceKind.LATE: 1_234, DifferenceKind.AMOUNT: 0}
    page_text = statement.settlement_report(netted, MADE_AT_US, FIGURES, payments(netted), differences)
    page = check_page(page_text)
    assert ["operator:metro", "2,000", "1,234,560.01", ""] in page.rows
    assert ["float", "3,000", "", "3,703,680.03"] in page.rows
    assert ["合计 total", "", "3,703,680.03", "3,703,680.03"] in page.rows
    assert ["刷卡消费 taps", "3,703,701.03", "3,703,680.03"] in page.rows
    assert ["手续费 fees", "0.00", "21.00"] in page.rows
    assert ["跨日或逾期 late", "1,234"] in page.rows
    assert ["金额不符 amount", "0"] not in page.rows
    assert ["operator:bus", "20260131-1", "1,234,560.00", "已到账 paid", "2026-02-01 02:00:00", "退<汇>"] in page.rows
    assert "MAC_MISMATCH: 3" in page.texts
    assert "23: 2,300" in page.texts
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    amounts = re.findall(r"<td([^>]*)>-?[0-9,]+\.[0-9]{2}</td>", page_text)
    assert amounts
    assert set(amounts) == {' class="n"'}


def test_statement_says_what_the_position_says():
    netted = day("bus", "metro")
    payee = Payee("operator:metro", "河源地铁 <有限>", "102598000000", "6222000000001234")
    page = check_page(statement.statement(netted, netted.positions[2], MADE_AT_US, FIGURES, payments(netted)[2:], payee))
    assert ["刷卡消费 taps", "1,000", "1,234,567.01"] in page.rows
    assert ["手续费 fees", "1,000", "-7.00"] in page.rows
    assert ["净额 net", "2,000", "1,234,560.01"] in page.rows
    assert "河源地铁 <有限>" in page.texts
    assert "…1234" in page.texts
    assert not any("62220000" in text for text in page.texts)  # the whole number is nobody's business
    empty = check_page(statement.statement(netted, Position("operator:idle", ()), MADE_AT_US))
    assert ["净额 net", "0", "0.00"] in empty.rows


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(name):
    netted = day(name, "bus")
    page = check_page(statement.settlement_report(netted, MADE_AT_US, FIGURES, payments(netted), {}))
    shown = f"operator:{name}"
    for hidden in ("\x00", "\x1b", "\n", "‮"):
        shown = shown.replace(hidden, "\ufffd")
    assert shown in [row[0] for row in page.rows]
    check_page(statement.statement(netted, netted.positions[1], MADE_AT_US, FIGURES, payments(netted)))


@given(st.text(max_size=40))
def test_any_name_is_text(name):
    netted = day(name)
    page = check_page(statement.statement(netted, netted.positions[1], MADE_AT_US))
    assert len(page.rows) == 4


def test_many_participants_are_drawn_as_the_largest_and_the_rest():
    netted = day(*(f"{at:03d}" for at in range(200)))
    page = check_page(statement.settlement_report(netted, MADE_AT_US, FIGURES))
    rest = netted.positions[1:][: 200 - 20]  # without the float; those with the highest numbers are the largest
    assert f"其余 180 others: {grouped_yuan(sum(position.net_fen for position in rest))}" in page.texts


AMOUNTS = st.integers(-(10**15), 10**15)


@given(st.lists(st.tuples(st.text(max_size=40), AMOUNTS), max_size=8))
def test_bars_are_as_long_as_their_values(rows):
    svg = charts.bars("t", rows, grouped_yuan)
    check_svg(svg)
    rects = list(etree.fromstring(svg).iter("{*}rect"))
    assert [rect.get("class") for rect in rects] == ["owed" if value >= 0 else "owes" for _, value in rows]
    widths = [float(rect.get("width")) for rect in rects]
    span = max([0, *(value for _, value in rows)]) - min([0, *(value for _, value in rows)]) or 1
    plot = max(widths, default=0) / (max((abs(value) for _, value in rows), default=1) or 1) * span
    for width, (_, value) in zip(widths, rows, strict=True):
        assert abs(width - abs(value) / span * plot) < 0.2
    if any(value for _, value in rows):
        assert 300 < plot < 540


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=24))
def test_columns_are_as_high_as_their_values(values):
    svg = charts.columns("t", [str(at) for at in range(len(values))], values)
    check_svg(svg)
    heights = [float(rect.get("height")) for rect in etree.fromstring(svg).iter("{*}rect")]
    if max(values):
        assert 74 < max(heights) <= 150
        for height, value in zip(heights, values, strict=True):
            assert abs(height - value / max(values) * max(heights)) < 0.2


def test_steps_of_a_scale():
    steps = [charts.nice_step(span) for span in range(1, 3000)]
    assert set(steps) <= {factor * 10**power for factor in (1, 2, 5) for power in range(4)}
    assert all(before <= after for before, after in pairwise(steps))
    assert [charts.nice_step(span) for span in (1, 5, 6, 10, 11, 25, 26, 50, 51, 2300)] == [1, 1, 2, 2, 5, 5, 10, 10, 20, 500]


def test_shortened():
    assert charts.shortened("abc", 3) == "abc"
    assert charts.shortened("abcd", 3) == "ab…"
    assert charts.shortened("河源公交", 8) == "河源公交"
    assert charts.shortened("河源公交", 7) == "河源…"


def test_the_report_of_a_closed_window_does_not_change():
    netted = day("bus")
    once = statement.settlement_report(netted, MADE_AT_US, FIGURES)
    assert statement.settlement_report(replace(netted), MADE_AT_US, FIGURES) == once
