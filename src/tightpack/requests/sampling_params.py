"""How the next token is chosen and when a request ends; vLLM's and OpenAI's names and meanings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tightpack.requests.arguments import as_float, as_int, strict_keywords

_INTEGERS = ("n", "min_tokens", "top_k")
_INTEGERS_OR_NONE = ("max_tokens", "seed", "logprobs", "prompt_logprobs")
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of one request.

    n: completions of the same prompt, sampled independently.
    max_tokens: output tokens at the most; None means as many as the context allows.
    min_tokens: output tokens before an end-of-sequence token, a stop token or a stop string may end it.
    temperature: 0 is greedy; otherwise logits are divided by it.
    top_k: keep the k likeliest tokens; 0 and -1 keep all.
    top_p: keep the smallest set of likeliest tokens whose probability reaches it (nucleus sampling).
    min_p: drop tokens less likely than min_p times the likeliest.
    presence_penalty, frequency_penalty: OpenAI's, over output tokens, in [-2, 2].
    repetition_penalty: over prompt and output tokens (Keskar et al. 2019); 1 changes nothing.
    logit_bias: token id to a value in [-100, 100] that is added to its logit.
    seed: the same seed gives the same output under every policy and batch; None draws one.
    stop: strings that end the output, which is cut before them.
    stop_token_ids: token ids that end the output.
    include_stop_str_in_output: keep the stop string that ended the output.
    ignore_eos: do not end at the model's end-of-sequence tokens.
    logprobs: report the log-probability of each output token and of this many likeliest ones
        (0: the chosen token alone; at most 20), of the distribution before temperature and filters.
    prompt_logprobs: the same for each prompt token but the first.
    skip_special_tokens: leave special tokens out of the text.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        for one in stop:
            if not isinstance(one, str):
                raise TypeError(f"stop must be a string or strings, got {one!r}")
        exact: dict[str, Any] = {name: as_int(name, getattr(self, name)) for name in _INTEGERS}
        exact |= {name: as_float(name, getattr(self, name)) for name in _NUMBERS}
        for name in _INTEGERS_OR_NONE:
            value = getattr(self, name)
            exact[name] = None if value is None else as_int(name, value)
        exact["stop"] = stop
        exact["stop_token_ids"] = tuple(as_int("stop_token_ids", i) for i in self.stop_token_ids or ())
        exact["logit_bias"] = {int(k): as_float("logit_bias", v) for k, v in (self.logit_bias or {}).items()}
        for name, value in exact.items():
            object.__setattr__(self, name, value)
        self._require(self.n >= 1, "n", "at least 1", self.n)
        self._require(
            self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens
        )
        self._require(self.min_tokens >= 0, "min_tokens", "0 or more", self.min_tokens)
        if self.max_tokens is not None:
            self._require(
                self.min_tokens <= self.max_tokens, "min_tokens", "at most max_tokens", self.min_tokens
            )
        self._require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            "0 or more",
            self.temperature,
        )
        self._require(self.top_k >= -1, "top_k", "-1, 0 (all tokens) or more", self.top_k)
        self._require(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        self._require(0 <= self.min_p <= 1, "min_p", "in [0, 1]", self.min_p)
        for name in ("presence_penalty", "frequency_penalty"):
            self._require(-2 <= getattr(self, name) <= 2, name, "in [-2, 2]", getattr(self, name))
        self._require(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            "above 0",
            self.repetition_penalty,
        )
        for token, bias in self.logit_bias.items():
            self._require(-100 <= bias <= 100, "logit_bias", "in [-100, 100] for each token", bias)
            self._require(token >= 0, "logit_bias", "keyed by token ids, 0 or more", token)
        self._require(
            self.seed is None or -(2**63) <= self.seed < 2**64, "seed", "an integer of 64 bits", self.seed
        )
        self._require(all(stop), "stop", "free of empty strings", list(stop))
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            self._require(count is None or 0 <= count <= 20, name, "in [0, 20]", count)

    @staticmethod
    def _require(holds: bool, name: str, rule: str, value: Any) -> None:
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {value!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0
