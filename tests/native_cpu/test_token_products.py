"""Sums over tokens of products of bfloat16 columns, on every instruction set, against float64."""

import ml_dtypes
import numpy as np
import pytest

from tightpack._native import add_token_products, instruction_sets


def columns(seed, tokens, width):
    values = np.random.default_rng(seed).standard_normal((tokens, width)).astype(ml_dtypes.bfloat16)
    return values.view(np.uint16), values.astype(np.float64)


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize(
    ("tokens", "rows", "width"),
    [
        (1, 16, 48),  # an odd token, whole tiles
        (37, 50, 70),  # columns that fill no tile
        (64, 5, 129),
        (1100, 33, 16),  # more tokens than are summed in registers
    ],
)
def test_sums_are_those_of_float64(instruction_set, tokens, rows, width):
    left, exact_left = columns(1, tokens, rows)
    right, exact_right = columns(2, tokens, width)
    sums = np.full((rows, width), 3.0, dtype=np.float32)
    add_token_products(sums, left, right, instruction_set=instruction_set)
    np.testing.assert_allclose(sums, 3 + exact_left.T @ exact_right, rtol=0, atol=1e-6 * (tokens + 8))


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize(("tokens", "width"), [(37, 70), (1026, 112)])
def test_lower_triangle_of_a_symmetric_sum(instruction_set, tokens, width):
    given, exact = columns(3, tokens, width)
    sums = np.zeros((width, width), dtype=np.float32)
    add_token_products(sums, given, instruction_set=instruction_set)
    error = np.tril(sums - exact.T @ exact)
    assert np.abs(error).max() < 1e-5 * tokens


def test_bits_do_not_depend_on_threads():
    left, _ = columns(4, 300, 200)
    right, _ = columns(5, 300, 150)
    results = []
    for threads in (1, 2, 5):
        sums = np.zeros((200, 150), dtype=np.float32)
        add_token_products(sums, left, right, threads)
        results.append(sums.tobytes())
    assert len(set(results)) == 1


def test_shapes_that_do_not_fit_are_refused():
    left, _ = columns(6, 8, 4)
    right, _ = columns(7, 9, 4)
    sums = np.zeros((4, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="right must be"):
        add_token_products(sums, left, right)
    with pytest.raises(ValueError, match="sums must be"):
        add_token_products(np.zeros((4, 5), dtype=np.float32), left)
