"""An executor of arithmetic and a clock that it moves: the loop without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tightpack.requests.outputs import TokenLogprobs
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.executor import SampledToken, StepResult
from tightpack.serving_loop.loop import ServingLoop


class VirtualClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


class CountingExecutor:
    """Answers a request with its last token plus one. A step takes one virtual second."""

    num_blocks = 64
    block_size = 4
    description: Mapping[str, str] = {"backend": "test", "device": "cpu"}

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.plans: list[StepPlan] = []
        self.fail: dict[str, str] = {}
        self.raises: Exception | None = None

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        if self.raises is not None:
            raise self.raises
        self.clock.time += 1.0
        sampled, prompt_logprobs = {}, {}
        for chunk in plan.chunks:
            request, end = chunk.request, chunk.first_token + chunk.num_tokens
            if request.request_id in self.fail:
                continue
            if chunk.samples:
                token = request.token_ids[-1] + 1
                wanted = request.params.logprobs is not None
                sampled[request.request_id] = SampledToken(
                    token, TokenLogprobs(token, -0.25, 1) if wanted else None
                )
            if request.params.prompt_logprobs is not None:
                predicted = request.prompt_token_ids[chunk.first_token + 1 : end + 1]
                prompt_logprobs[request.request_id] = tuple(TokenLogprobs(t, -0.5, 1) for t in predicted)
        failed = {
            c.request.request_id: self.fail[c.request.request_id]
            for c in plan.chunks
            if c.request.request_id in self.fail
        }
        return StepResult(sampled, 1.0, prompt_logprobs, failed)

    def close(self) -> None:
        pass


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def executor(clock: VirtualClock) -> CountingExecutor:
    return CountingExecutor(clock)


@pytest.fixture
def make_loop(clock: VirtualClock, executor: CountingExecutor) -> Callable[..., ServingLoop]:
    def make(policy: str = "continuous", **changes: Any) -> ServingLoop:
        limits: dict[str, Any] = {
            "max_num_seqs": 4,
            "max_num_batched_tokens": 68,
            "max_model_len": 64,
            "block_size": 4,
            "num_blocks": 64,
        }
        return ServingLoop(make_policy(policy, SchedulerLimits(**(limits | changes))), executor, clock)

    return make


@pytest.fixture
def make_request() -> Callable[..., Request]:
    def make(request_id: str, prompt: range = range(5), max_tokens: int = 3, **params: Any) -> Request:
        eos = params.pop("eos", frozenset())
        return Request(
            request_id=request_id,
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(max_tokens=max_tokens, **params),
            seed=0,
            max_output_tokens=max_tokens,
            eos_token_ids=frozenset(eos),
        )

    return make
