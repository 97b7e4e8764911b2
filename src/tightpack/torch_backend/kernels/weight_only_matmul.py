"""y = x W^T for 8-bit W, int8 or E4M3, with scales by row or by group, and activations in 16 bits.

Orientation, splits and persistence as in `int4_matmul`. Codes of 8 bits are exact in bfloat16 and float16;
each group's sum, or each row's, is scaled in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tightpack.torch_backend.kernels.arithmetic import dot, narrow
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.output_tiles import store_tile, sum_of_splits, tile_origin
from tightpack.torch_backend.kernels.tiles import Tile
from tightpack.torch_backend.packed_weights import Packed8


@triton.jit
def _weight_only_matmul(
    x_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    y_ptr,
    partials_ptr,
    counters_ptr,
    num_rows,
    num_outputs,
    inputs,
    x_stride,
    steps_a_split,
    group: tl.constexpr,
    has_zeros: tl.constexpr,
    has_bias: tl.constexpr,
    even_inputs: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
    splits: tl.constexpr,
    stages: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    tiles_n = tl.cdiv(num_outputs, block_n)
    tiles_m = tl.cdiv(num_rows, block_m)
    steps = tl.cdiv(inputs, block_k)
    for item in range(tl.program_id(0), tiles_n * tiles_m * splits, tl.num_programs(0)):
        split = item % splits
        tile = item // splits
        first_output, first_row = tile_origin(tile, tiles_n, tiles_m, block_n, block_m)
        outputs = first_output + tl.arange(0, block_n)
        rows = first_row + tl.arange(0, block_m)
        # Beyond the last output: its own row again, which is not stored.
        safe = tl.minimum(outputs, num_outputs - 1)
        k = tl.arange(0, block_k)
        codes = codes_ptr + safe.to(tl.int64)[:, None] * inputs + k[None, :]
        x_at = x_ptr + rows.to(tl.int64)[None, :] * x_stride + k[:, None]
        total = tl.zeros((block_n, block_m), tl.float32)
        for step in tl.range(
            split * steps_a_split, tl.minimum(steps, (split + 1) * steps_a_split), num_stages=stages
        ):
            start = step * block_k
            there = (rows < num_rows)[None, :]
            if even_inputs:
                weight = tl.load(codes + start)
            else:
                there = there & (start + k < inputs)[:, None]
                weight = tl.load(codes + start, mask=(start + k < inputs)[None, :], other=0.0)
            x = tl.load(x_at + start, mask=there, other=0.0)
            which = 0 if group == 0 else start // group
            exact = weight.to(tl.float32)
            if has_zeros:
                exact -= tl.load(zeros_ptr + which * num_outputs + safe).to(tl.float32)[:, None]
            if group == 0:
                total = dot(narrow(exact, dtype), x, total)
            else:
                part = dot(narrow(exact, dtype), x, tl.zeros((block_n, block_m), tl.float32))
                total += part * tl.load(scales_ptr + which * num_outputs + safe).to(tl.float32)[:, None]
        last = True
        if splits > 1:
            last, total = sum_of_splits(total, partials_ptr, counters_ptr, tile, split, splits)
        if last:
            if group == 0:
                total *= tl.load(scales_ptr + safe).to(tl.float32)[:, None]
            store_tile(total, y_ptr, bias_ptr, outputs, rows, num_outputs, num_rows, has_bias)


def weight_only_matmul(x: Tensor, weight: Packed8, bias: Tensor | None, context: KernelContext) -> Tensor:
    """x: bfloat16 or float16 [rows, inputs], inputs side by side; returns [rows, outputs] of x's dtype."""
    y = x.new_empty((len(x), weight.outputs))
    if len(x) == 0:
        return y

    def run(tile: Tile) -> None:
        launch(x, weight, bias, y, tile, context)

    run(context.choose("weight_only_matmul", (weight.outputs, weight.inputs), len(x), run))
    return y


def launch(
    x: Tensor, weight: Packed8, bias: Tensor | None, y: Tensor, tile: Tile, context: KernelContext
) -> None:
    """One run with a given tile. y: [rows, outputs]."""
    step = min(tile.inputs, weight.group) if weight.group else tile.inputs
    division = context.divide(tile, weight.outputs, len(x), triton.cdiv(weight.inputs, step))
    context.launch(
        _weight_only_matmul,
        division.grid,
        x,
        weight.codes,
        weight.scales,
        weight.scales if weight.zeros is None else weight.zeros,
        y if bias is None else bias,
        y,
        division.partials,
        division.counters,
        len(x),
        weight.outputs,
        weight.inputs,
        x.stride(0),
        division.steps_a_split,
        group=weight.group,
        has_zeros=weight.zeros is not None,
        has_bias=bias is not None,
        even_inputs=weight.inputs % step == 0,
        block_n=tile.outputs,
        block_m=tile.rows,
        block_k=step,
        splits=division.splits,
        stages=tile.stages,
        num_warps=tile.warps,
    )
