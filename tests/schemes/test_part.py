"""Parts of linears: cut from the numbers, and from what each layout stores."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tightpack.schemes.awq_gemm import AwqLayout
from tightpack.schemes.awq_gemm import Packer as AwqPacker
from tightpack.schemes.bitsandbytes8 import Bitsandbytes8Layout
from tightpack.schemes.bitsandbytes8 import Packer as Bitsandbytes8Packer
from tightpack.schemes.compressed_tensors_config import layout_for
from tightpack.schemes.gptq import GptqLayout
from tightpack.schemes.gptq import Packer as GptqPacker
from tightpack.schemes.hf_fp8 import HfFp8Layout
from tightpack.schemes.part import Part, cut, cut_stored, grain_of
from tightpack.schemes.quantized import ActivationFormat, DenseWeight, Fp8Weight, IntWeight, QuantizedLinear
from tightpack.schemes.rounding import fp8_rows, int4_groups, int8_rows

SHAPE = (48, 64)
W8A8 = ActivationFormat(precision="int8", steps=255)  # as compressed-tensors has it
PARTS = [
    Part(),
    Part(rows=(0, 24)),
    Part(rows=(24, 48)),
    Part(rows=(16, 32)),
    Part(columns=(0, 32)),
    Part(columns=(32, 64)),
]
ODD = [Part(rows=(5, 29)), Part(columns=(9, 51)), Part(columns=(0, 51)), Part(columns=(9, 64))]


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


def symmetric(weight, bits):
    rounded = int4_groups(weight, 16)
    codes = (rounded.codes.view(np.uint8).astype(np.int16) - 8).astype(np.int8)
    return IntWeight(codes=codes, scales=rounded.scales, zeros=None, bits=bits, group_size=16)


def blocks(weight, rows, columns):
    codes = weight.astype(ml_dtypes.float8_e4m3fn)
    shape = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
    scales = np.random.default_rng(1).random(shape, dtype=np.float32) + 0.5
    return Fp8Weight(codes=codes, scales=scales, block=(rows, columns))


def listed(weight):
    """Groups that are not of neighbouring inputs."""
    rounded = int4_groups(weight, 16)
    order = np.random.default_rng(2).permutation(np.arange(64) // 16).astype(np.int32)
    return IntWeight(
        codes=rounded.codes,
        scales=rounded.scales,
        zeros=rounded.zeros,
        bits=4,
        group_size=16,
        group_of_input=order,
    )


LINEARS = {
    "dense": lambda w: QuantizedLinear(DenseWeight(w)),
    "int4": lambda w: QuantizedLinear(int4_groups(w, 16)),
    "int4 symmetric": lambda w: QuantizedLinear(symmetric(w, 4)),
    "act-order": lambda w: QuantizedLinear(listed(w)),
    "w8a8": lambda w: QuantizedLinear(int8_rows(w), W8A8),
    "llm.int8": lambda w: QuantizedLinear(
        int8_rows(w), ActivationFormat(precision="int8", outlier_threshold=6.0)
    ),
    "fp8 rows": lambda w: QuantizedLinear(fp8_rows(w), ActivationFormat(precision="fp8")),
    "fp8 tensor": lambda w: QuantizedLinear(blocks(w, *SHAPE)),
    "fp8 blocks": lambda w: QuantizedLinear(
        blocks(w, 8, 16), ActivationFormat(precision="fp8", per="group", group_size=16)
    ),
    "fp8 blocks that do not fit": lambda w: QuantizedLinear(blocks(w, 20, 24)),
}


def expected(whole, part):
    (top, bottom), (left, right) = part.spans(SHAPE)
    return whole.weight.dequantize()[top:bottom, left:right]


@pytest.mark.parametrize("part", PARTS + ODD, ids=str)
@pytest.mark.parametrize("name", LINEARS)
def test_a_part_dequantizes_to_that_part_of_the_whole(name, part, values):
    whole = LINEARS[name](values)
    found = cut(whole, part)
    assert found.weight.shape == part.shape(SHAPE)
    assert found.activation == whole.activation
    np.testing.assert_array_equal(found.weight.dequantize(), expected(whole, part))


def test_a_cut_at_the_grain_leaves_groups_as_they_are(values):
    whole = LINEARS["int4"](values)
    assert grain_of(whole) == (1, 16)
    assert cut(whole, Part(columns=(16, 48))).weight.group_of_input is None
    assert cut(whole, Part(columns=(8, 48))).weight.group_of_input is not None
    assert grain_of(LINEARS["fp8 blocks"](values)) == (8, 16)
    for name in ("dense", "act-order", "w8a8", "fp8 tensor"):
        assert grain_of(LINEARS[name](values)) == (1, 1)


def _compressed(name, values):
    linear = LINEARS[name](values)
    layout = layout_for(linear)
    return layout, layout.pack(linear)


def _hf_fp8(values):
    weight = blocks(values, 8, 16)
    return HfFp8Layout((8, 16), static=False), {"weight": weight.codes, "weight_scale_inv": weight.scales}


STORED = {
    "ct int4": lambda w: _compressed("int4", w),
    "ct int4 symmetric": lambda w: _compressed("int4 symmetric", w),
    "ct w8a8": lambda w: _compressed("w8a8", w),
    "ct fp8 rows": lambda w: _compressed("fp8 rows", w),
    "ct fp8 tensor": lambda w: _compressed("fp8 tensor", w),
    "ct fp8 blocks": lambda w: _compressed("fp8 blocks", w),
    "awq": lambda w: (AwqLayout(16), AwqPacker().pack("x", LINEARS["int4"](w))),
    "gptq": lambda w: (
        GptqLayout(4, 16, True, False, 1),
        GptqPacker().pack("x", LINEARS["int4 symmetric"](w)),
    ),
    "gptq v2": lambda w: (GptqLayout(4, 16, False, False, 2), GptqPacker().pack("x", LINEARS["int4"](w))),
    "bitsandbytes": lambda w: (
        Bitsandbytes8Layout(6.0),
        Bitsandbytes8Packer().pack("x", LINEARS["llm.int8"](w)),
    ),
    "hf fp8": _hf_fp8,
}


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("name", STORED)
def test_a_part_of_what_is_stored(name, part, values):
    """Views of the whole tensors, which unpack to that part of the numbers."""
    layout, tensors = STORED[name](values)
    whole = layout.unpack(tensors, SHAPE)
    stored = cut_stored(layout, tensors, tensors.__getitem__, SHAPE, part)
    assert stored is not None
    found = layout.unpack(stored, part.shape(SHAPE))
    assert found.weight.shape == part.shape(SHAPE)
    assert found.activation == whole.activation
    np.testing.assert_array_equal(found.weight.dequantize(), expected(whole, part))
    biggest = max(tensors, key=lambda suffix: tensors[suffix].nbytes)
    assert np.shares_memory(stored[biggest], tensors[biggest])
    share = np.prod(part.shape(SHAPE)) / np.prod(SHAPE)
    assert stored[biggest].nbytes == tensors[biggest].nbytes * share


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("ct int4", Part(rows=(4, 24))),  # zero-points of eight outputs a word
        ("ct int4", Part(columns=(8, 64))),  # inside a group
        ("awq", Part(rows=(4, 24))),
        ("gptq", Part(columns=(0, 24))),
        ("hf fp8", Part(rows=(0, 12))),
    ],
)
def test_what_cannot_be_cut_as_stored(name, part, values):
    layout, tensors = STORED[name](values)
    assert cut_stored(layout, tensors, tensors.__getitem__, SHAPE, part) is None


def test_groups_in_another_order_are_not_cut_as_stored(values):
    tensors = GptqPacker().pack("x", LINEARS["act-order"](values))
    layout = GptqLayout(4, 16, False, True, 2)
    assert cut_stored(layout, tensors, tensors.__getitem__, SHAPE, Part(columns=(0, 32))) is None
