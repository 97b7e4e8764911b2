"""Request bodies to `SamplingParams` and service classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD, ServiceClass
from tightpack.server.api_error import ApiError, invalid
from tightpack.server.request_fields import MAX_PROMPTS
from tightpack.server.request_models import ChatCompletionRequest, CompletionRequest, GenerationRequest

# Below this, logits divided by the temperature leave the range of float32; greedy is the limit.
_GREEDY_BELOW = 1e-5

_SAME_NAME = (
    "n",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
)

_TIERS: Final = {"priority": INTERACTIVE.name, "default": STANDARD.name, "flex": BATCH.name}


def service_tier(body: GenerationRequest, classes: Iterable[ServiceClass]) -> tuple[str, ServiceClass]:
    """The tier that a request is served at, for its answer, and the one of `classes` behind it."""
    tier = str(body.service_tier if body.service_tier in _TIERS else "default")
    return tier, next(one for one in classes if one.name == _TIERS[tier])


def completion_params(body: CompletionRequest, vocab_size: int) -> SamplingParams:
    """One token is generated where none is asked for, and dropped: a step scores the prompt."""
    if body.max_tokens == 0 and not body.echo:
        raise invalid("max_tokens must be at least 1, or 0 with echo to score the prompt", "max_tokens")
    if body.best_of not in (None, body.n or 1):
        raise invalid(
            "best_of: is not supported; leave it out, or give the value of n", "best_of", "unsupported_value"
        )
    if len(body.prompt) * (body.n or 1) > MAX_PROMPTS:
        raise invalid(f"n: prompts times n must be at most {MAX_PROMPTS}", "n")
    return _params(
        body,
        vocab_size,
        max_tokens=16 if body.max_tokens is None else max(1, body.max_tokens),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )


def chat_params(body: ChatCompletionRequest, vocab_size: int) -> SamplingParams:
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    limits = {body.max_completion_tokens, body.max_tokens} - {None}
    if len(limits) > 1:
        raise invalid("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    return _params(
        body,
        vocab_size,
        max_tokens=limits.pop() if limits else None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _params(body: GenerationRequest, vocab_size: int, **limits: Any) -> SamplingParams:
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options needs stream to be true", "stream_options")
    options = body.stream_options
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        param = "stream_options.continuous_usage_stats"
        raise invalid(f"{param} needs include_usage to be true", param)
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(body, name) or ():
            if token >= vocab_size:
                raise invalid(
                    f"{name}: token id {token} is outside the vocabulary of {vocab_size} tokens", name
                )
    given: dict[str, Any] = {name: getattr(body, name) for name in _SAME_NAME}
    if body.temperature is not None:
        given["temperature"] = body.temperature if body.temperature >= _GREEDY_BELOW else 0.0
    try:
        return SamplingParams(**{name: value for name, value in given.items() if value is not None}, **limits)
    except ValueError as error:
        raise explain_value_error(error) from None


def explain_value_error(error: ValueError) -> ApiError:
    """400 for a ValueError of the engine; its message begins with the parameter where it is about one."""
    message = str(error)
    first = message.split(" ")[0].rstrip(":")
    return invalid(
        message, first if first in GenerationRequest.model_fields or first == "max_tokens" else None
    )
