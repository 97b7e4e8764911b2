"""LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339): int8 with a scale a row, but a few inputs in 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.checks import check_weight
from tightpack.calibration.integer_grid import IntegerGrid, int_weight, stored_scales
from tightpack.schemes.quantized import IntWeight


def int8_channels(
    weight: Tensor, *, group_size: int | None = None, scale_dtype: torch.dtype = torch.float16
) -> IntWeight:
    """Symmetric int8, -127 .. 127, with one scale a row ("vector-wise"), or one a group of a row.

    The scale is the one that reaches the largest weight. Searching below it for the least squared error takes
    4 % off that error, and on SmolLM2 nothing off the divergence.

    weight: [outputs, inputs]. group_size: inputs that share a scale; None for all of them.
    """
    check_weight(weight, group_size)
    size = weight.shape[1] if group_size is None else group_size
    grouped = weight.to(torch.float32).reshape(weight.shape[0], -1, size)
    grid = IntegerGrid(stored_scales(grouped.abs().amax(dim=2) / 127, scale_dtype), None, 8)
    codes = grid.unsqueeze().codes(grouped).clamp_(-127, 127)
    return int_weight(codes.reshape(weight.shape), grid, size)
