"""How fast a machine is just now: the same few steps, timed again and again.

Clock rates change with temperature, and neighbours on a shared machine come and go: between a calibration and
a run minutes later a step's time can differ by more than any cost model's error.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from tightpack.simulated.designed_steps import Part, Rows, Step, StepTimer

_SHORTEST_S = 0.6
_FEWEST_ROUNDS = 3


class MachineSpeed:
    """timer: of the executor in question, between its runs: its KV cache is overwritten."""

    def __init__(self, timer: StepTimer, rows: Rows, max_tokens: int) -> None:
        self._timer = timer
        self._steps = reference_steps(rows, max_tokens)
        self._then: list[list[float]] = []

    def calibrated(self) -> None:
        """Time the steps for comparison. Called before and after a calibration, the two count alike."""
        self._then.append(self._times())

    def slowdown(self) -> float:
        """What steps take now over what they took at calibration: the mean over the kinds of steps."""
        then = [statistics.fmean(times) for times in zip(*self._then, strict=True)]
        return statistics.fmean(now / before for now, before in zip(self._times(), then, strict=True))

    def _times(self) -> list[float]:
        """The mean seconds of each step. Not the median: a run feels what slows a few steps down, too."""
        taken: list[list[float]] = [[] for _ in self._steps]
        started = time.perf_counter()
        while len(taken[0]) < _FEWEST_ROUNDS or time.perf_counter() - started < _SHORTEST_S:
            for step, times in zip(self._steps, taken, strict=True):
                times.append(self._timer.time(step))
        return [statistics.fmean(times) for times in taken]


def reference_steps(rows: Rows, max_tokens: int) -> Sequence[Step]:
    """A full batch of decodes, one decode, a prompt, and a prompt beside decodes, of middling lengths."""
    context = min(256, rows.positions)
    prompt = min(128, rows.positions, max_tokens - rows.count)
    decodes: Step = tuple(Part(row, context - 1, 1) for row in range(min(rows.count, max_tokens)))
    steps: list[Step] = [decodes, decodes[:1]]
    if prompt > 1:
        steps += [(Part(0, 0, prompt),), (Part(0, 0, prompt), *decodes[1:])]
    return steps
