from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightpack.simulated.non_negative import non_negative_least_squares


def best_over_all_subsets(matrix, target):
    """The least residual that any set of columns reaches with coefficients of 0 or more."""
    best = float(np.linalg.norm(target))
    for size in range(1, matrix.shape[1] + 1):
        for columns in combinations(range(matrix.shape[1]), size):
            x = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            if (x >= 0).all():
                best = min(best, float(np.linalg.norm(target - matrix[:, columns] @ x)))
    return best


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 6), rank=st.integers(1, 6))
def test_no_other_choice_of_columns_does_better(seed, columns, rank):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(12, min(rank, columns))) @ rng.normal(size=(min(rank, columns), columns))
    target = rng.normal(size=12)
    x = non_negative_least_squares(matrix, target)
    assert (x >= 0).all()
    residual = float(np.linalg.norm(target - matrix @ x))
    assert residual <= best_over_all_subsets(matrix, target) * (1 + 1e-6) + 1e-9


def test_columns_of_very_different_sizes_and_columns_of_zeros():
    rng = np.random.default_rng(0)
    matrix = rng.uniform(size=(40, 4)) * np.array([1.0, 1e6, 1e-3, 0.0])
    truth = np.array([2.0, 3e-6, 0.0, 5.0])
    x = non_negative_least_squares(matrix, matrix @ truth)
    assert x == pytest.approx([2.0, 3e-6, 0.0, 0.0], rel=1e-6, abs=1e-9)
