"""What a tour over several precisions adds to the page: what to serve with, and what each precision costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tightpack.benchmarking.html.bar_chart import Bar, bar_chart
from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.parts import section
from tightpack.benchmarking.html.results import Record, Result
from tightpack.benchmarking.html.sections import PRECISION_COLOURS

_WIDTH = 312


def recommendation(reports: Sequence[Record]) -> str:
    """The line to serve with, and why, for a page of one tour."""
    found = [report["recommendation"] for report in reports if "recommendation" in report]
    if len(found) != 1:
        return ""
    [chosen] = found
    return tag(
        "div",
        tag("div", text("Serve it like this"), class_="what"),
        tag("pre", text(chosen["serve"])),
        *(tag("p", text(sentence)) for sentence in chosen["why"]),
        class_="advice",
    )


def price(results: Sequence[Result]) -> str:
    """Memory, speed and quality by precision; nothing where results do not tell."""
    told = [result.report["precision"] for result in results if "precision" in result.report]
    if len(told) < 2:
        return ""

    def bars(value: Any) -> list[tuple[str, list[Bar]]]:
        shown = [
            Bar(one["name"], found, f"c{PRECISION_COLOURS[index % len(PRECISION_COLOURS)]}")
            for index, one in enumerate(told)
            if (found := value(one)) is not None
        ]
        return [("", shown)]

    charts = [
        bar_chart("Weights", "MiB", bars(_mebibytes), _WIDTH),
        bar_chart("Served at the most", "requests/s", bars(lambda one: one["served_requests_per_s"]), _WIDTH),
        bar_chart("KL from the original", "nats", bars(_kl), _WIDTH),
    ]
    about = (
        "Fewer bits a weight are fewer bytes to read and cheaper arithmetic, so that more requests are"
        " served. The price is how far the next-token distributions move (KL divergence), measured as served"
        " on a page of English text."
    )
    how = tag("dl", *(tag("dt", text(one["name"])) + tag("dd", text(_how(one))) for one in told))
    return section("What fewer bits buy, and what they cost", about, tag("div", *charts, class_="row"), how)


def _mebibytes(one: Record) -> float | None:
    return None if one["weight_bytes"] is None else one["weight_bytes"] / 2**20


def _kl(one: Record) -> float:
    return max(0.0, float(one["quality"]["kl"])) if one["quality"] else 0.0


def _how(one: Record) -> str:
    if one["quality"] is None:
        return str(one["how"])
    agreement = one["quality"]["top1_agreement"]
    return (
        f"{one['how']}; same first choice at {100 * agreement:.1f} % of {one['quality']['tokens']} positions"
    )
