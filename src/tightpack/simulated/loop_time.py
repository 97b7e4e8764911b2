"""What the serving loop itself takes: planning, committing, publishing. Measured without a model.

A real step streams the weights through the processor's caches, so the loop finds its own code and objects
in memory again: several times what it takes when nothing comes between.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tightpack.requests.arguments import strict_keywords
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.clock import MonotonicClock
from tightpack.serving_loop.executor import SampledToken, StepResult
from tightpack.serving_loop.loop import ServingLoop

_STEPS = 100
# More than the last cache of all but the largest servers.
_SWEPT_BYTES = 64 << 20


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class LoopTime:
    """Seconds of a step, and of each chunk in it, outside the executor."""

    step_s: float = 0.0
    chunk_s: float = 0.0


class _NoWork:
    """An executor that computes nothing, and leaves the caches as a real one does."""

    description: Mapping[str, str] = {"backend": "none"}

    def __init__(self, limits: SchedulerLimits) -> None:
        self.num_blocks = limits.num_blocks
        self.block_size = limits.block_size
        self.elapsed_s = 0.0
        self._swept = np.ones(_SWEPT_BYTES // 8)

    def execute(self, plan: StepPlan) -> StepResult:
        sampled = {chunk.request.request_id: SampledToken(0) for chunk in plan.chunks}
        started = time.perf_counter()
        self._swept.sum()
        self.elapsed_s = time.perf_counter() - started
        return StepResult(sampled, self.elapsed_s)

    def close(self) -> None: ...


def measure_loop(limits: SchedulerLimits) -> LoopTime:
    """Steps of one decode, and of as many as may run, on this machine's Python. Takes about two seconds."""
    most = limits.max_num_seqs
    alone = _median_step(limits, 1)
    if most == 1:
        return LoopTime(step_s=alone)
    chunk_s = max(0.0, (_median_step(limits, most) - alone) / (most - 1))
    return LoopTime(step_s=max(0.0, alone - chunk_s), chunk_s=chunk_s)


def _median_step(limits: SchedulerLimits, num_requests: int) -> float:
    steps = min(_STEPS, limits.max_model_len - 1)
    roomy = replace(
        limits, num_blocks=max(limits.num_blocks, num_requests * (steps + 1)), max_queue=num_requests
    )
    executor = _NoWork(roomy)
    loop = ServingLoop(make_policy("chunked-prefill", roomy), executor, MonotonicClock())
    for number in range(num_requests):
        loop.add(
            Request(
                request_id=str(number),
                prompt_token_ids=(number,),
                params=SamplingParams(temperature=0, max_tokens=steps),
                seed=0,
                max_output_tokens=steps,
            )
        )
    taken = []
    while loop.has_unfinished:
        started = time.perf_counter()
        loop.step()
        taken.append(time.perf_counter() - started - executor.elapsed_s)
    return statistics.median(taken)
