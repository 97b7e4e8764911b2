"""The Triton kernels, imported where they run and nowhere else: PyTorch on a CPU comes without Triton.

A `KernelContext` stands for them: whoever has one computes with kernels, whoever has None in PyTorch's own
operators, which are the reference.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

_BACKEND = "tightpack.torch_backend"
_POOLS = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8)

# kernels.context.KernelContext, whose module imports Triton.
KernelContext = Any


def kernels_fit(device: torch.device, dtype: torch.dtype, storage: torch.dtype) -> bool:
    """Whether the kernels can run a decoder in `dtype` over a cache of `storage`."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and storage in _POOLS
        and importlib.util.find_spec("triton") is not None
        and importlib.util.find_spec(f"{_BACKEND}.kernels") is not None
    )


def backend_module(name: str) -> Any:
    """A module of this package that stands on the kernels."""
    return importlib.import_module(f"{_BACKEND}.{name}")


def make_context(device: torch.device) -> KernelContext:
    return backend_module("kernels.context").KernelContext(device)


def multiprocessors(device: torch.device) -> int:
    """What attention divides long contexts among; 1 for the interpreter on a CPU."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
