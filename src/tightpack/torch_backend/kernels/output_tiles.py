"""Which part of a product a program computes, sums over programs, and the way out: matrix kernels share it.

A product is y^T [outputs, rows]; `item` numbers its tiles and, fastest, the splits of each tile's inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tightpack.torch_backend.kernels.arithmetic import narrow


@triton.jit
def tile_origin(tile, tiles_n, tiles_m, block_n: tl.constexpr, block_m: tl.constexpr):
    """First output and first row of a tile. Tiles go in bands of 8 outputs' tiles, so that those computed at
    a time share weights and rows in the L2 cache."""
    band = tile // (8 * tiles_m)
    width = tl.minimum(tiles_n - band * 8, 8)
    within = tile % (8 * tiles_m)
    return (band * 8 + within % width) * block_n, within // width * block_m


@triton.jit
def sum_of_splits(total, partials_ptr, counters_ptr, tile, split, splits: tl.constexpr):
    """Whether this program is the last of a tile's splits to arrive, and then the tile's sum.

    Sums in the order of the splits, so that the result does not hang on who came last. partials: float32
    [tiles, splits, total.numel]; counters: int32 [tiles], zero before and after.
    """
    size: tl.constexpr = total.shape[0] * total.shape[1]
    rows = tl.arange(0, total.shape[0])[:, None] * total.shape[1]
    places = partials_ptr + tile.to(tl.int64) * (splits * size) + rows + tl.arange(0, total.shape[1])[None, :]
    tl.store(places + split * size, total)
    # All threads' stores before the one thread's release.
    tl.debug_barrier()
    arrived = tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel")
    last = arrived == splits - 1
    if last:
        total = tl.zeros_like(total)
        for other in tl.static_range(splits):
            total += tl.load(places + other * size, cache_modifier=".cg")
        tl.store(counters_ptr + tile, 0)
    return last, total


@triton.jit
def store_tile(total, y_ptr, bias_ptr, outputs, rows, num_outputs, num_rows, has_bias: tl.constexpr):
    """total float32 [len(outputs), len(rows)], plus bias, to y [num_rows, num_outputs] in y's type."""
    there = outputs < num_outputs
    if has_bias:
        total += tl.load(bias_ptr + outputs, mask=there, other=0.0).to(tl.float32)[:, None]
    places = y_ptr + rows.to(tl.int64)[None, :] * num_outputs + outputs[:, None]
    inside = there[:, None] & (rows < num_rows)[None, :]
    tl.store(places, narrow(total, y_ptr.dtype.element_ty), mask=inside)
