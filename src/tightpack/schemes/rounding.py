"""Round-to-nearest without calibration, in numpy: what `quantization=` makes of a weight as it is read.

Codes and scales are those that calibration/'s functions of tensors give, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tightpack.schemes.quantized import Fp8Weight, IntWeight

_FP8_LARGEST = 448.0
_INT8_LARGEST = 127.0
_INT4_HIGHEST = 15.0
_FP16_LEAST = np.float32(2.0**-24)
# Numbers that go through all passes at a time: as float32 they stay in a core's cache.
_BLOCK = 2**17


def int8_rows(weight: NDArray[Any]) -> IntWeight:
    """Symmetric int8, -127 .. 127, with an fp16 scale a row. weight: floating [outputs, inputs], finite.

    Raises ValueError for weights that are not finite or beyond what scales reach, as the others here do.
    """
    outputs, inputs = weight.shape
    codes = np.empty((outputs, inputs), np.int8)
    scales = np.empty((outputs, 1), np.float32)

    def quantize(rows: slice, values: NDArray[np.float32]) -> None:
        scales[rows] = _fp16_scales(np.abs(values).max(1, keepdims=True) / np.float32(_INT8_LARGEST))
        values /= scales[rows]
        codes[rows] = np.clip(np.rint(values, out=values), -_INT8_LARGEST, _INT8_LARGEST, out=values)

    _by_rows(weight, quantize)
    return IntWeight(codes=codes, scales=scales, zeros=None, bits=8, group_size=inputs)


def int4_groups(weight: NDArray[Any], group_size: int) -> IntWeight:
    """Asymmetric int4 with an fp16 scale and a zero-point for each group of neighbouring inputs."""
    outputs, inputs = weight.shape
    if group_size < 1 or inputs % group_size:
        raise ValueError(f"group size {group_size} does not divide the weight's {inputs} inputs")
    groups = inputs // group_size
    codes = np.empty((outputs, inputs), np.uint8)
    scales = np.empty((outputs, groups), np.float32)
    zeros = np.empty((outputs, groups), np.uint8)

    def quantize(rows: slice, values: NDArray[np.float32]) -> None:
        grouped = values.reshape(len(values), groups, group_size)
        low = np.minimum(grouped.min(2), np.float32(0))
        scale = _fp16_scales((np.maximum(grouped.max(2), np.float32(0)) - low) / np.float32(_INT4_HIGHEST))
        zero = np.clip(np.rint(-low / scale), 0, _INT4_HIGHEST)
        grouped /= scale[:, :, None]
        np.rint(grouped, out=grouped)
        grouped += zero[:, :, None]
        scales[rows], zeros[rows] = scale, zero
        codes[rows] = np.clip(values, 0, _INT4_HIGHEST, out=values)

    _by_rows(weight, quantize)
    return IntWeight(codes=codes, scales=scales, zeros=zeros, bits=4, group_size=group_size)


def fp8_rows(weight: NDArray[Any]) -> Fp8Weight:
    """E4M3 with a float32 scale a row: the largest magnitude over 448."""
    outputs, inputs = weight.shape
    codes = np.empty((outputs, inputs), ml_dtypes.float8_e4m3fn)
    scales = np.empty((outputs, 1), np.float32)

    def quantize(rows: slice, values: NDArray[np.float32]) -> None:
        tiny = np.finfo(np.float32).tiny
        scale = np.abs(values).max(1, keepdims=True) / np.float32(_FP8_LARGEST)
        scales[rows] = np.maximum(scale, tiny)
        values /= scales[rows]
        codes[rows] = np.clip(values, -_FP8_LARGEST, _FP8_LARGEST, out=values)

    _by_rows(weight, quantize)
    return Fp8Weight(codes=codes, scales=scales, block=(1, inputs))


def _fp16_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """As they read back from fp16; the least nonzero number in the place of 0."""
    with np.errstate(over="ignore"):
        stored = scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(stored).all():
        raise ValueError(f"a scale of {scales.max():.3g} does not fit in float16: the weights are too large")
    return np.maximum(stored, _FP16_LEAST)


def _by_rows(weight: NDArray[Any], quantize: Callable[[slice, NDArray[np.float32]], None]) -> None:
    """Call `quantize` with some rows at a time, as float32 that it may overwrite."""
    outputs, inputs = weight.shape
    if not weight.size:
        raise ValueError(f"weight must be [outputs, inputs] and not empty, got shape {weight.shape}")
    step = max(1, _BLOCK // inputs)
    for first in range(0, outputs, step):
        rows = slice(first, min(first + step, outputs))
        values = weight[rows].astype(np.float32)
        if not np.isfinite(values).all():
            wrong = ~np.isfinite(weight.astype(np.float32))
            where = tuple(int(index) for index in np.argwhere(wrong)[0])
            raise ValueError(
                f"weight: {int(wrong.sum())} of {wrong.size} values are NaN or infinite, first at {where}"
            )
        quantize(rows, values)
