"""What a router must know of a request, read from its body without a tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tightpack.cluster.prefixes import prefix_hashes
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD

# Bytes of UTF-8 that a token stands for: about four in English, three (a character) in Chinese.
BYTES_PER_TOKEN = 4
_CLASSES = {"priority": INTERACTIVE.name, "flex": BATCH.name}


@dataclass(frozen=True, slots=True)
class Asked:
    """model: None where the body names none. prompt_tokens: exact for token ids, else estimated from bytes.

    sequences: prompts times n. max_tokens: of output, None where the body sets no bound. prefix: a hash for
    each block of the prompt's beginning.
    """

    model: str | None
    service_class: str
    prompt_tokens: int
    sequences: int
    max_tokens: int | None
    stream: bool
    prefix: tuple[bytes, ...]


def read_asked(body: bytes) -> Asked:
    """What cannot be read counts as absent: to say what is wrong with a body is a replica's business."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        given = {}
    model, tier = given.get("model"), given.get("service_tier")
    prompts = _prompts(given)
    tokens = sum(count for count, _ in prompts)
    n = _count(given.get("n")) or 1
    return Asked(
        model=model if isinstance(model, str) else None,
        service_class=_CLASSES.get(tier, STANDARD.name) if isinstance(tier, str) else STANDARD.name,
        prompt_tokens=max(1, tokens),
        sequences=max(1, len(prompts)) * min(n, 128),
        max_tokens=_count(given.get("max_completion_tokens")) or _count(given.get("max_tokens")),
        stream=given.get("stream") is True,
        prefix=prefix_hashes(prompts[0][1]) if prompts else (),
    )


def _prompts(given: dict[str, Any]) -> list[tuple[int, bytes]]:
    """Tokens and bytes of each prompt."""
    if "messages" in given:
        text = json.dumps(given["messages"], ensure_ascii=False).encode("utf-8", "replace")
        return [(len(text) // BYTES_PER_TOKEN, text)]
    prompt = given.get("prompt")
    if isinstance(prompt, list) and prompt and not all(isinstance(one, int) for one in prompt):
        return [_prompt(one) for one in prompt]
    return [_prompt(prompt)]


def _prompt(one: Any) -> tuple[int, bytes]:
    if isinstance(one, str):
        text = one.encode("utf-8", "replace")
        return -(-len(text) // BYTES_PER_TOKEN), text
    if isinstance(one, list):
        # Four bytes an id, so that a block of bytes is 64 tokens here too.
        ids = [i for i in one if isinstance(i, int) and 0 <= i < 2**32]
        return len(ids), b"".join(i.to_bytes(4, "little") for i in ids)
    return 0, b""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
