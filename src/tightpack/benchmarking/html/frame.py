"""What every chart shares: a plot with axes, labels and units; colours by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.scale import Scale

_POLICY_COLOURS = {"static": 0, "dynamic": 1, "continuous": 2, "chunked-prefill": 3, "slo": 4}
_NUM_COLOURS = 8
_DASHES = (None, "7 4", "2 3", "9 3 2 3")


@dataclass(frozen=True, slots=True)
class Style:
    """How a run is drawn: its policy's colour, its result's dashes."""

    colour: int
    variant: int

    @property
    def colour_class(self) -> str:
        return f"c{self.colour}"

    @property
    def dashes(self) -> str | None:
        return _DASHES[self.variant % len(_DASHES)]


def colours(policies: Sequence[str]) -> dict[str, int]:
    """A colour a policy: the known ones have theirs on every page, others get what is left."""
    found = {policy: _POLICY_COLOURS[policy] for policy in policies if policy in _POLICY_COLOURS}
    free = [i for i in range(_NUM_COLOURS) if i not in _POLICY_COLOURS.values()]
    for policy in policies:
        if policy not in found:
            found[policy] = free[len(found) % len(free)]
    return found


def label(x: float, y: float, words: str, anchor: str = "start", kind: str = "tick") -> str:
    return tag("text", text(words), x=x, y=y, text_anchor=anchor, class_=kind)


def x_axis(scale: Scale, top: float, bottom: float, title: str, ticks: Sequence[float] | None = None) -> str:
    """Vertical grid lines, their values below, and the axis's title with its unit below these."""
    parts = []
    for value in scale.ticks() if ticks is None else ticks:
        parts.append(tag("line", x1=scale(value), x2=scale(value), y1=top, y2=bottom, class_="grid"))
        parts.append(label(scale(value), bottom + 16, short(value), "middle"))
    parts.append(label((scale.start + scale.end) / 2, bottom + 34, title, "middle", "axis"))
    return "".join(parts)


def y_axis(scale: Scale, left: float, right: float, ticks: Sequence[float] | None = None) -> str:
    """Horizontal grid lines with their values at the left."""
    parts = []
    for value in scale.ticks(4) if ticks is None else ticks:
        parts.append(tag("line", x1=left, x2=right, y1=scale(value), y2=scale(value), class_="grid"))
        parts.append(label(left - 8, scale(value) + 4, short(value), "end"))
    return "".join(parts)


def chart(width: float, height: float, description: str, *parts: str) -> str:
    """The drawing, with a description for those who hear the page."""
    size = f"0 0 {width:g} {height:g}"
    return tag("svg", *parts, viewBox=size, width=width, height=height, role="img", aria_label=description)


def short(value: float) -> str:
    """A number as an axis shows it."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.01 else f"{round(value, 2):g}"
