"""The seam between queues and the serving loop: what a batching policy is."""

from __future__ import annotations

from typing import Protocol

from tightpack.requests.request import Request
from tightpack.scheduling.plan import StepPlan


class QueueFullError(Exception):
    """The bounded queue of waiting requests is full; try again later."""


class Policy(Protocol):
    """Decides what each step computes. Pure: time is an argument, capacity came as integers.

    Call order per step: `plan(now)`, the executor, then `commit(plan)` once the tokens are appended, then
    `remove(request)` for every request that ended. `remove` may come at any time between steps (an abort).
    """

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use by running requests, 0 to 1."""

    def add(self, request: Request) -> None:
        """Queue a request. Raises QueueFullError, or ValueError when it could never run."""

    def plan(self, now: float) -> StepPlan:
        """The next step; empty when nothing may run at `now`. Blocks of the chunks are allocated."""

    def commit(self, plan: StepPlan) -> None:
        """The plan was executed: advance `num_computed_tokens` and let others share the filled blocks."""

    def remove(self, request: Request) -> None:
        """The request ended or was dropped: free its blocks and forget it. Unknown requests are ignored."""

    def next_wakeup(self, now: float) -> float | None:
        """When waiting alone would make an empty plan non-empty; None when only an arrival would."""

    def may_publish(self, request: Request) -> bool:
        """Whether the request's tokens may be shown yet (`static` holds them until its batch is done)."""

    def close_intake(self) -> None:
        """No further request is expected, so that a partial batch need not wait for one; `add` reopens."""
