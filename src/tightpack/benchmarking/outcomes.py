"""What driving a workload gives, whoever served it: an outcome a request, and the steps where known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tightpack.benchmarking.step_records import StepRecord
from tightpack.benchmarking.workload import Workload, WorkloadRequest
from tightpack.latency.request_latency import RequestLatency
from tightpack.latency.service_level import ServedRequest
from tightpack.requests.request import FinishReason
from tightpack.serving_loop.loop import LoopStats


@dataclass(slots=True)
class Outcome:
    """What became of one request.

    arrival_time: when it was due, in closed loop when its client sent it.
    error: why it was refused or failed, None when all went well.
    """

    planned: WorkloadRequest
    arrival_time: float
    token_times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None

    @property
    def completed(self) -> bool:
        """Whether it gave all that was asked for: every token, or those up to a server's own stop."""
        return self.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)

    @property
    def latency(self) -> RequestLatency:
        return RequestLatency.of(self.arrival_time, self.token_times)

    @property
    def served(self) -> ServedRequest:
        """As a service level judges it: what did not complete was not served."""
        shape = self.planned.shape
        latency = self.latency if self.completed else RequestLatency.of(self.arrival_time, ())
        return ServedRequest(latency, shape.service_class, shape.input_len, shape.output_len)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drive has come: requests arrived and ended, output tokens seen, seconds since the start."""

    arrived: int
    ended: int
    total: int
    output_tokens: int
    elapsed_s: float


class Watch(Protocol):
    """Follows a drive, and may end it early."""

    def ended(self, outcome: Outcome) -> None:
        """A request completed, failed or was refused."""

    def gives_up(self, now: float, waiting_since: float | None) -> bool:
        """Whether to drop what is left. waiting_since: arrival of the oldest request without a token."""


@dataclass(frozen=True, slots=True)
class Drive:
    """A finished drive.

    outcomes: one a request of the workload, in its order.
    start: when it began, on the clock of the outcomes.
    stats: of this drive alone; zeros for a server that does not tell.
    steps: none for a server that does not tell.
    given_up: whether a watch ended it early; what was under way then has not completed.
    """

    workload: Workload
    outcomes: tuple[Outcome, ...]
    start: float
    stats: LoopStats = field(default_factory=LoopStats)
    steps: tuple[StepRecord, ...] = ()
    given_up: bool = False
