"""Log-probabilities as reported to clients: of the model's own distribution, before edits and temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightpack.requests.outputs import TokenLogprobs
from tightpack.torch_backend.ordered import ordered_top
from tightpack.torch_backend.transfer import Readback, send


def token_logprobs(logits: Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """One entry a row of float32 logits [rows, vocab_size]: the row's token, its rank (1 + tokens likelier
    than it), and the row's `counts` likeliest tokens."""
    ids = send(torch.tensor(token_ids, dtype=torch.int64), logits.device)
    return LogprobRows(logits, ids, max(counts)).read(token_ids, counts)


class LogprobRows:
    """The same in two parts: computed on the device, and read.

    ids: int64 [rows], the tokens as far as they are known. most: the largest of `counts`.
    """

    def __init__(self, logits: Tensor, ids: Tensor, most: int) -> None:
        self._logprobs = logits.log_softmax(-1)
        self._most = min(most, logits.shape[-1])
        top = ordered_top(self._logprobs, self._most) if self._most else ()
        self._readback = Readback(ids, *self._of(ids), *top)

    def read(self, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
        """token_ids: as given, or others."""
        ids, chosen, ranks, *top = self._readback.wait()
        if ids.tolist() != list(token_ids):
            chosen, ranks = self._of(torch.tensor(token_ids, device=self._logprobs.device))
        tops: list[list[tuple[int, float]]] = [[]] * len(ranks)
        if self._most:
            values, indices = (numbers.tolist() for numbers in top)
            tops = [list(zip(i, v, strict=True)) for i, v in zip(indices, values, strict=True)]
        return [
            TokenLogprobs(token_id=token, logprob=value, rank=rank, top=tuple(top[:count]))
            for token, value, rank, top, count in zip(
                token_ids, chosen.tolist(), ranks.tolist(), tops, counts, strict=True
            )
        ]

    def _of(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of one token a row, its log-probability and rank."""
        chosen = self._logprobs.gather(-1, ids.unsqueeze(-1))
        return chosen.squeeze(-1), (self._logprobs > chosen).sum(-1) + 1
