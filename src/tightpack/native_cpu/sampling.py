"""The next token of each row, after the request's edits, with log-probabilities if wanted; vLLM's order.

What a row gives depends on its logits and its request alone, never on the rows beside it.
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


class Sampler:
    def __init__(self, team: _native.ThreadTeam) -> None:
        self._team = team

    def sample(self, logits: Floats, requests: Sequence[Request]) -> list[SampledToken | None]:
        """One token a row of float32 logits [rows, vocab_size]; None where they hold NaN or plus infinity."""
        best = logits.argmax(-1)
        sound = np.isfinite(logits[np.arange(len(logits)), best]).tolist()
        tokens: list[SampledToken | None] = []
        for row, (request, token) in enumerate(zip(requests, best.tolist(), strict=True)):
            if not sound[row]:
                tokens.append(None)
                continue
            params = request.params
            if not params.greedy or _edits(request):
                token = _choose(_edited(logits[row], request), request)
            logprobs = None
            if params.logprobs is not None:
                logprobs = _entry(logits[row], token, params.logprobs)
            tokens.append(SampledToken(token, logprobs))
        return tokens

    def token_logprobs(
        self, logits: Floats, token_ids: Sequence[int], counts: Sequence[int]
    ) -> list[TokenLogprobs]:
        """One entry a row: the row's token, its rank, and the row's `counts` likeliest tokens."""
        return [_entry(row, t, count) for row, t, count in zip(logits, token_ids, counts, strict=True)]


def _edits(request: Request) -> bool:
    params = request.params
    return bool(
        params.logit_bias
        or request.num_output_tokens < params.min_tokens
        or params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
    )


def _edited(logits: Floats, request: Request) -> Floats:
    params = request.params
    edited = logits.copy()
    for token, bias in (params.logit_bias or {}).items():
        edited[token] += np.float32(bias)
    if request.num_output_tokens < params.min_tokens:
        for token in request.eos_token_ids.union(params.stop_token_ids or ()):
            if 0 <= token < len(edited):
                edited[token] = -np.inf
    if params.repetition_penalty != 1:
        seen = np.unique(np.asarray(request.token_ids, np.int64))
        penalty, before = np.float32(params.repetition_penalty), edited[seen]
        edited[seen] = np.where(before > 0, before / penalty, before * penalty)
    if (params.presence_penalty or params.frequency_penalty) and request.num_output_tokens:
        seen, times = np.unique(np.asarray(request.output_token_ids, np.int64), return_counts=True)
        penalties = times * params.frequency_penalty + params.presence_penalty
        edited[seen] -= penalties.astype(np.float32)
    return edited


def _choose(logits: Floats, request: Request) -> int:
    params = request.params
    if params.greedy:
        return int(logits.argmax())
    temperature = np.float32(max(params.temperature, 1e-10))
    weights = np.exp((logits - logits.max()) / temperature)
    if params.min_p > 0:
        weights[weights < np.float32(params.min_p)] = 0
    ids = np.flatnonzero(weights)
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    if 0 < params.top_k < len(ids):
        ids = ids[: params.top_k]
    cumulative = np.cumsum(weights[ids], dtype=np.float64)
    last = len(ids) - 1
    if params.top_p < 1:
        last = min(last, int((cumulative < params.top_p * cumulative[-1]).sum()))
    drawn = uniform(request.seed, request.num_output_tokens) * cumulative[last]
    return int(ids[min(last, int((cumulative <= drawn).sum()))])


def _entry(logits: Floats, token: int, count: int) -> TokenLogprobs:
    shifted = logits - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum(dtype=np.float64)).astype(np.float32)
    count = min(count, len(logprobs))
    top: list[int] = []
    if count:
        least = np.partition(logprobs, -count)[-count]
        ids = np.flatnonzero(logprobs >= least)
        top = ids[np.argsort(-logprobs[ids], kind="stable")][:count].tolist()
    return TokenLogprobs(
        token_id=token,
        logprob=float(logprobs[token]),
        rank=int((logprobs > logprobs[token]).sum()) + 1,
        top=tuple((t, float(logprobs[t])) for t in top),
    )
