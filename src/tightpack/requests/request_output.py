"""What `LLM.generate` returns, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field

from tightpack.requests.outputs import RequestTimings


@dataclass(frozen=True, slots=True)
class Logprob:
    """logprob: natural logarithm; rank: 1 for the likeliest token of the position."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class CompletionOutput:
    """One completion. `logprobs` has a dict a token when asked for: the token itself and the likeliest ones.

    finish_reason: "stop", "length", "abort", "error", or None while it goes on.
    stop_reason: the stop string or stop token id that ended it; None for the model's own end of sequence.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    metrics: RequestTimings | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt's completions.

    prompt_logprobs: None for the first token (nothing predicts it), then a dict a token, when asked for.
    metrics: timings of the first completion, seconds on the engine's clock; each completion has its own.
    num_cached_tokens: prompt tokens whose keys and values the prefix cache had.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = False

    @property
    def metrics(self) -> RequestTimings | None:
        return self.outputs[0].metrics if self.outputs else None
