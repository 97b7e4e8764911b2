"""A checkpoint of random weights for a ModelSpec: a model's shape to time, without its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import Checkpoint, TensorInfo

# Numbers drawn once and cut to every tensor's length: eight billion would take minutes.
_DRAWN = 2**22


def random_checkpoint(spec: ModelSpec, tokenizer: Any = None, *, seed: int = 0) -> Checkpoint:
    """Bfloat16 weights whose activations stay of one size through the layers; norms are near one.

    `on_load.quantize_on_load` gives its quantized forms. tokenizer: for what reads text.
    """
    drawn = np.random.default_rng(seed).standard_normal(_DRAWN, dtype=np.float32)
    tensors = _RandomTensors(spec.tensor_shapes(), drawn)
    return Checkpoint(
        name=f"random {spec.family}", spec=spec, tensors=tensors, tokenizer=tokenizer, config={}
    )


@dataclass(frozen=True, slots=True)
class _RandomTensors:
    """A TensorSource that makes a tensor as it is read; the same each time."""

    shapes: Mapping[str, tuple[int, ...]]
    drawn: NDArray[np.float32]

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(shape, "bf16", 2 * int(np.prod(shape))) for name, shape in self.shapes.items()
        }

    def read(self, name: str) -> NDArray[Any]:
        shape = self.shapes[name]
        # Another part of the drawn numbers for each tensor.
        start = sum(name.encode()) * 7919 % len(self.drawn)
        values = np.resize(np.roll(self.drawn, -start), shape)
        scale = 0.02 if len(shape) == 1 else shape[-1] ** -0.5
        values = values * np.float32(scale) + np.float32(len(shape) == 1)
        return values.astype(ml_dtypes.bfloat16)
