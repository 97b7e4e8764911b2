from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture
def correlated_inputs():
    """Tokens [512, 64] whose inputs depend on each other and differ in size by a factor of 30."""
    rng = np.random.default_rng(7)
    mixed = rng.standard_normal((512, 16)) @ rng.standard_normal((16, 64))
    tokens = mixed + 0.5 * rng.standard_normal((512, 64))
    return torch.from_numpy(tokens * np.exp(rng.uniform(-1.7, 1.7, 64))).float()


@pytest.fixture
def hessian(correlated_inputs):
    tokens = correlated_inputs.double()
    return (tokens.T @ tokens / len(tokens)).float()


@pytest.fixture
def weight():
    """[24, 64], heavy-tailed."""
    return torch.from_numpy(np.random.default_rng(8).standard_t(4, (24, 64))).float()


@pytest.fixture
def output_error():
    """Mean over tokens of the squared output error of a rounded weight, in float64."""

    def measure(weight, rounded, hessian):
        error = weight.double().numpy() - rounded.dequantize().astype(np.float64)
        return float(np.trace(error @ hessian.double().numpy() @ error.T))

    return measure
