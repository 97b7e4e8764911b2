from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.error_correction import InputGap, corrected_weight
from tightpack.calibration.gptq import gptq


@pytest.fixture
def disturbed(correlated_inputs):
    """The inputs as a model would have them whose layers before are quantized: mixed a little, and noisy."""
    rng = np.random.default_rng(9)
    mixing = np.eye(64) + 0.05 * rng.standard_normal((64, 64))
    noise = 0.05 * rng.standard_normal((512, 64))
    return (correlated_inputs.double() @ torch.from_numpy(mixing) + torch.from_numpy(noise)).float()


def gap_of(made, original):
    gap = InputGap(64)
    for first in (0, 100):
        rows = slice(first, None if first else 100)
        gap.add(made[rows], original[rows])
    return gap.mean


def hessian_of(tokens):
    return (tokens.double().T @ tokens.double() / len(tokens)).float()


def distance(weight, original, other, made):
    """Mean squared difference of the outputs, in float64."""
    return float((original.double() @ weight.double().T - made.double() @ other.double().T).square().mean())


def test_the_whole_correction_is_the_least_squares_solution(weight, correlated_inputs, disturbed):
    found = corrected_weight(
        weight, gap_of(disturbed, correlated_inputs), hessian_of(disturbed), share=1.0, damping=0.0
    )
    outputs = (correlated_inputs.double() @ weight.double().T).numpy()
    expected = np.linalg.lstsq(disturbed.double().numpy(), outputs, rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3 * np.abs(expected).max())


def test_the_gap_of_bfloat16_inputs(correlated_inputs, disturbed):
    made, original = disturbed.bfloat16(), correlated_inputs.bfloat16()
    found, exact = gap_of(made, original), gap_of(made.float(), original.float())
    assert (found - exact).norm() < 5e-3 * exact.norm()


def test_outputs_come_nearer_to_the_originals_the_more_is_corrected(weight, correlated_inputs, disturbed):
    gap, hessian = gap_of(disturbed, correlated_inputs), hessian_of(disturbed)
    distances = [
        distance(weight, correlated_inputs, corrected_weight(weight, gap, hessian, share=share), disturbed)
        for share in (0.0, 0.5, 1.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[1] < 0.5 * distances[0]


def test_rounding_the_corrected_weight_keeps_what_it_gained(weight, correlated_inputs, disturbed):
    gap, hessian = gap_of(disturbed, correlated_inputs), hessian_of(disturbed)
    form = {"bits": 8, "group_size": 16, "symmetric": False}
    rounded = [
        torch.from_numpy(gptq(each, hessian, **form).dequantize())
        for each in (weight, corrected_weight(weight, gap, hessian))
    ]
    plain, corrected = (distance(weight, correlated_inputs, each, disturbed) for each in rounded)
    assert corrected < 0.5 * plain


def test_equal_inputs_ask_for_no_change(weight, correlated_inputs):
    gap = gap_of(correlated_inputs, correlated_inputs)
    assert torch.equal(corrected_weight(weight, gap, hessian_of(correlated_inputs)), weight)


def test_what_makes_no_sense_is_refused(weight, correlated_inputs):
    gap = InputGap(64)
    with pytest.raises(ValueError, match="no calibration tokens"):
        _ = gap.mean
    with pytest.raises(ValueError, match=r"got \(512, 64\) and \(511, 64\)"):
        gap.add(correlated_inputs, correlated_inputs[1:])
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 2"):
        corrected_weight(weight, torch.zeros(64, 64), torch.eye(64), share=2.0)
    correlated_inputs[3, 3] = torch.nan
    with pytest.raises(ValueError, match="inputs: 1 of 32768 values are NaN"):
        gap.add(correlated_inputs, torch.zeros(512, 64))
