"""What the kernels of one device share: the chosen tiles, the memory for partial sums, the machine's size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from tightpack.torch_backend.kernels.tiles import Tile, candidates, row_bucket

INTERPRETED = bool(triton.knobs.runtime.interpret)

# Larger than any L2 cache (50 MB on H100), so that a trial finds its weights in memory, as a step does.
_FLUSHED_BYTES = 2**28
_TRIALS = 5
# The interpreter walks programs one by one; some, so that persistent loops have more than one turn.
_INTERPRETED_PROGRAMS = 2


@dataclass(frozen=True, slots=True)
class Division:
    """How programs share a product. splits: programs to a tile; steps_a_split: of the loop over inputs;
    partials, counters: for `output_tiles.sum_of_splits`."""

    grid: tuple[int]
    splits: int
    steps_a_split: int
    partials: Tensor
    counters: Tensor


class KernelContext:
    """device: CUDA, or the CPU under Triton's interpreter.

    tune: time each kernel's candidates at the first call with a shape (a second in all for a model); else,
    under the interpreter and while a CUDA graph is recorded, the first candidate is taken.
    """

    def __init__(self, device: torch.device, *, tune: bool = True) -> None:
        if device.type != "cuda" and not INTERPRETED:
            raise ValueError(
                f"Triton kernels run on CUDA, not on {device}; set TRITON_INTERPRET=1 to try them"
            )
        self.device = device
        self._tune = tune and not INTERPRETED
        self._chosen: dict[tuple[str, tuple[int, ...], int], Tile] = {}
        self._flushed: Tensor | None = None
        self._partials = torch.empty(0, dtype=torch.float32, device=device)
        self._counters = torch.zeros(0, dtype=torch.int32, device=device)
        # A recorded graph goes on using the memory it was recorded with.
        self._outgrown: list[Tensor] = []
        self.multiprocessors = (
            _INTERPRETED_PROGRAMS
            if INTERPRETED
            else torch.cuda.get_device_properties(device).multi_processor_count
        )

    @property
    def chosen(self) -> Mapping[tuple[str, tuple[int, ...], int], Tile]:
        """By kernel, shape and row bucket, what trials chose."""
        return dict(self._chosen)

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: object, **options: object) -> None:
        """Run a `triton.jit` function; every launch of every kernel comes through here."""
        kernel[grid](*args, **options)

    def choose(self, kernel: str, shape: tuple[int, ...], rows: int, run: Callable[[Tile], None]) -> Tile:
        """The tile for a kernel of `tiles.TILES` at a shape; `run` computes with one."""
        key = (kernel, shape, row_bucket(rows))
        tile = self._chosen.get(key)
        if tile is not None:
            return tile
        tiles = candidates(kernel, rows)
        if not self._tune or torch.cuda.is_current_stream_capturing():
            return tiles[0]
        tile = self._chosen[key] = min(tiles, key=lambda each: self._seconds(run, each))
        return tile

    def _seconds(self, run: Callable[[Tile], None], tile: Tile) -> float:
        """The median time of a run that finds nothing in the L2 cache; infinite where it does not fit."""
        if self._flushed is None:
            self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=self.device)
        try:
            run(tile)
        except triton.runtime.errors.OutOfResources:
            return float("inf")
        pairs = []
        for _ in range(_TRIALS):
            self._flushed.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run(tile)
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize(self.device)
        milliseconds: list[float] = [start.elapsed_time(end) for start, end in pairs]
        return sorted(milliseconds)[_TRIALS // 2]

    def finish_tuning(self) -> None:
        """Give back the memory that trials took."""
        self._flushed = None

    def divide(self, tile: Tile, outputs: int, rows: int, steps: int) -> Division:
        """A product of outputs by rows, each of `steps` steps over the inputs: no split without any."""
        a_split = triton.cdiv(steps, min(tile.splits, steps))
        splits = triton.cdiv(steps, a_split)
        tiles = triton.cdiv(outputs, tile.outputs) * triton.cdiv(rows, tile.rows)
        programs = tiles * splits
        if tile.persistent:
            # Those that fit a multiprocessor, by registers and shared memory.
            programs = min(programs, self.multiprocessors * (2 if tile.warps <= 4 else 1))
        return Division(
            (programs,), splits, a_split, *self.workspace(tiles, splits, tile.outputs * tile.rows)
        )

    def workspace(self, tiles: int, splits: int, numbers: int) -> tuple[Tensor, Tensor]:
        """partials: float32, at least [tiles, splits, numbers]; counters: int32 zeros, at least [tiles]."""
        if splits > 1:
            if len(self._partials) < tiles * splits * numbers:
                self._outgrown.append(self._partials)
                self._partials = self._partials.new_empty(tiles * splits * numbers)
            if len(self._counters) < tiles:
                self._outgrown.append(self._counters)
                self._counters = self._counters.new_zeros(tiles)
        return self._partials, self._counters
