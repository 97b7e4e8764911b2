"""Codes improved one column at a time, after a first solution is there.

GPTQ chooses a column's codes knowing only columns before it; once all are chosen, each can be chosen again
given all others. This is coordinate descent as in QuantEase (Behdin et al. 2023, arXiv:2309.01885), from
where GPTQ left off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.column_rounding import round_block
from tightpack.calibration.integer_grid import IntegerGrid
from tightpack.calibration.products import times_transposed


def descend(
    weight: Tensor, hessian: Tensor, codes: Tensor, grid: IntegerGrid, order: Tensor, *, block: int = 128
) -> Tensor:
    """One sweep over the columns in `order`: each gets the codes of least e^T H e, all other columns held.

    weight, codes: float32 [outputs, inputs]. hessian: float32 [inputs, inputs], its diagonal above 0.
    grid: of shape [outputs, groups]. order: int64 [inputs]. block: at most MOST_COLUMNS.
    Returns codes [outputs, inputs]; no row's e^T H e is higher than before, but for float32's rounding.
    """
    # In the order of the sweep, input by input, so that the column at hand is contiguous.
    grid = grid.by_input()
    groups = (order // (weight.shape[1] // grid.scales.shape[0])).to(torch.int32)
    hessian = hessian[order][:, order]
    found = _by_input(codes, order)
    values = grid.rows(groups).values(found)
    # What each column's error, with that of the columns it is correlated with, asks of it: H (w - w').
    wanted = times_transposed(hessian, (_by_input(weight, order) - values).T)
    curvature = hessian.diagonal().contiguous()
    for first in range(0, len(order), block):
        last = min(first + block, len(order))
        own = slice(first, last)
        found[own], moves = round_block(
            wanted[own], grid, groups[own], curvature[own], hessian[own, own], values[own]
        )
        if last < len(order):
            wanted[last:] -= times_transposed(hessian[last:, own], moves.T)
    result = torch.empty_like(found)
    result[order] = found
    return result.T.contiguous()


def _by_input(values: Tensor, order: Tensor) -> Tensor:
    """[inputs, outputs] in `order`, from [outputs, inputs]."""
    return values.T.contiguous()[order]
