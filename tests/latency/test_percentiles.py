from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightpack.latency.percentiles import Percentiles, percentile


def test_interpolates_between_neighbours() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0) == 1.0
    assert percentile(values, 50) == 2.5
    assert percentile(values, 90) == pytest.approx(3.7)  # rank 2.7: 3 + 0.7
    assert percentile(values, 100) == 4.0


def test_one_value_is_every_percentile_and_none_has_none() -> None:
    assert percentile([7.0], 1) == percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None
    assert Percentiles.of([]) == Percentiles(None, None, None, None, None)


@pytest.mark.parametrize("q", [-1, 100.5, float("nan")])
def test_refuses_what_is_no_percentage(q: float) -> None:
    with pytest.raises(ValueError, match=r"lies in \[0, 100\]"):
        percentile([1.0], q)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=50),
    st.floats(0, 100),
)
def test_agrees_with_numpy(values: list[float], q: float) -> None:
    ours = percentile(values, q)
    assert ours == pytest.approx(float(np.percentile(values, q)), rel=1e-9, abs=1e-9)
    assert min(values) <= ours <= max(values)


def test_of_a_set() -> None:
    summary = Percentiles.of(float(i) for i in range(101))
    assert summary == Percentiles(50.0, 90.0, 99.0, 50.0, 100.0)
