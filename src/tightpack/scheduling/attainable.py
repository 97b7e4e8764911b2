"""Whether a new request's first token can come in time, and if not, when it could."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tightpack.scheduling.pace import Pace
from tightpack.scheduling.standing import Standing, Tier

# Steps that the model must have seen before anybody is refused on its word.
_MIN_STEPS = 32
_SMOOTHING = 0.1


class Departures:
    """The mean time between requests that end, by which a queue for places moves on."""

    def __init__(self) -> None:
        self._gap_s = 0.0
        self._since = -math.inf
        self._count = 0

    def note(self) -> None:
        """A running request ended."""
        self._count += 1

    def settle(self, now: float, *, busy: bool) -> None:
        """Called at each step: what ended before it did so in the time since the last that did."""
        if self._count and self._since > -math.inf:
            gap = (now - self._since) / self._count
            self._gap_s = gap if self._gap_s == 0.0 else self._gap_s + _SMOOTHING * (gap - self._gap_s)
        if self._count or not busy:
            self._since, self._count = now, 0

    def seconds(self, count: int) -> float:
        """Until so many more have ended."""
        return count * self._gap_s


def seconds_short(
    standing: Standing,
    ahead: Iterable[Standing],
    pace: Pace,
    now: float,
    departures: Departures,
    *,
    places_taken: bool,
) -> float:
    """By how many seconds a new request would miss its deadline; 0 or less when it would not.

    So long after now it would be in time, if nobody else came: whoever is ahead of it now, and whoever would
    be by then because its deadline is nearer, is done or as much nearer to being done.

    ahead: those who wait or whose prompts are under way, but those who are late or have no deadline.
    places_taken: whether a request in `ahead` waits for another to end, rather than for its prompt's turn.
    """
    if standing.deadline == math.inf or pace.model.num_observed < _MIN_STEPS:
        return -math.inf
    own = pace.seconds(standing)
    first, everyone, num_first, num_everyone = own, own, 1, 1
    for other in ahead:
        work = pace.seconds(other)
        everyone += work
        num_everyone += 1
        if other.tier is Tier.PROMOTED or other.deadline <= standing.deadline:
            first += work
            num_first += 1

    def finish(work: float, count: int) -> float:
        for_place = departures.seconds(count) if places_taken else 0.0
        return max(pace.finish(now, work), now + for_place)

    if finish(first, num_first) <= standing.deadline:
        return 0.0
    return finish(everyone, num_everyone) - standing.deadline
