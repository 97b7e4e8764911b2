"""The traffic that a plan is for, the promise made to it, and the part of it that one replica sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from tightpack.benchmarking.traffic import Traffic
from tightpack.benchmarking.workload import RequestShape, Workload, WorkloadRequest, clip
from tightpack.latency.service_level import ServiceLevel
from tightpack.requests.service_class import ServiceClass

# A replica is watched for at least so many requests and seconds of arrivals, as by `bench --find-capacity`,
# and no more requests than the most where that would take long. 1 % of 300 is 3 requests.
_LEAST_REQUESTS, _MOST_REQUESTS, _SECONDS = 300, 800, 36.0
_MOST_CLIPPED = 0.1


@dataclass(frozen=True)
class Load:
    """description: of the lengths, in words. rate: requests a second in all. level: what share of requests
    must meet the targets of `promise`.

    Requests longer than the context (`max_model_len`) are shortened, as a benchmark does; it is a ValueError
    when more than one in ten is.
    """

    traffic: Traffic
    description: str
    rate: float
    promise: ServiceClass
    level: ServiceLevel
    max_model_len: int

    def __post_init__(self) -> None:
        given = self.traffic.shapes(self.rate, 0, _LEAST_REQUESTS)
        clipped = sum(clip(shape, self.max_model_len) != shape for shape in given)
        if clipped > _MOST_CLIPPED * len(given):
            longest = max(shape.input_len + shape.output_len for shape in given)
            raise ValueError(
                f"{clipped} of {len(given)} requests, of up to {longest:,} tokens in and out, are longer "
                f"than the context of {self.max_model_len:,}: shorten them (--length-scale, --input-len, "
                "--output-len) or take a model with a longer context"
            )

    @cached_property
    def sample(self) -> Sequence[RequestShape]:
        """Requests as they come, enough to know their lengths."""
        return self._shapes(self.rate, _LEAST_REQUESTS)

    @cached_property
    def mean_input(self) -> float:
        return sum(shape.input_len for shape in self.sample) / len(self.sample)

    @cached_property
    def mean_output(self) -> float:
        return sum(shape.output_len for shape in self.sample) / len(self.sample)

    @cached_property
    def mean_context(self) -> int:
        """Positions that a decode attends to, on average over decodes: long outputs have more of them."""
        tokens = sum(shape.output_len for shape in self.sample)
        read = sum(shape.output_len * (shape.input_len + shape.output_len / 2) for shape in self.sample)
        return max(1, round(read / tokens))

    @cached_property
    def longest(self) -> int:
        return max(shape.input_len + shape.output_len for shape in self.sample)

    def prompts_over(self, share: float) -> int:
        """The prompt length that this share of the requests does not exceed."""
        lengths = sorted(shape.input_len for shape in self.sample)
        return lengths[min(len(lengths) - 1, max(0, math.ceil(share * len(lengths)) - 1))]

    def part(self, replicas: int) -> Workload:
        """What one of so many replicas gets, when requests are dealt out in turn.

        Where there are too few of them, as at the end of a trace, the parts of others follow after a pause.
        """
        share = self.rate / replicas
        wanted = min(_MOST_REQUESTS, max(_LEAST_REQUESTS, math.ceil(share * _SECONDS)))
        # The traffic at one replica's rate, times their number, is what all of them get.
        everything = self._shapes(self.rate, wanted * replicas)
        dealt: list[RequestShape] = []
        for first in range(replicas):
            shift = dealt[-1].arrival_s + 1 / share if dealt else 0.0
            own = everything[first::replicas]
            start = own[0].arrival_s if own else 0.0
            dealt += [replace(one, arrival_s=one.arrival_s - start + shift) for one in own]
            if len(dealt) >= wanted:
                break
        return self._workload(dealt[:wanted], share)

    def _shapes(self, rate: float, at_least: int) -> list[RequestShape]:
        return [clip(shape, self.max_model_len) for shape in self.traffic.shapes(rate, 0, at_least)]

    def _workload(self, shapes: Sequence[RequestShape], rate: float) -> Workload:
        requests = tuple(
            WorkloadRequest(replace(shape, service_class=self.promise), _tokens(shape.input_len))
            for shape in sorted(shapes, key=lambda one: one.arrival_s)
        )
        return Workload(self.description, requests, rate=rate)


@lru_cache(maxsize=4096)
def _tokens(length: int) -> tuple[int, ...]:
    """Which tokens a prompt holds is nothing to a simulation without a prefix cache."""
    return (0,) * length
