"""Open-loop drive of a serving loop in this process: requests come when they are due, ready or not.

A request's arrival time is the scheduled one even when a step was under way just then, so that time spent
waiting for the loop is measured and not hidden ("coordinated omission").
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tightpack.benchmarking.workload import Workload, WorkloadRequest
from tightpack.latency.request_latency import RequestLatency
from tightpack.requests.outputs import Update
from tightpack.requests.request import FinishReason, Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.policy import QueueFullError
from tightpack.serving_loop.loop import LoopStats, ServingLoop

# The shortest sleep, so that a wakeup due at once, or lost in rounding, cannot spin.
_SHORTEST_SLEEP_S = 1e-4


@dataclass(slots=True)
class Outcome:
    """What became of one request. error: why it was refused or failed, None when all went well."""

    planned: WorkloadRequest
    arrival_time: float
    token_times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None

    @property
    def completed(self) -> bool:
        """Whether it gave every token that was asked for."""
        return self.finish_reason == FinishReason.LENGTH

    @property
    def latency(self) -> RequestLatency:
        return RequestLatency.of(self.arrival_time, self.token_times)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drive has come: requests arrived and ended, output tokens seen, seconds since the start."""

    arrived: int
    ended: int
    total: int
    output_tokens: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Drive:
    """A finished drive. outcomes: one a request of the workload, in its order. stats: of this drive alone."""

    workload: Workload
    outcomes: tuple[Outcome, ...]
    stats: LoopStats


def drive(
    loop: ServingLoop,
    workload: Workload,
    *,
    sleep: Callable[[float], None] = time.sleep,
    on_progress: Callable[[Progress], None] | None = None,
) -> Drive:
    """Run a workload through a fresh serving loop until the last request has ended.

    sleep: waits this many seconds of the loop's clock; a virtual clock is moved on instead.
    on_progress: called after every step.
    Raises ValueError for a loop in use, RuntimeError if the loop has work but can never go on.
    """
    if loop.has_unfinished or loop.stats.steps:
        raise ValueError("a drive needs a fresh serving loop: its intake is closed at the end")
    start = loop.clock.now()
    waiting = deque(Outcome(planned, start + planned.shape.arrival_s) for planned in workload.requests)
    outcomes = {f"bench-{index}": outcome for index, outcome in enumerate(waiting)}
    names = deque(outcomes)
    output_tokens = ended = 0

    while waiting or loop.has_unfinished:
        while waiting and waiting[0].arrival_time <= loop.clock.now():
            ended += not _admit(loop, names.popleft(), waiting.popleft())
            if not waiting:
                loop.close_intake()
        steps_before = loop.stats.steps
        updates = loop.step()
        for update in updates:
            _record(outcomes[update.request_id], update)
            output_tokens += len(update.token_ids)
            ended += update.finish_reason is not None
        if on_progress is not None:
            elapsed = loop.clock.now() - start
            arrived = len(outcomes) - len(waiting)
            on_progress(Progress(arrived, ended, len(outcomes), output_tokens, elapsed))
        if loop.stats.steps == steps_before and not updates:
            _idle(loop, waiting[0].arrival_time if waiting else None, sleep)
    return Drive(workload, tuple(outcomes.values()), replace(loop.stats))


def _admit(loop: ServingLoop, name: str, outcome: Outcome) -> bool:
    """Hand a request that is due to the loop; False, with the reason noted, when it is refused."""
    planned = outcome.planned
    output_len = planned.shape.output_len
    request = Request(
        request_id=name,
        prompt_token_ids=planned.prompt_token_ids,
        params=SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True),
        seed=0,
        max_output_tokens=output_len,
        service_class=planned.shape.service_class,
        arrival_time=outcome.arrival_time,
    )
    try:
        loop.add(request)
    except (QueueFullError, ValueError) as error:
        outcome.finish_reason, outcome.error = FinishReason.ERROR, str(error)
        return False
    return True


def _record(outcome: Outcome, update: Update) -> None:
    outcome.token_times.extend([update.time] * len(update.token_ids))
    if update.finish_reason is not None:
        outcome.finish_reason, outcome.error = update.finish_reason, update.error


def _idle(loop: ServingLoop, next_arrival: float | None, sleep: Callable[[float], None]) -> None:
    """Nothing can run now: wait for the next arrival or for a batch whose wait ends."""
    if next_arrival is None and not loop.has_unfinished:
        return
    times = [when for when in (next_arrival, loop.next_wakeup()) if when is not None]
    if not times:
        raise RuntimeError(
            f"the policy holds {loop.stats.num_waiting} waiting and {loop.stats.num_running} running requests"
            " but plans nothing, and nothing will arrive to change that"
        )
    sleep(max(min(times) - loop.clock.now(), _SHORTEST_SLEEP_S))
