"""Whether a new request's first token can come in time, and if not, when it could."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tightpack.scheduling.forecast import Forecast
from tightpack.scheduling.pace import Pace
from tightpack.scheduling.standing import Standing, Tier, by_deadline

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

    @property
    def gap_s(self) -> float:
        """Seconds from one to the next; 0 before any was seen."""
        return self._gap_s


def attainable_in(
    standing: Standing, others: Iterable[Standing], pace: Pace, now: float, gap_s: float
) -> float:
    """In how many seconds a new request could be taken that cannot be taken now; 0 for one that can.

    It can if its own first token will come in time, and if everybody who was taken before and has more time
    will still be in time after it (the test of earliest deadline first). The seconds hold if nobody else
    comes meanwhile.

    others: those who wait or whose prompts are under way, but those who are late or have no deadline.
    gap_s: of `Forecast`.
    """
    if standing.deadline == math.inf or pace.model.num_observed < _MIN_STEPS:
        return 0.0
    own = pace.seconds(standing)
    ahead, behind = own, []
    places = 1
    for other in others:
        if other.tier is Tier.PROMOTED or other.deadline <= standing.deadline:
            ahead += pace.seconds(other)
            places += other.waiting
        else:
            behind.append(other)
    needs = [(other, pace.seconds(other)) for other in sorted(behind, key=by_deadline)]
    everyone = ahead + sum(seconds for _, seconds in needs)
    forecast = Forecast(pace, now, everyone, gap_s)
    wait = 0.0
    if forecast.finish(ahead, places) > standing.aim:
        num_places = places + sum(other.waiting for other in behind)
        wait = forecast.finish(everyone, num_places) - standing.aim
    work = ahead
    for other, seconds in needs:
        work += seconds
        places += other.waiting
        done = forecast.finish(work, places)
        # Who would be late as it is has nothing to lose.
        if done > other.aim and forecast.finish(work - own, places - 1) <= other.deadline:
            wait = max(wait, done - now)
    return wait
