"""A matrix to 8-bit rows: the input of a linear that no other kernel prepares."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.round_row import round_row, rounding, row_block
from tightpack.torch_backend.quantized_rows import QuantizedRows


@triton.jit
def _quantize_rows(
    x_ptr,
    codes_ptr,
    scales_ptr,
    flags_ptr,
    saturated_ptr,
    static_scale,
    threshold,
    num_words,
    width,
    x_stride,
    block: tl.constexpr,
    group: tl.constexpr,
    is_static: tl.constexpr,
    has_outliers: tl.constexpr,
    counts: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.arange(0, block)
    values = tl.load(x_ptr + row.to(tl.int64) * x_stride + columns, mask=columns < width, other=0.0)
    round_row(
        values.to(tl.float32),
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
        group,
        is_static,
        has_outliers,
        counts,
    )


def quantize_rows(
    x: Tensor, activation: ActivationFormat, context: KernelContext, *, saturated: Tensor | None = None
) -> QuantizedRows:
    """x: [rows, inputs] of any float type, inputs side by side. saturated: int32 [1], raised by the numbers
    beyond a static scale's largest code."""
    rows, width = x.shape
    out, positional, named = rounding(x, activation, saturated)
    assert out is not None
    block, warps = row_block(width)
    if rows:
        context.launch(
            _quantize_rows, (rows,), x, *positional, width, x.stride(0), block=block, **named, num_warps=warps
        )
    return out
