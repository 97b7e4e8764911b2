"""What "auto" means for the torch executor: dtype, device, and how many KV blocks fit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import torch

from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.rounded_kv_cache import Precision, kv_bytes_per_token, unrounded

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
}

_EIGHT_BITS: Mapping[str, Precision] = MappingProxyType({"fp8": "fp8", "fp8_e4m3": "fp8", "int8": "int8"})

# On a CPU the cache may take this much and no more than a quarter of what is free: other programs live there.
_CPU_CACHE_BYTES = 4 * 2**30
_CPU_CACHE_SHARE = 0.25


def resolve_dtype(name: str | torch.dtype, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of weights, activations and cache. "auto" is bfloat16, but float16 for a checkpoint stored so
    mostly; float32 is slower on every device and has to be asked for. Raises ValueError for unknown names."""
    if isinstance(name, torch.dtype):
        return name
    if name != "auto":
        if name not in _DTYPES:
            raise ValueError(f"dtype {name!r} is not known; use auto, {', '.join(_DTYPES)}")
        return _DTYPES[name]
    stored: Counter[str] = Counter()
    for info in checkpoint.tensors.infos.values():
        stored[info.precision] += info.num_bytes
    mostly = stored.most_common(1)[0][0] if stored else "bf16"
    return torch.float16 if mostly in ("fp16", "f16") else torch.bfloat16


def resolve_kv_cache(name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> KVCacheFormat:
    """What the cache holds. name: "auto", a float's name as `resolve_dtype` takes it, "fp8" or "int8".

    "auto" is what the checkpoint states, else the decoder's dtype. Scales are the checkpoint's where it has
    calibrated some for this precision. Else fp8 is kept as it is (scale 1, as vLLM has it), and int8 has a
    scale for each token and head. Raises ValueError for unknown names.
    """
    stated = checkpoint.kv_cache_format
    if name == "auto" and stated is not None:
        return stated
    if name in _EIGHT_BITS:
        wanted = KVCacheFormat(precision=_EIGHT_BITS[name])
    else:
        wanted = unrounded(dtype if name == "auto" else resolve_dtype(name, checkpoint))
    return stated if stated is not None and stated.precision == wanted.precision else wanted


def resolve_device(name: str | torch.device) -> torch.device:
    """ "auto" is CUDA where a GPU can be used, else the CPU. Raises ValueError for what is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {str(device)!r} was asked for, but PyTorch {torch.__version__} finds no usable GPU"
        )
    return device


def kv_block_bytes(spec: ModelSpec, block_size: int, kv_format: KVCacheFormat) -> int:
    """Bytes that one block takes in the caches of all layers."""
    return kv_bytes_per_token(spec, kv_format) * block_size


def default_num_blocks(
    spec: ModelSpec,
    *,
    block_size: int,
    dtype: torch.dtype,
    kv_format: KVCacheFormat,
    device: torch.device,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    gpu_memory_utilization: float = 0.9,
) -> int:
    """KV blocks to allocate; call it when the weights are loaded. dtype: of the decoder.

    No more than max_num_seqs requests of max_model_len tokens could use. On CUDA, what gpu_memory_utilization
    of the device leaves beside what is in use and an estimate of a step's activations; on a CPU, the lesser
    of 4 GiB and a quarter of the free memory. Raises MemoryError when not one request of max_model_len fits.
    """
    blocks_a_request = -(-max_model_len // block_size)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        budget = gpu_memory_utilization * total - (total - free)
        budget -= _step_bytes(spec, dtype, max_num_seqs, max_num_batched_tokens, max_model_len)
        remedy = "raise gpu_memory_utilization or lower max_model_len"
    else:
        budget = min(_CPU_CACHE_BYTES, _CPU_CACHE_SHARE * _free_memory())
        remedy = "lower max_model_len or give num_blocks"
    block_bytes = kv_block_bytes(spec, block_size, kv_format)
    fitting = max(0, int(budget // block_bytes))
    if fitting < blocks_a_request:
        raise MemoryError(
            f"the KV cache of one request of max_model_len={max_model_len} takes "
            f"{blocks_a_request * block_bytes / 2**20:.0f} MiB, and {max(0, budget) / 2**20:.0f} MiB "
            f"are to be had; {remedy}"
        )
    return min(fitting, max_num_seqs * blocks_a_request)


def _step_bytes(
    spec: ModelSpec, dtype: torch.dtype, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int
) -> int:
    """A generous estimate of the largest step's temporaries: activations, logits, and a gathered context."""
    widths = 6 * spec.hidden_size + 3 * spec.intermediate_size + 4 * spec.num_heads * spec.head_dim
    activations = max_num_batched_tokens * widths * dtype.itemsize
    logits = 4 * max_num_seqs * spec.vocab_size * 4
    layer_kv = spec.kv_bytes_per_token(dtype.itemsize) // spec.num_layers
    gathered = 3 * max_num_seqs * max_model_len * layer_kv
    masks = 2 * max_num_batched_tokens * max_model_len * dtype.itemsize
    return activations + logits + gathered + masks


def _free_memory() -> int:
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
        return 2 * _CPU_CACHE_BYTES
