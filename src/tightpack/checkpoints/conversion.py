"""Any checkpoint to a bf16 Hugging Face directory that transformers loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.model_files import refuse_occupied, whole_directory, write_model_files
from tightpack.checkpoints.safetensors_writer import SHARD_BYTES, write_bf16

__all__ = ["convert_checkpoint", "refuse_occupied"]


def convert_checkpoint(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write config.json, safetensors, tokenizer, chat template and generation_config.json into `directory`.

    Quantized tensors are dequantized. A directory that exists is whole. Raises CheckpointError when
    `directory` exists and is not empty.
    """
    with whole_directory(directory) as partial:
        shapes = checkpoint.spec.tensor_shapes()
        write_bf16(partial, shapes, checkpoint.read, shard_bytes=shard_bytes, written=written)
        write_model_files(partial, checkpoint, dtype="bfloat16")
