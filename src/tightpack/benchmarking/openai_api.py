"""OpenAI's streaming API as a client sees it: what to send, and when the tokens of an answer came."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tightpack.benchmarking.outcomes import Outcome

# Token ids that stand for ordinary text under every tokenizer in use: special tokens lie below the first
# thousand or at the end of vocabularies of 32,000 or more.
ORDINARY_TOKENS = range(1000, 30_000)
ENDPOINTS = ("completions", "chat")
_TIERS = {"interactive": "priority", "standard": "default", "batch": "flex"}
# Words that are a token each, with the space before them, in tokenizers made from English.
_WORDS = (
    *(
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "was",
        "for",
        "on",
        "that",
        "with",
        "as",
        "it",
        "by",
        "at",
        "from",
    ),
    *("are", "this", "his", "be", "an", "or", "had", "not", "which", "has", "were", "one", "their", "first"),
    *("but", "its", "also", "two", "time", "new", "after", "can", "more", "people", "other", "when", "year"),
    *("such", "some", "all", "there", "over", "into", "only", "most", "world", "part", "between", "made"),
)


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI-compatible server, and how to ask it.

    url: its root, or the /v1 below it. model: the name that requests carry.
    endpoint: "completions" sends prompts as token ids, of exactly the wanted length. "chat" sends words,
        about a token each, for servers that have nothing else.
    ignore_eos: asks for outputs of exactly the wanted length, by a field that vLLM, SGLang, llama.cpp and
        tightpack know and other servers may refuse.
    api_key: the bearer token.
    """

    url: str
    model: str
    endpoint: str = "completions"
    ignore_eos: bool = True
    api_key: str | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"a server's URL begins with http:// or https://, got {self.url!r}")
        if self.endpoint not in ENDPOINTS:
            raise ValueError(f"the endpoint is {' or '.join(ENDPOINTS)}, got {self.endpoint!r}")

    @property
    def base_url(self) -> str:
        root = self.url.rstrip("/").removesuffix("/v1")
        return f"{root}/v1"

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def body(self, outcome: Outcome, *, name_tier: bool) -> dict[str, Any]:
        """The request's JSON."""
        shape, tokens = outcome.planned.shape, outcome.planned.prompt_token_ids
        if self.endpoint == "chat":
            words = " ".join(_WORDS[token % len(_WORDS)] for token in tokens)
            prompt: dict[str, Any] = {"messages": [{"role": "user", "content": words}]}
        else:
            prompt = {"prompt": list(tokens)}
        body = {
            "model": self.model,
            **prompt,
            "max_tokens": shape.output_len,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            # Servers that know the one field know the other.
            body["ignore_eos"] = True
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        if name_tier and shape.service_class.name in _TIERS:
            body["service_tier"] = _TIERS[shape.service_class.name]
        return body


def served_models(server: Server) -> list[dict[str, Any]]:
    """What GET /v1/models lists. Raises OSError where nothing answers so."""
    import httpx

    url = f"{server.base_url}/models"
    try:
        answer = httpx.get(url, headers=server.headers, timeout=30, trust_env=False)
        answer.raise_for_status()
        return [dict(one) for one in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise OSError(f"{url} does not answer as an OpenAI-compatible server: {error}") from error


class AnswerError(Exception):
    """The server refused a request, or broke off its answer; the message is the server's."""


class StreamedAnswer:
    """Times the tokens of one stream.

    Chunks that carry usage say how many tokens have come; without it a chunk with text is one token, and what
    the final usage has beyond that is put at the last chunk: it came no later.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._last_chunk: float | None = None
        self._total: int | None = None

    def take(self, event: bytes, now: float) -> int:
        """How many tokens the event brings. Raises AnswerError for an error sent in the stream."""
        if event == b"[DONE]":
            return 0
        chunk = json.loads(event)
        if "error" in chunk:
            error = chunk["error"]
            raise AnswerError(error.get("message", error) if isinstance(error, dict) else str(error))
        usage, choices = chunk.get("usage"), chunk.get("choices") or ()
        times = self._outcome.token_times
        before = len(times)
        if usage is not None:
            self._total = usage["completion_tokens"]
        if not choices:
            return 0
        choice = choices[0]
        self._outcome.finish_reason = choice.get("finish_reason") or self._outcome.finish_reason
        delta = choice.get("delta") or {}
        has_text = bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content"))
        if usage is not None:
            times.extend([now] * (usage["completion_tokens"] - before))
        elif has_text:
            times.append(now)
        if has_text or len(times) > before:
            self._last_chunk = now
        return len(times) - before

    def end(self) -> None:
        """The stream is over. Raises AnswerError if it ended without a reason."""
        if self._outcome.finish_reason is None:
            raise AnswerError("the stream ended without a finish_reason")
        times = self._outcome.token_times
        if self._total is not None and self._last_chunk is not None:
            times.extend([self._last_chunk] * (self._total - len(times)))
            del times[self._total :]
