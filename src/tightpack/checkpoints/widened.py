"""A quantized checkpoint in bfloat16 again: what its rounded weights are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import ml_dtypes
from numpy.typing import NDArray

from tightpack.checkpoints.checkpoint import Checkpoint, TensorInfo

_BYTES = 2


def widened(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with every tensor dequantized to bfloat16 as it is read: what `convert_checkpoint` would
    write. One that is not quantized is returned as it is."""
    if checkpoint.quantization is None:
        return checkpoint
    return replace(checkpoint, tensors=_Widened(checkpoint), quantization=None)


@dataclass(frozen=True, slots=True)
class _Widened:
    """A source of dense tensors; without `read_linear`, so that nobody finds codes in it."""

    original: Checkpoint

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(shape, "bf16", prod(shape) * _BYTES)
            for name, shape in self.original.spec.tensor_shapes().items()
        }

    def read(self, name: str) -> NDArray[Any]:
        return self.original.read(name).astype(ml_dtypes.bfloat16)

    def release_pages(self) -> None:
        self.original.release_pages()
