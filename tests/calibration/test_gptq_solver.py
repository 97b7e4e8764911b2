from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.clip import quantize_with_hessian_clip
from tightpack.calibration.gptq import gptq
from tightpack.calibration.round_to_nearest import round_to_nearest

PLAIN = {"damping": 0.01, "refit": False, "sweeps": 0}


def plain_gptq(weight, hessian, rounded, damping, order):
    """Column by column with the whole inverse, as in the optimal brain surgeon, in float64.

    rounded: an IntWeight whose grids are used.
    """
    weight = weight.double().numpy().copy()
    hessian = hessian.double().numpy()
    hessian = hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    low, high = (-8, 7) if rounded.zeros is None else (0, 15)
    codes = np.zeros(weight.shape, dtype=int)
    left = list(order)
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        column = left[0]
        group = column // rounded.group_size
        scale = rounded.scales[:, group].astype(np.float64)
        zero = 0 if rounded.zeros is None else rounded.zeros[:, group].astype(np.float64)
        codes[:, column] = np.clip(np.rint(weight[:, column] / scale) + zero, low, high)
        error = weight[:, column] - (codes[:, column] - zero) * scale
        weight[:, left] -= np.outer(error / inverse[0, 0], inverse[0])
        left = left[1:]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 128])
def test_codes_are_those_of_the_plain_algorithm(weight, hessian, symmetric, act_order, block):
    form = {"bits": 4, "group_size": 16, "symmetric": symmetric}
    order = np.argsort(-hessian.diagonal().numpy(), kind="stable") if act_order else np.arange(64)
    result = gptq(weight, hessian, **form, clip=False, act_order=act_order, block=block, **PLAIN)
    expected = plain_gptq(weight, hessian, round_to_nearest(weight, **form), 0.01, order)
    # float32 may tip a value that lies between two codes, and with it what follows in that row.
    assert (result.codes == expected).mean() > 0.995


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_below_that_of_rounding_on_correlated_inputs(weight, hessian, output_error, bits, symmetric):
    form = {"bits": bits, "group_size": 32, "symmetric": symmetric}
    nearest = output_error(weight, round_to_nearest(weight, **form), hessian)
    clipped = output_error(weight, quantize_with_hessian_clip(weight, hessian, **form), hessian)
    solved = output_error(weight, gptq(weight, hessian, **form), hessian)
    assert solved < 0.5 * min(nearest, clipped)


@pytest.mark.parametrize("act_order", [True, False])
def test_independent_inputs_are_rounded_to_nearest(weight, act_order):
    diagonal = torch.diag(torch.linspace(0.1, 5.0, 64))
    form = {"bits": 4, "group_size": 16, "symmetric": False}
    options = {"act_order": act_order, "refit": False, "sweeps": 1}
    result = gptq(weight, diagonal, **form, clip=False, **options)
    np.testing.assert_array_equal(result.codes, round_to_nearest(weight, **form).codes)
    result = gptq(weight, diagonal, **form, **options)
    np.testing.assert_array_equal(result.codes, quantize_with_hessian_clip(weight, diagonal, **form).codes)


@pytest.mark.parametrize("symmetric", [True, False])
def test_refits_and_sweeps_each_lower_the_error(weight, hessian, output_error, symmetric):
    form = {"bits": 4, "group_size": 16, "symmetric": symmetric, "damping": 0.0}
    errors = [
        output_error(weight, gptq(weight, hessian, **form, refit=refit, sweeps=sweeps), hessian)
        for refit, sweeps in ((False, 0), (True, 0), (True, 1), (True, 2))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


def test_act_order_keeps_groups_contiguous(weight, hessian):
    result = gptq(weight, hessian, bits=4, group_size=16, symmetric=True)
    assert result.group_of_input is None
    assert result.scales.shape == (24, 4)
    assert result.dequantize().shape == (24, 64)


def test_rows_do_not_touch_each_other(weight, hessian):
    form = {"bits": 4, "group_size": 32, "symmetric": False}
    together = gptq(weight, hessian, **form)
    apart = [gptq(part, hessian, **form) for part in weight.split(8)]
    np.testing.assert_allclose(together.dequantize()[8:16], apart[1].dequantize(), atol=0.3)
    assert (together.codes == np.concatenate([one.codes for one in apart])).mean() > 0.99


def test_the_same_input_gives_the_same_bytes(weight, hessian):
    form = {"bits": 4, "group_size": 32, "symmetric": False}
    first, second = (gptq(weight.clone(), hessian.clone(), **form) for _ in range(2))
    assert first.codes.tobytes() == second.codes.tobytes()
    assert first.scales.tobytes() == second.scales.tobytes()


def test_arguments_are_left_as_they_were(weight, hessian):
    before = weight.clone(), hessian.clone()
    gptq(weight, hessian, bits=4, group_size=32, symmetric=True)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_dead_inputs_and_few_tokens(weight, correlated_inputs):
    tokens = correlated_inputs[:9].double()
    tokens[:, 10:14] = 0.0
    result = gptq(weight, tokens.T @ tokens / 9, bits=4, group_size=16, symmetric=True, damping=0.0)
    assert np.isfinite(result.dequantize()).all()
    zeros = gptq(weight, torch.zeros(64, 64), bits=4, group_size=16, symmetric=True)
    assert np.isfinite(zeros.dequantize()).all()


def test_arguments_without_meaning_are_refused(weight, hessian):
    form = {"bits": 4, "group_size": 32, "symmetric": True}
    with pytest.raises(ValueError, match="damping must be at or above 0"):
        gptq(weight, hessian, **form, damping=-0.1)
    with pytest.raises(ValueError, match=r"block must be 1 \.\. 128"):
        gptq(weight, hessian, **form, block=0)
    weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="weight: 1 of 1536"):
        gptq(weight, hessian, **form)
