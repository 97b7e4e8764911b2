"""Where the shapes of a workload come from: drawn, replayed from a trace, or a scenario's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tightpack.benchmarking.trace import read_trace
from tightpack.benchmarking.workload import (
    RequestShape,
    arrive_at_once,
    arrive_gamma,
    at_rate,
    fixed_lengths,
    mixed_lengths,
    shapes,
    with_classes,
)
from tightpack.requests.service_class import ServiceClass


class Traffic(Protocol):
    def shapes(self, rate: float | None, repeat: int, at_least: int = 1) -> list[RequestShape]:
        """The requests at a rate (None: its own), and others of the same kind for each repeat from 0.

        at_least: of so many requests, if it has them.
        """

    def describe(self) -> str:
        """The requests in a few words, without how they come."""

    @property
    def own_arrivals(self) -> str:
        """How they come without a rate, in words."""


@dataclass(frozen=True, slots=True)
class DrawnTraffic:
    """Fixed or long-tailed lengths; arrivals with gamma gaps, all at once without a rate.

    Repeat i is drawn with seed + i. classes: shares of the requests; all are `standard` without.
    """

    count: int
    input_len: int
    output_len: int
    mixed: bool = False
    burstiness: float = 1.0
    classes: Mapping[ServiceClass, float] = field(default_factory=dict)
    seed: int = 0

    def shapes(self, rate: float | None, repeat: int, at_least: int = 1) -> list[RequestShape]:
        seed, count = self.seed + repeat, max(self.count, at_least)
        if self.mixed:
            lengths = mixed_lengths(count, self.input_len, self.output_len, seed)
        else:
            lengths = fixed_lengths(count, self.input_len, self.output_len)
        together = arrive_at_once(count)
        arrivals = together if rate is None else arrive_gamma(count, rate, self.burstiness, seed)
        return _classed(shapes(lengths, arrivals), self.classes, seed)

    def describe(self) -> str:
        if self.mixed:
            lengths = f"mixed lengths (means about {self.input_len} in, {self.output_len} out)"
        else:
            lengths = f"{self.input_len} tokens in, {self.output_len} out"
        bursts = "" if self.burstiness == 1 else f", burstiness {self.burstiness:g}"
        return f"{self.count} requests, {lengths}{bursts}"

    @property
    def own_arrivals(self) -> str:
        return "all at once"


@dataclass(frozen=True, slots=True)
class TraceTraffic:
    """A recorded trace; a rate scales its gaps to that mean. Repeat i is segment i of `count` requests, and
    reaches into the next where more are asked for.

    Raises ValueError for a repeat beyond the end of the trace.
    """

    path: Path
    count: int
    time_scale: float = 1.0
    length_scale: float = 1.0
    skip: int = 0
    classes: Mapping[ServiceClass, float] = field(default_factory=dict)
    seed: int = 0

    def shapes(self, rate: float | None, repeat: int, at_least: int = 1) -> list[RequestShape]:
        skip, count = self.skip + repeat * self.count, max(self.count, at_least)
        found = read_trace(self.path, count, self.time_scale, skip=skip, length_scale=self.length_scale)
        if repeat and len(found) < self.count:
            raise ValueError(
                f"{self.path} ends within segment {repeat + 1} of {self.count} requests; ask for fewer"
                " requests or repeats"
            )
        if rate is not None:
            found = at_rate(found, rate)
        return _classed(found, self.classes, self.seed + repeat)

    def describe(self) -> str:
        count = len(self.shapes(None, 0))
        which = f"the first {count} requests"
        if self.skip:
            which = f"requests {self.skip + 1} to {self.skip + count}"
        scaled = "" if self.length_scale == 1 else f", lengths times {self.length_scale:g}"
        return f"{which} of {self.path.name}{scaled}"

    @property
    def own_arrivals(self) -> str:
        return "as recorded" if self.time_scale == 1 else f"gaps times {self.time_scale:g}"


@dataclass(frozen=True, slots=True)
class FixedTraffic:
    """The same requests every time."""

    description: str
    requests: Sequence[RequestShape]

    def shapes(self, rate: float | None, repeat: int, at_least: int = 1) -> list[RequestShape]:
        return list(self.requests) if rate is None else at_rate(self.requests, rate)

    def describe(self) -> str:
        return self.description

    @property
    def own_arrivals(self) -> str:
        return ""


def _classed(
    found: list[RequestShape], classes: Mapping[ServiceClass, float], seed: int
) -> list[RequestShape]:
    return with_classes(found, classes, seed) if classes else found
