"""Residual addition, RMSNorm and the rounding of a linear's input, in one pass over the rows.

Apart they read and write the residual stream three times; fused it is read once and written once. Numbers are
rounded where `norm.rms_norm` and the decoder round them: the residual sum and the normalized row to the
stream's type, and only then to 8 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.kernels.arithmetic import narrow
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.round_row import keeps_source, round_row, rounding, row_block
from tightpack.torch_backend.quantized_rows import QuantizedRows


@triton.jit
def _add_norm(
    stream_ptr,
    delta_ptr,
    weight_ptr,
    normed_ptr,
    codes_ptr,
    scales_ptr,
    flags_ptr,
    saturated_ptr,
    static_scale,
    threshold,
    num_words,
    width,
    stream_stride,
    delta_stride,
    eps,
    block: tl.constexpr,
    has_delta: tl.constexpr,
    keeps_normed: tl.constexpr,
    rounds: tl.constexpr,
    group: tl.constexpr,
    is_static: tl.constexpr,
    has_outliers: tl.constexpr,
    counts: tl.constexpr,
):
    dtype: tl.constexpr = stream_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    there = columns < width
    values = tl.load(stream_ptr + row * stream_stride + columns, mask=there, other=0.0).to(tl.float32)
    if has_delta:
        values += tl.load(delta_ptr + row * delta_stride + columns, mask=there, other=0.0).to(tl.float32)
        summed = narrow(values, dtype)
        tl.store(stream_ptr + row * stream_stride + columns, summed, mask=there)
        values = summed.to(tl.float32)
    mean = tl.sum(values * values, axis=0) / width
    weight = tl.load(weight_ptr + columns, mask=there, other=0.0).to(tl.float32)
    normed = narrow(values * tl.rsqrt(mean + eps) * weight, dtype)
    if keeps_normed:
        tl.store(normed_ptr + row * width + columns, normed, mask=there)
    if rounds:
        round_row(
            normed.to(tl.float32),
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


def add_norm(
    stream: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    eps: float,
    activation: ActivationFormat | None,
    context: KernelContext,
    *,
    saturated: Tensor | None = None,
) -> Tensor | QuantizedRows:
    """stream += delta in place, then RMSNorm of it, as a tensor or rounded as `activation` says.

    stream, delta: [rows, width], inputs side by side; weight: [width], of the stream's type or float32.
    """
    rows, width = stream.shape
    block, warps = row_block(width)
    keeps = keeps_source(activation)
    normed = stream.new_empty((rows, width)) if keeps else stream
    out, positional, named = rounding(normed, activation, saturated)
    if rows:
        context.launch(
            _add_norm,
            (rows,),
            stream,
            stream if delta is None else delta,
            weight,
            normed,
            *positional,
            width,
            stream.stride(0),
            0 if delta is None else delta.stride(0),
            eps,
            block=block,
            has_delta=delta is not None,
            keeps_normed=keeps,
            rounds=out is not None,
            **named,
            num_warps=warps,
        )
    return normed if out is None else out
