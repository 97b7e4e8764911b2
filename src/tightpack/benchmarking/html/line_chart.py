"""Lines over a numeric axis: latency, goodput or attainment against the rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.benchmarking.html.frame import Style, chart, label, short, x_axis, y_axis
from tightpack.benchmarking.html.markup import number, tag, text
from tightpack.benchmarking.html.scale import Scale, linear, logarithmic

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 44


@dataclass(frozen=True, slots=True)
class Point:
    """low, high: the ends of a confidence interval. hollow: what did not meet its aim."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: Sequence[Point]
    style: Style


def line_chart(
    title: str,
    x_title: str,
    lines: Sequence[Line],
    *,
    log: bool = False,
    target: tuple[float, str] | None = None,
    diagonal: str | None = None,
    highest: float | None = None,
    width: float = 312,
    height: float = 260,
) -> str:
    """title: what is drawn upwards, with its unit.

    target: a value and the words along its line. diagonal: the words along y = x. highest: where the axis
        ends.
    """
    points = [point for line in lines for point in line.points]
    values = [value for point in points for value in (point.y, point.high) if value is not None]
    if target is not None:
        values.append(target[0])
    bottom = height - _BOTTOM
    xs = linear((point.x for point in points), _LEFT, width - _RIGHT)
    if highest is not None:
        ys = Scale(0.0, highest, bottom, _TOP)
    else:
        ys = (logarithmic if log else linear)(values, bottom, _TOP)
    parts = [
        label(0, 14, title, kind="title"),
        x_axis(xs, _TOP, bottom, x_title),
        y_axis(ys, _LEFT, width - _RIGHT),
    ]
    if diagonal is not None:
        parts.append(_diagonal(xs, ys, diagonal))
    if target is not None:
        y = ys(target[0])
        parts.append(tag("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="target"))
        # On the left, where the rates are low and few lines come near it.
        parts.append(label(_LEFT + 4, y - 5, target[1], "start", "note"))
    parts += [_drawn(line, xs, ys) for line in lines]
    return chart(width, height, f"{title} against {x_title}", *parts)


def _drawn(line: Line, xs: Scale, ys: Scale) -> str:
    ordered = sorted(line.points, key=lambda point: point.x)
    colour = line.style.colour_class
    path = "M" + "L".join(f"{number(xs(one.x))} {number(ys(one.y))}" for one in ordered)
    parts = [tag("path", d=path, class_=f"line {colour}", stroke_dasharray=line.style.dashes)]
    for one in ordered:
        x, y = xs(one.x), ys(one.y)
        if one.low is not None and one.high is not None:
            parts.append(tag("line", x1=x, x2=x, y1=ys(one.low), y2=ys(one.high), class_=f"band {colour}"))
        words = f"{line.name} at {short(one.x)}: {one.y:.3g}"
        kind = "hollow" if one.hollow else "dot"
        parts.append(tag("circle", tag("title", text(words)), cx=x, cy=y, r=3.5, class_=f"{kind} {colour}"))
    return "".join(parts)


def _diagonal(xs: Scale, ys: Scale, words: str) -> str:
    end = min(xs.high, ys.high)
    line = tag("line", x1=xs(0), y1=ys(0), x2=xs(end), y2=ys(end), class_="target")
    # Above the line's middle: what is served lies below it, and near it at its end.
    return line + label(xs(end / 2) - 6, ys(end / 2) - 6, words, "end", "note")
