"""Opening a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tightpack.architectures.config_fields import ConfigError
from tightpack.architectures.registry import model_spec
from tightpack.checkpoints.checkpoint import Checkpoint, CheckpointError
from tightpack.checkpoints.gguf_config import huggingface_config, tensors_of
from tightpack.checkpoints.gguf_file import GgufFile
from tightpack.checkpoints.gguf_tokenizer import gguf_tokenizer
from tightpack.checkpoints.validation import validate_tensors


def open_gguf(path: Path, name: str) -> Checkpoint:
    """Raises CheckpointError naming the file and the metadata key or tensor at fault."""
    file = GgufFile(path)
    config = huggingface_config(file)
    try:
        spec = model_spec(config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tensors = tensors_of(file, config, spec)
    validate_tensors(spec, tensors, path, tensors.stored_name)
    tokenizer = gguf_tokenizer(file)
    spec = replace(spec, bos_token_id=tokenizer.bos_token_id, eos_token_ids=tokenizer.eos_token_ids)
    return Checkpoint(
        name=name,
        spec=spec,
        tensors=tensors,
        tokenizer=tokenizer,
        config=config,
        quantization=tensors.quantization,
    )
