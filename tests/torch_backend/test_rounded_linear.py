"""Quantized linears against float64, in every weight and activation format, and row by row."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from tightpack.schemes.quantized import ActivationFormat, DenseWeight, Fp8Weight, IntWeight, QuantizedLinear
from tightpack.torch_backend.input_rounding import round_input
from tightpack.torch_backend.quantized_weights import build_linear

OUTPUTS, INPUTS, ROWS = 48, 128, 9


def int_weight(bits=8, group=INPUTS, zeros=False, minimums=False, order=False, outputs=OUTPUTS):
    rng = np.random.default_rng(bits + group)
    low, high = (0, 2**bits) if zeros or minimums else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    groups = INPUTS // group
    return IntWeight(
        codes=rng.integers(low, high, (outputs, INPUTS)).astype(np.uint8 if low == 0 else np.int8),
        scales=rng.uniform(0.01, 0.03, (outputs, groups)).astype(np.float32),
        zeros=rng.integers(0, high, (outputs, groups)).astype(np.uint8) if zeros else None,
        bits=bits,
        group_size=group,
        group_of_input=rng.permutation(np.arange(INPUTS) // group).astype(np.int32) if order else None,
        minimums=rng.normal(0, 0.1, (outputs, groups)).astype(np.float32) if minimums else None,
    )


def fp8_weight(block):
    rng = np.random.default_rng(block[0])
    grid = -(-OUTPUTS // block[0]), -(-INPUTS // block[1])
    return Fp8Weight(
        codes=rng.normal(0, 100, (OUTPUTS, INPUTS)).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn),
        scales=rng.uniform(0.0005, 0.001, grid).astype(np.float32),
        block=block,
    )


WEIGHTS = {
    "dense": DenseWeight(np.random.default_rng(0).normal(size=(OUTPUTS, INPUTS)).astype(ml_dtypes.bfloat16)),
    "int8": int_weight(),
    "int8-asymmetric": int_weight(zeros=True),
    "int8-group": int_weight(group=32),
    "int4": int_weight(4, 64),
    "int4-asymmetric": int_weight(4, 32, zeros=True),
    "int4-minimums": int_weight(4, 32, minimums=True),
    "int4-desc-act": int_weight(4, 32, zeros=True, order=True),
    "fp8-tensor": fp8_weight((OUTPUTS, INPUTS)),
    "fp8-channel": fp8_weight((1, INPUTS)),
    "fp8-block": fp8_weight((32, 32)),
}
ACTIVATIONS = {
    "none": None,
    "int8": ActivationFormat(precision="int8"),
    "int8-255": ActivationFormat(precision="int8", steps=255),
    "int8-tensor": ActivationFormat(precision="int8", per="tensor"),
    "int8-static": ActivationFormat(precision="int8", scale=0.03),
    "int8-group": ActivationFormat(precision="int8", per="group", group_size=32),
    "llm.int8": ActivationFormat(precision="int8", outlier_threshold=3.0),
    "fp8": ActivationFormat(precision="fp8"),
    "fp8-tensor": ActivationFormat(precision="fp8", per="tensor"),
    "fp8-static": ActivationFormat(precision="fp8", scale=0.005),
    "fp8-group": ActivationFormat(precision="fp8", per="group", group_size=32),
}
CPU = torch.device("cpu")


def build(*linears, dtype=torch.float32, bias=None):
    return build_linear(linears, [lambda rows: rows] * len(linears), bias, dtype=dtype, device=CPU)


def inputs(dtype=torch.float32):
    """Rows of very different size, one of zeros, some with outliers."""
    x = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(4))
    x *= torch.linspace(0.01, 2, ROWS).unsqueeze(1)
    x[3] = 0
    x[5, 7], x[6, 100] = -40, 25
    return x.to(dtype)


def rounded(x, activation):
    """x after its rounding, float64 [rows, inputs], by numpy, one row at a time."""
    x = x.double().numpy()
    if activation is None:
        return x
    out = np.empty_like(x)
    size = activation.group_size if activation.per == "group" else INPUTS
    for row in range(len(x)):
        for start in range(0, INPUTS, size):
            values = x[row, start : start + size].copy()
            threshold = activation.outlier_threshold or np.inf
            large = np.abs(values) >= threshold
            ordinary = np.where(large, 0, values)
            largest = activation.steps / 2 if activation.precision == "int8" else 448
            scale = activation.scale or np.float32(np.abs(ordinary).max()) / np.float32(largest) or 1.0
            # In float32: with 255 steps the largest magnitude lies on a tie.
            codes = np.clip(ordinary.astype(np.float32) / np.float32(scale), -largest, largest)
            codes = np.rint(codes).clip(-128, 127) if largest < 448 else codes.astype(ml_dtypes.float8_e4m3fn)
            out[row, start : start + size] = np.where(large, values, codes.astype(np.float64) * scale)
    return out


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_float64(weight, activation, dtype):
    linear = QuantizedLinear(WEIGHTS[weight], ACTIVATIONS[activation])
    x = inputs(dtype)
    bias = torch.linspace(-1, 1, OUTPUTS).to(dtype)
    exact = rounded(x, linear.activation) @ linear.weight.dequantize().astype(np.float64).T
    exact += bias.double().numpy()
    layer = build(linear, dtype=dtype, bias=bias)
    with torch.inference_mode():
        y = layer(x)
        alone = torch.cat([layer(x[i : i + 1]) for i in range(ROWS)])
    assert y.dtype == dtype
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}[dtype]
    # A few times the unit roundoff, of the row's largest number.
    scale = np.abs(exact).max(1, keepdims=True)
    assert (np.abs(y.double().numpy() - exact) / scale).max() < tolerance
    assert ((y - alone).abs().double().numpy() / scale).max() < tolerance


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_are_dequantized_as_the_oracle_does(weight):
    """To the last bit: the product with the unit matrix."""
    layer = build(QuantizedLinear(WEIGHTS[weight]))
    with torch.inference_mode():
        assert torch.equal(layer(torch.eye(INPUTS)).t(), torch.from_numpy(WEIGHTS[weight].dequantize()))


def test_integer_products_are_exact_and_the_same_in_any_batch():
    layer = build(QuantizedLinear(WEIGHTS["int8"], ACTIVATIONS["int8"]))
    x = inputs()
    with torch.inference_mode():
        assert torch.equal(layer(x), torch.cat([layer(row.unsqueeze(0)) for row in x]))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_codes_do_not_depend_on_the_batch(activation):
    x = inputs()
    together = round_input(x, ACTIVATIONS[activation])
    for row in range(ROWS):
        alone = round_input(x[row : row + 1], ACTIVATIONS[activation])
        assert torch.equal(alone.codes.float(), together.codes[row : row + 1].float())
        assert torch.equal(alone.scales, together.scales[row : row + 1])


def test_rounding_saturates_and_rounds_ties_to_even():
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, 400.0, -400.0]])
    codes = round_input(x, ActivationFormat(precision="int8", scale=1.0)).codes
    assert codes.tolist() == [[0, 2, 2, 0, 127, -127]]
    codes = round_input(x, ActivationFormat(precision="int8", scale=1.0, steps=255)).codes
    assert codes.tolist() == [[0, 2, 2, 0, 127, -128]]
    codes = round_input(x * 2, ActivationFormat(precision="fp8", scale=1.0)).codes.float()
    assert codes[0, 4:].tolist() == [448, -448]


def test_outliers_leave_the_scale_and_the_product_to_the_rest():
    x = torch.tensor([[1.0, 6.0, -2.54, -50.0]])
    parts = round_input(x, ActivationFormat(precision="int8", outlier_threshold=6.0))
    assert parts.codes.tolist() == [[50, 0, -127, 0]]
    assert parts.scales.item() == pytest.approx(0.02)
    assert parts.outliers.tolist() == [[0, 6, 0, -50]]
    assert round_input(x[:, :1], ActivationFormat(precision="int8", outlier_threshold=6.0)).outliers is None


def test_numbers_that_are_not_finite_stay_so():
    x = inputs()
    x[2, 3], x[4, 5] = torch.nan, torch.inf
    for activation in ("int8", "fp8"):
        with torch.inference_mode():
            y = build(QuantizedLinear(WEIGHTS["int8"], ACTIVATIONS[activation]))(x)
        finite = y.isfinite().all(1)
        assert finite.tolist() == [row not in (2, 4) for row in range(ROWS)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linears_of_one_input_are_fused(activation):
    weights = [WEIGHTS["int8"], WEIGHTS["fp8-channel"], WEIGHTS["int4"], int_weight(outputs=16)]
    linears = [QuantizedLinear(weight, ACTIVATIONS[activation]) for weight in weights]
    bias = torch.linspace(-1, 1, sum(weight.shape[0] for weight in weights))
    biases = bias.split([weight.shape[0] for weight in weights])
    x = inputs()
    with torch.inference_mode():
        apart = [build(one, bias=own)(x) for one, own in zip(linears, biases, strict=True)]
        torch.testing.assert_close(build(*linears, bias=bias)(x), torch.cat(apart, -1), rtol=1e-4, atol=1e-3)


def test_linears_that_round_their_input_differently_stand_side_by_side():
    static = replace(ACTIVATIONS["fp8-static"], scale=0.004)
    linears = [
        QuantizedLinear(WEIGHTS["fp8-tensor"], ACTIVATIONS["fp8-static"]),
        QuantizedLinear(WEIGHTS["fp8-tensor"], static),
    ]
    bias = torch.linspace(-1, 1, 2 * OUTPUTS)
    x = inputs()
    with torch.inference_mode():
        both = build(*linears, bias=bias)(x)
        assert torch.equal(both[:, :OUTPUTS], build(linears[0], bias=bias[:OUTPUTS])(x))
        assert torch.equal(both[:, OUTPUTS:], build(linears[1], bias=bias[OUTPUTS:])(x))


def test_rows_are_permuted_with_their_scales():
    linear = QuantizedLinear(WEIGHTS["int8"], ACTIVATIONS["int8"])
    flipped = build_linear([linear], [lambda rows: rows.flip(0)], None, dtype=torch.float32, device=CPU)
    with torch.inference_mode():
        assert torch.equal(flipped(inputs()), build(linear)(inputs()).flip(1))
