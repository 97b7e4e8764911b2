"""Drives a serving loop in this process with a workload, open loop or closed.

In open loop a request's arrival time is the scheduled one even when a step was under way just then, so that
time spent waiting for the loop is measured and not hidden ("coordinated omission").
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

from tightpack.benchmarking.outcomes import Drive, Outcome, Progress, Watch
from tightpack.benchmarking.step_records import RecordingExecutor
from tightpack.benchmarking.workload import Workload
from tightpack.requests.outputs import Update
from tightpack.requests.request import FinishReason, Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.policy import QueueFullError
from tightpack.serving_loop.clock import Clock
from tightpack.serving_loop.loop import ServingLoop

# The shortest sleep, so that a wakeup due at once, or lost in rounding, cannot spin.
_SHORTEST_SLEEP_S = 1e-4


def drive(
    loop: ServingLoop,
    workload: Workload,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    watch: Watch | None = None,
) -> Drive:
    """Run a workload through a fresh serving loop until the last request has ended.

    Waiting is wall time, unless the loop's clock has a `sleep(seconds)` of its own, as a virtual clock has.
    on_progress: called after every step.
    watch: told of each request that ends; what is left is dropped when it gives up.
    Raises ValueError for a loop in use, RuntimeError if the loop has work but can never go on.
    """
    if loop.has_unfinished or loop.stats.steps:
        raise ValueError("a drive needs a fresh serving loop: its intake is closed at the end")
    executor = loop.executor
    recorder = loop.executor = RecordingExecutor(executor, loop.clock)
    try:
        run = _Run(loop, workload, watch)
        run.until_done(on_progress)
    finally:
        loop.executor = executor
    outcomes = tuple(run.outcomes.values())
    return Drive(workload, outcomes, run.start, replace(loop.stats), tuple(recorder.steps), run.given_up)


class _Run:
    """A drive under way."""

    def __init__(self, loop: ServingLoop, workload: Workload, watch: Watch | None) -> None:
        self._loop = loop
        self._clients = workload.clients
        self._watch = watch
        self._sleep = _sleep_of(loop.clock)
        self.start = loop.clock.now()
        self.given_up = False
        self.outcomes = {
            f"bench-{index}": Outcome(planned, self.start + planned.shape.arrival_s)
            for index, planned in enumerate(workload.requests)
        }
        self._unsent = deque(self.outcomes)
        self._silent: dict[str, Outcome] = {}  # sent and without a token, oldest first
        self._ended = self._output_tokens = 0

    def until_done(self, on_progress: Callable[[Progress], None] | None) -> None:
        loop = self._loop
        while self._unsent or loop.has_unfinished:
            self._send_what_is_due()
            steps_before = loop.stats.steps
            updates = loop.step()
            for update in updates:
                self._take(update)
            if on_progress is not None:
                on_progress(self._progress())
            if self._watch is not None and self._watch.gives_up(loop.clock.now(), self._waiting_since()):
                return self._give_up()
            if loop.stats.steps == steps_before and not updates:
                self._idle()
        return None

    def _send_what_is_due(self) -> None:
        while self._unsent and self._is_due(self.outcomes[self._unsent[0]]):
            name = self._unsent.popleft()
            outcome = self.outcomes[name]
            if self._clients is not None:
                outcome.arrival_time = self._loop.clock.now()
            self._admit(name, outcome)
            if not self._unsent:
                self._loop.close_intake()

    def _is_due(self, outcome: Outcome) -> bool:
        if self._clients is None:
            return outcome.arrival_time <= self._loop.clock.now()
        return len(self.outcomes) - len(self._unsent) - self._ended < self._clients

    def _admit(self, name: str, outcome: Outcome) -> None:
        """Hand a request to the loop; a refusal is its outcome."""
        try:
            self._loop.add(_request(name, outcome))
        except (QueueFullError, ValueError) as error:
            self._end(outcome, FinishReason.ERROR, str(error))
        else:
            self._silent[name] = outcome

    def _take(self, update: Update) -> None:
        outcome = self.outcomes[update.request_id]
        if update.token_ids:
            self._silent.pop(update.request_id, None)
            outcome.token_times.extend([update.time] * len(update.token_ids))
            self._output_tokens += len(update.token_ids)
        if update.finish_reason is not None:
            self._silent.pop(update.request_id, None)
            self._end(outcome, update.finish_reason, update.error)

    def _end(self, outcome: Outcome, reason: str, error: str | None) -> None:
        outcome.finish_reason, outcome.error = reason, error
        self._ended += 1
        if self._watch is not None:
            self._watch.ended(outcome)

    def _waiting_since(self) -> float | None:
        return next(iter(self._silent.values())).arrival_time if self._silent else None

    def _give_up(self) -> None:
        self.given_up = True
        for name in self.outcomes:
            self._loop.abort(name)
        self._unsent.clear()
        self._loop.close_intake()
        while self._loop.has_unfinished:
            for update in self._loop.step():
                outcome = self.outcomes[update.request_id]
                outcome.finish_reason = update.finish_reason

    def _progress(self) -> Progress:
        arrived = len(self.outcomes) - len(self._unsent)
        elapsed = self._loop.clock.now() - self.start
        return Progress(arrived, self._ended, len(self.outcomes), self._output_tokens, elapsed)

    def _idle(self) -> None:
        """Nothing can run now: wait for the next arrival or for a batch whose wait ends."""
        loop = self._loop
        times = [when for when in (self._next_arrival(), loop.next_wakeup()) if when is not None]
        if times:
            self._sleep(max(min(times) - loop.clock.now(), _SHORTEST_SLEEP_S))
        elif loop.has_unfinished:
            raise RuntimeError(
                f"the policy holds {loop.stats.num_waiting} waiting and {loop.stats.num_running} running"
                " requests but plans nothing, and nothing will arrive to change that"
            )

    def _next_arrival(self) -> float | None:
        """None in closed loop, where an arrival follows an end."""
        if not self._unsent or self._clients is not None:
            return None
        return self.outcomes[self._unsent[0]].arrival_time


def _request(name: str, outcome: Outcome) -> Request:
    shape = outcome.planned.shape
    return Request(
        request_id=name,
        prompt_token_ids=outcome.planned.prompt_token_ids,
        params=SamplingParams(temperature=0, max_tokens=shape.output_len, ignore_eos=True),
        seed=0,
        max_output_tokens=shape.output_len,
        service_class=shape.service_class,
        arrival_time=outcome.arrival_time,
    )


@runtime_checkable
class _Sleeps(Protocol):
    def sleep(self, seconds: float) -> None: ...


def _sleep_of(clock: Clock) -> Callable[[float], None]:
    return clock.sleep if isinstance(clock, _Sleeps) else time.sleep
