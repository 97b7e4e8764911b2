"""How far a mean over a few repeats can be trusted."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

# Student's t for 95 % two-sided, by degrees of freedom 1 to 30.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its two-sided 95 % confidence interval; low and high are None of a single value."""

    mean: float
    low: float | None
    high: float | None
    num_values: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        """From independent repeats, by Student's t. Raises ValueError without values."""
        given = list(values)
        if not given:
            raise ValueError("a confidence interval needs at least 1 value")
        mean = statistics.fmean(given)
        if len(given) == 1:
            return cls(mean, None, None, 1)
        half = _t95(len(given) - 1) * statistics.stdev(given) / len(given) ** 0.5
        return cls(mean, mean - half, mean + half, len(given))

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


def _t95(degrees: int) -> float:
    # Beyond the table the first term of Fisher's expansion about the normal is right to 0.2 %.
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96 + 2.372 / degrees
