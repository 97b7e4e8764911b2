"""Packed weights hold the numbers of the checkpoint, and rows are rounded as each scheme has it."""

from __future__ import annotations

import logging
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from tightpack.checkpoints.open import open_checkpoint
from tightpack.native_cpu.formats import RowRounding, row_group, row_rounding
from tightpack.native_cpu.memory import packed_bytes
from tightpack.native_cpu.pack import MlpWeights, load_weights
from tightpack.on_load import quantize_on_load
from tightpack.schemes.quantized import (
    ActivationFormat,
    DenseWeight,
    Fp8Weight,
    IntWeight,
    QuantizedLinear,
)

INT8 = ActivationFormat(precision="int8")
FP8 = ActivationFormat(precision="fp8")


def integers(group_size=64, *, bits=4, symmetric=True, inputs=576, activation=None) -> QuantizedLinear:
    groups = -(-inputs // group_size)
    return QuantizedLinear(
        IntWeight(
            codes=np.zeros((16, inputs), np.int8 if symmetric else np.uint8),
            scales=np.ones((16, groups), np.float32),
            zeros=None if symmetric else np.zeros((16, groups), np.uint8),
            bits=bits,
            group_size=group_size,
        ),
        activation,
    )


def eights(activation=None) -> QuantizedLinear:
    codes = np.zeros((16, 256), ml_dtypes.float8_e4m3fn)
    return QuantizedLinear(
        Fp8Weight(codes=codes, scales=np.ones((16, 1), np.float32), block=(1, 256)), activation
    )


DENSE = QuantizedLinear(DenseWeight(np.zeros((16, 64), np.float16)))
FORMATS = [
    (DENSE, RowRounding("bf16", 64)),
    (integers(64), RowRounding("int8", 576, 64, weight_offset=8)),
    (integers(32), RowRounding("int8", 576, 32, weight_offset=8)),
    (integers(192), RowRounding("int8", 576, 64, weight_offset=8)),
    (integers(96, symmetric=False), RowRounding("int8", 576, 48)),
    (integers(576, bits=8), RowRounding("int8", 576, 64, weight_offset=128)),
    (integers(1001, bits=8, inputs=1001), RowRounding("int8", 1001, 1001, weight_offset=128)),
    (integers(576, bits=8, activation=INT8), RowRounding("int8", 576, 576, weight_offset=128)),
    (integers(64, activation=INT8), RowRounding("int8", 576, 64, weight_offset=8)),
    (
        integers(576, bits=8, activation=replace(INT8, scale=0.5)),
        RowRounding("int8", 576, 576, static_scale=0.5, weight_offset=128),
    ),
    (
        integers(576, bits=8, activation=replace(INT8, outlier_threshold=6.0)),
        RowRounding("int8", 576, 576, outlier_threshold=6.0, weight_offset=128),
    ),
    (eights(), RowRounding("bf16", 256)),
    (eights(FP8), RowRounding("bf16", 256, 256, fp8=True)),
    (eights(replace(FP8, per="group", group_size=128)), RowRounding("bf16", 256, 128, fp8=True)),
    (eights(replace(FP8, scale=0.25)), RowRounding("bf16", 256, 256, fp8=True, static_scale=0.25)),
]


@pytest.mark.parametrize(("linear", "wanted"), FORMATS, ids=[wanted.in_words for _, wanted in FORMATS])
def test_how_rows_are_rounded(linear, wanted):
    assert row_rounding(linear, "auto") == wanted
    assert row_rounding(linear, "int8") == wanted


def test_exact_weight_only_arithmetic_on_demand():
    assert row_rounding(integers(), "bfloat16") == RowRounding("bf16", 576)
    # What the checkpoint states stays.
    assert row_rounding(integers(576, bits=8, activation=INT8), "bfloat16").codes == "int8"


def test_int8_rows_need_integers():
    with pytest.raises(ValueError, match="int8 activations need integer weights"):
        row_rounding(QuantizedLinear(DENSE.weight, INT8), "auto")


def test_groups_of_rows_divide_those_of_weights():
    sizes = (8, 16, 32, 40, 64, 88, 128, 1024)
    assert [row_group(1024, size) for size in sizes] == [8, 16, 32, 40, 64, 8, 64, 64]
    assert row_group(100, 100) == 100


def dequantized(fused) -> np.ndarray:
    return np.concatenate([run.weight.dequantize() for run in fused.runs])


@pytest.mark.parametrize("method", ["none", "int8", "w8a8", "llm.int8", "int4", "fp8"])
def test_packed_weights_are_the_checkpoints(tiny_checkpoint, method):
    checkpoint = tiny_checkpoint("qwen2")
    if method != "none":
        checkpoint = quantize_on_load(checkpoint, method, llm_int8_threshold=6.0)
    weights = load_weights(checkpoint, "auto", 2)
    assert len(weights.layers) == 3
    for index, layer in enumerate(weights.layers):
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        heads = {"queries": ["q_proj", "k_proj", "v_proj"]}
        if index == 2:
            heads = {"queries": ["q_proj"], "keys_values": ["k_proj", "v_proj"]}
        parts = {name: [attention + each for each in each_of] for name, each_of in heads.items()}
        parts |= {"output": [attention + "o_proj"], "gate_up": [mlp + "gate_proj", mlp + "up_proj"]}
        parts |= {"down": [mlp + "down_proj"]}
        for name, names in parts.items():
            fused = getattr(layer.mlp if name in ("gate_up", "down") else layer, name)
            wanted = np.concatenate([checkpoint.read_linear(each).weight.dequantize() for each in names])
            np.testing.assert_array_equal(dequantized(fused), wanted, err_msg=name)
            if name in heads:
                bias = np.concatenate([checkpoint.read(f"{each}.bias") for each in names])
                np.testing.assert_array_equal(fused.runs[0].bias, bias.astype(np.float32))
            else:
                assert fused.runs[0].bias is None
    embedding = checkpoint.read("model.embed_tokens.weight").astype(np.float32)
    np.testing.assert_array_equal(weights.embedding.dequantize(), embedding)
    np.testing.assert_array_equal(
        dequantized(weights.head), checkpoint.read("lm_head.weight").astype(np.float32)
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_packed_one_by_one_and_counted(tiny_checkpoint, family):
    checkpoint = quantize_on_load(tiny_checkpoint(family), "int8", llm_int8_threshold=6.0)
    weights = load_weights(checkpoint, "auto", 2)
    for index, (layer, own) in enumerate(zip(checkpoint.spec.layers, weights.layers, strict=True)):
        if layer.experts is None:
            assert isinstance(own.mlp, MlpWeights)
            continue
        router = checkpoint.read(f"model.layers.{index}.{layer.experts.router}.weight")
        np.testing.assert_array_equal(dequantized(own.mlp.router), router.astype(np.float32))
        assert len(own.mlp.experts) == layer.experts.count
        for number, expert in enumerate(own.mlp.experts):
            for fused, roles in ((expert.gate_up, ("gate", "up")), (expert.down, ("down",))):
                names = [f"model.layers.{index}.{getattr(layer.experts, r).format(number)}" for r in roles]
                wanted = [checkpoint.read_linear(name).weight.dequantize() for name in names]
                np.testing.assert_array_equal(dequantized(fused), np.concatenate(wanted))
    dense = tiny_checkpoint(family)
    # The router's few outputs fill a panel of 16.
    assert load_weights(dense, "auto", 2).num_bytes == pytest.approx(packed_bytes(dense), rel=0.05)


def test_gguf_blocks_are_packed_as_they_are():
    checkpoint = open_checkpoint("smollm2-135m")
    weights = load_weights(checkpoint, "auto", 2)
    assert weights.embedding is weights.head.runs[0].weight
    assert {weight.codes for weight in weights.packed()} == {"uint4", "uint8"}
    layer = weights.layers[7]
    for fused, names in (
        (layer.queries, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        (layer.mlp.down, ("mlp.down_proj",)),
    ):
        wanted = [checkpoint.read(f"model.layers.7.{name}.weight") for name in names]
        np.testing.assert_array_equal(dequantized(fused), np.concatenate(wanted))
    assert weights.num_bytes == pytest.approx(packed_bytes(checkpoint), rel=0.01)


class Mixed:
    """A source whose queries are 4-bit, keys dense and values 8-bit: nothing that one weight could hold."""

    def __init__(self, original, changed):
        self.infos, self.read, self._original, self._changed = (
            original.infos,
            original.read,
            original,
            changed,
        )

    def read_linear(self, name):
        change = self._changed.get(name.rpartition(".")[2])
        linear = QuantizedLinear(DenseWeight(self._original.read(f"{name}.weight")))
        return linear if change is None else change(linear.weight.values.astype(np.float32))


def of_integers(values, bits, group_size, order=None) -> QuantizedLinear:
    draw = np.random.default_rng(0)
    shape = (values.shape[0], values.shape[1] // group_size)
    weight = IntWeight(
        codes=draw.integers(-(1 << (bits - 1)), 1 << (bits - 1), values.shape).astype(np.int8),
        scales=draw.uniform(0.01, 0.1, shape).astype(np.float16).astype(np.float32),
        zeros=None,
        bits=bits,
        group_size=group_size,
        group_of_input=order,
    )
    return QuantizedLinear(weight)


def test_linears_of_one_input_may_differ(tiny_checkpoint):
    checkpoint = tiny_checkpoint()
    changed = {"q_proj": lambda w: of_integers(w, 4, 32), "v_proj": lambda w: of_integers(w, 8, 16)}
    checkpoint = replace(checkpoint, tensors=Mixed(checkpoint.tensors, changed))
    fused = load_weights(checkpoint, "auto", 1).layers[0].queries
    assert [run.weight.codes for run in fused.runs] == ["uint4", "bf16", "uint8"]
    assert [run.first_output for run in fused.runs] == [0, 64, 96]
    assert [run.rounding.in_words for run in fused.runs] == [
        "int8 in groups of 32", "bf16", "int8 in groups of 16",
    ]  # fmt: skip
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    wanted = np.concatenate([checkpoint.read_linear(name).weight.dequantize() for name in names])
    np.testing.assert_array_equal(dequantized(fused), wanted)


def test_scattered_groups_are_dequantized_with_a_word(tiny_checkpoint, caplog):
    order = np.random.default_rng(1).permutation(64).astype(np.int32) // 32
    checkpoint = tiny_checkpoint()
    changed = {"o_proj": lambda w: of_integers(w, 4, 32, order)}
    checkpoint = replace(checkpoint, tensors=Mixed(checkpoint.tensors, changed))
    with caplog.at_level(logging.WARNING):
        output = load_weights(checkpoint, "auto", 1).layers[1].output
    assert output.runs[0].weight.codes == "bf16"
    wanted = checkpoint.read_linear("model.layers.1.self_attn.o_proj").weight.dequantize()
    np.testing.assert_allclose(dequantized(output), wanted, rtol=2**-8)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"3 linears of {checkpoint.name} run in bfloat16, dequantized"
    ]
