"""What comes back: log-probabilities, timings, and the updates that a serving loop publishes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural logarithm) at one position.

    rank: 1 for the likeliest token.
    top: (token id, logprob) of the likeliest tokens, best first; may or may not hold the token itself.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class RequestTimings:
    """Seconds on the serving loop's clock. `token_times` has one entry an output token, as published."""

    arrival_time: float
    first_scheduled_time: float | None = None
    finished_time: float | None = None
    token_times: list[float] = field(default_factory=list)

    @property
    def first_token_time(self) -> float | None:
        return self.token_times[0] if self.token_times else None

    @property
    def last_token_time(self) -> float | None:
        return self.token_times[-1] if self.token_times else None


@dataclass(frozen=True, slots=True)
class Update:
    """What a serving loop publishes of one request after a step: the new tokens since the last update.

    finish_reason is set on the last update of a request, which may hold no token.
    prompt_logprobs comes once, with the first update, when it was asked for.
    first_scheduled_time: when its first chunk began, on the loop's clock; None before.
    num_preemptions: how often it has lost its blocks so far.
    """

    request_id: str
    token_ids: tuple[int, ...]
    time: float
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    num_cached_prompt_tokens: int = 0
    first_scheduled_time: float | None = None
    num_preemptions: int = 0
