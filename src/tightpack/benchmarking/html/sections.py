"""The page's charts, each with what it says in a sentence or two. A section without data is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tightpack.benchmarking.html.bar_chart import Bar, bar_chart
from tightpack.benchmarking.html.frame import Style
from tightpack.benchmarking.html.line_chart import Line, Point, line_chart
from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.range_chart import Range, range_chart
from tightpack.benchmarking.html.results import Record, Result, Scene, gap, interval, mean
from tightpack.benchmarking.html.timeline_chart import Timeline, timeline_chart

Colours = Mapping[str, int]
_VARIANT_COLOURS = (0, 5, 7, 1, 6, 2)


def section(title: str, about: str, *parts: str) -> str:
    return tag("section", tag("h2", text(title)), tag("p", text(about), class_="about"), *parts)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(name, class of its colour) each."""
    swatch = '<rect x="0" y="1" width="26" height="12" rx="2" class="{}"></rect>'
    items = [
        tag("li", tag("svg", swatch.format(kind), viewBox="0 0 26 14"), text(name)) for name, kind in entries
    ]
    return tag("ul", *items, class_="legend")


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
    if len(results) < 2:
        return ""
    policies = list(dict.fromkeys(run["policy"] for _, runs in _shown(results) for run in runs))

    def groups(metric: str) -> list[tuple[str, list[Bar]]]:
        found = []
        for policy in policies:
            bars = [
                _bar(run, result.label, metric, f"c{_VARIANT_COLOURS[i % len(_VARIANT_COLOURS)]}")
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
        "The same policies over other weights, or another engine. Fewer bits a weight are fewer bytes to read"
        " in a step, so decodes come faster and the queue is shorter.",
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
        _key(results, colours),
        tag("div", *charts, class_="row"),
    )


def capacity(results: Sequence[Result], colours: Colours) -> str:
    searched = [(result, result.report["capacity"]) for result in results if "capacity" in result.report]
    if not searched:
        return ""
    groups, lines = [], []
    for index, (result, found) in enumerate(searched):
        bars = []
        for one in found["policies"]:
            policy, around = one["policy"], one["interval"]
            bars.append(Bar(policy, one["rate"], f"c{colours[policy]}", around["low"], around["high"]))
            probes = _median_probes(one)
            points = [Point(p["rate"], 100 * p["attained"], hollow=not p["met"]) for p in probes]
            name = policy if len(searched) == 1 else f"{result.label}, {policy}"
            lines.append(Line(name, points, Style(colours[policy], index)))
        groups.append((result.label, bars))
    level = searched[0][1]["service_level"]
    aim = 100 * level["attainment"]
    charts = (
        bar_chart("Capacity", "requests/s", groups),
        line_chart(
            "Requests that met their targets, %",
            "offered rate, requests/s",
            lines,
            target=(aim, f"{aim:g} %"),
            highest=100.0,
            width=480,
        ),
    )
    return section(
        "Capacity",
        f"The largest rate at which at least {aim:g} % of requests meet their targets, every first token"
        f" comes within {level['max_ttft_s']:g} s, and {100 * level['batch_tokens']:g} % of the tokens of"
        " requests without targets are served. Every rate tried is a point, hollow where that was not met.",
        tag("div", *charts, class_="row"),
        _key(results, colours),
        _capacity_table(searched),
    )


def timelines(results: Sequence[Result]) -> str:
    """The scene that shows most: a long prompt's where there is one. All policies of the first result, and of
    the others the one that was best there."""
    chosen = _timelines(results)
    if not chosen:
        return ""
    drawn = timeline_chart(chosen, until_s=_common_end(chosen))
    scene = _scene(results[0])
    colours = [
        ("prompt tokens alone", "prompt"),
        ("decodes alone", "decode"),
        ("a step with both", "mixed"),
    ]
    return section(
        "Inside the batch",
        f"{capitalized(scene.workload['description'])}. Every request that decodes gets one token a step, so"
        " a step's time is the gap that its reader sees. A whole prompt in one step makes a step as long as"
        " the prompt (red and wide); chunks make many steps of bounded length (red and low). All runs share"
        " their axes.",
        legend(colours),
        tag("div", drawn, class_="scroll"),
    )


def _timelines(results: Sequence[Result]) -> list[Timeline]:
    found = []
    best: str | None = None
    for result in results:
        scene = _scene(result)
        runs = result.shown if scene is result.scenes[0] else scene.runs
        runs = [run for run in runs if run.get("timeline")]
        if best is not None:
            runs = [run for run in runs if run["policy"] == best]
        elif runs:
            best = max(runs, key=lambda run: float(run["output_tokens_per_s"]))["policy"]
        for run in runs:
            longest = 1000 * max(run["timeline"]["elapsed_s"])
            note = f"{run['steps']:,} steps, the longest {longest:,.0f} ms"
            p99 = gap(run, "itl_s", "p99")
            if p99 is not None:
                note += f"; p99 gap between tokens {1000 * p99:,.0f} ms"
            name = run["policy"] if len(results) == 1 else f"{run['policy']}, {result.label}"
            found.append(Timeline(name, note, run["timeline"]))
    return found


def _common_end(chosen: Sequence[Timeline]) -> float:
    """Long timelines are cut in the file; the axis ends where the first of the cut ones does."""
    cut = [one.end_s for one in chosen if len(one.columns["start_s"]) >= 2000]
    return min(cut, default=max(one.end_s for one in chosen))


def _scene(result: Result) -> Scene:
    return result.scenes[-1]


def _key(results: Sequence[Result], colours: Colours) -> str:
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


def _capacity_table(searched: Sequence[tuple[Result, Any]]) -> str:
    titles = (
        *("Policy", "Capacity<br><small>requests/s</small>", "Not met at<br><small>requests/s</small>"),
        *("Met targets<br><small>%</small>", "Longest gap p99<br><small>ms</small>"),
        *("Longest prompts met<br><small>%</small>", "Batch tokens served<br><small>%</small>", "Probes"),
    )
    rows = []
    for result, found in searched:
        for one in found["policies"]:
            probes = _median_probes(one)
            at = next((p for p in probes if p["met"] and p["rate"] == one["rate"]), None)
            name = one["policy"] if len(searched) == 1 else f"{result.label}, {one['policy']}"
            values = [f"{one['rate']:.3g}", "–" if one["unmet_rate"] is None else f"{one['unmet_rate']:.3g}"]
            if at is None:
                values += ["–"] * 4
            else:
                longest = gap(at["run"], "longest_gap_s", "p99")
                values += [
                    f"{100 * at['attained']:.1f}",
                    "–" if longest is None else f"{1000 * longest:,.0f}",
                    f"{100 * at['run']['longest_prompts_attained']:.1f}",
                    f"{100 * at['batch_tokens_served']:.1f}",
                ]
            values.append(str(len(probes)))
            rows.append(tag("tr", tag("td", text(name)), *(tag("td", text(value)) for value in values)))
    head = tag("tr", *(tag("th", title) for title in titles))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll")


def _median_probes(one: Record) -> Sequence[Record]:
    """Those of the repeat whose capacity is the one reported."""
    return next(repeat["probes"] for repeat in one["repeats"] if repeat["rate"] == one["rate"])


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
