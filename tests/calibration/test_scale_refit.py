from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.integer_grid import IntegerGrid, min_max_grid
from tightpack.calibration.refit import refitted_scales


def rounded(weight, symmetric):
    grouped = weight.reshape(24, 4, 16)
    grid = min_max_grid(grouped, bits=4, symmetric=symmetric, scale_dtype=torch.float32)
    return grid, grid.unsqueeze().codes(grouped).reshape(24, 64)


def row_errors(weight, hessian, values):
    error = weight.double().numpy() - values
    return np.einsum("ni,ij,nj->n", error, hessian.double().numpy(), error)


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_the_least_squares_solution_of_each_row(weight, hessian, symmetric):
    grid, codes = rounded(weight, symmetric)
    found = refitted_scales(weight, hessian, codes, grid, 16, scale_dtype=torch.float32)
    root = np.linalg.cholesky(hessian.double().numpy()).T
    for row in range(24):
        shifts = codes[row].double().numpy().reshape(4, 16)
        if not symmetric:
            shifts = shifts - grid.zeros[row].double().numpy()[:, None]
        design = np.zeros((64, 4))
        for group in range(4):
            design[16 * group : 16 * group + 16, group] = shifts[group]
        expected = np.linalg.lstsq(root @ design, root @ weight[row].double().numpy())[0]
        np.testing.assert_allclose(found.scales[row], expected, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_row_gets_worse_even_where_scales_are_coarse(weight, hessian, dtype):
    grid, codes = rounded(weight, True)
    grid = IntegerGrid(grid.scales.to(dtype).float(), None, 4)
    found = refitted_scales(weight, hessian, codes, grid, 16, scale_dtype=dtype)
    assert torch.equal(found.scales.to(dtype).float(), found.scales)
    before, after = (
        row_errors(weight, hessian, one.unsqueeze().values(codes.reshape(24, 4, 16)).reshape(24, 64).numpy())
        for one in (grid, found)
    )
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.97 * before.sum()


def test_groups_whose_codes_are_all_zero_keep_their_scale(weight, hessian):
    weight[:, 16:32] = 0.0
    grid, codes = rounded(weight, True)
    found = refitted_scales(weight, hessian, codes, grid, 16, scale_dtype=torch.float32)
    assert torch.equal(found.scales[:, 1], grid.scales[:, 1])
    assert torch.isfinite(found.scales).all()
    empty = refitted_scales(torch.zeros(24, 64), hessian, torch.zeros(24, 64), grid, 16)
    assert torch.isfinite(empty.scales).all()
