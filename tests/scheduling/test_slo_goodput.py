"""What the deadline-aware policy is for: more requests that meet their targets, whatever the load.

A virtual machine about as fast as a small model on two CPU cores serves seeded mixed traffic: half of it
interactive, a quarter standard, a quarter batch work with prompts of twice the length.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

import pytest

from tightpack.latency.request_latency import RequestLatency
from tightpack.latency.summary import goodput
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.policy import UnattainableError
from tightpack.scheduling.registry import make_policy
from tightpack.scheduling.step_time import StepLoad
from tightpack.serving_loop.executor import SampledToken, StepResult
from tightpack.serving_loop.loop import ServingLoop

SECONDS = 40
MAX_NUM_SEQS, MAX_MODEL_LEN = 32, 2048
BUDGETS = (64, 128, 256, 512)
# Requests a second. The machine is saturated at about 5.
LOADS = (1.5, 3.0, 5.0, 8.0)


class VirtualMachine:
    """An executor whose steps take as long as a linear model says, give or take, on a clock that it moves."""

    num_blocks = 4096
    block_size = 16
    description = {"backend": "virtual", "device": "cpu"}  # noqa: RUF012

    def __init__(self) -> None:
        self.time = 0.0
        self._noise = random.Random(0)

    def now(self):
        return self.time

    def execute(self, plan):
        load = StepLoad.of(plan)
        seconds = 6e-3 + 4e-4 * load.prompt_tokens + 6e-8 * load.prompt_pairs
        seconds += 6e-4 * load.decodes + 1e-6 * load.decode_context
        seconds *= self._noise.uniform(0.9, 1.1)
        self.time += seconds
        return StepResult({c.request.request_id: SampledToken(7) for c in plan.chunks if c.samples}, seconds)

    def close(self):
        pass


@dataclass(frozen=True)
class Outcome:
    goodput: float
    batch_tokens_in_time: float
    longest_wait: float
    order: tuple[str, ...]


def mixed(rng):
    def length(mean, spread, most):
        return min(most, 1 + int(rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)))

    service_class = rng.choice((INTERACTIVE, INTERACTIVE, STANDARD, BATCH))
    prompt = length(500, 0.5, 1200) if service_class is BATCH else length(250, 0.7, 800)
    return service_class, prompt, length(60, 0.8, 300)


def short(rng):
    """Many at once: the machine is saturated at about 16 requests a second."""
    service_class = rng.choices((INTERACTIVE, STANDARD), (0.7, 0.3))[0]
    return service_class, rng.randint(48, 144), rng.randint(16, 48)


def traffic(rate, draw):
    rng = random.Random(7)
    time, requests = 0.0, []
    while (time := time + rng.expovariate(rate)) < SECONDS:
        service_class, prompt, output = draw(rng)
        number = len(requests)
        requests.append(
            Request(
                request_id=str(number),
                prompt_token_ids=(number,) * prompt,
                params=SamplingParams(max_tokens=None),
                seed=0,
                max_output_tokens=output,
                service_class=service_class,
                arrival_time=time,
            )
        )
    return requests


@cache
def serve(policy, rate, budget=1024, draw=mixed, reject=False):
    limits = SchedulerLimits(
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=budget,
        max_model_len=MAX_MODEL_LEN,
        block_size=16,
        num_blocks=VirtualMachine.num_blocks,
        max_queue=10_000,
        enable_prefix_caching=False,
        reject_unattainable=reject,
    )
    machine = VirtualMachine()
    loop = ServingLoop(make_policy(policy, limits), machine, machine)
    requests = traffic(rate, draw)
    coming = list(reversed(requests))
    refused = set()
    ended = []
    while coming or loop.has_unfinished:
        while coming and coming[-1].arrival_time <= machine.time:
            request = coming.pop()
            try:
                loop.add(request)
            except UnattainableError:
                refused.add(request)
        before = machine.time
        ended += [update.request_id for update in loop.step() if update.finish_reason is not None]
        if machine.time == before:
            times = [loop.next_wakeup(), coming[-1].arrival_time if coming else None]
            machine.time = min((t for t in times if t is not None and t > before), default=before)
    taken = [r for r in requests if r not in refused]
    timed = [r for r in taken if r.service_class is not BATCH]
    latencies = {r: RequestLatency.from_timings(r.timings) for r in taken}
    assert all(r.num_output_tokens == r.max_output_tokens for r in taken), "not every request ended"
    batch = [t <= SECONDS for r in taken if r.service_class is BATCH for t in r.timings.token_times]
    return Outcome(
        goodput([latencies[r] for r in timed], [r.service_class for r in timed], SECONDS),
        sum(batch) / len(batch) if batch else 1.0,
        max(latencies[r].ttft_s for r in taken),
        tuple(ended),
    )


def best_of_the_others(rate):
    whole = MAX_MODEL_LEN + MAX_NUM_SEQS
    others = [serve(policy, rate, whole) for policy in ("static", "dynamic", "continuous")]
    others += [serve("chunked-prefill", rate, budget) for budget in BUDGETS]
    return max(outcome.goodput for outcome in others)


@pytest.mark.parametrize("rate", LOADS)
def test_no_other_policy_meets_the_targets_of_more_requests(rate):
    assert serve("slo", rate).goodput >= best_of_the_others(rate)


@pytest.mark.parametrize("rate", LOADS[2:])
def test_a_saturated_machine_meets_the_targets_of_half_as_many_requests_again(rate):
    assert serve("slo", rate).goodput >= 1.5 * best_of_the_others(rate)


def test_overload_does_not_cost_goodput():
    assert serve("slo", LOADS[-1]).goodput >= serve("slo", LOADS[-2]).goodput


@pytest.mark.parametrize("reject", [False, True])
def test_at_three_times_its_capacity_a_machine_keeps_nine_tenths_of_its_goodput(reject):
    at_capacity = serve("slo", 13.0, draw=short).goodput
    assert at_capacity > 12, "this is beyond the capacity"
    assert serve("slo", 3 * 13.0, draw=short, reject=reject).goodput >= 0.9 * at_capacity


def test_batch_work_is_done_while_there_is_time_for_it():
    assert serve("slo", LOADS[1]).batch_tokens_in_time >= 0.9


def test_the_same_traffic_is_served_in_the_same_order():
    assert serve("slo", LOADS[1]).order == serve.__wrapped__("slo", LOADS[1]).order
