"""Scales of least squared error, where the largest weight need not have the largest code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Rows looked at together: a few copies of them stay in the cache.
_ELEMENTS = 1 << 16


def nearest_scales(
    groups: Tensor,
    scales: Tensor,
    factors: Sequence[float],
    rounded: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`scales` times whichever of `factors` leaves a group the least squared error.

    groups: float32 [groups, size]. scales: float32 [groups, 1], those that reach the largest weight.
    rounded: of groups and scales the representable values nearest to the groups.
    factors: the first is taken where nothing is better.
    """
    best = scales * factors[0]
    step = max(1, _ELEMENTS // groups.shape[1])
    for first in range(0, len(groups), step):
        rows = slice(first, first + step)
        part, least = groups[rows], None
        for factor in factors:
            tried = scales[rows] * factor
            error = (rounded(part, tried) - part).square_().sum(dim=1, keepdim=True)
            if least is None:
                least = error
                continue
            better = error < least
            least = torch.where(better, error, least)
            best[rows] = torch.where(better, tried, best[rows])
    return best
