"""What a policy itself takes a step: 64 requests running and 1,000 waiting, on a clock of 3 ms a step.

    python benchmarks/scheduler_time.py [--running 64] [--waiting 1000] [--steps 2000]

Planning, learning and committing, in processor time of one thread; requests of all classes come and go.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.registry import POLICY_NAMES, make_policy

STEP_S = 3e-3
PROMPT, OUTPUT = 256, 64


def seconds_a_step(policy: str, running: int, waiting: int, steps: int, seed: int = 0) -> float:
    """The mean over `steps`, after as many steps as it takes to fill the machine."""
    rng = random.Random(seed)
    limits = SchedulerLimits(
        max_num_seqs=running,
        max_num_batched_tokens=2048,
        max_model_len=2048,
        block_size=16,
        num_blocks=running * 40,
        max_queue=10**6,
        max_wait=0.0,
        enable_prefix_caching=False,
    )
    scheduler = make_policy(policy, limits)
    params = SamplingParams(max_tokens=OUTPUT)
    now, made, spent, counted = 0.0, 0, 0.0, 0
    while counted < steps:
        while scheduler.num_waiting < waiting or scheduler.num_running + scheduler.num_waiting < running:
            made += 1
            scheduler.add(
                Request(
                    request_id=str(made),
                    prompt_token_ids=(1,) * rng.randint(16, 2 * PROMPT),
                    params=params,
                    seed=0,
                    max_output_tokens=rng.randint(1, 2 * OUTPUT),
                    service_class=rng.choice((INTERACTIVE, STANDARD, BATCH)),
                    arrival_time=now,
                )
            )
        began = time.thread_time()
        plan = scheduler.plan(now)
        planned = time.thread_time() - began
        now += STEP_S
        sampling = [chunk.request for chunk in plan.chunks if chunk.samples]
        for request in sampling:
            request.token_ids.append(7)
        began = time.thread_time()
        scheduler.observe(plan, STEP_S)
        scheduler.commit(plan)
        for request in sampling:
            if request.num_output_tokens >= request.max_output_tokens:
                scheduler.remove(request)
        if made >= running + waiting and now > 1.0:
            spent += planned + time.thread_time() - began
            counted += 1
    return spent / counted


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args(arguments)
    for policy in POLICY_NAMES:
        taken = seconds_a_step(policy, options.running, options.waiting, options.steps)
        print(f"{policy:16} {taken * 1e6:6.0f} us a step, {taken / STEP_S:.1%} of {STEP_S * 1e3:g} ms")


if __name__ == "__main__":
    main()
