"""What a step takes: the pass that memory is sized by, and ranges for NVIDIA's profilers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch

from tightpack.torch_backend.step_inputs import Piece

_TRIALS = 10


def step_range(name: str, device: torch.device) -> AbstractContextManager[object]:
    """An NVTX range, which Nsight Systems shows by name; nothing on a CPU."""
    return torch.cuda.nvtx.range(name) if device.type == "cuda" else nullcontext()


def largest_step(
    *, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, block_size: int
) -> list[Piece]:
    """As many tokens and sequences as one step can have: one long prompt, the rest among the others. Each has
    blocks of its own."""
    sequences = min(max_num_seqs, max_num_batched_tokens)
    longest = min(max_model_len, max_num_batched_tokens - sequences + 1)
    counts, left = [longest], max_num_batched_tokens - longest
    for others in range(sequences - 1, 0, -1):
        counts.append(min(max_model_len, -(-left // others)))
        left -= counts[-1]
    pieces, free = [], 0
    for count in counts:
        blocks = -(-count // block_size)
        pieces.append(Piece((0,) * count, 0, tuple(range(free, free + blocks))))
        free += blocks
    return pieces


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Bytes that `run` holds at the most beyond what is held before. CUDA."""
    run()  # libraries make their workspaces, which stay
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def device_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of a run on the device, its caches as the run before left them. CUDA."""
    run()
    pairs = []
    for _ in range(_TRIALS):
        start, end = _timed_event(), _timed_event()
        start.record()
        run()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize(device)
    milliseconds: list[float] = [start.elapsed_time(end) for start, end in pairs]
    return median(milliseconds) / 1e3


def _timed_event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
