"""Prometheus metrics: vLLM's names for what vLLM measures, `tightpack:` for what is ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tightpack.latency.miss import MissCause, miss_cause
from tightpack.latency.request_latency import RequestLatency
from tightpack.requests.service_class import ServiceClass

if TYPE_CHECKING:
    from tightpack.serving_loop.loop import LoopStats
    from tightpack.serving_loop.text_stream import CompletionDelta

# Seconds. The same edges for every latency, fine where the targets of the service classes lie.
_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_PER_TOKEN = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
)
_END_TO_END = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class _EngineCollector(Collector):
    """The engine's own counters, read when scraped."""

    def __init__(self, stats: Callable[[], LoopStats], model_name: str) -> None:
        self._stats = stats
        self._model_name = model_name

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        gauges = (
            ("vllm:num_requests_running", "Requests that hold KV blocks.", stats.num_running),
            ("vllm:num_requests_waiting", "Requests in the queue.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", stats.kv_cache_usage),
            (
                "tightpack:unrounded_layers",
                "Layers whose inputs saturated their static scale and are no longer rounded.",
                stats.unrounded_layers,
            ),
        )
        counters = (
            ("vllm:num_preemptions", "Requests that lost their blocks to others.", stats.preemptions),
            ("vllm:prompt_tokens", "Prompt tokens of the requests that started.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            ("tightpack:engine_steps", "Steps of the serving loop.", stats.steps),
            ("tightpack:engine_busy_seconds", "Seconds spent in steps.", stats.busy_s),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(name, text, labels=("model_name",))
            gauge.add_metric((self._model_name,), value)
            yield gauge
        for name, text, value in counters:
            counter = CounterMetricFamily(name, text, labels=("model_name",))
            counter.add_metric((self._model_name,), value)
            yield counter


class ServerMetrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(
        self, stats: Callable[[], LoopStats], model_name: str, service_classes: Iterable[ServiceClass]
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats, model_name))
        self._model_name = model_name

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            # Children of fixed labels are looked up once: an observation is then about a microsecond.
            family = Histogram(name, text, ("model_name",), registry=self._registry, buckets=buckets)
            return family.labels(model_name)

        self.ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT)
        self.itl = histogram("vllm:inter_token_latency_seconds", "Gap between deltas of tokens.", _PER_TOKEN)
        self.tpot = histogram(
            "vllm:request_time_per_output_token_seconds", "(Last - first token) / (tokens - 1).", _PER_TOKEN
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", _END_TO_END)
        self.prompt_tokens = histogram("vllm:request_prompt_tokens", "Prompt tokens a request.", _TOKENS)
        self.output_tokens = histogram(
            "vllm:request_generation_tokens", "Output tokens a completion.", _TOKENS
        )
        self._finished = Counter(
            "vllm:request_success",
            "Completions that ended, by reason.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._finished.labels(model_name, reason)
        families = _ClassFamilies(self._registry)
        self._classes = {one: _ClassMetrics(one, families, model_name) for one in service_classes}

    def finished(self, reason: str) -> None:
        self._finished.labels(self._model_name, reason).inc()

    def of_class(self, service_class: ServiceClass) -> _ClassMetrics:
        return self._classes[service_class]

    def expose(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _ClassFamilies:
    """Metric families labelled by service class."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("model_name", "service_class")
        self.ttft = Histogram(
            "tightpack:time_to_first_token_seconds",
            "Arrival to first token.",
            labels,
            registry=registry,
            buckets=_TTFT,
        )
        self.tpot = Histogram(
            "tightpack:time_per_output_token_seconds",
            "(Last - first token) / (tokens - 1).",
            labels,
            registry=registry,
            buckets=_PER_TOKEN,
        )
        self.requests = Counter(
            "tightpack:slo_requests", "Completions that ended by themselves.", labels, registry=registry
        )
        self.attained = Counter(
            "tightpack:slo_attained", "Those that met every target of their class.", labels, registry=registry
        )
        self.missed = Counter(
            "tightpack:slo_missed",
            "Those that missed a target, by cause: queue, prefill, decode or preemption.",
            (*labels, "cause"),
            registry=registry,
        )
        self.rejected = Counter(
            "tightpack:slo_rejected",
            "Requests refused since their first token would have come too late.",
            labels,
            registry=registry,
        )


class _ClassMetrics:
    """One service class's children of the families."""

    def __init__(self, service_class: ServiceClass, families: _ClassFamilies, model_name: str) -> None:
        labels = (model_name, service_class.name)
        self.ttft = families.ttft.labels(*labels)
        self.tpot = families.tpot.labels(*labels)
        self.requests = families.requests.labels(*labels)
        self.attained = families.attained.labels(*labels)
        self.missed = {cause: families.missed.labels(*labels, cause.value) for cause in MissCause}
        self.rejected = families.rejected.labels(*labels)


class CompletionTimer:
    """Observes one completion from its deltas, as they reach the server.

    arrival: `time.monotonic()` when the request came in.
    """

    def __init__(self, metrics: ServerMetrics, service_class: ServiceClass, arrival: float) -> None:
        self._metrics = metrics
        self._class = service_class
        self._arrival = arrival
        self._times: list[float] = []
        self._first_scheduled_time: float | None = None
        self._preemptions = 0
        self._preemptions_in_prefill = 0
        self._ended = False

    def observe(self, delta: CompletionDelta) -> None:
        new_tokens = delta.num_output_tokens - len(self._times)
        self._preemptions = delta.num_preemptions
        if not self._times:
            self._preemptions_in_prefill = delta.num_preemptions
            self._first_scheduled_time = delta.first_scheduled_time
        if new_tokens > 0:
            now = time.monotonic()
            if self._times:
                self._metrics.itl.observe(now - self._times[-1])
            else:
                self._metrics.ttft.observe(now - self._arrival)
                self._metrics.of_class(self._class).ttft.observe(now - self._arrival)
            self._times.extend([now] * new_tokens)
        if delta.finish_reason is not None:
            self.end(delta.finish_reason)

    def end(self, reason: str) -> None:
        """Count the completion; again has no effect."""
        if self._ended:
            return
        self._ended = True
        metrics, of_class = self._metrics, self._metrics.of_class(self._class)
        metrics.finished(reason)
        metrics.output_tokens.observe(len(self._times))
        if reason not in ("stop", "length"):
            return
        latency = RequestLatency.of(self._arrival, self._times)
        metrics.e2e.observe(latency.e2e_s or 0.0)
        if latency.tpot_s is not None:
            metrics.tpot.observe(latency.tpot_s)
            of_class.tpot.observe(latency.tpot_s)
        of_class.requests.inc()
        cause = miss_cause(
            latency,
            self._class,
            first_scheduled_time=self._first_scheduled_time,
            preempted_in_prefill=self._preemptions_in_prefill > 0,
            preempted_in_decode=self._preemptions > self._preemptions_in_prefill,
        )
        if cause is None:
            of_class.attained.inc()
        else:
            of_class.missed[cause].inc()
