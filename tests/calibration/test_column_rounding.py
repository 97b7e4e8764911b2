"""Columns rounded in turn, on every instruction set, against the same in PyTorch."""

from __future__ import annotations

import pytest
import torch

from tightpack._native import instruction_sets, round_columns
from tightpack.calibration.column_rounding import _round_on_device, round_block
from tightpack.calibration.integer_grid import IntegerGrid


def problem(columns, outputs, symmetric, bits=4):
    random = torch.Generator().manual_seed(columns * 1000 + outputs)
    state = torch.randn(columns, outputs, generator=random)
    scales = torch.rand(3, outputs, generator=random) * 0.2 + 0.05
    zeros = None if symmetric else torch.randint(0, 1 << bits, (3, outputs), generator=random).float()
    groups = torch.randint(0, 3, (columns,), generator=random).to(torch.int32)
    pivots = torch.rand(columns, generator=random) + 0.5
    influence = torch.randn(columns, columns, generator=random) * 0.05
    held = torch.randn(columns, outputs, generator=random) * 0.3
    return state, IntegerGrid(scales, zeros, bits), groups, pivots, influence, held


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("columns", "outputs"), [(1, 1), (7, 16), (31, 83), (128, 130)])
def test_codes_and_changes_are_those_of_the_plain_loop(instruction_set, holds, symmetric, columns, outputs):
    state, grid, groups, pivots, influence, held = problem(columns, outputs, symmetric)
    codes, changes = torch.empty_like(state), torch.empty_like(state)
    round_columns(
        state.numpy(),
        held.numpy() if holds else None,
        grid.scales.numpy(),
        None if grid.zeros is None else grid.zeros.numpy(),
        groups.numpy(),
        grid.bits,
        pivots.numpy(),
        influence.numpy(),
        codes.numpy(),
        changes.numpy(),
        2,
        instruction_set=instruction_set,
    )
    expected = _round_on_device(state.clone(), grid, groups, pivots, influence, held if holds else None)
    # An output whose number falls between two codes may go either way, and all its later columns with it.
    same = (codes == expected[0]).all(dim=0)
    assert same.float().mean() > 0.95
    torch.testing.assert_close(changes[:, same], expected[1][:, same], rtol=0, atol=1e-4)
    assert torch.equal(state, problem(columns, outputs, symmetric)[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_far_numbers_get_the_outermost_codes(bits):
    state = torch.tensor([[1e30, -1e30, 0.0]])
    grid = IntegerGrid(torch.full((1, 3), 0.5), None, bits)
    one = torch.ones(1)
    codes, _ = round_block(state, grid, torch.zeros(1, dtype=torch.int32), one, one[None], None)
    assert codes.tolist() == [[2.0 ** (bits - 1) - 1, -(2.0 ** (bits - 1)), 0.0]]


def test_ties_go_to_even_codes():
    state = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]])
    grid = IntegerGrid(torch.ones(1, 5), None, 4)
    one = torch.ones(1)
    codes, errors = round_block(state, grid, torch.zeros(1, dtype=torch.int32), one, one[None], None)
    assert codes.tolist() == [[0.0, 2.0, 2.0, 0.0, -2.0]]
    assert errors.tolist() == [[0.5, -0.5, 0.5, -0.5, 0.5]]


def test_bits_do_not_depend_on_threads():
    arguments = problem(64, 300, False)
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(round_block(*arguments))
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"groups": torch.full((5,), 3, dtype=torch.int32)}, r"group_of_column must be 0 \.\. 2"),
        ({"pivots": torch.ones(4)}, r"pivots must be \[5\]"),
        ({"influence": torch.ones(5, 4)}, r"influence must be \[5, 5\]"),
        ({"held": torch.ones(5, 8)}, r"held must be \[5, 9\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    names = ("state", "grid", "groups", "pivots", "influence", "held")
    arguments = dict(zip(names, problem(5, 9, True), strict=True)) | change
    with pytest.raises(ValueError, match=match):
        round_block(**arguments)


def test_more_columns_than_the_kernel_keeps_are_refused():
    with pytest.raises(ValueError, match="at most 128 columns"):
        round_block(*problem(129, 4, True))
