from __future__ import annotations

import random
import statistics

import pytest

from tightpack.latency.confidence import Interval


def test_by_hand() -> None:
    interval = Interval.of([1.0, 2.0, 3.0])
    # t = 4.303 for 2 degrees of freedom; the standard error is 1 / sqrt(3).
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.303 / 3**0.5)
    assert (interval.low, interval.high) == (2.0 - interval.half_width, 2.0 + interval.half_width)


def test_one_value_has_no_interval() -> None:
    assert Interval.of([4.0]) == Interval(4.0, None, None, 1)
    assert Interval.of([4.0]).half_width is None
    with pytest.raises(ValueError, match="at least 1 value"):
        Interval.of([])


def test_many_values_come_near_the_normal() -> None:
    values = [float(i % 7) for i in range(700)]
    half = Interval.of(values).half_width
    assert half == pytest.approx(1.9634 * statistics.stdev(values) / 700**0.5, rel=1e-3)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_it_holds_the_mean_nineteen_times_of_twenty(count: int) -> None:
    rng = random.Random(count)
    held = 0
    for _ in range(2000):
        interval = Interval.of(rng.gauss(3, 2) for _ in range(count))
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= 3 <= interval.high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)
