"""Horizontal bars with their values, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.benchmarking.html.frame import chart, label, x_axis
from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.scale import linear

_RIGHT, _TOP = 66, 8
# Room for names: a letter's width on average, the gap to the bars, and the least that looks well.
_LETTER, _GAP, _LEAST_LEFT = 7.6, 14, 56
_ROW, _THICK, _HEADING = 30, 18, 26


@dataclass(frozen=True, slots=True)
class Bar:
    """low, high: the ends of a confidence interval. colour: a class of the style sheet."""

    name: str
    value: float
    colour: str
    low: float | None = None
    high: float | None = None


def bar_chart(title: str, unit: str, groups: Sequence[tuple[str, Sequence[Bar]]], width: float = 480) -> str:
    """groups: (heading, bars); a single group needs no heading."""
    values = [value for _, bars in groups for bar in bars for value in (bar.value, bar.high or 0.0)]
    longest = max(len(bar.name) for _, bars in groups for bar in bars)
    scale = linear(values, max(_LEAST_LEFT, longest * _LETTER + _GAP), width - _RIGHT)
    rows: list[str] = []
    y: float = _TOP
    for heading, bars in groups:
        if len(groups) > 1:
            rows.append(label(0, y + 17, heading, kind="heading"))
            y += _HEADING
        for bar in bars:
            rows.append(_row(bar, scale.start, scale(bar.value), y, unit))
            if bar.low is not None and bar.high is not None:
                rows.append(_whisker(scale(bar.low), scale(bar.high), y + _ROW / 2))
            end = max(scale(bar.value), scale(bar.high or 0.0))
            rows.append(label(end + 8, y + _ROW / 2 + 4.5, _shown(bar.value), kind="value"))
            y += _ROW
    axis = x_axis(scale, _TOP, y + 2, f"{title}, {unit}", scale.ticks(4 if width > 400 else 2))
    return chart(width, y + 42, f"{title}, {unit}", axis, *rows)


def _row(bar: Bar, start: float, end: float, y: float, unit: str) -> str:
    top = y + (_ROW - _THICK) / 2
    shown = tag(
        "rect",
        tag("title", text(f"{bar.name}: {_shown(bar.value)} {unit}")),
        x=start,
        y=top,
        width=max(end - start, 1),
        height=_THICK,
        rx=2,
        class_=f"fill {bar.colour}",
    )
    return label(start - 10, y + _ROW / 2 + 4.5, bar.name, "end", "name") + shown


def _whisker(low: float, high: float, y: float) -> str:
    caps = f"M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}v8"
    return tag("path", d=caps, class_="whisker")


def _shown(value: float) -> str:
    """Three digits, or two of what is small."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
