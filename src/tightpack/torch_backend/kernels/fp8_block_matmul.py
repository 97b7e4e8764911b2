"""y = x W^T with E4M3 weights in blocks of 128 x 128 and activations in groups of 128 (DeepSeek-V3, 2024).

Each step of 128 inputs is one tensor-core sum; it is scaled and added in float32, which also bounds the
shorter accumulators of Hopper's 8-bit products.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tightpack.torch_backend.kernels.arithmetic import dot
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.output_tiles import store_tile, sum_of_splits, tile_origin
from tightpack.torch_backend.kernels.tiles import Tile
from tightpack.torch_backend.quantized_rows import QuantizedRows

BLOCK = 128


@triton.jit
def _fp8_block_matmul(
    x_ptr,
    x_scales_ptr,
    codes_ptr,
    scales_ptr,
    bias_ptr,
    y_ptr,
    partials_ptr,
    counters_ptr,
    num_rows,
    num_outputs,
    inputs,
    steps_a_split,
    has_bias: tl.constexpr,
    even_inputs: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    splits: tl.constexpr,
    stages: tl.constexpr,
):
    tiles_n = tl.cdiv(num_outputs, block_n)
    tiles_m = tl.cdiv(num_rows, block_m)
    steps = tl.cdiv(inputs, 128)
    for item in range(tl.program_id(0), tiles_n * tiles_m * splits, tl.num_programs(0)):
        split = item % splits
        tile = item // splits
        first_output, first_row = tile_origin(tile, tiles_n, tiles_m, block_n, block_m)
        outputs = first_output + tl.arange(0, block_n)
        rows = first_row + tl.arange(0, block_m)
        safe = tl.minimum(outputs, num_outputs - 1)
        safe_rows = tl.minimum(rows, num_rows - 1)
        k = tl.arange(0, 128)
        codes = codes_ptr + safe.to(tl.int64)[:, None] * inputs + k[None, :]
        x_at = x_ptr + safe_rows.to(tl.int64)[None, :] * inputs + k[:, None]
        total = tl.zeros((block_n, block_m), tl.float32)
        for step in tl.range(
            split * steps_a_split, tl.minimum(steps, (split + 1) * steps_a_split), num_stages=stages
        ):
            start = step * 128
            # A tile of 64 or 128 outputs lies within one block of them.
            scale = tl.load(scales_ptr + first_output // 128 * steps + step)
            x_scale = tl.load(x_scales_ptr + safe_rows * steps + step)
            if even_inputs:
                weight = tl.load(codes + start)
                x = tl.load(x_at + start)
            else:
                weight = tl.load(codes + start, mask=(start + k < inputs)[None, :], other=0.0)
                x = tl.load(x_at + start, mask=(start + k < inputs)[:, None], other=0.0)
            part = dot(weight, x, tl.zeros((block_n, block_m), tl.float32))
            total += part * (x_scale * scale)[None, :]
        last = True
        if splits > 1:
            last, total = sum_of_splits(total, partials_ptr, counters_ptr, tile, split, splits)
        if last:
            store_tile(total, y_ptr, bias_ptr, outputs, rows, num_outputs, num_rows, has_bias)


def fp8_block_matmul(
    x: QuantizedRows, codes: Tensor, scales: Tensor, bias: Tensor | None, y: Tensor, context: KernelContext
) -> Tensor:
    """x: E4M3 with a scale for each 128 inputs, [rows, ceil(inputs / 128)]. codes: E4M3 [outputs, inputs];
    scales: float32 [ceil(outputs / 128), ceil(inputs / 128)]; y: [rows, outputs], written and returned."""
    if len(y) == 0:
        return y

    def run(tile: Tile) -> None:
        launch(x, codes, scales, bias, y, tile, context)

    run(context.choose("fp8_block_matmul", (len(codes), codes.shape[1]), len(y), run))
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
    """One run with a given tile, of at most 128 outputs."""
    num_outputs, inputs = codes.shape
    division = context.divide(tile, num_outputs, len(y), triton.cdiv(inputs, BLOCK))
    context.launch(
        _fp8_block_matmul,
        division.grid,
        x.codes,
        x.scales,
        codes,
        scales,
        y if bias is None else bias,
        y,
        division.partials,
        division.counters,
        len(y),
        num_outputs,
        inputs,
        division.steps_a_split,
        has_bias=bias is not None,
        even_inputs=inputs % BLOCK == 0,
        block_n=tile.outputs,
        block_m=tile.rows,
        splits=division.splits,
        stages=tile.stages,
        num_warps=tile.warps,
    )
