"""A linear of which each rank has some inputs: its outputs are summed over the ranks."""

from __future__ import annotations

from torch import Tensor

from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.rank_group import RankGroup


class SummedLinear:
    """The sum over the ranks of a linear of each rank's part of the inputs.

    A dynamic scale of the input is that of the rank's part: never coarser than one of the whole row.
    """

    def __init__(self, linear: LinearLayer, group: RankGroup) -> None:
        self._linear, self._group = linear, group
        self.capturable = bool(getattr(linear, "capturable", True))
        # What a fused kernel before the linear asks of it (see `fused_rows`).
        self.input_format = getattr(linear, "input_format", None)
        self.saturated = getattr(linear, "saturated", None)

    def __call__(self, x: Tensor) -> Tensor:
        return self._group.all_reduce_(self._linear(x))
