"""Static batching: the baseline. N requests go together, and their results come together."""

from __future__ import annotations

import math

from tightpack.requests.request import Request
from tightpack.scheduling.batch_policy import BatchPolicy
from tightpack.scheduling.limits import SchedulerLimits


class StaticPolicy(BatchPolicy):
    """Waits for a full batch, runs it to the end, and shows nothing before all of it is done.

    A partial batch leaves when no further request is expected, or after max_wait seconds without an arrival.
    """

    name = "static"

    def __init__(self, limits: SchedulerLimits) -> None:
        super().__init__(limits)
        self._last_arrival = -math.inf

    def add(self, request: Request) -> None:
        super().add(request)
        self._last_arrival = max(self._last_arrival, request.arrival_time)

    def may_publish(self, request: Request) -> bool:
        return not self._unfinished or request not in self._members

    def _partial_leaves_at(self) -> float:
        return self._last_arrival + self.limits.max_wait
