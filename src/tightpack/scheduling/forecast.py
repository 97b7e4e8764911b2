"""When the prompts that wait will be done."""

from __future__ import annotations

from dataclasses import dataclass

from tightpack.scheduling.pace import Pace


@dataclass(frozen=True, slots=True)
class Forecast:
    """As things stand at `now`, if nobody else came.

    total_s: the work of all prompts that wait or are under way.
    gap_s: seconds between requests that end, while a prompt waits for the place of one of them; else 0.
    """

    pace: Pace
    now: float
    total_s: float
    gap_s: float = 0.0

    def finish(self, work_s: float, num_places: int) -> float:
        """When a prompt is done that comes last of `work_s` seconds, `num_places` of which have to start.

        A step ends for all who are in it together, so even the first is done no earlier than the step's
        whole room is, if there is work for it.
        """
        pace = self.pace
        room = pace.room_s
        if work_s <= room:
            computed = self.now + pace.fixed_s + min(room, self.total_s)
        else:
            computed = self.now + pace.fixed_s + room + (work_s - room) * pace.stretch
        return max(computed, self.now + num_places * self.gap_s)
