"""Which prompts can all make their deadlines, and which must let them pass."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from tightpack.scheduling.standing import Standing

# The prompt that gives way is the longest if it is so many times as long as the one that would be late, and
# else that one itself: being long alone is no reason to be left out.
_MUCH_LONGER = 2.0
# -seconds of work, -age: the first of a heap is the longest prompt, the latest of equal ones.
_Entry = tuple[float, int, Standing]


def left_out(
    by_deadline: Iterable[Standing],
    seconds: Callable[[Standing], float],
    finish: Callable[[float, int], float],
    due: Callable[[Standing], float],
    much_longer: float = _MUCH_LONGER,
) -> set[Standing]:
    """Those to be served after the others, so that many deadlines are made.

    Moore 1968: take the prompts by deadline, and whenever one would be late, leave out the longest so far.
    That makes the most deadlines that can be made (with `much_longer` of 1). A prompt that has begun holds a
    place and has work in it that would be lost: those that have not give way to it first.

    by_deadline: nearest first. seconds: the work a prompt needs. finish: when so much work is done, and so
    many have started who wait now. due: by when a prompt should be done.
    """
    out: set[Standing] = set()
    longest: list[_Entry] = []
    work, places = 0.0, 0
    for standing in by_deadline:
        needs = seconds(standing)
        entry = -needs, -standing.age, standing
        while finish(work + needs, places + standing.waiting) > due(standing):
            most = _gives_way(longest, entry, much_longer)
            if most is entry:
                out.add(standing)
                break
            longest.remove(most)
            heapq.heapify(longest)
            work += most[0]
            places -= most[2].waiting
            out.add(most[2])
        else:
            heapq.heappush(longest, entry)
            work += needs
            places += standing.waiting
    return out


def _gives_way(longest: list[_Entry], late: _Entry, much_longer: float) -> _Entry:
    """Who of those chosen so far gives way to the one that would be late, or that one itself.

    longest: a heap of (-seconds, -age, standing).
    """
    if not longest:
        return late
    if not late[2].waiting:
        return min((entry for entry in longest if entry[2].waiting), default=late)
    return longest[0] if longest[0][0] < much_longer * late[0] else late
