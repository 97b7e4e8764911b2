"""The seam below the router: who runs the replicas. On Ray it is `ray_fleet`; tests have processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Announced:
    """A replica that takes requests at `url`. pid, node: of its process, for whoever looks for it."""

    id: str
    pool: str
    url: str
    pid: int
    node: str


class Fleet(Protocol):
    """Starts, heals and stops replicas; a new one announces itself once its model is loaded."""

    async def members(self, known: int) -> tuple[int, Sequence[Announced]]:
        """A version and the replicas of it, when that version is not `known` or after some seconds."""

    async def forget(self, replica_id: str) -> None:
        """The replica has not answered for long; it may announce itself again."""

    async def failure(self) -> str | None:
        """Why a pool cannot start, if it cannot; None while there is hope."""

    async def scale(self, pool: str, replicas: int) -> None:
        """Have so many; those beyond are drained before they end. Returns when that has been asked for."""
