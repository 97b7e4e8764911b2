"""Packed weights and their products against the numbers that schemes/quantized.py states."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tightpack import _native
from tightpack.schemes.gguf_blocks import unpack_blocks
from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight

SETS = _native.instruction_sets()
# float32 sums of a few hundred products of about unit size, in another order than numpy's.
TOLERANCE = 2e-5

Weight = DenseWeight | IntWeight | Fp8Weight


def int_weight(
    seed: int, outputs: int, inputs: int, bits: int, group: int, offsets: str = "symmetric"
) -> IntWeight:
    rng = np.random.default_rng(seed)
    groups = -(-inputs // group)
    half = 1 << (bits - 1)
    scales = rng.uniform(0.5, 2, (outputs, groups)).astype(np.float16).astype(np.float32) / 64
    zeros = minimums = None
    if offsets == "symmetric":
        codes = rng.integers(-half, half, (outputs, inputs)).astype(np.int8)
    else:
        codes = rng.integers(0, 2 * half, (outputs, inputs)).astype(np.uint8)
        if offsets == "zeros":
            zeros = rng.integers(0, 2 * half, (outputs, groups)).astype(np.uint8)
        else:
            minimums = -rng.uniform(0, 1, (outputs, groups)).astype(np.float16).astype(np.float32)
    return IntWeight(
        codes=codes,
        scales=scales,
        zeros=zeros,
        minimums=minimums,
        bits=4 if bits == 4 else 8,
        group_size=group,
    )


def fp8_weight(seed: int, outputs: int, inputs: int, block: tuple[int, int]) -> Fp8Weight:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 30, (outputs, inputs)) * rng.choice([1, 1e-4], (outputs, inputs))
    # Of 11 bits, which is what packing keeps of a block's scale.
    scales = rng.uniform(0.01, 0.02, (-(-outputs // block[0]), -(-inputs // block[1]))).astype(np.float16)
    codes = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return Fp8Weight(codes=codes, scales=scales.astype(np.float32), block=block)


def pack(*weights: Weight) -> _native.PackedLinear:
    first = weights[0]
    if isinstance(first, DenseWeight):
        return _native.pack_dense([w.values for w in weights], threads=2)
    if isinstance(first, Fp8Weight):
        return _native.pack_fp8([(w.codes.view(np.uint8), w.scales, w.block) for w in weights], threads=2)
    return _native.pack_int(
        [(w.codes, w.scales, w.zeros, w.minimums) for w in weights],
        bits=first.bits,
        group_size=first.group_size,
        threads=2,
    )


def offset(weight: Weight) -> int:
    if not isinstance(weight, IntWeight) or not weight.symmetric:
        return 0
    return 8 if weight.bits == 4 else 128


def rows(seed: int, count: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (count, width)).astype(np.float32)


def check(weight: Weight, form: _native.RowFormat, x: NDArray[np.float32], instruction_set: str) -> None:
    packed = pack(weight)
    got = _native.linear(packed, x, form, threads=2, instruction_set=instruction_set)
    exact = form.rounded(x, instruction_set=instruction_set).astype(np.float64)
    dequantized = weight.dequantize().astype(np.float64)
    want = exact @ dequantized.T
    scale = np.abs(exact) @ np.abs(dequantized).T
    assert got.shape == want.shape
    assert np.max(np.abs(got - want) / (scale + 1e-30)) < TOLERANCE


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("offsets", ["symmetric", "zeros", "minimums"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("group", "row_group"), [(64, 64), (64, 32), (128, 64), (32, 32), (192, 96)])
def test_groups_of_integers(
    bits: int, offsets: str, group: int, row_group: int, instruction_set: str
) -> None:
    weight = int_weight(1, 49, 384, bits, group, offsets)
    form = _native.RowFormat("int8", width=384, group=row_group, weight_offset=offset(weight))
    for count in (1, 2, 3, 4, 5, 9, 17):
        check(weight, form, rows(count, count, 384), instruction_set)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("row_group", [0, 64])
@pytest.mark.parametrize("inputs", [64, 576])
def test_a_scale_an_output(bits: int, row_group: int, inputs: int, instruction_set: str) -> None:
    weight = int_weight(2, 33, inputs, bits, inputs)
    form = _native.RowFormat("int8", width=inputs, group=row_group, weight_offset=offset(weight))
    check(weight, form, rows(3, 11, inputs), instruction_set)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_codes(sign: int, instruction_set: str) -> None:
    """Sums of 16 bits, which some instruction sets take on the way, must hold them."""
    codes = np.tile(np.array([[127], [-128], [1]], np.int8), (1, 512))
    weight = IntWeight(codes=codes, scales=np.ones((3, 1), np.float32), zeros=None, bits=8, group_size=512)
    form = _native.RowFormat("int8", width=512, static_scale=1.0, steps=255, weight_offset=128)
    x = np.full((3, 512), 200.0 * sign, np.float32)
    row = 512 * (127 if sign > 0 else -128)
    made = _native.linear(pack(weight), x, form, instruction_set=instruction_set)
    assert made.tolist() == [[127 * row, -128 * row, row]] * 3


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("offsets", ["symmetric", "zeros"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_an_output_and_odd_widths(bits: int, offsets: str, instruction_set: str) -> None:
    weight = int_weight(2, 5, 40, bits, 40, offsets)
    group = 0 if offsets == "symmetric" else 8
    form = _native.RowFormat("int8", width=40, group=group, weight_offset=offset(weight))
    check(weight, form, rows(3, 9, 40), instruction_set)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("offsets", ["symmetric", "zeros", "minimums"])
@pytest.mark.parametrize(("bits", "group"), [(4, 64), (8, 64), (4, 256), (8, 384)])
def test_integers_under_bf16_rows(bits: int, group: int, offsets: str, instruction_set: str) -> None:
    weight = int_weight(4, 40, 768, bits, group, offsets)
    check(weight, _native.RowFormat("bf16", width=768), rows(5, 13, 768), instruction_set)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(48, 576), (7, 30), (100, 31)])
def test_dense(dtype: Any, shape: tuple[int, int], instruction_set: str) -> None:
    values = np.random.default_rng(6).normal(0, 1, shape).astype(ml_dtypes.bfloat16).astype(dtype)
    bits = values.view(np.uint16) if dtype is ml_dtypes.bfloat16 else values
    form = _native.RowFormat("bf16", width=shape[1])
    x = rows(7, 19, shape[1])
    got = _native.linear(_native.pack_dense([bits]), x, form, instruction_set=instruction_set)
    exact = form.rounded(x).astype(np.float64)
    want = exact @ values.astype(np.float64).T
    scale = np.abs(exact) @ np.abs(values.astype(np.float64)).T
    assert np.max(np.abs(got - want) / scale) < TOLERANCE


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("block", [(1, 512), (40, 512), (16, 128), (128, 64)])
@pytest.mark.parametrize("row", ["plain", "token", "groups", "static"])
def test_fp8(block: tuple[int, int], row: str, instruction_set: str) -> None:
    weight = fp8_weight(8, 40, 512, block)
    form = {
        "plain": _native.RowFormat("bf16", width=512),
        "token": _native.RowFormat("bf16", width=512, fp8=True),
        "groups": _native.RowFormat("bf16", width=512, group=128, fp8=True),
        "static": _native.RowFormat("bf16", width=512, fp8=True, static_scale=0.004),
    }[row]
    check(weight, form, rows(9, 10, 512), instruction_set)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("group", [0, 32])
def test_fp8_rows_under_dense_weights(group: int, instruction_set: str) -> None:
    values = rows(10, 40, 96).astype(ml_dtypes.bfloat16)
    form = _native.RowFormat("bf16", width=96, group=group, fp8=True)
    x = rows(11, 5, 96)
    found = _native.linear(
        _native.pack_dense([values.view(np.uint16)]), x, form, instruction_set=instruction_set
    )
    np.testing.assert_allclose(found, form.rounded(x) @ values.astype(np.float32).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [64, 576])
def test_outliers_stay_exact(bits: int, group: int, instruction_set: str) -> None:
    weight = int_weight(10, 35, 576, bits, group)
    x = rows(11, 9, 576)
    x[::2, [3, 100, 575]] = [[60.0, -7.5, 6.0]]
    form = _native.RowFormat(
        "int8", width=576, group=min(group, 64), outlier_threshold=6.0, weight_offset=offset(weight)
    )
    rounded = form.rounded(x, instruction_set=instruction_set)
    large = np.abs(x) >= 6
    assert large.sum() >= 15
    assert np.array_equal(rounded[large], x[large])
    check(weight, form, x, instruction_set)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("precision", ["q4_0", "q4_1", "q8_0"])
def test_gguf_blocks_become_what_they_mean(precision: str, instruction_set: str) -> None:
    rng = np.random.default_rng(12)
    size = {"q4_0": 18, "q4_1": 20, "q8_0": 34}[precision]
    blocks = rng.integers(0, 256, (37, 4, size)).astype(np.uint8)
    header = 4 if precision == "q4_1" else 2
    scales = rng.uniform(-0.1, 0.1, (37, 4, header // 2)).astype(np.float16)
    blocks[:, :, :header] = scales.view(np.uint8).reshape(37, 4, header)
    flat = blocks.reshape(37, -1)
    packed = _native.pack_gguf([flat[:20], flat[20:]], precision=precision, inputs=128, threads=2)
    want = unpack_blocks(flat, precision).dequantize()
    assert np.array_equal(packed.dequantize(instruction_set=instruction_set), want)


@pytest.mark.parametrize("instruction_set", SETS)
def test_parts_lie_one_below_the_other(instruction_set: str) -> None:
    parts = [int_weight(seed, outputs, 128, 4, 64, "zeros") for seed, outputs in ((1, 24), (2, 9), (3, 40))]
    whole = pack(*parts).dequantize(instruction_set=instruction_set)
    want = np.concatenate([part.dequantize() for part in parts])
    assert np.allclose(whole, want, rtol=1e-6, atol=0)


def test_small_scales_survive_packing() -> None:
    weight = int_weight(13, 16, 128, 4, 64)
    tiny = IntWeight(codes=weight.codes, scales=weight.scales * 2.0**-30, zeros=None, bits=4, group_size=64)
    assert np.array_equal(pack(tiny).dequantize(), tiny.dequantize())


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("steps", [254, 255])
def test_int8_rows_are_the_formats_rounding(steps: int, instruction_set: str) -> None:
    x = rows(14, 5, 96)
    x[2] = 0
    grouped = x.reshape(5, 3, 32)
    scales = np.abs(grouped).max(-1, keepdims=True) / np.float32(steps / 2)
    scales[scales == 0] = 1
    codes = np.clip(np.round(grouped / scales), 127 - steps, 127)
    form = _native.RowFormat("int8", width=96, group=32, steps=steps)
    want = (codes * scales).reshape(5, 96)
    assert codes.min() == 127 - steps
    assert np.array_equal(form.rounded(x, instruction_set=instruction_set), want)


@pytest.mark.parametrize("instruction_set", SETS)
def test_fp8_rows_are_e4m3(instruction_set: str) -> None:
    x = np.concatenate([rows(15, 3, 128) * s for s in (1e-3, 1, 500)], axis=1)
    form = _native.RowFormat("bf16", width=384, fp8=True, static_scale=1.0)
    want = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(form.rounded(x, instruction_set=instruction_set), want)


KINDS: dict[str, tuple[Weight, _native.RowFormat]] = {
    "int4 groups": (
        int_weight(1, 83, 192, 4, 64),
        _native.RowFormat("int8", width=192, group=64, weight_offset=8),
    ),
    "int4 zeros": (int_weight(1, 83, 192, 4, 64, "zeros"), _native.RowFormat("int8", width=192, group=64)),
    "int8 channel": (int_weight(1, 83, 192, 8, 192), _native.RowFormat("int8", width=192, weight_offset=128)),
    "int8 outliers": (
        int_weight(1, 83, 192, 8, 192),
        _native.RowFormat("int8", width=192, weight_offset=128, outlier_threshold=2.0),
    ),
    "int4 exact": (int_weight(1, 83, 192, 4, 64, "zeros"), _native.RowFormat("bf16", width=192)),
    "dense": (
        DenseWeight(rows(2, 83, 192).astype(ml_dtypes.bfloat16).view(np.uint16)),
        _native.RowFormat("bf16", width=192),
    ),
    "fp8": (fp8_weight(3, 83, 192, (1, 192)), _native.RowFormat("bf16", width=192, fp8=True)),
}


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(70)), count=st.integers(1, 70), threads=st.integers(1, 4))
def test_a_row_has_the_same_bits_in_any_batch(
    kind: str, instruction_set: str, order: list[int], count: int, threads: int
) -> None:
    weight, form = KINDS[kind]
    packed = pack(weight)
    x = rows(16, 70, 192)
    alone = np.concatenate(
        [_native.linear(packed, x[i : i + 1], form, instruction_set=instruction_set) for i in order[:count]]
    )
    together = _native.linear(packed, x[order[:count]], form, threads, instruction_set=instruction_set)
    assert np.array_equal(alone.view(np.uint32), together.view(np.uint32))


def test_what_does_not_fit_is_refused() -> None:
    packed = pack(int_weight(1, 16, 128, 4, 64))
    x = rows(1, 2, 128)
    with pytest.raises(ValueError, match="weight_offset must be 8"):
        _native.linear(packed, x, _native.RowFormat("int8", width=128, group=64))
    with pytest.raises(ValueError, match="must be a multiple"):
        _native.linear(packed, x, _native.RowFormat("int8", width=128, weight_offset=8))
    with pytest.raises(ValueError, match="64 numbers meet weights of 128 inputs"):
        _native.linear(packed, x[:, :64].copy(), _native.RowFormat("int8", width=64))
    with pytest.raises(ValueError, match="groups of 24 do not fit"):
        _native.RowFormat("int8", width=128, group=24)
    codes = np.zeros((16, 128), np.int8)
    with pytest.raises(ValueError, match="scales must be"):
        _native.pack_int([(codes, np.ones((16, 3), np.float32), None, None)], bits=4, group_size=64)
    with pytest.raises(ValueError, match="parts have 128 and 64 inputs"):
        _native.pack_dense([np.zeros((4, 128), np.float32), np.zeros((4, 64), np.float32)])
