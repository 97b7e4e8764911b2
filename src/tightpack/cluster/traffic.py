"""The requests of a pool's service classes as they came: what predictions are made on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tightpack.cluster.attainment import Arrival
from tightpack.requests.service_class import ServiceClass

_KEPT = 4000
# Of requests whose length nobody knows yet.
_UNKNOWN_OUTPUT = 64


@dataclass(eq=False, slots=True)
class Arrived:
    """output_tokens: None until it has ended. most: what its max_tokens allows."""

    at: float
    service_class: ServiceClass
    prompt_tokens: int
    most: int | None
    output_tokens: int | None = None


class Traffic:
    """The latest requests, oldest first."""

    def __init__(self) -> None:
        self._arrived: deque[Arrived] = deque(maxlen=_KEPT)

    def add(self, arrived: Arrived) -> None:
        self._arrived.append(arrived)

    def arrivals(self) -> list[Arrival]:
        """Those that have not ended yet count with the mean output of those that have."""
        known = [one.output_tokens for one in self._arrived if one.output_tokens is not None]
        mean = sum(known) / len(known) if known else _UNKNOWN_OUTPUT
        return [
            Arrival(
                one.at,
                one.service_class,
                one.prompt_tokens,
                min(mean, one.most or mean) if one.output_tokens is None else one.output_tokens,
            )
            for one in self._arrived
        ]
