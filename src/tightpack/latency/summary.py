"""A set of requests in numbers: latency percentiles, throughput, goodput, by service class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.latency.percentiles import Percentiles
from tightpack.latency.request_latency import RequestLatency
from tightpack.requests.service_class import ServiceClass


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Percentiles over requests (TTFT, TPOT, longest gap, end to end) and over all gaps of all of them (ITL).

    Requests without a token count in none; requests with one token have no TPOT and no ITL.
    """

    num_requests: int
    num_output_tokens: int
    ttft_s: Percentiles
    tpot_s: Percentiles
    itl_s: Percentiles
    longest_gap_s: Percentiles
    e2e_s: Percentiles


def summarize(latencies: Sequence[RequestLatency]) -> LatencySummary:
    return LatencySummary(
        num_requests=len(latencies),
        num_output_tokens=sum(one.num_output_tokens for one in latencies),
        ttft_s=Percentiles.of(s for one in latencies if (s := one.ttft_s) is not None),
        tpot_s=Percentiles.of(s for one in latencies if (s := one.tpot_s) is not None),
        itl_s=Percentiles.of(gap for one in latencies for gap in one.itl_s),
        longest_gap_s=Percentiles.of(s for one in latencies if (s := one.longest_gap_s) is not None),
        e2e_s=Percentiles.of(s for one in latencies if (s := one.e2e_s) is not None),
    )


def duration(latencies: Sequence[RequestLatency]) -> float:
    """Seconds from the first arrival to the last token; 0 without tokens."""
    last_tokens = [one.token_times[-1] for one in latencies if one.token_times]
    if not last_tokens:
        return 0.0
    return max(last_tokens) - min(one.arrival_time for one in latencies)


def throughput(num_tokens: int, duration_s: float) -> float:
    """Tokens a second; 0 of no tokens."""
    return _rate(num_tokens, duration_s)


def goodput(
    latencies: Sequence[RequestLatency], service_classes: Sequence[ServiceClass], duration_s: float
) -> float:
    """Requests a second that met every target of their class (as in DistServe, Zhong et al. 2024).

    service_classes: one a request, in the same order. Requests that failed or were refused belong in
    `latencies` too, without tokens: they met nothing.
    """
    if len(latencies) != len(service_classes):
        raise ValueError(f"{len(latencies)} requests need a service class each, not {len(service_classes)}")
    met = sum(one.meets(target) for one, target in zip(latencies, service_classes, strict=True))
    return _rate(met, duration_s)


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """The requests of one service class.

    attained: the share that met every target, 0 to 1; failed and refused requests met none.
    latency: of those with tokens.
    """

    service_class: ServiceClass
    num_requests: int
    attained: float
    goodput_per_s: float
    latency: LatencySummary


def summarize_by_class(
    latencies: Sequence[RequestLatency], service_classes: Sequence[ServiceClass], duration_s: float
) -> tuple[ClassSummary, ...]:
    """A summary for each class, in order of first appearance; arguments as of `goodput`."""
    members: dict[ServiceClass, list[RequestLatency]] = {}
    for one, service_class in zip(latencies, service_classes, strict=True):
        members.setdefault(service_class, []).append(one)
    return tuple(
        ClassSummary(
            service_class=service_class,
            num_requests=len(ones),
            attained=sum(one.meets(service_class) for one in ones) / len(ones),
            goodput_per_s=goodput(ones, [service_class] * len(ones), duration_s),
            latency=summarize([one for one in ones if one.token_times]),
        )
        for service_class, ones in members.items()
    )


def _rate(count: int, duration_s: float) -> float:
    if count == 0:
        return 0.0
    if not duration_s > 0:
        raise ValueError(f"a rate needs a duration above 0 seconds, got {duration_s}")
    return count / duration_s
