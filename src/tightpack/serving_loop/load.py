"""What a request would meet if it came now: the queue, and how long steps take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tightpack.requests.request import Request
from tightpack.scheduling.attainable import Departures
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy import Policy
from tightpack.scheduling.step_time import StepLoad, StepTimeModel, pairs


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """The unfinished requests of one service class.

    prompt_tokens: of their prompts, those not computed yet (after a preemption, of their outputs too).
    prompt_pairs: the query and key pairs of those tokens.
    """

    requests: int = 0
    prompt_tokens: int = 0
    prompt_pairs: int = 0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A snapshot between two steps.

    by_class: service class to its unfinished requests; classes without any are left out.
    decodes: requests that compute a token each step. decode_context: positions that those read, in sum.
    free_kv_tokens: positions that no running request holds.
    step_seconds: seconds a step, a prompt token, a prompt pair, a decode, a position that a decode reads.
    num_observed: steps that this was learned from. relative_error: its typical error.
    departure_gap_s: mean seconds between requests that end while the engine is busy; 0 before any did.
    prompt_room_s: what prompts may add to a step where the policy bounds that, else None.
    """

    policy: str
    num_running: int
    num_waiting: int
    max_num_seqs: int
    max_num_batched_tokens: int
    by_class: Mapping[str, ClassLoad]
    decodes: int
    decode_context: int
    free_kv_tokens: int
    step_seconds: tuple[float, float, float, float, float]
    relative_error: float
    num_observed: int
    departure_gap_s: float
    prompt_room_s: float | None


class LoadMeter:
    """Learns from the steps of one loop what `EngineLoad` says of time."""

    def __init__(self, policy: Policy) -> None:
        # A policy that learns for itself need not be doubled.
        self._own_model = policy.step_times is None
        self.model = policy.step_times or StepTimeModel()
        self.departures = Departures()

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        if self._own_model:
            self.model.observe(StepLoad.of(plan), elapsed_s)

    def settle(self, now: float, ended: int, *, busy: bool) -> None:
        """After a step: so many requests ended in it."""
        for _ in range(ended):
            self.departures.note()
        self.departures.settle(now, busy=busy)

    def load(self, policy: Policy, limits: SchedulerLimits, requests: Iterable[Request]) -> EngineLoad:
        """requests: those that are not finished."""
        counts: dict[str, list[int]] = {}
        decodes = context = 0
        for request in requests:
            of_class = counts.setdefault(request.service_class.name, [0, 0, 0])
            of_class[0] += 1
            pending, computed = request.num_pending_tokens, request.num_computed_tokens
            if pending == 1 and computed:
                decodes += 1
                context += len(request.token_ids)
            else:
                of_class[1] += pending
                of_class[2] += pairs(computed, pending)
        step, token, pair, decode, position = self.model.coefficients
        free = round((1 - policy.kv_usage) * limits.num_blocks * limits.block_size)
        return EngineLoad(
            policy=policy.name,
            num_running=policy.num_running,
            num_waiting=policy.num_waiting,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            by_class={name: ClassLoad(*numbers) for name, numbers in counts.items()},
            decodes=decodes,
            decode_context=context,
            free_kv_tokens=free,
            step_seconds=(step, token, pair, decode, position),
            relative_error=self.model.relative_error,
            num_observed=self.model.num_observed,
            departure_gap_s=self.departures.gap_s,
            prompt_room_s=policy.prompt_room_s,
        )
