"""Tokens to text as they come: no half characters, no stop string shown, not even the beginning of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tightpack.requests.outputs import TokenLogprobs, Update
from tightpack.requests.sampling_params import SamplingParams

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"  # what decoders give for bytes that are not (yet) a character


@dataclass(frozen=True, slots=True)
class CompletionDelta:
    """What is new of one completion.

    index: which of the n completions.
    text: never holds half a character, a stop string (unless it was asked for) or the beginning of one.
    token_ids, logprobs: the tokens whose text begins in `text`; logprobs where they were asked for.
    prompt_logprobs: for prompt tokens 1 onwards, once, when asked for.
    num_output_tokens: generated so far, those of a cut stop string included.
    time: seconds on the serving loop's clock when the tokens were published.
    first_scheduled_time: on that clock, when its first chunk began; None before.
    num_preemptions: how often it has lost its KV blocks so far.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    time: float
    num_output_tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    num_cached_prompt_tokens: int = 0
    first_scheduled_time: float | None = None
    num_preemptions: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None


class IncrementalDecoder:
    """Decodes a growing token sequence, giving each character once and whole.

    A token alone does not tell its text (leading spaces, characters of several tokens), so each piece is
    the difference of decoding a short window with and without the new tokens.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0  # leading tokens of the window whose text was given

    @property
    def withholds(self) -> bool:
        """Whether tokens wait for the rest of their character."""
        return self._shown < len(self._window)

    def push(self, token_id: int, last: bool = False) -> str:
        """The text that `token_id` completes; with `last`, unfinished characters come as U+FFFD."""
        self._window.append(token_id)
        before = self._decode(self._window[: self._shown])
        after = self._decode(self._window)
        if after.endswith(_REPLACEMENT) and not last:
            return ""
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return after[len(before) :]


class CompletionStream:
    """Turns the updates of one request into deltas of text.

    decode: token ids to text, special tokens skipped or not as the request asked.
    """

    def __init__(self, index: int, params: SamplingParams, decode: Decode) -> None:
        self._index = index
        self._stop = tuple(params.stop or ())
        self._keep_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._decoder = IncrementalDecoder(decode)
        self._num_tokens = 0
        self._length = 0  # characters decoded so far, of which the last len(_held) are held back
        self._held = ""
        self._held_tokens: list[
            tuple[int, int, TokenLogprobs | None]
        ] = []  # (where its text begins, id, logprobs)
        self.finished = False

    def push(self, update: Update) -> CompletionDelta:
        """The delta of an update. It may bring a finish reason that the engine does not know: abort then."""
        reason, stop_reason = update.finish_reason, update.stop_reason
        text = ""
        for i, token_id in enumerate(update.token_ids):
            last = reason is not None and i == len(update.token_ids) - 1
            self._num_tokens += 1
            self._held_tokens.append(
                (self._length, token_id, update.logprobs[i] if update.logprobs else None)
            )
            if last and stop_reason is not None and not self._keep_stop:
                continue  # a stop token is reported, its text is not
            text += self._take(self._decoder.push(token_id, last))
            if self.finished:
                reason, stop_reason = "stop", self._stop_found
                break
        if reason is not None and not self.finished:
            text += self._held
            self._held = ""
            self.finished = True
            tokens = self._held_tokens
        else:
            tokens = self._released_tokens()
        return CompletionDelta(
            index=self._index,
            text=text,
            token_ids=tuple(token for _, token, _ in tokens),
            time=update.time,
            num_output_tokens=self._num_tokens,
            logprobs=tuple(logprobs for _, _, logprobs in tokens if logprobs is not None),
            prompt_logprobs=update.prompt_logprobs,
            num_cached_prompt_tokens=update.num_cached_prompt_tokens,
            first_scheduled_time=update.first_scheduled_time,
            num_preemptions=update.num_preemptions,
            finish_reason=reason,
            stop_reason=stop_reason,
            error=update.error,
        )

    def _take(self, new: str) -> str:
        """Add decoded text; return what may be shown now."""
        self._length += len(new)
        text = self._held + new
        self._held = ""
        if not self._stop or self._num_tokens < self._min_tokens:
            return text
        found = min(((at, s) for s in self._stop if (at := text.find(s)) >= 0), default=None)
        if found is not None:
            at, self._stop_found = found
            shown = text[: at + len(self._stop_found) * self._keep_stop]
            self._length += len(shown) - len(text)
            self.finished = True
            return shown
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _released_tokens(self) -> list[tuple[int, int, TokenLogprobs | None]]:
        """Take out the tokens whose text begins in what was shown."""
        shown = self._length - len(self._held)
        everything = not self._held and not self._decoder.withholds and not self.finished
        count = sum(1 for start, _, _ in self._held_tokens if start < shown or everything)
        released, self._held_tokens = self._held_tokens[:count], self._held_tokens[count:]
        return released


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
