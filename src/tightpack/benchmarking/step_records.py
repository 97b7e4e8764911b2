"""What each step of a serving loop held, and how long it took: the timeline of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.serving_loop.clock import Clock
from tightpack.serving_loop.executor import Executor, StepResult


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step. start_s: on the loop's clock. elapsed_s: what the executor says it took.

    prompt_tokens: of prompts, those computed again after a preemption included.
    decodes: requests that computed their last token alone, to get the next.
    """

    start_s: float
    elapsed_s: float
    prompt_tokens: int
    decodes: int


class RecordingExecutor:
    """An executor that computes on another one and notes each step."""

    def __init__(self, executor: Executor, clock: Clock) -> None:
        self._executor = executor
        self._clock = clock
        self.steps: list[StepRecord] = []

    @property
    def num_blocks(self) -> int:
        return self._executor.num_blocks

    @property
    def block_size(self) -> int:
        return self._executor.block_size

    @property
    def description(self) -> Mapping[str, str]:
        return self._executor.description

    def execute(self, plan: StepPlan) -> StepResult:
        start = self._clock.now()
        # Counted before the step: afterwards the requests have grown.
        decodes = sum(map(_is_decode, plan.chunks))
        result = self._executor.execute(plan)
        self.steps.append(StepRecord(start, result.elapsed_s, plan.num_tokens - decodes, decodes))
        return result

    def close(self) -> None:
        self._executor.close()


def _is_decode(chunk: Chunk) -> bool:
    return chunk.num_tokens == 1 and chunk.first_token >= chunk.request.num_prompt_tokens
