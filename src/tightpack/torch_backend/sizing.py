"""What "auto" means for the torch executor: dtype, device, and how many KV blocks fit."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from tightpack.architectures import kv_memory
from tightpack.architectures.model_spec import ModelSpec
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.precision import float_precision
from tightpack.schemes.quantized import KVCacheFormat

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
)


def resolve_dtype(name: str | torch.dtype, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of weights, activations and cache; names as `checkpoints.precision.float_precision` has
    them."""
    return name if isinstance(name, torch.dtype) else _DTYPES[float_precision(name, checkpoint)]


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


def check_ranks(device: torch.device, size: int) -> None:
    """Raises ValueError where there are fewer GPUs than ranks."""
    if device.type == "cuda" and size > 1 and (device.index or 0) + size > torch.cuda.device_count():
        raise ValueError(
            f"tensor_parallel_size={size} needs a GPU a rank, from {device} on, and there are "
            f"{torch.cuda.device_count()}"
        )


def threads_a_rank(given: int | None, device: torch.device, size: int) -> int | None:
    """CPU threads of each rank's PyTorch; None leaves them as they are."""
    if given is not None or size == 1 or device.type == "cuda":
        return given
    return max(1, torch.get_num_threads() // size)


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
    sharing: int = 1,
    step_bytes: int | None = None,
) -> int:
    """KV blocks to allocate; call it when the weights are loaded. dtype: of the decoder. sharing: ranks that
    a CPU's memory is divided among. step_bytes: what the largest step takes beside weights and cache, where
    it was measured; else estimated.

    No more than max_num_seqs requests of max_model_len tokens could use. On CUDA, what gpu_memory_utilization
    of the device leaves beside what is in use and a step's activations; on a CPU, the lesser
    of 4 GiB and a quarter of the free memory. Raises MemoryError when not one request of max_model_len fits.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        budget = gpu_memory_utilization * total - (total - free)
        if step_bytes is None:
            step_bytes = estimated_step_bytes(
                spec, dtype, max_num_seqs, max_num_batched_tokens, max_model_len
            )
        budget -= step_bytes
        remedy = "raise gpu_memory_utilization or lower max_model_len"
    else:
        budget = kv_memory.cpu_budget() / sharing
        remedy = "lower max_model_len or give num_blocks"
    return kv_memory.blocks_within(
        budget,
        spec,
        block_size=block_size,
        kv_format=kv_format,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        remedy=remedy,
    )


def estimated_step_bytes(
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
