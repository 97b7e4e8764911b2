from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightpack.calibration.mixed_precision import Option, assign_precisions, smallest_assignment


def total(options, chosen):
    taken = [choices[index] for choices, index in zip(options, chosen, strict=True)]
    return sum(option.bytes for option in taken), sum(option.error for option in taken)


def brute_force(options, budget):
    sums = (total(options, chosen) for chosen in itertools.product(*(range(len(one)) for one in options)))
    return min((error for size, error in sums if size <= budget), default=None)


OPTION = st.builds(
    Option, bytes=st.integers(0, 60), error=st.integers(-1000, 10_000).map(lambda error: error / 1000)
)


@settings(max_examples=200, deadline=None)
@given(options=st.lists(st.lists(OPTION, min_size=1, max_size=4), max_size=6), budget=st.integers(0, 250))
def test_no_assignment_within_the_bytes_has_less_error(options, budget):
    least = brute_force(options, budget)
    if least is None:
        with pytest.raises(ValueError, match="too few: the smallest options need"):
            assign_precisions(options, budget)
        return
    size, error = total(options, assign_precisions(options, budget))
    assert size <= budget
    assert error == pytest.approx(least, rel=2e-6, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    options=st.lists(st.lists(OPTION, min_size=1, max_size=4), max_size=5),
    most=st.integers(-3000, 30_000).map(lambda error: error / 1000 + 0.0005),
)
def test_no_assignment_within_the_error_has_fewer_bytes(options, most):
    sums = (total(options, chosen) for chosen in itertools.product(*(range(len(one)) for one in options)))
    fewest = min((size for size, error in sums if error <= most), default=None)
    if fewest is None:
        with pytest.raises(ValueError, match="no assignment has an error of"):
            smallest_assignment(options, most)
        return
    size, error = total(options, smallest_assignment(options, most))
    assert error <= most
    assert size == fewest


def model_of_layers(layers, seed):
    """Sizes and errors like a model's: each of 4, 8 and 16 bits and three group sizes."""
    rng = np.random.default_rng(seed)
    options = []
    for _ in range(layers):
        elements = int(rng.choice([200_000, 330_000, 1_700_000, 880_000]))
        sensitivity = float(np.exp(rng.normal(-6, 1.5)))
        bits = [(4.25, 1.3), (4.5, 1.0), (5.0, 0.8), (8.125, 0.01), (8.0, 0.02), (16.0, 0.0)]
        options.append(
            [
                Option(int(elements * one / 8), sensitivity * error * rng.uniform(0.8, 1.2))
                for one, error in bits
            ]
        )
    return options


def test_a_model_of_210_linears_takes_moments():
    options = model_of_layers(210, 1)
    budget = sum(int(choices[0].bytes * 4.5 / 4.25) for choices in options)
    started = time.perf_counter()
    chosen = assign_precisions(options, budget)
    assert time.perf_counter() - started < 10
    size, error = total(options, chosen)
    assert size <= budget
    uniform = total(options, [1] * 210)
    assert error < 0.8 * uniform[1]
    assert assign_precisions(options, budget) == chosen


def test_more_bytes_never_cost_error():
    options = model_of_layers(30, 2)
    smallest = sum(min(option.bytes for option in choices) for choices in options)
    budgets = [smallest * step // 10 for step in range(10, 45, 3)]
    errors = [total(options, assign_precisions(options, budget))[1] for budget in budgets]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(sum(min(one.error for one in choices) for choices in options))


def test_what_cannot_be_solved_is_refused():
    with pytest.raises(ValueError, match="layer 1 has no option"):
        assign_precisions([[Option(1, 0.0)], []], 10)
    with pytest.raises(ValueError, match="layer 0 has an option whose error is nan"):
        assign_precisions([[Option(1, float("nan"))]], 10)
    with pytest.raises(ValueError, match="-1 bytes"):
        assign_precisions([[Option(-1, 0.0)]], 10)
    assert assign_precisions([], 0) == []
