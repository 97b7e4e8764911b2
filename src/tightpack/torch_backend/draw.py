"""Draw one token a row from the filtered distribution, by inversion of its cumulative sum.

The distribution is a function of the row alone: logits / temperature, then min_p, then top_k, then top_p (the
order of vLLM's sampler). Tokens are ordered by descending probability, equals by id; the token drawn is the
first whose cumulative probability exceeds the row's uniform number. Any executor that does the same draws the
same token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tightpack.torch_backend.ordered import ordered_top

# Sorting 49152 numbers takes 3 ms a row, finding the 128 largest 45 us: nearly every draw ends among those,
# and what does not looks further.
_TIERS = (128, 4096)
_PIECE = 64


@dataclass(frozen=True, slots=True)
class DrawParams:
    """One entry a row. temperature: above 0; top_k: vocab_size keeps all; top_p, min_p: 1 and 0 keep all.

    filters_least: whether any min_p is above 0.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    filters_least: bool

    def select(self, rows: Tensor) -> DrawParams:
        return DrawParams(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.uniform[rows],
            self.filters_least,
        )


class Drawing:
    """Tokens drawn among the likeliest of each row, and what it takes to look further. Making it does not
    wait for the device.

    logits: float32 [rows, vocab_size], overwritten; rows that are not finite give any token.
    at_once: at least so many of the likeliest are looked at.
    tokens, settled: [rows]; a token that is not settled may be another.
    """

    def __init__(self, logits: Tensor, params: DrawParams, at_once: int = 0) -> None:
        temperature = params.temperature.clamp(min=1e-10).float().unsqueeze(-1)
        # Relative to the likeliest token, so that no temperature overflows: exp of at most 0.
        weights = logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature).exp_()
        if params.filters_least:
            weights.masked_fill_(weights < params.min_p.float().unsqueeze(-1), 0)
        vocab_size = logits.shape[-1]
        first, *self._tiers = [*(t for t in _TIERS if at_once <= t < vocab_size), vocab_size]
        self._weights, self._params = weights, params
        self._total = _row_sums(weights)
        self.tokens, self.settled = _draw_from_top(weights, self._total, params, first)

    def look_further(self, rows: list[int]) -> list[int]:
        """The tokens of rows that are not settled."""
        open_rows = torch.tensor(rows, device=self._weights.device)
        tokens = torch.empty_like(self.tokens)
        for tier in self._tiers:
            found, settled = _draw_from_top(
                self._weights[open_rows], self._total[open_rows], self._params.select(open_rows), tier
            )
            tokens[open_rows[settled]] = found[settled]
            open_rows = open_rows[~settled]
            if not len(open_rows):
                break
        chosen: list[int] = tokens[rows].tolist()
        return chosen


def _row_sums(weights: Tensor) -> Tensor:
    """Sums in float64 [rows], of pieces in float32: an eighth of the time of float64 throughout.

    Plain float32 sums of one row are split over threads, those of many rows are not, and the two differ.
    """
    count = weights.shape[-1] // _PIECE
    whole = count * _PIECE
    pieces = weights[:, :whole].view(-1, count, _PIECE).sum(-1) if count else weights[:, :0]
    rest = weights[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)
    return torch.cat([pieces.double(), rest], dim=-1).sum(-1)


def _draw_from_top(weights: Tensor, total: Tensor, params: DrawParams, count: int) -> tuple[Tensor, Tensor]:
    """Draw knowing the `count` likeliest tokens only: token ids and whether they are settled, [rows] each."""
    top, ids = ordered_top(weights, count)
    complete = count == weights.shape[-1]
    cumulative = top.cumsum(-1, dtype=torch.float64)
    limited = params.top_k < weights.shape[-1]
    settled = torch.full_like(limited, complete) | ~limited | (params.top_k <= count)
    last = params.top_k.clamp(max=count) - 1
    mass = torch.where(limited, cumulative.gather(-1, last.unsqueeze(-1)).squeeze(-1), total)
    # Ranks that may be drawn: of positive weight, within top_k, and within the nucleus. A row that is not
    # finite has none, and gets the first.
    last = torch.minimum(last, ((top > 0).sum(-1) - 1).clamp(min=0))
    nucleus = params.top_p < 1
    needed = params.top_p * mass
    nucleus_last = (cumulative < needed.unsqueeze(-1)).sum(-1)
    settled &= ~nucleus | (nucleus_last < count) | torch.full_like(nucleus, complete)
    last = torch.where(nucleus, torch.minimum(last, nucleus_last.clamp(max=count - 1)), last)
    mass = torch.where(nucleus, cumulative.gather(-1, last.unsqueeze(-1)).squeeze(-1), mass)
    rank = (cumulative <= (params.uniform * mass).unsqueeze(-1)).sum(-1)
    if not complete:
        # The tail of equals may go on past the cut: their ids are not known yet, nor are later ranks.
        certain = (top > top[:, -1:]).sum(-1)
        settled &= torch.minimum(rank, last) < certain
        settled &= (rank <= last) | (last < count - 1)
    rank = torch.minimum(rank, last)
    return ids.gather(-1, rank.unsqueeze(-1)).squeeze(-1), settled
