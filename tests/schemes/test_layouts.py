"""Each layout: what it packs it unpacks, and its tensors are what its specification says, read naively."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightpack.schemes import awq_gemm, bitsandbytes8, compressed_tensors_config, gptq
from tightpack.schemes.layout import LayoutError, LinearLayout, Packer, Stored
from tightpack.schemes.quantized import ActivationFormat, Fp8Weight, IntWeight, QuantizedLinear
from tightpack.schemes.registry import read_recipe

PRECISIONS = {"int8": "int8", "int32": "int32", "int64": "int64", "uint8": "uint8", "float8_e4m3fn": "fp8"}


@st.composite
def int_weights(
    draw: st.DrawFn,
    *,
    bits: tuple[Literal[4, 8], ...] = (4, 8),
    multiple: int = 1,
    symmetric: bool | None = None,
    act_order: bool = False,
) -> IntWeight:
    width: Literal[4, 8] = draw(st.sampled_from(bits))
    outputs = multiple * draw(st.integers(1, 5))
    groups = draw(st.integers(1, 4))
    inputs = groups * multiple * draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.booleans()) if symmetric is None else symmetric
    half = 1 << (width - 1)
    codes = rng.integers(0, 2 * half, (outputs, inputs))
    order = None
    if act_order:
        order = rng.permutation(np.arange(inputs, dtype=np.int32) // (inputs // groups)).astype(np.int32)
    return IntWeight(
        codes=(codes - half).astype(np.int8) if kind else codes.astype(np.uint8),
        scales=rng.uniform(0.001, 1, (outputs, groups)).astype(np.float16).astype(np.float32),
        zeros=None if kind else rng.integers(0, 2 * half, (outputs, groups)).astype(np.uint8),
        bits=width,
        group_size=inputs // groups,
        group_of_input=order,
    )


def through(packer: Packer, linear: QuantizedLinear, unquantized: tuple[str, ...] = ()) -> QuantizedLinear:
    """Packed, checked against what the layout of the written configuration expects, and unpacked."""
    tensors = packer.pack("a", linear)
    layout = read_recipe(packer.config(unquantized, None)).layout_of(["a"])
    assert layout is not None
    check_expected(layout, linear.weight.shape, tensors)
    return layout.unpack(tensors, linear.weight.shape)


def check_expected(layout: LinearLayout, shape: tuple[int, int], tensors: Any) -> None:
    expected = layout.expected(shape)
    assert set(tensors) <= set(expected)
    assert {suffix for suffix, stored in expected.items() if not stored.optional} <= set(tensors)
    for suffix, values in tensors.items():
        shapes = expected[suffix].shapes
        assert shapes[PRECISIONS.get(values.dtype.name, "fp32")] == values.shape, suffix


def same(one: QuantizedLinear, other: QuantizedLinear) -> None:
    assert type(one.weight) is type(other.weight)
    assert one.activation == other.activation
    np.testing.assert_array_equal(one.weight.dequantize(), other.weight.dequantize())
    if isinstance(one.weight, IntWeight):
        assert isinstance(other.weight, IntWeight)
        assert (one.weight.bits, one.weight.symmetric) == (other.weight.bits, other.weight.symmetric)


ACTIVATIONS = [
    None,
    ActivationFormat(precision="int8", steps=255),
    ActivationFormat(precision="int8", per="tensor", scale=0.125, steps=255),
    ActivationFormat(precision="fp8", per="tensor"),
]


@given(int_weights(), st.sampled_from(ACTIVATIONS))
def test_compressed_tensors_integers(weight: IntWeight, activation: ActivationFormat | None) -> None:
    linear = QuantizedLinear(weight, activation)
    same(through(compressed_tensors_config.Packer(), linear), linear)


@st.composite
def fp8_weights(draw: st.DrawFn) -> Fp8Weight:
    outputs, inputs = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    block = draw(st.sampled_from([(outputs, inputs), (1, inputs), (2, 3), (4, 4)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scales = rng.uniform(0.1, 1, (-(-outputs // block[0]), -(-inputs // block[1]))).astype(np.float32)
    codes = rng.uniform(-448, 448, (outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    return Fp8Weight(codes=codes, scales=scales, block=block)


@given(fp8_weights(), st.sampled_from(ACTIVATIONS))
def test_compressed_tensors_floats(weight: Fp8Weight, activation: ActivationFormat | None) -> None:
    linear = QuantizedLinear(weight, activation)
    same(through(compressed_tensors_config.Packer(), linear), linear)


@given(int_weights(bits=(4,), multiple=8, symmetric=False))
def test_awq(weight: IntWeight) -> None:
    linear = QuantizedLinear(weight)
    same(through(awq_gemm.Packer(), linear), linear)


@settings(max_examples=20)
@given(int_weights(bits=(4,), multiple=8, symmetric=False))
def test_awq_read_naively(weight: IntWeight) -> None:
    """AutoAWQ: column order[i] of eight is at bit 4 i."""
    assert weight.zeros is not None
    tensors = awq_gemm.Packer().pack("a", QuantizedLinear(weight))
    for name, wanted in (("qweight", weight.codes), ("qzeros", weight.zeros)):
        words = tensors[name].view(np.uint32)
        read = np.zeros((words.shape[0], words.shape[1] * 8), np.uint8)
        for column in range(words.shape[1]):
            for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                read[:, 8 * column + output] = (words[:, column] >> (4 * place)) & 15
        np.testing.assert_array_equal(read.T, wanted)


@settings(deadline=None)  # the first example imports torch
@given(int_weights(bits=(4,), multiple=8))
def test_awq_as_compressed_tensors_converts(weight: IntWeight) -> None:
    pytest.importorskip("compressed_tensors")
    torch = pytest.importorskip("torch")
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter as Theirs

    tensors = {
        n: torch.from_numpy(v) for n, v in awq_gemm.Packer().pack("a", QuantizedLinear(weight)).items()
    }
    codes, zeros = Theirs.unpack_awq(tensors["qweight"], tensors["qzeros"], 4)
    codes, zeros = Theirs.reverse_awq_order(codes, zeros, 4)
    values = ((codes & 15).float().T - (zeros & 15).float().T.repeat_interleave(weight.group_size, 1)) * (
        tensors["scales"].T.repeat_interleave(weight.group_size, 1)
    )
    np.testing.assert_array_equal(values.numpy(), weight.dequantize())


@given(st.booleans().flatmap(lambda order: int_weights(multiple=8, act_order=order)))
def test_gptq(weight: IntWeight) -> None:
    linear = QuantizedLinear(weight)
    same(through(gptq.Packer(), linear), linear)


@settings(max_examples=20)
@given(int_weights(multiple=8, act_order=True), st.sampled_from([1, 2]))
def test_gptq_read_naively(weight: IntWeight, version: int) -> None:
    """AutoGPTQ: input k at bits * (k mod per word) of word k / per word; version 1 has zeros less one."""
    packer = gptq.Packer()
    tensors = packer.pack("a", QuantizedLinear(weight))
    written = 1 if weight.symmetric else 2
    mask = (1 << weight.bits) - 1
    per_word = 32 // weight.bits
    outputs, inputs = weight.shape
    codes = np.zeros((inputs, outputs), np.int64)
    for k in range(inputs):
        codes[k] = (
            tensors["qweight"].view(np.uint32)[k // per_word] >> (weight.bits * (k % per_word))
        ) & mask
    zeros = np.zeros((tensors["scales"].shape[0], outputs), np.int64)
    for n in range(outputs):
        word = tensors["qzeros"].view(np.uint32)[:, n // per_word]
        zeros[:, n] = (word >> (weight.bits * (n % per_word))) & mask
    zeros += written == 1
    values = (codes - zeros[tensors["g_idx"]]) * tensors["scales"][tensors["g_idx"]]
    np.testing.assert_allclose(values.T, weight.dequantize(), rtol=1e-6)
    # The other version, by its definition.
    layout = gptq.GptqLayout(weight.bits, weight.group_size, False, True, version)
    stored = (zeros - (version == 1)) & mask
    tensors["qzeros"] = gptq.pack_words(stored.astype(np.uint8), weight.bits, 1)
    again = layout.unpack(tensors, weight.shape)
    np.testing.assert_allclose(again.weight.dequantize(), weight.dequantize(), rtol=1e-6)


@given(int_weights(bits=(8,), symmetric=True), st.sampled_from([6.0, None, 3.5]))
def test_bitsandbytes(weight: IntWeight, threshold: float | None) -> None:
    whole = IntWeight(
        codes=weight.codes, scales=weight.scales[:, :1], zeros=None, bits=8, group_size=weight.shape[1]
    )
    linear = QuantizedLinear(whole, ActivationFormat(precision="int8", outlier_threshold=threshold))
    packer = bitsandbytes8.Packer()
    tensors = packer.pack("a", linear)
    layout = read_recipe(packer.config((), None)).layout_of(["a"])
    assert layout is not None
    check_expected(layout, whole.shape, tensors)
    read = layout.unpack(tensors, whole.shape)
    assert read.activation == linear.activation
    np.testing.assert_allclose(read.weight.dequantize(), whole.dequantize(), rtol=1e-6)


@given(fp8_weights(), st.booleans())
def test_hugging_face_fp8(weight: Fp8Weight, static: bool) -> None:
    whole = weight.block == weight.shape
    config = {
        "quant_method": "fp8",
        "activation_scheme": "static" if static else "dynamic",
        "weight_block_size": None if whole else list(weight.block),
    }
    tensors: dict[str, Any] = {"weight": weight.codes, "weight_scale_inv": weight.scales}
    if whole:
        tensors["weight_scale_inv"] = weight.scales.reshape(1)
    if static:
        tensors["activation_scale"] = np.array([0.5], np.float32)
    layout = read_recipe(config).layout_of(["a"])
    assert layout is not None
    check_expected(layout, weight.shape, tensors)
    read = layout.unpack(tensors, weight.shape)
    np.testing.assert_array_equal(read.weight.dequantize(), weight.dequantize())
    assert read.activation is not None
    assert read.activation.scale == (0.5 if static else None)
    if not static and not whole:
        assert (read.activation.per, read.activation.group_size) == ("group", weight.block[1])


LINEAR = QuantizedLinear(
    IntWeight(
        codes=np.zeros((8, 16), np.int8), scales=np.ones((8, 2), np.float32), zeros=None, bits=4, group_size=8
    )
)


def changed(**fields: Any) -> QuantizedLinear:
    from dataclasses import replace

    assert isinstance(LINEAR.weight, IntWeight)
    return QuantizedLinear(replace(LINEAR.weight, **fields))


@pytest.mark.parametrize(
    ("packer", "linear", "named"),
    [
        (awq_gemm.Packer, changed(bits=8), "not of 4-bit integers"),
        (awq_gemm.Packer, QuantizedLinear(LINEAR.weight, ACTIVATIONS[1]), "16-bit activations"),
        (awq_gemm.Packer, changed(codes=np.zeros((12, 16), np.int8)), "12 outputs are no multiple of 8"),
        (awq_gemm.Packer, changed(group_size=6), "group size 6 does not divide its 16 inputs"),
        (gptq.Packer, changed(minimums=np.zeros((8, 2), np.float32)), "minimums"),
        (gptq.Packer, changed(codes=np.zeros((8, 12), np.int8)), "12 inputs do not fill words of 8"),
        (compressed_tensors_config.Packer, changed(minimums=np.zeros((8, 2), np.float32)), "minimums"),
        (compressed_tensors_config.Packer, changed(group_size=6), "group size 6 does not divide"),
        (
            compressed_tensors_config.Packer,
            changed(group_of_input=np.zeros(16, np.int32)),
            "groups that are not contiguous",
        ),
        (
            compressed_tensors_config.Packer,
            QuantizedLinear(LINEAR.weight, ActivationFormat(precision="int8", outlier_threshold=6.0)),
            "LLM.int8's outlier columns",
        ),
        (
            compressed_tensors_config.Packer,
            QuantizedLinear(LINEAR.weight, ActivationFormat(precision="int8", steps=254)),
            "int8 activations of 254 steps, not 255",
        ),
        (bitsandbytes8.Packer, LINEAR, "not symmetric int8 by channel"),
    ],
)
def test_what_a_layout_cannot_hold(packer: Callable[[], Packer], linear: QuantizedLinear, named: str) -> None:
    with pytest.raises(LayoutError, match=named):
        packer().pack("a", linear)


@pytest.mark.parametrize("packer", [awq_gemm.Packer, gptq.Packer])
def test_one_group_size_for_all(packer: Callable[[], Packer]) -> None:
    first = packer()
    first.pack("a", LINEAR)
    first.pack("b", changed(codes=np.zeros((8, 8), np.int8), scales=np.ones((8, 1), np.float32)))
    assert first.config((), None)["group_size"] == 8
    with pytest.raises(LayoutError, match="groups of 8 and 16; this layout has one size"):
        first.pack("c", changed(group_size=16, scales=np.ones((8, 1), np.float32)))
    second = packer()
    second.pack("a", changed(group_size=16, scales=np.ones((8, 1), np.float32)))
    second.pack(
        "b", changed(codes=np.zeros((8, 8), np.int8), group_size=8, scales=np.ones((8, 1), np.float32))
    )
    assert second.config((), None)["group_size"] == -1


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}


def compressed(group: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {**GROUP, **(group or {})}},
        **fields,
    }


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "quant_method is None"),
        ({"quant_method": "aqw"}, "quant_method is 'aqw', not known here; the nearest supported is 'awq'"),
        ({"quant_method": "hqq"}, "quant_method is 'hqq'.*supported"),
        (
            compressed(format="packquantized"),
            "format is 'packquantized'.*nearest supported is 'pack-quantized'",
        ),
        (compressed(format="nvfp4-pack-quantized"), "format is 'nvfp4-pack-quantized'"),
        (compressed(config_groups={}), "config_groups is empty"),
        (compressed({"weights": {"num_bits": 3}}), "weights.num_bits is 3; supported: 4, 8"),
        (compressed({"weights": {"type": "float", "num_bits": 8}}), "type is 'float', which format 'pack-q"),
        (compressed({"weights": {"group_size": 0}}), "group_size is 0"),
        (compressed({"weights": {"strategy": "group"}}), "strategy is 'group' with group_size None"),
        (compressed({"input_activations": {"num_bits": 4}}), "input_activations.num_bits is 4"),
        (compressed({"input_activations": {"symmetric": False}}), "input_activations.symmetric is False"),
        (compressed({"output_activations": {"num_bits": 8}}), "output_activations is not supported"),
        (compressed({"targets": "Linear"}), "targets must be a list of names"),
        (compressed(kv_cache_scheme={"num_bits": 4}), "kv_cache_scheme.num_bits is 4; supported: 8"),
        (compressed(kv_cache_scheme={"dynamic": True}), "kv_cache_scheme.dynamic is True"),
        (compressed(transform_config={"config_groups": {"R1": {}}}), "transform_config.config_groups is"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format is 'sparse-24"),
        ({"quant_method": "awq", "bits": 8}, "bits is 8"),
        ({"quant_method": "awq", "version": "gemv"}, "version is 'gemv'.*'gemm'"),
        ({"quant_method": "awq", "group_size": "64"}, "group_size is '64'"),
        ({"quant_method": "gptq", "bits": 3}, "bits is 3; supported: 4, 8"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"quant_method": "gptq", "desc_act": "no"}, "desc_act must be true or false"),
        ({"quant_method": "fp8", "activation_scheme": "statik"}, "nearest supported is 'static'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size must be two"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4 bits are not supported"),
        ({"quant_method": "bitsandbytes"}, "load_in_8bit must be true"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": "6"},
            "llm_int8_threshold must be a number",
        ),
    ],
)
def test_wrong_configurations(config: dict[str, Any], named: str) -> None:
    with pytest.raises(LayoutError, match=named):
        read_recipe(config)


def test_which_group_a_linear_belongs_to() -> None:
    """Names before patterns, patterns alphabetically, the class last, and the ignore list before all."""

    def group(targets: list[str], bits: int) -> dict[str, Any]:
        return {"targets": targets, "weights": {"num_bits": bits, "type": "int", "group_size": 32}}

    recipe = read_recipe(
        compressed(
            config_groups={
                "a": group(["Linear"], 8),
                "b": group([r"re:.*b\.q$"], 4),
                "c": group([r"re:.*\.q$", "x.b.exact"], 8),
                "d": {"targets": ["LlamaAttention"], "input_activations": {"num_bits": 8}},
            },
            ignore=["head", "re:.*skip.*"],
        )
    )

    def bits(name: str) -> str | None:
        layout = recipe.layout_of([name])
        return None if layout is None else layout.precision

    assert bits("x.b.q") == "int8"  # re:.*\.q$ sorts before re:.*b\.q$
    assert bits("x.b.exact") == "int8"
    assert bits("anything") == "int8"
    assert bits("head") is None
    assert bits("x.skip.q") is None


def test_gptq_s_ways_to_leave_linears_alone() -> None:
    recipe = read_recipe(
        {
            "quant_method": "gptq",
            "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj"]],
            "dynamic": {r"-:.*\.1\..*": {}, r"+:.*\.2\.mlp.*": {"bits": 8, "group_size": 64}},
        }
    )
    label = lambda name: (layout := recipe.layout_of([name])) and layout.label  # noqa: E731
    assert label("model.layers.0.self_attn.q_proj") == "int4, group 128"
    assert label("model.layers.0.self_attn.k_proj") is None
    assert label("model.layers.1.self_attn.q_proj") is None
    assert label("model.layers.2.mlp.down_proj") == "int8, group 64"
    assert label("lm_head") is None


def test_expected_tensors_of_old_packed_zero_points() -> None:
    layout = read_recipe(
        compressed({"weights": {"num_bits": 4, "group_size": 8, "symmetric": False}})
    ).layout_of(["a"])
    assert layout is not None
    assert layout.expected((12, 16))["weight_zero_point"] == Stored({"int8": (12, 2), "int32": (2, 2)})


def test_compressed_tensors_act_order() -> None:
    """As versions before 0.20 wrote actorder "group"."""
    config = compressed({"weights": {"num_bits": 4, "group_size": 8, "actorder": "group"}})
    layout = read_recipe(config).layout_of(["a"])
    assert layout is not None
    tensors = dict(compressed_tensors_config.Packer().pack("a", LINEAR))
    order = np.arange(16, dtype=np.int32) % 2
    tensors["weight_scale"] = np.arange(16, dtype=np.float32).reshape(8, 2)
    tensors["weight_g_idx"] = order
    check_expected(layout, LINEAR.weight.shape, tensors)
    weight = layout.unpack(tensors, LINEAR.weight.shape).weight
    assert isinstance(weight, IntWeight)
    np.testing.assert_array_equal(weight.group_of_input, order)
    tensors["weight_g_idx"] = order * 2
    with pytest.raises(LayoutError, match=r"weight_g_idx: groups 0 \.\. 2, and there are 2"):
        layout.unpack(tensors, LINEAR.weight.shape)
