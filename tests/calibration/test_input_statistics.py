from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.statistics import InputStatistics


def test_batches_add_up_to_the_statistics_of_all_tokens(correlated_inputs):
    statistics = InputStatistics(64)
    for batch in correlated_inputs.reshape(8, 4, 16, 64):
        statistics.add(batch)
    tokens = correlated_inputs.double().numpy()
    assert statistics.count == 512
    np.testing.assert_allclose(statistics.hessian, tokens.T @ tokens / 512, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(statistics.mean_abs, np.abs(tokens).mean(0), rtol=1e-6)
    np.testing.assert_array_equal(statistics.absmax, np.abs(correlated_inputs.numpy()).max(0))


def test_bfloat16_inputs_are_summed_in_float32():
    statistics = InputStatistics(2)
    for _ in range(1000):
        statistics.add(torch.ones(1, 2, dtype=torch.bfloat16))
    assert statistics.hessian.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert statistics.mean_abs.tolist() == [1.0, 1.0]


def test_products_of_bfloat16_are_summed_in_float32(correlated_inputs):
    exact, narrow = InputStatistics(64), InputStatistics(64)
    for batch in correlated_inputs.reshape(8, 4, 16, 64):
        exact.add(batch.bfloat16().float())
        narrow.add(batch.bfloat16())
    size = exact.hessian.diagonal().sqrt()
    assert ((narrow.hessian - exact.hessian) / torch.outer(size, size)).abs().max() < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_refused(bad):
    statistics = InputStatistics(4)
    batch = torch.ones(3, 4)
    batch[2, 1] = bad
    with pytest.raises(ValueError, match=r"inputs: 1 of 12 values are NaN or infinite, first at \(2, 1\)"):
        statistics.add(batch)
    assert statistics.count == 0


def test_misuse_is_named():
    statistics = InputStatistics(4, hessian=False)
    with pytest.raises(ValueError, match="width 4"):
        statistics.add(torch.ones(3, 5))
    with pytest.raises(ValueError, match="no calibration tokens"):
        _ = statistics.absmax
    statistics.add(torch.ones(3, 4))
    with pytest.raises(ValueError, match="without a Hessian"):
        _ = statistics.hessian


def test_without_magnitudes_the_hessian_is_the_same_and_they_are_refused():
    tokens = torch.randn(50, 64, generator=torch.Generator().manual_seed(5))
    whole, alone = InputStatistics(64), InputStatistics(64, magnitudes=False)
    for statistics in (whole, alone):
        statistics.add(tokens)
    assert torch.equal(whole.hessian, alone.hessian)
    with pytest.raises(ValueError, match="without magnitudes"):
        _ = alone.absmax
    with pytest.raises(ValueError, match="NaN or infinite"):
        alone.add(torch.full((2, 64), torch.inf))
