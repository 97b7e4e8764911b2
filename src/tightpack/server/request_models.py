"""Request bodies: OpenAI's parameters and, where they say more, vLLM's. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tightpack.server.request_fields import (
    Content,
    Count,
    LogitBias,
    Prompts,
    StopStrings,
    TokenId,
    unsupported,
)

MAX_COMPLETIONS = 128
MAX_TOP_LOGPROBS = 20

Ignored = Annotated[str | None, Field(description="Accepted; has no effect on the output.")]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]


class Strict(BaseModel):
    """No unknown fields, no coercion ("16" is not 16), no NaN or infinity."""

    # model_ is a prefix that pydantic keeps for itself; `model` is OpenAI's name.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="End with a chunk of token counts and no choices.")
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: counts so far in every chunk (as vLLM)."
    )
    include_obfuscation: unsupported(False) = None  # type: ignore[valid-type]


class GenerationRequest(Strict):
    """What completions and chat completions share."""

    model: str | None = Field(None, description="The served model's name; it may be left out.")
    stream: bool | None = Field(None, description="Answer with server-sent events as tokens come.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    n: int | None = Field(
        None, ge=1, le=MAX_COMPLETIONS, description="Completions of each prompt; 1 by default."
    )
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; 1 by default.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling.")
    top_k: int | None = Field(
        None, ge=-1, le=2**31 - 1, description="Keep the k likeliest tokens; 0 and -1 keep all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Drop tokens less likely than this times the likeliest."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="1 changes nothing.")
    logit_bias: LogitBias = Field(default_factory=dict, description="Token id to a bias on its logit.")
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="The same seed gives the same output."
    )
    stop: StopStrings = Field(
        default_factory=list, description="Strings that end the output, which is cut before."
    )
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = Field(None, description="Do not end at the model's end-of-sequence tokens.")
    min_tokens: Count | None = None
    skip_special_tokens: bool | None = Field(None, description="Leave special tokens out; true by default.")
    service_tier: Literal["auto", "default", "priority", "flex"] | None = Field(
        None,
        description="The service class: priority is interactive, default (and auto) standard, flex batch.",
    )
    user: Ignored = None
    metadata: dict[str, str] | None = Field(None, description="Accepted; has no effect on the output.")
    store: unsupported(False) = None  # type: ignore[valid-type]


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2-135m",
                    "prompt": "The capital of France is",
                    "max_tokens": 16,
                    "temperature": 0,
                }
            ]
        }
    )

    prompt: Prompts
    max_tokens: Count | None = Field(
        None, description="16 by default. 0 only with echo: the prompt is scored and nothing generated."
    )
    echo: bool | None = Field(
        None, description="Put the prompt before the output, in text and log-probabilities."
    )
    logprobs: TopLogprobs | None = Field(None, description="Log-probabilities of this many likeliest tokens.")
    best_of: int | None = Field(None, description="Only null or the value of n.")
    suffix: unsupported() = None  # type: ignore[valid-type]
    response_format: unsupported({"type": "text"}) = None  # type: ignore[valid-type]


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: str | None = None
    tool_call_id: str | None = Field(None, description="Of a message of role tool.")
    tool_calls: unsupported([]) = None  # type: ignore[valid-type]
    function_call: unsupported() = None  # type: ignore[valid-type]
    refusal: unsupported() = None  # type: ignore[valid-type]
    audio: unsupported() = None  # type: ignore[valid-type]


class ChatCompletionRequest(GenerationRequest):
    """Body of /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2-135m",
                    "messages": [{"role": "user", "content": "What is the capital of France?"}],
                    "max_tokens": 32,
                }
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="As many as the context has room for by default."
    )
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="The older name of max_completion_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = Field(None, description="Only with logprobs.")
    prompt_cache_key: Ignored = None
    safety_identifier: Ignored = None
    tools: unsupported([]) = None  # type: ignore[valid-type]
    tool_choice: unsupported("none") = None  # type: ignore[valid-type]
    parallel_tool_calls: unsupported() = None  # type: ignore[valid-type]
    functions: unsupported([]) = None  # type: ignore[valid-type]
    function_call: unsupported("none") = None  # type: ignore[valid-type]
    response_format: unsupported({"type": "text"}) = None  # type: ignore[valid-type]
    modalities: unsupported(["text"]) = None  # type: ignore[valid-type]
    audio: unsupported() = None  # type: ignore[valid-type]
    prediction: unsupported() = None  # type: ignore[valid-type]
    reasoning_effort: unsupported() = None  # type: ignore[valid-type]
    verbosity: unsupported() = None  # type: ignore[valid-type]
    web_search_options: unsupported() = None  # type: ignore[valid-type]


class TokenizeRequest(Strict):
    """Body of /tokenize: a prompt, or the messages of a chat."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "The capital of France is"}],
            "oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
        },
    )

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)] | None = None
    add_special_tokens: bool | None = Field(
        None, description="True by default for a prompt, false for messages."
    )
    add_generation_prompt: bool | None = Field(None, description="With messages; true by default.")
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """Body of /detokenize."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [504, 3575, 282, 4649]}]})

    model: str | None = None
    tokens: list[TokenId]


def field_names(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The fields of a body at a path of names and indices, for spelling suggestions."""
    nested: dict[str, type[BaseModel]] = {"messages": ChatMessage, "stream_options": StreamOptions}
    for step in path:
        model = nested.get(step, model) if isinstance(step, str) else model
    return list(model.model_fields)
