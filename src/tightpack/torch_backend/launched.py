"""What is kept of a step while the device computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightpack.requests.outputs import TokenLogprobs
from tightpack.scheduling.plan import Chunk
from tightpack.serving_loop.executor import StepOutcome
from tightpack.torch_backend.sampler import ChosenTokens
from tightpack.torch_backend.transfer import Readback


@dataclass(frozen=True, slots=True)
class LaunchedChunks:
    """Chunks computed together.

    starts: the first row of each. finite: bool, a row each, whether its numbers are.
    sampling: the chunks that `chosen` has a token for, in its order.
    prompt_logprobs: by request id.
    """

    chunks: Sequence[Chunk]
    starts: Sequence[int]
    finite: Readback
    sampling: Sequence[Chunk]
    chosen: ChosenTokens | None
    prompt_logprobs: Mapping[str, tuple[TokenLogprobs, ...]]


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """start: when, by `time.perf_counter`. outcome: what is known already. together: what is not, if any.
    rows: by request id, where the device keeps the token that a request gets.
    """

    start: float
    outcome: StepOutcome
    together: LaunchedChunks | None
    rows: Mapping[str, int]
