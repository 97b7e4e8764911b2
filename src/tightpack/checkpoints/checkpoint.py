"""What a loaded checkpoint offers, whatever the file format behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.tokenizer import Tokenizer
from tightpack.schemes.part import Part, cut
from tightpack.schemes.quantized import DenseWeight, KVCacheFormat, QuantizedLinear


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
        Quantized tensors are dequantized to float32."""


@runtime_checkable
class LinearSource(Protocol):
    """What a TensorSource of quantized linears offers as well."""

    def read_linear(self, name: str) -> QuantizedLinear:
        """The linear called `name` (without ".weight"), as stored.

        Raises CheckpointError naming the tensor at fault."""


@runtime_checkable
class PartSource(Protocol):
    """What a TensorSource offers as well that can read a part of a linear without the rest."""

    def grain(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of which a cut is best a multiple, so that it divides no group and no word."""

    def read_part(self, name: str, part: Part) -> QuantizedLinear:
        """As read_linear, of the part alone. Any cut is allowed."""


@runtime_checkable
class BlockSource(Protocol):
    """What a TensorSource of GGUF tensors offers as well."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...

    def read_blocks(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes, uint8 [rows, bytes a row]; a view of the file where rows are in its order."""


@runtime_checkable
class MappedSource(Protocol):
    """What a TensorSource over mapped files offers as well."""

    def release_pages(self) -> None:
        """Give back the memory of what has been read; reading it again takes it from the file again."""


@dataclass(frozen=True, slots=True)
class QuantizationInfo:
    """How a checkpoint is quantized.

    method: as users name it: "awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes" or "gguf".
    linears: each quantized linear's name to its scheme for people: "int4, group 64, asymmetric".
    """

    method: str
    linears: Mapping[str, str]


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
    quantization: None where every linear is in floating point of 16 or 32 bits.
    kv_cache_format: with the scales that were calibrated; None where the checkpoint states none.
    """

    name: str
    spec: ModelSpec
    tensors: TensorSource
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    generation_defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    quantization: QuantizationInfo | None = None
    kv_cache_format: KVCacheFormat | None = None

    def read(self, name: str) -> NDArray[Any]:
        """A tensor of `spec.tensor_shapes()`; a quantized one dequantized to float32."""
        return self.tensors.read(name)

    def read_linear(self, name: str) -> QuantizedLinear:
        """The linear `name` ("model.layers.3.self_attn.q_proj"), as stored; a tied head is the embedding."""
        name = self._stored_as(name)
        if isinstance(self.tensors, LinearSource):
            return self.tensors.read_linear(name)
        return QuantizedLinear(DenseWeight(self.read(f"{name}.weight")))

    def grain(self, name: str) -> tuple[int, int]:
        """See PartSource."""
        return self.tensors.grain(self._stored_as(name)) if isinstance(self.tensors, PartSource) else (1, 1)

    def read_part(self, name: str, part: Part) -> QuantizedLinear:
        """As read_linear, of some outputs or inputs; from the file no more than that where it can be."""
        name = self._stored_as(name)
        if isinstance(self.tensors, PartSource):
            return self.tensors.read_part(name, part)
        return cut(self.read_linear(name), part)

    def release_pages(self) -> None:
        """See MappedSource. Call it when weights are loaded: a mapped file would be counted as well."""
        if isinstance(self.tensors, MappedSource):
            self.tensors.release_pages()

    def _stored_as(self, linear: str) -> str:
        return "model.embed_tokens" if linear == "lm_head" and self.spec.tied_embeddings else linear

    @property
    def num_parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.spec.tensor_shapes().values())

    @property
    def num_active_parameters(self) -> int:
        """Parameters that a token meets: all but the experts that it does not take."""
        return self.num_parameters - self.spec.num_idle_parameters
