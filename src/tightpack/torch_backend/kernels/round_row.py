"""The rounding of a row to 8 bits, as `input_rounding.round_input` defines it: the end of the row kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.kernels.arithmetic import (
    FP8_LARGEST,
    INT8_LARGEST,
    fp8_codes,
    int8_codes,
    not_finite,
)
from tightpack.torch_backend.quantized_rows import INPUTS_A_FLAG, QuantizedRows

_LARGEST_ROW = 2**16


@triton.jit
def round_row(
    values,
    columns,
    width,
    row,
    codes_ptr,
    scales_ptr,
    flags_ptr,
    saturated_ptr,
    static_scale,
    threshold,
    num_words,
    group: tl.constexpr,
    is_static: tl.constexpr,
    has_outliers: tl.constexpr,
    counts: tl.constexpr,
):
    """Round float32 values [block] of a row, zeros beyond its width, and store codes, scales and flags.

    block: a power of two, at least 128. group: inputs that share a scale, 0 for all.
    counts: whether saturated_ptr, int32, is raised by the numbers beyond the largest code.
    """
    is_int8: tl.constexpr = codes_ptr.dtype.element_ty == tl.int8
    largest: tl.constexpr = INT8_LARGEST if is_int8 else FP8_LARGEST
    block: tl.constexpr = values.shape[0]
    there = columns < width
    if has_outliers:
        large = tl.abs(values) >= threshold
        marks = tl.max(tl.reshape(large.to(tl.int32), (block // 128, 128)), axis=1)
        place = tl.arange(0, block // 128)
        words: tl.constexpr = (block // 128 + 31) // 32
        if words == 1:
            tl.store(flags_ptr + row * num_words, tl.sum(marks << place, axis=0))
        else:
            bits = tl.reshape(marks << (place % 32), (words, 32))
            word = tl.arange(0, words)
            tl.store(flags_ptr + row * num_words + word, tl.sum(bits, axis=1), mask=word < num_words)
        values = tl.where(large, 0.0, values)
    if is_static:
        scaled = tl.div_rn(values, tl.full((block,), 1.0, tl.float32) * static_scale)
        # A number that is none has no integer code; the scale takes it on.
        tl.store(scales_ptr + row, static_scale + not_finite(values, 0))
        if counts:
            over = tl.sum((tl.abs(scaled) > largest).to(tl.int32), axis=0)
            if over > 0:
                tl.atomic_add(saturated_ptr, over, sem="relaxed")
    elif group == 0:
        scale = tl.max(tl.abs(values), axis=0) / largest
        scale = tl.where(scale == 0.0, 1.0, scale) + not_finite(values, 0)
        scaled = tl.div_rn(values, tl.full((block,), 1.0, tl.float32) * scale)
        tl.store(scales_ptr + row, scale)
    else:
        grouped = tl.reshape(values, (block // group, group))
        scale = tl.div_rn(tl.max(tl.abs(grouped), axis=1), tl.full((block // group,), largest, tl.float32))
        scale = tl.where(scale == 0.0, 1.0, scale) + not_finite(grouped, 1)
        every = tl.broadcast_to(scale[:, None], (block // group, group))
        scaled = tl.reshape(tl.div_rn(grouped, every), (block,))
        place = tl.arange(0, block // group)
        tl.store(scales_ptr + row * (width // group) + place, scale, mask=place < width // group)
    codes = int8_codes(scaled) if is_int8 else fp8_codes(scaled)
    tl.store(codes_ptr + row.to(tl.int64) * width + columns, codes, mask=there)


def rounds(width: int, activation: ActivationFormat) -> bool:
    """Whether the row kernels round rows of `width` so: rows of up to 65,536, groups a power of two that
    divides them, and no more than what these fields say."""
    known = ActivationFormat(
        precision=activation.precision,
        scale=activation.scale,
        per=activation.per,
        outlier_threshold=activation.outlier_threshold,
        group_size=activation.group_size,
    )
    if activation != known or width > _LARGEST_ROW:
        return False
    if activation.per == "group" and activation.scale is None:
        group = activation.group_size or 0
        return group > 0 and group & (group - 1) == 0 and width % group == 0
    return True


def _empty_rows(source: Tensor, rows: int, width: int, activation: ActivationFormat) -> QuantizedRows:
    """Room for `rows` rows. source: what is rounded, kept for its outliers."""
    dtype = torch.int8 if activation.precision == "int8" else torch.float8_e4m3fn
    grouped = activation.per == "group" and activation.scale is None
    groups = width // activation.group_size if grouped and activation.group_size else 1
    threshold = activation.outlier_threshold
    words = triton.cdiv(width, 32 * INPUTS_A_FLAG)
    return QuantizedRows(
        codes=source.new_empty((rows, width), dtype=dtype),
        scales=source.new_empty((rows, groups), dtype=torch.float32),
        source=None if threshold is None else source,
        flags=None if threshold is None else source.new_empty((rows, words), dtype=torch.int32),
        threshold=threshold or 0.0,
    )


def keeps_source(activation: ActivationFormat | None) -> bool:
    """Whether a row kernel stores its numbers as they are too: outliers are multiplied in 16 bits."""
    return activation is None or activation.outlier_threshold is not None


def rounding(
    source: Tensor, activation: ActivationFormat | None, saturated: Tensor | None
) -> tuple[QuantizedRows | None, tuple[object, ...], dict[str, object]]:
    """Room for source [rows, width] rounded as `activation` says, None for not at all, and what a row kernel
    passes on to `round_row`: positional from codes_ptr to num_words, and by name.

    Raises ValueError where the row kernels cannot round so: see `rounds`.
    """
    if activation is None:
        unused = {"group": 0, "is_static": False, "has_outliers": False, "counts": False}
        return None, (source, source, source, source, 1.0, 0.0, 1), dict(unused)
    rows, width = source.shape
    if not rounds(width, activation):
        raise ValueError(f"rows of {width} cannot be rounded to {activation}")
    out = _empty_rows(source, rows, width, activation)
    grouped = activation.per == "group" and activation.scale is None
    positional = (
        out.codes,
        out.scales,
        out.scales if out.flags is None else out.flags,
        out.scales if saturated is None else saturated,
        activation.scale or 1.0,
        out.threshold,
        1 if out.flags is None else out.flags.shape[1],
    )
    named: dict[str, object] = {
        "group": activation.group_size if grouped else 0,
        "is_static": activation.scale is not None,
        "has_outliers": out.flags is not None,
        "counts": saturated is not None,
    }
    return out, positional, named


def row_block(width: int) -> tuple[int, int]:
    """Numbers a program holds for a row, and warps for them: 8 to 16 numbers a thread."""
    block = max(128, triton.next_power_of_2(width))
    return block, min(16, max(1, block // 512))
