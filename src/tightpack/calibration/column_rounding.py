"""Neighbouring columns rounded in turn: the inner loop of GPTQ and of coordinate descent."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack._native import round_columns
from tightpack.calibration.integer_grid import IntegerGrid

# What the kernel keeps of an output in the first-level cache.
MOST_COLUMNS = 128


def round_block(
    state: Tensor, grid: IntegerGrid, groups: Tensor, pivots: Tensor, influence: Tensor, held: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes and changes, float32 [columns, outputs], of columns that are rounded one after the other.

    A column is rounded from held + state / pivot, and its change is by how much that moves it from `held`;
    where nothing is held, from its state alone, and its change is the error left, over its pivot. The state
    of every later column j then falls by influence[column, j] times the change.

    state, held: float32 [columns, outputs], at most MOST_COLUMNS; left as they are. grid: by input,
        [groups, outputs]. groups: int32 [columns], each column's. pivots: float32 [columns]. influence:
        float32 [columns, columns], read above the diagonal.
    """
    if state.device.type != "cpu":
        return _round_on_device(state.clone(), grid, groups, pivots, influence, held)
    codes, changes = torch.empty_like(state), torch.empty_like(state)
    round_columns(
        state.numpy(),
        None if held is None else held.numpy(),
        grid.scales.numpy(),
        None if grid.zeros is None else grid.zeros.numpy(),
        groups.numpy(),
        grid.bits,
        pivots.numpy(),
        influence.contiguous().numpy(),
        codes.numpy(),
        changes.numpy(),
        torch.get_num_threads(),
    )
    return codes, changes


def _round_on_device(
    state: Tensor, grid: IntegerGrid, groups: Tensor, pivots: Tensor, influence: Tensor, held: Tensor | None
) -> tuple[Tensor, Tensor]:
    codes, changes = torch.empty_like(state), torch.empty_like(state)
    for column, pivot in enumerate(pivots.tolist()):
        one = grid.rows(groups[column])
        wanted = state[column] if held is None else held[column] + state[column] / pivot
        codes[column] = one.codes(wanted)
        value = one.values(codes[column])
        changes[column] = (wanted - value) / pivot if held is None else value - held[column]
        state[column + 1 :].addr_(influence[column, column + 1 :], changes[column], alpha=-1.0)
    return codes, changes
