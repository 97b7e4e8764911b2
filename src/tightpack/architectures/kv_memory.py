"""What a KV cache takes, and how much of it a CPU's memory has room for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

from tightpack.architectures.model_spec import ModelSpec
from tightpack.schemes.quantized import KVCacheFormat

ELEMENT_BYTES: Mapping[str, int] = MappingProxyType({"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1, "int8": 1})
_NAMES = MappingProxyType({"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"})
_SCALE_BYTES = 4

# On a CPU the cache may take this much and no more than a quarter of what is free: other programs live there.
_LARGEST_CPU_CACHE = 4 * 2**30
_CPU_CACHE_SHARE = 0.25


def has_dynamic_scales(kv_format: KVCacheFormat) -> bool:
    """Integers without calibrated scales have no useful constant one; 8-bit floats do: 1."""
    return kv_format.precision == "int8" and not kv_format.key_scales


def describe(kv_format: KVCacheFormat) -> str:
    """For people and manifests: "bfloat16", "fp8", "fp8 with calibrated scales"."""
    if kv_format.key_scales:
        return f"{kv_format.precision} with calibrated scales"
    if has_dynamic_scales(kv_format):
        return "int8 with a scale a token and head"
    return _NAMES.get(kv_format.precision, kv_format.precision)


def check_scales(spec: ModelSpec, kv_format: KVCacheFormat) -> None:
    """Raises ValueError for scales that are not positive, one a layer."""
    for scales in (kv_format.key_scales, kv_format.value_scales):
        if len(scales) not in (0, spec.num_layers) or len(scales) != len(kv_format.value_scales):
            raise ValueError(
                f"the KV cache has {len(kv_format.key_scales)} key and {len(kv_format.value_scales)} value "
                f"scales; the model has {spec.num_layers} layers"
            )
        if not all(0 < scale < float("inf") for scale in scales):
            raise ValueError("the KV cache has a scale that is not a positive number")


def kv_bytes_per_token(spec: ModelSpec, kv_format: KVCacheFormat) -> int:
    """Bytes that one position takes in the caches of all layers, scales included."""
    scales = _SCALE_BYTES / spec.head_dim if has_dynamic_scales(kv_format) else 0
    return spec.kv_bytes_per_token(ELEMENT_BYTES[kv_format.precision] + scales)


def kv_block_bytes(spec: ModelSpec, block_size: int, kv_format: KVCacheFormat) -> int:
    """Bytes that one block takes in the caches of all layers."""
    return kv_bytes_per_token(spec, kv_format) * block_size


def cpu_budget() -> float:
    """Bytes that a KV cache on a CPU may take: the lesser of 4 GiB and a quarter of the free memory."""
    return min(_LARGEST_CPU_CACHE, _CPU_CACHE_SHARE * free_memory())


def check_fits_cpu(num_blocks: int, spec: ModelSpec, block_size: int, kv_format: KVCacheFormat) -> None:
    """Raises MemoryError for more blocks than the free memory holds, with how many it would."""
    block_bytes, free = kv_block_bytes(spec, block_size, kv_format), free_memory()
    if num_blocks * block_bytes > free:
        raise MemoryError(
            f"num_blocks={num_blocks} take {num_blocks * block_bytes / 2**30:,.1f} GiB of KV cache, and "
            f"{free / 2**30:,.1f} GiB are free; {int(free // block_bytes)} would fill them"
        )


def blocks_within(
    budget: float,
    spec: ModelSpec,
    *,
    block_size: int,
    kv_format: KVCacheFormat,
    max_num_seqs: int,
    max_model_len: int,
    remedy: str = "lower max_model_len or give num_blocks",
) -> int:
    """KV blocks that `budget` bytes hold, and no more than max_num_seqs requests of max_model_len tokens use.

    Raises MemoryError, ending in `remedy`, when not one request of max_model_len fits.
    """
    blocks_a_request = -(-max_model_len // block_size)
    block_bytes = kv_block_bytes(spec, block_size, kv_format)
    fitting = max(0, int(budget // block_bytes))
    if fitting < blocks_a_request:
        raise MemoryError(
            f"the KV cache of one request of max_model_len={max_model_len} takes "
            f"{blocks_a_request * block_bytes / 2**20:.0f} MiB, and {max(0, budget) / 2**20:.0f} MiB "
            f"are to be had; {remedy}"
        )
    return min(fitting, max_num_seqs * blocks_a_request)


def free_memory() -> int:
    """Bytes that can be had without swapping: Linux's estimate where there is one, else free pages."""
    try:
        with open("/proc/meminfo") as meminfo:
            for line in meminfo:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 2 * _LARGEST_CPU_CACHE
