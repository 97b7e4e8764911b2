"""W8A8, LLM.int8, 8-bit weights alone and 8-bit floats in blocks, against float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from tightpack.schemes.quantized import ActivationFormat, Fp8Weight
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.input_rounding import round_input
from tightpack.torch_backend.kernels.eight_bit_matmul import launch as launch_eight
from tightpack.torch_backend.kernels.fp8_block_matmul import launch as launch_blocks
from tightpack.torch_backend.kernels.quantize_rows import quantize_rows
from tightpack.torch_backend.kernels.tiles import Tile
from tightpack.torch_backend.kernels.weight_only_matmul import launch as launch_weight_only
from tightpack.torch_backend.packed_weights import pack_8

CPU = torch.device("cpu")
SHAPES = [(1, 576, 192), (5, 300, 70), (20, 256, 130), (2, 4096, 64), (40, 160, 30)]


def as_it_is(rows):
    return rows


def fp8_weight(outputs, inputs, block, seed=0):
    rng = np.random.default_rng(seed)
    grid = -(-outputs // block[0]), -(-inputs // block[1])
    return Fp8Weight(
        codes=rng.normal(0, 100, (outputs, inputs)).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn),
        scales=rng.uniform(0.0005, 0.001, grid).astype(np.float32),
        block=block,
    )


def inputs_of(rows, width, dtype=torch.bfloat16):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
    x *= torch.linspace(0.5, 2, rows).unsqueeze(1)
    return x.to(dtype)


def tile_for(rows):
    return Tile(64, 16, splits=2) if rows <= 16 else Tile(64, 32, persistent=True)


@pytest.mark.parametrize(("rows", "width", "outputs"), SHAPES)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_codes_by_codes(random_int_weight, assert_product, context, rows, width, outputs, precision):
    weight = (
        random_int_weight(outputs, width, width, bits=8)
        if precision == "int8"
        else fp8_weight(outputs, width, (1, width))
    )
    packed = pack_8([weight], [as_it_is], CPU)
    bias = torch.linspace(-1, 1, outputs).bfloat16()
    x = inputs_of(rows, width)
    rounded = quantize_rows(x, ActivationFormat(precision=precision), context)
    y = x.new_empty(rows, outputs)
    scales = packed.scales.view(-1).float()
    launch_eight(rounded, packed.codes, scales, bias, y, tile_for(rows), context)
    values = rounded.codes.float() * rounded.scales
    assert_product(y, values, weight.dequantize(), bias)


def test_integers_are_summed_exactly(random_int_weight, context):
    """The largest codes over Llama's widest input: beyond what a float32 sum holds."""
    weight = random_int_weight(64, 14336, 14336, bits=8)
    weight.codes[:] = 127
    weight.codes[3] = 126
    packed = pack_8([weight], [as_it_is], CPU)
    x = torch.ones(1, 14336)
    rounded = quantize_rows(x, ActivationFormat(precision="int8"), context)
    y = torch.empty(1, 64)
    launch_eight(rounded, packed.codes, torch.ones(64), None, y, Tile(64, 16, splits=4), context)
    ratio = rounded.scales.item()
    assert y[0, 0].item() == pytest.approx(127 * 127 * 14336 * ratio, rel=1e-7)
    assert y[0, 3].item() == pytest.approx(126 * 127 * 14336 * ratio, rel=1e-7)


@pytest.mark.parametrize(("rows", "width"), [(1, 576), (20, 300), (3, 4500)])
def test_llm_int8(random_int_weight, assert_product, context, rows, width):
    weight = random_int_weight(70, width, width, bits=8)
    packed = pack_8([weight], [as_it_is], CPU)
    x = inputs_of(rows, width)
    x[0, 7], x[-1, width - 1], x[rows // 2, 200] = -40, 25, 6
    activation = ActivationFormat(precision="int8", outlier_threshold=6.0)
    rounded = quantize_rows(x, activation, context)
    expected = round_input(x, activation)
    assert torch.equal(rounded.codes, expected.codes)
    torch.testing.assert_close(rounded.scales, expected.scales, rtol=1e-6, atol=0)
    y = x.new_empty(rows, 70)
    launch_eight(rounded, packed.codes, packed.scales.view(-1).float(), None, y, tile_for(rows), context)
    assert_product(y, expected.dequantize() + expected.outliers, weight.dequantize())


@pytest.mark.parametrize("kind", ["symmetric", "zeros", "fp8-row", "fp8-block", "fp8-tensor"])
@pytest.mark.parametrize("group", [32, 128, 384])
@pytest.mark.parametrize("rows", [1, 20])
def test_weights_alone(random_int_weight, assert_product, context, kind, group, rows):
    if kind.startswith("fp8"):
        block = {"fp8-row": (1, 384), "fp8-block": (128, group), "fp8-tensor": (200, 384)}[kind]
        weight = fp8_weight(200, 384, block)
    else:
        weight = random_int_weight(200, 384, group, bits=8, kind=kind)
    packed = pack_8([weight], [as_it_is], CPU)
    x, bias = inputs_of(rows, 384), torch.linspace(-1, 1, 200).bfloat16()
    y = x.new_empty(rows, 200)
    launch_weight_only(x, packed, bias, y, tile_for(rows), context)
    assert_product(y, x, weight.dequantize(), bias)


def test_eight_bit_weights_stay_below_each_other(random_int_weight, context):
    first, second = random_int_weight(30, 96, 96, bits=8), random_int_weight(20, 96, 96, bits=8, kind="zeros")
    packed = pack_8([first, second], [as_it_is, lambda rows: rows.flip(0)], CPU)
    x = torch.eye(96, dtype=torch.float16)
    y = x.new_empty(96, 50)
    launch_weight_only(x, packed, None, y, tile_for(1), context)
    whole = np.concatenate([first.dequantize(), second.dequantize()[::-1]])
    torch.testing.assert_close(y.t().float(), torch.from_numpy(whole), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 512, 130), (20, 256, 300), (3, 7168, 64)])
def test_blocks_of_128(assert_product, context, rows, width, outputs):
    weight = fp8_weight(outputs, width, (128, 128))
    x = inputs_of(rows, width)
    rounded = quantize_rows(x, ActivationFormat(precision="fp8", per="group", group_size=128), context)
    y = x.new_empty(rows, outputs)
    codes, scales = as_tensor(weight.codes), as_tensor(weight.scales)
    launch_blocks(rounded, codes, scales, None, y, tile_for(rows), context)
    values = rounded.codes.float().view(rows, -1, 128) * rounded.scales.unsqueeze(-1)
    assert_product(y, values.view(rows, width), weight.dequantize())
