"""Likeliest first, and of equals the lowest id: the one order that sampling and log-probabilities use."""

from __future__ import annotations

import torch
from torch import Tensor


def ordered_top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their ids, [rows, count]; equals by ascending id.

    Which of several equals at the cut are among the `count` is open, unless `count` takes the whole row.
    """
    if count >= values.shape[-1]:
        top = torch.sort(values, dim=-1, descending=True, stable=True)
        return top.values, top.indices
    ids = torch.topk(values, count, dim=-1, sorted=False).indices.sort(dim=-1).values
    top = torch.sort(values.gather(-1, ids), dim=-1, descending=True, stable=True)
    return top.values, ids.gather(-1, top.indices)
