"""One policy's numbers on a workload, and what several runs say together."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tightpack.benchmarking.outcomes import Drive
from tightpack.benchmarking.step_records import StepRecord
from tightpack.latency.confidence import Interval
from tightpack.latency.service_level import ServedRequest
from tightpack.latency.summary import (
    ClassSummary,
    LatencySummary,
    duration,
    goodput,
    summarize,
    summarize_by_class,
    throughput,
)


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """In the units of `latency/`, over the completed requests; `classes` over all of them.

    rate: requests a second that were asked for; None when they came together or in closed loop.
    duration_s: from the first arrival to the last token of the completed.
    attained: the share of all requests that met every target of their class.
    longest_prompts_attained: the same of the tenth with the longest prompts (one request at the least).
    prefix_cache: prompt tokens looked up, and found; None for a server that does not tell.
    errors: why requests failed or were refused, and how many each.
    steps: the timeline; start_s counts from the beginning of the run.
    """

    policy: str
    rate: float | None
    requests: int
    completed: int
    duration_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float
    attained: float
    longest_prompts_attained: float
    latency: LatencySummary
    classes: tuple[ClassSummary, ...]
    num_steps: int
    preemptions: int
    busy_s: float
    prefix_cache: tuple[int, int] | None
    errors: Mapping[str, int]
    steps: tuple[StepRecord, ...] = field(repr=False)

    @classmethod
    def of(cls, policy: str, drive: Drive) -> PolicyRun:
        done = [one for one in drive.outcomes if one.completed]
        latencies = [one.latency for one in done]
        seconds = duration(latencies)
        summary = summarize(latencies)
        input_tokens = sum(one.planned.shape.input_len for one in done)
        served = [one.served for one in drive.outcomes]
        stats = drive.stats
        return cls(
            policy=policy,
            rate=drive.workload.rate,
            requests=len(drive.outcomes),
            completed=len(done),
            duration_s=seconds,
            output_tokens_per_s=throughput(summary.num_output_tokens, seconds),
            total_tokens_per_s=throughput(summary.num_output_tokens + input_tokens, seconds),
            goodput_per_s=goodput(latencies, [one.planned.shape.service_class for one in done], seconds),
            attained=_attained(served),
            longest_prompts_attained=_attained(longest_prompts(served)),
            latency=summary,
            classes=summarize_by_class(
                [one.latency for one in served], [one.service_class for one in served], seconds
            ),
            num_steps=stats.steps,
            preemptions=stats.preemptions,
            busy_s=stats.busy_s,
            prefix_cache=(stats.prefix_cache_queries, stats.prefix_cache_hits) if stats.steps else None,
            errors=Counter(one.error for one in drive.outcomes if one.error is not None),
            steps=tuple(
                StepRecord(one.start_s - drive.start, one.elapsed_s, one.prompt_tokens, one.decodes)
                for one in drive.steps
            ),
        )

    @property
    def releases_at_once(self) -> bool:
        """Whether requests got all their tokens together, so that TPOT and ITL are zero and mean nothing."""
        return self.latency.itl_s.max == 0


def longest_prompts(requests: Sequence[ServedRequest]) -> list[ServedRequest]:
    """The tenth with the longest prompts, one at the least: a policy that sheds gives them up first."""
    by_length = sorted(requests, key=lambda one: one.prompt_tokens, reverse=True)
    return by_length[: max(1, len(by_length) // 10)]


def median_run(runs: Sequence[PolicyRun]) -> PolicyRun:
    """Of repeats of one policy, the one of median throughput (the lower of two), never a mix of runs."""
    middle = statistics.median_low(run.output_tokens_per_s for run in runs)
    return next(run for run in runs if run.output_tokens_per_s == middle)


def intervals(runs: Sequence[PolicyRun]) -> dict[str, Interval]:
    """Over repeats of one policy: metric (its path in the result file) to its mean and confidence interval.

    A metric that some run does not have (no request gave two tokens) is left out.
    """
    found = {}
    for name, values in _metrics(runs).items():
        given = [value for value in values if value is not None]
        if len(given) == len(runs):
            found[name] = Interval.of(given)
    return found


def _metrics(runs: Sequence[PolicyRun]) -> dict[str, list[float | None]]:
    percentiles = {
        f"{name}.{which}": [getattr(getattr(run.latency, name), which) for run in runs]
        for name in ("ttft_s", "tpot_s", "itl_s", "longest_gap_s", "e2e_s")
        for which in ("p50", "p99")
    }
    return {
        "output_tokens_per_s": [run.output_tokens_per_s for run in runs],
        "goodput_requests_per_s": [run.goodput_per_s for run in runs],
        "attained": [run.attained for run in runs],
        **percentiles,
    }


def _attained(requests: Sequence[ServedRequest]) -> float:
    return sum(one.latency.meets(one.service_class) for one in requests) / len(requests)
