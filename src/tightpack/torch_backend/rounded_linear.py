"""Linears whose input is rounded to 8 bits before the product: the arithmetic of W8A8, LLM.int8 and FP8.

The product is of codes: y = (codes of x) (codes of W)^T * (scale of the row) * (scale of the column). Codes
are exact in every floating dtype, so a floating product differs from the integer one by the rounding of its
sum and of its result alone. Weights with scales inside a row are dequantized instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.input_rounding import RoundedInput, round_input
from tightpack.torch_backend.linear import Linear, LinearLayer

# Codes times this keep sums of their products within float16; a power of two costs no precision.
_UNIT = 2.0**-8
# The CPU's integer product is wrong for a single input (PyTorch 2.13); no layer is near that.
_SMALLEST_INT_MM = 16


class RoundedLinear:
    """y = round(x) W^T + b in x's dtype, x [rows, inputs], W[n, k] = codes[n, k] * scales[n].

    codes: int8, float8_e4m3fn or floating [outputs, inputs]; scales: float32 [outputs].
    dtype: of the product where it is not one of integers.
    Outliers of the input meet the dequantized weight in float32.
    """

    __slots__ = ("_activation", "_bias", "_codes", "_dense", "_scales", "_transposed")

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        activation: ActivationFormat,
        *,
        dtype: torch.dtype,
        bias: Tensor | None = None,
    ) -> None:
        if activation.per == "group" and activation.scale is None:
            raise ValueError("inputs with scales in groups need GroupRoundedLinear")
        self._activation = activation
        self._bias = bias
        integers = codes.dtype == torch.int8 and activation.precision == "int8"
        # An integer product takes half to three quarters of a bf16 one's time on a CPU, at every row count.
        use_integers = integers and codes.device.type == "cpu" and codes.shape[1] >= _SMALLEST_INT_MM
        # int8 [inputs, outputs], a view: each output's inputs lie together.
        self._transposed = codes.t() if use_integers else None
        self._dense = None if use_integers else Linear((codes.float() * _UNIT).to(dtype))
        self._scales = scales if use_integers else scales / _UNIT**2
        self._codes = None if activation.outlier_threshold is None else (codes, scales)

    @property
    def capturable(self) -> bool:
        """Whether a call may be recorded in a CUDA graph: looking for outliers waits for the device."""
        return self._activation.outlier_threshold is None

    def __call__(self, x: Tensor) -> Tensor:
        rounded = round_input(x, self._activation)
        if self._transposed is not None:
            product = torch._int_mm(rounded.codes, self._transposed).float()
        else:
            assert self._dense is not None
            # By way of float32: float8 has no arithmetic.
            product = self._dense((rounded.codes.float() * _UNIT).to(self._dense.dtype)).float()
        y = product.mul_(rounded.scales).mul_(self._scales)
        if rounded.outliers is not None:
            y += self._outlier_product(rounded)
        if self._bias is not None:
            y += self._bias
        return y.to(x.dtype)

    def _outlier_product(self, rounded: RoundedInput) -> Tensor:
        """float32 [rows, outputs], from the inputs that are an outlier in some row (in the others: 0)."""
        assert rounded.outliers is not None
        assert self._codes is not None
        codes, scales = self._codes
        columns = rounded.outliers.any(0).nonzero().squeeze(1)
        weight = codes.index_select(1, columns).float()
        return (rounded.outliers.index_select(1, columns) @ weight.t()).mul_(scales)


class GroupRoundedLinear:
    """y = round(x) W^T + b where scales of x or W change within a row: both are dequantized to W's dtype.

    weight: [outputs, inputs]. x [rows, inputs] and y are of its dtype.
    """

    __slots__ = ("_activation", "_linear")

    def __init__(self, weight: Tensor, activation: ActivationFormat, *, bias: Tensor | None = None) -> None:
        self._activation = activation
        self._linear = Linear(weight, bias)

    @property
    def capturable(self) -> bool:
        """As RoundedLinear's."""
        return self._activation.outlier_threshold is None

    def __call__(self, x: Tensor) -> Tensor:
        rounded = round_input(x, self._activation)
        values = rounded.dequantize()
        if rounded.outliers is not None:
            values += rounded.outliers
        return self._linear(values.to(x.dtype))


class SideBySide:
    """Linears of one input that round it differently; their outputs in one row."""

    __slots__ = ("_linears",)

    def __init__(self, linears: Sequence[LinearLayer]) -> None:
        self._linears = tuple(linears)

    @property
    def capturable(self) -> bool:
        return all(getattr(linear, "capturable", True) for linear in self._linears)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self._linears], dim=-1)
