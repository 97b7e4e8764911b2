"""Percentiles with linear interpolation between the order statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


def percentile(values: Iterable[float], q: float) -> float | None:
    """The q-th percentile (0 to 100) of `values`, None of no values.

    Rank h = (n - 1) * q / 100, interpolated linearly between its two neighbours: type 7 of Hyndman and Fan
    (1996), which is also numpy's default.
    """
    if not 0 <= q <= 100:
        raise ValueError(f"a percentile lies in [0, 100], got {q}")
    ordered = sorted(values)
    if not ordered:
        return None
    rank = (len(ordered) - 1) * q / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    # Written so that equal neighbours give exactly their value.
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Three percentiles, the mean and the largest of a set of seconds; all None of an empty set."""

    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None
    max: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles:
        ordered = sorted(values)
        mean = math.fsum(ordered) / len(ordered) if ordered else None
        largest = ordered[-1] if ordered else None
        p50, p90, p99 = (percentile(ordered, q) for q in (50, 90, 99))
        return cls(p50, p90, p99, mean, largest)
