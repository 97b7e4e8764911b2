"""Candidates as points, price upwards, and the front along which none is better in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.benchmarking.html.frame import chart, label, x_axis, y_axis
from tightpack.benchmarking.html.markup import number, tag, text
from tightpack.benchmarking.html.scale import Scale, linear

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 44


@dataclass(frozen=True, slots=True)
class Mark:
    """One candidate: less is better on both axes. words: what it is. colour: a class of the style sheet."""

    x: float
    y: float
    words: str
    colour: str
    best: bool = False


def front_chart(
    title: str,
    x_title: str,
    marks: Sequence[Mark],
    *,
    limit: tuple[float, str] | None = None,
    width: float = 480,
    height: float = 300,
) -> str:
    """title: the vertical axis. limit: a vertical line, and the words at it."""
    bottom = height - _BOTTOM
    places = [mark.x for mark in marks] + ([] if limit is None else [limit[0]])
    xs = linear(places, _LEFT, width - _RIGHT)
    ys = linear((mark.y for mark in marks), bottom, _TOP)
    parts = [
        label(0, 14, title, kind="title"),
        x_axis(xs, _TOP, bottom, x_title),
        y_axis(ys, _LEFT, width - _RIGHT),
    ]
    if limit is not None:
        x = xs(limit[0])
        parts.append(tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="target"))
        parts.append(label(x - 6, bottom - 8, limit[1], "end", "note"))
    parts.append(_steps(front(marks), xs, ys))
    parts += [_mark(mark, xs, ys) for mark in sorted(marks, key=lambda one: one.best)]
    return chart(width, height, f"{title} against {x_title}", *parts)


def front(marks: Sequence[Mark]) -> list[Mark]:
    """Those that no other beats on both axes, from left to right."""
    found: list[Mark] = []
    for mark in sorted(marks, key=lambda one: (one.x, one.y)):
        if not found or mark.y < found[-1].y:
            found.append(mark)
    return found


def _steps(marks: Sequence[Mark], xs: Scale, ys: Scale) -> str:
    """A staircase: between two candidates only the dearer one is to be had."""
    path = ""
    for mark in marks:
        x, y = number(xs(mark.x)), number(ys(mark.y))
        path += f"M{x} {y}" if not path else f"H{x}V{y}"
    return tag("path", d=path, class_="line c0", stroke_dasharray="5 4") if path else ""


def _mark(mark: Mark, xs: Scale, ys: Scale) -> str:
    x, y = xs(mark.x), ys(mark.y)
    circle = tag(
        "circle",
        tag("title", text(mark.words)),
        cx=x,
        cy=y,
        r=7 if mark.best else 5,
        class_=f"dot {mark.colour}",
    )
    if not mark.best:
        return circle
    ring = tag("circle", cx=x, cy=y, r=11, fill="none", class_=f"end {mark.colour}")
    return circle + ring
