"""Decoding from buffers that stay where they are: what a CUDA graph records once and replays.

A step of single tokens is padded to one of a few batch sizes. Its numbers (tokens, positions, block tables)
are written into one array in pinned memory and cross to the device in one copy; everything else is computed
there. On CUDA each size is recorded at the start, so that a step costs the host a copy and a launch. Without
graphs, which is how a CPU tests it, the same function runs on the same buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightpack.torch_backend.step_inputs import DecodeBuffers, Piece

# Replays of a size before it is recorded: kernels are chosen and libraries make their workspaces.
_WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Decoded:
    """hidden: [size, hidden_size]; logits: float32 [size, vocab_size]. Good until the next step."""

    hidden: Tensor
    logits: Tensor


Compute = Callable[[DecodeBuffers], Decoded]


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Sizes to pad to, up to `largest`: padding adds a quarter at the most beyond 32 rows."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, largest + 1, 32)]
    return tuple(sorted({size for size in sizes if size < largest} | {largest}))


class DecodeStep:
    """compute: the model over buffers, without waiting for the device. width: blocks a row at the most.
    spare_block: where padding writes.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        sizes: Sequence[int],
        width: int,
        spare_block: int,
        device: torch.device,
    ) -> None:
        self._compute = compute
        self._sizes = tuple(sizes)
        self._width, self._spare_block = width, spare_block
        numbers = self._sizes[-1] * (2 + width)
        # Two, since the step before may not have been copied when the next is written.
        pinned = device.type == "cuda"
        self._staged = [torch.zeros(numbers, dtype=torch.int64, pin_memory=pinned) for _ in range(2)]
        self._on_device = torch.zeros(numbers, dtype=torch.int64, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Decoded]] = {}

    @property
    def largest(self) -> int:
        return self._sizes[-1]

    def size_for(self, count: int) -> int:
        """The smallest size that holds `count` rows."""
        return next(size for size in self._sizes if size >= count)

    def forget(self) -> None:
        """Give up what was recorded."""
        self._graphs.clear()

    def record(self, pool: Any) -> None:
        """Record a graph of every size in the memory of `pool`, the largest first, whose memory the others
        share. CUDA only. Again once layers have changed: graphs read weights where they were."""
        self.forget()
        for size in reversed(self._sizes):
            self._stage((), size)
            buffers = self._buffers(size)
            for _ in range(_WARM_UPS):
                self._compute(buffers)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                decoded = self._compute(buffers)
            self._graphs[size] = (graph, decoded)

    def recorded(self, size: int) -> bool:
        """Whether a step of `size` rows replays a graph."""
        return size in self._graphs

    def __call__(self, pieces: Sequence[Piece]) -> Decoded:
        """Pieces of one token each, `largest` at the most; row i is piece i's."""
        size = self.size_for(len(pieces))
        self._stage(pieces, size)
        recorded = self._graphs.get(size)
        if recorded is None:
            decoded = self._compute(self._buffers(size))
        else:
            graph, decoded = recorded
            graph.replay()
        return Decoded(decoded.hidden[: len(pieces)], decoded.logits[: len(pieces)])

    def _stage(self, pieces: Sequence[Piece], size: int) -> None:
        """Write the step's numbers and send them. The array is free again: whoever asks for a step has waited
        for the tokens of all but the one before."""
        count = len(pieces)
        self._staged.reverse()
        staged = self._staged[0]
        array = staged.numpy()
        tokens, positions = array[:size], array[size : 2 * size]
        tables = array[2 * size : size * (2 + self._width)].reshape(size, self._width)
        tokens[count:], positions[count:], tables[count:] = 0, 0, self._spare_block
        for row, piece in enumerate(pieces):
            tokens[row], positions[row] = piece.tokens[0], piece.first_token
            blocks = piece.block_table[: self._width]
            tables[row, : len(blocks)] = blocks
            # Never read: what is attended to ends with the row's position.
            tables[row, len(blocks) :] = blocks[0]
        used = size * (2 + self._width)
        self._on_device[:used].copy_(staged[:used], non_blocking=True)

    def _buffers(self, size: int) -> DecodeBuffers:
        tables = self._on_device[2 * size : size * (2 + self._width)].view(size, self._width)
        return DecodeBuffers(self._on_device[:size], self._on_device[size : 2 * size], tables)
