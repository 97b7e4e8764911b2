"""The forms a prompt may take, told apart once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tightpack.requests.arguments import refuse_unknown

Prompt = str | Mapping[str, Any]
Message = Mapping[str, Any]


def as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list. Token ids come as {"prompt_token_ids": [...]}, never bare."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    listed = list(prompts)
    if listed and isinstance(listed[0], int):
        raise TypeError('a prompt of token ids is written {"prompt_token_ids": [...]}')
    return listed


def as_conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[list[Message]]:
    """One conversation or many, as a list of conversations."""
    listed: list[Any] = list(messages)
    if not listed:
        raise ValueError("messages is empty; it needs at least one message")
    return [listed] if isinstance(listed[0], Mapping) else [list(conversation) for conversation in listed]


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
        ids = list(ids)
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise TypeError("prompt_token_ids must be integers")
        return ids
    text = prompt.get("prompt")
    if not isinstance(text, str):
        raise TypeError("a prompt needs 'prompt' (a string) or 'prompt_token_ids' (a list of integers)")
    return text
