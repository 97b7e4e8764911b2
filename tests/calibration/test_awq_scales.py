from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.awq import awq_scales, query_heads_of_values
from tightpack.calibration.hessian import scaled_hessian
from tightpack.calibration.round_to_nearest import round_to_nearest

FORM = {"bits": 4, "group_size": 32, "symmetric": False}


@pytest.fixture
def mean_abs(correlated_inputs):
    return correlated_inputs.abs().mean(0)


def loss(weights, hessian, scales):
    """trace(E H E^T) of weights rounded after scaling, by the definition."""
    hessian = hessian.double().numpy()
    total = 0.0
    for weight in weights:
        rounded = round_to_nearest(weight * scales, **FORM).dequantize().astype(np.float64)
        error = rounded / scales.double().numpy() - weight.double().numpy()
        total += np.trace(error @ hessian @ error.T)
    return total


def test_the_best_of_the_grid_is_found(weight, hessian, mean_abs):
    weights = [weight[:16], weight[16:]]
    losses = []
    for step in range(11):
        scales = mean_abs.double() ** (step / 10)
        scales /= (scales.max() * scales.min()) ** 0.5
        losses.append(loss(weights, hessian, scales.float()))
    found = awq_scales(weights, hessian, mean_abs, **FORM, grid=10)
    np.testing.assert_allclose(loss(weights, hessian, found), min(losses), rtol=1e-3)
    assert min(losses) < 0.7 * losses[0]


def test_folding_leaves_the_function_unchanged(weight, hessian, mean_abs, correlated_inputs):
    """Divided out of a norm's weight or of the linear before, multiplied into the columns."""
    scales = awq_scales([weight], hessian, mean_abs, **FORM)
    norm = torch.linspace(0.5, 2.0, 64)
    before = (correlated_inputs * norm) @ weight.T
    after = (correlated_inputs * (norm / scales)) @ (weight * scales).T
    assert ((before - after).norm() / before.norm()).item() < 1e-5


def test_values_scale_folds_through_grouped_query_attention():
    generator = torch.Generator().manual_seed(3)
    heads, kv_heads, head_dim, hidden, tokens = 6, 2, 8, 16, 40
    value = torch.randn(kv_heads * head_dim, hidden, generator=generator)
    output = torch.randn(hidden, heads * head_dim, generator=generator)
    inputs = torch.randn(tokens, hidden, generator=generator)
    weights = torch.rand(heads, tokens, tokens, generator=generator).softmax(-1)
    rows = query_heads_of_values(heads, kv_heads, head_dim)

    def attend(value):
        values = (inputs @ value.T)[:, rows].reshape(tokens, heads, head_dim)
        return torch.einsum("hqk,khd->qhd", weights, values).reshape(tokens, -1)

    context = attend(value) * torch.linspace(0.5, 4.0, heads * head_dim)
    scales = awq_scales(
        [output],
        context.T @ context / tokens,
        context.abs().mean(0),
        bits=4,
        group_size=16,
        symmetric=True,
        tied=rows,
    )
    of_rows = torch.empty(kv_heads * head_dim)
    of_rows[rows] = scales
    assert torch.equal(of_rows[rows], scales)
    before = attend(value) @ output.T
    after = attend(value / of_rows[:, None]) @ (output * scales).T
    assert ((before - after).norm() / before.norm()).item() < 1e-5


def test_rows_of_the_value_projection():
    assert query_heads_of_values(4, 2, 2).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    with pytest.raises(ValueError, match="3 key-value heads do not divide 4 heads"):
        query_heads_of_values(4, 3, 2)


def test_scaled_weights_see_the_scaled_hessian(weight, hessian, mean_abs):
    scales = awq_scales([weight], hessian, mean_abs, **FORM)
    error = (round_to_nearest(weight * scales, **FORM).dequantize() - (weight * scales).numpy()).astype(float)
    there = np.trace(error @ scaled_hessian(hessian, scales).double().numpy() @ error.T)
    np.testing.assert_allclose(there, loss([weight], hessian, scales), rtol=1e-3)


def test_inputs_that_are_always_zero_are_allowed(weight, hessian, mean_abs):
    hessian[3, :] = hessian[:, 3] = 0.0
    mean_abs[3] = 0.0
    scales = awq_scales([weight], hessian, mean_abs, **FORM)
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()


def test_what_does_not_fit_is_refused(weight, hessian, mean_abs):
    with pytest.raises(ValueError, match="no weights"):
        awq_scales([], hessian, mean_abs, **FORM)
    with pytest.raises(ValueError, match=r"one number of inputs, got \[32, 64\]"):
        awq_scales([weight, weight[:, :32]], hessian, mean_abs, **FORM)
    with pytest.raises(ValueError, match="mean_abs has a negative value"):
        awq_scales([weight], hessian, -mean_abs, **FORM)
    with pytest.raises(ValueError, match="grid must be at least 1"):
        awq_scales([weight], hessian, mean_abs, **FORM, grid=0)
    mean_abs[0] = float("nan")
    with pytest.raises(ValueError, match="mean_abs: 1 of 64"):
        awq_scales([weight], hessian, mean_abs, **FORM)
