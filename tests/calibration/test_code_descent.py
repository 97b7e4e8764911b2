from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.code_descent import descend
from tightpack.calibration.integer_grid import min_max_grid

COLUMN_GROUPS = torch.arange(64) // 16


def plain_sweep(weight, hessian, codes, grid, order):
    """Every code of every column tried, in float64."""
    weight, hessian, codes = weight.double().numpy(), hessian.double().numpy(), codes.double().numpy().copy()
    scales = grid.scales.double().numpy()
    zeros = 0.0 if grid.zeros is None else grid.zeros.double().numpy()
    for column in order:
        costs = []
        for code in range(grid.lowest, grid.highest + 1):
            codes[:, column] = code
            error = weight - (codes - zeros) * scales
            costs.append(np.einsum("ni,ij,nj->n", error, hessian, error))
        codes[:, column] = np.argmin(costs, axis=0) + grid.lowest
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [7, 128])
def test_each_column_gets_the_cheapest_code_given_the_others(weight, hessian, symmetric, block):
    whole = min_max_grid(weight.reshape(24, 4, 16), bits=4, symmetric=symmetric)
    codes = whole.unsqueeze().codes(weight.reshape(24, 4, 16)).reshape(24, 64)
    grid = whole.by_input().rows(COLUMN_GROUPS).by_input()
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    found = descend(weight, hessian, codes, whole, order, block=block)
    expected = plain_sweep(weight, hessian, codes, grid, order.tolist())
    assert (found.numpy() == expected).mean() > 0.99
    assert not torch.equal(found, codes)


def test_a_solution_that_cannot_be_improved_stays(weight):
    diagonal = torch.diag(torch.linspace(0.5, 2.0, 64))
    whole = min_max_grid(weight.reshape(24, 4, 16), bits=4, symmetric=True)
    codes = whole.unsqueeze().codes(weight.reshape(24, 4, 16)).reshape(24, 64)
    found = descend(weight, diagonal, codes, whole, torch.arange(64))
    assert (found == codes).float().mean() > 0.999
