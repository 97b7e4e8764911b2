"""Wherever some schedule meets all targets with time to spare, the deadline-aware policy finds one.

All schedules of small instances are tried: which decodes run in each step, how much of each prompt, and
waiting for an arrival. The search knows the future; the policy does not, and its steps are shorter than the
search's, to be ready for who may come. So the search gets shorter targets: 0.8 of them where all arrive
together, 0.7 where they come one after the other. Without that room the claim does not hold: from 0.8 to 0.9
a third of the instances of this kind fail or more.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from itertools import product

import pytest

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import ServiceClass
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.slo import SloPolicy
from tightpack.scheduling.step_time import StepLoad

# Milliseconds: of a step, and of each token in it, prompt or decode. The search splits prompts by QUANTUM.
STEP, QUANTUM = 5, 32


@dataclass(frozen=True)
class Job:
    """quanta: of the prompt. tokens: of the output. Times in ms; tpot None has no target."""

    arrival: int
    quanta: int
    tokens: int
    ttft: int
    tpot: int | None


# Of a job in the search: quanta left, tokens given, when the first came.
State = tuple[tuple[int, int, float], ...]


class Search:
    """Depth first over all schedules, from the fullest step to the emptiest."""

    def __init__(self, jobs: list[Job], shrink: float) -> None:
        self.jobs = jobs
        self.shrink = shrink
        self.failed: set[tuple[float, State]] = set()

    def feasible(self) -> bool:
        return self._from(0, tuple((job.quanta, 0, 0) for job in self.jobs))

    def _from(self, now: float, state: State) -> bool:
        if all(tokens == job.tokens for job, (_, tokens, _) in zip(self.jobs, state, strict=True)):
            return True
        if (now, state) in self.failed or self._too_late(now, state):
            return False
        self.failed.add((now, state))
        prompts = [i for i, (left, _, _) in enumerate(state) if left and self.jobs[i].arrival <= now]
        decodes = [i for i, (left, got, _) in enumerate(state) if not left and got < self.jobs[i].tokens]
        for taken in product(*(range(state[i][0], -1, -1) for i in prompts)):
            for runs in product((True, False), repeat=len(decodes)):
                running = [i for i, run in zip(decodes, runs, strict=True) if run]
                if not running and not any(taken):
                    continue
                end = now + STEP + QUANTUM * sum(taken) + len(running)
                after = self._after(state, dict(zip(prompts, taken, strict=True)), running, end)
                if after is not None and self._from(end, after):
                    return True
        coming = [job.arrival for job in self.jobs if job.arrival > now]
        return bool(coming) and self._from(min(coming), state)

    def _too_late(self, now: float, state: State) -> bool:
        return any(
            left and max(now, job.arrival) + STEP + left * QUANTUM > job.arrival + job.ttft * self.shrink
            for job, (left, _, _) in zip(self.jobs, state, strict=True)
        )

    def _after(self, state: State, taken: dict[int, int], running: list[int], end: float) -> State | None:
        """None where a target is missed."""
        following = list(state)
        for i, count in taken.items():
            left, tokens, first = state[i]
            if count == left:
                if end > self.jobs[i].arrival + self.jobs[i].ttft * self.shrink:
                    return None
                following[i] = (0, 1, end)
            else:
                following[i] = (left - count, tokens, first)
        for i in running:
            job, (_, tokens, first) = self.jobs[i], state[i]
            following[i] = (0, tokens + 1, first)
            most = math.inf if job.tpot is None else job.tpot * self.shrink * (job.tokens - 1)
            if tokens + 1 == job.tokens and end - first > most:
                return None
        return tuple(following)


@pytest.fixture(scope="module")
def learned() -> SloPolicy:
    """A policy that has seen the machine's steps, and the tightest class that will come."""
    policy = SloPolicy(
        SchedulerLimits(
            max_num_seqs=8,
            max_num_batched_tokens=512,
            max_model_len=1024,
            block_size=16,
            num_blocks=1024,
            enable_prefix_caching=False,
        )
    )
    now = 0.0
    for index in range(40):
        job = Job(round(1000 * now), 1 + index % 4, 1 + index % 5, 150, 100)
        now = play(policy, [job], now)[1]
    return policy


