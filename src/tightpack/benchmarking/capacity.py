"""The largest load that a policy serves at its service level: bracketed, then bisected."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tightpack.benchmarking.outcomes import Outcome, Progress
from tightpack.benchmarking.policy_run import PolicyRun
from tightpack.benchmarking.report import describe_workload, interval_to_json, rounded, run_to_json
from tightpack.benchmarking.target import Target
from tightpack.benchmarking.workload import Workload
from tightpack.latency.confidence import Interval
from tightpack.latency.service_level import ServiceLevel, Verdict, has_targets, judge
from tightpack.requests.request import FinishReason

# Doublings or halvings before the search gives up: beyond the thousandfold the first guess was no guess.
_MOST_BRACKETING = 12


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate tried. Verdict and numbers of a probe that was given up are of what had ended by then."""

    rate: float
    verdict: Verdict
    run: PolicyRun
    given_up: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """rate: the largest probed that met the service level, 0 if none did. probes: all, as they were tried.

    unmet_rate: the smallest probed above it that did not; None when none failed.
    """

    policy: str
    rate: float
    unmet_rate: float | None
    probes: tuple[Probe, ...]

    @property
    def best(self) -> Probe | None:
        """The probe at `rate`."""
        return next((probe for probe in self.probes if probe.verdict.met and probe.rate == self.rate), None)


def find_capacity(
    policy: str, probe: Callable[[float], Probe], start: float, *, resolution: float = 0.05, step: float = 2.0
) -> Capacity:
    """Search the largest rate whose probe meets its service level, to within `resolution` of itself.

    The rate is multiplied by `step` while it is met, or divided until it is, and then bisected, on the
    assumption that a load below one that is met is met. start: requests a second, a guess. step: the nearer
    the guess the smaller, to save probes; it grows to 2 while the guess turns out to be far off.
    """
    if not start > 0:
        raise ValueError(f"the search for a capacity starts above 0 requests a second, got {start}")
    if not 0 < resolution < 1:
        raise ValueError(f"the resolution of a capacity lies between 0 and 1, got {resolution}")
    if not 1 < step <= 2:
        raise ValueError(f"the step of a search lies above 1 and up to 2, got {step}")
    probes: list[Probe] = []

    def is_met(rate: float) -> bool:
        probes.append(probe(rate))
        return probes[-1].verdict.met

    low, high = _bracket(is_met, start, step)
    while low and high is not None and high > low * (1 + resolution):
        middle = (low + high) / 2
        if is_met(middle):
            low = middle
        else:
            high = middle
    return Capacity(policy, low, high, tuple(probes))


def _bracket(is_met: Callable[[float], bool], start: float, step: float) -> tuple[float, float | None]:
    """A rate that is met (0: none was) and one above it that is not (None: all were)."""
    rate = start
    upwards = is_met(rate)
    for _ in range(_MOST_BRACKETING):
        following = rate * step if upwards else rate / step
        if is_met(following) != upwards:
            return (rate, following) if upwards else (following, rate)
        rate, step = following, min(2.0, step * step)
    return (rate, None) if upwards else (0.0, rate)


def requests_for(rate: float, seconds: float) -> int:
    """How many requests keep a rate up for so long: a burst that is over before its queue has grown proves
    nothing about a load that lasts."""
    return math.ceil(rate * seconds) + 1


def probe_rate(
    target: Target,
    policy: str,
    workload: Workload,
    rate: float,
    level: ServiceLevel,
    on_progress: Callable[[Progress], None] | None = None,
) -> Probe:
    """Run a workload whose arrivals have this rate, until it is done or can no longer meet the level."""
    watch = _Hopeless(workload, level)
    drive = target.run(policy, workload, watch=watch, on_progress=on_progress)
    if drive.given_up:
        # What was dropped, or had not arrived, met nothing and missed nothing.
        ended = [one for one in drive.outcomes if one.finish_reason not in (None, FinishReason.ABORT)]
        verdict = replace(judge([one.served for one in ended], level), reasons=(watch.reason,))
    else:
        verdict = judge([one.served for one in drive.outcomes], level)
    return Probe(rate, verdict, PolicyRun.of(policy, drive), drive.given_up)


def capacity_to_json(
    level: ServiceLevel,
    resolution: float,
    probe_s: float,
    workload: Workload,
    found: Sequence[Sequence[Capacity]],
) -> dict[str, Any]:
    """The part of a result file that a search gives.

    probe_s: how long the arrivals of a probe lasted at the least. found: for each policy, its repeats.
    `runs` are those at the median repeat's capacity; a policy that met the level at no rate has none.
    """
    medians = [_median(repeats) for repeats in found]
    return {
        "workload": describe_workload(workload),
        "workloads": [describe_workload(workload)],
        "runs": [
            {**run_to_json(best.run), "rate": best.rate} for one in medians if (best := one.best) is not None
        ],
        "capacity": {
            "service_level": asdict(level),
            "resolution": resolution,
            "probe_s": probe_s,
            "policies": [
                {
                    "policy": median.policy,
                    "rate": rounded(median.rate),
                    "unmet_rate": rounded(median.unmet_rate),
                    "interval": interval_to_json(Interval.of(one.rate for one in repeats)),
                    "repeats": [_repeat_to_json(one) for one in repeats],
                }
                for median, repeats in zip(medians, found, strict=True)
            ],
        },
    }


def _median(repeats: Sequence[Capacity]) -> Capacity:
    middle = statistics.median_low(one.rate for one in repeats)
    return next(one for one in repeats if one.rate == middle)


def _repeat_to_json(one: Capacity) -> dict[str, Any]:
    return {
        "rate": rounded(one.rate),
        "unmet_rate": rounded(one.unmet_rate),
        "probes": [_probe_to_json(probe) for probe in one.probes],
    }


def _probe_to_json(probe: Probe) -> dict[str, Any]:
    verdict = probe.verdict
    run = run_to_json(probe.run)
    del run["timeline"]
    return {
        "rate": rounded(probe.rate),
        "met": verdict.met,
        "given_up": probe.given_up,
        "reasons": list(verdict.reasons),
        "attained": rounded(verdict.attained),
        "longest_ttft_s": rounded(verdict.longest_ttft_s),
        "batch_tokens_served": rounded(verdict.batch_tokens_served),
        "run": run,
    }


class _Hopeless:
    """Gives a run up once it cannot meet its level any more: far above capacity that is nearly at once."""

    def __init__(self, workload: Workload, level: ServiceLevel) -> None:
        with_targets = sum(has_targets(one.shape.service_class) for one in workload.requests)
        self._misses_left = level.allowed_misses(with_targets)
        self._longest_wait = level.max_ttft_s
        self.reason = ""

    def ended(self, outcome: Outcome) -> None:
        served = outcome.served
        if served.has_targets and not served.latency.meets(served.service_class):
            self._misses_left -= 1

    def gives_up(self, now: float, waiting_since: float | None) -> bool:
        if self._misses_left < 0:
            self.reason = "more requests missed their targets than may"
        elif waiting_since is not None and now - waiting_since > self._longest_wait:
            self.reason = f"a request waited over {self._longest_wait:g} s for its first token"
        return bool(self.reason)
