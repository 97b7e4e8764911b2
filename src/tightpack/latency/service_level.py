"""Whether a load was served: the targets of the service classes, held over a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightpack.latency.request_latency import RequestLatency
from tightpack.requests.service_class import ServiceClass


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """A service-level objective for a run.

    attainment: of the requests whose class has targets, the share that must meet all of them (0 to 1].
    max_ttft_s: no request, of whatever class, may wait longer for its first token: a queue that grows shows
        here before it shows in the attainment.
    batch_tokens: of the tokens, prompt and output, that requests without targets brought, the share that
        must be served by `max_ttft_s` after the last arrival, so that a load is not met by putting batch work
        off for ever.
    """

    attainment: float = 0.99
    max_ttft_s: float = 12.0
    batch_tokens: float = 0.9

    def __post_init__(self) -> None:
        for name in ("attainment", "batch_tokens"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share above 0 and up to 1, got {getattr(self, name):g}")
        if not self.max_ttft_s > 0:
            raise ValueError(f"max_ttft_s must be above 0 seconds, got {self.max_ttft_s:g}")

    def allowed_misses(self, num_requests: int) -> int:
        """Of so many requests with targets, how many may miss one."""
        # A share is a decimal: 1 % of 100 is 1, although 100 * (1 - 0.99) is just above 1.
        return int(num_requests * (1 - self.attainment) + 1e-9)


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request as a service level judges it: what it brought and asked for, and what it got when."""

    latency: RequestLatency
    service_class: ServiceClass
    prompt_tokens: int
    output_tokens_asked: int

    @property
    def has_targets(self) -> bool:
        return has_targets(self.service_class)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a service level found. Shares are 1 where no request is concerned.

    longest_ttft_s: None when some request got no token at all.
    reasons: what was not held, in words; empty when all was.
    """

    attained: float
    longest_ttft_s: float | None
    batch_tokens_served: float
    reasons: tuple[str, ...]

    @property
    def met(self) -> bool:
        return not self.reasons


def has_targets(service_class: ServiceClass) -> bool:
    return service_class.ttft_s is not None or service_class.tpot_s is not None


def judge(requests: Sequence[ServedRequest], level: ServiceLevel) -> Verdict:
    """Hold a finished run against a service level. Requests that failed or were refused have no tokens."""
    targeted = [one for one in requests if one.has_targets]
    misses = sum(not one.latency.meets(one.service_class) for one in targeted)
    attained = 1 - misses / len(targeted) if targeted else 1.0
    waits = [one.latency.ttft_s for one in requests]
    longest = None if None in waits else max((wait for wait in waits if wait is not None), default=0.0)
    served = batch_tokens_served(requests, level.max_ttft_s)
    reasons = []
    if misses > level.allowed_misses(len(targeted)):
        reasons.append(f"{attained:.1%} of requests met their targets, under {level.attainment:.4g}")
    if longest is None:
        reasons.append("a request got no token")
    elif longest > level.max_ttft_s:
        reasons.append(f"a request waited {longest:.1f} s for its first token, over {level.max_ttft_s:g} s")
    if served < level.batch_tokens:
        reasons.append(f"{served:.1%} of the batch tokens came in time, under {level.batch_tokens:.4g}")
    return Verdict(attained, longest, served, tuple(reasons))


def batch_tokens_served(requests: Sequence[ServedRequest], grace_s: float) -> float:
    """Of the tokens of requests without targets, the share served by `grace_s` after the last arrival.

    A prompt counts as served when its first output token comes. 1 without such requests.
    """
    batch = [one for one in requests if not one.has_targets]
    if not batch:
        return 1.0
    until = max(one.latency.arrival_time for one in requests) + grace_s
    offered = served = 0
    for one in batch:
        in_time = sum(time <= until for time in one.latency.token_times)
        offered += one.prompt_tokens + one.output_tokens_asked
        served += in_time + (one.prompt_tokens if in_time else 0)
    return served / offered
