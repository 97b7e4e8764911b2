"""Products of rows with their experts' weights: rows sorted by expert, one launch for all experts.

How many rows an expert got is known on the device alone. The grid is for the worst case; a program finds its
expert by a running sum over all experts' tiles, and those beyond the last tile leave at once, so nothing
waits for the host and a recorded graph serves any routing.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from tightpack.torch_backend.kernels.arithmetic import dot, narrow
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.kernels.int4_matmul import int4_tile, scales_weights
from tightpack.torch_backend.kernels.tiles import Tile
from tightpack.torch_backend.packed_weights import INPUTS_A_TILE, OUTPUTS_A_TILE, PackedInt4
from tightpack.torch_backend.quantized_rows import QuantizedRows


@triton.jit
def _expert_of(offsets_ptr, tile, experts, experts_block: tl.constexpr, block_m: tl.constexpr):
    """Expert of a tile of rows, its first row there and the row where the expert ends; expert = experts for
    tiles that are none."""
    index = tl.arange(0, experts_block)
    there = index < experts
    begin = tl.load(offsets_ptr + index, mask=there, other=0)
    end = tl.load(offsets_ptr + index + 1, mask=there, other=0)
    tiles = tl.where(there, (end - begin + block_m - 1) // block_m, 0)
    after = tl.cumsum(tiles, axis=0)
    expert = tl.sum((there & (after <= tile)).to(tl.int32), axis=0)
    mine = index == expert
    first_tile = tl.sum(tl.where(mine, after - tiles, 0), axis=0)
    first_row = tl.sum(tl.where(mine, begin, 0), axis=0) + (tile - first_tile) * block_m
    return expert, first_row, tl.sum(tl.where(mine, end, 0), axis=0)


@triton.jit
def _store_rows(total, y_ptr, outputs, rows, num_outputs, row_end):
    places = y_ptr + rows.to(tl.int64)[None, :] * num_outputs + outputs[:, None]
    inside = (outputs < num_outputs)[:, None] & (rows < row_end)[None, :]
    tl.store(places, narrow(total, y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _grouped_matmul(
    x_ptr,
    x_scales_ptr,
    weights_ptr,
    scales_ptr,
    offsets_ptr,
    y_ptr,
    experts,
    num_outputs,
    inputs,
    x_stride,
    experts_block: tl.constexpr,
    has_scales: tl.constexpr,
    even_inputs: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
):
    sums: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    # Neighbouring programs share rows, and soon after an expert's weights.
    expert, first_row, row_end = _expert_of(offsets_ptr, tl.program_id(1), experts, experts_block, block_m)
    if expert >= experts:
        return
    outputs = tl.program_id(0) * block_n + tl.arange(0, block_n)
    rows = first_row + tl.arange(0, block_m)
    safe = tl.minimum(outputs, num_outputs - 1)
    k = tl.arange(0, block_k)
    of_expert = expert.to(tl.int64) * num_outputs
    weights = weights_ptr + (of_expert + safe)[:, None] * inputs + k[None, :]
    x_at = x_ptr + tl.minimum(rows, row_end - 1).to(tl.int64)[None, :] * x_stride + k[:, None]
    total = tl.zeros((block_n, block_m), sums)
    for start in tl.range(0, inputs, block_k, num_stages=stages):
        if even_inputs:
            weight = tl.load(weights + start)
            x = tl.load(x_at + start)
        else:
            weight = tl.load(weights + start, mask=(start + k < inputs)[None, :], other=0.0)
            x = tl.load(x_at + start, mask=(start + k < inputs)[:, None], other=0.0)
        total = dot(weight, x, total)
    result = total.to(tl.float32)
    if has_scales:
        x_scale = tl.load(x_scales_ptr + rows, mask=rows < row_end, other=0.0)
        result = result * x_scale[None, :] * tl.load(scales_ptr + of_expert + safe)[:, None]
    _store_rows(result, y_ptr, outputs, rows, num_outputs, row_end)


@triton.jit
def _grouped_int4_matmul(
    x_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    minimums_ptr,
    offsets_ptr,
    y_ptr,
    experts,
    num_outputs,
    padded_outputs,
    inputs,
    num_blocks,
    groups,
    x_stride,
    experts_block: tl.constexpr,
    group: tl.constexpr,
    scale_weights: tl.constexpr,
    has_zeros: tl.constexpr,
    has_minimums: tl.constexpr,
    even_inputs: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    stages: tl.constexpr,
):
    expert, first_row, row_end = _expert_of(offsets_ptr, tl.program_id(1), experts, experts_block, block_m)
    if expert >= experts:
        return
    outputs = tl.program_id(0) * block_n + tl.arange(0, block_n)
    rows = first_row + tl.arange(0, block_m)
    of_expert = expert.to(tl.int64) * groups * padded_outputs
    total = int4_tile(
        x_ptr,
        rows,
        rows < row_end,
        x_stride,
        codes_ptr + expert.to(tl.int64) * padded_outputs * num_blocks * 32,
        scales_ptr + of_expert,
        zeros_ptr + of_expert,
        minimums_ptr + of_expert,
        tl.minimum(outputs, padded_outputs - 1) if block_n > 64 else outputs,
        padded_outputs,
        inputs,
        num_blocks,
        0,
        num_blocks,
        group,
        scale_weights,
        has_zeros,
        has_minimums,
        even_inputs,
        stages,
    )
    _store_rows(total, y_ptr, outputs, rows, num_outputs, row_end)


def grouped_dense(
    x: Tensor | QuantizedRows,
    weights: Tensor,
    scales: Tensor | None,
    expert_offsets: Tensor,
    y: Tensor,
    context: KernelContext,
) -> Tensor:
    """weights: [experts, outputs, inputs], of x's type, or E4M3 or int8 beside QuantizedRows of the same with
    float32 scales [experts, outputs]. expert_offsets: int32 [experts + 1], the rows of expert e being
    offsets[e] .. offsets[e + 1] - 1. y: [rows, outputs], written and returned."""
    experts, num_outputs, inputs = weights.shape
    codes = x.codes if isinstance(x, QuantizedRows) else x
    x_scales = x.scales if isinstance(x, QuantizedRows) else y
    if len(y) == 0:
        return y

    def run(tile: Tile) -> None:
        context.launch(
            _grouped_matmul,
            _grid(len(y), experts, num_outputs, tile),
            codes,
            x_scales,
            weights,
            y if scales is None else scales,
            expert_offsets,
            y,
            experts,
            num_outputs,
            inputs,
            codes.stride(0),
            experts_block=max(2, triton.next_power_of_2(experts)),
            has_scales=scales is not None,
            even_inputs=inputs % tile.inputs == 0,
            block_n=tile.outputs,
            block_m=tile.rows,
            block_k=tile.inputs,
            stages=tile.stages,
            num_warps=tile.warps,
        )

    run(_choose(context, "grouped_matmul", weights.shape, len(y), run))
    return y


def grouped_int4(
    x: Tensor, weight: PackedInt4, expert_offsets: Tensor, y: Tensor, context: KernelContext
) -> Tensor:
    """weight: as `packed_weights.stack_experts` makes it. y: [rows, outputs], written and returned."""
    experts, down, blocks = weight.codes.shape[:3]
    if len(y) == 0:
        return y

    def run(tile: Tile) -> None:
        context.launch(
            _grouped_int4_matmul,
            _grid(len(y), experts, weight.outputs, tile),
            x,
            weight.codes,
            weight.scales,
            weight.codes if weight.zeros is None else weight.zeros,
            weight.scales if weight.minimums is None else weight.minimums,
            expert_offsets,
            y,
            experts,
            weight.outputs,
            down * OUTPUTS_A_TILE,
            weight.inputs,
            blocks,
            weight.scales.shape[1],
            x.stride(0),
            experts_block=max(2, triton.next_power_of_2(experts)),
            group=weight.group,
            scale_weights=scales_weights(weight, tile),
            has_zeros=weight.zeros is not None,
            has_minimums=weight.minimums is not None,
            even_inputs=weight.inputs % INPUTS_A_TILE == 0,
            block_n=tile.outputs,
            block_m=tile.rows,
            stages=tile.stages,
            num_warps=tile.warps,
        )

    shape = (experts, weight.outputs, weight.inputs)
    run(_choose(context, "grouped_int4_matmul", shape, len(y), run))
    return y


def _choose(
    context: KernelContext, kernel: str, shape: tuple[int, ...], rows: int, run: Callable[[Tile], None]
) -> Tile:
    """By the rows an expert gets on average."""
    return context.choose(kernel, shape, -(-rows // shape[0]), run)


def _grid(rows: int, experts: int, outputs: int, tile: Tile) -> tuple[int, int]:
    """Tiles of outputs, and the most tiles of rows that any routing makes."""
    return triton.cdiv(outputs, tile.outputs), rows // tile.rows + min(rows, experts)
