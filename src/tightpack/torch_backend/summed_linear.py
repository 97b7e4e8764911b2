"""A linear of which each rank has some inputs: its outputs are summed over the ranks."""

from __future__ import annotations

from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.rank_group import RankGroup


class SummedLinear:
    """The sum over the ranks of a linear of each rank's part of the inputs.

    A dynamic scale of the input is that of the rank's part: never coarser than one of the whole row.
    """

    def __init__(self, linear: LinearLayer, group: RankGroup) -> None:
        self._linear, self._group = linear, group

    @property
    def capturable(self) -> bool:
        return bool(getattr(self._linear, "capturable", True))

    @property
    def input_format(self) -> ActivationFormat | None:
        """What a fused kernel before the linear asks of it (see `fused_rows`)."""
        return getattr(self._linear, "input_format", None)

    @property
    def saturated(self) -> Tensor | None:
        """As `input_format`."""
        return getattr(self._linear, "saturated", None)

    def __call__(self, x: Tensor) -> Tensor:
        return self._group.all_reduce_(self._linear(x))
