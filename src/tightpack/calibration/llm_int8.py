"""Symmetric int8 with a scale a row: the "vector-wise" weights of LLM.int8 (Dettmers et al. 2022,
arXiv:2208.07339), of W8A8, and of int8 weights alone where there is no text to calibrate on."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.checks import check_weight
from tightpack.calibration.integer_grid import IntegerGrid, int_weight, stored_scales
from tightpack.schemes.quantized import IntWeight


def int8_channels(
    weight: Tensor,
    *,
    group_size: int | None = None,
    scale_dtype: torch.dtype = torch.float16,
) -> IntWeight:
    """Codes -127 .. 127 with the scale that reaches the largest weight, of a row or of a group of a row.

    weight: [outputs, inputs]. group_size: inputs that share a scale; None for all of them.
    """
    check_weight(weight, group_size)
    size = weight.shape[1] if group_size is None else group_size
    grouped = weight.to(torch.float32).reshape(weight.shape[0], -1, size)
    low, high = grouped.aminmax(dim=2)
    scales = stored_scales(torch.maximum(-low, high) / 127, scale_dtype)
    grid = IntegerGrid(scales, None, 8)
    codes = grid.unsqueeze().codes(grouped).clamp_(min=-127)
    return int_weight(codes.reshape(weight.shape), grid, size)
