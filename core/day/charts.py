"""Small charts as inline SVG: no scripts, no fonts, no network, legible in black and white."""

import html
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

WIDTH: Final = 720
_LABEL_WIDTH: Final = 190
_VALUE_WIDTH: Final = 110
_ROW_HEIGHT: Final = 20
_LABEL_CELLS_MAX: Final = 28  # a Latin letter is one cell wide, a Chinese character two


def escaped(text: str) -> str:
    """Text for HTML and SVG: markup means nothing, and what cannot be printed is shown as a replacement character."""
    return html.escape("".join(character if character.isprintable() else "\ufffd" for character in text))


def shortened(text: str, cells_max: int = _LABEL_CELLS_MAX) -> str:
    """Text that takes at most so many cells, with … where something was left out."""
    cells = 0
    for at, character in enumerate(text):
        cells += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if cells > cells_max:
            return text[: max(0, at - 1)] + "…"
    return text


def nice_step(span: int, steps_max: int = 5) -> int:
    """The least of 1, 2, 5, 10, 20 … that covers a span (from 1 on) in at most so many steps."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power * steps_max >= span:
                return factor * power
        power *= 10


def _svg(title: str, height: int, body: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escaped(title)}</title>{"".join(body)}</svg>'
    )


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escaped(text)}</text>'


def bars(title: str, rows: Sequence[tuple[str, int]], written: Callable[[int], str]) -> str:
    """Horizontal bars, one a row (label, value), each with its value written beside it; negative values go to the left of the
    zero line. Without rows, a note."""
    if not rows:
        return _svg(title, _ROW_HEIGHT + 8, [_text(0, 16, "start", "—")])
    low, high = min(0, *(value for _, value in rows)), max(0, *(value for _, value in rows))
    left = _LABEL_WIDTH + (_VALUE_WIDTH if low < 0 else 8)
    scale = (WIDTH - left - _VALUE_WIDTH) / max(1, high - low)
    zero = left - low * scale
    height = len(rows) * _ROW_HEIGHT + 8
    body = []
    for at, (label, value) in enumerate(rows):
        y = 4 + at * _ROW_HEIGHT
        x, width = (zero, value * scale) if value >= 0 else (zero + value * scale, -value * scale)
        end, anchor = (x + width + 5, "start") if value >= 0 else (x - 5, "end")
        body += [
            f"<g><title>{escaped(label)}: {escaped(written(value))}</title>",
            _text(_LABEL_WIDTH - 6, y + 14, "end", shortened(label)),
            f'<rect class="{"owed" if value >= 0 else "owes"}" x="{x:.1f}" y="{y + 3}" width="{width:.1f}"',
            f' height="{_ROW_HEIGHT - 6}"/>',
            _text(round(end, 1), y + 14, anchor, written(value)),
            "</g>",
        ]
    body.append(f'<line class="axis" x1="{zero:.1f}" y1="0" x2="{zero:.1f}" y2="{height}"/>')
    return _svg(title, height, body)


def columns(title: str, labels: Sequence[str], values: Sequence[int], label_every: int = 1) -> str:
    """Upright columns with a scale from zero, one for each value (none negative); every so many labels are written."""
    left, top, bottom, plot_height = 76, 10, 22, 150
    step = nice_step(max(1, *values))
    ticks = -(-max(1, *values) // step)
    scale = plot_height / (ticks * step)
    width = (WIDTH - left - 4) / len(values)
    base = top + plot_height
    body = []
    for tick in range(ticks + 1):
        y = base - tick * step * scale
        body.append(f'<line class="{"grid" if tick else "axis"}" x1="{left}" y1="{y:.1f}" x2="{WIDTH}" y2="{y:.1f}"/>')
        body.append(_text(left - 6, round(y + 4, 1), "end", f"{tick * step:,}"))
    for at, (label, value) in enumerate(zip(labels, values, strict=True)):
        x = left + at * width
        body.append(
            f'<g><title>{escaped(label)}: {value:,}</title><rect class="owed" x="{x + 2:.1f}" y="{base - value * scale:.1f}" '
            f'width="{width - 4:.1f}" height="{value * scale:.1f}"/></g>'
        )
        if at % label_every == 0:
            body.append(_text(round(x + width / 2, 1), base + 15, "middle", label))
    return _svg(title, base + bottom, body)
