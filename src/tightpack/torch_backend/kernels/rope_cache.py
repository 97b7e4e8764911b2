"""Query and key norm, rotary embedding, and the write of keys and values to the paged cache, in one pass.

The cache's pool is [num_blocks, 2 * num_kv_heads, block_size, head_dim] (`kv_cache`), keys before values, in
the activations' type, E4M3 or int8; 8-bit codes have a scale a layer, or (int8) one a token and head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tightpack.torch_backend.kernels.arithmetic import INT8_LARGEST, fp8_codes, int8_codes, narrow, not_finite
from tightpack.torch_backend.kernels.context import KernelContext
from tightpack.torch_backend.paged_layer import PagedLayer

_HEADS_A_PROGRAM = 8


@triton.jit
def _rope_cache(
    qkv_ptr,
    norm_ptr,
    rotations_ptr,
    positions_ptr,
    slots_ptr,
    pool_ptr,
    cache_scales_ptr,
    num_heads,
    num_kv_heads,
    block_size,
    qkv_stride,
    eps,
    key_scale,
    value_scale,
    half: tl.constexpr,
    half_block: tl.constexpr,
    heads_block: tl.constexpr,
    has_norm: tl.constexpr,
    has_token_scales: tl.constexpr,
):
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    stored: tl.constexpr = pool_ptr.dtype.element_ty
    token = tl.program_id(0)
    head = tl.program_id(1) * heads_block + tl.arange(0, heads_block)
    # Dimensions 2 p and 2 p + 1 are turned together (`rotary.pair_order`).
    pair = tl.arange(0, half_block)
    side = tl.arange(0, 2)
    dims = 2 * pair[:, None] + side[None, :]
    in_head = pair < half
    rotated = num_heads + num_kv_heads
    there = (head < rotated + num_kv_heads)[:, None, None] & in_head[None, :, None]
    there = there & (side < 2)[None, None, :]
    places = qkv_ptr + token.to(tl.int64) * qkv_stride + head[:, None, None] * (2 * half) + dims[None, :, :]
    values = tl.load(places, mask=there, other=0.0).to(tl.float32)
    turns = (head < rotated)[:, None, None]
    if has_norm:
        mean = tl.sum(tl.sum(values * values, axis=2), axis=1) / (2 * half)
        weight = tl.load(
            norm_ptr + head[:, None, None] * (2 * half) + dims[None, :, :], mask=there & turns, other=1.0
        )
        normed = narrow(values * tl.rsqrt(mean + eps)[:, None, None] * weight.to(tl.float32), dtype)
        values = tl.where(turns, normed.to(tl.float32), values)
    position = tl.load(positions_ptr + token)
    rotation = rotations_ptr + position * (2 * half) + 2 * pair
    cosine = tl.load(rotation, mask=in_head, other=0.0)[None, :]
    sine = tl.load(rotation + 1, mask=in_head, other=0.0)[None, :]
    first, second = tl.split(values)
    turned = tl.join(first * cosine - second * sine, first * sine + second * cosine)
    values = narrow(tl.where(turns, turned, values), dtype)
    # Keys and values are read from the cache alone, so only queries go back.
    tl.store(places, values, mask=there & (head < num_heads)[:, None, None])

    slot = tl.load(slots_ptr + token).to(tl.int64)
    # Rows that only fill up a batch have no slot.
    keeps = (head >= num_heads) & (head < rotated + num_kv_heads) & (slot >= 0)
    block = slot // block_size
    in_pool = (block * (2 * num_kv_heads) + head - num_heads) * block_size + slot % block_size
    exact = values.to(tl.float32)
    if has_token_scales:
        largest = tl.max(tl.max(tl.abs(exact), axis=2), axis=1)
        scale = tl.div_rn(largest, tl.full((heads_block,), INT8_LARGEST, tl.float32))
        scale = tl.where(scale == 0.0, 1.0, scale) + not_finite(tl.sum(exact * 0.0, axis=2), 1)
        tl.store(cache_scales_ptr + in_pool, scale, mask=keeps)
    else:
        scale = tl.where(head < rotated, key_scale, value_scale)
    if stored == dtype:
        out = values
    else:
        scaled = tl.div_rn(exact, tl.broadcast_to(scale[:, None, None], (heads_block, half_block, 2)))
        out = int8_codes(scaled) if stored == tl.int8 else fp8_codes(scaled)
    pool_places = pool_ptr + in_pool[:, None, None] * (2 * half) + dims[None, :, :]
    tl.store(pool_places, out, mask=there & keeps[:, None, None])


def rope_cache(
    qkv: Tensor,
    rotations: Tensor,
    positions: Tensor,
    slots: Tensor,
    layer: PagedLayer,
    num_heads: int,
    context: KernelContext,
    *,
    qk_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate the queries of qkv in place, and write rotated keys, and values, to the cache.

    qkv: [tokens, (num_heads + 2 * num_kv_heads) * head_dim]; rotations: complex64 [positions, head_dim / 2]
    (`rotary.rotation_table`); positions: int [tokens]; slots: int [tokens], block * block_size + offset, -1
    for a row that is not kept. qk_norm: [num_heads + num_kv_heads, head_dim], applied first.
    """
    tokens = len(qkv)
    if tokens == 0:
        return
    heads = num_heads + 2 * layer.num_kv_heads
    half = layer.head_dim // 2
    half_block = triton.next_power_of_2(half)
    heads_block = min(_HEADS_A_PROGRAM, triton.next_power_of_2(heads))
    context.launch(
        _rope_cache,
        (tokens, triton.cdiv(heads, heads_block)),
        qkv,
        qkv if qk_norm is None else qk_norm,
        torch.view_as_real(rotations),
        positions,
        slots,
        layer.pool,
        layer.pool if layer.token_scales is None else layer.token_scales,
        num_heads,
        layer.num_kv_heads,
        layer.block_size,
        qkv.stride(0),
        eps,
        layer.key_scale,
        layer.value_scale,
        half=half,
        half_block=half_block,
        heads_block=heads_block,
        has_norm=qk_norm is not None,
        has_token_scales=layer.token_scales is not None,
        num_warps=4,
    )
