"""What each step of a serving loop held, and how long it took: the timeline of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.serving_loop.clock import Clock
from tightpack.serving_loop.executor import Executor, LaunchingExecutor, StepResult


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
    """An executor that computes on another one, ahead if that does so, and notes each step."""

    def __init__(self, executor: Executor, clock: Clock) -> None:
        self._executor = executor
        self._launching = executor if isinstance(executor, LaunchingExecutor) else None
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
        result = self._executor.execute(plan)
        self._note(start, plan, result)
        return result

    @property
    def async_scheduling(self) -> bool:
        return self._launching is not None and self._launching.async_scheduling

    def may_be_followed(self, plan: StepPlan) -> bool:
        return self._launching is not None and self._launching.may_be_followed(plan)

    def launch(self, plan: StepPlan, after: Any = None) -> Any:
        if self._launching is None:
            raise RuntimeError("this executor launches nothing ahead")
        launched = self._launching.launch(plan, None if after is None else after[1])
        return None if launched is None else (plan, launched)

    def collect(self, launched: Any) -> StepResult:
        if self._launching is None:
            raise RuntimeError("this executor launches nothing ahead")
        plan, step = launched
        result = self._launching.collect(step)
        self._note(self._clock.now() - result.elapsed_s, plan, result)
        return result

    def _note(self, start: float, plan: StepPlan, result: StepResult) -> None:
        decodes = sum(map(_is_decode, plan.chunks))
        self.steps.append(StepRecord(start, result.elapsed_s, plan.num_tokens - decodes, decodes))

    def close(self) -> None:
        self._executor.close()


def _is_decode(chunk: Chunk) -> bool:
    return chunk.num_tokens == 1 and chunk.first_token >= chunk.request.num_prompt_tokens
