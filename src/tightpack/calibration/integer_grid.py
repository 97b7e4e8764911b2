"""The grid a group of weights is rounded to: scales, zero points, codes, all on tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tightpack.schemes.quantized import IntWeight


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """values = (codes - zeros) * scales, broadcast over whatever shape the scales have.

    scales: float32, exact in the dtype they will be stored in, never 0; negative where the group's larger
        tail is the positive one and the grid is symmetric (its lowest code reaches further than its highest).
    zeros: float32 holding whole numbers 0 .. 2^bits - 1, shaped as the scales; None of a symmetric grid.
    """

    scales: Tensor
    zeros: Tensor | None
    bits: Literal[4, 8]

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.zeros is None else 0

    @property
    def highest(self) -> int:
        return self.lowest + (1 << self.bits) - 1

    def codes(self, values: Tensor) -> Tensor:
        """The nearest codes, whole numbers in float32, ties to even; `values` broadcasts with the scales."""
        codes = (values / self.scales).round_()
        if self.zeros is not None:
            codes += self.zeros
        return codes.clamp_(self.lowest, self.highest)

    def values(self, codes: Tensor) -> Tensor:
        """What the codes stand for, float32."""
        return codes * self.scales if self.zeros is None else (codes - self.zeros) * self.scales

    def rounded(self, values: Tensor) -> Tensor:
        """The representable values nearest to `values`."""
        return self.values(self.codes(values))

    def unsqueeze(self) -> IntegerGrid:
        """The grid with a last dimension of 1, to be broadcast over the members of each group."""
        zeros = None if self.zeros is None else self.zeros.unsqueeze(-1)
        return IntegerGrid(self.scales.unsqueeze(-1), zeros, self.bits)

    def by_input(self) -> IntegerGrid:
        """From scales [outputs, groups] to [groups, outputs]: what a column is rounded to lies together."""
        zeros = None if self.zeros is None else self.zeros.T.contiguous()
        return IntegerGrid(self.scales.T.contiguous(), zeros, self.bits)

    def rows(self, index: Tensor) -> IntegerGrid:
        """The rows `index` of scales and zero points; int64 or int32, of any shape."""
        zeros = None if self.zeros is None else self.zeros[index]
        return IntegerGrid(self.scales[index], zeros, self.bits)


def stored_scales(scales: Tensor, scale_dtype: torch.dtype) -> Tensor:
    """`scales` as they read back from `scale_dtype`, float32; in the place of 0 the least nonzero number.

    Codes are chosen against these and not the exact ones: bfloat16 keeps 8 bits of a scale, so a scale may
    move by 1/512 of itself, which at code 127 is a quarter of a step. ValueError if one overflows.
    """
    stored = scales.to(scale_dtype).to(torch.float32)
    if not bool(torch.isfinite(stored).all()):
        largest = float(scales.abs().max())
        raise ValueError(f"a scale of {largest:.3g} does not fit in {scale_dtype}: the weights are too large")
    info = torch.finfo(scale_dtype)
    # Kernels may flush subnormals of bfloat16 and float32 to 0; float16's are needed, and are not flushed.
    least = 2.0**-24 if scale_dtype == torch.float16 else info.tiny
    small = torch.where(scales < 0, -least, least)
    return torch.where(stored.abs() < least, small, stored)


def grid_of_range(
    low: Tensor,
    high: Tensor,
    *,
    bits: Literal[4, 8],
    symmetric: bool,
    scale_dtype: torch.dtype = torch.float16,
) -> IntegerGrid:
    """The grid that reaches from `low` to `high`.

    low, high: float32 of one shape (a group each), low <= high.
    symmetric: the end of larger magnitude gets code -2^(bits-1), by a negative scale if it is positive; the
        other end is cut by a step at most. Otherwise both ends are kept, and 0 is representable.
    scale_dtype: float16, bfloat16 or float32: what the scales will be stored in.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    if symmetric:
        farthest = torch.where(high.abs() > low.abs(), high, low)
        scales = farthest / -float(1 << (bits - 1))
        return IntegerGrid(stored_scales(scales, scale_dtype), None, bits)
    highest = (1 << bits) - 1
    low = low.clamp(max=0.0)
    scales = stored_scales((high.clamp(min=0.0) - low) / highest, scale_dtype)
    zeros = (-low / scales).round_().clamp_(0, highest)
    return IntegerGrid(scales, zeros, bits)


def min_max_grid(
    grouped: Tensor, *, bits: Literal[4, 8], symmetric: bool, scale_dtype: torch.dtype = torch.float16
) -> IntegerGrid:
    """The grid [outputs, groups] that reaches every weight of `grouped` [outputs, groups, group_size]."""
    low, high = grouped.aminmax(dim=2)
    return grid_of_range(low, high, bits=bits, symmetric=symmetric, scale_dtype=scale_dtype)


def int_weight(codes: Tensor, grid: IntegerGrid, group_size: int) -> IntWeight:
    """codes: whole numbers [outputs, inputs]; grid: of shape [outputs, groups]."""
    symmetric = grid.zeros is None
    code_type = torch.int8 if symmetric else torch.uint8
    zeros = None if grid.zeros is None else grid.zeros.to(torch.uint8).cpu().numpy()
    return IntWeight(
        codes=np.ascontiguousarray(codes.to(code_type).cpu().numpy()),
        scales=grid.scales.to(torch.float32).cpu().numpy(),
        zeros=zeros,
        bits=grid.bits,
        group_size=group_size,
    )
