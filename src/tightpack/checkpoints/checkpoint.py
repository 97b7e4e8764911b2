"""What a loaded checkpoint offers, whatever the file format behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.tokenizer import Tokenizer


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the tensor or field at fault."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A stored tensor: logical shape, stored precision ("bf16", "fp16", "fp32", "q4_1", ...), bytes on
    disk."""

    shape: tuple[int, ...]
    precision: str
    num_bytes: int


class TensorSource(Protocol):
    """Tensors under Hugging Face's names and orientation, read one at a time from a mapped file."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> NDArray[Any]:
        """float32, float16 or ml_dtypes.bfloat16; a read-only view of the file where it is stored so.
        Block-quantized tensors are dequantized to float32."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The publisher's sampling advice (generation_config.json); None where it gives none."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A validated checkpoint: every tensor of `spec.tensor_shapes()` is there with its shape, and no other.

    config: the Hugging Face config.json, read or (from GGUF) derived; what `convert` writes.
    """

    name: str
    spec: ModelSpec
    tensors: TensorSource
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    generation_defaults: GenerationDefaults = field(default_factory=GenerationDefaults)

    def read(self, name: str) -> NDArray[Any]:
        return self.tensors.read(name)

    @property
    def num_parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.spec.tensor_shapes().values())
