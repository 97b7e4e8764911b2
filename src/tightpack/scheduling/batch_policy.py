"""Request-level batching: a batch leaves, runs to its end, and nobody joins it on the way."""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import islice

from tightpack.requests.request import Request
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy_base import PolicyBase


class BatchPolicy(PolicyBase):
    """The oldest max_num_seqs waiting requests leave together; fewer do when `_partial_leaves_at` says so.

    Members enter with whole prompts, over several steps where the token budget or the pool cannot take all
    at once, and decode from then on. A preempted member waits at the front of the queue and comes back to its
    own batch. One that ends or is aborted leaves a hole: the price of this kind of batching. When the last
    is gone, the next batch, which collected meanwhile, may leave.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        limits.require_room_for_whole_prompts(self.name)
        super().__init__(limits)
        # A queue shorter than a batch is full first; waiting any longer would bring nobody.
        self._batch_size = min(limits.max_num_seqs, limits.max_queue)
        self._members: frozenset[Request] = frozenset()
        self._unfinished: set[Request] = set()

    def plan(self, now: float) -> StepPlan:
        if not self._unfinished and now >= self._leaves_at():
            self._members = frozenset(islice(self._queues.waiting, self._batch_size))
            self._unfinished = set(self._members)
        step = self._new_step()
        step.compute_all_running()
        waiting = self._queues.waiting
        while waiting and waiting[0] in self._members and step.admit(waiting[0], whole=True):
            pass  # admitting takes it off the queue
        return step.plan()

    def remove(self, request: Request) -> None:
        super().remove(request)
        self._unfinished.discard(request)

    def next_wakeup(self, now: float) -> float | None:
        if self._unfinished:
            return now
        leaves_at = self._leaves_at()
        return None if leaves_at == math.inf else max(now, leaves_at)

    @abstractmethod
    def _partial_leaves_at(self) -> float:
        """When a batch leaves that is not full; somebody waits."""

    def _leaves_at(self) -> float:
        """When the requests that wait now would leave if no other came: -inf at once, inf never."""
        num_waiting = len(self._queues.waiting)
        if num_waiting == 0:
            return math.inf
        if self._intake_closed or num_waiting >= self._batch_size:
            return -math.inf
        return self._partial_leaves_at()
