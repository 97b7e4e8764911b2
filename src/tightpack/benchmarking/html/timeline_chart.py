"""What each step held and how long it took, over time: three strips a run, on axes that all runs share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightpack.benchmarking.html.frame import chart, label, x_axis, y_axis
from tightpack.benchmarking.html.markup import number, tag, text
from tightpack.benchmarking.html.scale import Scale, linear

_LEFT, _RIGHT, _TOP, _STRIP, _GAP, _HEAD, _BETWEEN = 150, 16, 4, 56, 20, 32, 24
_COLUMNS = ("start_s", "elapsed_s", "prompt_tokens", "decodes")
_STRIPS = ("prompt tokens", "decodes", "step time, ms")


@dataclass(frozen=True, slots=True)
class Timeline:
    """columns: start_s, elapsed_s, prompt_tokens and decodes, as a result file has them.

    note: words beside the name.
    """

    name: str
    note: str
    columns: Mapping[str, Sequence[float]]
    policy: str

    @property
    def end_s(self) -> float:
        return self.columns["start_s"][-1] + self.columns["elapsed_s"][-1]


def timeline_chart(runs: Sequence[Timeline], *, until_s: float, width: float = 1000) -> str:
    """until_s: where the time axis ends."""
    xs = Scale(0.0, until_s, _LEFT, width - _RIGHT)
    highest = [
        max(value for run in runs for value in run.columns["prompt_tokens"]),
        max(value for run in runs for value in run.columns["decodes"]),
        1000 * max(value for run in runs for value in run.columns["elapsed_s"]),
    ]
    parts: list[str] = []
    y: float = _TOP
    for index, run in enumerate(runs):
        name = tag("tspan", text(run.name), class_="heading")
        parts.append(tag("text", name, tag("tspan", text(run.note), dx=16, class_="note"), x=0, y=y + 14))
        y += _HEAD
        top = y
        for strip, high in enumerate(highest):
            ys = linear([high], y + _STRIP, y)
            parts.append(label(0, y + _STRIP / 2 + 4, _STRIPS[strip], kind="axis"))
            parts.append(y_axis(ys, _LEFT, width - _RIGHT, (0.0, ys.high)))
            parts += _bars(run.columns, strip, xs, ys)
            y += _STRIP + _GAP
        parts.append(_readout(run, xs, top, y - _GAP))
        if index < len(runs) - 1:
            y += _BETWEEN
    last = y - _GAP
    axis = x_axis(xs, last, last, "time since the start, s", xs.ticks(10))
    return chart(width, last + 42, "What each step held and how long it took, over time", axis, *parts)


def _bars(columns: Mapping[str, Sequence[float]], strip: int, xs: Scale, ys: Scale) -> list[str]:
    """One path for all bars of a kind: thousands of elements would slow the page down."""
    paths: dict[str, list[str]] = {}
    steps = zip(
        *(columns[name] for name in ("start_s", "elapsed_s", "prompt_tokens", "decodes")), strict=True
    )
    for start, elapsed, prompt_tokens, decodes in steps:
        if start > xs.high:
            break
        value = (prompt_tokens, decodes, 1000 * elapsed)[strip]
        if not value:
            continue
        stalled = prompt_tokens and decodes
        kind = ("prompt", "decode", "mixed" if stalled else "prompt" if prompt_tokens else "decode")[strip]
        left, right = xs(start), xs(start + elapsed)
        # A bar is never thinner than it can be seen.
        wide = max(right - left, 0.6)
        path = f"M{number(left)} {number(ys.start)}V{number(ys(value))}h{number(wide)}V{number(ys.start)}z"
        paths.setdefault(kind, []).append(path)
    return [tag("path", d="".join(path), class_=f"step {kind}") for kind, path in paths.items()]


def _readout(run: Timeline, xs: Scale, top: float, bottom: float) -> str:
    """Where the pointer is read: a field that knows its numbers, and the line and words that follow it."""
    steps = json.dumps([run.columns[name] for name in _COLUMNS], separators=(",", ":"))
    line = tag("line", x1=0, x2=0, y1=top, y2=bottom, class_="cursor")
    words = tag("text", x=xs.end, y=top - 16, text_anchor="end", class_="reading")
    field = tag(
        "rect",
        x=xs.start,
        y=top,
        width=xs.end - xs.start,
        height=bottom - top,
        class_="field",
        data_until=f"{xs.high:g}",
        data_steps=steps,
    )
    return tag("g", line, words, field, class_="timeline")
