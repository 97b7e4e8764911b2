"""Log-probabilities in the shapes of both APIs."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tightpack.requests.outputs import TokenLogprobs
from tightpack.server.engine import ServingTokenizer

# What OpenAI writes for a token of no probability, which JSON cannot say.
_FLOOR = -9999.0


def _text(tokenizer: ServingTokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")


def _finite(logprob: float) -> float:
    return logprob if logprob > _FLOOR else _FLOOR


def _chat_entry(tokenizer: ServingTokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {"token": raw.decode("utf-8", errors="replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def chat_logprobs(tokenizer: ServingTokenizer, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """`choices[i].logprobs` of a chat completion; the bytes of successive tokens join to whole characters."""
    content = [
        {
            **_chat_entry(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [_chat_entry(tokenizer, token, logprob) for token, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


@dataclass(slots=True)
class CompletionLogprobs:
    """Formats one choice of /v1/completions; called again for each part of a stream.

    Offsets count characters of the text from the choice's first one (with echo, from the prompt's). A token
    that ends inside a character starts at the character's own offset, as does the one that completes it.
    """

    tokenizer: ServingTokenizer
    skip_special_tokens: bool = True
    _offset: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def prompt(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """The echoed prompt: nothing predicts its first token, whose entries are null."""
        first = _text(self.tokenizer, token_ids[0])
        start: dict[str, Any] = {
            "tokens": [first],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [self._advance(token_ids[0], keep_special=False)],
        }
        return extend_logprobs(start, self._format(entries, keep_special=False))

    def output(self, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        return self._format(entries, keep_special=not self.skip_special_tokens)

    def _format(self, entries: Sequence[TokenLogprobs], keep_special: bool) -> dict[str, Any]:
        tokens = [_text(self.tokenizer, entry.token_id) for entry in entries]
        tops: list[dict[str, float]] = []
        for token, entry in zip(tokens, entries, strict=True):
            top: dict[str, float] = {}
            for candidate, logprob in entry.top:
                # Parts of characters can share a text; the likeliest keeps it.
                top.setdefault(_text(self.tokenizer, candidate), _finite(logprob))
            top.setdefault(token, _finite(entry.logprob))
            tops.append(top)
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": tops,
            "text_offset": [self._advance(entry.token_id, keep_special) for entry in entries],
        }

    def _advance(self, token_id: int, keep_special: bool) -> int:
        """The offset at which a token starts; moves past it, unless the text leaves it out."""
        start = self._offset
        if keep_special or token_id not in self.tokenizer.special_token_ids:
            self._offset += len(self._decoder.decode(self.tokenizer.token_bytes(token_id)))
        return start


def extend_logprobs(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any]:
    """Append the second to the first, in place."""
    if first is None:
        return second
    for name, values in second.items():
        first[name].extend(values)
    return first
