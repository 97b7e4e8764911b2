"""What every policy here shares: queues, blocks and the bookkeeping between steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tightpack.requests.request import Request
from tightpack.scheduling.kv_blocks import KVBlocks
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy import QueueFullError
from tightpack.scheduling.queues import RequestQueues
from tightpack.scheduling.step_builder import StepBuilder
from tightpack.scheduling.step_time import StepTimeModel


class PolicyBase(ABC):
    """The `Policy` contract but for `plan`, for policies that run whatever waits as soon as there is room."""

    name: ClassVar[str]

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._queues = RequestQueues()
        self._blocks = KVBlocks(
            limits.num_blocks, limits.block_size, enable_prefix_caching=limits.enable_prefix_caching
        )
        self._intake_closed = False

    @abstractmethod
    def plan(self, now: float) -> StepPlan: ...

    @property
    def num_running(self) -> int:
        return len(self._queues.running)

    @property
    def num_waiting(self) -> int:
        return len(self._queues.waiting)

    @property
    def kv_usage(self) -> float:
        return self._blocks.usage

    @property
    def prefix_cache_queries(self) -> int:
        return self._blocks.num_queried_tokens

    @property
    def prefix_cache_hits(self) -> int:
        return self._blocks.num_hit_tokens

    @property
    def step_times(self) -> StepTimeModel | None:
        return None

    @property
    def prompt_room_s(self) -> float | None:
        return None

    @property
    def evicts_nobody(self) -> bool:
        # A token takes a block at the most, and who is admitted takes what is left.
        return self._blocks.num_free >= len(self._queues.running)

    def is_behind(self, request: Request) -> bool:
        return False  # first come, first served

    def add(self, request: Request) -> None:
        self._check(request)
        self._intake_closed = False
        self._queues.add(request)

    def _check(self, request: Request) -> None:
        """Raise unless the request can be taken."""
        limits = self.limits
        longest = request.num_prompt_tokens + request.max_output_tokens
        if longest > limits.max_model_len:
            raise ValueError(
                f"request {request.request_id}: {request.num_prompt_tokens} prompt tokens and up to "
                f"{request.max_output_tokens} output tokens make {longest}, more than "
                f"max_model_len={limits.max_model_len}"
            )
        if request in self._queues:
            raise ValueError(f"request {request.request_id} was added before")
        if self._queues.num_new >= limits.max_queue:
            raise QueueFullError(f"max_queue={limits.max_queue} requests wait already; try again later")

    def commit(self, plan: StepPlan) -> None:
        for chunk in plan.chunks:
            request = chunk.request
            if request in self._queues:
                request.num_computed_tokens = chunk.first_token + chunk.num_tokens
                self._blocks.commit(request)

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:  # noqa: B027 - nothing, unless overridden
        """Most policies do not ask how long a step took."""

    def remove(self, request: Request) -> None:
        self._queues.remove(request)
        self._blocks.forget(request)

    def next_wakeup(self, now: float) -> float | None:
        return now if self._queues.running or self._queues.waiting else None

    def may_publish(self, request: Request) -> bool:
        return True

    def close_intake(self) -> None:
        self._intake_closed = True

    def _new_step(self) -> StepBuilder:
        return StepBuilder(self.limits, self._queues, self._blocks)
