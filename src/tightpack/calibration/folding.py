"""Scales of a linear's inputs, folded into what produces them: the function stays, the numbers change.

With W' = W * s (columns) and x' = x / s the product is the same. x' comes for free where a norm's weight or
the rows of the linear before can be divided by s:

    input norm -> q, k, v          norm -> gate, up
    v -> o (query heads of a group share their value head's scales)
    up -> down (the gate's activation is not linear, its product with `up` is)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.calibration.integer_grid import stored_scales
from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight, QuantizedLinear


def fold_into_norm(stored: NDArray[Any], scales: Tensor, offset: float) -> tuple[NDArray[Any], Tensor]:
    """A norm's weight divided by `scales` [width], and the scales that this exactly is.

    stored: [width], meaning offset + stored (offset 1 for Gemma). The result is rounded to bfloat16, as it
    will be written; the scales returned (float32) are those of the rounded weight, so the columns of the
    linears that read the norm, multiplied by them, undo the fold to float32's rounding. Where a weight is 0,
    or would become so, its scale is 1.
    """
    effective = stored.astype(np.float64) + offset
    wanted = effective / scales.cpu().numpy().astype(np.float64) - offset
    rounded = wanted.astype(np.float32).astype(ml_dtypes.bfloat16)
    becomes = rounded.astype(np.float64) + offset
    kept = (effective == 0) | (becomes == 0)
    rounded = np.where(kept, stored.astype(ml_dtypes.bfloat16), rounded)
    exact = np.ones_like(effective)
    np.divide(effective, becomes, out=exact, where=~kept)
    return rounded, torch.from_numpy(exact.astype(np.float32)).to(scales.device)


def divide_rows(
    linear: QuantizedLinear, scales: Tensor, scale_dtype: torch.dtype = torch.float16
) -> QuantizedLinear:
    """The linear whose outputs are divided by `scales` [outputs]: of a quantized weight, its scales are.

    Raises ValueError for fp8 weights whose scales span several rows.
    """
    divisors = scales.cpu().numpy().astype(np.float32)[:, None]
    weight = linear.weight
    if isinstance(weight, DenseWeight):
        return replace(linear, weight=DenseWeight(weight.values.astype(np.float32) / divisors))
    if isinstance(weight, Fp8Weight) and weight.block[0] != 1:
        raise ValueError("rows of an fp8 weight that share a scale cannot be divided one by one")
    divided = weight.scales / divisors
    if isinstance(weight, IntWeight):
        divided = stored_scales(torch.from_numpy(divided), scale_dtype).numpy()
        return replace(linear, weight=replace(weight, scales=divided))
    return replace(linear, weight=replace(weight, scales=divided))


def of_value_rows(scales: Tensor, tied: Tensor) -> Tensor:
    """Scales of the attention output's inputs [num_heads * head_dim], all alike where `tied` is, as scales
    of the value projection's rows [num_kv_heads * head_dim]."""
    rows = torch.empty(int(tied.max()) + 1, dtype=scales.dtype, device=scales.device)
    rows[tied.to(scales.device)] = scales
    return rows
