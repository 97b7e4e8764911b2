"""Small builders that the scheduler's tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy import Policy


@pytest.fixture(scope="session")
def new_request() -> Callable[..., Request]:
    """A request of `prompt` (token ids, or a length: then it shares no prefix) and `output` tokens."""
    numbers = count()

    def make(
        prompt: int | Sequence[int],
        output: int = 8,
        *,
        name: str | None = None,
        arrival: float = 0.0,
        **params: Any,
    ) -> Request:
        number = next(numbers)
        ids = [1_000_000 + number] * prompt if isinstance(prompt, int) else prompt
        return Request(
            request_id=name or f"r{number}",
            prompt_token_ids=tuple(ids),
            params=SamplingParams(max_tokens=output, **params),
            seed=0,
            max_output_tokens=output,
            arrival_time=arrival,
        )

    return make


@pytest.fixture(scope="session")
def new_limits() -> Callable[..., SchedulerLimits]:
    """Limits of a small machine, with whatever a test changes."""

    def make(**changes: Any) -> SchedulerLimits:
        limits = {
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "max_model_len": 64,
            "block_size": 4,
            "num_blocks": 64,
            "max_wait": 1.0,
        }
        return SchedulerLimits(**(limits | changes))

    return make


@pytest.fixture(scope="session")
def run_step() -> Callable[..., dict[str, tuple[int, int]]]:
    """Plan, pretend to execute, commit, and remove who is done; {request id: (first token, token count)}."""

    def step(policy: Policy, now: float = 0.0) -> dict[str, tuple[int, int]]:
        plan: StepPlan = policy.plan(now)
        sampling = [chunk.request for chunk in plan.chunks if chunk.samples]
        for request in sampling:
            request.token_ids.append(7)
        policy.commit(plan)
        for request in sampling:
            if request.num_output_tokens == request.max_output_tokens:
                policy.remove(request)
        return {chunk.request.request_id: (chunk.first_token, chunk.num_tokens) for chunk in plan.chunks}

    return step
