"""Scales fitted anew once the codes are known."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.integer_grid import IntegerGrid, stored_scales
from tightpack.calibration.products import times_symmetric, times_transposed


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
    wanted = times_symmetric(before, hessian).reshape(shifts.shape).mul_(shifts).sum(dim=2)
    normal = _normal_matrices(shifts, hessian)
    # A group whose codes are all 0 has no say in its scale: without a ridge its row of the system is empty.
    ridge = 1e-6 * normal.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-30
    regular = normal + torch.diag_embed(ridge[:, None].expand(outputs, groups))
    change = torch.linalg.solve(regular, wanted.to(torch.float64)).to(torch.float32)
    scales = stored_scales(torch.nan_to_num(grid.scales + change), scale_dtype)
    # e^T H e falls by 2 wanted^T c - c^T N c for a change c of the scales.
    moved = (scales - grid.scales).to(torch.float64)
    reached = torch.einsum("oij,oj->oi", normal, moved)
    better = (moved * (2.0 * wanted - reached)).sum(dim=1) > 0
    return IntegerGrid(torch.where(better[:, None], scales, grid.scales), grid.zeros, grid.bits)


def _normal_matrices(shifts: Tensor, hessian: Tensor) -> Tensor:
    """c_g^T H_gj c_j of every row, float64 [outputs, groups, groups]; shifts: [outputs, groups, size]."""
    outputs, groups, size = shifts.shape
    normal = torch.empty(outputs, groups, groups, dtype=torch.float64, device=shifts.device)
    flat = shifts.reshape(outputs, groups * size)
    for group in range(groups):
        first = group * size
        # From the diagonal on: the matrices are symmetric.
        reached = times_transposed(shifts[:, group], hessian[first:, first : first + size])
        values = reached.mul_(flat[:, first:]).reshape(outputs, groups - group, size).sum(dim=2)
        normal[:, group, group:] = values
        normal[:, group:, group] = values
    return normal
