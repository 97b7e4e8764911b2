"""What a checkpoint directory holds beside its weights, for transformers; and writing it whole or not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tightpack.checkpoints.checkpoint import Checkpoint, CheckpointError
from tightpack.checkpoints.tokenizer import Tokenizer

# Fields that would be untrue, or point to code, in a converted configuration.
_DROPPED = (
    "auto_map",
    "quantization_config",
    "compression_config",
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
)


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A directory to write into, renamed to `directory` at the end: one that exists is whole.

    It lies beside `directory` and is removed on any exception. Raises CheckpointError when `directory` exists
    and is not empty.
    """
    directory = directory.expanduser().absolute()
    refuse_occupied(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_occupied(directory: Path) -> None:
    """Raise CheckpointError when something is there already that writing would mix with."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory}: exists and is not an empty directory; nothing was written")


def write_model_files(
    directory: Path,
    checkpoint: Checkpoint,
    *,
    dtype: str,
    quantization_config: Mapping[str, Any] | None = None,
) -> None:
    """config.json, generation_config.json, tokenizer and chat template.

    dtype: as transformers spells that of the unquantized tensors ("bfloat16").
    """
    config = _config(checkpoint.config, dtype)
    if quantization_config is not None:
        config["quantization_config"] = dict(quantization_config)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", _generation_config(checkpoint))
    _write_tokenizer(directory, checkpoint.tokenizer, checkpoint.spec.max_position_embeddings)


def _config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    # transformers 5 still reads `torch_dtype`; 4 does not read `dtype`.
    kept = {name: value for name, value in config.items() if name not in _DROPPED}
    return {**kept, "torch_dtype": dtype}


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    advice = checkpoint.generation_defaults
    given = {
        "temperature": advice.temperature,
        "top_p": advice.top_p,
        "top_k": advice.top_k,
        "repetition_penalty": advice.repetition_penalty,
    }
    config: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if config.keys() & {"temperature", "top_p", "top_k"}:
        config["do_sample"] = True
    if checkpoint.spec.bos_token_id is not None:
        config["bos_token_id"] = checkpoint.spec.bos_token_id
    ends = checkpoint.spec.eos_token_ids
    if ends:
        config["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    return config


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, length: int) -> None:
    (directory / "tokenizer.json").write_text(tokenizer.backend.to_str(pretty=True), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
        **tokenizer.special_tokens,
    }
    write_json(directory / "tokenizer_config.json", config)
    if tokenizer.chat_template is None:
        return
    default = tokenizer.chat_template.source
    (directory / "chat_template.jinja").write_text(default, encoding="utf-8")
    others = {name: source for name, source in tokenizer.chat_template.sources.items() if source != default}
    if others:
        (directory / "additional_chat_templates").mkdir()
    for name, source in others.items():
        (directory / "additional_chat_templates" / f"{Path(name).name}.jinja").write_text(
            source, encoding="utf-8"
        )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
