"""Time as the serving loop sees it: wall time in production, virtual time in simulation."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since a fixed, arbitrary origin; never runs backwards."""


class MonotonicClock:
    def now(self) -> float:
        return time.monotonic()
