"""The seam between queues and the serving loop: what a batching policy is."""

from __future__ import annotations

from typing import Protocol

from tightpack.requests.request import Request
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.step_time import StepTimeModel


class QueueFullError(Exception):
    """The bounded queue of waiting requests is full; try again later."""


class UnattainableError(QueueFullError):
    """The request's TTFT target cannot be met now.

    retry_after_s: seconds until it could be, if nobody else comes.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Policy(Protocol):
    """Decides what each step computes. Pure: time is an argument, capacity came as integers.

    Call order per step: `plan(now)`, the executor, `observe(plan, elapsed_s)`, then `commit(plan)` once the
    tokens are appended, then `remove(request)` for every request that ended. `remove` may come at any time
    between steps (an abort).
    A plan that was not executed needs no undoing: the next `plan` computes the same tokens again.
    Where `evicts_nobody` says so, `plan` may come while a step of decodes runs, between its `plan` and its
    `observe`: its requests then look as they will after it, a token longer and a token further computed.
    """

    @property
    def name(self) -> str:
        """As users know it."""

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use by running requests, 0 to 1."""

    @property
    def prefix_cache_queries(self) -> int:
        """Tokens looked up in the prefix cache so far; a request counts each time it starts."""

    @property
    def prefix_cache_hits(self) -> int:
        """Of those, the tokens that needed no computing."""

    @property
    def step_times(self) -> StepTimeModel | None:
        """What the policy has learned of how long steps take; None if it does not ask."""

    @property
    def prompt_room_s(self) -> float | None:
        """Seconds that prompts may add to a step; None if time does not bound it."""

    @property
    def evicts_nobody(self) -> bool:
        """Whether the next `plan` takes nobody's blocks, if every running request is given one token."""

    def is_behind(self, request: Request) -> bool:
        """Whether a newcomer that can make its TTFT target would be served before this one."""

    def add(self, request: Request) -> None:
        """Queue a request. Raises QueueFullError (UnattainableError), or ValueError if it could never run.

        Reopens an intake that was closed.
        """

    def plan(self, now: float) -> StepPlan:
        """The next step; empty when nothing may run at `now`. Blocks of the chunks are allocated.

        Here a preempted request loses its computed tokens, and one that starts gets those it found cached.
        """

    def commit(self, plan: StepPlan) -> None:
        """The plan was executed: advance `num_computed_tokens` and let others share the filled blocks.

        Chunks that failed must be left out, or their requests removed before: what they wrote is unknown.
        """

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        """The plan took `elapsed_s` seconds; comes before its `commit`. For policies that learn."""

    def remove(self, request: Request) -> None:
        """The request ended or was dropped: free its blocks and forget it. Unknown requests are ignored."""

    def next_wakeup(self, now: float) -> float | None:
        """When a plan will be non-empty without an arrival: `now` if it would be already; None for never."""

    def may_publish(self, request: Request) -> bool:
        """Whether the request's tokens may be shown yet (`static` holds them until its batch is done).

        Goes on answering for removed requests, and can turn true by the removal of another request.
        """

    def close_intake(self) -> None:
        """No further request comes, so that a partial batch need not wait for one."""
