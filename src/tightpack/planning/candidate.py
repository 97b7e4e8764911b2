"""One way to serve the load, tried: a deployment, a policy and a number of replicas, simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightpack.benchmarking.capacity import Probe, find_capacity, probe_rate
from tightpack.benchmarking.target import InProcess
from tightpack.planning.deployments import Deployment
from tightpack.planning.load import Load
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.virtual_clock import VirtualClock


@dataclass(frozen=True)
class Candidate:
    """One deployment, policy and number of replicas, simulated under the load.

    goodput_rps: requests a second, over all replicas, that met every target. attainment: their share; of a
    simulation that was given up, among those that had ended by then. p99s in seconds, None where there are
    none. binds: what would break first, or did. usd_per_million: output tokens that met their targets.
    """

    deployment: Deployment
    policy: str
    limits: SchedulerLimits
    replicas: int
    goodput_rps: float
    attainment: float
    ttft_p99_s: float | None
    tpot_p99_s: float | None
    preemptions: int
    meets_slo: bool
    binds: str
    usd_per_hour: float | None
    usd_per_million: float | None
    on_front: bool = False

    @property
    def order(self) -> tuple[float, int, float]:
        """The less the better: dollars an hour, devices, divergence."""
        devices = self.replicas * self.deployment.tensor_parallel_size
        return self.usd_per_hour or 0.0, devices, self.deployment.kl


def simulate(deployment: Deployment, policy: str, replicas: int, load: Load) -> tuple[Candidate, int]:
    """One of the replicas under its part of the load; and the output tokens that were simulated."""
    limits = deployment.limits(policy, load, replicas)
    probe = _probe(deployment, policy, limits, load, replicas)
    run, verdict = probe.run, probe.verdict
    hourly = None if deployment.usd_per_hour is None else deployment.usd_per_hour * replicas
    goodput = load.rate * verdict.attained
    return Candidate(
        deployment=deployment,
        policy=policy,
        limits=limits,
        replicas=replicas,
        goodput_rps=goodput,
        attainment=verdict.attained,
        ttft_p99_s=run.latency.ttft_s.p99,
        tpot_p99_s=run.latency.tpot_s.p99,
        preemptions=run.preemptions,
        meets_slo=verdict.met,
        binds=_binds(probe, load),
        usd_per_hour=hourly,
        usd_per_million=None
        if hourly is None or goodput == 0
        else hourly / (3600 * goodput * load.mean_output) * 1e6,
    ), run.latency.num_output_tokens


def capacity(candidate: Candidate, load: Load) -> float:
    """Requests a second that all replicas of a candidate serve at the promise, to 5 %; 0 if none.

    The load is the same traffic at other rates, dealt out to as many replicas.
    """
    deployment, limits = candidate.deployment, candidate.limits

    def probe(rate: float) -> Probe:
        return _probe(deployment, candidate.policy, limits, replace(load, rate=rate), candidate.replicas)

    return find_capacity(candidate.policy, probe, load.rate).rate


def with_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Mark those that no other beats in price, divergence and latency together."""

    def values(one: Candidate) -> tuple[float, float, float, float]:
        price, _, kl = one.order
        return price, kl, one.ttft_p99_s or 0.0, one.tpot_p99_s or 0.0

    def beaten(one: Candidate) -> bool:
        mine = values(one)
        return any(
            theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
            for theirs in map(values, candidates)
        )

    return [replace(one, on_front=not beaten(one)) for one in candidates]


def _probe(deployment: Deployment, policy: str, limits: SchedulerLimits, load: Load, replicas: int) -> Probe:
    def make_loop(policy: str, **_: object) -> ServingLoop:
        return make_simulated_loop(deployment.cost_model, limits, policy, VirtualClock())

    share = load.rate / replicas
    return probe_rate(InProcess(make_loop), policy, load.part(replicas), share, load.level)


def _binds(probe: Probe, load: Load) -> str:
    """What is nearest to its limit, or over it: memory (requests lost their cache), TTFT or TPOT."""
    if probe.run.preemptions:
        return "memory"
    latency, promise = probe.run.latency, load.promise
    shares = {
        name: value / target
        for name, value, target in (
            ("TTFT", latency.ttft_s.p99, promise.ttft_s or load.level.max_ttft_s),
            ("TPOT", latency.tpot_s.p99, promise.tpot_s),
        )
        if value is not None and target is not None
    }
    return max(shares, key=lambda name: shares[name], default="TTFT")
