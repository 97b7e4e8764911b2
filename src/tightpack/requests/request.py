"""A request on its way through the scheduler and the executor: token ids in, token ids out."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tightpack.requests.outputs import RequestTimings, TokenLogprobs
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import STANDARD, ServiceClass


class FinishReason(enum.StrEnum):
    """Why a request ended; `stop` and `length` are OpenAI's."""

    STOP = "stop"  # an end-of-sequence token, a stop token or a stop string
    LENGTH = "length"  # max_tokens or the context length
    ABORT = "abort"  # the client went away or the engine was told to drop it
    ERROR = "error"  # it failed; `Request.error` says why


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One sequence. Identity, not value, compares two of them.

    prompt_token_ids: at least one token.
    seed: the resolved seed of this sequence (`SamplingParams.seed` plus its index among n, or drawn).
    eos_token_ids: the tokens that end the sequence; empty with `ignore_eos`.
    max_output_tokens: `max_tokens`, cut to what the context has room for.

    Progress is written by the serving loop alone:
    token_ids: prompt and output so far.
    num_computed_tokens: the leading tokens whose keys and values are in the request's blocks.
    num_published_tokens: the output tokens that consumers have seen.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    max_output_tokens: int
    eos_token_ids: frozenset[int] = frozenset()
    service_class: ServiceClass = STANDARD
    arrival_time: float = 0.0

    token_ids: list[int] = field(init=False)
    logprobs: list[TokenLogprobs] = field(default_factory=list, init=False)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list, init=False)
    num_computed_tokens: int = field(default=0, init=False)
    num_cached_prompt_tokens: int = field(default=0, init=False)
    num_published_tokens: int = field(default=0, init=False)
    num_preemptions: int = field(default=0, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    stop_reason: int | str | None = field(default=None, init=False)
    error: str | None = field(default=None, init=False)
    timings: RequestTimings = field(init=False)

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError(f"request {self.request_id}: the prompt has no tokens")
        if self.max_output_tokens < 1:
            raise ValueError(f"request {self.request_id}: no room for an output token")
        self.token_ids = list(self.prompt_token_ids)
        self.timings = RequestTimings(arrival_time=self.arrival_time)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def num_pending_tokens(self) -> int:
        """Known tokens not yet computed: 1 while decoding, more while a prompt or a recomputation goes on."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None
