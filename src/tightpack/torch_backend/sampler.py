"""The next token of each row: greedy or drawn, after the request's edits, with log-probabilities if wanted.

What a row gives depends on its logits and its request alone, never on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightpack.requests.random_stream import uniform
from tightpack.requests.request import Request
from tightpack.serving_loop.executor import SampledToken
from tightpack.torch_backend.draw import DrawParams, draw
from tightpack.torch_backend.logit_edits import edit_logits_, edits_logits
from tightpack.torch_backend.logprobs import token_logprobs


def sample(logits: Tensor, requests: Sequence[Request]) -> list[SampledToken | None]:
    """One token a row of float32 logits [rows, vocab_size]; None where they hold NaN or plus infinity.

    A batch of plain greedy requests costs one pass for the maximum and nothing else. `logits` may be
    overwritten.
    """
    best = logits.max(-1)
    tokens: list[int] = best.indices.tolist()
    sound: list[bool] = best.values.isfinite().tolist()
    changed = [
        row for row, r in enumerate(requests) if sound[row] and (not r.params.greedy or edits_logits(r))
    ]
    reported = [
        row for row, request in enumerate(requests) if sound[row] and request.params.logprobs is not None
    ]
    if changed:
        # A copy unless nobody needs the originals: at 32 rows copying takes as long as drawing.
        spare = len(changed) == len(requests) and not reported
        chosen = _choose(logits if spare else logits[changed], [requests[row] for row in changed])
        for row, token in zip(changed, chosen, strict=True):
            tokens[row] = token
    logprobs = {}
    if reported:
        counts = [requests[row].params.logprobs or 0 for row in reported]
        entries = token_logprobs(logits[reported], [tokens[row] for row in reported], counts)
        logprobs = dict(zip(reported, entries, strict=True))
    return [
        SampledToken(token, logprobs.get(row)) if sound[row] else None for row, token in enumerate(tokens)
    ]


def _choose(logits: Tensor, requests: Sequence[Request]) -> list[int]:
    """Tokens of rows that are not plain greedy; `logits` is overwritten."""
    if any(edits_logits(request) for request in requests):
        edit_logits_(logits, requests)
    drawn = [row for row, request in enumerate(requests) if not request.params.greedy]
    if len(drawn) == len(requests):
        everything: list[int] = draw(logits, _draw_params(requests, logits)).tolist()
        return everything
    tokens: list[int] = logits.max(-1).indices.tolist()
    if drawn:
        params = _draw_params([requests[row] for row in drawn], logits)
        for row, token in zip(drawn, draw(logits[drawn], params).tolist(), strict=True):
            tokens[row] = token
    return tokens


def _draw_params(requests: Sequence[Request], logits: Tensor) -> DrawParams:
    vocab_size = logits.shape[-1]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)

    top_k = [min(r.params.top_k, vocab_size) if r.params.top_k > 0 else vocab_size for r in requests]
    return DrawParams(
        temperature=column([r.params.temperature for r in requests]),
        top_k=torch.tensor(top_k, dtype=torch.int64, device=logits.device),
        top_p=column([r.params.top_p for r in requests]),
        min_p=column([r.params.min_p for r in requests]),
        uniform=column([uniform(r.seed, r.num_output_tokens) for r in requests]),
    )
