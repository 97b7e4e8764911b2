"""One self-contained page of one or several results: charts, the numbers behind them, where they come from.

Everything is inside the file: style, script and drawings; it asks the network for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tightpack.benchmarking.html import parts, sections
from tightpack.benchmarking.html.capacity_section import capacity
from tightpack.benchmarking.html.frame import colours
from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.results import Record, Result, as_results, gap, mean
from tightpack.benchmarking.html.tables import classes_table, provenance, results_table
from tightpack.benchmarking.html.timeline_section import timelines
from tightpack.benchmarking.html.tour_section import price, recommendation

_TERMS = {
    "TTFT": "time to first token: from the arrival of a request to its first token, waiting included.",
    "TPOT": "time per output token: (last token − first token) / (output tokens − 1) of a request.",
    "ITL": "inter-token latency: each gap between two tokens, those of all requests together.",
    "Goodput": "requests a second that met every target of their service class.",
}


def write_page(path: Path, reports: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(reports), encoding="utf-8")


def render_page(reports: Sequence[Record]) -> str:
    """reports: result files as `report.to_json` gives them, the one that others are held against first.

    Raises ValueError without any run to show.
    """
    results = [result for result in as_results(reports) if result.runs]
    if not results:
        raise ValueError("there is nothing to show: no run of any result came to an end")
    found = colours([run["policy"] for result in results for scene in result.scenes for run in scene.runs])
    body = (
        _header(results),
        recommendation(reports),
        _tiles(results),
        _numbers(results),
        price(results),
        sections.goodput_and_throughput(results, found),
        sections.precision(results),
        capacity(results, found),
        sections.against_rate(results, found),
        sections.latencies(results, found),
        timelines(results),
        _how_to_read(results),
    )
    title = f"{results[0].report['model']}: batching policies measured"
    return parts.page(title, body, script="page.js")


def _header(results: Sequence[Result]) -> str:
    report = results[0].report
    *others, last = (result.label for result in results)
    labels = f"{', '.join(others)} and {last}" if others else last
    machine = report.get("machine", {})
    where = report["executor"].get("device", "")
    device = machine.get("cpu", where) if where in ("cpu", "") else where
    lead = f"{labels} on {device}. {sections.capitalized(_workload_in_words(results[0]))}."
    return tag("header", tag("h1", text(report["model"])), tag("p", text(lead), class_="lead"))


def _workload_in_words(result: Result) -> str:
    """That of the runs shown; where several rates were run, with their number."""
    more = len(result.report.get("workloads", [None])) - 1
    others = f" (and {more} other rate{'s' if more > 1 else ''})" if more else ""
    return f"{result.shown_workload['description']}{others}"


def _tiles(results: Sequence[Result]) -> str:
    shown = [(result, run) for result in results for run in result.shown]

    def who(result: Result, run: Record) -> str:
        return str(run["policy"]) if len(results) == 1 else f"{run['policy']}, {result.label}"

    def value(one: tuple[Result, Record], metric: str, missing: float) -> float:
        found = mean(one[1], metric)
        return missing if found is None else found

    best = max(shown, key=lambda one: value(one, "goodput_requests_per_s", 0.0))
    fastest = max(shown, key=lambda one: value(one, "output_tokens_per_s", 0.0))
    first = min(shown, key=lambda one: value(one, "ttft_s.p99", float("inf")))
    goodput, output = value(best, "goodput_requests_per_s", 0.0), value(fastest, "output_tokens_per_s", 0.0)
    tiles = [
        *_capacity_tile(results),
        parts.tile("Most requests in time", f"{goodput:.2f}", "requests/s", who(*best)),
        parts.tile("Most tokens", f"{output:,.0f}", "tokens/s", who(*fastest)),
    ]
    wait = mean(first[1], "ttft_s.p99")
    if wait is not None:
        tiles.append(parts.tile("Shortest p99 wait for a first token", f"{wait:.2f}", "s", who(*first)))
    gaps = [(found, one) for one in shown if (found := gap(one[1], "itl_s", "p99")) is not None]
    if gaps:
        shortest, smoothest = min(gaps, key=lambda one: one[0])
        tiles.append(
            parts.tile("Shortest p99 gap between tokens", f"{1000 * shortest:,.0f}", "ms", who(*smoothest))
        )
    return tag("div", *tiles, class_="tiles")


def _capacity_tile(results: Sequence[Result]) -> list[str]:
    found = [
        (one["rate"], one["policy"] if len(results) == 1 else f"{one['policy']}, {result.label}")
        for result in results
        for one in result.report.get("capacity", {}).get("policies", ())
    ]
    if not found:
        return []
    rate, who = max(found, key=lambda one: float(one[0]))
    return [parts.tile("Largest capacity", f"{rate:.2f}", "requests/s", who)]


def _numbers(results: Sequence[Result]) -> str:
    tables = (results_table(results), classes_table(results))
    return parts.section("In numbers", _numbers_about(results), *tables)


def _numbers_about(results: Sequence[Result]) -> str:
    targets = [
        f"{name}: {parts.targets_in_words(one['ttft_s'], one['tpot_s'])}"
        for name, one in results[0].report["workload"].get("service_classes", {}).items()
    ]
    words = f"Targets of the service classes: {'; '.join(targets)}." if targets else ""
    rates = {run.get("rate") for run in results[0].runs}
    if len(rates) > 1 and "capacity" not in results[0].report:
        rate = results[0].shown[0]["rate"]
        words += f" Of the rates tried, the one where goodput was largest is shown: {rate:g} requests/s."
    if "capacity" in results[0].report:
        words += " Each policy at its own capacity."
    return words


def _how_to_read(results: Sequence[Result]) -> str:
    terms = "".join(tag("dt", text(name)) + tag("dd", text(meaning)) for name, meaning in _TERMS.items())
    listed = [tag("dl", terms)]
    for result in results:
        if len(results) > 1:
            listed.append(tag("h3", text(result.label)))
        listed.append(provenance(result))
    about = (
        "A dash stands where a policy hands over all tokens of a request together: there are no gaps then."
    )
    return parts.section("What the words mean, and where the numbers come from", about, *listed)
