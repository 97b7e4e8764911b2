"""Mixtures of experts under every name that files give their tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tightpack.checkpoints.checkpoint import CheckpointError
from tightpack.checkpoints.conversion import convert_checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.quantized_tensors import linear_names
from tightpack.native_cpu.pack import MixtureWeights, load_weights
from tightpack.schemes.quantized import Fp8Weight, IntWeight

FAMILIES = ["mixtral", "qwen3_moe"]


def fused_copy(source: Path, family: str, target: Path) -> Path:
    """The same checkpoint with the tensors that a transformers model has in memory."""
    import transformers

    target.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (target / name).write_bytes((source / name).read_bytes())
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, target / "model.safetensors"
    )
    assert any(key.endswith("mlp.experts.gate_up_proj") for key in model.state_dict())
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_experts_are_seen_one_by_one(
    family: str, directory_of: Callable[[str], Path], tmp_path: Path
) -> None:
    one_each = open_checkpoint(str(directory_of(family)))
    fused = open_checkpoint(str(fused_copy(directory_of(family), family, tmp_path / "fused")))
    assert fused.spec == one_each.spec
    for name, shape in one_each.spec.tensor_shapes().items():
        values = fused.read(name)
        assert values.shape == shape
        assert not values.flags.owndata, "a view of the file"
        np.testing.assert_array_equal(values, one_each.read(name))
        assert fused.tensors.infos[name] == one_each.tensors.infos[name]


def test_fused_experts_of_another_shape_are_named(
    directory_of: Callable[[str], Path], tmp_path: Path
) -> None:
    fused = fused_copy(directory_of("qwen3_moe"), "qwen3_moe", tmp_path / "fused")
    tensors = load_file(fused / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    save_file({**tensors, name: tensors[name][:3].contiguous()}, fused / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"experts\.0\.down_proj\.weight'.*missing"):
        open_checkpoint(str(fused))


def test_active_parameters(directory_of: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(str(directory_of("mixtral")))
    one_expert = 3 * 64 * 96
    assert checkpoint.num_parameters - checkpoint.num_active_parameters == 2 * one_expert  # 1 of 3, 2 layers
    dense = open_checkpoint(str(directory_of("llama")))
    assert dense.num_parameters == dense.num_active_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_writes_what_transformers_loads(
    family: str, directory_of: Callable[[str], Path], tmp_path: Path
) -> None:
    import transformers

    source = directory_of(family)
    convert_checkpoint(open_checkpoint(str(source)), tmp_path / "converted")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "converted", dtype=torch.float32)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name].bfloat16().float()), name


@pytest.mark.parametrize("precision", ["Q4_0", "Q8_0"])
def test_quantized_experts_of_a_gguf_file(
    precision: str, gguf_of: Callable[[str], Any], tmp_path: Path
) -> None:
    import gguf

    kind, builder = gguf.GGMLQuantizationType[precision], gguf_of("mixtral")
    name = "blk.1.ffn_down_exps.weight"
    stored = gguf.quants.quantize(builder.tensors[name][0], kind)
    builder.tensors[name] = (stored, kind)
    checkpoint = open_checkpoint(str(builder.write(tmp_path / "model.gguf")))
    wanted = gguf.quants.dequantize(stored, kind)
    for expert in range(3):
        down = f"model.layers.1.block_sparse_moe.experts.{expert}.w2"
        linear = checkpoint.read_linear(down)
        assert isinstance(linear.weight, IntWeight)
        np.testing.assert_array_equal(linear.weight.dequantize(), wanted[expert])
        assert checkpoint.quantization is not None
        assert checkpoint.quantization.linears[down].startswith(precision.lower())
    packed = load_weights(checkpoint, "auto", 1).layers[1].mlp
    assert isinstance(packed, MixtureWeights)
    for expert, values in zip(packed.experts, wanted, strict=True):
        [run] = expert.down.runs
        assert run.weight.codes == {"Q4_0": "uint4", "Q8_0": "uint8"}[precision]
        np.testing.assert_array_equal(run.weight.dequantize(), values)


def one_tensor_an_expert(builder: Any) -> None:
    """As llama.cpp wrote Mixtral until it put the experts of a layer together."""
    for name in [name for name in builder.tensors if "_exps." in name]:
        values, precision = builder.tensors.pop(name)
        for expert, one in enumerate(values):
            builder.tensors[name.replace("_exps", f".{expert}")] = (np.ascontiguousarray(one), precision)


def test_a_gguf_file_with_a_tensor_an_expert(
    directory_of: Callable[[str], Path], gguf_of: Callable[[str], Any], tmp_path: Path
) -> None:
    import gguf

    builder = gguf_of("mixtral")
    one_tensor_an_expert(builder)
    stored = gguf.quants.quantize(
        builder.tensors["blk.1.ffn_down.2.weight"][0], gguf.GGMLQuantizationType.Q8_0
    )
    builder.tensors["blk.1.ffn_down.2.weight"] = (stored, gguf.GGMLQuantizationType.Q8_0)
    checkpoint = open_checkpoint(str(builder.write(tmp_path / "model.gguf")))
    original = open_checkpoint(str(directory_of("mixtral")))
    rounded = "model.layers.1.block_sparse_moe.experts.2.w2"
    for name in original.spec.tensor_shapes():
        if name != f"{rounded}.weight":
            np.testing.assert_array_equal(checkpoint.read(name), original.read(name))
    assert checkpoint.quantization is not None
    assert list(checkpoint.quantization.linears) == [rounded]
    wanted = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(checkpoint.read_linear(rounded).weight.dequantize(), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("blk.0.ffn_up.1.weight"), r"blk\.0\.ffn_up\.1\.weight'.*missing"),
        (
            lambda tensors: tensors.update({"blk.0.ffn_up.3.weight": tensors["blk.0.ffn_up.1.weight"]}),
            r"blk\.0\.ffn_up\.3\.weight",
        ),
    ],
)
def test_single_experts_missing_or_too_many(
    change: Callable[[Any], Any], message: str, gguf_of: Callable[[str], Any], tmp_path: Path
) -> None:
    builder = gguf_of("mixtral")
    one_tensor_an_expert(builder)
    change(builder.tensors)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(builder.write(tmp_path / "model.gguf")))


def test_fp8_experts_in_blocks(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    """As Qwen publishes them: quant_method fp8, routers left out."""
    source, target = directory_of("qwen3_moe"), tmp_path / "fp8"
    checkpoint = open_checkpoint(str(source))
    target.mkdir()
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    for name in linear_names(checkpoint.spec):
        if name != "lm_head":
            outputs, inputs = tensors[f"{name}.weight"].shape
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
            tensors[f"{name}.weight_scale_inv"] = torch.full((-(-outputs // 16), -(-inputs // 16)), 0.5)
    save_file(tensors, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [16, 16],
        "modules_to_not_convert": ["lm_head", "mlp.gate"],
    }
    (target / "config.json").write_text(json.dumps(config))
    quantized = open_checkpoint(str(target))
    weight = quantized.read_linear("model.layers.1.mlp.experts.3.up_proj").weight
    assert isinstance(weight, Fp8Weight)
    original = checkpoint.read("model.layers.1.mlp.experts.3.up_proj.weight")
    np.testing.assert_array_equal(
        weight.dequantize(), original.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) / 2
    )
    router = quantized.read("model.layers.1.mlp.gate.weight")
    np.testing.assert_array_equal(router, checkpoint.read("model.layers.1.mlp.gate.weight"))
