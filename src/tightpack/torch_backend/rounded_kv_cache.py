"""A KV cache in another precision than the decoder's: 8-bit floats or integers, or a wider or narrower float.

Keys and values are kept as codes and become codes * scale, in the decoder's dtype, when gathered. Scales are
static, one for the keys and one for the values of a layer, or dynamic: one a token and head, beside the
codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from tightpack.architectures.kv_memory import check_scales, has_dynamic_scales
from tightpack.architectures.model_spec import ModelSpec
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.fp8_decode import decode_fp8
from tightpack.torch_backend.input_rounding import INT8_LARGEST, row_scales, to_codes
from tightpack.torch_backend.kv_cache import KVCache

Precision = Literal["bf16", "fp16", "fp32", "fp8", "int8"]
STORAGE: Mapping[Precision, torch.dtype] = MappingProxyType(
    {
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
        "fp8": torch.float8_e4m3fn,
        "int8": torch.int8,
    }
)
_PRECISIONS = MappingProxyType({storage: precision for precision, storage in STORAGE.items()})


def unrounded(dtype: torch.dtype) -> KVCacheFormat:
    """Keys and values as a decoder in `dtype` makes them."""
    return KVCacheFormat(precision=_PRECISIONS[dtype])


def make_kv_cache(
    spec: ModelSpec,
    num_blocks: int,
    block_size: int,
    kv_format: KVCacheFormat,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """The cache of a decoder in `dtype`. Raises ValueError for scales that are not positive, one a layer."""
    check_scales(spec, kv_format)
    if STORAGE[kv_format.precision] == dtype and not kv_format.key_scales:
        return KVCache(spec, num_blocks, block_size, dtype, device)
    if has_dynamic_scales(kv_format):
        return DynamicKVCache(spec, num_blocks, block_size, dtype, device)
    return StaticKVCache(spec, num_blocks, block_size, kv_format, dtype, device)


class _RoundedKVCache(KVCache):
    """Pools of `storage`, and a second buffer that all layers share, for what becomes of gathered codes."""

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        storage: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(spec, num_blocks, block_size, storage, device)
        self._values = torch.empty((0, block_size * spec.head_dim), dtype=dtype, device=device)

    def _buffer(self, count: int) -> Tensor:
        if count > len(self._values):
            self._values = self._values.new_empty((count, self._values.shape[1]))
        return self._values[:count]


class StaticKVCache(_RoundedKVCache):
    """Codes of any storage type with a scale a layer for keys and one for values, 1 where none is given."""

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        kv_format: KVCacheFormat,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._storage = STORAGE[kv_format.precision]
        self._precision = kv_format.precision
        # 8-bit floats are gathered, written and cleared as bytes: not every indexing kernel knows them.
        raw = torch.int8 if self._storage.itemsize == 1 else self._storage
        super().__init__(spec, num_blocks, block_size, raw, dtype, device)
        self._scales: tuple[Tensor, ...] | None = None
        self._given = list(zip(kv_format.key_scales, kv_format.value_scales, strict=True))
        if self._given:
            self._scales = torch.tensor(self._given, dtype=torch.float32, device=device).unbind(0)

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        values = keys_values.float().view(len(keys_values), -1, self.head_dim)
        scales = None if self._scales is None else self._by_head(layer, values.shape[1])
        if scales is not None:
            values = values / scales
        if self._storage.itemsize == 1:
            codes = to_codes(values, self._precision)
            super().write(layer, slots, codes.view(torch.int8))
        else:
            codes = values.to(self._storage)
            super().write(layer, slots, codes)
        rounded = codes.float()
        if scales is not None:
            rounded.mul_(scales)
        keys_values.copy_(rounded.view(keys_values.shape))

    def gather(self, layer: int, blocks: Tensor) -> Tensor:
        codes, values = super().gather(layer, blocks), self._buffer(len(blocks))
        if self._precision == "fp8":
            decode_fp8(codes, values)
        else:
            values.copy_(codes)
        if self._scales is not None:
            values.view(2, -1).mul_(self._scales[layer].unsqueeze(-1))
        return values

    def pool(self, layer: int) -> Tensor:
        return super().pool(layer).view(self._storage)

    def scales(self, layer: int) -> tuple[float, float]:
        return self._given[layer] if self._given else (1.0, 1.0)

    def _by_head(self, layer: int, heads: int) -> Tensor:
        """[heads, 1]: the keys' scale, then the values'."""
        assert self._scales is not None
        return self._scales[layer].repeat_interleave(heads // 2).unsqueeze(-1)


class DynamicKVCache(_RoundedKVCache):
    """int8 with a float32 scale for each token and head: the largest magnitude over 127."""

    def __init__(
        self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(spec, num_blocks, block_size, torch.int8, dtype, device)
        shape = (spec.num_layers, num_blocks * 2 * spec.num_kv_heads, block_size)
        scales = torch.zeros(shape, dtype=torch.float32, device=device)
        self._scales_by_block = scales.unbind(0)
        self._scales_by_slot = scales.view(spec.num_layers, -1).unbind(0)

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        values = keys_values.float().view(len(keys_values), -1, self.head_dim)
        scales = row_scales(values, INT8_LARGEST)
        codes = to_codes(values / scales, "int8")
        super().write(layer, slots, codes)
        self._scales_by_slot[layer].index_copy_(0, slots, scales.view(-1))
        keys_values.copy_(codes.float().mul_(scales).view(keys_values.shape))

    def gather(self, layer: int, blocks: Tensor) -> Tensor:
        values = self._buffer(len(blocks)).copy_(super().gather(layer, blocks))
        scales = torch.index_select(self._scales_by_block[layer], 0, blocks)
        values.view(*scales.shape, -1).mul_(scales.unsqueeze(-1))
        return values

    def token_scales(self, layer: int) -> Tensor:
        return self._scales_by_block[layer].view(self.num_blocks, -1, self.block_size)

    def clear(self, slots: Tensor) -> None:
        super().clear(slots)
        for scales in self._scales_by_slot:
            scales.index_fill_(0, slots, 0)
