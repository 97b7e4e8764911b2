"""The next step planned and launched while the one before is computed, so that the device never waits.

vLLM's asynchronous scheduling and SGLang's overlapped scheduler do the same: a step is planned as if the
running one were done, with a stand-in for each token that it will give, and the device hands its tokens on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tightpack.requests.request import Request
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.scheduling.policy import Policy
from tightpack.serving_loop.clock import Clock
from tightpack.serving_loop.executor import UNREAD_TOKEN, LaunchingExecutor, StepResult


@dataclass(frozen=True, slots=True)
class _Launched:
    plan: StepPlan
    step: Any


class OverlappedSteps:
    """Gives steps in order, each with its result, and keeps one launched behind it where that is safe.

    That is where the step decodes, each of its requests has at least two tokens to go, none has ended, none
    needs its tokens on the host to choose the next (penalties), and the policy evicts nobody. All else waits
    for the tokens, as without overlap. Who ends by its token has one more computed, which nobody sees;
    `computes` says how long its blocks are needed.
    """

    def __init__(self, policy: Policy, executor: LaunchingExecutor, clock: Clock) -> None:
        self._policy, self._executor, self._clock = policy, executor, clock
        self._behind: _Launched | None = None
        self._computed: frozenset[Request] = frozenset()

    def next(self) -> tuple[StepPlan, StepResult] | None:
        """Run the next step to its end; None when there is nothing to run."""
        running = self._behind or self._launch(None)
        if running is None:
            return None
        self._set_behind(self._launch_behind(running))
        result = self._executor.collect(running.step)
        if result.misled_next and self._behind is not None:
            # Its requests are where they were, so the next plan computes the same tokens again.
            self._executor.collect(self._behind.step)
            self._set_behind(None)
        return running.plan, result

    @property
    def running(self) -> bool:
        """Whether a step was launched whose result has not been given."""
        return self._behind is not None

    def computes(self, request: Request) -> bool:
        """Whether that step writes to the request's blocks."""
        return request in self._computed

    def abandon(self) -> frozenset[Request]:
        """Forget that step, after an executor that raised; its requests."""
        requests = self._computed
        self._set_behind(None)
        return requests

    def _set_behind(self, launched: _Launched | None) -> None:
        self._behind = launched
        chunks = launched.plan.chunks if launched is not None else ()
        self._computed = frozenset(chunk.request for chunk in chunks)

    def _launch_behind(self, running: _Launched) -> _Launched | None:
        plan = running.plan
        if not (
            all(map(_goes_on, plan.chunks))
            and self._policy.evicts_nobody
            and self._executor.may_be_followed(plan)
        ):
            return None
        with _as_if_computed(plan):
            return self._launch(running)

    def _launch(self, after: _Launched | None) -> _Launched | None:
        plan = self._policy.plan(self._clock.now())
        if not plan:
            return None
        step = self._executor.launch(plan, None if after is None else after.step)
        return None if step is None else _Launched(plan, step)


def _goes_on(chunk: Chunk) -> bool:
    """Whether the chunk is a decode after which its request goes on, unless by a token that ends it."""
    request = chunk.request
    return (
        chunk.num_tokens == 1
        and chunk.samples
        and not request.finished
        and 0 < request.num_output_tokens < request.max_output_tokens - 1
    )


@contextmanager
def _as_if_computed(plan: StepPlan) -> Iterator[None]:
    """Show the requests as they will be after decodes, but for what their tokens are."""
    requests = [chunk.request for chunk in plan.chunks]
    for request in requests:
        request.token_ids.append(UNREAD_TOKEN)
        request.num_computed_tokens += 1
    try:
        yield
    finally:
        for request in requests:
            request.token_ids.pop()
            request.num_computed_tokens -= 1
