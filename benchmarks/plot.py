"""Charts as small SVG files, readable on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.spread import Spread

__all__ = ["Bar", "Line", "bar_chart", "line_chart"]

WIDTH = 720
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 92, 52
LINES_HEIGHT = 400
BAR, BAR_GAP, BAR_LABELS = 22, 16, 160

COLORS = {
    "tracker": ("#2a78d6", "#3987e5"),
    "noop": ("#6f6e69", "#a09f98"),
    "raw": ("#b5b4ac", "#63625d"),
    "plain": ("#d95926", "#e0703f"),
    "etcd": ("#1b8f6b", "#2aa583"),
    "redis": ("#d03b3b", "#e06666"),
}
"""Colors of subjects on a light and on a dark page."""

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #52514e }
.page { fill: #fcfcfb }
.title { font-size: 16px; font-weight: 600; fill: #0b0b0b }
.value { fill: #0b0b0b }
.grid { stroke: #e4e3df; stroke-width: 1 }
.axis { stroke: #8b8a84; stroke-width: 1 }
.target { stroke: #0b0b0b; stroke-width: 1; stroke-dasharray: 2 4 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.dashed { stroke-dasharray: 6 5 }
.spread { stroke-width: 1 }
.dot { stroke: #fcfcfb; stroke-width: 1.5 }
.over { stroke: #fcfcfb; stroke-width: 5; paint-order: stroke }
"""
DARK = """
text { fill: #c3c2b7 }
.page { fill: #1a1a19 }
.title, .value { fill: #ffffff }
.grid { stroke: #353431 }
.axis { stroke: #7a7972 }
.target { stroke: #ffffff }
.dot, .over { stroke: #1a1a19 }
"""


@dataclass(frozen=True)
class Line:
    """``color`` is one of COLORS; a point for each place on the x axis, None where there is no figure."""

    name: str
    color: str
    points: Sequence[Spread | None]
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    name: str
    color: str
    value: Spread


def line_chart(
    title: str,
    subtitle: str,
    places: Sequence[str],
    lines: Sequence[Line],
    *,
    x_label: str,
    logarithmic: bool = False,
    target: tuple[float, str] | None = None,
) -> str:
    """Lines over places that are spaced evenly, each point with its spread; `target` is a level with a name."""
    spreads = [point for line in lines for point in line.points if point]
    most = max([spread.high for spread in spreads] + ([target[0]] if target else []))
    least = min(spread.low for spread in spreads) if logarithmic else 0.0
    ticks = _decades(least, most) if logarithmic else _steps(most)
    bottom = LINES_HEIGHT - BOTTOM

    def y(value: float) -> float:
        part = value / ticks[-1]
        if logarithmic:
            part = math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])
        return bottom - part * (bottom - TOP)

    def x(place: int) -> float:
        return LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / len(places)

    parts = []
    for tick in ticks:
        parts.append(_segment(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"))
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:,.10g}", "end"))
    parts.append(_segment(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    parts += [_text(x(place), bottom + 18, name, "middle") for place, name in enumerate(places)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, LINES_HEIGHT - 12, x_label, "middle"))
    if target:
        parts.append(_segment(LEFT, y(target[0]), WIDTH - RIGHT, y(target[0]), "target"))
        parts.append(_text(LEFT + 6, y(target[0]) - 6, target[1], "start", "over"))
    for line in lines:
        known = [(x(place), point) for place, point in enumerate(line.points) if point]
        path = " ".join(f"{_n(at)},{_n(y(point.median))}" for at, point in known)
        parts.append(f'<polyline class="line {line.color}{" dashed" * line.dashed}" points="{path}"/>')
        for at, point in known:
            parts.append(_segment(at, y(point.low), at, y(point.high), f"spread {line.color}"))
            parts.append(f'<circle class="dot fill-{line.color}" cx="{_n(at)}" cy="{_n(y(point.median))}" r="4"/>')
    legend = [(line.name, line.color, line.dashed) for line in lines] if len(lines) > 1 else []
    return _document(title, subtitle, LINES_HEIGHT, [*_legend(legend), *parts])


def bar_chart(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars from zero, each with its value and its spread."""
    most = max(bar.value.high for bar in bars)
    top = TOP - 24
    parts = []
    for place, bar in enumerate(bars):
        y = top + place * (BAR + BAR_GAP)
        middle = y + BAR / 2

        def x(value: float) -> float:
            return BAR_LABELS + value / most * (WIDTH - BAR_LABELS - RIGHT - 60)

        parts.append(_text(BAR_LABELS - 10, middle + 4, bar.name, "end"))
        width = x(bar.value.median) - BAR_LABELS
        parts.append(
            f'<rect class="fill-{bar.color}" x="{BAR_LABELS}" y="{y}" width="{_n(width)}" height="{BAR}" rx="3"/>'
        )
        parts.append(_segment(x(bar.value.low), middle, x(bar.value.high), middle, "axis"))
        parts.append(_text(x(bar.value.high) + 8, middle + 4, f"{bar.value.median:,.0f}", "start", "value"))
    return _document(title, subtitle, top + len(bars) * (BAR + BAR_GAP) + 8, parts)


def _document(title: str, subtitle: str, height: float, parts: Sequence[str]) -> str:
    light = "".join(_color(name, light) for name, (light, _) in COLORS.items())
    dark = "".join(_color(name, dark) for name, (_, dark) in COLORS.items())
    style = f"{STYLE}{light}@media (prefers-color-scheme: dark) {{{DARK}{dark}}}\n"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(height)}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{style}</style>",
        f'<rect class="page" width="{WIDTH}" height="{_n(height)}"/>',
        _text(LEFT - 40, 28, title, "start", "title"),
        _text(LEFT - 40, 50, subtitle, "start"),
        *parts,
        "</svg>",
        "",
    ]
    return "\n".join(lines)


def _color(name: str, color: str) -> str:
    return f".{name} {{ stroke: {color} }}\n.fill-{name} {{ fill: {color} }}\n"


def _legend(entries: Sequence[tuple[str, str, bool]]) -> list[str]:
    parts, at = [], float(LEFT - 40)
    for name, color, dashed in entries:
        parts.append(
            f'<line class="line {color}{" dashed" * dashed}" x1="{_n(at)}" y1="70" x2="{_n(at + 26)}" y2="70"/>'
        )
        parts.append(_text(at + 32, 74, name, "start"))
        at += 56 + 7.2 * len(name)
    return parts


def _segment(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _steps(most: float) -> list[float]:
    """Round numbers from 0 to beyond `most`, some five of them."""
    raw = (most or 1) / 4
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    return [step * place for place in range(math.ceil((most or 1) / step) + 1)]


def _decades(least: float, most: float) -> list[float]:
    """Powers of ten from below `least` to beyond `most`, two at least."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]
