"""Seeded workloads: how long the prompts and outputs are, when they arrive, which tokens they hold.

Lengths, arrivals, service classes and tokens draw from separate streams of the seed, so that changing one
leaves the others as they were.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
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
    """Requests by arrival.

    num_clipped: how many were shortened to the model's context.
    clients: None for open loop, where a request comes when it is due, ready or not. A number for closed loop:
        so many clients each send their next request when the one before has ended, and arrivals are ignored.
    rate: the requests a second that were asked for; None when they come together or in closed loop.
    """

    description: str
    requests: tuple[WorkloadRequest, ...]
    num_clipped: int = 0
    clients: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.clients is not None and self.clients < 1:
            raise ValueError(f"a closed loop needs at least 1 client, got {self.clients}")

    @property
    def last_arrival_s(self) -> float:
        return max(one.shape.arrival_s for one in self.requests)

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
    return arrive_gamma(count, rate, 1.0, seed)


def arrive_gamma(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Gamma-distributed gaps of shape `burstiness`, `rate` arrivals a second; the first at the start.

    The name and its sense are those of vLLM's benchmark: 1 is a Poisson process, less comes in bursts (the
    gaps' coefficient of variation is 1 / sqrt(burstiness)), more is smoother. The same seed gives the same
    arrivals on another scale at another rate.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"the rate must be above 0 requests a second, got {rate}")
    if not (math.isfinite(burstiness) and burstiness > 0):
        raise ValueError(f"the burstiness must be above 0, got {burstiness}")
    rng = _stream(seed, "arrivals")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        # A gamma of shape 1 is an exponential, whose own draw is older and keeps a seed's arrivals.
        gap = rng.expovariate(1.0) if burstiness == 1 else rng.gammavariate(burstiness, 1 / burstiness)
        now += gap / rate
    return times


def mean_rate(request_shapes: Sequence[RequestShape]) -> float | None:
    """Arrivals a second from the first to the last; None where all come together."""
    times = [shape.arrival_s for shape in request_shapes]
    span = max(times) - min(times)
    return (len(times) - 1) / span if span > 0 else None


def at_rate(request_shapes: Sequence[RequestShape], rate: float) -> list[RequestShape]:
    """The same requests with their gaps scaled to a mean rate. Raises ValueError where all come together."""
    given = mean_rate(request_shapes)
    if given is None:
        raise ValueError("requests that arrive together have no rate to scale")
    return [replace(shape, arrival_s=shape.arrival_s * given / rate) for shape in request_shapes]


def with_classes(
    request_shapes: Sequence[RequestShape], shares: Mapping[ServiceClass, float], seed: int
) -> list[RequestShape]:
    """The same requests, dealt out to classes by their shares (which need not sum to 1), in a drawn order.

    The counts follow the shares exactly, up to rounding, so that a short workload has its mix too.
    """
    if not shares or any(not (math.isfinite(share) and share >= 0) for share in shares.values()):
        raise ValueError("service classes need shares of 0 or more")
    if not sum(shares.values()) > 0:
        raise ValueError("one service class at least needs a share above 0")
    rng = _stream(seed, "classes")
    count, total = len(request_shapes), sum(shares.values())
    drawn: list[ServiceClass] = []
    so_far = 0.0
    for service_class, share in shares.items():
        so_far += share
        drawn += [service_class] * (round(count * so_far / total) - len(drawn))
    rng.shuffle(drawn)
    return [
        replace(shape, service_class=service_class)
        for shape, service_class in zip(request_shapes, drawn, strict=True)
    ]


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
    seed: int | str,
    *,
    clients: int | None = None,
    rate: float | None = None,
) -> Workload:
    """Fill the shapes with random prompts, clipped to a context of `max_model_len` tokens.

    vocabulary: the token ids to draw from, uniformly; special tokens do not belong in it.
    seed: of the prompts' tokens; text such as "0/warm-up" gives other prompts for the same number.
    A request that is too long is shortened as by `clip`.
    """
    if not vocabulary:
        raise ValueError("a workload needs a vocabulary to draw its prompts from")
    if max_model_len < 2:
        raise ValueError(f"a context of {max_model_len} tokens has no room for a prompt and an output token")
    rng = _stream(seed, "tokens")
    requests = []
    num_clipped = 0
    for shape in sorted(request_shapes, key=lambda one: one.arrival_s):
        clipped = clip(shape, max_model_len)
        num_clipped += clipped != shape
        prompt = tuple(rng.choices(vocabulary, k=clipped.input_len))
        requests.append(WorkloadRequest(clipped, prompt))
    return Workload(description, tuple(requests), num_clipped, clients, rate)


def clip(shape: RequestShape, max_model_len: int) -> RequestShape:
    """The request within a context: it loses output first, down to a quarter of the context, then prompt."""
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


def _stream(seed: int | str, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{purpose}")
