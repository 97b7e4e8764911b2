"""LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339): int8 with a scale a row, but a few inputs in 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.checks import check_statistic, check_weight
from tightpack.calibration.integer_grid import IntegerGrid, int_weight, stored_scales
from tightpack.schemes.quantized import ActivationFormat, IntWeight


def int8_channels(
    weight: Tensor, *, group_size: int | None = None, scale_dtype: torch.dtype = torch.float16
) -> IntWeight:
    """Symmetric int8, -127 .. 127, with one scale a row ("vector-wise"), or one a group of a row.

    weight: [outputs, inputs]. group_size: inputs that share a scale; None for all of them.
    """
    check_weight(weight, group_size)
    size = weight.shape[1] if group_size is None else group_size
    grouped = weight.to(torch.float32).reshape(weight.shape[0], -1, size)
    grid = IntegerGrid(stored_scales(grouped.abs().amax(dim=2) / 127, scale_dtype), None, 8)
    codes = grid.unsqueeze().codes(grouped).clamp_(-127, 127)
    return int_weight(codes.reshape(weight.shape), grid, size)


def outlier_columns(absmax: Tensor, threshold: float = 6.0) -> Tensor:
    """The inputs, int64 ascending, whose largest |x| over calibration tokens reaches `threshold`.

    absmax: [inputs]. At run time outliers are found in each row; this foretells where, and how many.
    """
    check_statistic(absmax, absmax.shape[0], "absmax")
    if threshold <= 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    return (absmax >= threshold).nonzero().reshape(-1)


def llm_int8_activation(threshold: float = 6.0) -> ActivationFormat:
    """int8 a token, entries of a row at or above `threshold` in 16 bits."""
    return ActivationFormat(precision="int8", per="token", outlier_threshold=threshold)
