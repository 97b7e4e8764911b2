"""AWQ (Lin et al. 2023, arXiv:2306.00978): weights on large inputs are scaled up, the inputs down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tightpack.calibration.checks import check_hessian, check_same_inputs, check_statistic
from tightpack.calibration.hessian import output_errors
from tightpack.calibration.integer_grid import min_max_grid


def awq_scales(
    weights: Sequence[Tensor],
    hessian: Tensor,
    mean_abs: Tensor,
    *,
    bits: Literal[4, 8],
    group_size: int,
    symmetric: bool,
    grid: int = 20,
    tied: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Scales s, float32 [inputs], with which rounding W * s costs least at the output of x / s.

    Candidates are mean_abs^alpha for alpha = 0, 1/grid .. 1, normalised to a geometric middle of 1; alpha 0
    leaves the weights as they are. The loss is trace(E H E^T), the same as comparing the outputs of every
    calibration token.

    weights: [outputs, inputs] each, all fed by one input (q, k and v; gate and up; o; down).
    hessian: [inputs, inputs]; mean_abs: [inputs], both of the unscaled input.
    tied: int64 [inputs]: inputs of the same number get the same scale (`query_heads_of_values`); None if all
        are free.
    """
    inputs = check_same_inputs(weights, group_size)
    check_hessian(hessian, inputs)
    check_statistic(mean_abs, inputs, "mean_abs")
    if grid < 1:
        raise ValueError(f"grid must be at least 1, got {grid}")
    stacked = torch.cat([weight.to(torch.float32) for weight in weights])
    hessian = hessian.to(torch.float32)
    size = mean_abs.to(torch.float32).clamp(min=1e-4)
    if tied is not None:
        size = mean_of_tied(size, tied)
    best = torch.ones_like(size)
    least = float("inf")
    for step in range(grid + 1):
        scales = _normalised(size ** (step / grid))
        grouped = (stacked * scales).reshape(stacked.shape[0], -1, group_size)
        rounding = min_max_grid(grouped, bits=bits, symmetric=symmetric, scale_dtype=scale_dtype).unsqueeze()
        error = rounding.rounded(grouped).reshape(stacked.shape).div_(scales).sub_(stacked)
        loss = float(output_errors(error, hessian).sum(dtype=torch.float64))
        if loss < least:
            best, least = scales, loss
    return best


def query_heads_of_values(num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    """For each input of the attention's output projection the row of the value projection that it comes from.

    int64 [num_heads * head_dim]. Query heads of one group read the same value head, so a scale folded
    into v's rows must be the same for all of them.
    """
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_kv_heads} key-value heads do not divide {num_heads} heads")
    heads = torch.arange(num_heads) // (num_heads // num_kv_heads)
    return (heads[:, None] * head_dim + torch.arange(head_dim)).reshape(-1)


def mean_of_tied(values: Tensor, tied: Tensor) -> Tensor:
    if tied.shape != values.shape:
        raise ValueError(f"tied must be [{values.shape[0]}], got shape {tuple(tied.shape)}")
    tied = tied.to(values.device)
    sums = torch.zeros(int(tied.max()) + 1, device=values.device)
    counts = sums.clone().index_add_(0, tied, torch.ones_like(values))
    sums.index_add_(0, tied, values)
    return (sums / counts)[tied]


def _normalised(scales: Tensor) -> Tensor:
    """So that the largest and the least scale are each other's inverse: weights keep their magnitude."""
    return scales / (scales.max() * scales.min()).sqrt()
