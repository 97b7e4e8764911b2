"""Static scales that do not fit what is served are found, said, and left."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from tightpack.schemes.quantized import ActivationFormat, IntWeight, QuantizedLinear
from tightpack.torch_backend.mlp import GatedMlp
from tightpack.torch_backend.quantized_weights import build_linear
from tightpack.torch_backend.rank_group import RankGroup
from tightpack.torch_backend.saturation_guard import GuardedLinear, SaturationGuard
from tightpack.torch_backend.scaled_matmul import scaled_matmul
from tightpack.torch_backend.summed_linear import SummedLinear

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
        assert guard.poll() == ("layers.0.down",)
    assert "layers.0.down" in caplog.text
    assert "Calibrate again" in caplog.text
    torch.testing.assert_close(layer(x), x @ weight.t(), rtol=1e-4, atol=1e-4)
    assert (clipped - x @ weight.t()).abs().max() > 1
    assert f"{(x.abs() > 1).float().mean():.2g} of its inputs" in caplog.text
    layer(x)
    assert guard.poll() == ()
    assert guard.switched == ("layers.0.down",)


@pytest.mark.parametrize(("outliers", "switched"), [(60, ()), (70, ("a",))])
def test_the_share_of_numbers_decides(outliers, switched):
    layer, _ = layer_with(1.0)
    guard = SaturationGuard({"a": layer})
    x = rows_of(1024)
    x.view(-1)[:outliers] = 128
    layer(x)
    assert guard.poll() == switched
    assert guard.switched == switched


def test_nothing_is_judged_by_a_few_rows():
    layer, _ = layer_with(0.001)
    guard = SaturationGuard({"a": layer}, fewest_rows=100)
    layer(rows_of(50))
    assert guard.poll() == ()
    layer(rows_of(50))
    assert guard.poll() == ("a",)


def test_a_layer_is_judged_by_its_own_rows_since_it_was_last():
    """An expert that sees few is judged by those, and what fitted for long does not hide what does not."""
    layer, _ = layer_with(1.0)
    busy, _ = layer_with(1.0)
    guard = SaturationGuard({"expert": layer, "busy": busy}, fewest_rows=10)
    for _ in range(50):
        busy(rows_of(1000))
    layer(rows_of(1000))
    assert guard.poll() == ()
    busy(rows_of(1000))
    layer(rows_of(10, 1000))
    assert guard.poll() == ("expert",)


def test_rows_of_replayed_graphs_count_as_given():
    layer, _ = layer_with(1.0)
    guard = SaturationGuard({"a": layer})
    layer.saturated += 70
    assert guard.poll(replayed=100_000) == ()
    layer.saturated += 70
    assert guard.poll(replayed=1000) == ("a",)


def test_what_was_recorded_is_forgotten():
    layer, _ = layer_with(0.001)
    guard = SaturationGuard({"a": layer})
    layer(rows_of(300))
    guard.reset()
    assert guard.poll(replayed=300) == ()


def test_without_memory_the_layer_goes_on_as_it_is(caplog, monkeypatch):
    layer, _ = layer_with(0.001)
    before = layer(rows_of(300))

    def full():
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(layer, "_unrounded", full)
    guard = SaturationGuard({"a": layer})
    assert guard.poll() == ()
    assert "a: " in caplog.text
    assert "no GPU memory" in caplog.text
    torch.testing.assert_close(layer(rows_of(300)), before, rtol=0, atol=0)
    monkeypatch.undo()
    assert guard.poll() == ("a",)


def test_layers_around_a_guarded_one_ask_for_what_it_takes_now():
    """A fused kernel before them rounds until the switch, and then no longer."""
    layer, _ = layer_with(0.001)
    kernel = KernelLike(layer._layer, ActivationFormat(precision="int8", scale=0.001))
    layer._layer = kernel
    around = [SummedLinear(layer, RankGroup()), GatedMlp(layer, layer, "silu")]
    assert [each.input_format for each in around] == [kernel.input_format] * 2
    layer.switch()
    assert [each.input_format for each in around] == [None] * 2


class KernelLike:
    def __init__(self, layer, input_format):
        self.layer, self.input_format = layer, input_format

    def __call__(self, x):
        return self.layer(x)


def test_a_fused_layer_is_named_after_all_its_parts():
    weight = IntWeight(
        codes=np.ones((4, INPUTS), np.int8),
        scales=np.ones((4, 1), np.float32),
        zeros=None,
        bits=8,
        group_size=INPUTS,
    )
    scales = {"q_proj": 0.5, "k_proj": 0.5, "v_proj": 0.25}
    guarded = {}
    for names in (["q_proj", "k_proj"], ["q_proj", "v_proj"], ["o_proj"]):
        build_linear(
            [
                QuantizedLinear(weight, ActivationFormat(precision="int8", scale=scales.get(name)))
                for name in names
            ],
            [lambda rows: rows] * len(names),
            None,
            dtype=torch.float32,
            device=torch.device("cpu"),
            names=[f"model.layers.0.self_attn.{name}" for name in names],
            guarded=guarded,
        )
    assert list(guarded) == [
        "model.layers.0.self_attn.q_proj, k_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
    ]


@pytest.mark.parametrize("by_row", [False, True])
def test_scaled_products_off_the_gpu(by_row):
    x, weight = rows_of(3).to(torch.float8_e4m3fn), rows_of(16, 2).to(torch.float8_e4m3fn)
    x_scales = torch.tensor([[0.5], [1.0], [2.0]]) if by_row else torch.tensor([0.5])
    scales = torch.linspace(1, 2, 16) if by_row else torch.tensor([3.0])
    bias = torch.linspace(-1, 1, 16)
    ours = scaled_matmul(x, x_scales, weight, scales, bias=bias, dtype=torch.bfloat16)
    exact = (x.double() * x_scales) @ (weight.double() * scales.view(-1, 1)).t() + bias
    torch.testing.assert_close(ours.double(), exact, rtol=1e-2, atol=1e-2)
