"""A linear's input already in 8 bits, as the row kernels leave it and the matrix kernels take it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Neighbouring inputs that share a bit of `QuantizedRows.flags`.
INPUTS_A_FLAG = 128


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """codes: int8 or float8_e4m3fn [rows, inputs]. scales: float32 [rows, 1] or [rows, groups].

    With LLM.int8's threshold, also where the entries lie whose codes are 0 because they stay in 16 bits:
    source: what was rounded, [rows, inputs]; flags: int32 [rows, words], bit b of word w set where one of
    inputs (32 w + b) * 128 .. + 127 has at least the magnitude `threshold`.
    """

    codes: Tensor
    scales: Tensor
    source: Tensor | None = None
    flags: Tensor | None = None
    threshold: float = 0.0

    @property
    def sums_dtype(self) -> torch.dtype:
        """What products of the codes are summed in."""
        return torch.int32 if self.codes.dtype == torch.int8 else torch.float32
