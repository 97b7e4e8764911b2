"""What the tour finds of one precision: its size, its price in quality, its runs under every policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tightpack.benchmarking.policy_run import PolicyRun
from tightpack.benchmarking.report import rounded
from tightpack.benchmarking.tour.recommendation import Candidate
from tightpack.evaluation.quick_quality import QuickQuality
from tightpack.latency.service_level import has_targets
from tightpack.latency.summary import LatencySummary


@dataclass(slots=True)
class PrecisionRuns:
    """name: "bf16", "int8", "int4". how: where these weights come from, in words.

    weight_bytes: as the executor keeps them; None where it does not tell.
    quality: against the original; None of the original itself.
    served_per_s: requests of the mix a second at the most, all there at once.
    """

    name: str
    how: str
    executor: Mapping[str, str]
    weight_bytes: int | None
    quality: QuickQuality | None
    served_per_s: float
    runs: list[PolicyRun] = field(default_factory=list)

    @property
    def kl(self) -> float:
        return 0.0 if self.quality is None else max(0.0, self.quality.kl)

    def to_json(self) -> dict[str, Any]:
        """What a result file holds of it beside the runs."""
        return {
            "name": self.name,
            "how": self.how,
            "weight_bytes": self.weight_bytes,
            "served_requests_per_s": rounded(self.served_per_s),
            "quality": None if self.quality is None else asdict(self.quality),
        }


def candidates(found: Sequence[PrecisionRuns]) -> list[Candidate]:
    return [_candidate(precision, run) for precision in found for run in precision.runs]


def attained(run: PolicyRun) -> float:
    """Of the requests whose class has targets, the share that met them; 1 where none has."""
    classes = [one for one in run.classes if has_targets(one.service_class)]
    count = sum(one.num_requests for one in classes)
    return sum(one.attained * one.num_requests for one in classes) / count if count else 1.0


def with_targets(run: PolicyRun) -> LatencySummary:
    """The latencies of the class that has targets (the first, of several); of all where none has."""
    classes = [one.latency for one in run.classes if has_targets(one.service_class)]
    return classes[0] if classes else run.latency


def _candidate(precision: PrecisionRuns, run: PolicyRun) -> Candidate:
    good = run.attained * run.requests
    return Candidate(
        precision=precision.name,
        policy=run.policy,
        attained=attained(run),
        goodput_per_s=run.goodput_per_s,
        busy_s=run.busy_s / good if good else float("inf"),
        kl=precision.kl,
    )
