"""Plain round-to-nearest in numpy, to have quantized linears of every kind to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import ml_dtypes
import numpy as np

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.quantized_tensors import linear_names
from tightpack.schemes.quantized import (
    ActivationFormat,
    Fp8Weight,
    IntWeight,
    QuantizedLinear,
)


def rounded(
    weight: np.ndarray,
    bits: Literal[4, 8],
    group_size: int,
    *,
    symmetric: bool,
    scale_dtype: Any = np.float16,
) -> IntWeight:
    """Min-max scales that are exact in scale_dtype."""
    outputs, inputs = weight.shape
    blocks = weight.astype(np.float32).reshape(outputs, inputs // group_size, group_size)
    half = 1 << (bits - 1)
    if symmetric:
        span, low = np.abs(blocks).max(-1), None
        scales = span / (half - 1)
    else:
        low = np.minimum(blocks.min(-1), 0)
        scales = (np.maximum(blocks.max(-1), 0) - low) / (2 * half - 1)
    scales = np.maximum(scales, 1e-4).astype(scale_dtype).astype(np.float32)
    codes = np.nan_to_num(np.round(blocks / scales[..., None]))
    if low is None:
        codes = codes.clip(-half, half - 1).astype(np.int8)
        zeros = None
    else:
        zeros = np.round(-low / scales).clip(0, 2 * half - 1).astype(np.uint8)
        codes = (codes + zeros[..., None]).clip(0, 2 * half - 1).astype(np.uint8)
    return IntWeight(
        codes=codes.reshape(outputs, inputs), scales=scales, zeros=zeros, bits=bits, group_size=group_size
    )


def rounded_fp8(weight: np.ndarray, block: tuple[int, int]) -> Fp8Weight:
    weight = weight.astype(np.float32)
    (outputs, inputs), (rows, columns) = weight.shape, block
    padded = np.pad(weight, ((0, -outputs % rows), (0, -inputs % columns)))
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    scales = (np.abs(blocks).max((1, 3)) / 448).astype(np.float32)
    codes = (blocks / scales[:, None, :, None]).clip(-448, 448).reshape(padded.shape)[:outputs, :inputs]
    return Fp8Weight(codes=codes.astype(ml_dtypes.float8_e4m3fn), scales=scales, block=block)


def quantized(
    checkpoint: Checkpoint,
    make: Callable[[str, np.ndarray], QuantizedLinear | None],
) -> Iterator[tuple[str, QuantizedLinear]]:
    """Every linear but the head, as `make` has it."""
    for name in linear_names(checkpoint.spec):
        linear = make(name, checkpoint.read(f"{name}.weight")) if name != "lm_head" else None
        if linear is not None:
            yield name, linear


INT8_TOKEN = ActivationFormat(precision="int8", steps=255)
FP8_TOKEN = ActivationFormat(precision="fp8")
