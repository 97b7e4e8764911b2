"""SiLU or GELU of one half of a row times the other, with the rounding of the down projection's input."""

from __future__ import annotations

from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.kernels.arithmetic import narrow
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.round_row import keeps_source, round_row, rounding, row_block
from tightpack.torch_backend.quantized_rows import QuantizedRows

# GELU in the form with a hyperbolic tangent, as a sigmoid: 0.5 (1 + tanh(z)) = sigmoid(2 z).
_TWICE_ROOT = tl.constexpr(1.5957691216057308)
_CUBIC = tl.constexpr(0.044715)


@triton.jit
def _gated_activation(
    gate_up_ptr,
    product_ptr,
    codes_ptr,
    scales_ptr,
    flags_ptr,
    saturated_ptr,
    static_scale,
    threshold,
    num_words,
    width,
    stride,
    block: tl.constexpr,
    is_gelu: tl.constexpr,
    keeps_product: tl.constexpr,
    rounds: tl.constexpr,
    group: tl.constexpr,
    is_static: tl.constexpr,
    has_outliers: tl.constexpr,
    counts: tl.constexpr,
):
    dtype: tl.constexpr = gate_up_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    there = columns < width
    gate = tl.load(gate_up_ptr + row * stride + columns, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + width + columns, mask=there, other=0.0).to(tl.float32)
    if is_gelu:
        active = gate * tl.sigmoid((gate + gate * gate * gate * _CUBIC) * _TWICE_ROOT)
    else:
        active = gate * tl.sigmoid(gate)
    # Rounded between the two as the decoder's own operations are.
    product = narrow(narrow(active, dtype).to(tl.float32) * up, dtype)
    if keeps_product:
        tl.store(product_ptr + row * width + columns, product, mask=there)
    if rounds:
        round_row(
            product.to(tl.float32),
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


def gated_activation(
    gate_up: Tensor,
    kind: Literal["silu", "gelu_tanh"],
    activation: ActivationFormat | None,
    context: KernelContext,
    *,
    saturated: Tensor | None = None,
) -> Tensor | QuantizedRows:
    """gate_up: [rows, 2 * width], gates first. Returns [rows, width], rounded as `activation` says."""
    rows, width = len(gate_up), gate_up.shape[1] // 2
    block, warps = row_block(width)
    keeps = keeps_source(activation)
    # Where it is not kept it only tells the device, and the shape of what is.
    product = gate_up.new_empty((rows, width)) if keeps else gate_up[:, :width]
    out, positional, named = rounding(product, activation, saturated)
    if rows:
        context.launch(
            _gated_activation,
            (rows,),
            gate_up,
            product,
            *positional,
            width,
            gate_up.stride(0),
            block=block,
            is_gelu=kind == "gelu_tanh",
            keeps_product=keeps,
            rounds=out is not None,
            **named,
            num_warps=warps,
        )
    return product if out is None else out
