"""The latencies of one request, all from its arrival and the times its tokens were published."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from tightpack.requests.outputs import RequestTimings
from tightpack.requests.service_class import ServiceClass


@dataclass(frozen=True, slots=True)
class RequestLatency:
    """Seconds on one clock.

    arrival_time: when the request reached the server (or was due to), not when it was first looked at.
    token_times: when each output token was published, in order; tokens published together share a time.
    """

    arrival_time: float
    token_times: tuple[float, ...]

    def __post_init__(self) -> None:
        previous = self.arrival_time
        for time in self.token_times:
            if time < previous:
                raise ValueError(f"a token at {time} s comes before the one, or the arrival, at {previous} s")
            previous = time

    @classmethod
    def of(cls, arrival_time: float, token_times: Iterable[float]) -> RequestLatency:
        return cls(arrival_time, tuple(token_times))

    @classmethod
    def from_timings(cls, timings: RequestTimings) -> RequestLatency:
        return cls(timings.arrival_time, tuple(timings.token_times))

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_times)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: arrival to the first token. None without a token."""
        return self.token_times[0] - self.arrival_time if self.token_times else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token: (last token - first token) / (output tokens - 1).

        None for fewer than two tokens: one token has no time after the first.
        """
        if len(self.token_times) < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Inter-token latencies: each gap between neighbouring tokens, 0 for tokens published together."""
        return tuple(after - before for before, after in itertools.pairwise(self.token_times))

    @property
    def longest_gap_s(self) -> float | None:
        """The largest of the gaps: a stall that the mean hides. None for fewer than two tokens."""
        return max(self.itl_s, default=None)

    @property
    def e2e_s(self) -> float | None:
        """End-to-end latency: arrival to the last token. None without a token."""
        return self.token_times[-1] - self.arrival_time if self.token_times else None

    def meets(self, service_class: ServiceClass) -> bool:
        """Whether there was a token and no target of the class was missed.

        An undefined TPOT (one token) misses no target. A latency equal to its target meets it.
        """
        ttft, tpot = self.ttft_s, self.tpot_s
        if ttft is None:
            return False
        if service_class.ttft_s is not None and ttft > service_class.ttft_s:
            return False
        return service_class.tpot_s is None or tpot is None or tpot <= service_class.tpot_s
