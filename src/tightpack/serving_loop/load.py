"""What a request would meet if it came now: the queue, and how long steps take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tightpack.requests.request import Request
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy import Policy
from tightpack.scheduling.step_time import StepLoad, StepTimeModel, pairs
from tightpack.serving_loop.output_lengths import OutputLengths


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
    ahead: of those, whoever is served before a newcomer that has a TTFT target and can make it.
    decodes: requests that compute a token each step. decode_context: positions that those read, in sum.
    free_kv_tokens: positions that no running request holds.
    step_seconds: seconds a step, a prompt token, a prompt pair, a decode, a position that a decode reads.
    num_observed: steps that this was learned from. relative_error: its typical error.
    ends_in_steps: for each running request, the output tokens it is expected to give yet, in order.
    output_tokens: of a request to come, as expected. longest_output_tokens: of a batch of `max_num_seqs`.
    max_wait_s: that a batch waits for company, where the policy is one of batches.
    prompt_room_s: what prompts may add to a step where the policy bounds that, else None.
    """

    policy: str
    num_running: int
    num_waiting: int
    max_num_seqs: int
    max_num_batched_tokens: int
    by_class: Mapping[str, ClassLoad]
    ahead: ClassLoad
    decodes: int
    decode_context: int
    free_kv_tokens: int
    step_seconds: tuple[float, float, float, float, float]
    relative_error: float
    num_observed: int
    ends_in_steps: Sequence[float]
    output_tokens: float
    longest_output_tokens: float
    max_wait_s: float
    prompt_room_s: float | None


class LoadMeter:
    """Learns from the steps of one loop what `EngineLoad` says of time."""

    def __init__(self, policy: Policy) -> None:
        # A policy that learns for itself need not be doubled.
        self._own_model = policy.step_times is None
        self.model = policy.step_times or StepTimeModel()
        self.outputs = OutputLengths()

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        if self._own_model:
            self.model.observe(StepLoad.of(plan), elapsed_s)

    def ended(self, requests: Iterable[Request]) -> None:
        """They ended in the last step."""
        for request in requests:
            self.outputs.note(request)

    def load(self, policy: Policy, limits: SchedulerLimits, requests: Iterable[Request]) -> EngineLoad:
        """requests: those that are not finished."""
        counts: dict[str, list[int]] = {}
        ahead = [0, 0, 0]
        running: list[tuple[int, int]] = []
        decodes = context = 0
        for request in requests:
            of_class = counts.setdefault(request.service_class.name, [0, 0, 0])
            groups = (of_class,) if policy.is_behind(request) else (of_class, ahead)
            pending, computed = request.num_pending_tokens, request.num_computed_tokens
            if computed:
                running.append((request.num_output_tokens, request.max_output_tokens))
            decoding = pending == 1 and computed > 0
            if decoding:
                decodes += 1
                context += len(request.token_ids)
            for group in groups:
                group[0] += 1
                if not decoding:
                    group[1] += pending
                    group[2] += pairs(computed, pending)
        step, token, pair, decode, position = self.model.coefficients
        free = round((1 - policy.kv_usage) * limits.num_blocks * limits.block_size)
        return EngineLoad(
            policy=policy.name,
            num_running=policy.num_running,
            num_waiting=policy.num_waiting,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            by_class={name: ClassLoad(*numbers) for name, numbers in counts.items()},
            ahead=ClassLoad(*ahead),
            decodes=decodes,
            decode_context=context,
            free_kv_tokens=free,
            step_seconds=(step, token, pair, decode, position),
            relative_error=self.model.relative_error,
            num_observed=self.model.num_observed,
            ends_in_steps=sorted(self.outputs.left(running)),
            output_tokens=self.outputs.expected(),
            longest_output_tokens=self.outputs.longest(limits.max_num_seqs),
            max_wait_s=limits.max_wait,
            prompt_room_s=policy.prompt_room_s,
        )
