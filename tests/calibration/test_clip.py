from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.clip import SHRINK_FACTORS, clipped_ranges, quantize_with_hessian_clip
from tightpack.calibration.round_to_nearest import round_to_nearest


def group_costs(weight, rounded, hessian, group_size):
    """e^T H_gg e by the definition, [outputs, groups]."""
    error = weight.double().numpy() - rounded.dequantize().astype(np.float64)
    hessian = hessian.double().numpy()
    costs = []
    for first in range(0, weight.shape[1], group_size):
        members = slice(first, first + group_size)
        block = hessian[members, members]
        costs.append([row[members] @ block @ row[members] for row in error])
    return np.array(costs).T


@pytest.mark.parametrize("group_size", [16, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_group_costs_more_than_with_its_whole_range(weight, hessian, symmetric, group_size):
    form = {"bits": 4, "group_size": group_size, "symmetric": symmetric}
    whole = group_costs(weight, round_to_nearest(weight, **form), hessian, group_size)
    clipped = group_costs(
        weight, quantize_with_hessian_clip(weight, hessian, **form, refit=False), hessian, group_size
    )
    assert (clipped <= whole * (1 + 1e-4)).all()
    assert clipped.sum() < 0.8 * whole.sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_cheapest_of_the_shrunk_ranges_is_taken(weight, hessian, symmetric):
    form = {"bits": 4, "group_size": 32, "symmetric": symmetric}
    candidates = []
    for factor in SHRINK_FACTORS:
        grid = clipped_ranges(weight, hessian, **form, factors=[factor])
        scales, zeros = grid.scales.numpy()[..., None], 0 if symmetric else grid.zeros.numpy()[..., None]
        low, high = (-8, 7) if symmetric else (0, 15)
        grouped = weight.double().numpy().reshape(24, 2, 32)
        values = (np.clip(np.rint(grouped / scales) + zeros, low, high) - zeros) * scales
        error = grouped - values
        blocks = np.stack([hessian.double().numpy()[:32, :32], hessian.double().numpy()[32:, 32:]])
        candidates.append(np.einsum("ngi,gij,ngj->ng", error, blocks, error))
    best = group_costs(weight, quantize_with_hessian_clip(weight, hessian, **form, refit=False), hessian, 32)
    np.testing.assert_allclose(best, np.min(candidates, axis=0), rtol=1e-3)


def test_eight_bits_reach_every_weight(weight, hessian):
    form = {"bits": 8, "group_size": 32, "symmetric": True}
    found = quantize_with_hessian_clip(weight, hessian, **form, refit=False)
    np.testing.assert_array_equal(found.codes, round_to_nearest(weight, **form).codes)


def test_an_input_that_is_never_used_may_be_cut_off(weight, hessian):
    weight[:, 5] = 10.0
    hessian[5, :] = hessian[:, 5] = 0.0
    rounded = quantize_with_hessian_clip(weight, hessian, bits=4, group_size=64, symmetric=True, refit=False)
    assert (rounded.dequantize()[:, 5] < 7.0).mean() > 0.8


@pytest.mark.parametrize("symmetric", [True, False])
def test_refitted_scales_lower_the_error_at_the_output(weight, hessian, output_error, symmetric):
    form = {"bits": 4, "group_size": 16, "symmetric": symmetric, "damping": 0.0}
    errors = [
        output_error(weight, quantize_with_hessian_clip(weight, hessian, **form, refit=refit), hessian)
        for refit in (False, True)
    ]
    assert errors[1] < 0.9 * errors[0]


def test_statistics_that_are_no_numbers_are_refused(weight, hessian):
    form = {"bits": 4, "group_size": 32, "symmetric": True}
    with pytest.raises(ValueError, match=r"hessian must be \[64, 64\], got shape \(32, 32\)"):
        quantize_with_hessian_clip(weight, hessian[:32, :32], **form)
    hessian[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"hessian: 1 of 4096 values are NaN or infinite, first at \(1, 2\)"):
        quantize_with_hessian_clip(weight, hessian, **form)
    with pytest.raises(ValueError, match="negative diagonal"):
        quantize_with_hessian_clip(weight, -torch.eye(64), **form)
