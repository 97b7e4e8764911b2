"""The router's Prometheus metrics."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tightpack.cluster.asked import Asked
from tightpack.cluster.routing import Choice

if TYPE_CHECKING:
    from tightpack.cluster.router import Router

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40, 80)


class _Replicas(Collector):
    """Read when scraped."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterable[Metric]:
        replicas = GaugeMetricFamily(
            "tightpack:cluster_replicas", "Replicas by health.", labels=("pool", "health")
        )
        wanted = GaugeMetricFamily(
            "tightpack:cluster_target_replicas", "Replicas that there should be.", labels=("pool",)
        )
        attained = GaugeMetricFamily(
            "tightpack:cluster_predicted_attainment",
            "Share of the recent requests predicted to meet their targets.",
            labels=("pool",),
        )
        for name, members in self._router.pools.items():
            for health, count in Tally(one.health.value for one in members).items():
                replicas.add_metric((name, health), count)
            wanted.add_metric((name,), self._router.targets[name].replicas)
            attained.add_metric((name,), self._router.targets[name].attainment)
        yield from (replicas, wanted, attained)


class RouterMetrics:
    """All metrics of one router, in a registry of its own."""

    def __init__(self, router: Router) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(_Replicas(router))
        self._requests = Counter(
            "tightpack:cluster_requests",
            "Requests sent to a pool, by service class; again for each try.",
            ("pool", "service_class"),
            registry=registry,
        )
        self._overflowed = Counter(
            "tightpack:cluster_overflowed", "Of those, from other pools.", ("pool",), registry=registry
        )
        self._affine = Counter(
            "tightpack:cluster_prefix_hits",
            "Of those, to a replica that was sent the same beginning before.",
            ("pool",),
            registry=registry,
        )
        self.retried = Counter(
            "tightpack:cluster_retried",
            "Tries that were lost with a replica before anything was streamed.",
            ("pool",),
            registry=registry,
        )
        self.broken = Counter(
            "tightpack:cluster_broken_streams",
            "Streams that ended with an error since their replica was lost.",
            ("pool",),
            registry=registry,
        )
        self._ttft = Histogram(
            "tightpack:cluster_ttft_seconds",
            "Sending to a replica to the first event of its stream.",
            ("pool",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._predicted = Histogram(
            "tightpack:cluster_predicted_ttft_seconds",
            "What was predicted of the same.",
            ("pool",),
            registry=registry,
            buckets=_SECONDS,
        )

    def routed(self, asked: Asked, choice: Choice) -> None:
        pool = choice.replica.pool
        self._requests.labels(pool, asked.service_class).inc()
        if choice.overflowed:
            self._overflowed.labels(pool).inc()
        if choice.cached:
            self._affine.labels(pool).inc()

    def first_token(self, choice: Choice, seconds: float) -> None:
        self._ttft.labels(choice.replica.pool).observe(seconds)
        self._predicted.labels(choice.replica.pool).observe(choice.prediction.ttft_s)

    def expose(self) -> bytes:
        return generate_latest(self._registry)
