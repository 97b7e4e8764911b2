"""Log-probabilities as reported to clients: of the model's own distribution, before edits and temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightpack.requests.outputs import TokenLogprobs
from tightpack.torch_backend.ordered import ordered_top


def token_logprobs(logits: Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """One entry a row of float32 logits [rows, vocab_size]: the row's token, its rank (1 + tokens likelier
    than it), and the row's `counts` likeliest tokens."""
    logprobs = logits.log_softmax(-1)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device).unsqueeze(-1)
    chosen = logprobs.gather(-1, ids)
    ranks = ((logprobs > chosen).sum(-1) + 1).tolist()
    most = min(max(counts), logits.shape[-1])
    tops: list[list[tuple[int, float]]] = [[]] * len(ranks)
    if most:
        values, indices = ordered_top(logprobs, most)
        tops = [list(zip(i, v, strict=True)) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
    return [
        TokenLogprobs(token_id=token, logprob=value, rank=rank, top=tuple(top[:count]))
        for token, value, rank, top, count in zip(
            token_ids, chosen.squeeze(-1).tolist(), ranks, tops, counts, strict=True
        )
    ]
