"""What a set of results shows, in sentences made from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from tightpack.benchmarking.policy_run import PolicyRun

# Ratios nearer to 1 than this are called equal: repeats on a shared machine differ by as much.
_NOISE = 1.05


def against_baseline(runs: Sequence[PolicyRun], baseline: str = "static") -> str | None:
    """Throughput and p99 TTFT of the fastest other policy against `baseline`; None without both."""
    base = next((run for run in runs if run.policy == baseline), None)
    best = max(
        (run for run in runs if run.policy != baseline), key=lambda run: run.output_tokens_per_s, default=None
    )
    if base is None or best is None:
        return None
    base_wait, best_wait = base.latency.ttft_s.p99, best.latency.ttft_s.p99
    if not base_wait or not best_wait:
        return None
    speed, wait = best.output_tokens_per_s, base.output_tokens_per_s
    return (
        f"{best.policy} gave {speed:.0f} tokens/s and {baseline} {wait:.0f}"
        f" ({_compared(speed, wait, 'more', 'fewer')}); the p99 wait for a first token was"
        f" {_time(best_wait)} with {best.policy} and {_time(base_wait)} with {baseline}"
        f" ({_compared(best_wait, base_wait, 'longer', 'shorter')})."
    )


def while_a_long_prompt_arrives(runs: Sequence[PolicyRun]) -> str | None:
    """p99 ITL of chunked-prefill against continuous; None when one of them is missing."""
    by_policy = {run.policy: run for run in runs}
    if not {"continuous", "chunked-prefill"} <= by_policy.keys():
        return None
    whole = by_policy["continuous"].latency.itl_s.p99
    chunked = by_policy["chunked-prefill"].latency.itl_s.p99
    if not whole or not chunked:
        return None
    return (
        f"the p99 gap between two tokens was {_time(chunked)} with chunked-prefill and"
        f" {_time(whole)} with continuous ({_compared(chunked, whole, 'longer', 'shorter')})."
    )


def _compared(value: float, other: float, above: str, below: str) -> str:
    """`value` against `other` in words."""
    ratio = value / other
    if 1 / _NOISE <= ratio <= _NOISE:
        return "about the same"
    if ratio >= 2:
        return f"{ratio:.1f} times {'as many' if above == 'more' else 'as long'}"
    return f"{(ratio - 1) * 100:.0f} % {above}" if ratio > 1 else f"{(1 - ratio) * 100:.0f} % {below}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
