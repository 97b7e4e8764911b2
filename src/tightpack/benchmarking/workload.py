"""Seeded workloads: how long the prompts and outputs are, when they arrive, which tokens they hold.

Lengths, arrivals and tokens draw from separate streams of the seed, so that changing one leaves the others
as they were.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightpack.requests.service_class import STANDARD, ServiceClass

# The spread (standard deviation of the logarithm) of prompt and output lengths in the 2023 Azure conversation
# trace (Patel et al., "Splitwise", ISCA 2024): ln(p90 / p10) / 2.563 of 2734/207 and 424/54 tokens.
PROMPT_LENGTH_SPREAD = 1.0
OUTPUT_LENGTH_SPREAD = 0.8
# The longest of the mix, as a multiple of the mean, so that no single request decides a short benchmark.
LONGEST_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class RequestShape:
    """When a request comes, in seconds after the start, and how many tokens go in and come out."""

    arrival_s: float
    input_len: int
    output_len: int
    service_class: ServiceClass = STANDARD

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival_s) and self.arrival_s >= 0):
            raise ValueError(f"a request arrives 0 or more seconds after the start, got {self.arrival_s}")
        for name, length in (("input", self.input_len), ("output", self.output_len)):
            if length < 1:
                raise ValueError(f"the {name} length must be at least 1 token, got {length}")


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """A shape with its prompt. Output has exactly `shape.output_len` tokens: end-of-sequence is ignored."""

    shape: RequestShape
    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by arrival. num_clipped: how many were shortened to the model's context."""

    description: str
    requests: tuple[WorkloadRequest, ...]
    num_clipped: int = 0

    @property
    def num_input_tokens(self) -> int:
        return sum(one.shape.input_len for one in self.requests)

    @property
    def num_output_tokens(self) -> int:
        return sum(one.shape.output_len for one in self.requests)


def fixed_lengths(count: int, input_len: int, output_len: int) -> list[tuple[int, int]]:
    """`count` equal (prompt, output) lengths."""
    return [(input_len, output_len)] * _at_least_one(count)


def mixed_lengths(count: int, input_len: int, output_len: int, seed: int) -> list[tuple[int, int]]:
    """`count` long-tailed (prompt, output) lengths whose means are about `input_len` and `output_len`.

    Both are log-normal and independent, with the spread of a public trace of conversations: most are
    shorter than the mean, one in a hundred prompts is six times as long (see the constants above).
    """
    rng = _stream(seed, "lengths")

    def draw(mean: int, spread: float) -> int:
        # The mean of a log-normal is exp(mu + sigma^2 / 2).
        length = rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)
        return max(1, min(round(length), LONGEST_MULTIPLE * mean))

    return [
        (draw(input_len, PROMPT_LENGTH_SPREAD), draw(output_len, OUTPUT_LENGTH_SPREAD))
        for _ in range(_at_least_one(count))
    ]


def arrive_at_once(count: int) -> list[float]:
    """All at the start: offline throughput."""
    return [0.0] * count


def arrive_poisson(count: int, rate: float, seed: int) -> list[float]:
    """A Poisson process of `rate` requests a second; the first arrives at the start."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"the rate must be above 0 requests a second, got {rate}")
    rng = _stream(seed, "arrivals")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += rng.expovariate(rate)
    return times


def shapes(lengths: Sequence[tuple[int, int]], arrivals: Sequence[float]) -> list[RequestShape]:
    """Lengths and arrivals put together, one to one."""
    return [
        RequestShape(arrival, input_len, output_len)
        for (input_len, output_len), arrival in zip(lengths, arrivals, strict=True)
    ]


def build_workload(
    description: str,
    request_shapes: Sequence[RequestShape],
    vocabulary: Sequence[int],
    max_model_len: int,
    seed: int,
) -> Workload:
    """Fill the shapes with random prompts, clipped to a context of `max_model_len` tokens.

    vocabulary: the token ids to draw from, uniformly; special tokens do not belong in it.
    A request that is too long loses output first, down to a quarter of the context, then prompt.
    """
    if not vocabulary:
        raise ValueError("a workload needs a vocabulary to draw its prompts from")
    if max_model_len < 2:
        raise ValueError(f"a context of {max_model_len} tokens has no room for a prompt and an output token")
    rng = _stream(seed, "tokens")
    requests = []
    num_clipped = 0
    for shape in sorted(request_shapes, key=lambda one: one.arrival_s):
        clipped = _clip(shape, max_model_len)
        num_clipped += clipped != shape
        prompt = tuple(rng.choices(vocabulary, k=clipped.input_len))
        requests.append(WorkloadRequest(clipped, prompt))
    return Workload(description, tuple(requests), num_clipped)


def _clip(shape: RequestShape, max_model_len: int) -> RequestShape:
    if shape.input_len + shape.output_len <= max_model_len:
        return shape
    floor = max(1, max_model_len // 4)
    output_len = min(shape.output_len, max(floor, max_model_len - shape.input_len))
    input_len = min(shape.input_len, max_model_len - output_len)
    return replace(shape, input_len=input_len, output_len=output_len)


def _at_least_one(count: int) -> int:
    if count < 1:
        raise ValueError(f"a workload needs at least 1 request, got {count}")
    return count


def _stream(seed: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{purpose}")
