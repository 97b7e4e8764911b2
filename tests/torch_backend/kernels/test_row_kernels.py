"""Rounding, norm and activation kernels against the decoder's own operations in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.input_rounding import round_input
from tightpack.torch_backend.kernels.add_norm import add_norm
from tightpack.torch_backend.kernels.gated_activation import gated_activation
from tightpack.torch_backend.kernels.quantize_rows import quantize_rows
from tightpack.torch_backend.kernels.round_row import rounds
from tightpack.torch_backend.norm import rms_norm
from tightpack.torch_backend.quantized_rows import QuantizedRows

FORMATS = {
    "int8": ActivationFormat(precision="int8"),
    "int8-static": ActivationFormat(precision="int8", scale=0.02),
    "int8-group": ActivationFormat(precision="int8", per="group", group_size=32),
    "llm.int8": ActivationFormat(precision="int8", outlier_threshold=2.5),
    "fp8": ActivationFormat(precision="fp8"),
    "fp8-tensor": ActivationFormat(precision="fp8", per="tensor"),
    "fp8-static": ActivationFormat(precision="fp8", scale=0.004),
    "fp8-group": ActivationFormat(precision="fp8", per="group", group_size=64),
}
# SmolLM2's widths, Llama's, and ones that fill no power of two.
WIDTHS = [576, 4096, 192, 1536]


def rows_of(rows, width, dtype=torch.bfloat16, seed=0):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    x[1] = 0
    return x.to(dtype)


def assert_rounded(ours, exact, activation, loose=False):
    """exact: what was to be rounded. loose: where it may itself differ in the last bit of its type."""
    expected = round_input(exact, activation)
    torch.testing.assert_close(ours.scales, expected.scales, rtol=1e-2 if loose else 1e-6, atol=0)
    same = ours.codes.float() == expected.codes.float()
    assert same.float().mean() > (0.9 if loose else 0.9999)
    values = ours.codes.float().view(*ours.scales.shape, -1) * ours.scales.unsqueeze(-1)
    # A code apart at the most.
    step = expected.scales.unsqueeze(-1) * (1 if activation.precision == "int8" else 33)
    assert ((values - expected.dequantize().view(values.shape)).abs() <= 1.5 * step).all()
    if activation.outlier_threshold is not None:
        flagged = [(int(word) >> bit) & 1 for row in ours.flags.tolist() for word in row for bit in range(32)]
        large = functional.pad(
            exact.float().abs() >= activation.outlier_threshold, (0, -exact.shape[1] % 4096)
        )
        assert flagged == large.view(len(exact), -1, 128).any(-1).flatten().int().tolist()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_rounded_as_the_reference_rounds_them(context, name, width):
    x = rows_of(3, width)
    x[2] *= 40
    assert_rounded(quantize_rows(x, FORMATS[name], context), x, FORMATS[name])


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_ties_and_saturation(context, precision):
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, 800.0, -800.0, 17.0, 19.0, 0.001, 0.003] + [0.0] * 118])
    activation = ActivationFormat(precision=precision, scale=1.0)
    ours = quantize_rows(x, activation, context)
    assert torch.equal(ours.codes.float(), round_input(x, activation).codes.float())


def test_every_eight_bit_float_comes_back(context):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    exact = codes.float()
    exact[exact.isnan()] = 0
    ours = quantize_rows(exact.unsqueeze(0), ActivationFormat(precision="fp8", scale=1.0), context)
    assert torch.equal(ours.codes.float()[0], exact)


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_that_are_not_finite_stay_so(context, name):
    x = rows_of(4, 192)
    x[2, 3], x[3, 5] = torch.nan, torch.inf
    ours = quantize_rows(x, FORMATS[name], context)
    values = ours.codes.float().view(*ours.scales.shape, -1) * ours.scales.unsqueeze(-1)
    finite = values.view(4, 192).isfinite().all(1).tolist()
    # With a threshold an infinite number is an outlier, and reaches the product as it is.
    assert finite == [True, True, False, name == "llm.int8" or ("static" in name and finite[3])]


def test_saturated_numbers_are_counted(context):
    x = torch.zeros(2, 200)
    x[0, :3], x[1, 7] = 500.0, -449.0
    count = torch.zeros(1, dtype=torch.int32)
    quantize_rows(x, ActivationFormat(precision="fp8", scale=1.0), context, saturated=count)
    assert count.item() == 4


@pytest.mark.parametrize("name", [None, *FORMATS])
@pytest.mark.parametrize("width", [576, 200])
@pytest.mark.parametrize("gemma", [False, True])
def test_add_norm(context, name, width, gemma):
    if name is not None and not rounds(width, FORMATS[name]):
        pytest.skip("groups do not divide this width")
    stream, delta = rows_of(3, width), rows_of(3, width, seed=1)
    weight = torch.linspace(0.5, 1.5, width).to(torch.float32 if gemma else torch.bfloat16)
    summed = stream + delta
    exact = rms_norm(summed, weight, 1e-5)
    activation = None if name is None else FORMATS[name]
    ours = add_norm(stream, delta, weight, 1e-5, activation, context)
    assert torch.equal(stream, summed)
    if activation is None:
        torch.testing.assert_close(ours, exact, rtol=1e-2, atol=1e-3)
    else:
        assert isinstance(ours, QuantizedRows)
        source = exact if ours.source is None else ours.source
        torch.testing.assert_close(source, exact, rtol=1e-2, atol=1e-3)
        assert_rounded(ours, source, activation, loose=True)


def test_norm_alone_leaves_the_stream(context):
    stream = rows_of(2, 576)
    before = stream.clone()
    add_norm(stream, None, torch.ones(576).bfloat16(), 1e-6, None, context)
    assert torch.equal(stream, before)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("name", [None, "int8", "fp8-static", "fp8-group", "llm.int8"])
def test_gated_activation(context, kind, name):
    gate_up = 2 * rows_of(3, 2 * 1536)
    gate, up = gate_up.chunk(2, dim=-1)
    act = functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
    exact = act * up
    activation = None if name is None else FORMATS[name]
    ours = gated_activation(gate_up, kind, activation, context)
    if activation is None:
        torch.testing.assert_close(ours, exact, rtol=2e-2, atol=1e-3)
    else:
        assert_rounded(ours, exact if ours.source is None else ours.source, activation, loose=True)


def test_formats_that_row_kernels_do_not_know():
    assert not rounds(576, ActivationFormat(precision="int8", per="group", group_size=96))
    assert not rounds(200, ActivationFormat(precision="fp8", per="group", group_size=128))
    assert not rounds(2**17, ActivationFormat(precision="int8"))
    with pytest.raises(ValueError, match="cannot be rounded"):
        quantize_rows(
            torch.zeros(1, 200), ActivationFormat(precision="fp8", per="group", group_size=128), None
        )
