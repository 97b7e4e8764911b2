"""The page's chart of capacities and of the rates that were tried to find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tightpack.benchmarking.html.bar_chart import Bar, bar_chart
from tightpack.benchmarking.html.frame import Style
from tightpack.benchmarking.html.line_chart import Line, Point, line_chart
from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.parts import section
from tightpack.benchmarking.html.results import Record, Result, gap
from tightpack.benchmarking.html.sections import Colours, policy_key


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
        policy_key(results, colours),
        _capacity_table(searched),
    )


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
