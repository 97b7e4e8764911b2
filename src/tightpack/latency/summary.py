"""A set of requests in numbers: latency percentiles, throughput, goodput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.latency.percentiles import Percentiles
from tightpack.latency.request_latency import RequestLatency
from tightpack.requests.service_class import ServiceClass


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Percentiles over requests (TTFT, TPOT, end to end) and over all gaps of all requests (ITL).

    Requests without a token count in none; requests with one token have no TPOT and no ITL.
    """

    num_requests: int
    num_output_tokens: int
    ttft_s: Percentiles
    tpot_s: Percentiles
    itl_s: Percentiles
    e2e_s: Percentiles


def summarize(latencies: Sequence[RequestLatency]) -> LatencySummary:
    return LatencySummary(
        num_requests=len(latencies),
        num_output_tokens=sum(one.num_output_tokens for one in latencies),
        ttft_s=Percentiles.of(s for one in latencies if (s := one.ttft_s) is not None),
        tpot_s=Percentiles.of(s for one in latencies if (s := one.tpot_s) is not None),
        itl_s=Percentiles.of(gap for one in latencies for gap in one.itl_s),
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


def _rate(count: int, duration_s: float) -> float:
    if count == 0:
        return 0.0
    if not duration_s > 0:
        raise ValueError(f"a rate needs a duration above 0 seconds, got {duration_s}")
    return count / duration_s
