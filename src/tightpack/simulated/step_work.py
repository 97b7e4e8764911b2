"""What a step computes, as the few counts that its time depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tightpack.scheduling.plan import Chunk


@dataclass(frozen=True, slots=True)
class StepWork:
    """Counts over the chunks of a step. A chunk of one token is a decode, whatever it continues.

    tokens: rows of the linears, prompt and decode together.
    samples: rows of the head.
    decodes, prompts: chunks of one token, and of several.
    decode_context: positions that decodes read, themselves included.
    prompt_context: positions before their own that prompt chunks read from the KV cache.
    own_pairs, cached_pairs: (query, key) pairs of prompt chunks, with keys of the chunk itself (a triangle)
        and with those before it (a rectangle).
    """

    tokens: int
    samples: int
    decodes: int
    prompts: int
    decode_context: int
    prompt_context: int
    own_pairs: int
    cached_pairs: int

    @classmethod
    def of(cls, chunks: Iterable[Chunk], window: int | None = None) -> StepWork:
        """window: positions that a query attends to, itself included; None for all before it."""
        tokens = samples = decodes = prompts = decode_context = prompt_context = 0
        own_pairs = cached_pairs = 0
        for chunk in chunks:
            first, count = chunk.first_token, chunk.num_tokens
            end = first + count
            tokens += count
            if end == len(chunk.request.token_ids):
                samples += 1
            if count == 1:
                decodes += 1
                decode_context += end if window is None or end < window else window
            else:
                prompts += 1
                prompt_context += first if window is None or first < window else window - 1
                own = _pairs(count, window)
                own_pairs += own
                cached_pairs += _pairs(end, window) - _pairs(first, window) - own
        return cls(tokens, samples, decodes, prompts, decode_context, prompt_context, own_pairs, cached_pairs)


def _pairs(count: int, window: int | None) -> int:
    """(query, key) pairs of the first `count` positions."""
    if window is None or count <= window:
        return count * (count + 1) // 2
    return window * (window + 1) // 2 + (count - window) * window
