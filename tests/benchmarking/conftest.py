"""A serving loop on a virtual clock, over an executor whose steps cost what a formula says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from tightpack.benchmarking.workload import RequestShape, Workload, build_workload
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.executor import SampledToken, StepResult
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.fitted import AttentionCost, FittedCostModel

STEP_S = 1.0
PROMPT_TOKEN_S = 0.125  # for each token of a chunk beyond its first


class VirtualClock:
    def __init__(self) -> None:
        self.time = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


class FormulaExecutor:
    """A step takes STEP_S, and PROMPT_TOKEN_S more for each prompt token beyond a chunk's first."""

    num_blocks = 64
    block_size = 4
    description: Mapping[str, str] = {"backend": "formula", "device": "none"}

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.failing: set[str] = set()

    def execute(self, plan: StepPlan) -> StepResult:
        elapsed = STEP_S + PROMPT_TOKEN_S * sum(chunk.num_tokens - 1 for chunk in plan.chunks)
        self._clock.time += elapsed
        names = {chunk.request.request_id for chunk in plan.chunks if chunk.samples}
        failed = dict.fromkeys(names & self.failing, "it was told to")
        return StepResult({name: SampledToken(7) for name in names - self.failing}, elapsed, failed=failed)

    def close(self) -> None: ...


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def executor(clock: VirtualClock) -> FormulaExecutor:
    return FormulaExecutor(clock)


@pytest.fixture
def make_loop(clock: VirtualClock, executor: FormulaExecutor) -> Callable[..., ServingLoop]:
    def make(policy: str = "continuous", **changes: int) -> ServingLoop:
        limits = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "max_model_len": 64, "max_queue": 8}
        tokens = {"block_size": executor.block_size, "num_blocks": executor.num_blocks}
        return ServingLoop(make_policy(policy, SchedulerLimits(**limits | tokens | changes)), executor, clock)

    return make


@pytest.fixture
def workload() -> Callable[..., Workload]:
    def build(*requests: tuple[float, int, int]) -> Workload:
        """(arrival, prompt tokens, output tokens) each."""
        return build_workload("test", [RequestShape(*one) for one in requests], range(50), 64, seed=0)

    return build


@pytest.fixture(scope="session")
def small_cost_model() -> Callable[[int, int], FittedCostModel]:
    """(KV blocks of 16, positions) to a machine whose steps cost by their tokens alone."""

    def make(num_blocks: int, positions: int) -> FittedCostModel:
        return FittedCostModel(
            token_counts=(1, 64),
            step_s=(0.004, 0.03),
            sampling_s=0.0,
            sample_s=0.0,
            decoding_s=0.0,
            decode_s=0.0,
            prompt_s=0.0,
            attention=(
                AttentionCost(
                    window=None, decode_position_s=0, prompt_position_s=0, own_pair_s=0, cached_pair_s=0
                ),
            ),
            manifest={
                "model": "small",
                "executor": {"backend": "native", "device": "cpu"},
                "limits": {"num_blocks": num_blocks, "block_size": 16, "positions": positions},
            },
        )

    return make
