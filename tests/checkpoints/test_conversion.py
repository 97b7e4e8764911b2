"""What convert writes, read back by transformers and by ourselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tightpack.checkpoints.checkpoint import CheckpointError, TensorInfo
from tightpack.checkpoints.conversion import convert_checkpoint
from tightpack.checkpoints.open import open_checkpoint

FAMILIES = ["llama", "llama-tied", "llama-biases", "mistral", "qwen2", "qwen3", "gemma3"]


@pytest.mark.parametrize("source", ["directory", "gguf"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_logits_of_the_original(
    family: str,
    source: str,
    directory_of: Callable[[str], Path],
    gguf_of: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    original = directory_of(family)
    opened = original if source == "directory" else gguf_of(family).write(tmp_path / "model.gguf")
    convert_checkpoint(open_checkpoint(str(opened)), tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    reference = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.bfloat16)
    tokens = torch.arange(40)[None] * 7 % 320
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, rtol=0, atol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(original)
    text = "the cat, naïve </s> 😀"
    assert tokenizer.encode(text) == theirs.encode(text)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s><|user|>hi</s>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert model.generation_config.eos_token_id == 1


def test_shards(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(directory_of("qwen3")))
    told: list[int] = []
    convert_checkpoint(checkpoint, tmp_path / "out", shard_bytes=60_000, written=told.append)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert sum(told) == 2 * checkpoint.num_parameters
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * checkpoint.num_parameters
    again = open_checkpoint(str(tmp_path / "out"))
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name in checkpoint.spec.tensor_shapes():
        wanted = torch.tensor(checkpoint.read(name)).bfloat16().float().numpy()
        np.testing.assert_array_equal(again.read(name).astype(np.float32), wanted)


def test_what_exists_is_not_touched(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(directory_of("llama")))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="taken: exists and is not an empty directory"):
        convert_checkpoint(checkpoint, taken)
    with pytest.raises(CheckpointError, match="exists and is not an empty directory"):
        convert_checkpoint(checkpoint, taken / "notes.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "notes.txt"]
    (taken / "notes.txt").unlink()
    convert_checkpoint(checkpoint, taken)
    assert open_checkpoint(str(taken)).spec == checkpoint.spec


def test_nothing_half_written_remains(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(directory_of("llama")))

    class Failing:
        infos: dict[str, TensorInfo] = {}  # noqa: RUF012

        def read(self, name: str) -> Any:
            if "layers.1" in name:
                raise OSError("the disk is gone")
            return checkpoint.read(name)

    with pytest.raises(OSError, match="the disk is gone"):
        convert_checkpoint(replace(checkpoint, tensors=Failing()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_advice_and_templates_are_kept(llama_copy: Path, tmp_path: Path) -> None:
    advice = {"temperature": 0.6, "top_k": 20, "eos_token_id": [5, 6], "repetition_penalty": 1.1}
    (llama_copy / "generation_config.json").write_text(json.dumps(advice))
    (llama_copy / "additional_chat_templates").mkdir()
    (llama_copy / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    config = json.loads((llama_copy / "config.json").read_text())
    (llama_copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "code.C"}}))
    checkpoint = open_checkpoint(str(llama_copy))
    convert_checkpoint(checkpoint, tmp_path / "out")
    again = open_checkpoint(str(tmp_path / "out"))
    assert again.generation_defaults == checkpoint.generation_defaults
    assert again.spec.eos_token_ids == (5, 6, 1)
    assert "auto_map" not in again.config
    assert again.tokenizer.render_chat([], tools=[{"name": "f"}]) == "tools"
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.6


def test_multimodal_gemma3_becomes_a_text_model(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    original = directory_of("gemma3")
    directory = Path(shutil.copytree(original, tmp_path / "multimodal"))
    text = json.loads((original / "config.json").read_text())
    outer = {"model_type": "gemma3", "text_config": text, "dtype": "float32", "eos_token_id": [1, 106]}
    (directory / "config.json").write_text(json.dumps(outer))
    tensors = load_file(original / "model.safetensors")
    save_file({f"language_model.{k}": v for k, v in tensors.items()}, directory / "model.safetensors")
    convert_checkpoint(open_checkpoint(str(directory)), tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "Gemma3ForCausalLM"
    reference = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.bfloat16)
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, rtol=0, atol=0)


def test_the_bundled_model_answers(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("smollm2-135m")
    convert_checkpoint(checkpoint, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    assert tokens["input_ids"][0].tolist() == checkpoint.tokenizer.encode("The capital of France is")
    with torch.inference_mode():
        logits = model(**tokens).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"
    assert logits.softmax(-1).max() > 0.3
