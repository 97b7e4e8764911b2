"""Ranges of a group's grid, narrower than its weights: finer steps for the many, cuts for the few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tightpack.calibration.checks import check_hessian, check_weight
from tightpack.calibration.hessian import damped, group_blocks
from tightpack.calibration.integer_grid import IntegerGrid, grid_of_range, int_weight
from tightpack.calibration.refit import refitted_scales
from tightpack.schemes.quantized import IntWeight

SHRINK_FACTORS = tuple(1.0 - 0.04 * step for step in range(16))
"""Of the range from the least to the largest weight of a group: 1.00, 0.96 ... 0.40. For 4 bits: a cut of 4 %
costs a grid of 8 more at its ends than its finer steps give."""


def clipped_ranges(
    weight: Tensor,
    hessian: Tensor | None,
    *,
    bits: Literal[4, 8],
    group_size: int,
    symmetric: bool,
    factors: Sequence[float] | None = None,
    scale_dtype: torch.dtype = torch.float16,
) -> IntegerGrid:
    """The grid of every group whose rounding costs least, among ranges shrunk by `factors`.

    The cost of a group's error e is e^T H_gg e, with H_gg the group's own block of the Hessian: the mean
    squared error of the output if the other groups were exact. It made every method better (GPTQ on SmolLM2:
    a divergence of .117 for .170), where the plain squared error of the weights, which cuts weights on large
    inputs as readily as any other, made them worse.

    weight: [outputs, inputs]. hessian: [inputs, inputs], or None for the plain squared error.
    factors: by default SHRINK_FACTORS for 4 bits, and the whole range for 8.
    Returns a grid of shape [outputs, groups]. The factor 1 is always among the candidates, so that the cost
    is never above that of the whole range.
    """
    check_weight(weight, group_size)
    outputs, inputs = weight.shape
    groups = inputs // group_size
    if factors is None:
        factors = SHRINK_FACTORS if bits == 4 else (1.0,)
    # Groups first: the cost of all rows of a group is then one matrix product.
    grouped = weight.to(torch.float32).reshape(outputs, groups, group_size).transpose(0, 1).contiguous()
    blocks = None
    if hessian is not None:
        check_hessian(hessian, inputs)
        blocks = group_blocks(hessian, group_size)
    low, high = grouped.aminmax(dim=2)
    best: IntegerGrid | None = None
    least = torch.empty(0)
    candidates = sorted({1.0, *factors}, reverse=True)
    for factor in candidates:
        grid = grid_of_range(
            low * factor, high * factor, bits=bits, symmetric=symmetric, scale_dtype=scale_dtype
        )
        if len(candidates) == 1:
            best = grid
            break
        cost = _costs(grouped, grid, blocks)
        if best is None:
            best, least = grid, cost
            continue
        better = cost < least
        least = torch.where(better, cost, least)
        zeros = None
        if best.zeros is not None and grid.zeros is not None:
            zeros = torch.where(better, grid.zeros, best.zeros)
        best = IntegerGrid(torch.where(better, grid.scales, best.scales), zeros, bits)
    assert best is not None
    zeros = None if best.zeros is None else best.zeros.T.contiguous()
    return IntegerGrid(best.scales.T.contiguous(), zeros, bits)


def _costs(grouped: Tensor, grid: IntegerGrid, blocks: Tensor | None) -> Tensor:
    """[groups, outputs]; grouped: [groups, outputs, group_size]."""
    error = grid.unsqueeze().rounded(grouped).sub_(grouped)
    if blocks is None:
        return error.square_().sum(dim=2)
    return torch.bmm(error, blocks).mul_(error).sum(dim=2)


def quantize_with_hessian_clip(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: Literal[4, 8],
    group_size: int,
    symmetric: bool,
    refit: bool = True,
    damping: float = 0.05,
    scale_dtype: torch.dtype = torch.float16,
) -> IntWeight:
    """Rounds every weight to the nearest code of its group's `clipped_ranges` grid.

    With the block's Hessian in the place of outputs compared token by token this is the clip search of AWQ
    (Lin et al. 2023, arXiv:2306.00978).

    refit: whether the scales are then fitted to the codes (`refitted_scales`), with `damping` times the mean
        of the Hessian's diagonal added to it. With AWQ's scales on SmolLM2: a divergence of .103 for .117.
    """
    grid = clipped_ranges(
        weight, hessian, bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype
    )
    weight = weight.to(torch.float32)
    grouped = weight.reshape(weight.shape[0], -1, group_size)
    codes = grid.unsqueeze().codes(grouped).reshape(weight.shape)
    if refit:
        grid = refitted_scales(
            weight, damped(hessian, damping), codes, grid, group_size, scale_dtype=scale_dtype
        )
    return int_weight(codes, grid, group_size)
