"""Time that passes when somebody says so."""

from __future__ import annotations

import math


class VirtualClock:
    """A `serving_loop.clock.Clock` at 0 s, moved on by the simulated executor and by whoever waits."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let this many seconds pass at once. Raises ValueError for a step back."""
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"time passes by 0 or more seconds, got {seconds}")
        self._now += seconds
