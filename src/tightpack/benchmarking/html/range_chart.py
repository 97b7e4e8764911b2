"""From the median to the worst on a logarithmic axis: what a mean, or a median, hides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.benchmarking.html.frame import chart, label, short, x_axis
from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.scale import Scale, logarithmic

_LEFT, _RIGHT, _TOP, _ROW, _HEADING = 124, 16, 44, 30, 26


@dataclass(frozen=True, slots=True)
class Range:
    """None where nothing was measured."""

    name: str
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None
    colour: str


def range_chart(
    title: str,
    unit: str,
    groups: Sequence[tuple[str, Sequence[Range]]],
    *,
    target: tuple[float, str] | None = None,
    width: float = 480,
) -> str:
    """Of each: a dot at p50, a small one at p90, a diamond at p99, a bar at the largest."""
    rows = [row for _, ranges in groups for row in ranges]
    values = [value for row in rows for value in (row.p50, row.max) if value]
    if target is not None:
        values.append(target[0])
    xs = logarithmic(values, _LEFT, width - _RIGHT)
    parts: list[str] = []
    y: float = _TOP
    for heading, ranges in groups:
        if len(groups) > 1:
            parts.append(label(0, y + 17, heading, kind="heading"))
            y += _HEADING
        for row in ranges:
            parts.append(label(_LEFT - 10, y + _ROW / 2 + 4.5, row.name, "end", "name"))
            parts.append(_row(row, xs, y + _ROW / 2, unit))
            y += _ROW
    frame = [label(0, 14, title, kind="title"), x_axis(xs, _TOP, y + 2, unit)]
    if target is not None:
        x = xs(target[0])
        frame.append(tag("line", x1=x, x2=x, y1=_TOP - 4, y2=y + 2, class_="target"))
        frame.append(label(x, _TOP - 8, target[1], "middle", "note"))
    return chart(width, y + 42, f"{title}: median, p90, p99 and largest", *frame, *parts)


def _row(row: Range, xs: Scale, y: float, unit: str) -> str:
    if row.p50 is None or row.p90 is None or row.p99 is None or row.max is None or not row.max:
        return label(_LEFT + 6, y + 4.5, "–", kind="tick")
    p50, p90, p99, largest = (xs(value) for value in (row.p50, row.p90, row.p99, row.max))
    words = (
        f"{row.name}: p50 {short(round(row.p50, 3))}, p90 {short(round(row.p90, 3))}, p99"
        f" {short(round(row.p99, 3))}, largest {short(round(row.max, 3))} {unit}"
    )
    colour = row.colour
    return tag(
        "g",
        tag("title", text(words)),
        tag("line", x1=p50, x2=largest, y1=y, y2=y, class_=f"thin {colour}"),
        tag("line", x1=p50, x2=p99, y1=y, y2=y, class_=f"thick {colour}"),
        tag("line", x1=largest, x2=largest, y1=y - 6, y2=y + 6, class_=f"end {colour}"),
        tag("circle", cx=p50, cy=y, r=5, class_=f"dot {colour}"),
        tag("circle", cx=p90, cy=y, r=3, class_=f"dot {colour}"),
        tag("path", d=f"M{p99:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z", class_=f"dot {colour}"),
    )
