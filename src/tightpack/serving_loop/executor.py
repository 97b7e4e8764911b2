"""The seam between the serving loop and what computes: weights, KV tensors and sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from tightpack.requests.outputs import TokenLogprobs
from tightpack.scheduling.plan import StepPlan


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token chosen after a chunk's last position; `logprobs` when the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave, keyed by request id.

    sampled: one entry for every chunk with `samples`, but for failed requests.
    prompt_logprobs: for requests with `params.prompt_logprobs`, one entry for each prompt token that this
        step's positions predict (the chunk's positions p with p + 1 inside the prompt), in order.
    failed: requests that could not be computed, with the reason; the others are unharmed.
    elapsed_s: seconds the step took on the executor's clock (wall time, or virtual in simulation).
    unrounded_layers: so far, layers whose inputs saturated their static scale and are no longer rounded.
    misled_next: a token is not the one that a step launched behind this one took; what that gives is void.
    """

    sampled: Mapping[str, SampledToken]
    elapsed_s: float
    prompt_logprobs: Mapping[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    unrounded_layers: int = 0
    misled_next: bool = False


class StepOutcome:
    """What a step has given so far: an executor fills it request by request, and ends with the result."""

    def __init__(self) -> None:
        self.sampled: dict[str, SampledToken] = {}
        self.prompt_logprobs: dict[str, tuple[TokenLogprobs, ...]] = {}
        self.failed: dict[str, str] = {}

    def result(self, elapsed_s: float, unrounded_layers: int = 0, *, misled_next: bool = False) -> StepResult:
        return StepResult(
            self.sampled, elapsed_s, self.prompt_logprobs, self.failed, unrounded_layers, misled_next
        )


class ExecutorDiedError(RuntimeError):
    """The executor cannot compute any more: the engine ends, where another error would end requests alone."""


class Executor(Protocol):
    """Computes plans. Knows nothing of queues; keeps no state a request but the KV cache in its blocks.

    Sampling depends on the request alone: penalties on its token ids, randomness on
    `random_stream.uniform(request.seed, request.num_output_tokens)`.
    """

    @property
    def num_blocks(self) -> int:
        """KV blocks in the pool."""

    @property
    def block_size(self) -> int:
        """Token positions a block."""

    @property
    def description(self) -> Mapping[str, str]:
        """What runs where, for logs and manifests: backend, device, dtype, kv_cache_dtype, threads, ..."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan's chunks, write their keys and values, sample after those that reach the end."""

    def close(self) -> None:
        """Free what was allocated; the executor cannot be used afterwards."""


# Stands in `Request.token_ids` for the token that a running step will give.
UNREAD_TOKEN = -1


@runtime_checkable
class LaunchingExecutor(Executor, Protocol):
    """An executor that computes beside the host: a step can be launched behind a running one (`overlap`).

    Steps are computed in the order of their launch, two at a time at the most, and collected in that order.
    """

    @property
    def async_scheduling(self) -> bool:
        """Whether steps should be launched ahead."""

    def may_be_followed(self, plan: StepPlan) -> bool:
        """Whether the requests of `plan` can go on to their next token before this one's is read: nothing
        that chooses it needs the tokens before it on the host."""

    def launch(self, plan: StepPlan, after: Any = None) -> Any:
        """Start computing; what comes back is for `collect`.

        after: the step launched before this one, if it has not been collected. Where a request's last token
            is UNREAD_TOKEN, this step takes what that one gives. Then None may come back: not yet, the plan
            has to be made again once `after` is collected.
        """

    def collect(self, launched: Any) -> StepResult:
        """Wait for a launched step and read what it gave. `elapsed_s` does not count the time in which the
        step before was still running."""
