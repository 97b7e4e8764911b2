"""Directories as transformers saves them, and each way they can be wrong."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tightpack.checkpoints.checkpoint import CheckpointError, GenerationDefaults
from tightpack.checkpoints.open import open_checkpoint

FAMILIES = ["llama", "llama-tied", "llama-biases", "mistral", "qwen2", "qwen3", "gemma3"]


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields; None removes."""
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_of_transformers(family: str, directory_of: Callable[[str], Path]) -> None:
    directory = directory_of(family)
    checkpoint = open_checkpoint(str(directory))
    state = transformers.AutoModelForCausalLM.from_pretrained(directory).state_dict()
    assert checkpoint.name == family
    assert checkpoint.spec.family == family.split("-")[0]
    for name in checkpoint.spec.tensor_shapes():
        np.testing.assert_array_equal(checkpoint.read(name), state[name].numpy())


@pytest.mark.parametrize(
    ("dtype", "precision", "numpy_dtype"),
    [
        (torch.bfloat16, "bf16", ml_dtypes.bfloat16),
        (torch.float16, "fp16", np.float16),
        (torch.float32, "fp32", np.float32),
    ],
)
def test_precisions_are_views_of_the_file(
    dtype: torch.dtype, precision: str, numpy_dtype: Any, llama_copy: Path
) -> None:
    path = llama_copy / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    checkpoint = open_checkpoint(str(llama_copy))
    name = "model.layers.1.mlp.up_proj.weight"
    values = checkpoint.read(name)
    assert checkpoint.tensors.infos[name].precision == precision
    assert values.dtype == numpy_dtype
    assert not values.flags.owndata
    assert not values.flags.writeable
    wanted = load_file(path)[name].float().numpy()
    np.testing.assert_array_equal(values.astype(np.float32), wanted)


def test_shards(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    whole = directory_of("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(whole)
    sharded = tmp_path / "sharded"
    shutil.copytree(whole, sharded, ignore=shutil.ignore_patterns("model.safetensors"))
    model.save_pretrained(sharded, max_shard_size="200KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    checkpoint = open_checkpoint(str(sharded))
    reference = open_checkpoint(str(whole))
    for name in reference.spec.tensor_shapes():
        np.testing.assert_array_equal(checkpoint.read(name), reference.read(name))

    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    first, last = min(index["weight_map"].values()), max(index["weight_map"].values())
    (sharded / last).rename(sharded / "away")
    with pytest.raises(CheckpointError, match=f"{last}: missing; .* says that it holds"):
        open_checkpoint(str(sharded))
    (sharded / "away").rename(sharded / last)
    index["weight_map"]["model.ghost.weight"] = first
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{first}: tensor 'model.ghost.weight' is missing"):
        open_checkpoint(str(sharded))
    index["weight_map"]["model.ghost.weight"] = "../llama/model.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no file name of this directory"):
        open_checkpoint(str(sharded))
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index.json: no 'weight_map'"):
        open_checkpoint(str(sharded))


def test_harmless_extra_tensors(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(directory_of("llama-tied"), tmp_path / "tied"))

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_tensors(directory, add)
    assert open_checkpoint(str(directory)).spec.tied_embeddings


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.norm.weight"), "tensor 'model.norm.weight' is missing"),
        (
            lambda t: [
                t.pop(f"model.layers.{i}.mlp.{p}_proj.weight") for i in (0, 1) for p in ("up", "down")
            ],
            "tensors .*'model.layers.0.mlp.down_proj.weight'.* and 1 more are missing",
        ),
        (
            lambda t: t.update(
                {"model.layers.0.mlp.upp_proj.weight": t.pop("model.layers.0.mlp.up_proj.weight")}
            ),
            "'model.layers.0.mlp.up_proj.weight' is missing; there is 'model.layers.0.mlp.upp_proj.weight'",
        ),
        (
            lambda t: t.update({"score.weight": torch.ones(2)}),
            "tensor 'score.weight' is unknown to the llama",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(65)}),
            r"tensor 'model.norm.weight' has shape \[65\]; the configuration makes it \[64\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}),
            "tensor 'model.norm.weight' is stored as int8, and no 'quantization_config' says so",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(64).to(torch.float8_e4m3fn)}),
            "tensor 'model.norm.weight' is stored as fp8",
        ),
    ],
)
def test_wrong_tensors_are_named(
    change: Callable[[dict[str, torch.Tensor]], object], named: str, llama_copy: Path
) -> None:
    edit_tensors(llama_copy, change)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(llama_copy))


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.9999])
def test_files_cut_short(keep: float, llama_copy: Path) -> None:
    path = llama_copy / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match=r"model.safetensors: cut short: tensor '.*' ends at byte"):
        open_checkpoint(str(llama_copy))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda data: data[:5], "not a safetensors file: 5 bytes long"),
        (lambda data: data[:100], "cut short: a header of"),
        (lambda data: data + b"\0" * 3, "3 bytes follow the last tensor"),
        (lambda data: b"\xff" * 8 + data[8:], "not a safetensors file: a header of"),
        (lambda data: data[:8] + b"[" + data[9:], "the header is damaged"),
        (lambda data: struct.pack("<Q", 2) + b"[]", "the header is damaged"),
    ],
)
def test_damaged_files(damage: Callable[[bytes], bytes], named: str, llama_copy: Path) -> None:
    path = llama_copy / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"model.safetensors: {named}"):
        open_checkpoint(str(llama_copy))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llamma"}, "config.json: config field 'model_type' is 'llamma'.*'llama'"),
        ({"hidden_size": None}, "config.json: config field 'hidden_size' is missing"),
        (
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "code.Model"}},
            "'model_type' is 'own'.*'auto_map' points to code inside the checkpoint, which is never run",
        ),
        (
            {"quantization_config": {"quant_method": "gtpq"}},
            "'quantization_config': quant_method is 'gtpq', not known here; the nearest supported is 'gptq'",
        ),
    ],
)
def test_wrong_configurations_are_named(changes: dict[str, Any], named: str, llama_copy: Path) -> None:
    edit_json(llama_copy / "config.json", **changes)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(llama_copy))


