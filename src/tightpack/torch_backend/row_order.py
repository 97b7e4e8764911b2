"""What permutes the rows of a weight, its outputs, while it is loaded."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# [outputs, ...] to the same in another order.
RowOrder = Callable[[Tensor], Tensor]


def as_it_is(rows: Tensor) -> Tensor:
    return rows
