"""Chunked prefill: decodes and pieces of prompts share a token budget a step.

Sarathi-Serve, Agrawal et al. 2024.
"""

from __future__ import annotations

from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy_base import PolicyBase


class ChunkedPrefillPolicy(PolicyBase):
    """Decodes first, then prompts under way, then new prompts; each oldest first, until the budget is spent.

    A step never computes more than `max_num_batched_tokens`, so that no prompt, however long, delays the
    decodes by more than such a step. A prompt's chunk is whatever is left of the budget; prompts end one
    after the other, the oldest first, rather than all late.
    """

    name = "chunked-prefill"

    def plan(self, now: float) -> StepPlan:
        step = self._new_step()
        for request in step.running():
            if request.num_pending_tokens == 1:
                step.compute(request, 1)
        for request in step.running():
            if request.num_pending_tokens > 1 and step.tokens_left > 0:
                step.compute(request, min(request.num_pending_tokens, step.tokens_left))
        waiting = self._queues.waiting
        while waiting and step.admit(waiting[0], whole=False):
            pass  # admitting takes it off the queue
        return step.plan()
