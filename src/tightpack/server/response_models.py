"""Answers, for the OpenAPI description (they are written as plain dictionaries, which is quicker)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Answer):
    message: str
    type: str = Field(
        description="invalid_request_error, authentication_error, rate_limit_error or server_error."
    )
    param: str | None = Field(description="The parameter at fault as a path, such as messages[0].content.")
    code: str | None


class ErrorResponse(Answer):
    error: ErrorDetail


class PromptTokensDetails(Answer):
    cached_tokens: int


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Generated(Answer):
    """What both kinds of completion begin with."""

    id: str
    created: int
    model: str
    service_tier: Literal["default", "priority", "flex"]
    system_fingerprint: str
    usage: Usage


class CompletionLogprobsAnswer(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobsAnswer | None
    finish_reason: Literal["stop", "length"]
    stop_reason: int | str | None = Field(description="The stop string or stop token that ended it.")


class CompletionResponse(Generated):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: int | str | None = Field(description="The stop string or stop token that ended it.")


class ChatCompletionResponse(Generated):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class TokenizeResponse(Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(Answer):
    prompt: str


class HealthResponse(Answer):
    status: Literal["ok"]


class ClassLoad(Answer):
    requests: int
    prompt_tokens: int = Field(description="Not computed yet.")
    prompt_pairs: int = Field(description="Query and key pairs of those tokens.")


class LoadResponse(Answer):
    server_load: int = Field(description="HTTP requests in flight.")
    policy: str
    num_running: int
    num_waiting: int
    max_num_seqs: int
    max_num_batched_tokens: int
    by_class: dict[str, ClassLoad]
    ahead: ClassLoad = Field(description="Whoever is served before a newcomer with a TTFT target.")
    decodes: int
    decode_context: int
    free_kv_tokens: int
    step_seconds: list[float] = Field(
        description="Of a step, a prompt token, a prompt pair, a decode, a position that a decode reads."
    )
    relative_error: float
    num_observed: int
    ends_in_steps: list[float] = Field(
        description="Of each running request, the output tokens that it is expected to give yet."
    )
    output_tokens: float = Field(description="Of a request to come, as expected.")
    longest_output_tokens: float = Field(description="Of a batch of max_num_seqs requests to come.")
    max_wait_s: float
    prompt_room_s: float | None


class VersionResponse(Answer):
    version: str
