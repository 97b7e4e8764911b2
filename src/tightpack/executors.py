"""Which executor runs a checkpoint: native on a CPU, PyTorch on CUDA and for what native cannot do."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import partial

from tightpack.architectures.kv_memory import check_fits_cpu
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.precision import float_precision, resolve_kv_cache
from tightpack.engine_args import EngineArgs, resolve_max_num_batched_tokens
from tightpack.on_load import with_quantization
from tightpack.serving_loop.executor import Executor

logger = logging.getLogger(__name__)

# What the NVIDIA driver puts there, on Linux and in WSL.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


def make_executor(checkpoint: Checkpoint, args: EngineArgs, max_model_len: int) -> Executor:
    """The executor that `args.executor` names; "auto" is native on a CPU, and PyTorch where it must be.

    Raises ValueError where what was asked for by name cannot run this or asks for more threads than CPUs,
    MemoryError for KV blocks beyond the free memory, and ModuleNotFoundError that says what to install where
    PyTorch is needed and absent.
    """
    _check_threads(args.num_threads)
    reason = _reason_against_native(checkpoint, args)
    if reason is None:
        if args.attention_backend != "auto":
            raise ValueError(
                f"attention_backend={args.attention_backend!r} chooses among a GPU's kernels, and the native "
                "executor computes on the CPU; leave it out"
            )
        if args.async_scheduling:
            raise ValueError(
                "async_scheduling needs executor='torch': the native one computes where it is called, and "
                "nothing runs beside the host"
            )
        return _native(checkpoint, args, max_model_len)
    if args.executor == "native":
        raise ValueError(f"executor='native' cannot run {checkpoint.name}: {reason}")
    by_choice = args.executor == "torch" or args.tensor_parallel_size > 1 or reason == _ON_CUDA
    if args.activation_dtype == "int8":
        raise ValueError(
            f"activation_dtype='int8' is the native executor's, which does not run {checkpoint.name} here: "
            f"{reason}"
        )
    if not by_choice:
        logger.warning("PyTorch runs %s, the native executor cannot: %s", checkpoint.name, reason)
    return _torch(checkpoint, args, max_model_len, None if by_choice else reason)


def _check_threads(num_threads: int | None) -> None:
    from tightpack.native_cpu.threads import allowed_cpus

    if num_threads is not None and num_threads > (cpus := allowed_cpus()):
        raise ValueError(
            f"num_threads={num_threads} are more than the {cpus} CPUs that this process may use; threads "
            "that take turns on a CPU wait for each other in every layer"
        )


_ON_CUDA = "it computes on CPUs alone, and the device is a GPU"


def _reason_against_native(checkpoint: Checkpoint, args: EngineArgs) -> str | None:
    if args.executor == "torch":
        return "executor is 'torch'"
    if _on_cuda(args.device):
        return _ON_CUDA
    if args.tensor_parallel_size > 1:
        return f"it is one process, and tensor_parallel_size={args.tensor_parallel_size}"
    from tightpack.native_cpu.support import reason_against

    return reason_against(
        checkpoint, dtype=args.dtype, kv_cache_dtype=args.kv_cache_dtype, block_size=args.block_size
    )


def _on_cuda(device: str) -> bool:
    """PyTorch is asked only where there may be a GPU: its import takes longer than loading a small model."""
    if device != "auto":
        return device.startswith("cuda")
    if not any(map(os.path.exists, _GPU_FILES)) or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _native(checkpoint: Checkpoint, args: EngineArgs, max_model_len: int) -> Executor:
    from tightpack.native_cpu.executor import NativeExecutor

    kv_cache = resolve_kv_cache(args.kv_cache_dtype, checkpoint, "bf16")
    if args.num_blocks is not None:
        check_fits_cpu(args.num_blocks, checkpoint.spec, args.block_size, kv_cache)
    return NativeExecutor(
        checkpoint,
        kv_cache=kv_cache,
        activation_dtype=args.activation_dtype,
        block_size=args.block_size,
        num_blocks=args.num_blocks,
        max_num_seqs=args.max_num_seqs,
        max_model_len=max_model_len,
        num_threads=args.num_threads,
    )


def _torch(checkpoint: Checkpoint, args: EngineArgs, max_model_len: int, reason: str | None) -> Executor:
    """reason: why it has to be PyTorch, for the one who must install it."""
    try:
        from tightpack.torch_backend.executor import TorchExecutor
        from tightpack.torch_backend.sizing import check_ranks, resolve_device, resolve_dtype, threads_a_rank
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        why = "" if reason is None else f" ({reason})"
        raise ModuleNotFoundError(
            f"this model runs on PyTorch{why}, which is not installed: pip install 'tightpack[torch]'",
            name="torch",
        ) from error
    device = resolve_device(args.device)
    size = args.tensor_parallel_size
    check_ranks(device, size)
    dtype = resolve_dtype(args.dtype, checkpoint)
    kv_cache = resolve_kv_cache(args.kv_cache_dtype, checkpoint, float_precision(args.dtype, checkpoint))
    if args.num_blocks is not None and device.type == "cpu":
        check_fits_cpu(args.num_blocks, checkpoint.spec, args.block_size, kv_cache)
    return TorchExecutor(
        checkpoint,
        dtype=dtype,
        kv_cache=kv_cache,
        device=device,
        block_size=args.block_size,
        num_blocks=args.num_blocks,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=resolve_max_num_batched_tokens(args, max_model_len, device.type),
        max_model_len=max_model_len,
        num_threads=threads_a_rank(args.num_threads, device, size),
        gpu_memory_utilization=args.gpu_memory_utilization,
        tensor_parallel_size=size,
        open_checkpoint=partial(_open_again, args),
        static_decode=False if args.enforce_eager else None,
        prompt_graph_tokens=args.prompt_graph_tokens,
        attention_backend=args.attention_backend,
        async_scheduling=args.async_scheduling,
    )


def _open_again(args: EngineArgs) -> Checkpoint:
    """The checkpoint in the process of another rank."""
    return with_quantization(open_checkpoint(args.model), args)
