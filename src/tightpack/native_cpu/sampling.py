"""The next token of each row, after the request's edits, with log-probabilities if wanted; vLLM's order.

What a row gives depends on its logits and its request alone, never on the rows beside it. The work is done in
C++ (csrc/sampler.h); here is what is kept of each request for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tightpack import _native
from tightpack.requests.outputs import TokenLogprobs
from tightpack.requests.random_stream import uniform
from tightpack.requests.request import Request
from tightpack.serving_loop.executor import SampledToken

Floats = NDArray[np.float32]
_Row = tuple[_native.SamplingSettings, float, bool]


class Sampler:
    """Keeps the settings of requests that are not plainly greedy, and how many of their tokens those know."""

    def __init__(self, team: _native.ThreadTeam, instruction_set: str = "auto") -> None:
        self._native = _native.Sampler(team, instruction_set=instruction_set)
        self._states: dict[str, _State] = {}

    def sample(self, logits: Floats, requests: Sequence[Request]) -> list[SampledToken | None]:
        """One token a row of float32 logits [rows, vocab_size]; None where they hold NaN or plus infinity."""
        rows = [None if _is_plain(request) else self._row(request) for request in requests]
        tokens = self._native.sample(logits, rows)
        reported = [
            row
            for row, request in enumerate(requests)
            if request.params.logprobs is not None and tokens[row] >= 0
        ]
        if not reported:
            return [SampledToken(token) if token >= 0 else None for token in tokens]
        entries = self.token_logprobs(
            logits if len(reported) == len(logits) else logits[reported],
            [tokens[row] for row in reported],
            [requests[row].params.logprobs or 0 for row in reported],
        )
        logprobs = dict(zip(reported, entries, strict=True))
        return [
            SampledToken(token, logprobs.get(row)) if token >= 0 else None for row, token in enumerate(tokens)
        ]

    def token_logprobs(
        self, logits: Floats, token_ids: Sequence[int], counts: Sequence[int]
    ) -> list[TokenLogprobs]:
        """One entry a row: the row's token, its rank, and the row's `counts` likeliest tokens."""
        entries = self._native.token_logprobs(logits, token_ids, counts)
        return [
            TokenLogprobs(token_id=token, logprob=logprob, rank=rank, top=top)
            for token, (logprob, rank, top) in zip(token_ids, entries, strict=True)
        ]

    def _row(self, request: Request) -> _Row:
        state = self._states.get(request.request_id)
        if state is None or state.request is not request:
            if len(self._states) >= 64:
                self._states = {name: s for name, s in self._states.items() if not s.request.finished}
            state = self._states[request.request_id] = _State(request)
        return state.row()


class _State:
    def __init__(self, request: Request) -> None:
        params = request.params
        self.request = request
        endings = request.eos_token_ids.union(params.stop_token_ids or ()) if params.min_tokens else ()
        self._settings = _native.SamplingSettings(
            temperature=params.temperature,
            top_k=max(params.top_k, 0),
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            bias=list((params.logit_bias or {}).items()),
            endings=sorted(token for token in endings if token >= 0),
        )
        self._penalizes = self._settings.penalizes
        if self._penalizes:
            self._settings.see_prompt(request.prompt_token_ids)
        self._num_told = request.num_prompt_tokens

    def row(self) -> _Row:
        request = self.request
        if self._penalizes and len(request.token_ids) > self._num_told:
            self._settings.see_output(request.token_ids[self._num_told :])
            self._num_told = len(request.token_ids)
        position = request.num_output_tokens
        number = 0.0 if request.params.greedy else uniform(request.seed, position)
        return self._settings, number, position < request.params.min_tokens


def _is_plain(request: Request) -> bool:
    params = request.params
    return (
        params.greedy
        and not params.logit_bias
        and params.repetition_penalty == 1
        and not params.presence_penalty
        and not params.frequency_penalty
        and request.num_output_tokens >= params.min_tokens
    )
