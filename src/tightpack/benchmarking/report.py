"""The result file.

JSON: {"model", "machine", "runs": [{"policy", "requests", "completed", "output_tokens_per_s",
"ttft_s": {"p50", "p90", "p99"}, "tpot_s": {...}, "itl_s": {...}, ...}], ...}; seconds throughout. What each
field holds is in docs/benchmarking.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tightpack.benchmarking.manifest import Conditions
from tightpack.benchmarking.policy_run import PolicyRun, intervals, median_run
from tightpack.benchmarking.step_records import StepRecord
from tightpack.benchmarking.workload import Workload
from tightpack.latency.confidence import Interval
from tightpack.latency.percentiles import Percentiles
from tightpack.latency.summary import ClassSummary, LatencySummary

# Steps of a run that are kept for its timeline: minutes on a CPU, in 100 KiB.
TIMELINE_STEPS = 2000


def to_json(
    manifest: Mapping[str, Any],
    conditions: Conditions,
    workloads: Sequence[Workload],
    repeats: Sequence[Sequence[PolicyRun]],
) -> dict[str, Any]:
    """The result file.

    workloads: what was asked for, the first of the repeats of each load.
    repeats: for each policy and load, its runs, of which the median one is reported.
    """
    return {
        **manifest,
        "conditions": asdict(conditions),
        "workload": describe_workload(workloads[0]),
        "workloads": [describe_workload(workload) for workload in workloads],
        "runs": [_repeated(runs) for runs in repeats],
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_indented(report) + "\n", encoding="utf-8")


def describe_workload(workload: Workload) -> dict[str, Any]:
    return {
        "description": workload.description,
        "requests": len(workload.requests),
        "input_tokens": workload.num_input_tokens,
        "output_tokens": workload.num_output_tokens,
        "clipped_requests": workload.num_clipped,
        "rate": workload.rate,
        "clients": workload.clients,
        "last_arrival_s": rounded(workload.last_arrival_s),
        "service_classes": {
            one.name: {"ttft_s": one.ttft_s, "tpot_s": one.tpot_s}
            for one in dict.fromkeys(request.shape.service_class for request in workload.requests)
        },
    }


def run_to_json(run: PolicyRun) -> dict[str, Any]:
    return {
        "policy": run.policy,
        "rate": run.rate,
        "requests": run.requests,
        "completed": run.completed,
        "output_tokens_per_s": rounded(run.output_tokens_per_s),
        **_latencies(run.latency),
        "total_tokens_per_s": rounded(run.total_tokens_per_s),
        "goodput_requests_per_s": rounded(run.goodput_per_s),
        "attained": rounded(run.attained),
        "longest_prompts_attained": rounded(run.longest_prompts_attained),
        "classes": [_class_to_json(one) for one in run.classes],
        "output_tokens": run.latency.num_output_tokens,
        "duration_s": rounded(run.duration_s),
        "busy_s": rounded(run.busy_s),
        "steps": run.num_steps,
        "preemptions": run.preemptions,
        "prefix_cache": None
        if run.prefix_cache is None
        else dict(zip(("looked_up_tokens", "found_tokens"), run.prefix_cache, strict=True)),
        "errors": dict(run.errors),
        "timeline": _timeline(run.steps),
    }


def interval_to_json(interval: Interval) -> dict[str, float | None]:
    return {name: rounded(getattr(interval, name)) for name in ("mean", "low", "high")}


def rounded(value: float | None) -> float | None:
    """Microseconds and millionths; finer digits are noise."""
    return None if value is None else round(value, 6)


def _repeated(runs: Sequence[PolicyRun]) -> dict[str, Any]:
    record = run_to_json(median_run(runs))
    if len(runs) > 1:
        record["output_tokens_per_s_of_repeats"] = [rounded(run.output_tokens_per_s) for run in runs]
        record["repeats"] = len(runs)
        record["intervals"] = {name: interval_to_json(one) for name, one in intervals(runs).items()}
    return record


def _class_to_json(one: ClassSummary) -> dict[str, Any]:
    return {
        "name": one.service_class.name,
        "requests": one.num_requests,
        "attained": rounded(one.attained),
        "goodput_requests_per_s": rounded(one.goodput_per_s),
        **_latencies(one.latency),
    }


def _latencies(latency: LatencySummary) -> dict[str, Any]:
    return {
        name: _percentiles(getattr(latency, name))
        for name in ("ttft_s", "tpot_s", "itl_s", "longest_gap_s", "e2e_s")
    }


def _percentiles(percentiles: Percentiles) -> dict[str, float | None]:
    return {name: rounded(value) for name, value in asdict(percentiles).items()}


def _timeline(steps: Sequence[StepRecord]) -> dict[str, list[float]] | None:
    """The first steps of a run, as columns; None where the steps are not known."""
    kept = steps[:TIMELINE_STEPS]
    if not kept:
        return None
    return {
        "start_s": [round(one.start_s, 4) for one in kept],
        "elapsed_s": [round(one.elapsed_s, 5) for one in kept],
        "prompt_tokens": [one.prompt_tokens for one in kept],
        "decodes": [one.decodes for one in kept],
    }


def _indented(value: Any, indent: str = "") -> str:
    """JSON with a line a field, but lists of numbers on one line: a timeline is thousands of them."""
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        fields = [f"{inner}{json.dumps(str(k))}: {_indented(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(fields) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(one, (Mapping, list, tuple)) for one in value):
        return "[\n" + ",\n".join(inner + _indented(one, inner) for one in value) + f"\n{indent}]"
    return json.dumps(value)
