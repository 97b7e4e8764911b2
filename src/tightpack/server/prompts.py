"""Prompts and conversations to token ids that fit the context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tightpack.server.api_error import ApiError, invalid
from tightpack.server.engine import ServingEngine, ServingTokenizer
from tightpack.server.request_models import ChatMessage, GenerationRequest

# Texts longer than this are tokenized on a thread (a millisecond or more), so that streams do not stall.
_THREAD_FROM_CHARS = 16_384


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids: at least one. text: as given, or decoded from the ids (only where an echo needs it)."""

    token_ids: tuple[int, ...]
    text: str = ""


async def encode(tokenizer: ServingTokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) < _THREAD_FROM_CHARS:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)


async def completion_prompts(
    engine: ServingEngine, given: Sequence[str | list[int]], *, with_text: bool
) -> list[Prompt]:
    """Prompts of /v1/completions; `given` is of one kind."""
    tokenizer = engine.tokenizer
    prompts: list[Prompt] = []
    ids: list[int]
    for position, one in enumerate(given):
        param = "prompt" if len(given) == 1 else f"prompt[{position}]"
        if isinstance(one, str):
            ids, text = await encode(tokenizer, one, add_special_tokens=True), one
        else:
            ids = one
            outside = [token for token in ids if not 0 <= token < tokenizer.vocab_size]
            if outside:
                raise invalid(
                    f"{param}: token id {outside[0]} is outside the vocabulary "
                    f"of {tokenizer.vocab_size} tokens",
                    param,
                )
            text = tokenizer.decode(ids, skip_special_tokens=False) if with_text else ""
        check_length(engine, len(ids), param)
        prompts.append(Prompt(tuple(ids), text))
    return prompts


async def chat_prompt(engine: ServingEngine, messages: Sequence[ChatMessage]) -> Prompt:
    text = render(engine.tokenizer, messages, add_generation_prompt=True)
    # The template writes the special tokens itself.
    ids = await encode(engine.tokenizer, text, add_special_tokens=False)
    check_length(engine, len(ids), "messages")
    return Prompt(tuple(ids))


def check_length(engine: ServingEngine, num_tokens: int, param: str) -> None:
    """At least one token, and room for one more."""
    if not num_tokens:
        raise invalid(f"{param}: the prompt has no tokens", param)
    if num_tokens >= engine.max_model_len:
        raise invalid(
            f"{param}: this model's context holds {engine.max_model_len} tokens, output included, "
            f"but the prompt has {num_tokens}",
            param,
            "context_length_exceeded",
        )


def check_room(engine: ServingEngine, prompts: Sequence[Prompt], body: GenerationRequest) -> None:
    """400 for more output than the context has room for, rather than an answer that ends too early."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    for name in ("max_tokens", "max_completion_tokens"):
        asked = getattr(body, name, None)
        if asked is not None and longest + asked > engine.max_model_len:
            raise invalid(
                f"{name}: this model's context holds {engine.max_model_len} tokens, but the prompt has "
                f"{longest} and up to {asked} more are asked for; ask for {engine.max_model_len - longest} "
                "at the most",
                name,
                "context_length_exceeded",
            )


def check_queue(engine: ServingEngine, num_prompts: int, n: int) -> None:
    """400 for more completions than the queue holds when it is empty: waiting would not help, as 429 says."""
    if num_prompts * n > engine.max_queue:
        many = f"{num_prompts} prompts" if num_prompts > 1 else "1 prompt"
        param = "prompt" if num_prompts > 1 else "n"
        raise invalid(
            f"{param}: {many} times n={n} are {num_prompts * n} completions, and this server's queue holds "
            f"{engine.max_queue} (--max-queue); send fewer in one request",
            param,
        )


def render(
    tokenizer: ServingTokenizer, messages: Sequence[ChatMessage], *, add_generation_prompt: bool
) -> str:
    """The text of a conversation by the model's own template."""
    if not tokenizer.has_chat_template:
        raise ApiError(
            400,
            "this model has no chat template; use /v1/completions",
            param="messages",
            code="no_chat_template",
        )
    plain = [_plain(message) for message in messages]
    try:
        return tokenizer.render_chat(plain, add_generation_prompt=add_generation_prompt)
    except ValueError as error:
        raise invalid(f"messages: {error}", "messages", "invalid_messages") from None


def _plain(message: ChatMessage) -> dict[str, Any]:
    # Templates know "system" only; OpenAI's "developer" is its newer name.
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.content,
    }
    for name in ("name", "tool_call_id"):
        if getattr(message, name) is not None:
            plain[name] = getattr(message, name)
    return plain
