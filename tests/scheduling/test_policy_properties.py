"""Properties of every policy over random workloads, on a virtual clock and a KV memory that is written.

The `World` is a serving loop and an executor in one. It stores at each physical slot which context (all
tokens up to that position) was written there, and checks before each chunk that all earlier positions hold
just that. So a wrongly shared, leaked, skipped or overwritten block is seen by its effect, whatever the
bookkeeping says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import ServiceClass
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.scheduling.policy import QueueFullError
from tightpack.scheduling.registry import POLICY_NAMES, make_policy

EXAMPLES_PER_POLICY = 1000
PLAIN = SamplingParams(max_tokens=None)
# Targets about as long as the world's steps: some are met, some missed, some never could be met.
CLASSES = (
    ServiceClass("tight", ttft_s=0.5, tpot_s=0.15),
    ServiceClass("loose", ttft_s=4.0, tpot_s=0.5),
    ServiceClass("untimed"),
    ServiceClass("impossible", ttft_s=0.01, tpot_s=0.01),
)
WITH_PROMPT_LOGPROBS = SamplingParams(max_tokens=None, prompt_logprobs=0)
# Few streams of few token ids, so that prompts share heads, and outputs run into each other's prompts.
STREAMS = [[random.Random(seed).randrange(2) for _ in range(64)] for seed in range(2)]


@dataclass(frozen=True)
class Job:
    """A request to come. `fails`, `aborts`: in or before which step of the world (None: never)."""

    arrival: float
    stream: int
    head: int
    tail: tuple[int, ...]
    output: int
    prompt_logprobs: bool
    service_class: int
    fails: int | None
    aborts: int | None


@dataclass(frozen=True)
class Workload:
    limits: SchedulerLimits
    jobs: tuple[Job, ...]
    lost_steps: frozenset[int]
    closes_intake: bool


def make_job(seed: int, arrival: float, longest: int) -> Job:
    """A job of one number: quick to draw, and spread wider than hypothesis spreads many small draws."""
    rng = random.Random(seed)
    prompt = rng.randint(1, rng.choice([longest // 3, longest - 1]))
    head = rng.choice([0, prompt, rng.randint(0, prompt)])
    return Job(
        arrival=arrival,
        stream=rng.randrange(2),
        head=head,
        tail=tuple(rng.randrange(2) for _ in range(prompt - head)),
        output=rng.choice([1, rng.randint(1, longest - prompt), longest - prompt]),
        prompt_logprobs=rng.random() < 0.2,
        service_class=rng.randrange(len(CLASSES)),
        fails=rng.randrange(20) if rng.random() < 0.1 else None,
        aborts=rng.randrange(20) if rng.random() < 0.2 else None,
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    rng = random.Random(draw(st.integers(0, 2**32)))
    block_size = rng.randint(1, 4)
    max_model_len = rng.randint(8, 32)
    smallest_pool = -(-max_model_len // block_size)
    limits = SchedulerLimits(
        max_num_seqs=rng.randint(1, 6),
        max_num_batched_tokens=max_model_len + rng.randint(0, 20),
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=smallest_pool + rng.choice([0, 1, 2, smallest_pool // 2, smallest_pool]),
        max_queue=rng.choice([1, 3, 100, 100]),
        max_wait=rng.choice([0.0, 0.3, 2.0]),
        enable_prefix_caching=rng.random() < 0.7,
    )
    jobs = []
    arrival = 0.0
    gaps = rng.choice([(0.0,), (0.0, 0.1), (0.0, 0.1, 1.0, 5.0)])
    for seed in draw(st.lists(st.integers(0, 2**32), min_size=1, max_size=10)):
        arrival += random.Random(seed).choice(gaps)
        jobs.append(make_job(seed, arrival, max_model_len))
    lost = frozenset(rng.randrange(30) for _ in range(rng.choice([0, 0, 1, 2])))
    return Workload(limits, tuple(jobs), lost, rng.random() < 0.5)


def contexts(token_ids: list[int]) -> list[int]:
    """What identifies the keys and values at each position: everything up to it."""
    context, chain = 0, []
    for token in token_ids:
        context = hash((context, token))
        chain.append(context)
    return chain


def next_token(token_ids: list[int]) -> int:
    """The model: a fixed function of the tokens so far, so that a request's output is known beforehand."""
    return STREAMS[len(token_ids) % 2][len(token_ids) % 64]


