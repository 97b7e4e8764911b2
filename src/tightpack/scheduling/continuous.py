"""Continuous batching: the batch is made anew at every step.

Orca's iteration-level scheduling, Yu et al. 2022.
"""

from __future__ import annotations

from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy_base import PolicyBase


class ContinuousPolicy(PolicyBase):
    """Every running request decodes a token each step; waiting prompts join whole, first come first served.

    A request that ends leaves room at the very next step. The price: all decodes of a step wait for the
    prompts that joined it, so a long prompt shows as a gap between tokens (`chunked-prefill` bounds it).
    """

    name = "continuous"

    def __init__(self, limits: SchedulerLimits) -> None:
        limits.require_room_for_whole_prompts(self.name)
        super().__init__(limits)

    def plan(self, now: float) -> StepPlan:
        step = self._new_step()
        step.compute_all_running()
        waiting = self._queues.waiting
        while waiting and step.admit(waiting[0], whole=True):
            pass  # admitting takes it off the queue
        return step.plan()
