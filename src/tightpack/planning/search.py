"""The cheapest way to keep a promise: deployments x policies x replicas, simulated cheapest first.

Every entry of the queue costs at least what it is filed under, so the first that is settled is the cheapest
of all (best-first search, Hart, Nilsson and Raphael 1968). The bound of an entry is its fewest replicas by
`bounds.fewest_replicas`, and then one more than a simulation has found to be too few.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from tightpack.benchmarking.capacity import Probe, find_capacity, probe_rate
from tightpack.benchmarking.target import InProcess
from tightpack.planning.bounds import Pruned, fewest_replicas, reason_against
from tightpack.planning.deployments import Deployment
from tightpack.planning.load import Load
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.virtual_clock import VirtualClock

# Of chunked prefill, which needs no deadlines to be told, first where both are as good.
POLICIES = ("chunked-prefill", "slo", "continuous")
# How many settled candidates are wanted, and how many output tokens may be simulated for those that follow
# the cheapest: about a quarter of a minute on one core.
_WANTED, _MOST_TOKENS = 8, 2_000_000
# Replicas beyond so many times the bound: what fails there fails for another reason than load.
_MOST_TIMES = 16


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


@dataclass
class Found:
    """best: the cheapest that keeps the promise. settled: those that do, cheapest first, `best` among them.

    failed: the last try of each that was seen not to, with so few replicas. pruned: those that no number of
    replicas helps. unsettled: how many others might keep it at no less than their bounds, and were left.
    """

    settled: list[Candidate] = field(default_factory=list)
    failed: list[Candidate] = field(default_factory=list)
    pruned: list[Pruned] = field(default_factory=list)
    unsettled: int = 0

    @property
    def best(self) -> Candidate | None:
        return self.settled[0] if self.settled else None


@dataclass
class _Entry:
    """low: replicas known to be too few. high: the candidate with the fewest known to be enough."""

    deployment: Deployment
    policy: str
    bound: int
    low: int
    high: Candidate | None = None
    last: Candidate | None = None

    @property
    def settled(self) -> bool:
        return self.high is not None and self.high.replicas == self.low + 1

    @property
    def cost(self) -> tuple[float, int, float]:
        """Of its cheapest number of replicas that may do: dollars an hour, devices, divergence."""
        replicas = self.low + 1
        price = self.deployment.usd_per_hour or 0.0
        devices = self.deployment.tensor_parallel_size * replicas
        return price * replicas, devices, self.deployment.kl

    @property
    def key(self) -> tuple[object, ...]:
        """Entries of equal keys come out alike at their next try."""
        return self.deployment.pace, self.deployment.cache_tokens, self.policy, self.next

    @property
    def next(self) -> int:
        if self.high is not None:
            return (self.low + 1 + self.high.replicas) // 2
        # Up by a quarter: what was skipped is bisected once something is enough.
        return self.low + 1 if self.low < self.bound else self.low + max(1, self.low // 4)


def search(
    deployments: Iterable[Deployment],
    load: Load,
    policies: Sequence[str] = POLICIES,
    *,
    max_kl: float | None = None,
    max_replicas: int | None = None,
    most_tokens: int = _MOST_TOKENS,
    on_progress: Callable[[float, str], None] = lambda share, words: None,
) -> Found:
    """Prune, then simulate until the cheapest is settled, that of each precision and device, and others.

    on_progress: the share of the work that is done at most, and what is being simulated.
    """
    found = Found()
    entries: list[_Entry] = []
    for deployment in deployments:
        pruned = reason_against(deployment, load, max_kl)
        if pruned is not None:
            found.pruned.append(pruned)
            continue
        bound = fewest_replicas(deployment, load)
        entries += [_Entry(deployment, policy, bound, bound - 1) for policy in policies]
    run = _Search(entries, load, max_replicas, most_tokens, on_progress)
    run.settle(lambda entry: True, at_any_cost=True)
    for of in (_precision, _device):
        for name in dict.fromkeys(of(entry.deployment) for entry in entries):
            if not any(of(one.deployment) == name for one in run.settled):
                run.settle_where(of, name)
    while len(run.settled) < _WANTED and run.settle(lambda entry: True):
        pass
    found.settled = _with_front(sorted(run.settled, key=_order))
    found.failed = run.failed
    found.unsettled = run.unsettled
    return found


def capacity(candidate: Candidate, load: Load) -> float:
    """Requests a second that all replicas of a candidate serve at the promise, to 5 %; 0 if none."""
    deployment, limits = candidate.deployment, candidate.limits

    def probe(rate: float) -> Probe:
        return _probe(deployment, candidate.policy, limits, load, rate)

    start = load.rate / candidate.replicas
    return find_capacity(candidate.policy, probe, start).rate * candidate.replicas


def simulate(deployment: Deployment, policy: str, replicas: int, load: Load) -> tuple[Candidate, int]:
    """One of the replicas under its part of the load; and the output tokens that were simulated."""
    limits = deployment.limits(policy, load, replicas)
    workload = load.part(replicas)
    probe = probe_rate(_target(deployment, limits), policy, workload, load.rate / replicas, load.level)
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


class _Search:
    def __init__(
        self,
        entries: Iterable[_Entry],
        load: Load,
        max_replicas: int | None,
        most_tokens: int,
        on_progress: Callable[[float, str], None],
    ) -> None:
        self._load = load
        self._max_replicas = max_replicas
        self._tokens, self._most_tokens = 0, most_tokens
        self._on_progress = on_progress
        self._ages = count()
        self._known: dict[tuple[object, ...], Candidate] = {}
        self._queue: list[tuple[tuple[float, int, float], int, _Entry]] = []
        self.settled: list[Candidate] = []
        self.failed: list[Candidate] = []
        for entry in entries:
            self._file(entry)

    @property
    def unsettled(self) -> int:
        return len(self._queue)

    def settle(self, wanted: Callable[[_Entry], bool], *, at_any_cost: bool = False) -> bool:
        """Simulate the cheapest of the wanted entries until one is settled. False where none will be."""
        aside = []
        done = False
        while self._queue and not done:
            item = heapq.heappop(self._queue)
            entry = item[2]
            if not wanted(entry) or not (at_any_cost or self._affords(entry)):
                aside.append(item)
                continue
            if entry.settled:
                assert entry.high is not None
                self.settled.append(entry.high)
                done = True
            else:
                self._try(entry)
        for item in aside:
            heapq.heappush(self._queue, item)
        return done

    def settle_where(self, of: Callable[[Deployment], str], name: str) -> bool:
        return self.settle(lambda entry: of(entry.deployment) == name)

    def _try(self, entry: _Entry) -> None:
        replicas = entry.next
        words = f"{entry.deployment.label}, {entry.policy}, {replicas} replica{'s' if replicas > 1 else ''}"
        self._on_progress(self._tokens / self._most_tokens, words)
        candidate = self._simulate(entry, replicas)
        if candidate.meets_slo:
            entry.high = candidate
        else:
            entry.low, entry.last = replicas, candidate
        most = min(self._max_replicas or math.inf, max(8, _MOST_TIMES * entry.bound))
        if entry.high is None and entry.low >= most:
            self.failed.append(candidate)
        else:
            self._file(entry)

    def _affords(self, entry: _Entry) -> bool:
        return self._tokens < self._most_tokens or entry.settled or entry.key in self._known

    def _simulate(self, entry: _Entry, replicas: int) -> Candidate:
        """Once for all deployments of equal pace, such as fp8 and int8 (W8A8) on most GPUs."""
        deployment, key = entry.deployment, entry.key
        known = self._known.get(key)
        if known is not None:
            return replace(known, deployment=deployment)
        candidate, tokens = simulate(deployment, entry.policy, replicas, self._load)
        # What was given up at once has cost something, too.
        self._tokens += tokens + 1000
        self._known[key] = candidate
        return candidate

    def _file(self, entry: _Entry) -> None:
        if self._max_replicas is None or entry.low < self._max_replicas:
            heapq.heappush(self._queue, (entry.cost, next(self._ages), entry))


def _precision(deployment: Deployment) -> str:
    return deployment.weights.name


def _device(deployment: Deployment) -> str:
    return deployment.hardware


def _probe(deployment: Deployment, policy: str, limits: SchedulerLimits, load: Load, rate: float) -> Probe:
    return probe_rate(_target(deployment, limits), policy, load.at_rate(rate), rate, load.level)


def _target(deployment: Deployment, limits: SchedulerLimits) -> InProcess:
    def make_loop(policy: str, **_: object) -> ServingLoop:
        return make_simulated_loop(deployment.cost_model, limits, policy, VirtualClock())

    return InProcess(make_loop)


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


def _order(candidate: Candidate) -> tuple[float, int, float]:
    devices = candidate.replicas * candidate.deployment.tensor_parallel_size
    return candidate.usd_per_hour or 0.0, devices, candidate.deployment.kl


def _with_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Mark those that no other beats in price, divergence and latency together."""

    def values(one: Candidate) -> tuple[float, float, float, float]:
        price, _, kl = _order(one)
        return price, kl, one.ttft_p99_s or 0.0, one.tpot_p99_s or 0.0

    def beaten(one: Candidate) -> bool:
        mine = values(one)
        return any(
            theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
            for theirs in map(values, candidates)
        )

    return [replace(one, on_front=not beaten(one)) for one in candidates]
