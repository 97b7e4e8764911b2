"""Refuses what no algorithm could make sense of, saying what and where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_finite(values: Tensor, what: str) -> None:
    """ValueError if `values` holds a NaN or an infinity."""
    # A sum is finite only if its terms are, and costs one pass without a mask of the tensor's size.
    if torch.isfinite(values.sum()):
        return
    bad = ~torch.isfinite(values)
    if not bool(bad.any()):
        return  # the sum alone overflowed
    first = tuple(int(index) for index in bad.nonzero()[0])
    raise ValueError(
        f"{what}: {int(bad.sum())} of {values.numel()} values are NaN or infinite, first at {first}"
    )


def check_weight(weight: Tensor, group_size: int | None = None) -> None:
    """ValueError unless `weight` is a finite, nonempty [outputs, inputs] whose inputs divide into groups."""
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be [outputs, inputs] and not empty, got shape {tuple(weight.shape)}")
    inputs = weight.shape[1]
    if group_size is not None and (group_size < 1 or inputs % group_size):
        raise ValueError(f"group size {group_size} does not divide the weight's {inputs} inputs")
    check_finite(weight, "weight")


def check_hessian(hessian: Tensor, inputs: int) -> None:
    """ValueError unless `hessian` is a finite [inputs, inputs] without negative diagonal."""
    if tuple(hessian.shape) != (inputs, inputs):
        raise ValueError(f"hessian must be [{inputs}, {inputs}], got shape {tuple(hessian.shape)}")
    check_finite(hessian, "hessian")
    if bool((hessian.diagonal() < 0).any()):
        raise ValueError("hessian has a negative diagonal element: it is no sum of x x^T")


def check_statistic(values: Tensor, inputs: int, what: str) -> None:
    """ValueError unless `values` is a finite [inputs] of numbers at or above 0."""
    if tuple(values.shape) != (inputs,):
        raise ValueError(f"{what} must be [{inputs}], got shape {tuple(values.shape)}")
    check_finite(values, what)
    if bool((values < 0).any()):
        raise ValueError(f"{what} has a negative value")


def check_same_inputs(weights: Sequence[Tensor], group_size: int | None = None) -> int:
    """The number of inputs that all `weights` have; ValueError if they differ, or there are none."""
    if not weights:
        raise ValueError("no weights were given")
    for weight in weights:
        check_weight(weight, group_size)
    widths = sorted({weight.shape[1] for weight in weights})
    if len(widths) > 1:
        raise ValueError(f"weights that share an input must have one number of inputs, got {widths}")
    return int(widths[0])