@dataclass
class Seen:
    """What the world knows of a request that holds blocks, from the plans alone."""

    table: tuple[int, ...]
    computed: int


@dataclass
class World:
    name: str
    workload: Workload
    now: float = 0.0
    num_steps: int = 0
    slots: dict[tuple[int, int], int] = field(default_factory=dict)
    waiting: list[Request] = field(default_factory=list)  # never ran, in order of arrival
    holding: dict[Request, Seen] = field(default_factory=dict)
    age: dict[Request, int] = field(default_factory=dict)  # of the unfinished
    batch: list[Request] = field(default_factory=list)
    ended: set[Request] = field(default_factory=set)
    num_evictions: int = 0

    def __post_init__(self) -> None:
        self.limits = self.workload.limits
        if self.name in ("chunked-prefill", "slo"):  # any budget will do
            budget = max(self.limits.max_num_seqs, self.limits.max_num_batched_tokens // 5)
            fields = {name: getattr(self.limits, name) for name in SchedulerLimits.__slots__}
            self.limits = SchedulerLimits(**(fields | {"max_num_batched_tokens": budget}))
        self.policy = make_policy(self.name, self.limits)
        self.by_batch = self.name in ("static", "dynamic")
        self.by_deadline = self.name == "slo"
        self.closed = False
        self.last_arrival = -1.0
        self.jobs: dict[Request, Job] = {}

    # The loop.

    def run(self) -> None:
        arrivals = list(self.workload.jobs)
        most = sum(job.head + len(job.tail) + job.output for job in arrivals)
        bound = len(arrivals) * (most + self.limits.max_model_len) + 2
        wakeup: float | None = None
        while True:
            while arrivals and arrivals[0].arrival <= self.now:
                self.arrive(arrivals.pop(0))
                wakeup = None
            if not arrivals and self.workload.closes_intake and not self.closed:
                self.policy.close_intake()
                self.closed, wakeup = True, None
            if self.abort_some():
                wakeup = None
            plan = self.policy.plan(self.now)
            if plan:
                self.check_plan(plan)
                elapsed = 0.05 + 0.01 * plan.num_tokens
                self.policy.observe(plan, elapsed)
                self.execute(plan)
                self.now += elapsed
                wakeup = None
            else:
                assert wakeup is None, "the policy did not wake up when it said"
                self.check_idle()
                wakeup = self.policy.next_wakeup(self.now)
                times = [t for t in (wakeup, arrivals[0].arrival if arrivals else None) if t is not None]
                if not times:
                    break
                assert min(times) > self.now, "an empty plan, yet it claims to have work"
                assert not self.policy.plan((self.now + min(times)) / 2), "it woke up early"
                self.now = min(times)
            assert self.num_steps <= bound, "somebody starves"
        assert not self.age, "not every request ended"
        assert (self.policy.num_running, self.policy.num_waiting, self.policy.kv_usage) == (0, 0, 0)

    def arrive(self, job: Job) -> None:
        request = Request(
            request_id=f"r{len(self.jobs)}",
            prompt_token_ids=(*STREAMS[job.stream][: job.head], *job.tail),
            params=WITH_PROMPT_LOGPROBS if job.prompt_logprobs else PLAIN,
            seed=0,
            max_output_tokens=job.output,
            service_class=CLASSES[job.service_class],
            arrival_time=job.arrival,
        )
        if len(self.waiting) >= self.limits.max_queue:
            with pytest.raises(QueueFullError):
                self.policy.add(request)
            return
        self.policy.add(request)
        self.jobs[request] = job
        self.age[request] = len(self.jobs)
        self.waiting.append(request)
        self.last_arrival = job.arrival

    def abort_some(self) -> bool:
        dropped = [r for r in self.age if self.jobs[r].aborts == self.num_steps]
        for request in dropped:
            self.end(request)
        return bool(dropped)

    def end(self, request: Request) -> None:
        self.policy.remove(request)
        self.holding.pop(request, None)
        if request in self.waiting:
            self.waiting.remove(request)
        del self.age[request]
        self.ended.add(request)
        self.check_books()
        if self.name == "static":
            done = all(member in self.ended for member in self.batch)
            assert all(self.policy.may_publish(member) == done for member in self.batch)

    def execute(self, plan: StepPlan) -> None:
        step, self.num_steps = self.num_steps, self.num_steps + 1
        failed = [c.request for c in plan.chunks if self.jobs[c.request].fails == step]
        lost = step in self.workload.lost_steps
        for chunk in plan.chunks:
            good = not lost and chunk.request not in failed
            self.write(chunk, good)
        if lost:  # the executor broke down: nothing is committed, what was written is garbage
            return
        for request in failed:
            self.end(request)
        computed = tuple(c for c in plan.chunks if c.request not in failed)
        done = []
        for chunk in computed:
            request = chunk.request
            self.holding[request].computed += chunk.num_tokens
            if chunk.samples:
                request.token_ids.append(next_token(request.token_ids))
                if request.num_output_tokens == request.max_output_tokens:
                    done.append(request)
        self.policy.commit(StepPlan(computed, plan.evicted))
        assert all(r.num_computed_tokens == seen.computed for r, seen in self.holding.items())
        for request in done:
            expected = list(request.prompt_token_ids)
            while len(expected) < len(request.token_ids):
                expected.append(next_token(expected))
            assert request.token_ids == expected
            self.end(request)

    def write(self, chunk: Chunk, good: bool) -> None:
        chain = contexts(chunk.request.token_ids)
        size, table = self.limits.block_size, chunk.block_table
        for position in range(chunk.first_token):
            slot = (table[position // size], position % size)
            assert self.slots.get(slot) == chain[position], "a position does not hold its own context"
        for position in range(chunk.first_token, chunk.first_token + chunk.num_tokens):
            block = table[position // size]
            sharers = [
                r for r, seen in self.holding.items() if block in seen.table and r is not chunk.request
            ]
            assert not sharers, "a shared block is written"
            self.slots[block, position % size] = chain[position] if good else -1

    # The properties.

    def check_plan(self, plan: StepPlan) -> None:
        self.check_evictions(plan)
        self.check_departure(plan)
        before = set(self.holding)
        for chunk in plan.chunks:
            self.check_chunk(chunk)
        assert plan.num_tokens <= self.limits.max_num_batched_tokens
        assert len(self.holding) <= self.limits.max_num_seqs
        assert len({c.request for c in plan.chunks}) == len(plan.chunks)
        self.check_books()
        self.check_sharing()
        placed = {c.request: c.num_tokens for c in plan.chunks}
        decoding = [r for r in before if r.num_pending_tokens == 1]
        assert all(r in placed for r in decoding), "every running decode gets its token"
        if self.name == "chunked-prefill" and plan.num_tokens < self.limits.max_num_batched_tokens:
            assert all(placed.get(r) == r.num_pending_tokens for r in self.holding), (
                "budget is left for a prompt"
            )
        if not self.by_deadline:
            assert min(self.holding, key=self.age.__getitem__) in placed, "the oldest always gets on"

    def check_chunk(self, chunk: Chunk) -> None:
        request, size = chunk.request, self.limits.block_size
        assert request in self.age, "an ended or unknown request is computed"
        seen = self.holding.get(request)
        if seen is None:  # it starts, or starts again
            if request in self.waiting:
                assert self.by_deadline or request is self.waiting[0], "first come, first served"
                self.waiting.remove(request)
            if not self.limits.enable_prefix_caching or self.jobs[request].prompt_logprobs:
                assert chunk.first_token == 0
            assert chunk.first_token % size == 0
            seen = self.holding[request] = Seen(chunk.block_table, chunk.first_token)
        assert chunk.first_token == request.num_computed_tokens == seen.computed, "chunks are contiguous"
        assert 0 < chunk.num_tokens <= request.num_pending_tokens
        assert chunk.block_table[: len(seen.table)] == seen.table, "a table only grows"
        if len(chunk.block_table) == len(seen.table):
            assert chunk.block_table is seen.table, "an unchanged table is built anew"
        assert len(chunk.block_table) * size >= chunk.first_token + chunk.num_tokens
        assert len(set(chunk.block_table)) == len(chunk.block_table)
        assert all(0 <= block < self.limits.num_blocks for block in chunk.block_table)
        seen.table = chunk.block_table
        if self.name not in ("chunked-prefill", "slo"):
            assert chunk.samples, "prompts are computed whole"

    def check_evictions(self, plan: StepPlan) -> None:
        for request in plan.evicted:
            older = [r for r in self.holding if self.age[r] < self.age[request]]
            if not self.by_deadline:
                assert older, "the oldest running request is never a victim"
            assert request.num_computed_tokens == 0
            assert request not in [c.request for c in plan.chunks]
            del self.holding[request]
        self.num_evictions += len(plan.evicted)

    def check_departure(self, plan: StepPlan) -> None:
        if not self.by_batch:
            return
        if all(member in self.ended for member in self.batch):
            assert self.may_leave()
            self.batch = self.waiting[: self.batch_size]
        assert {c.request for c in plan.chunks} <= set(self.batch), "nobody joins a batch under way"
        if self.name == "static":
            assert not any(self.policy.may_publish(member) for member in self.batch)
        else:
            assert all(self.policy.may_publish(member) for member in self.batch)

    @property
    def batch_size(self) -> int:
        return min(self.limits.max_num_seqs, self.limits.max_queue)

    def may_leave(self) -> bool:
        since = self.last_arrival if self.name == "static" else self.jobs[self.waiting[0]].arrival
        waited = self.now >= since + self.limits.max_wait
        return len(self.waiting) >= self.batch_size or self.closed or waited

    def check_idle(self) -> None:
        """An empty plan: nothing runs, and what waits may not leave."""
        assert not self.holding
        if self.waiting:
            assert self.by_batch
            assert not self.may_leave()

    def check_books(self) -> None:
        """No block is held but by those that run, and whatever they hold is counted once."""
        held = {block for seen in self.holding.values() for block in seen.table}
        assert round(self.policy.kv_usage * self.limits.num_blocks) == len(held)
        assert self.policy.num_running == len(self.holding)
        assert self.policy.num_waiting == len(self.age) - len(self.holding)

    def check_sharing(self) -> None:
        """Two hold a block only at the same place, with equal tokens up to its end, computed by both."""
        size = self.limits.block_size
        holders: dict[int, list[tuple[Request, int]]] = {}
        for request, seen in self.holding.items():
            for index, block in enumerate(seen.table):
                holders.setdefault(block, []).append((request, index))
        for sharers in holders.values():
            (first, place), *others = sharers
            end = (place + 1) * size
            for other, index in others:
                assert index == place
                assert first.token_ids[:end] == other.token_ids[:end]
                assert len(first.token_ids[:end]) == end
                assert min(self.holding[first].computed, self.holding[other].computed) >= end


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_keeps_its_promises_on_any_workload(name):
    preempting = 0

    @settings(
        max_examples=EXAMPLES_PER_POLICY,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(workloads())
    def check(workload):
        nonlocal preempting
        world = World(name, workload)
        world.run()
        preempting += world.num_evictions > 0
        event(f"evictions: {min(world.num_evictions, 3)}")

    check()
    assert preempting > EXAMPLES_PER_POLICY // 50, "the workloads hardly preempt, so they test too little"
