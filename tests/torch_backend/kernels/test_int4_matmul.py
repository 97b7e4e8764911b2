"""W4A16 against the weights' oracle, from every layout that checkpoints have."""

from __future__ import annotations

import pytest
import torch

from tightpack.schemes import awq_gemm, gptq
from tightpack.schemes.compressed_tensors import IntLayout
from tightpack.schemes.quantized import QuantizedLinear
from tightpack.torch_backend.kernels.int4_matmul import int4_matmul, launch
from tightpack.torch_backend.kernels.tiles import Tile
from tightpack.torch_backend.packed_weights import pack_int4

CPU = torch.device("cpu")
DECODE, SPLIT = Tile(64, 16), Tile(64, 16, splits=3)
PROMPT = Tile(128, 64, stages=3, persistent=True)


def as_it_is(rows):
    return rows


def rows_of(count, inputs, dtype=torch.bfloat16):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count)).to(dtype)


def product(weight, x, tile, context, bias=None):
    y = x.new_empty(len(x), weight.shape[0])
    launch(x, pack_int4([weight], [as_it_is], CPU), bias, y, tile, context)
    return y


@pytest.mark.parametrize("kind", ["symmetric", "zeros", "minimums"])
@pytest.mark.parametrize("group", [32, 64, 128, 256, 576])
@pytest.mark.parametrize(("tile", "rows"), [(DECODE, 1), (SPLIT, 5), (PROMPT, 70)])
def test_every_group_size(random_int_weight, assert_product, context, kind, group, tile, rows):
    inputs = 512 if group == 256 else 576 if group in (64, 576) else 384
    weight = random_int_weight(70, inputs, group, kind=kind)
    x = rows_of(rows, inputs)
    assert_product(product(weight, x, tile, context), x, weight.dequantize())


@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [
        (576, 576),  # SmolLM2
        (64, 1536),
        (128, 4096),  # Llama 3.1 8B: a few tiles of outputs, all inputs
        (7, 14336),
        (65, 160),
        (200, 352),
    ],
)
def test_shapes(random_int_weight, assert_product, context, outputs, inputs):
    weight = random_int_weight(outputs, inputs, 32 if inputs % 128 else 128, kind="zeros")
    x, bias = rows_of(3, inputs), torch.linspace(-1, 1, outputs).bfloat16()
    y = int4_matmul(x, pack_int4([weight], [as_it_is], CPU), bias, context)
    assert_product(y, x, weight.dequantize(), bias)


@pytest.mark.parametrize("tile", [SPLIT, PROMPT])
def test_float16(random_int_weight, assert_product, context, tile):
    weight = random_int_weight(100, 256, 64, kind="zeros")
    x = rows_of(9, 256, torch.float16)
    assert_product(product(weight, x, tile, context), x, weight.dequantize())


def test_whole_codes_are_exact(random_int_weight, context):
    """A row with a single one reads off a column of the weight, to the last bit that its type has."""
    weight = random_int_weight(64, 128, 32, kind="zeros")
    y = product(weight, torch.eye(128, dtype=torch.bfloat16), SPLIT, context)
    assert torch.equal(y, torch.from_numpy(weight.dequantize()).t().bfloat16())


def test_groups_out_of_order(random_int_weight, assert_product, context):
    weight = random_int_weight(64, 256, 64, kind="desc_act")
    x = rows_of(3, 256)
    packed = pack_int4([weight], [as_it_is], CPU)
    assert packed.order is not None
    assert_product(int4_matmul(x, packed, None, context), x, weight.dequantize())


def test_linears_one_below_the_other(random_int_weight, assert_product, context):
    """Symmetric beside asymmetric, rows of one in another order."""
    first = random_int_weight(70, 256, 64)
    second = random_int_weight(30, 256, 64, kind="zeros", seed=1)
    packed = pack_int4([first, second], [as_it_is, lambda rows: rows.flip(0)], CPU)
    x = rows_of(2, 256)
    whole = torch.cat([torch.from_numpy(first.dequantize()), torch.from_numpy(second.dequantize()).flip(0)])
    assert_product(int4_matmul(x, packed, None, context), x, whole)


@pytest.mark.parametrize("layout", ["gptq-v1", "gptq-v2", "awq", "compressed-tensors"])
def test_from_checkpoints(random_int_weight, assert_product, context, layout):
    symmetric = layout == "gptq-v1"
    weight = random_int_weight(64, 256, 64, kind="symmetric" if symmetric else "zeros")
    if layout == "awq":
        tensors = awq_gemm.Packer().pack("linear", QuantizedLinear(weight))
        read = awq_gemm.AwqLayout(64).unpack(tensors, weight.shape).weight
    elif layout == "compressed-tensors":
        stored = IntLayout(4, "group", 64, symmetric=False, packed=True)
        read = stored.unpack(stored.pack(QuantizedLinear(weight)), weight.shape).weight
    else:
        tensors = gptq.Packer().pack("linear", QuantizedLinear(weight))
        stored = gptq.GptqLayout(4, 64, symmetric, False, 1 if symmetric else 2)
        read = stored.unpack(tensors, weight.shape).weight
    x = rows_of(2, 256)
    y = int4_matmul(x, pack_int4([read], [as_it_is], CPU), None, context)
    assert_product(y, x, weight.dequantize())


def test_rows_that_are_views(random_int_weight, assert_product, context):
    weight = random_int_weight(64, 128, 128)
    x = rows_of(4, 200)[:, 8:136]
    assert_product(
        int4_matmul(x, pack_int4([weight], [as_it_is], CPU), None, context), x, weight.dequantize()
    )


def test_splits_leave_their_counters_as_they_found_them(random_int_weight, context):
    weight = random_int_weight(70, 384, 128)
    x = rows_of(3, 384)
    first, second = (product(weight, x, SPLIT, context) for _ in range(2))
    assert torch.equal(first, second)
    assert not context.workspace(1, 1, 1)[1].any()


def test_no_rows(random_int_weight, context):
    packed = pack_int4([random_int_weight(64, 128, 128)], [as_it_is], CPU)
    assert int4_matmul(rows_of(0, 128), packed, None, context).shape == (0, 64)
