"""The same workload on the real executor and in simulation: how well the one foretells the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tightpack.benchmarking.driver import drive
from tightpack.benchmarking.outcomes import Drive
from tightpack.benchmarking.workload import Workload
from tightpack.latency.summary import duration, summarize, throughput
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.virtual_clock import VirtualClock


class Simulated(Protocol):
    def __call__(self, policy: str, clock: VirtualClock, slowdown: float = 1.0) -> ServingLoop:
        """A fresh loop on a machine whose steps take so many times what the cost model says."""


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
    """One policy under one workload. rate: requests a second.

    slowdown: of the machine around the run, against its calibration; known before the run's outcome is.
    predicted: at that speed. unadjusted: at the speed of the calibration.
    """

    policy: str
    rate: float
    slowdown: float
    predicted: Figures
    unadjusted: Figures
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
    simulated: Simulated,
    workloads: Mapping[str, Sequence[tuple[float, Workload]]],
    slowdown: Callable[[], float] = lambda: 1.0,
) -> Iterator[Prediction]:
    """One for each policy and workload, as it is measured; the policies take turns.

    real, simulated: fresh loops under the named policy, with the same limits.
    workloads: for each policy, requests a second and the requests; as many for each.
    slowdown: of the machine now; asked before and after each run, whose mean is the run's.
    """
    for of_each in zip(*workloads.values(), strict=True):
        for policy, (rate, workload) in zip(workloads, of_each, strict=True):
            before = slowdown()
            measured = Figures.of(drive(real(policy), workload))
            factor = (before + slowdown()) / 2
            predicted = predict(simulated, policy, workload, factor)
            unadjusted = predict(simulated, policy, workload)
            yield Prediction(policy, rate, factor, predicted, unadjusted, measured)


def predict(simulated: Simulated, policy: str, workload: Workload, slowdown: float = 1.0) -> Figures:
    clock = VirtualClock()
    return Figures.of(drive(simulated(policy, clock, slowdown), workload))
