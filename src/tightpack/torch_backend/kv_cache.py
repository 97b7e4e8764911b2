"""Paged keys and values (Kwon et al. 2023): a pool of blocks a layer, addressed through index tensors.

A layer's pool is [num_blocks, 2 * num_kv_heads, block_size, head_dim], keys before values. A block's
positions of one head lie together, so that gathering a request's blocks head by head gives the contiguous
matrices that batched products want.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.architectures.model_spec import ModelSpec


class KVCache:
    """The pools of all layers. Every slot holds finite numbers between steps: masked positions are multiplied
    by a weight of zero, which would not hide an infinity. Who wrote others clears them (`clear`).
    """

    def __init__(
        self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.head_dim = spec.head_dim
        shape = (spec.num_layers, num_blocks * 2 * spec.num_kv_heads, block_size * spec.head_dim)
        pools = torch.zeros(shape, dtype=dtype, device=device)
        self._by_block = pools.unbind(0)
        self._gathered = pools.new_empty((0, shape[2]))
        self._by_slot = pools.view(spec.num_layers, -1, spec.head_dim).unbind(0)

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """keys_values: [tokens, 2 * num_kv_heads * head_dim]; slots: [tokens * 2 * num_kv_heads].

        A cache that rounds writes back to keys_values what `gather` will give, so that a token attends to
        itself and its neighbours of the step as to those it finds in the cache.
        """
        self._by_slot[layer].index_copy_(0, slots, keys_values.reshape(-1, self.head_dim))

    def gather(self, layer: int, blocks: Tensor) -> Tensor:
        """blocks: rows of the pool, [2 * num_kv_heads * n], head by head.

        Returns [2 * num_kv_heads * n, block_size * head_dim], good until the next call: all layers share
        a buffer, which stays in the processor's cache; fresh ones take a tenth to a fifth longer.
        """
        count = len(blocks)
        if count > len(self._gathered):
            self._gathered = self._gathered.new_empty((count, self._gathered.shape[1]))
        return torch.index_select(self._by_block[layer], 0, blocks, out=self._gathered[:count])

    def pool(self, layer: int) -> Tensor:
        """A layer's pool as numbers of its storage type: [num_blocks, 2 * num_kv_heads, block_size,
        head_dim]."""
        return self._by_block[layer].view(self.num_blocks, -1, self.block_size, self.head_dim)

    def scales(self, layer: int) -> tuple[float, float]:
        """What a layer's keys and values are multiplied by, where that is one number each."""
        return 1.0, 1.0

    def token_scales(self, layer: int) -> Tensor | None:
        """float32 [num_blocks, 2 * num_kv_heads, block_size] where each token and head has its own."""
        return None

    def clear(self, slots: Tensor) -> None:
        for pool in self._by_slot:
            pool.index_fill_(0, slots, 0)
