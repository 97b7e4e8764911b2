"""How many replicas a pool should have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.cluster.attainment import Arrival, predicted_attainment
from tightpack.cluster.config import AutoscalingConfig, PoolConfig
from tightpack.serving_loop.load import EngineLoad

# The latest arrivals speak for the window: a prediction must not take longer than an interval.
_MOST_ARRIVALS = 1000


@dataclass(frozen=True, slots=True)
class Target:
    """replicas: how many there should be. attainment: predicted with those there are. reason: in words."""

    replicas: int
    attainment: float
    reason: str


class Autoscaler:
    """Of one pool. More replicas at once when the traffic of the window is predicted to miss its targets with
    those there are: the fewest that are enough. One fewer when that has been enough, with headroom, for
    `down_after` seconds on end."""

    def __init__(self, pool: PoolConfig, config: AutoscalingConfig, patience: float) -> None:
        self._pool = pool
        self._config = config
        self._patience = patience
        self._enough_since: float | None = None

    def decide(
        self, now: float, arrivals: Sequence[Arrival], load: EngineLoad | None, replicas: int
    ) -> Target:
        """replicas: the target so far, those that start counted. load: of a typical replica, if any."""
        low, high = self._pool.min_replicas, self._pool.max_replicas
        if load is None or not load.num_observed:
            return Target(min(max(replicas, low), high), 1.0, "nothing is known of the step times yet")
        recent = [one for one in arrivals if one.at > now - self._config.window][-_MOST_ARRIVALS:]

        def attainment(count: int, faster: float = 1.0) -> float:
            return predicted_attainment(recent, count, load, patience=self._patience, faster=faster)

        current = goal = attainment(replicas)
        if current < self._config.attainment:
            each = {count: attainment(count) for count in range(replicas + 1, high + 1)}
            # Targets that no number of replicas meets are no reason to have the most.
            goal = min(self._config.attainment, max([current, *each.values()]))
            if current < goal:
                self._enough_since = None
                wanted = next(count for count, share in each.items() if share >= goal)
                return Target(max(low, wanted), current, f"{current:.1%} in time with {replicas}")
        fewer_do = replicas > low and attainment(replicas - 1, self._config.headroom) >= min(
            goal, self._config.attainment
        )
        if not fewer_do:
            self._enough_since = None
        elif self._enough_since is None:
            self._enough_since = now
        if self._enough_since is not None and now - self._enough_since >= self._config.down_after:
            self._enough_since = now
            return Target(replicas - 1, current, f"{replicas - 1} are enough")
        return Target(min(max(replicas, low), high), current, "as many as are needed")