def play(policy: SloPolicy, jobs: list[Job], start: float) -> tuple[list[list[float]], float]:
    """Each job's token times, and when the last ended; seconds."""
    coming = sorted(range(len(jobs)), key=lambda i: jobs[i].arrival)
    numbers: dict[str, int] = {}
    times: list[list[float]] = [[] for _ in jobs]
    now = start
    while coming or policy.num_running or policy.num_waiting:
        while coming and jobs[coming[0]].arrival / 1000 <= now + 1e-9:
            index = coming.pop(0)
            request = _request(jobs[index], f"{start}/{index}")
            numbers[request.request_id] = index
            policy.add(request)
        plan = policy.plan(now)
        if not plan:
            now = jobs[coming[0]].arrival / 1000
            continue
        load = StepLoad.of(plan)
        elapsed = (STEP + load.prompt_tokens + load.decodes) / 1000
        now += elapsed
        policy.observe(plan, elapsed)
        sampling = [chunk.request for chunk in plan.chunks if chunk.samples]
        for request in sampling:
            request.token_ids.append(7)
            times[numbers[request.request_id]].append(now)
        policy.commit(plan)
        for request in sampling:
            if request.num_output_tokens == request.max_output_tokens:
                policy.remove(request)
    return times, now


def _request(job: Job, name: str) -> Request:
    tpot = None if job.tpot is None else job.tpot / 1000
    return Request(
        request_id=name,
        prompt_token_ids=(1,) * (job.quanta * QUANTUM),
        params=SamplingParams(max_tokens=job.tokens),
        seed=0,
        max_output_tokens=job.tokens,
        service_class=ServiceClass(f"{job.ttft}/{job.tpot}", job.ttft / 1000, tpot),
        arrival_time=job.arrival / 1000,
    )


def missed(policy: SloPolicy, jobs: list[Job]) -> list[str]:
    """What the policy misses of the jobs' targets."""
    start = 100.0
    late = [Job(job.arrival + 100_000, job.quanta, job.tokens, job.ttft, job.tpot) for job in jobs]
    times, _ = play(copy.deepcopy(policy), late, start)
    misses = []
    for job, given in zip(jobs, times, strict=True):
        if given[0] - start - job.arrival / 1000 > job.ttft / 1000 + 1e-9:
            misses.append(f"TTFT of {job}")
        gaps = max(1, job.tokens - 1)
        if job.tpot is not None and given[-1] - given[0] > gaps * job.tpot / 1000 + 1e-9:
            misses.append(f"TPOT of {job}")
    return misses


def draw(rng: random.Random, count: int, latest: int, decodes: bool) -> list[Job]:
    jobs = []
    for _ in range(count):
        tokens = rng.randint(1, 4) if decodes else 1
        jobs.append(
            Job(
                arrival=rng.randrange(0, latest + 1, 10),
                quanta=rng.randint(1, 4),
                tokens=tokens,
                ttft=rng.choice((150, 200, 300, 400)),
                tpot=rng.choice((20, 40, 60, 100)) if tokens > 1 else None,
            )
        )
    return jobs


@pytest.mark.parametrize(
    ("count", "latest", "decodes", "shrink"),
    [(4, 0, False, 0.8), (3, 0, True, 0.8), (4, 250, False, 0.7), (3, 250, True, 0.7)],
    ids=["prompts together", "together", "prompts in turn", "in turn"],
)
def test_targets_are_met_where_that_is_possible(
    learned: SloPolicy, count: int, latest: int, decodes: bool, shrink: float
) -> None:
    rng = random.Random("feasible")
    found = 0
    while found < 60:
        jobs = draw(rng, count, latest, decodes)
        if Search(jobs, shrink).feasible():
            found += 1
            assert not missed(learned, jobs), jobs


def test_the_search_knows_what_cannot_be() -> None:
    alone = Job(0, 4, 1, 133, None)  # a step and four quanta, to the millisecond
    assert Search([alone], 1.0).feasible()
    assert not Search([alone, Job(0, 1, 1, 160, None)], 1.0).feasible()
    assert Search([alone, Job(0, 1, 1, 170, None)], 1.0).feasible()
    paced = Job(0, 1, 3, 40, 6)  # its decodes run alone, so the other's prompt waits
    assert Search([paced, Job(0, 4, 1, 182, None)], 1.0).feasible()
    assert not Search([paced, Job(0, 4, 1, 175, None)], 1.0).feasible()
