"""Why a request missed a target of its service class."""

from __future__ import annotations

import enum

from tightpack.latency.request_latency import RequestLatency
from tightpack.requests.service_class import ServiceClass


class MissCause(enum.StrEnum):
    """What would have to change for the target to be met."""

    QUEUE = "queue"  # without the wait for its first step the first token had been in time
    PREFILL = "prefill"  # the prompt alone took longer than the TTFT target
    DECODE = "decode"  # the tokens after the first came too slowly
    PREEMPTION = "preemption"  # it lost its blocks before the token that was late


def miss_cause(
    latency: RequestLatency,
    target: ServiceClass,
    *,
    first_scheduled_time: float | None,
    preempted_in_prefill: bool,
    preempted_in_decode: bool,
) -> MissCause | None:
    """The cause of the first miss, None of a request that met its targets.

    first_scheduled_time: when its first chunk began, on the clock of `latency`; None if none did.
    A request without a token waited in the queue for ever, unless its prompt was under way.
    """
    if latency.meets(target):
        return None
    ttft = latency.ttft_s
    if ttft is None or (target.ttft_s is not None and ttft > target.ttft_s):
        if preempted_in_prefill:
            return MissCause.PREEMPTION
        if first_scheduled_time is None:
            return MissCause.QUEUE
        if ttft is None or target.ttft_s is None:
            return MissCause.PREFILL
        prefill = ttft - (first_scheduled_time - latency.arrival_time)
        return MissCause.PREFILL if prefill > target.ttft_s else MissCause.QUEUE
    return MissCause.PREEMPTION if preempted_in_decode else MissCause.DECODE
