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

from tightpack.planning.bounds import Pruned, fewest_replicas, reason_against
from tightpack.planning.candidate import Candidate, capacity, simulate, with_front
from tightpack.planning.deployments import Deployment
from tightpack.planning.entry import Entry
from tightpack.planning.jobs import InTurn, Jobs
from tightpack.planning.load import Load

# Of chunked prefill, which needs no deadlines to be told, first where both are as good.
POLICIES = ("chunked-prefill", "slo", "continuous")
# How many settled candidates are wanted, and how many output tokens may be simulated for those that follow
# the cheapest: about a quarter of a minute on one core.
_WANTED, _MOST_TOKENS = 8, 2_000_000
# Replicas beyond so many times the bound: what fails there fails for another reason than load.
_MOST_TIMES = 16
_CAPACITY = "capacity"

Wanted = Callable[[Entry], bool]


@dataclass
class Found:
    """best: the cheapest that keeps the promise. settled: those that do, cheapest first, `best` among them.

    capacity_rps: of the best, requests a second at the promise; None without one. failed: the last try of
    each that was seen not to, with so few replicas. pruned: those that no number of replicas helps.
    unsettled: how many others might keep it at no less than their bounds, and were left.
    """

    settled: list[Candidate] = field(default_factory=list)
    failed: list[Candidate] = field(default_factory=list)
    pruned: list[Pruned] = field(default_factory=list)
    unsettled: int = 0
    capacity_rps: float | None = None

    @property
    def best(self) -> Candidate | None:
        return self.settled[0] if self.settled else None


def search(
    deployments: Iterable[Deployment],
    load: Load,
    policies: Sequence[str] = POLICIES,
    *,
    max_kl: float | None = None,
    max_replicas: int | None = None,
    most_tokens: int = _MOST_TOKENS,
    jobs: Jobs | None = None,
    on_progress: Callable[[float, str], None] = lambda share, words: None,
) -> Found:
    """Prune, then simulate until the cheapest is settled, that of each precision and device, and others.

    jobs: where the simulations run, with `load` as their common argument; None for this process. on_progress:
    the share of the work that is done at most, and what is being simulated.
    """
    found = Found()
    entries: list[Entry] = []
    for deployment in deployments:
        pruned = reason_against(deployment, load, max_kl)
        if pruned is not None:
            found.pruned.append(pruned)
            continue
        bound = fewest_replicas(deployment, load)
        entries += [Entry(deployment, policy, bound, bound - 1) for policy in policies]
    run = _Search(entries, load, max_replicas, most_tokens, jobs or InTurn(load), on_progress)
    if run.settle(lambda entry: True, at_any_cost=True):
        run.begin_capacity()
    for of in (_precision, _device):
        for name in dict.fromkeys(of(entry.deployment) for entry in entries):
            if not any(of(one.deployment) == name for one in run.settled):
                run.settle_where(of, name)
    while len(run.settled) < _WANTED and run.settle(lambda entry: True):
        pass
    found.settled = with_front(sorted(run.settled, key=lambda one: one.order))
    found.failed = run.failed
    found.unsettled = run.unsettled
    if found.best is not None:
        found.capacity_rps = run.capacity()
    return found


class _Search:
    def __init__(
        self,
        entries: Iterable[Entry],
        load: Load,
        max_replicas: int | None,
        most_tokens: int,
        jobs: Jobs,
        on_progress: Callable[[float, str], None],
    ) -> None:
        self._load = load
        self._max_replicas = max_replicas
        self._tokens, self._most_tokens = 0, most_tokens
        self._jobs = jobs
        self._on_progress = on_progress
        self._known: dict[tuple[object, ...], Candidate] = {}
        # Of equal cost the first comes first, at its later trials as well: it may be settled by then.
        self._queue: list[tuple[tuple[float, int, float], int, Entry]] = []
        self.settled: list[Candidate] = []
        self.failed: list[Candidate] = []
        for number, entry in enumerate(entries):
            self._file(number, entry)

    @property
    def unsettled(self) -> int:
        return len(self._queue)

    def settle(self, wanted: Wanted, *, at_any_cost: bool = False) -> bool:
        """Simulate the cheapest of the wanted entries until one is settled. False where none will be."""
        aside = []
        done = False
        while self._queue and not done:
            item = heapq.heappop(self._queue)
            _, number, entry = item
            if not wanted(entry) or not (at_any_cost or self._affords(entry)):
                aside.append(item)
                continue
            if entry.settled:
                assert entry.high is not None
                self.settled.append(entry.high)
                done = True
            else:
                self._try(number, entry, wanted)
        for item in aside:
            heapq.heappush(self._queue, item)
        return done

    def settle_where(self, of: Callable[[Deployment], str], name: str) -> bool:
        return self.settle(lambda entry: of(entry.deployment) == name)

    def begin_capacity(self) -> None:
        """Of the first that was settled, which is the best."""
        self._jobs.begin(_CAPACITY, capacity, self.settled[0])

    def capacity(self) -> float:
        self._on_progress(1.0, f"capacity of {self.settled[0].deployment.label}")
        most: float = self._jobs.result(_CAPACITY)
        return most

    def _try(self, number: int, entry: Entry, wanted: Wanted) -> None:
        replicas = entry.next
        words = f"{entry.deployment.label}, {entry.policy}, {replicas} replica{'s' if replicas > 1 else ''}"
        self._on_progress(self._tokens / self._most_tokens, words)
        candidate = self._simulate(entry, wanted)
        entry.tried(candidate)
        most = min(self._max_replicas or math.inf, max(8, _MOST_TIMES * entry.bound))
        if entry.high is None and entry.low >= most:
            self.failed.append(candidate)
        else:
            self._file(number, entry)

    def _affords(self, entry: Entry) -> bool:
        return self._tokens < self._most_tokens or entry.settled or entry.key in self._known

    def _simulate(self, entry: Entry, wanted: Wanted) -> Candidate:
        """Once for all deployments of equal pace, such as fp8 and int8 (W8A8) on most GPUs."""
        key = entry.key
        if key not in self._known:
            self._begin(entry)
            self._begin_ahead(wanted)
            self._known[key], tokens = self._jobs.result(key)
            # What was given up at once has cost something, too.
            self._tokens += tokens + 1000
        return replace(self._known[key], deployment=entry.deployment)

    def _begin(self, entry: Entry) -> None:
        self._jobs.begin(entry.key, simulate, entry.deployment, entry.policy, entry.next)

    def _begin_ahead(self, wanted: Wanted) -> None:
        """What would be next, if what is under way turns out to be too little, as most of it does."""
        queue = iter(sorted(self._queue))
        while self._jobs.idle > 0 and (item := next(queue, None)) is not None:
            entry = item[2]
            if wanted(entry) and not entry.settled and entry.key not in self._known:
                self._begin(entry)

    def _file(self, number: int, entry: Entry) -> None:
        if self._max_replicas is None or entry.low < self._max_replicas:
            heapq.heappush(self._queue, (entry.cost, number, entry))


def _precision(deployment: Deployment) -> str:
    return deployment.weights.name


def _device(deployment: Deployment) -> str:
    return deployment.hardware
