"""Uniform numbers that depend on a request's seed and output position alone.

Every executor draws its token with the same number, so that a seed gives the same output whatever the
batch, the policy or a preemption did to the order of the work.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


def _mix(z: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, for the output token at `position` of a request with `seed`."""
    state = _mix((seed + 0x9E3779B97F4A7C15) & _MASK)
    return (_mix((state + (position + 1) * 0x9E3779B97F4A7C15) & _MASK) >> 11) * 2.0**-53
