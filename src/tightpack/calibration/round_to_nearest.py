"""Round-to-nearest: what quantization costs without calibration."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tightpack.calibration.checks import check_weight
from tightpack.calibration.clip import clipped_ranges
from tightpack.calibration.integer_grid import int_weight, min_max_grid
from tightpack.schemes.quantized import IntWeight


def round_to_nearest(
    weight: Tensor,
    *,
    bits: Literal[4, 8],
    group_size: int,
    symmetric: bool,
    clip: Literal["minmax", "mse"] = "minmax",
    scale_dtype: torch.dtype = torch.float16,
) -> IntWeight:
    """Every weight to the nearest code of its group.

    weight: [outputs, inputs]. group_size: inputs that share a scale; the number of inputs for one a row.
    clip: "minmax" covers every weight; "mse" takes the range of least squared error of the weights. Where
        inputs differ much in size "mse" may be the worse at the output.
    """
    check_weight(weight, group_size)
    weight = weight.to(torch.float32)
    grouped = weight.reshape(weight.shape[0], -1, group_size)
    if clip == "minmax":
        grid = min_max_grid(grouped, bits=bits, symmetric=symmetric, scale_dtype=scale_dtype)
    elif clip == "mse":
        grid = clipped_ranges(
            weight, None, bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype
        )
    else:
        raise ValueError(f'clip must be "minmax" or "mse", got {clip!r}')
    return int_weight(grid.unsqueeze().codes(grouped).reshape(weight.shape), grid, group_size)
