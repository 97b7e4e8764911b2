"""The bound on starvation: what each service class is owed for its requests that have waited long."""

from __future__ import annotations

from collections import deque

from tightpack.requests.service_class import ServiceClass
from tightpack.scheduling.standing import Standing, Tier

# Seconds that a request without a place waits until its class's share is used for it.
PATIENCE = 5.0


class FairShares:
    """Credits of prompt tokens, a class.

    While the oldest request of a class that still waits for its prompt has waited PATIENCE seconds, the class
    earns its `share` of all prompt tokens computed. As soon as that pays for the prompt, the request is due.
    So between the moment when it is the oldest and has lost patience, and the moment when it is due, no more
    than (its prompt tokens / share) and one step's prompt tokens are computed.
    """

    def __init__(self) -> None:
        self._lines: dict[ServiceClass, deque[Standing]] = {}
        self._credit: dict[ServiceClass, float] = {}

    def add(self, standing: Standing) -> None:
        """A request arrived."""
        self._lines.setdefault(standing.request.service_class, deque()).append(standing)

    def add_back(self, standing: Standing) -> None:
        """A request lost its blocks; it is older than most."""
        self._lines[standing.request.service_class].appendleft(standing)

    def due(self, now: float, num_prompt_tokens: int) -> list[Standing]:
        """Who is to be promoted, after `num_prompt_tokens` were computed since the last call."""
        promoted = []
        for service_class, line in self._lines.items():
            while line and (line[0].served or line[0].tier is Tier.PROMOTED):
                line.popleft()
            if not line or now < line[0].waits_since + PATIENCE:
                self._credit[service_class] = 0.0
                continue
            credit = self._credit.get(service_class, 0.0) + service_class.share * num_prompt_tokens
            if credit >= line[0].num_pending:
                oldest = line.popleft()
                credit -= oldest.num_pending
                promoted.append(oldest)
            self._credit[service_class] = credit
        return promoted
