"""One self-contained page of one or several results: charts, the numbers behind them, where they come from.

Everything is inside the file: style, script and drawings; it asks the network for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
# Of those whose figures read the same; more are counted.
_NAMED = 2


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
    on_device = "" if device in labels else f" on {device}"  # a simulated one is part of the label
    lead = f"{labels}{on_device}. {sections.capitalized(_workload_in_words(results[0]))}."
    return tag("header", tag("h1", text(report["model"])), tag("p", text(lead), class_="lead"))


def _workload_in_words(result: Result) -> str:
    """That of the runs shown; where several rates were run, with their number."""
    more = len(result.report.get("workloads", [None])) - 1
    others = f" (and {more} other rate{'s' if more > 1 else ''})" if more else ""
    return f"{result.shown_workload['description']}{others}"


def _tiles(results: Sequence[Result]) -> str:
    def goodput(run: Record) -> float | None:
        return mean(run, "goodput_requests_per_s")

    def output(run: Record) -> float | None:
        return mean(run, "output_tokens_per_s")

    def first_token(run: Record) -> float | None:
        return mean(run, "ttft_s.p99")

    def milliseconds_between(run: Record) -> float | None:
        found = gap(run, "itl_s", "p99")
        return None if found is None else 1000 * found

    asked = (
        ("Most requests in time", "requests/s", max, ".2f", goodput),
        ("Most tokens", "tokens/s", max, ",.0f", output),
        ("Shortest p99 wait for a first token", "s", min, ".2f", first_token),
        ("Shortest p99 gap between tokens", "ms", min, ",.0f", milliseconds_between),
    )
    tiles = _capacity_tile(results)
    for what, unit, best, style, figure in asked:
        found = [
            (value, _who(results, result, run["policy"]))
            for result in results
            for run in result.shown
            if (value := figure(run)) is not None
        ]
        tiles += _tile(what, unit, best, style, found)
    return tag("div", *tiles, class_="tiles")


def _capacity_tile(results: Sequence[Result]) -> list[str]:
    found = [
        (float(one["rate"]), _who(results, result, one["policy"]))
        for result in results
        for one in result.report.get("capacity", {}).get("policies", ())
    ]
    return _tile("Largest capacity", "requests/s", max, ".2f", found)


def _tile(
    what: str,
    unit: str,
    best: Callable[[Iterable[float]], float],
    style: str,
    found: Sequence[tuple[float, str]],
) -> list[str]:
    """The best of the figures, with all whose figure reads the same; none where there is no figure."""
    if not found:
        return []
    figure = format(best(value for value, _ in found), style)
    holders = [who for value, who in found if format(value, style) == figure]
    who = "all of them" if len(holders) == len(found) > 1 else " and ".join(holders)
    if len(holders) > _NAMED and len(holders) < len(found):
        who = f"{holders[0]} and {len(holders) - 1} others"
    return [parts.tile(what, figure, unit, who)]


def _who(results: Sequence[Result], result: Result, policy: str) -> str:
    return policy if len(results) == 1 else f"{policy}, {result.label}"


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
