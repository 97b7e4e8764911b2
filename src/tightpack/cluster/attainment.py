"""What share of recent requests would have met its targets with another number of replicas."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.requests.service_class import ServiceClass
from tightpack.scheduling.step_time import pairs
from tightpack.serving_loop.load import EngineLoad


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came. output_tokens: as many as it got, or is expected to get."""

    at: float
    service_class: ServiceClass
    prompt_tokens: int
    output_tokens: float


def predicted_attainment(
    arrivals: Sequence[Arrival], replicas: int, load: EngineLoad, *, patience: float, faster: float = 1.0
) -> float:
    """The share, 0 to 1, that a pool of so many replicas would serve in time; 1 without arrivals.

    Plays the arrivals through a queue a replica: prompts one after the other at the learned speed, each
    request in one of `max_num_seqs` places until its last token, decoding at the learned step time of as many
    as are there. A request goes where its first token would come soonest.

    arrivals: in order of time. load: of one replica, for its step times and limits. patience: the TTFT target
    of those who have none. faster: the arrivals come so many times as fast.
    """
    if not arrivals:
        return 1.0
    base, token, pair, decode, position = load.step_seconds
    places = load.max_num_seqs
    prompts_free = [0.0] * replicas
    ends: list[list[float]] = [[] for _ in range(replicas)]
    met = 0
    for arrival in arrivals:
        at = (arrival.at - arrivals[0].at) / faster
        tokens = arrival.prompt_tokens
        best: tuple[float, int, float, float] | None = None
        for index in range(replicas):
            heap = ends[index]
            while heap and heap[0] <= at:
                heapq.heappop(heap)
            start = max(at, prompts_free[index])
            if len(heap) >= places:
                start = max(start, heapq.nsmallest(len(heap) - places + 1, heap)[-1])
            beside = min(len(heap), places)
            step = base + decode * beside + position * tokens * beside
            steps = -(-tokens // max(1, load.max_num_batched_tokens - beside))
            first = start + steps * step + token * tokens + pair * pairs(0, tokens)
            if best is None or first < best[0]:
                best = (first, index, start, step)
        assert best is not None
        first, index, _, step = best
        prompts_free[index] = first
        pace = step + decode + position * tokens
        heapq.heappush(ends[index], first + arrival.output_tokens * pace)
        one = arrival.service_class
        in_time = first - at <= (one.ttft_s or patience)
        met += in_time and (one.tpot_s is None or pace <= one.tpot_s)
    return met / len(arrivals)
