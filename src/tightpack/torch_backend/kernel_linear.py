"""Linears over the Triton kernels: on CUDA, what `linear` and `rounded_linear` are elsewhere.

Each takes a tensor, or the input already rounded as its `input_format` says (see `fused_rows`), and gives
what the reference gives up to the order of its sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tightpack.schemes.quantized import ActivationFormat, Fp8Weight, IntWeight, QuantizedLinear
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.packed_weights import (
    INPUTS_A_TILE,
    Packed8,
    PackedInt4,
    eight_bits_fit,
    int4_fits,
    int4_key,
    pack_8,
    pack_int4,
    scaled_by_row,
)
from tightpack.torch_backend.quantized_rows import QuantizedRows
from tightpack.torch_backend.row_order import RowOrder
from tightpack.torch_backend.scaled_matmul import scaled_matmul, scaled_matmul_takes

if TYPE_CHECKING:
    from tightpack.torch_backend.kernels.context import KernelContext

# Of activations, beside the kernels' weights.
_DTYPES = (torch.bfloat16, torch.float16)
# Rows up to which our product of 8-bit floats, with its splits, is faster than the library's large tiles.
_FEW_ROWS = 64
# Side of the weights' blocks and the inputs' groups in DeepSeek-V3's format.
_BLOCK = 128


class Int4Linear:
    """4-bit weights in groups, activations in 16 bits."""

    __slots__ = ("_bias", "_context", "_packed")
    input_format: ActivationFormat | None = None

    def __init__(self, packed: PackedInt4, bias: Tensor | None, context: KernelContext) -> None:
        self._packed, self._bias, self._context = packed, bias, context

    def __call__(self, x: Tensor) -> Tensor:
        from tightpack.torch_backend.kernels.int4_matmul import int4_matmul

        return int4_matmul(x, self._packed, self._bias, self._context)


class WeightOnlyLinear:
    """8-bit weights, int8 or E4M3, activations in 16 bits."""

    __slots__ = ("_bias", "_context", "_packed")
    input_format: ActivationFormat | None = None

    def __init__(self, packed: Packed8, bias: Tensor | None, context: KernelContext) -> None:
        self._packed, self._bias, self._context = packed, bias, context

    def __call__(self, x: Tensor) -> Tensor:
        from tightpack.torch_backend.kernels.weight_only_matmul import weight_only_matmul

        return weight_only_matmul(x, self._packed, self._bias, self._context)


class EightBitLinear:
    """Weights and activations in int8 or in E4M3, a scale an output and one a row: W8A8, FP8, LLM.int8.

    dtype: of the result. saturated: int32 [1] on the device, raised by the numbers beyond a static scale.
    """

    __slots__ = ("_bias", "_codes", "_context", "_dtype", "_scales", "input_format", "saturated")

    def __init__(
        self,
        packed: Packed8,
        activation: ActivationFormat,
        bias: Tensor | None,
        dtype: torch.dtype,
        context: KernelContext,
    ) -> None:
        self._codes = packed.codes
        self._scales = packed.scales.view(-1).float()
        self._bias, self._dtype, self._context = bias, dtype, context
        self.input_format: ActivationFormat = activation
        self.saturated: Tensor | None = None
        if activation.scale is not None:
            self.saturated = torch.zeros(1, dtype=torch.int32, device=packed.codes.device)

    def __call__(self, x: Tensor | QuantizedRows) -> Tensor:
        from tightpack.torch_backend.kernels.eight_bit_matmul import eight_bit_matmul
        from tightpack.torch_backend.kernels.quantize_rows import quantize_rows

        if isinstance(x, Tensor):
            x = quantize_rows(x, self.input_format, self._context, saturated=self.saturated)
        rows = len(x.codes)
        if rows > _FEW_ROWS and scaled_matmul_takes(x.codes, self._codes):
            return scaled_matmul(
                x.codes, x.scales, self._codes, self._scales, bias=self._bias, dtype=self._dtype
            )
        y = torch.empty((rows, len(self._codes)), dtype=self._dtype, device=x.codes.device)
        return eight_bit_matmul(x, self._codes, self._scales, self._bias, y, self._context)


class Fp8BlockLinear:
    """E4M3 weights in blocks of 128 x 128, activations in groups of 128."""

    __slots__ = ("_bias", "_codes", "_context", "_dtype", "_scales", "input_format")

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        activation: ActivationFormat,
        bias: Tensor | None,
        dtype: torch.dtype,
        context: KernelContext,
    ) -> None:
        self._codes, self._scales, self._bias = codes, scales, bias
        self._dtype, self._context = dtype, context
        self.input_format: ActivationFormat = activation

    def __call__(self, x: Tensor | QuantizedRows) -> Tensor:
        from tightpack.torch_backend.kernels.fp8_block_matmul import fp8_block_matmul
        from tightpack.torch_backend.kernels.quantize_rows import quantize_rows

        if isinstance(x, Tensor):
            x = quantize_rows(x, self.input_format, self._context)
        y = torch.empty((len(x.codes), len(self._codes)), dtype=self._dtype, device=x.codes.device)
        return fp8_block_matmul(x, self._codes, self._scales, self._bias, y, self._context)


def build_kernel_linear(
    parts: Sequence[QuantizedLinear],
    orders: Sequence[RowOrder],
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    context: KernelContext,
) -> LinearLayer | None:
    """A layer over the kernels for linears of one input and one activation format, their outputs one after
    the other; None where no kernel computes them as they are: dense weights, groups of other sizes than 32,
    64 and multiples of 128, weights and inputs of different types.

    bias: of all parts, permuted already, on the device. dtype: bfloat16 or float16.
    """
    if dtype not in _DTYPES:
        return None
    activation = parts[0].activation
    integers = [part.weight for part in parts if isinstance(part.weight, IntWeight)]
    floats = [part.weight for part in parts if isinstance(part.weight, Fp8Weight)]
    if len(integers) == len(parts):
        if activation is None:
            if len({int4_key(w) for w in integers}) == 1 and all(map(int4_fits, integers)):
                return Int4Linear(pack_int4(integers, orders, device), bias, context)
            return _weight_only(integers, orders, bias, device, context)
        if activation.precision == "int8" and all(scaled_by_row(w, "int8") for w in integers):
            return _eight_bit(integers, orders, activation, bias, dtype, device, context)
    if len(floats) == len(parts):
        if activation is None:
            return _weight_only(floats, orders, bias, device, context)
        if activation.precision == "fp8" and all(scaled_by_row(w, "fp8") for w in floats):
            return _eight_bit(floats, orders, activation, bias, dtype, device, context)
        if _in_blocks(floats, activation):
            return _fp8_block(floats, orders, activation, bias, dtype, device, context)
    return None


def _weight_only(
    weights: Sequence[IntWeight] | Sequence[Fp8Weight],
    orders: Sequence[RowOrder],
    bias: Tensor | None,
    device: torch.device,
    context: KernelContext,
) -> LinearLayer | None:
    groups = {w.block[1] if isinstance(w, Fp8Weight) else w.group_size for w in weights}
    if len(groups) > 1 or not all(map(eight_bits_fit, weights)):
        return None
    return WeightOnlyLinear(pack_8(weights, orders, device), bias, context)


def _eight_bit(
    weights: Sequence[IntWeight] | Sequence[Fp8Weight],
    orders: Sequence[RowOrder],
    activation: ActivationFormat,
    bias: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    context: KernelContext,
) -> LinearLayer | None:
    from tightpack.torch_backend.kernels.round_row import rounds

    grouped = activation.per == "group" and activation.scale is None
    outliers_in_floats = activation.precision == "fp8" and activation.outlier_threshold is not None
    if grouped or outliers_in_floats or not rounds(weights[0].shape[1], activation):
        return None
    return EightBitLinear(pack_8(weights, orders, device), activation, bias, dtype, context)


def _fp8_block(
    weights: Sequence[Fp8Weight],
    orders: Sequence[RowOrder],
    activation: ActivationFormat,
    bias: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    context: KernelContext,
) -> LinearLayer | None:
    """Blocks of outputs hold only where the parts before fill theirs and no rows are permuted within one."""
    rows = [torch.arange(w.shape[0]) for w in weights]
    kept = all(torch.equal(order(r), r) for order, r in zip(orders, rows, strict=True))
    if not kept or any(w.shape[0] % _BLOCK for w in weights[:-1]):
        return None
    codes = torch.cat([as_tensor(w.codes).view(torch.int8).to(device) for w in weights])
    scales = torch.cat([as_tensor(w.scales).float().to(device) for w in weights])
    return Fp8BlockLinear(codes.view(torch.float8_e4m3fn), scales, activation, bias, dtype, context)


def _in_blocks(weights: Sequence[Fp8Weight], activation: ActivationFormat) -> bool:
    plain = ActivationFormat(precision="fp8", per="group", group_size=INPUTS_A_TILE)
    inputs = weights[0].shape[1]
    return activation == plain and inputs % _BLOCK == 0 and all(w.block == (_BLOCK, _BLOCK) for w in weights)
