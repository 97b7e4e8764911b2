"""A linear's input in 8 bits: x = codes * scales, as `ActivationFormat` has it.

No number depends on another row, so that a row gives the same codes alone and in any batch. What other
programs take from the whole batch is taken from each row here: the dynamic scale of a "tensor", and the
outliers of LLM.int8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat

INT8_LARGEST = 127.0
FP8_LARGEST = 448.0


@dataclass(frozen=True, slots=True)
class RoundedInput:
    """codes: int8 or float8_e4m3fn [rows, inputs].
    scales: float32 [rows, 1], or [rows, groups] with a scale for each group of neighbouring inputs.
    outliers: float32 [rows, inputs], the entries that stay out of the 8-bit product (their codes are 0), and
        zeros; None where there are none.
    """

    codes: Tensor
    scales: Tensor
    outliers: Tensor | None = None

    def dequantize(self) -> Tensor:
        """codes * scales, float32 [rows, inputs], without the outliers."""
        groups = self.codes.float().view(*self.scales.shape, -1)
        return groups.mul_(self.scales.unsqueeze(-1)).view(self.codes.shape)


def round_input(x: Tensor, activation: ActivationFormat) -> RoundedInput:
    """x: [rows, inputs] of any floating dtype.

    Codes are round(x / scale), ties to even, saturating. A dynamic scale is the largest absolute value over
    half the steps (int8) or 448 (fp8), of a row or of a group of it. With an outlier threshold, the row's
    entries of at least that magnitude are taken out first (LLM.int8, Dettmers et al. 2022, takes the columns
    that hold one in any row of the batch).
    """
    exact = x.float()
    outliers = None
    if activation.outlier_threshold is not None:
        large = exact.abs() >= activation.outlier_threshold
        # As bitsandbytes has it, outliers do not widen the scale of the rest.
        if bool(large.any()):
            outliers = exact.masked_fill(~large, 0)
            exact = exact.masked_fill(large, 0)
    largest, lowest = FP8_LARGEST, -FP8_LARGEST
    if activation.precision == "int8":
        largest, lowest = activation.steps / 2, INT8_LARGEST - activation.steps
    if activation.scale is not None:
        scales = exact.new_full((len(exact), 1), activation.scale)
        codes = to_codes(exact / activation.scale, activation.precision, lowest)
        return RoundedInput(codes, scales, outliers)
    if activation.per == "group":
        assert activation.group_size is not None
        exact = exact.reshape(len(exact), -1, activation.group_size)
    scales = row_scales(exact, largest)
    codes = to_codes(exact / scales, activation.precision, lowest).view(x.shape)
    return RoundedInput(codes, scales.flatten(1), outliers)


def row_scales(values: Tensor, largest: float) -> Tensor:
    """The largest magnitude of the last dimension over `largest`, float32 [..., 1]; 1 where all are 0."""
    scales = values.abs().amax(-1, keepdim=True).div_(largest)
    return scales.masked_fill_(scales == 0, 1)


def to_codes(scaled: Tensor, precision: str, lowest: float = -INT8_LARGEST) -> Tensor:
    """float32 values over their scale, overwritten, to int8 (from `lowest`) or float8_e4m3fn; ties to even,
    saturating."""
    if precision == "int8":
        return scaled.round_().clamp_(lowest, INT8_LARGEST).to(torch.int8)
    # Beyond 448 a cast gives NaN.
    return scaled.clamp_(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
