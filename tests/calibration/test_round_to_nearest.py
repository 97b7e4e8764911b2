from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.round_to_nearest import round_to_nearest


def rounded_group(values, bits, symmetric):
    """One group by the definition, in float64, its scale rounded to float16."""
    values = values.astype(np.float64)
    if symmetric:
        farthest = max(values, key=abs)
        scale = float(np.float16(np.float32(-farthest / 2 ** (bits - 1))))
        codes = np.clip(np.rint(values / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return codes * scale
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = float(np.float16(np.float32((high - low) / (2**bits - 1))))
    zero = np.clip(np.rint(-low / scale), 0, 2**bits - 1)
    codes = np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1)
    return (codes - zero) * scale


@pytest.mark.parametrize("group_size", [16, 32, 64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_group_is_rounded_as_defined(weight, bits, symmetric, group_size):
    rounded = round_to_nearest(weight, bits=bits, group_size=group_size, symmetric=symmetric)
    values = rounded.dequantize()
    for row, one in enumerate(weight.numpy()):
        for first in range(0, 64, group_size):
            members = slice(first, first + group_size)
            expected = rounded_group(one[members], bits, symmetric)
            np.testing.assert_allclose(values[row, members], expected, rtol=1e-6, atol=1e-6)
    assert rounded.shape == (24, 64)
    assert rounded.scales.shape == (24, 64 // group_size)
    assert rounded.codes.dtype == (np.int8 if symmetric else np.uint8)
    assert rounded.symmetric == symmetric


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_larger_tail_of_a_symmetric_group_is_exact(sign):
    weight = torch.linspace(-0.5, 1.0, 32)[None] * sign
    rounded = round_to_nearest(weight, bits=4, group_size=32, symmetric=True)
    assert rounded.codes.min() == -8
    assert rounded.dequantize()[0, -1] == sign
    assert np.sign(rounded.scales[0, 0]) == -sign


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_exact_in_the_dtype_they_are_stored_in(weight, dtype):
    for symmetric in (True, False):
        rounded = round_to_nearest(weight, bits=4, group_size=32, symmetric=symmetric, scale_dtype=dtype)
        stored = torch.from_numpy(rounded.scales).to(dtype).float().numpy()
        np.testing.assert_array_equal(stored, rounded.scales)


@pytest.mark.parametrize("symmetric", [True, False])
def test_least_squares_range_lowers_the_error_of_every_row(weight, symmetric):
    errors = {}
    for clip in ("minmax", "mse"):
        rounded = round_to_nearest(weight, bits=4, group_size=64, symmetric=symmetric, clip=clip)
        errors[clip] = ((rounded.dequantize() - weight.numpy()) ** 2).sum(1)
    assert (errors["mse"] <= errors["minmax"] * (1 + 1e-5)).all()
    assert errors["mse"].sum() < 0.96 * errors["minmax"].sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zero_tiny_and_one_sided_groups(symmetric, dtype):
    weight = torch.zeros(4, 32)
    weight[1] = 1e-12
    weight[2] = torch.linspace(1.0, 2.0, 32)
    weight[3] = -weight[2]
    rounded = round_to_nearest(weight, bits=8, group_size=32, symmetric=symmetric, scale_dtype=dtype)
    values = rounded.dequantize()
    assert (rounded.scales != 0).all()
    assert (values[0] == 0).all()
    assert np.abs(values[1]).max() < 1e-6
    np.testing.assert_allclose(values[2:], weight.numpy()[2:], atol=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(weight, bad):
    weight[3, 5] = bad
    with pytest.raises(ValueError, match=r"weight: 1 of 1536 values are NaN or infinite, first at \(3, 5\)"):
        round_to_nearest(weight, bits=4, group_size=32, symmetric=True)


def test_impossible_requests_are_named(weight):
    with pytest.raises(ValueError, match="group size 48 does not divide the weight's 64 inputs"):
        round_to_nearest(weight, bits=4, group_size=48, symmetric=True)
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        round_to_nearest(weight, bits=3, group_size=32, symmetric=True)
    with pytest.raises(ValueError, match="clip must be"):
        round_to_nearest(weight, bits=4, group_size=32, symmetric=True, clip="max")
    with pytest.raises(ValueError, match=r"does not fit in torch\.float16"):
        round_to_nearest(weight * 1e9, bits=4, group_size=32, symmetric=True)
