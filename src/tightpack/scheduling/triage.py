"""Which prompts can all make their deadlines, and which must let them pass."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence

from tightpack.scheduling.standing import Standing

# The prompt that gives way is the longest if it is so many times as long as the one that would be late, and
# else that one itself: being long alone is no reason to be left out.
_MUCH_LONGER = 2.0
# -seconds of work, -age: the first of a heap is the longest prompt, the latest of equal ones.
_Entry = tuple[float, int, Standing]


def all_in_time(
    by_deadline: Iterable[Standing],
    seconds: Callable[[Standing], float],
    finish: Callable[[float, int], float],
) -> bool:
    """Whether every deadline can be made; the arguments are those of `left_out`."""
    work, places = 0.0, 0
    for standing in by_deadline:
        work += seconds(standing)
        places += standing.waiting
        if finish(work, places) > standing.deadline:
            return False
    return True


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

    def in_time(entry: _Entry, without: Sequence[_Entry]) -> bool:
        less = sum(other[0] for other in without)
        fewer = sum(other[2].waiting for other in without)
        return finish(work - entry[0] + less, places + entry[2].waiting - fewer) <= due(entry[2])

    for standing in by_deadline:
        needs = seconds(standing)
        entry = -needs, -standing.age, standing
        if finish(work + needs, places + standing.waiting) > due(standing):
            give_way = _who_gives_way(longest, entry, in_time, much_longer)
            if give_way is None:
                out.add(standing)
                continue
            for other in give_way:
                longest.remove(other)
                work += other[0]
                places -= other[2].waiting
                out.add(other[2])
            heapq.heapify(longest)
        heapq.heappush(longest, entry)
        work += needs
        places += standing.waiting
    return out


def _who_gives_way(
    longest: list[_Entry],
    late: _Entry,
    in_time: Callable[[_Entry, Sequence[_Entry]], bool],
    much_longer: float,
) -> Sequence[_Entry] | None:
    """Who of those chosen so far gives way to the one that would be late; None if that is itself left out.

    longest: a heap. in_time: whether the first is, without the others.
    """
    if late[2].waiting:
        give_way = longest[:1] if longest and longest[0][0] < much_longer * late[0] else []
        return give_way if give_way and in_time(late, give_way) else None
    give_way = []
    for other in sorted(other for other in longest if other[2].waiting):
        give_way.append(other)
        if in_time(late, give_way):
            return give_way
    return None
