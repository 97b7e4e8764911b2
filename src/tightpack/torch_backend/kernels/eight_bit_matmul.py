"""y = (codes of x) (codes of W)^T, scaled by row and by output: W8A8 in int8 or E4M3, and LLM.int8.

Integers are summed in int32, exactly; 8-bit floats in float32. LLM.int8's outliers (Dettmers et al. 2022)
are entries of x with a code of 0: they meet the weights in the activations' own type, in a second pass over
only those 128 inputs that hold an outlier of one of the tile's rows. No host looks at which: the pass is part
of the same launch, and of a recorded graph.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tightpack.torch_backend.kernels.arithmetic import dot, narrow
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.output_tiles import store_tile, sum_of_splits, tile_origin
from tightpack.torch_backend.kernels.tiles import Tile
from tightpack.torch_backend.quantized_rows import INPUTS_A_FLAG, QuantizedRows


@triton.jit
def _either(left, right):
    return left | right


@triton.jit
def _outlier_product(
    source_ptr,
    flags_ptr,
    codes_ptr,
    safe,
    rows,
    num_rows,
    inputs,
    source_stride,
    threshold,
    num_words,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
):
    """float32 [block_n, block_m]: codes of W times the entries of x that are outliers."""
    dtype: tl.constexpr = source_ptr.dtype.element_ty
    k = tl.arange(0, 128)
    total = tl.zeros((block_n, block_m), tl.float32)
    for word in range(num_words):
        flags = tl.load(flags_ptr + rows * num_words + word, mask=rows < num_rows, other=0)
        marked = tl.reduce(flags, 0, _either)
        for bit in range(32):
            if (marked >> bit) & 1 != 0:
                columns = (word * 32 + bit) * 128 + k
                there = (columns < inputs)[:, None] & (rows < num_rows)[None, :]
                x = tl.load(
                    source_ptr + rows.to(tl.int64)[None, :] * source_stride + columns[:, None],
                    mask=there,
                    other=0.0,
                ).to(tl.float32)
                x = tl.where(tl.abs(x) >= threshold, x, 0.0)
                weight = tl.load(
                    codes_ptr + safe.to(tl.int64)[:, None] * inputs + columns[None, :],
                    mask=(columns < inputs)[None, :],
                    other=0,
                ).to(tl.float32)
                total = dot(narrow(weight, dtype), narrow(x, dtype), total)
    return total


@triton.jit
def _eight_bit_matmul(
    x_ptr,
    x_scales_ptr,
    codes_ptr,
    scales_ptr,
    bias_ptr,
    y_ptr,
    source_ptr,
    flags_ptr,
    partials_ptr,
    counters_ptr,
    num_rows,
    num_outputs,
    inputs,
    source_stride,
    threshold,
    num_words,
    steps_a_split,
    has_bias: tl.constexpr,
    has_outliers: tl.constexpr,
    even_inputs: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
    splits: tl.constexpr,
    stages: tl.constexpr,
):
    sums: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    tiles_n = tl.cdiv(num_outputs, block_n)
    tiles_m = tl.cdiv(num_rows, block_m)
    steps = tl.cdiv(inputs, block_k)
    for item in range(tl.program_id(0), tiles_n * tiles_m * splits, tl.num_programs(0)):
        split = item % splits
        tile = item // splits
        first_output, first_row = tile_origin(tile, tiles_n, tiles_m, block_n, block_m)
        outputs = first_output + tl.arange(0, block_n)
        rows = first_row + tl.arange(0, block_m)
        safe = tl.minimum(outputs, num_outputs - 1)
        k = tl.arange(0, block_k)
        codes = codes_ptr + safe.to(tl.int64)[:, None] * inputs + k[None, :]
        x_at = x_ptr + tl.minimum(rows, num_rows - 1).to(tl.int64)[None, :] * inputs + k[:, None]
        product = tl.zeros((block_n, block_m), sums)
        for step in tl.range(
            split * steps_a_split, tl.minimum(steps, (split + 1) * steps_a_split), num_stages=stages
        ):
            start = step * block_k
            if even_inputs:
                weight = tl.load(codes + start)
                x = tl.load(x_at + start)
            else:
                weight = tl.load(codes + start, mask=(start + k < inputs)[None, :], other=0.0)
                x = tl.load(x_at + start, mask=(start + k < inputs)[:, None], other=0.0)
            product = dot(weight, x, product)
        last = True
        if splits > 1:
            last, product = sum_of_splits(product, partials_ptr, counters_ptr, tile, split, splits)
        if last:
            x_scale = tl.load(x_scales_ptr + rows, mask=rows < num_rows, other=0.0)
            total = product.to(tl.float32) * x_scale[None, :]
            if has_outliers:
                total += _outlier_product(
                    source_ptr,
                    flags_ptr,
                    codes_ptr,
                    safe,
                    rows,
                    num_rows,
                    inputs,
                    source_stride,
                    threshold,
                    num_words,
                    block_n,
                    block_m,
                )
            total *= tl.load(scales_ptr + safe)[:, None]
            store_tile(total, y_ptr, bias_ptr, outputs, rows, num_outputs, num_rows, has_bias)


def eight_bit_matmul(
    x: QuantizedRows, codes: Tensor, scales: Tensor, bias: Tensor | None, y: Tensor, context: KernelContext
) -> Tensor:
    """x: int8 or E4M3 with a scale a row. codes: of the same type, [outputs, inputs]; scales: float32
    [outputs]; bias: [outputs] of any float dtype; y: [rows, outputs], written and returned."""
    if len(y) == 0:
        return y

    def run(tile: Tile) -> None:
        launch(x, codes, scales, bias, y, tile, context)

    kernel = "eight_bit_matmul" if x.flags is None else "outlier_matmul"
    run(context.choose(kernel, (len(codes), codes.shape[1]), len(y), run))
    return y


def launch(
    x: QuantizedRows,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    y: Tensor,
    tile: Tile,
    context: KernelContext,
) -> None:
    """One run with a given tile."""
    num_outputs, inputs = codes.shape
    division = context.divide(tile, num_outputs, len(y), triton.cdiv(inputs, tile.inputs))
    source, flags = x.source, x.flags
    assert (flags is None) == (source is None)
    context.launch(
        _eight_bit_matmul,
        division.grid,
        x.codes,
        x.scales,
        codes,
        scales,
        y if bias is None else bias,
        y,
        y if source is None else source,
        division.partials if flags is None else flags,
        division.partials.view(x.sums_dtype),
        division.counters,
        len(y),
        num_outputs,
        inputs,
        0 if source is None else source.stride(0),
        x.threshold,
        triton.cdiv(inputs, 32 * INPUTS_A_FLAG),
        division.steps_a_split,
        has_bias=bias is not None,
        has_outliers=flags is not None,
        even_inputs=inputs % tile.inputs == 0,
        block_n=tile.outputs,
        block_m=tile.rows,
        block_k=tile.inputs,
        splits=division.splits,
        stages=tile.stages,
        num_warps=tile.warps,
    )
