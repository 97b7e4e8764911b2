"""The same workload on the real executor and in simulation: how well the one foretells the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tightpack.benchmarking.driver import drive
from tightpack.benchmarking.outcomes import Drive
from tightpack.benchmarking.workload import Workload
from tightpack.latency.summary import duration, summarize, throughput
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.virtual_clock import VirtualClock


@dataclass(frozen=True, slots=True)
class Figures:
    """Output tokens a second; seconds. None where no request had the latency (TPOT of one token)."""

    output_tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None

    @classmethod
    def of(cls, driven: Drive) -> Figures:
        latencies = [outcome.latency for outcome in driven.outcomes]
        summary = summarize(latencies)
        return cls(
            output_tokens_per_s=throughput(summary.num_output_tokens, duration(latencies)),
            ttft_p50_s=summary.ttft_s.p50,
            ttft_p99_s=summary.ttft_s.p99,
            tpot_p50_s=summary.tpot_s.p50,
            tpot_p99_s=summary.tpot_s.p99,
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """One policy under one workload. rate: requests a second."""

    policy: str
    rate: float
    predicted: Figures
    measured: Figures

    def errors(self) -> dict[str, float]:
        """predicted / measured - 1 by figure; those that were not measured, or are 0, are left out."""
        predicted, measured = asdict(self.predicted), asdict(self.measured)
        return {
            name: predicted[name] / value - 1
            for name, value in measured.items()
            if value and predicted[name] is not None
        }

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "errors": self.errors()}


def check_predictions(
    real: Callable[[str], ServingLoop],
    simulated: Callable[[str, VirtualClock], ServingLoop],
    policies: Sequence[str],
    workloads: Sequence[tuple[float, Workload]],
) -> Iterator[Prediction]:
    """One for each policy and workload, as it is measured.

    real, simulated: fresh loops under the named policy, with the same limits.
    workloads: requests a second, and the requests.
    """
    for rate, workload in workloads:
        for policy in policies:
            predicted = predict(simulated, policy, workload)
            measured = Figures.of(drive(real(policy), workload))
            yield Prediction(policy, rate, predicted, measured)


def predict(
    simulated: Callable[[str, VirtualClock], ServingLoop], policy: str, workload: Workload
) -> Figures:
    clock = VirtualClock()
    return Figures.of(drive(simulated(policy, clock), workload))
