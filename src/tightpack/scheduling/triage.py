"""Which prompts can all make their deadlines, and which must let them pass."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from tightpack.scheduling.standing import Standing

# The prompt that gives way is the longest, if it is so many times as long as the one that would be late.
_MUCH_LONGER = 1.0


def left_out(
    by_deadline: Iterable[Standing],
    seconds: Callable[[Standing], float],
    finish: Callable[[float], float],
) -> set[Standing]:
    """Those to be served after the others, so that the most deadlines are made.

    Moore 1968: take the prompts by deadline, and whenever one would be late, leave out the longest so far.

    by_deadline: nearest first. seconds: the work a prompt needs. finish: when so much work is done.
    """
    out: set[Standing] = set()
    longest: list[tuple[float, int, Standing]] = []
    work = 0.0
    for standing in by_deadline:
        needs = seconds(standing)
        heapq.heappush(longest, (-needs, -standing.age, standing))
        work += needs
        if finish(work) > standing.deadline:
            negative, _, victim = heapq.heappop(longest)
            work += negative
            out.add(victim)
    return out
