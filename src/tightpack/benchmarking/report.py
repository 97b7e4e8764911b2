"""Results as JSON and as a table for the terminal.

JSON: {"model", "machine", "runs": [{"policy", "requests", "completed", "output_tokens_per_s",
"ttft_s": {"p50", "p90", "p99"}, "tpot_s": {...}, "itl_s": {...}, ...}], ...}; seconds throughout.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tightpack.benchmarking.driver import Drive
from tightpack.benchmarking.machine import describe_machine
from tightpack.benchmarking.workload import Workload
from tightpack.latency.percentiles import Percentiles
from tightpack.latency.summary import LatencySummary, duration, goodput, summarize, throughput

_MEASURED_WITH = ("tightpack", "torch", "numpy")


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """One policy's numbers on a workload, in the units of `latency/`, over the completed requests.

    duration_s: from the first arrival to the last token of these.
    """

    policy: str
    requests: int
    completed: int
    duration_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float
    latency: LatencySummary
    steps: int
    preemptions: int
    busy_s: float

    @classmethod
    def of(cls, policy: str, drive: Drive) -> PolicyRun:
        done = [one for one in drive.outcomes if one.completed]
        latencies = [one.latency for one in done]
        seconds = duration(latencies)
        summary = summarize(latencies)
        input_tokens = sum(one.planned.shape.input_len for one in done)
        return cls(
            policy=policy,
            requests=len(drive.outcomes),
            completed=len(done),
            duration_s=seconds,
            output_tokens_per_s=throughput(summary.num_output_tokens, seconds),
            total_tokens_per_s=throughput(summary.num_output_tokens + input_tokens, seconds),
            goodput_per_s=goodput(latencies, [one.planned.shape.service_class for one in done], seconds),
            latency=summary,
            steps=drive.stats.steps,
            preemptions=drive.stats.preemptions,
            busy_s=drive.stats.busy_s,
        )

    @property
    def releases_at_once(self) -> bool:
        """Whether requests got all their tokens together, so that TPOT and ITL are zero and mean nothing."""
        return self.latency.itl_s.max == 0

    def to_json(self) -> dict[str, Any]:
        latency = self.latency
        return {
            "policy": self.policy,
            "requests": self.requests,
            "completed": self.completed,
            "output_tokens_per_s": _rounded(self.output_tokens_per_s),
            "ttft_s": _percentiles(latency.ttft_s),
            "tpot_s": _percentiles(latency.tpot_s),
            "itl_s": _percentiles(latency.itl_s),
            "e2e_s": _percentiles(latency.e2e_s),
            "total_tokens_per_s": _rounded(self.total_tokens_per_s),
            "goodput_requests_per_s": _rounded(self.goodput_per_s),
            "output_tokens": latency.num_output_tokens,
            "duration_s": _rounded(self.duration_s),
            "busy_s": _rounded(self.busy_s),
            "steps": self.steps,
            "preemptions": self.preemptions,
        }


def median_run(runs: Sequence[PolicyRun]) -> PolicyRun:
    """Of repeats of one policy, the one of median throughput (the lower of two), never a mix of runs."""
    middle = statistics.median_low(run.output_tokens_per_s for run in runs)
    return next(run for run in runs if run.output_tokens_per_s == middle)


def to_json(
    *,
    model: str,
    executor: Mapping[str, str],
    arguments: Mapping[str, Any],
    workload: Workload,
    repeats: Sequence[Sequence[PolicyRun]],
) -> dict[str, Any]:
    """The result file. repeats: for each policy, its runs, of which the median one is reported."""
    runs = []
    for policy_runs in repeats:
        record = median_run(policy_runs).to_json()
        if len(policy_runs) > 1:
            rates = [_rounded(run.output_tokens_per_s) for run in policy_runs]
            record["output_tokens_per_s_of_repeats"] = rates
        runs.append(record)
    return {
        "model": model,
        "machine": describe_machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": _versions(),
        "executor": dict(executor),
        "arguments": dict(arguments),
        "workload": describe_workload(workload),
        "runs": runs,
    }


def describe_workload(workload: Workload) -> dict[str, Any]:
    return {
        "description": workload.description,
        "requests": len(workload.requests),
        "input_tokens": workload.num_input_tokens,
        "output_tokens": workload.num_output_tokens,
        "clipped_requests": workload.num_clipped,
        "last_arrival_s": _rounded(max(one.shape.arrival_s for one in workload.requests)),
        "service_classes": {
            one.name: {"ttft_s": one.ttft_s, "tpot_s": one.tpot_s}
            for one in dict.fromkeys(request.shape.service_class for request in workload.requests)
        },
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


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
        for run in runs
        if run.completed < run.requests
    ]
    notes += [
        f"! {run.policy}: {run.preemptions} preemptions, as the KV cache was full"
        for run in runs
        if run.preemptions
    ]
    return notes


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


def _percentiles(percentiles: Percentiles) -> dict[str, float | None]:
    return {name: _rounded(value) for name, value in asdict(percentiles).items()}


def _rounded(value: float | None) -> float | None:
    """Microseconds and millionths; finer digits are noise."""
    return None if value is None else round(value, 6)


def _versions() -> dict[str, str]:
    found = {}
    for name in _MEASURED_WITH:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
