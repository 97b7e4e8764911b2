"""Layers over the kernels against the layers in PyTorch, in every pair of weight and activation format."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from tightpack.schemes.quantized import ActivationFormat, DenseWeight, Fp8Weight, QuantizedLinear
from tightpack.torch_backend.fused_rows import gated_linear, input_format, normed_linear
from tightpack.torch_backend.kernel_linear import EightBitLinear, Fp8BlockLinear, Int4Linear, WeightOnlyLinear
from tightpack.torch_backend.linear import Linear
from tightpack.torch_backend.mlp import gated
from tightpack.torch_backend.norm import rms_norm
from tightpack.torch_backend.quantized_weights import build_linear
from tightpack.torch_backend.rounded_linear import GroupRoundedLinear

CPU = torch.device("cpu")
OUTPUTS, INPUTS = 72, 256


def fp8(block, outputs=OUTPUTS):
    rng = np.random.default_rng(block[0])
    grid = -(-outputs // block[0]), -(-INPUTS // block[1])
    return Fp8Weight(
        codes=rng.normal(0, 100, (outputs, INPUTS)).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn),
        scales=rng.uniform(0.0005, 0.001, grid).astype(np.float32),
        block=block,
    )


ACTIVATIONS = {
    "none": None,
    "int8": ActivationFormat(precision="int8"),
    "int8-static": ActivationFormat(precision="int8", scale=0.03),
    "llm.int8": ActivationFormat(precision="int8", outlier_threshold=3.0),
    "fp8": ActivationFormat(precision="fp8"),
    "fp8-static": ActivationFormat(precision="fp8", scale=0.005),
    "fp8-group": ActivationFormat(precision="fp8", per="group", group_size=128),
}
# What computes a pair; pairs that are not here go to PyTorch.
EXPECTED = {
    ("int4-64", "none"): Int4Linear,
    ("int4-channel", "none"): Int4Linear,
    ("int4-desc-act", "none"): Int4Linear,
    ("int8", "none"): WeightOnlyLinear,
    ("int8-zeros", "none"): WeightOnlyLinear,
    ("int8-32", "none"): WeightOnlyLinear,
    ("fp8-row", "none"): WeightOnlyLinear,
    ("fp8-block", "none"): WeightOnlyLinear,
    ("int8", "int8"): EightBitLinear,
    ("int8", "int8-static"): EightBitLinear,
    ("int8", "llm.int8"): EightBitLinear,
    ("fp8-row", "fp8"): EightBitLinear,
    ("fp8-row", "fp8-static"): EightBitLinear,
    ("fp8-block", "fp8-group"): Fp8BlockLinear,
}
WEIGHTS = ["dense", "int4-64", "int4-96", "int4-channel", "int4-desc-act", "int8", "int8-zeros", "int8-32"]
WEIGHTS += ["fp8-row", "fp8-block"]


def as_it_is(rows):
    return rows


@pytest.fixture
def weight_named(random_int_weight):
    def make(name):
        if name == "dense":
            values = np.random.default_rng(0).normal(size=(OUTPUTS, INPUTS))
            return DenseWeight(values.astype(ml_dtypes.bfloat16))
        if name.startswith("fp8"):
            return fp8((1, INPUTS) if name == "fp8-row" else (128, 128))
        bits = 4 if name.startswith("int4") else 8
        kind = {"desc-act": "desc_act"}.get(name[5:], "zeros" if name.endswith("zeros") else "symmetric")
        group = {"int4-64": 64, "int4-96": 96, "int4-desc-act": 64, "int8-32": 32}.get(name, INPUTS)
        return random_int_weight(OUTPUTS, INPUTS, group, bits=bits, kind=kind)

    return make


def build(parts, context, bias=None, dtype=torch.bfloat16):
    return build_linear(parts, [as_it_is] * len(parts), bias, dtype=dtype, device=CPU, context=context)


def inputs(dtype=torch.bfloat16):
    x = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(4))
    x[3] = 0
    x[1, 7] = -20
    return x.to(dtype)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_like_the_reference(weight_named, context, weight, activation):
    parts = [QuantizedLinear(weight_named(weight), ACTIVATIONS[activation])]
    bias = torch.linspace(-1, 1, OUTPUTS).bfloat16()
    layer = build(parts, context, bias)
    kind = getattr(layer, "_layer", layer)
    assert type(kind) is EXPECTED.get((weight, activation), type(kind))
    if (weight, activation) not in EXPECTED:
        assert not type(kind).__module__.endswith("kernel_linear")
        return
    x = inputs()
    with torch.inference_mode():
        ours, reference = layer(x), build(parts, None, bias)(x)
    assert ours.dtype == x.dtype
    assert ((ours.float() - reference.float()).abs().amax(1) / reference.float().abs().amax(1)).max() < 1.5e-2


def test_float32_stays_with_pytorch(weight_named, context):
    assert isinstance(build([QuantizedLinear(weight_named("int4-64"))], context, dtype=torch.float32), Linear)


def test_what_no_kernel_groups_is_dequantized(weight_named, context):
    part = QuantizedLinear(weight_named("int4-96"), ACTIVATIONS["int8"])
    assert isinstance(build([part], context), GroupRoundedLinear)


def test_parts_of_one_input_are_one_product(random_int_weight, context):
    parts = [QuantizedLinear(random_int_weight(n, INPUTS, 64, seed=n)) for n in (40, 24, 24)]
    layer = build(parts, context)
    assert isinstance(layer, Int4Linear)
    x = inputs()
    apart = torch.cat([build([part], context)(x) for part in parts], 1)
    assert torch.equal(layer(x), apart)


@pytest.mark.parametrize("name", ["none", "int8", "llm.int8", "fp8-static"])
def test_rounding_fused_with_what_comes_before(weight_named, context, name):
    weight = weight_named("int4-64" if name == "none" else "fp8-row" if name[0] == "f" else "int8")
    parts = [QuantizedLinear(weight, ACTIVATIONS[name])]
    layer, reference = build(parts, context), build(parts, None)
    assert input_format(layer) == ACTIVATIONS[name]
    norm = torch.linspace(0.5, 1.5, INPUTS).bfloat16()
    streams = [inputs() for _ in range(2)]
    with torch.inference_mode():
        normed = normed_linear(streams[0], inputs().flip(0), norm, 1e-5, layer, context)
        streams[1].add_(inputs().flip(0))
        gate_up = torch.cat([inputs(), inputs().flip(0)], 1)
        product = gated_linear(gate_up.clone(), "silu", layer, context)
        references = reference(rms_norm(streams[1], norm, 1e-5)), reference(gated(gate_up, "silu"))
    assert torch.equal(*streams)
    for ours, exact in zip((normed, product), references, strict=True):
        largest = exact.float().abs().amax(1).clamp_min(1e-3)
        assert ((ours.float() - exact.float()).abs().amax(1) / largest).max() < 4e-2


def test_saturated_inputs_are_counted_by_the_kernel(weight_named, context):
    layer = build([QuantizedLinear(weight_named("fp8-row"), ACTIVATIONS["fp8-static"])], context)
    x = torch.zeros(2, INPUTS).bfloat16()
    x[0, :3] = 50
    layer(x)
    assert layer.saturated.item() == 3
    layer.switch()
    assert input_format(layer) is None
    exact = x.float() @ torch.from_numpy(weight_named("fp8-row").dequantize()).t()
    torch.testing.assert_close(layer(x).float(), exact, rtol=1e-2, atol=1e-2)
    assert layer.saturated.item() == 3
