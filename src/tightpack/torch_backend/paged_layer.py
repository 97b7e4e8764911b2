"""One layer's part of a paged KV cache, as kernels address it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """pool: [num_blocks, 2 * num_kv_heads, block_size, head_dim], keys before values; bfloat16, float16,
    float8_e4m3fn or int8. A key is code * key_scale, a value code * value_scale; with token_scales, float32
    [num_blocks, 2 * num_kv_heads, block_size], code * that instead.
    """

    pool: Tensor
    key_scale: float = 1.0
    value_scale: float = 1.0
    token_scales: Tensor | None = None

    @property
    def num_kv_heads(self) -> int:
        return self.pool.shape[1] // 2

    @property
    def block_size(self) -> int:
        return self.pool.shape[2]

    @property
    def head_dim(self) -> int:
        return self.pool.shape[3]
