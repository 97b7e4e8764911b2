"""What no schedule can beat: reasons to leave a deployment out, and the fewest replicas, unsimulated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightpack.planning.deployments import Deployment
from tightpack.planning.load import Load
from tightpack.planning.step_times import (
    decode_seconds,
    prompt_seconds,
    seconds_a_prompt_token,
    seconds_an_output_token,
)

# Marginal costs are taken at mean lengths; this share of what they say is surely needed.
_SURELY = 0.9


@dataclass(frozen=True, slots=True)
class Pruned:
    """binds: memory, TTFT, TPOT or KL. reason: in words, with numbers."""

    deployment: Deployment
    binds: str
    reason: str


def reason_against(deployment: Deployment, load: Load, max_kl: float | None) -> Pruned | None:
    """Why no number of these replicas can serve the load, or None.

    On an idle replica a request has the machine to itself: who misses a target there misses it everywhere.
    """
    promise, model = load.promise, deployment.cost_model

    def pruned(binds: str, reason: str) -> Pruned:
        return Pruned(deployment, binds, reason)

    if max_kl is not None and deployment.kl > max_kl:
        return pruned("KL", f"its KL divergence is {deployment.kl:.4f}, over {max_kl:g}")
    if deployment.cache_tokens < load.max_model_len:
        if deployment.cache_tokens == 0:
            return pruned(
                "memory", f"weights of {deployment.weights_bytes / 1e9:.1f} GB leave no room for a cache"
            )
        return pruned(
            "memory",
            f"the cache holds {deployment.cache_tokens:,} tokens, under {load.max_model_len:,} of a request",
        )
    tpot = decode_seconds(model, 1, load.mean_context)
    if promise.tpot_s is not None and tpot > promise.tpot_s:
        return pruned(
            "TPOT", f"a request alone has a TPOT of {1e3 * tpot:.0f} ms, over {1e3 * promise.tpot_s:g}"
        )
    length = load.prompts_over(load.level.attainment)
    ttft = prompt_seconds(model, length)
    if promise.ttft_s is not None and ttft > promise.ttft_s:
        return pruned(
            "TTFT", f"a prompt of {length:,} tokens alone takes {ttft:.2f} s, over {promise.ttft_s:g}"
        )
    return None


def fewest_replicas(deployment: Deployment, load: Load) -> int:
    """Replicas whose machines are not asked for more than a second of work a second."""
    model = deployment.cost_model
    prompt = load.mean_input * seconds_a_prompt_token(model, max(1, round(load.mean_input)))
    output = load.mean_output * seconds_an_output_token(model, load.mean_context)
    return max(1, math.ceil(_SURELY * load.rate * (prompt + output)))
