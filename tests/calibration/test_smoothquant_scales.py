from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.llm_int8 import int8_channels
from tightpack.calibration.smoothquant import ALPHAS, searched_smoothquant_scales, smoothquant_scales


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_scales_are_those_of_the_paper(weight, correlated_inputs, alpha):
    absmax = correlated_inputs.abs().amax(0)
    found = smoothquant_scales([weight[:5], weight[5:]], absmax, alpha)
    of_weights = np.abs(weight.double().numpy()).max(0)
    expected = absmax.double().numpy() ** alpha / of_weights ** (1 - alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_int8_products_are_nearer_after_smoothing(weight, correlated_inputs):
    inputs = correlated_inputs.clone()
    inputs[:, 9] *= 40.0  # the outlier channel that stretches every token's scale

    def product(inputs, weight):
        scales = inputs.abs().amax(1, keepdim=True) / 127
        return (inputs / scales).round() * scales @ torch.from_numpy(int8_channels(weight).dequantize()).T

    exact = inputs @ weight.T
    scales = smoothquant_scales([weight], inputs.abs().amax(0))
    plain = (product(inputs, weight) - exact).norm()
    assert (product(inputs / scales, weight * scales) - exact).norm() < 0.5 * plain
    assert ((inputs / scales) @ (weight * scales).T - exact).norm() < 1e-5 * exact.norm()


def test_dead_channels_keep_a_scale_of_one(weight, correlated_inputs):
    absmax = correlated_inputs.abs().amax(0)
    absmax[2] = 0.0
    weight[:, 4] = 0.0
    scales = smoothquant_scales([weight], absmax)
    assert scales[2] == 1.0
    assert scales[4] == 1.0


def test_tied_inputs_share_their_scale(weight, correlated_inputs):
    tied = torch.arange(64) % 16
    scales = smoothquant_scales([weight], correlated_inputs.abs().amax(0), tied=tied)
    assert torch.equal(scales[:16], scales[48:])


def test_what_does_not_fit_is_refused(weight):
    with pytest.raises(ValueError, match=r"absmax must be \[64\]"):
        smoothquant_scales([weight], torch.ones(63))
    with pytest.raises(ValueError, match=r"alpha must be between 0 and 1, got 1\.5"):
        smoothquant_scales([weight], torch.ones(64), 1.5)
    with pytest.raises(ValueError, match="absmax: 64 of 64"):
        smoothquant_scales([weight], torch.full((64,), float("inf")))


def test_the_search_is_at_least_as_near_as_every_alpha(weight, correlated_inputs):
    """Outputs of W8A8 in float64, over the tokens that were searched."""
    parts, absmax = [weight[:10], weight[10:]], correlated_inputs.abs().amax(dim=0)

    def error(scales):
        x, w = (correlated_inputs / scales).double(), (weight * scales).double()
        steps = x.abs().amax(1, keepdim=True) / 127, w.abs().amax(1, keepdim=True) / 127
        made = ((x / steps[0]).round() * steps[0]) @ ((w / steps[1]).round() * steps[1]).T
        return float((made - correlated_inputs.double() @ weight.double().T).square().sum())

    found = error(searched_smoothquant_scales(parts, absmax, correlated_inputs))
    each = {alpha: error(smoothquant_scales(parts, absmax, alpha)) for alpha in ALPHAS}
    assert found == pytest.approx(min(each.values()), rel=1e-3)
    assert found < 0.95 * each[0.5] or min(each, key=each.__getitem__) == 0.5


def test_tied_inputs_stay_tied_in_the_search(weight, correlated_inputs):
    tied = torch.arange(64) // 2
    scales = searched_smoothquant_scales(
        [weight], correlated_inputs.abs().amax(dim=0), correlated_inputs.reshape(4, 128, 64), tied=tied
    )
    assert torch.equal(scales[::2], scales[1::2])


def test_llm_int8_keeps_outliers_and_the_meaning_of_its_threshold(weight, correlated_inputs):
    """With entries from 6 on exact, in float64, the search is at least as near as every centred alpha."""
    absmax = correlated_inputs.abs().amax(dim=0)

    def error(scales):
        x, w = (correlated_inputs / scales).double(), (weight * scales).double()
        kept = torch.where(x.abs() >= 2.0, x, 0.0)
        steps = (x - kept).abs().amax(1, keepdim=True) / 127, w.abs().amax(1, keepdim=True) / 127
        made = (((x - kept) / steps[0]).round() * steps[0] + kept) @ ((w / steps[1]).round() * steps[1]).T
        return float((made - correlated_inputs.double() @ weight.double().T).square().sum())

    found = searched_smoothquant_scales([weight], absmax, correlated_inputs, outlier_threshold=2.0)
    assert float(found.log().mean()) == pytest.approx(0.0, abs=1e-5)
    each = [error(smoothquant_scales([weight], absmax, alpha, centred=True)) for alpha in ALPHAS]
    assert error(found) == pytest.approx(min(each), rel=1e-3)
