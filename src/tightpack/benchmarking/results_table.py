"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from tightpack.benchmarking.policy_run import PolicyRun, intervals
from tightpack.benchmarking.workload import Workload


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table: how a run's number is found and shown, and which end of the scale is good."""

    title: str
    unit: str
    highest_is_best: bool
    is_gap: bool = False  # between tokens: says nothing of a run that releases at once

    def value(self, run: PolicyRun) -> float | None:
        latency = run.latency
        return {
            "out tok/s": run.output_tokens_per_s,
            "TTFT p50": latency.ttft_s.p50,
            "TTFT p99": latency.ttft_s.p99,
            "TPOT p50": latency.tpot_s.p50,
            "TPOT p99": latency.tpot_s.p99,
            "ITL p99": latency.itl_s.p99,
            "goodput": run.goodput_per_s,
        }[self.title]


_COLUMNS = (
    _Column("out tok/s", "", highest_is_best=True),
    _Column("TTFT p50", "s", highest_is_best=False),
    _Column("TTFT p99", "s", highest_is_best=False),
    _Column("TPOT p50", "ms", highest_is_best=False, is_gap=True),
    _Column("TPOT p99", "ms", highest_is_best=False, is_gap=True),
    _Column("ITL p99", "ms", highest_is_best=False, is_gap=True),
    _Column("goodput", "req/s", highest_is_best=True),
)


def results_table(runs: Sequence[PolicyRun]) -> Table:
    """The runs as a table of under 80 columns; the best of each column is starred when they differ."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("policy", no_wrap=True)
    for column in _COLUMNS:
        label = column.title.replace(" ", "\n") + (f"\n{column.unit}" if column.unit else "")
        table.add_column(label, justify="right", no_wrap=True, vertical="bottom")
    columns = [_cells(column, runs) for column in _COLUMNS]
    for run, *cells in zip(runs, *columns, strict=True):
        table.add_row(Text(run.policy), *cells)
    return table


def table_notes(workload: Workload, runs: Sequence[PolicyRun]) -> list[str]:
    """What a reader of the table must know and the table has no room for."""
    notes = ["* best of its column"] if len(runs) > 1 else []
    classes = dict.fromkeys(request.shape.service_class for request in workload.requests)
    notes += [
        f"goodput: requests/s with TTFT up to {one.ttft_s:g} s and TPOT up to {one.tpot_s * 1000:g} ms"
        for one in classes
        if one.ttft_s is not None and one.tpot_s is not None
    ]
    together = [run.policy for run in runs if run.releases_at_once]
    if together:
        notes.append(
            f"– {', '.join(together)} hands over all tokens of a batch at its end: no gaps to measure"
        )
    notes += [
        f"! {run.policy}: {run.requests - run.completed} of {run.requests} requests did not complete"
        + (f": {next(iter(run.errors))}" if run.errors else "")
        for run in runs
        if run.completed < run.requests
    ]
    notes += [
        f"! {run.policy}: {run.preemptions} preemptions, as the KV cache was full"
        for run in runs
        if run.preemptions
    ]
    return notes


def class_table(runs: Sequence[PolicyRun]) -> Table:
    """A row for each policy and service class."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("policy", no_wrap=True)
    table.add_column("class", no_wrap=True)
    for title in (
        "requests",
        "met\ntargets",
        "goodput\nreq/s",
        "TTFT p99\ns",
        "TPOT p99\nms",
        "longest\ngap, ms",
    ):
        table.add_column(title, justify="right", no_wrap=True, vertical="bottom")
    for run in runs:
        for one in run.classes:
            latency = one.latency
            table.add_row(
                run.policy,
                one.service_class.name,
                str(one.num_requests),
                f"{one.attained:.1%}",
                f"{one.goodput_per_s:.2f}",
                _number(latency.ttft_s.p99, 1, 2),
                "–" if run.releases_at_once else _number(latency.tpot_s.p99, 1000, 0),
                "–" if run.releases_at_once else _number(latency.longest_gap_s.p99, 1000, 0),
            )
    return table


def interval_notes(repeats: Sequence[Sequence[PolicyRun]]) -> list[str]:
    """Means over repeats with their 95 % confidence intervals; none without repeats."""
    notes = []
    for runs in repeats:
        if len(runs) < 2:
            continue
        found = intervals(runs)
        speed, good = found["output_tokens_per_s"], found["goodput_requests_per_s"]
        notes.append(
            f"± {runs[0].policy}: {speed.mean:.0f} ± {speed.half_width:.0f} tokens/s, goodput {good.mean:.2f}"
            f" ± {good.half_width:.2f} requests/s (mean of {len(runs)}, 95 %)"
        )
    return notes


def _number(value: float | None, factor: float, decimals: int) -> str:
    return "–" if value is None else f"{value * factor:.{decimals}f}"


def _cells(column: _Column, runs: Sequence[PolicyRun]) -> list[Text]:
    """The column's cells, the best starred; what reads the same is equally good."""
    texts = [_text(column, run) for run in runs]
    values = {float(text) for text in texts if text is not None}
    best = max(values, default=None) if column.highest_is_best else min(values, default=None)
    cells = []
    for text in texts:
        if text is None:
            cells.append(Text("– "))
        elif len(values) > 1 and float(text) == best:
            # A star beside the colour, for terminals and files without it.
            cells.append(Text(f"{text}*", style="bold green"))
        else:
            cells.append(Text(f"{text} "))
    return cells


def _text(column: _Column, run: PolicyRun) -> str | None:
    value = column.value(run)
    if value is None or (column.is_gap and run.releases_at_once):
        return None
    return {"": f"{value:.0f}", "ms": f"{value * 1000:.0f}"}.get(column.unit, f"{value:.2f}")