def test_code_beside_a_known_architecture_is_not_run(llama_copy: Path) -> None:
    edit_json(llama_copy / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    (llama_copy / "modeling_own.py").write_text("raise SystemExit('ran')")
    assert open_checkpoint(str(llama_copy)).spec.family == "llama"
    assert "modeling_own" not in sys.modules


def test_pickles_are_refused(llama_copy: Path) -> None:
    (llama_copy / "model.safetensors").rename(llama_copy / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pickles \(pytorch_model.bin\).*runs whatever code.*save_pretrained"
    ):
        open_checkpoint(str(llama_copy))


def test_weights_under_another_name(llama_copy: Path) -> None:
    (llama_copy / "model.safetensors").rename(llama_copy / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights.safetensors has another name than model.safetensors"):
        open_checkpoint(str(llama_copy))
    (llama_copy / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(str(llama_copy))


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("config.json", "{", "config.json: not readable as JSON"),
        ("config.json", "[]", "config.json: must hold a JSON object"),
        ("tokenizer.json", "{}", "tokenizer.json: not readable as a tokenizer"),
        ("chat_template.jinja", "{% if %}", "syntax error on line 1"),
        (
            "generation_config.json",
            '{"eos_token_id": "x"}',
            "generation_config.json: .*'eos_token_id' must be",
        ),
        ("generation_config.json", '{"temperature": "hot"}', "field 'temperature' must be a number"),
    ],
)
def test_unreadable_files_are_named(file: str, text: str, named: str, llama_copy: Path) -> None:
    (llama_copy / file).write_text(text)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(llama_copy))


def test_missing_tokenizer(llama_copy: Path) -> None:
    (llama_copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json: missing; transformers writes it"):
        open_checkpoint(str(llama_copy))


def test_generation_config(llama_copy: Path) -> None:
    path = llama_copy / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [5, 6], "temperature": 0.6, "top_p": 0.9, "top_k": 20}))
    checkpoint = open_checkpoint(str(llama_copy))
    assert checkpoint.generation_defaults == GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20)
    assert checkpoint.spec.eos_token_ids == checkpoint.tokenizer.eos_token_ids == (5, 6, 1)
    assert checkpoint.spec.bos_token_id == 0
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    assert open_checkpoint(str(llama_copy)).generation_defaults == GenerationDefaults()


@pytest.mark.parametrize("style", ["4", "5"])
def test_multimodal_gemma3(style: str, directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The text model out of a multimodal checkpoint, under the names of either version of transformers."""
    directory = Path(shutil.copytree(directory_of("gemma3"), tmp_path / "gemma3"))
    text = json.loads((directory / "config.json").read_text())
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"model_type": "siglip_vision_model"},
        "eos_token_id": [1, 106],
    }
    (directory / "config.json").write_text(json.dumps(outer))
    inner = "language_model.model." if style == "4" else "model.language_model."
    vision = "vision_tower.x.weight" if style == "4" else "model.vision_tower.x.weight"

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[inner + name.removeprefix("model.")] = tensors.pop(name)
        tensors[vision] = torch.ones(3)

    edit_tensors(directory, rename)
    checkpoint = open_checkpoint(str(directory))
    reference = open_checkpoint(str(directory_of("gemma3")))
    assert checkpoint.spec.tensor_shapes() == reference.spec.tensor_shapes()
    assert checkpoint.config["model_type"] == "gemma3_text"
    assert checkpoint.spec.eos_token_ids == (1, 106)
    for name in reference.spec.tensor_shapes():
        np.testing.assert_array_equal(checkpoint.read(name), reference.read(name))

    edit_tensors(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if name != vision])
    with pytest.raises(CheckpointError, match="no tensor of a text model"):
        open_checkpoint(str(directory))
