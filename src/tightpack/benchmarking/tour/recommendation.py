"""Which precision and policy to serve with, by what was measured: targets, then quality, then cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Of the requests that have targets, the share that must meet them: of the forty or so of a short run, two may
# be unlucky.
ATTAINMENT = 0.95
# Goodputs nearer to each other are equal: a short run on a shared machine is no more exact.
_SAME = 0.03


@dataclass(frozen=True, slots=True)
class Candidate:
    """One precision under one policy.

    attained: of the requests with targets, the share that met them. goodput_per_s: requests.
    busy_s: time that the machine computed for each request that met its targets: what it cost.
    kl: nats from the original's next-token distributions; 0 of the original itself.
    """

    precision: str
    policy: str
    attained: float
    goodput_per_s: float
    busy_s: float
    kl: float


@dataclass(frozen=True, slots=True)
class Choice:
    """meets_targets: whether the winner does; where nobody did, it is the one that came nearest.

    too_lossy: precisions that the quality bound left out. runner_up: None where nobody else was left.
    """

    winner: Candidate
    runner_up: Candidate | None
    meets_targets: bool
    too_lossy: tuple[str, ...]


def recommend(candidates: Sequence[Candidate], max_kl: float) -> Choice:
    """Of those within the quality bound that meet their targets, the largest goodput; of those about equal
    in it, the one that computes least for a request. Where nobody meets them, the largest share in time.

    Raises ValueError without candidates. The original is always within the bound.
    """
    if not candidates:
        raise ValueError("there is nothing to choose from")
    allowed = [one for one in candidates if one.kl <= max_kl]
    too_lossy = dict.fromkeys(one.precision for one in candidates if one.kl > max_kl)
    meeting = [one for one in allowed if one.attained >= ATTAINMENT]
    ranked = _by_goodput(meeting) if meeting else sorted(allowed, key=lambda one: -one.attained)
    return Choice(ranked[0], ranked[1] if len(ranked) > 1 else None, bool(meeting), tuple(too_lossy))


def _by_goodput(candidates: Sequence[Candidate]) -> list[Candidate]:
    most = max(one.goodput_per_s for one in candidates)
    level = [one for one in candidates if one.goodput_per_s >= most * (1 - _SAME)]
    behind = [one for one in candidates if one.goodput_per_s < most * (1 - _SAME)]
    return [
        *sorted(level, key=lambda one: one.busy_s),
        *sorted(behind, key=lambda one: -one.goodput_per_s),
    ]
