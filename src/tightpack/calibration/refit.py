"""Scales fitted anew once the codes are known."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.hessian import output_errors
from tightpack.calibration.integer_grid import IntegerGrid, stored_scales


def refitted_scales(
    weight: Tensor,
    hessian: Tensor,
    codes: Tensor,
    grid: IntegerGrid,
    group_size: int,
    *,
    scale_dtype: torch.dtype = torch.float16,
) -> IntegerGrid:
    """The grid whose scales, with `codes` and zero points as they are, lower e^T H e of a row the most.

    Least squares in the norm of the Hessian, over all groups of a row at once: with c_g the codes of group g
    less their zero point, the scales solve sum_j (c_g^T H_gj c_j) s_j = c_g^T H w. GPTQ leaves codes that no
    longer sit around the weights they came from, and the scales were chosen for those.

    weight: float32 [outputs, inputs]. codes: whole numbers in float32, likewise. grid: [outputs, groups].
    A row whose error, after rounding to `scale_dtype`, would not be lower keeps its scales.
    """
    outputs, inputs = weight.shape
    groups = inputs // group_size
    hessian = hessian.to(torch.float32)
    shifts = codes.reshape(outputs, groups, group_size)
    if grid.zeros is not None:
        shifts = shifts - grid.zeros.unsqueeze(-1)
    before = weight - (shifts * grid.scales.unsqueeze(-1)).reshape(weight.shape)
    # Solved for the change of the scales, so that the ridge below holds on to what they are.
    wanted = (before @ hessian).reshape(shifts.shape).mul_(shifts).sum(dim=2)
    normal = torch.empty(outputs, groups, groups, dtype=torch.float64, device=weight.device)
    for group in range(groups):
        rows = hessian[group * group_size : (group + 1) * group_size]
        reached = (shifts[:, group] @ rows).reshape(shifts.shape)
        normal[:, :, group] = reached.mul_(shifts).sum(dim=2)
    # A group whose codes are all 0 has no say in its scale: without a ridge its row of the system is empty.
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += 1e-6 * diagonal.mean(dim=1, keepdim=True) + 1e-30
    change = torch.linalg.solve(normal, wanted.to(torch.float64)).to(torch.float32)
    scales = stored_scales(torch.nan_to_num(grid.scales + change), scale_dtype)
    after = weight - (shifts * scales.unsqueeze(-1)).reshape(weight.shape)
    better = output_errors(after, hessian) < output_errors(before, hessian)
    return IntegerGrid(torch.where(better[:, None], scales, grid.scales), grid.zeros, grid.bits)
