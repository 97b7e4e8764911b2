from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.hessian import group_blocks, inverse_factor, output_errors, scaled_hessian


def test_output_errors_are_the_mean_squared_errors_of_outputs(weight, correlated_inputs, hessian):
    outputs = correlated_inputs.double() @ weight.double().T
    np.testing.assert_allclose(output_errors(weight, hessian), (outputs**2).mean(0), rtol=1e-4)


def test_group_blocks_lie_on_the_diagonal(hessian):
    blocks = group_blocks(hessian, 16)
    for group in range(4):
        members = slice(16 * group, 16 * group + 16)
        torch.testing.assert_close(blocks[group], hessian[members, members], rtol=0, atol=0)


def test_scaled_hessian_is_that_of_the_scaled_input(correlated_inputs, hessian):
    scales = torch.linspace(0.3, 3.0, 64)
    scaled = (correlated_inputs / scales).double()
    np.testing.assert_allclose(scaled_hessian(hessian, scales), scaled.T @ scaled / 512, rtol=1e-3, atol=1e-3)


def test_inverse_factor_is_the_upper_cholesky_factor_of_the_inverse(hessian):
    factor = inverse_factor(hessian, 0.01).numpy()
    damped = hessian.double().numpy() + 0.01 * hessian.double().diagonal().mean().item() * np.eye(64)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    np.testing.assert_allclose(factor, expected, rtol=1e-6, atol=1e-9)


def test_too_few_tokens_and_dead_inputs_are_damped_until_they_factorise(correlated_inputs):
    tokens = correlated_inputs[:5].double()
    tokens[:, 3] = 0.0
    factor = inverse_factor(tokens.T @ tokens / 5, 0.0)
    assert torch.isfinite(factor).all()
    assert (factor.diagonal() > 0).all()


def test_what_is_no_hessian_is_refused():
    with pytest.raises(ValueError, match="not positive semidefinite"):
        inverse_factor(torch.tensor([[1.0, 100.0], [100.0, 1.0]]), 0.01)
