"""A checkpoint of random weights in memory, of a model's shapes and any scheme: for timing, not for answers.

Layers share their arrays, so that a model of 8 B parameters takes one layer's memory on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tightpack.architectures.model_spec import LayerSpec, ModelSpec, RotarySpec
from tightpack.checkpoints.checkpoint import Checkpoint, TensorInfo
from tightpack.schemes.quantized import ActivationFormat, DenseWeight, Fp8Weight, IntWeight, QuantizedLinear

Scheme = Literal["bf16", "int4", "fp8", "int8"]


def llama_8b(layers: int = 32) -> ModelSpec:
    """Llama 3.1 8B's shapes."""
    return _llama(layers, hidden=4096, inner=14336, heads=32, kv_heads=8, width=128, vocabulary=128256)


def tiny_llama() -> ModelSpec:
    """Shapes that a test runs on a CPU."""
    return _llama(2, hidden=128, inner=256, heads=4, kv_heads=2, width=32, vocabulary=128)


def _llama(
    layers: int, *, hidden: int, inner: int, heads: int, kv_heads: int, width: int, vocabulary: int
) -> ModelSpec:
    rotary = RotarySpec(tuple(5e5 ** (-2 * i / width) for i in range(width // 2)))
    return ModelSpec(
        family="llama",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width,
        layers=(LayerSpec(rotary),) * layers,
        norm_eps=1e-5,
        attention_scale=width**-0.5,
        max_position_embeddings=131072,
    )


class RandomTensors:
    """A `TensorSource` and `LinearSource`. The embedding and the head are bf16, as checkpoints have them."""

    def __init__(self, spec: ModelSpec, scheme: Scheme) -> None:
        self._shapes = spec.tensor_shapes()
        self._scheme = scheme
        self._linear = cache(self._make_linear)
        self._dense = cache(_dense)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(shape, "bf16", 2 * int(np.prod(shape))) for name, shape in self._shapes.items()
        }

    def read(self, name: str) -> NDArray[Any]:
        shape = self._shapes[name]
        return np.ones(shape, ml_dtypes.bfloat16) if len(shape) == 1 else self._dense(shape)

    def read_linear(self, name: str) -> QuantizedLinear:
        outputs, inputs = self._shapes[f"{name}.weight"]
        return self._linear((outputs, inputs), "bf16" if name == "lm_head" else self._scheme)

    def _make_linear(self, shape: tuple[int, int], scheme: Scheme) -> QuantizedLinear:
        if scheme == "bf16":
            return QuantizedLinear(DenseWeight(self._dense(shape)))
        rng = np.random.default_rng(0)
        outputs, inputs = shape
        # A unit input gives outputs of about unit size.
        size = inputs**-0.5
        if scheme == "fp8":
            values = rng.standard_normal(shape, dtype=np.float32)
            codes = (values * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
            scales = np.full((outputs, 1), size / 100, np.float32)
            return QuantizedLinear(
                Fp8Weight(codes=codes, scales=scales, block=(1, inputs)), ActivationFormat(precision="fp8")
            )
        bits, group = (4, 128) if scheme == "int4" else (8, inputs)
        half = 2 ** (bits - 1)
        weight = IntWeight(
            codes=rng.integers(-half, half, shape, dtype=np.int8),
            scales=np.full((outputs, -(-inputs // group)), np.float16(1.7 * size / half), np.float32),
            zeros=None,
            bits=4 if bits == 4 else 8,
            group_size=group,
        )
        return QuantizedLinear(weight, None if scheme == "int4" else ActivationFormat(precision="int8"))


def _dense(shape: tuple[int, int]) -> NDArray[Any]:
    values = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    return (values * shape[1] ** -0.5).astype(ml_dtypes.bfloat16)


def random_checkpoint(spec: ModelSpec, scheme: Scheme) -> Checkpoint:
    return Checkpoint(
        name=f"random {spec.family} in {scheme}",
        spec=spec,
        tensors=RandomTensors(spec, scheme),
        tokenizer=None,  # type: ignore[arg-type]  # nothing reads text
        config={},
    )
