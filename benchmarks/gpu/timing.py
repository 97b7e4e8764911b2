"""Times on a GPU: medians of CUDA events, each run finding the L2 cache without its data."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

# Larger than any L2 cache; a power of two.
_FLUSHED_BYTES = 2**28
_WARM_UPS = 3


class Clock:
    """Of one device; holds the memory that clears its cache."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)
        self._repeats = repeats

    def seconds(self, run: Callable[[], object]) -> float:
        """The median time of a run on the device."""
        for _ in range(_WARM_UPS):
            run()
        pairs = []
        for _ in range(self._repeats):
            self._flushed.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return median(start.elapsed_time(end) for start, end in pairs) / 1e3

    def bandwidth(self) -> float:
        """Bytes a second that reading reaches: the sum of 2 GiB, the pattern of a decode's weights."""
        numbers = torch.ones(2**29, dtype=torch.float32, device=self._flushed.device)
        return numbers.nbytes / self.seconds(lambda: numbers.sum())
