"""Which prompts can all make their deadlines, and which must let them pass."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from tightpack.scheduling.standing import Standing

# The prompt that gives way is the longest if it is so many times as long as the one that would be late, and
# else that one itself: being long alone is no reason to be left out.
_MUCH_LONGER = 2.0


def left_out(
    by_deadline: Iterable[Standing],
    seconds: Callable[[Standing], float],
    finish: Callable[[float], float],
    much_longer: float = _MUCH_LONGER,
) -> set[Standing]:
    """Those to be served after the others, so that many deadlines are made.

    Moore 1968: take the prompts by deadline, and whenever one would be late, leave out the longest so far.
    That makes the most deadlines that can be made (with `much_longer` of 1).

    by_deadline: nearest first. seconds: the work a prompt needs. finish: when so much work is done.
    """
    out: set[Standing] = set()
    longest: list[tuple[float, int, Standing]] = []
    work = 0.0
    for standing in by_deadline:
        needs = seconds(standing)
        if finish(work + needs) <= standing.deadline:
            heapq.heappush(longest, (-needs, -standing.age, standing))
            work += needs
        elif longest and -longest[0][0] > much_longer * needs:
            most, _, victim = heapq.heapreplace(longest, (-needs, -standing.age, standing))
            work += needs + most
            out.add(victim)
        else:
            out.add(standing)
    return out
