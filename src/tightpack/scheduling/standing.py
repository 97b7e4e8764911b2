"""What a deadline-aware policy notes about each request, and the order in which prompts are served."""

from __future__ import annotations

import enum
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from tightpack.requests.request import Request

# First tokens are aimed at this share of the TTFT target. The clock here starts when a request has been read
# and stops when its token is computed; what is left is for the ways between client and engine, and for steps
# that take longer than predicted.
_AIM = 0.93


class Tier(enum.IntEnum):
    """Whose prompt is served before whose; within a tier by deadline, and without one by age."""

    PROMOTED = 0  # waited so long that its class owes it the place, to its end
    CHOSEN = 1  # will make its TTFT target
    LEFT_OUT = 2  # could make it, but others' would be missed for it
    LATE = 3  # cannot make it any more
    UNTIMED = 4  # has none


@dataclass(slots=True, eq=False)
class Standing:
    """A request under way.

    age: requests in order of arrival, 0 for the first.
    deadline: when its first token is due; infinite without a TTFT target.
    aim: when it should be there, a little earlier.
    waits_since: its arrival, or when it lost its blocks.
    num_cached: tokens of a waiting request that the prefix cache held when it was last looked up.
    first_token_time: when its first token was there; None before.
    waiting: it holds no blocks.
    served: it decodes, or it has ended: nothing of it waits for its prompt.
    """

    request: Request
    age: int
    deadline: float
    aim: float
    tier: Tier
    waits_since: float
    num_cached: int = 0
    first_token_time: float | None = None
    waiting: bool = True
    served: bool = False

    @classmethod
    def of(cls, request: Request, age: int) -> Standing:
        ttft = request.service_class.ttft_s
        if ttft is None:
            return cls(request, age, math.inf, math.inf, Tier.UNTIMED, request.arrival_time)
        arrived = request.arrival_time
        return cls(request, age, arrived + ttft, arrived + _AIM * ttft, Tier.CHOSEN, arrived)

    @property
    def first_pending(self) -> int:
        """The position where its next chunk begins, as far as is known."""
        return self.num_cached if self.waiting else self.request.num_computed_tokens

    @property
    def num_pending(self) -> int:
        return len(self.request.token_ids) - self.first_pending

    @property
    def order(self) -> tuple[int, float, int]:
        return self.tier, self.deadline, self.age


by_deadline = attrgetter("deadline", "age")


class WaitingLine:
    """Waiting requests, in the order in which they are served: a sorted list for each tier."""

    def __init__(self) -> None:
        self._tiers: tuple[list[Standing], ...] = tuple([] for _ in Tier)

    def __iter__(self) -> Iterator[Standing]:
        for tier in self._tiers:
            yield from tier

    def __len__(self) -> int:
        return sum(map(len, self._tiers))

    def first(self) -> Standing | None:
        return next(iter(self), None)

    def of_tier(self, tier: Tier) -> tuple[Standing, ...]:
        return tuple(self._tiers[tier])

    def add(self, standing: Standing) -> None:
        insort(self._tiers[standing.tier], standing, key=by_deadline)

    def discard(self, standing: Standing) -> None:
        tier = self._tiers[standing.tier]
        place = bisect_left(tier, by_deadline(standing), key=by_deadline)
        del tier[place]

    def move(self, standing: Standing, tier: Tier) -> None:
        """Change the tier of a standing that waits."""
        if standing.tier is not tier:
            self.discard(standing)
            standing.tier = tier
            self.add(standing)

    def unsettled(self) -> tuple[Standing, ...]:
        """Those whose deadline may still be made."""
        return (*self._tiers[Tier.CHOSEN], *self._tiers[Tier.LEFT_OUT])
