"""The forms a prompt may take, told apart once."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from tightpack.requests.arguments import as_int, refuse_unknown

Prompt = str | Mapping[str, Any]
Message = Mapping[str, Any]


def as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list. Token ids come as {"prompt_token_ids": [...]}, never bare."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    listed = list(prompts)
    if listed and isinstance(listed[0], numbers.Integral):
        raise TypeError('a prompt of token ids is written {"prompt_token_ids": [...]}')
    return listed


def as_conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[list[Message]]:
    """One conversation or many, as a list of conversations, with text parts joined by line feeds."""
    if isinstance(messages, str | Mapping):
        raise TypeError("messages is a list of messages such as {'role': 'user', 'content': text}")
    listed: list[Any] = list(messages)
    if not listed:
        raise ValueError("messages is empty; it needs at least one message")
    conversations = [listed] if isinstance(listed[0], Mapping) else listed
    return [[_with_text(message) for message in conversation] for conversation in conversations]


def _with_text(message: Message) -> Message:
    """The message with its content as one string, if it came as a list of text parts."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    for part in parts:
        if (
            not isinstance(part, Mapping)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise ValueError(
                f"a part of a message's content is {{'type': 'text', 'text': ...}}, got {part!r:.80}"
            )
    return {**message, "content": "\n".join(part["text"] for part in parts)}


def text_or_token_ids(prompt: Prompt) -> str | list[int]:
    """The text or the token ids of a prompt. Raises TypeError or ValueError naming what is wrong."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Mapping):
        raise TypeError(
            "a prompt is a string, {'prompt': text} or {'prompt_token_ids': ids}, "
            f"got {type(prompt).__name__}"
        )
    refuse_unknown("a prompt", prompt, ("prompt", "prompt_token_ids"))
    ids = prompt.get("prompt_token_ids")
    if ids is not None:
        return [as_int("each of prompt_token_ids", one) for one in ids]
    text = prompt.get("prompt")
    if not isinstance(text, str):
        raise TypeError("a prompt needs 'prompt' (a string) or 'prompt_token_ids' (a list of integers)")
    return text
