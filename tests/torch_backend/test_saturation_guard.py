"""Static scales that do not fit what is served are found, said, and left."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from tightpack.schemes.quantized import ActivationFormat, IntWeight, QuantizedLinear
from tightpack.torch_backend.quantized_weights import build_linear
from tightpack.torch_backend.saturation_guard import GuardedLinear, SaturationGuard
from tightpack.torch_backend.scaled_matmul import scaled_matmul

INPUTS = 64


def layer_with(scale, precision="int8"):
    rng = np.random.default_rng(0)
    weight = IntWeight(
        codes=rng.integers(-127, 128, (16, INPUTS)).astype(np.int8),
        scales=np.full((16, 1), 0.01, np.float32),
        zeros=None,
        bits=8,
        group_size=INPUTS,
    )
    part = QuantizedLinear(weight, ActivationFormat(precision=precision, scale=scale))
    layer = build_linear([part], [lambda rows: rows], None, dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(layer, GuardedLinear)
    return layer, torch.from_numpy(weight.dequantize())


def rows_of(count, factor=1.0):
    return factor * torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_layer_that_saturates_runs_unrounded(caplog, precision):
    largest = 127 if precision == "int8" else 448
    layer, weight = layer_with(1.0 / largest, precision)
    guard = SaturationGuard({"layers.0.down": layer})
    x = rows_of(300)
    clipped = layer(x)
    with caplog.at_level(logging.WARNING):
        assert guard.poll(300) == ("layers.0.down",)
    assert "layers.0.down" in caplog.text
    assert "Calibrate again" in caplog.text
    torch.testing.assert_close(layer(x), x @ weight.t(), rtol=1e-4, atol=1e-4)
    assert (clipped - x @ weight.t()).abs().max() > 1
    entry = guard.report()["layers.0.down"]
    assert entry.switched
    assert entry.saturated == (x.abs() > 1).sum()
    assert entry.share == pytest.approx(entry.saturated / x.numel())
    assert guard.poll(300) == ()


def test_rare_outliers_are_reported_and_left_alone():
    layer, _ = layer_with(4.5 / 127)
    guard = SaturationGuard({"a": layer}, largest_share=0.01)
    x = rows_of(512)
    x[5, 5] = 100
    layer(x)
    assert guard.poll(512) == ()
    assert guard.report()["a"].saturated >= 1
    assert not guard.report()["a"].switched


def test_nothing_is_judged_by_a_few_tokens():
    layer, _ = layer_with(0.001)
    guard = SaturationGuard({"a": layer}, fewest_tokens=100)
    layer(rows_of(50))
    assert guard.poll(50) == ()
    layer(rows_of(50))
    assert guard.poll(50) == ("a",)


def test_what_fits_is_not_reported():
    layer, _ = layer_with(1.0)
    guard = SaturationGuard({"a": layer})
    layer(rows_of(300))
    assert guard.poll(300) == ()
    assert guard.report() == {}


@pytest.mark.parametrize("by_row", [False, True])
def test_scaled_products_off_the_gpu(by_row):
    x, weight = rows_of(3).to(torch.float8_e4m3fn), rows_of(16, 2).to(torch.float8_e4m3fn)
    x_scales = torch.tensor([[0.5], [1.0], [2.0]]) if by_row else torch.tensor([0.5])
    scales = torch.linspace(1, 2, 16) if by_row else torch.tensor([3.0])
    bias = torch.linspace(-1, 1, 16)
    ours = scaled_matmul(x, x_scales, weight, scales, bias=bias, dtype=torch.bfloat16)
    exact = (x.double() * x_scales) @ (weight.double() * scales.view(-1, 1)).t() + bias
    torch.testing.assert_close(ours.double(), exact, rtol=1e-2, atol=1e-2)
