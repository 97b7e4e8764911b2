"""The executor that computes nothing: it asks a cost model how long a step takes and lets that time pass."""

from __future__ import annotations

from collections.abc import Mapping

from tightpack.requests.request import Request
from tightpack.scheduling.plan import StepPlan
from tightpack.serving_loop.executor import SampledToken, StepResult
from tightpack.simulated.cost_model import CostModel
from tightpack.simulated.virtual_clock import VirtualClock

_NO_LOGPROBS = "log-probabilities were asked for, and a simulation has none"


class SimulatedExecutor:
    """Implements `serving_loop.executor.Executor` on a virtual clock.

    Every request gets the smallest token id that does not end it, so its output is as long as it may be.
    """

    def __init__(
        self, cost_model: CostModel, clock: VirtualClock, *, num_blocks: int, block_size: int
    ) -> None:
        self._cost_model = cost_model
        self._clock = clock
        self._num_blocks = num_blocks
        self._block_size = block_size
        # A day of traffic is millions of tokens: one object for all that are equal.
        self._token = SampledToken(0)

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def description(self) -> Mapping[str, str]:
        return {"backend": "simulated", **self._cost_model.description}

    def execute(self, plan: StepPlan) -> StepResult:
        """Let the step's time pass. Requests for log-probabilities fail, and take part in the time."""
        seconds = self._cost_model.step_seconds(plan)
        self._clock.sleep(seconds)
        sampled, failed = {}, {}
        for chunk in plan.chunks:
            request = chunk.request
            params = request.params
            if params.logprobs is not None or params.prompt_logprobs is not None:
                failed[request.request_id] = _NO_LOGPROBS
            elif chunk.samples:
                ends = request.eos_token_ids or params.stop_token_ids
                sampled[request.request_id] = self._harmless(request) if ends else self._token
        return StepResult(sampled, seconds, failed=failed)

    def close(self) -> None:
        pass

    @staticmethod
    def _harmless(request: Request) -> SampledToken:
        ends = request.eos_token_ids.union(request.params.stop_token_ids or ())
        return SampledToken(next(token for token in range(len(ends) + 1) if token not in ends))
