"""Attention of a mixed batch over a paged KV cache, in bfloat16, float16, E4M3 or int8.

A program takes one key-value head and a tile of (query, head of its group) pairs of one request, and walks
the keys that any of them sees, with the running softmax of FlashAttention (Dao et al. 2022): scores never
leave the chip, and keys and values are read once for the whole group. A decode's tile is its one query's
heads; its keys are split among programs (Flash-Decoding, Dao et al. 2023), and the last to arrive joins the
parts, so that a step stays one launch a layer. 8-bit keys and values are widened in registers after the load:
they move half the bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tightpack.torch_backend.attention_tiles import AttentionBatch
from tightpack.torch_backend.kernels.arithmetic import dot, narrow
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.paged_layer import PagedLayer

_LOG2_E = tl.constexpr(1.4426950408889634)
_UNSEEN = tl.constexpr(-1e30)


@triton.jit
def _paged_attention(
    qkv_ptr,
    out_ptr,
    pool_ptr,
    token_scales_ptr,
    tables_ptr,
    tiles_ptr,
    starts_ptr,
    contexts_ptr,
    partials_ptr,
    counters_ptr,
    qkv_stride,
    table_stride,
    num_kv_heads,
    block_size,
    window,
    score_scale,
    value_scale,
    softcap,
    width: tl.constexpr,
    width_block: tl.constexpr,
    heads_a_group: tl.constexpr,
    queries_a_tile: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    has_window: tl.constexpr,
    has_softcap: tl.constexpr,
    has_token_scales: tl.constexpr,
    splits: tl.constexpr,
    stages: tl.constexpr,
):
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    request = tl.load(tiles_ptr + 2 * tile)
    first_query = tl.load(tiles_ptr + 2 * tile + 1)
    start = tl.load(starts_ptr + request)
    num_queries = tl.load(starts_ptr + request + 1) - start
    context = tl.load(contexts_ptr + request)

    row = tl.arange(0, block_m)
    query = first_query + row // heads_a_group
    head = kv_head * heads_a_group + row % heads_a_group
    is_row = (row < queries_a_tile * heads_a_group) & (query < num_queries)
    position = context - num_queries + query
    dim = tl.arange(0, width_block)
    in_head = dim < width
    q_places = (start + query).to(tl.int64) * qkv_stride + head * width
    q = tl.load(
        qkv_ptr + q_places[:, None] + dim[None, :], mask=is_row[:, None] & in_head[None, :], other=0.0
    )

    # Keys that some row of the tile sees, and of them this split's.
    last_query = tl.minimum(first_query + queries_a_tile, num_queries) - 1
    end = context - num_queries + last_query + 1
    begin = 0
    if has_window:
        begin = tl.maximum(0, context - num_queries + first_query + 1 - window) // block_n * block_n
    if splits > 1:
        a_split = tl.cdiv(tl.cdiv(end - begin, block_n), splits) * block_n
        begin += split * a_split
        end = tl.minimum(end, begin + a_split)

    most = tl.full((block_m,), _UNSEEN, tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    mixed = tl.zeros((block_m, width_block), tl.float32)
    key = tl.arange(0, block_n)
    for at in tl.range(begin, end, block_n, num_stages=stages):
        there = at + key < end
        block = tl.load(tables_ptr + request * table_stride + (at + key) // block_size, mask=there, other=0)
        in_pool = (block.to(tl.int64) * (2 * num_kv_heads) + kv_head) * block_size + (at + key) % block_size
        values_at = in_pool + num_kv_heads * block_size
        keys = tl.load(
            pool_ptr + in_pool[None, :] * width + dim[:, None],
            mask=there[None, :] & in_head[:, None],
            other=0.0,
        )
        scores = dot(q, _widened(keys, dtype), tl.zeros((block_m, block_n), tl.float32))
        if has_token_scales:
            scores *= tl.load(token_scales_ptr + in_pool, mask=there, other=0.0)[None, :]
        scores *= score_scale
        if has_softcap:
            # tanh(z) = 2 sigmoid(2 z) - 1
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
        sees = there[None, :] & (at + key[None, :] <= position[:, None])
        if has_window:
            sees = sees & (at + key[None, :] > position[:, None] - window)
        scores = tl.where(sees, scores * _LOG2_E, _UNSEEN)
        new_most = tl.maximum(most, tl.max(scores, axis=1))
        # Where a row has seen nothing yet, 2 ^ 0 would count what it does not see.
        weights = tl.where(sees, tl.exp2(scores - new_most[:, None]), 0.0)
        shrink = tl.exp2(most - new_most)
        total = total * shrink + tl.sum(weights, axis=1)
        mixed = mixed * shrink[:, None]
        values = tl.load(
            pool_ptr + values_at[:, None] * width + dim[None, :],
            mask=there[:, None] & in_head[None, :],
            other=0.0,
        )
        if has_token_scales:
            weights *= tl.load(token_scales_ptr + values_at, mask=there, other=0.0)[None, :]
        mixed = dot(narrow(weights, dtype), _widened(values, dtype), mixed)
        most = new_most

    last = True
    if splits > 1:
        last, most, total, mixed = _joined(
            most, total, mixed, partials_ptr, counters_ptr, tile * num_kv_heads + kv_head, split, splits
        )
    if last:
        mixed = mixed * (value_scale / tl.where(total == 0.0, 1.0, total))[:, None]
        out_row = (start + query).to(tl.int64) * (num_kv_heads * heads_a_group * width) + head * width
        tl.store(
            out_ptr + out_row[:, None] + dim[None, :],
            narrow(mixed, dtype),
            mask=is_row[:, None] & in_head[None, :],
        )


@triton.jit
def _widened(codes, dtype: tl.constexpr):
    """Cache entries as numbers of `dtype`, exactly."""
    return codes if codes.dtype == dtype else narrow(codes.to(tl.float32), dtype)


@triton.jit
def _joined(most, total, mixed, partials_ptr, counters_ptr, place, split, splits: tl.constexpr):
    """Whether this split is the last of its tile to arrive, and then the whole tile's softmax state."""
    block_m: tl.constexpr = mixed.shape[0]
    width: tl.constexpr = mixed.shape[1]
    size: tl.constexpr = block_m * (width + 2)
    row = tl.arange(0, block_m)
    base = partials_ptr + place.to(tl.int64) * (splits * size)
    mine = base + split * size
    within = row[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(mine + within, mixed)
    tl.store(mine + block_m * width + row, most)
    tl.store(mine + block_m * (width + 1) + row, total)
    tl.debug_barrier()
    arrived = tl.atomic_add(counters_ptr + place, 1, sem="acq_rel")
    last = arrived == splits - 1
    if last:
        most = tl.full((block_m,), _UNSEEN, tl.float32)
        total = tl.zeros((block_m,), tl.float32)
        mixed = tl.zeros((block_m, width), tl.float32)
        for other in range(splits):
            part = base + other * size
            its_most = tl.load(part + block_m * width + row, cache_modifier=".cg")
            new_most = tl.maximum(most, its_most)
            shrink, its_shrink = tl.exp2(most - new_most), tl.exp2(its_most - new_most)
            its_total = tl.load(part + block_m * (width + 1) + row, cache_modifier=".cg")
            total = total * shrink + its_total * its_shrink
            its_mixed = tl.load(part + within, cache_modifier=".cg")
            mixed = mixed * shrink[:, None] + its_mixed * its_shrink[:, None]
            most = new_most
        tl.store(counters_ptr + place, 0)
    return last, most, total, mixed


def paged_attention(
    qkv: Tensor,
    layer: PagedLayer,
    batch: AttentionBatch,
    *,
    num_heads: int,
    scale: float,
    context: KernelContext,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """qkv: [tokens, ...] whose first num_heads * head_dim columns are the rotated queries; this step's keys
    and values are in the cache already. Returns [tokens, num_heads * head_dim] of qkv's type.

    window: positions that a query sees, itself included. softcap: c * tanh(score / c).
    """
    width, kv_heads = layer.head_dim, layer.num_kv_heads
    group = num_heads // kv_heads
    out = qkv.new_empty((len(qkv), num_heads * width))
    if len(qkv) == 0:
        return out
    block_m = batch.block_m(group)
    width_block = triton.next_power_of_2(width)
    # A step's keys and values: 32 KiB in 16 bits, so that two or three steps are in flight.
    block_n = max(16, min(128, 2**13 // width_block))
    tiles = len(batch.tiles)
    partials, counters = context.workspace(tiles * kv_heads, batch.splits, block_m * (width_block + 2))
    static = layer.token_scales is None
    context.launch(
        _paged_attention,
        (tiles, kv_heads, batch.splits),
        qkv,
        out,
        layer.pool,
        layer.pool if layer.token_scales is None else layer.token_scales,
        batch.block_tables,
        batch.tiles,
        batch.query_starts,
        batch.context_lengths,
        partials,
        counters,
        qkv.stride(0),
        batch.block_tables.stride(0),
        kv_heads,
        layer.block_size,
        window or 0,
        scale * (layer.key_scale if static else 1.0),
        layer.value_scale if static else 1.0,
        softcap or 1.0,
        width=width,
        width_block=width_block,
        heads_a_group=group,
        queries_a_tile=batch.queries_a_tile,
        block_m=block_m,
        block_n=block_n,
        has_window=window is not None,
        has_softcap=softcap is not None,
        has_token_scales=not static,
        splits=batch.splits,
        stages=2 if block_m > 16 else 3,
        num_warps=8 if block_m >= 128 else 4,
    )
    return out
