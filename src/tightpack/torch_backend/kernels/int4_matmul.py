"""y = x W^T for 4-bit W in groups, activations in 16 bits (W4A16).

Weights are the left operand, y^T = W x^T: a Hopper tensor core takes 64 rows of its left operand whatever the
batch, and as few as 8 columns of its right one, so that a decode of one row wastes least; and the left
operand may lie in registers, where codes become floats. See `packed_weights` for the layout: a tile of 64
outputs by 128 inputs is 4 KiB in one piece.

Few rows: a program keeps a few tiles of codes in flight, and splits of K fill the machine; the codes enter
the product as exact integers and each group's sum is scaled in float32. Many rows: persistent programs walk
the output in an order that keeps weights and rows in the L2 cache, and scale the weights, which then takes
less time than scaling that many sums.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tightpack.torch_backend.kernels.arithmetic import dot, minus_zero, narrow, nibble
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.output_tiles import store_tile, sum_of_splits, tile_origin
from tightpack.torch_backend.kernels.tiles import Tile
from tightpack.torch_backend.packed_weights import INPUTS_A_TILE, OUTPUTS_A_TILE, PackedInt4

_SYMMETRIC_ZERO = tl.constexpr(8)
# Rows of a tile up to which sums are scaled, not weights: beyond, scaling that many sums takes longer, sooner
# for groups shorter than a tile of inputs, and a second set of sums no longer fits the registers.
_SCALED_SUMS_UP_TO = 64
_SCALED_SHORT_SUMS_UP_TO = 32


def scales_weights(weight: PackedInt4, tile: Tile) -> bool:
    """Whether weights are scaled before the product; minimums leave no choice."""
    short = 0 < weight.group < INPUTS_A_TILE
    return weight.minimums is not None or tile.rows > (
        _SCALED_SHORT_SUMS_UP_TO if short else _SCALED_SUMS_UP_TO
    )


@triton.jit
def int4_tile(
    x_ptr,
    x_rows,
    row_is_there,
    x_stride,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    minimums_ptr,
    outputs,
    padded_outputs,
    inputs,
    num_blocks,
    first_block,
    last_block,
    group: tl.constexpr,
    scale_weights: tl.constexpr,
    has_zeros: tl.constexpr,
    has_minimums: tl.constexpr,
    even_inputs: tl.constexpr,
    stages: tl.constexpr,
):
    """float32 [len(outputs), len(x_rows)]: the product over the inputs of tiles first_block to last_block.

    group: inputs that share a scale, 0 for all. scale_weights: else the sums of a group are scaled.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    block_n: tl.constexpr = outputs.shape[0]
    block_m: tl.constexpr = x_rows.shape[0]
    lane = tl.arange(0, 32)
    row_of_tiles = (outputs // 64).to(tl.int64) * num_blocks * 2048 + (outputs % 64) * 32
    words_ptr = codes_ptr + row_of_tiles[:, None] + lane[None, :]
    x_ptr += x_rows.to(tl.int64)[None, :] * x_stride + lane[:, None]
    total = tl.zeros((block_n, block_m), tl.float32)
    # Codes 0 .. 3 of a word belong to inputs 32 apart, so a scale serves at least one code of the tile.
    a_scale: tl.constexpr = 4 if group == 0 or group >= 128 else group // 32
    for block in tl.range(first_block, last_block, num_stages=stages):
        words = tl.load(words_ptr + block * 2048)
        part = tl.zeros((block_n, block_m), tl.float32)
        for i in tl.static_range(4):
            if i % a_scale == 0:
                which = 0 if group == 0 else (block * 128 + i * 32) // group
                scale = tl.load(scales_ptr + which * padded_outputs + outputs).to(tl.float32)
                if has_zeros:
                    zero = minus_zero(tl.load(zeros_ptr + which * padded_outputs + outputs), dtype)
                elif has_minimums:
                    zero = minus_zero(tl.zeros((block_n,), tl.float32), dtype)
                    minimum = tl.load(minimums_ptr + which * padded_outputs + outputs).to(tl.float32)
                else:
                    zero = minus_zero(tl.full((block_n,), _SYMMETRIC_ZERO, tl.float32), dtype)
            there = row_is_there[None, :]
            if not even_inputs:
                there = there & (block * 128 + i * 32 + lane < inputs)[:, None]
            x = tl.load(x_ptr + block * 128 + i * 32, mask=there, other=0.0)
            weight = nibble(words, tl.broadcast_to(zero[:, None], (block_n, 32)), i, dtype)
            if scale_weights:
                exact = weight.to(tl.float32) * scale[:, None]
                if has_minimums:
                    exact += minimum[:, None]
                total = dot(narrow(exact, dtype), x, total)
            else:
                part = dot(weight, x, part)
                if i % a_scale == a_scale - 1:
                    total += part * scale[:, None]
                    if i != 3:
                        part = tl.zeros((block_n, block_m), tl.float32)
    return total


@triton.jit
def _int4_matmul(
    x_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    minimums_ptr,
    bias_ptr,
    y_ptr,
    partials_ptr,
    counters_ptr,
    num_rows,
    num_outputs,
    padded_outputs,
    inputs,
    num_blocks,
    x_stride,
    blocks_a_split,
    group: tl.constexpr,
    scale_weights: tl.constexpr,
    has_zeros: tl.constexpr,
    has_minimums: tl.constexpr,
    has_bias: tl.constexpr,
    even_inputs: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    splits: tl.constexpr,
    stages: tl.constexpr,
):
    tiles_n = tl.cdiv(num_outputs, block_n)
    tiles_m = tl.cdiv(num_rows, block_m)
    for item in range(tl.program_id(0), tiles_n * tiles_m * splits, tl.num_programs(0)):
        split = item % splits
        tile = item // splits
        first_output, first_row = tile_origin(tile, tiles_n, tiles_m, block_n, block_m)
        outputs = first_output + tl.arange(0, block_n)
        rows = first_row + tl.arange(0, block_m)
        total = int4_tile(
            x_ptr,
            rows,
            rows < num_rows,
            x_stride,
            codes_ptr,
            scales_ptr,
            zeros_ptr,
            minimums_ptr,
            # Beyond the last output: any that is there; it is not stored.
            tl.minimum(outputs, padded_outputs - 1) if block_n > 64 else outputs,
            padded_outputs,
            inputs,
            num_blocks,
            split * blocks_a_split,
            tl.minimum(num_blocks, (split + 1) * blocks_a_split),
            group,
            scale_weights,
            has_zeros,
            has_minimums,
            even_inputs,
            stages,
        )
        last = True
        if splits > 1:
            last, total = sum_of_splits(total, partials_ptr, counters_ptr, tile, split, splits)
        if last:
            store_tile(total, y_ptr, bias_ptr, outputs, rows, num_outputs, num_rows, has_bias)


def int4_matmul(x: Tensor, weight: PackedInt4, bias: Tensor | None, context: KernelContext) -> Tensor:
    """x: bfloat16 or float16 [rows, inputs], inputs side by side; returns [rows, outputs] of x's dtype.

    bias: [outputs] of any float dtype.
    """
    rows = len(x)
    y = x.new_empty((rows, weight.outputs))
    if rows == 0:
        return y
    if weight.order is not None:
        x = x.index_select(1, weight.order)

    def run(tile: Tile) -> None:
        launch(x, weight, bias, y, tile, context)

    run(context.choose("int4_matmul", (weight.outputs, weight.inputs), rows, run))
    return y


def launch(
    x: Tensor, weight: PackedInt4, bias: Tensor | None, y: Tensor, tile: Tile, context: KernelContext
) -> None:
    """One run with a given tile. y: [rows, outputs]."""
    rows = len(x)
    blocks = weight.codes.shape[1]
    division = context.divide(tile, weight.outputs, rows, blocks)
    zeros = weight.codes if weight.zeros is None else weight.zeros
    minimums = weight.scales if weight.minimums is None else weight.minimums
    context.launch(
        _int4_matmul,
        division.grid,
        x,
        weight.codes,
        weight.scales,
        zeros,
        minimums,
        y if bias is None else bias,
        y,
        division.partials,
        division.counters,
        rows,
        weight.outputs,
        weight.codes.shape[0] * OUTPUTS_A_TILE,
        weight.inputs,
        blocks,
        x.stride(0),
        division.steps_a_split,
        group=weight.group,
        scale_weights=scales_weights(weight, tile),
        has_zeros=weight.zeros is not None,
        has_minimums=weight.minimums is not None,
        has_bias=bias is not None,
        even_inputs=weight.inputs % INPUTS_A_TILE == 0,
        block_n=tile.outputs,
        block_m=tile.rows,
        splits=division.splits,
        stages=tile.stages,
        num_warps=tile.warps,
    )
