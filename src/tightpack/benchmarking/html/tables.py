"""The numbers behind the charts, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tightpack.benchmarking.html.markup import tag, text
from tightpack.benchmarking.html.parts import shown, table
from tightpack.benchmarking.html.results import Record, Result, gap, interval, mean


@dataclass(frozen=True, slots=True)
class _Column:
    """best: max or min, whichever is good."""

    title: str
    unit: str
    value: Callable[[Record], float | None]
    factor: float
    decimals: int
    best: Callable[[list[float]], float]
    metric: str | None = None


# A longer table of classes is folded up: the charts below would be out of sight.
_MOST_ROWS = 12

_OUTPUT, _GOODPUT = "output_tokens_per_s", "goodput_requests_per_s"
_COLUMNS = (
    _Column("Output", "tokens/s", lambda r: mean(r, _OUTPUT), 1, 0, max, _OUTPUT),
    _Column("TTFT p50", "s", lambda r: mean(r, "ttft_s.p50"), 1, 2, min),
    _Column("TTFT p99", "s", lambda r: mean(r, "ttft_s.p99"), 1, 2, min),
    _Column("TPOT p50", "ms", lambda r: gap(r, "tpot_s", "p50"), 1000, 0, min),
    _Column("TPOT p99", "ms", lambda r: gap(r, "tpot_s", "p99"), 1000, 0, min),
    _Column("ITL p99", "ms", lambda r: gap(r, "itl_s", "p99"), 1000, 0, min),
    _Column("Longest gap p99", "ms", lambda r: gap(r, "longest_gap_s", "p99"), 1000, 0, min),
    _Column("Met targets", "%", lambda r: mean(r, "attained"), 100, 1, max),
    _Column(
        "Goodput",
        "requests/s",
        lambda r: mean(r, "goodput_requests_per_s"),
        1,
        2,
        max,
        "goodput_requests_per_s",
    ),
)


def results_table(results: Sequence[Result]) -> str:
    """A row a policy, at the rate of the largest goodput; the best of each column in bold."""
    chosen = [(result, run) for result in results for run in result.shown]
    titles = [f"{text(one.title)}<br>{tag('small', text(one.unit))}" for one in _COLUMNS]
    columns = [_cells(column, [run for _, run in chosen]) for column in _COLUMNS]
    rows, previous = [], None
    for (result, run), *cells in zip(chosen, *columns, strict=True):
        if len(results) > 1 and result.label != previous:
            rows.append(tag("tr", tag("td", text(result.label), colspan=len(_COLUMNS) + 1), class_="group"))
        previous = result.label
        rows.append(tag("tr", tag("td", text(run["policy"])), *cells))
    return table(["Policy", *titles], rows)


def classes_table(results: Sequence[Result]) -> str:
    """A row a policy and service class; nothing where there is but one class."""
    rows = []
    for result in results:
        for run in result.shown:
            classes = run.get("classes", ())
            if len(classes) < 2:
                continue
            for one in classes:
                name = run["policy"] if len(results) == 1 else f"{result.label}, {run['policy']}"
                values = (
                    one["requests"],
                    shown(one["attained"], 100, 1),
                    shown(one["goodput_requests_per_s"], 1, 2),
                    shown(one["ttft_s"]["p99"], 1, 2),
                    shown(gap(run, "tpot_s", "p99") and one["tpot_s"]["p99"], 1000, 0),
                    shown(gap(run, "itl_s", "p99") and one["longest_gap_s"]["p99"], 1000, 0),
                )
                cells = [tag("td", text(value)) for value in values]
                rows.append(tag("tr", tag("td", text(name)), tag("td", text(one["name"])), *cells))
    if not rows:
        return ""
    titles = (
        *("Policy", "Class", "Requests", "Met targets<br><small>%</small>"),
        *("Goodput<br><small>requests/s</small>", "TTFT p99<br><small>s</small>"),
        *("TPOT p99<br><small>ms</small>", "Longest gap p99<br><small>ms</small>"),
    )
    whole = table(titles, rows, kind="classes")
    if len(rows) <= _MOST_ROWS:
        return whole
    return tag("details", tag("summary", "By service class"), whole)


def provenance(result: Result) -> str:
    """What was measured, on what, in which state, with which arguments."""
    report = result.report
    machine, executor = report.get("machine", {}), report["executor"]
    conditions = report.get("conditions", {})
    facts = {
        "Model": report["model"],
        "Where": report.get("where", "local"),
        "Executor": ", ".join(f"{key} {value}" for key, value in executor.items()),
        "Machine": f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('memory_gib')} GiB,"
        f" {machine.get('os')}, Python {machine.get('python')}",
        "Versions": ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items()),
        "Workload": "; ".join(one["description"] for one in report.get("workloads", [report["workload"]])),
        "Measured": report.get("date", ""),
    }
    if conditions:
        caching = {True: "on", False: "off", None: "unknown"}[conditions["prefix_caching"]]
        facts["State"] = (
            f"{conditions['warm_up_requests']} warm-up requests; KV cache at the start of a run"
            f" {conditions['kv_cache_at_start']}; prefix caching {caching}"
        )
    listed = "".join(tag("dt", text(name)) + tag("dd", text(value)) for name, value in facts.items())
    arguments = json.dumps(report.get("arguments", {}), indent=2)
    return tag("dl", listed) + tag("details", tag("summary", "All arguments"), tag("pre", text(arguments)))


def _cells(column: _Column, runs: Sequence[Record]) -> list[str]:
    values = [column.value(run) for run in runs]
    texts = [shown(value, column.factor, column.decimals) for value in values]
    # Compared as shown: what reads the same is equally good.
    present = [float(one.replace(",", "")) for one in texts if one != "–"]
    best = column.best(present) if len(set(present)) > 1 else None
    cells = []
    for run, cell in zip(runs, texts, strict=True):
        around = interval(run, column.metric) if column.metric else None
        extra = ""
        if around is not None:
            half = (around[1] - around[0]) / 2 * column.factor
            extra = " " + tag("small", f"± {half:.{column.decimals}f}")
        is_best = cell != "–" and best is not None and float(cell.replace(",", "")) == best
        cells.append(tag("td", text(cell), extra, class_="best" if is_best else None))
    return cells
