"""The page's charts, each with what it says in a sentence or two. A section without data is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tightpack.benchmarking.html.bar_chart import Bar, bar_chart
from tightpack.benchmarking.html.frame import Style
from tightpack.benchmarking.html.line_chart import Line, Point, line_chart
from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.parts import legend, section
from tightpack.benchmarking.html.range_chart import Range, range_chart
from tightpack.benchmarking.html.results import Record, Result, gap, interval, mean

Colours = Mapping[str, int]
PRECISION_COLOURS = (0, 5, 7, 1, 6, 2)


def goodput_and_throughput(results: Sequence[Result], colours: Colours) -> str:
    def bars(metric: str) -> list[tuple[str, list[Bar]]]:
        return [
            (result.label, [_bar(run, run["policy"], metric, f"c{colours[run['policy']]}") for run in runs])
            for result, runs in _shown(results)
        ]

    charts = (
        bar_chart("Goodput", "requests/s", bars("goodput_requests_per_s")),
        bar_chart("Output", "tokens/s", bars("output_tokens_per_s")),
    )
    return section(
        "Goodput by policy",
        "Goodput counts only the requests that met every target of their class; throughput counts every"
        " token, however late. A policy can win the one and lose the other." + _whiskers(results),
        tag("div", *charts, class_="row"),
    )


def precision(results: Sequence[Result]) -> str:
    """What a precision buys under each policy: the results' bars side by side."""
    named = [run["policy"] for _, runs in _shown(results) for run in runs]
    policies = [policy for policy in dict.fromkeys(named) if named.count(policy) > 1]
    if not policies:
        return ""

    def groups(metric: str) -> list[tuple[str, list[Bar]]]:
        found = []
        for policy in policies:
            bars = [
                _bar(run, result.label, metric, f"c{PRECISION_COLOURS[i % len(PRECISION_COLOURS)]}")
                for i, (result, runs) in enumerate(_shown(results))
                for run in runs
                if run["policy"] == policy
            ]
            found.append((policy, bars))
        return found

    charts = (
        bar_chart("Output", "tokens/s", groups("output_tokens_per_s")),
        bar_chart("Goodput", "requests/s", groups("goodput_requests_per_s")),
    )
    return section(
        "Side by side",
        "The same policies and the same load over other weights, or another engine. Where steps are shorter"
        " the queue is too: a load that is too much for one is served in time by another.",
        tag("div", *charts, class_="row"),
    )


def latencies(results: Sequence[Result], colours: Colours) -> str:
    ttft_target, _ = _targets(results)

    def groups(name: str, factor: float) -> list[tuple[str, list[Range]]]:
        found = []
        for result, runs in _shown(results):
            rows = []
            for run in runs:
                whole = name == "ttft_s"
                p50, p90, p99, largest = (
                    _scaled(run[name][which] if whole else gap(run, name, which), factor)
                    for which in ("p50", "p90", "p99", "max")
                )
                rows.append(Range(run["policy"], p50, p90, p99, largest, f"c{colours[run['policy']]}"))
            found.append((result.label, rows))
        return found

    target = None if ttft_target is None else (ttft_target, f"target {ttft_target:g} s")
    charts = (
        range_chart("Time to first token", "seconds", groups("ttft_s", 1), target=target),
        range_chart("Gap between two tokens (ITL)", "milliseconds", groups("itl_s", 1000)),
    )
    return section(
        "From the median to the worst",
        "A dot at the median, a small one at p90, a diamond at p99, a bar at the largest; the axis is"
        " logarithmic. A long tail of gaps is what a reader sees as stutter.",
        tag("div", *charts, class_="row"),
    )


def against_rate(results: Sequence[Result], colours: Colours) -> str:
    rates = {run.get("rate") for result in results for run in result.runs if run.get("rate")}
    searched = any("capacity" in result.report for result in results)
    if len(rates) < 2 or searched:
        return ""
    ttft_target, tpot_target = _targets(results)

    def lines(metric: str, factor: float = 1.0, *, between_tokens: bool = False) -> list[Line]:
        found = []
        for index, result in enumerate(results):
            for policy in dict.fromkeys(run["policy"] for run in result.runs):
                runs = [run for run in result.runs if run["policy"] == policy and run.get("rate")]
                if between_tokens:
                    runs = [run for run in runs if run["itl_s"]["max"] != 0]
                points = [_point(run, metric, factor) for run in runs if mean(run, metric) is not None]
                if points:
                    name = policy if len(results) == 1 else f"{result.label}, {policy}"
                    found.append(Line(name, points, Style(colours[policy], index)))
        return found

    x_title = "offered rate, requests/s"
    ttft = None if ttft_target is None else (ttft_target, "target")
    tpot = None if tpot_target is None else (1000 * tpot_target, "target")
    charts = (
        line_chart("TTFT p99, s", x_title, lines("ttft_s.p99"), log=True, target=ttft),
        line_chart(
            "TPOT p99, ms", x_title, lines("tpot_s.p99", 1000, between_tokens=True), log=True, target=tpot
        ),
        line_chart(
            "Goodput, requests/s", x_title, lines("goodput_requests_per_s"), diagonal="all that is offered"
        ),
    )
    return section(
        "Latency against rate",
        "Below its capacity a policy serves what is offered; above it the queue grows, the first token waits"
        " ever longer, and goodput falls although every token is still computed." + _whiskers(results),
        policy_key(results, colours),
        tag("div", *charts, class_="row"),
    )


def policy_key(results: Sequence[Result], colours: Colours) -> str:
    """A legend of the policies' colours, and of the results' dashes where there are several."""
    policies = dict.fromkeys(run["policy"] for result in results for run in result.runs)
    entries = [(policy, f"c{colours[policy]} fill") for policy in policies]
    items = legend(entries)
    if len(results) < 2:
        return items
    lines = [
        tag(
            "li",
            tag(
                "svg",
                tag(
                    "line", x1=0, x2=26, y1=7, y2=7, class_="line c0", stroke_dasharray=Style(0, index).dashes
                ),
                viewBox="0 0 26 14",
            ),
            text(result.label),
        )
        for index, result in enumerate(results)
    ]
    return items + tag("ul", *lines, class_="legend")


def _shown(results: Sequence[Result]) -> list[tuple[Result, list[Record]]]:
    return [(result, result.shown) for result in results]


def _bar(run: Record, name: str, metric: str, colour: str) -> Bar:
    low, high = interval(run, metric) or (None, None)
    return Bar(name, mean(run, metric) or 0.0, colour, None if low is None else max(low, 0.0), high)


def _point(run: Record, metric: str, factor: float) -> Point:
    low, high = interval(run, metric) or (None, None)
    value = factor * (mean(run, metric) or 0.0)
    if low is None or high is None:
        return Point(run["rate"], value)
    return Point(run["rate"], value, max(low, 0.0) * factor, high * factor)


def _targets(results: Sequence[Result]) -> tuple[float | None, float | None]:
    """TTFT and TPOT where all requests share a class; None where several would need a line each."""
    classes = {
        name: targets
        for result in results
        for name, targets in result.report["workload"].get("service_classes", {}).items()
    }
    if len(classes) != 1:
        return None, None
    [targets] = classes.values()
    return targets["ttft_s"], targets["tpot_s"]


def _whiskers(results: Sequence[Result]) -> str:
    repeated = any("intervals" in run for result in results for run in result.runs)
    return " Whiskers and shades are 95 % confidence intervals over repeats." if repeated else ""


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def capitalized(words: str) -> str:
    return words[:1].upper() + words[1:]
