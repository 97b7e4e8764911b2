"""Products of rows with their experts' weights, for mixtures of experts: rows come sorted by expert.

On CUDA one Triton launch serves all experts; elsewhere each expert's rows are one product, the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.input_rounding import round_input
from tightpack.torch_backend.packed_weights import PackedInt4, unpack_int4

if TYPE_CHECKING:
    from tightpack.torch_backend.kernels.context import KernelContext


@dataclass(frozen=True, slots=True)
class DenseExperts:
    """weights: [experts, outputs, inputs], of the activations' type."""

    weights: Tensor


@dataclass(frozen=True, slots=True)
class Int4Experts:
    """packed: as `packed_weights.stack_experts` makes it."""

    packed: PackedInt4


@dataclass(frozen=True, slots=True)
class EightBitExperts:
    """codes: int8 or float8_e4m3fn [experts, outputs, inputs]; scales: float32 [experts, outputs].

    activation: of the same precision, a scale a token or one for all."""

    codes: Tensor
    scales: Tensor
    activation: ActivationFormat


ExpertWeights = DenseExperts | Int4Experts | EightBitExperts


def grouped_matmul(
    x: Tensor, weights: ExpertWeights, expert_offsets: Tensor, *, context: KernelContext | None = None
) -> Tensor:
    """x: [rows, inputs], sorted by expert; expert_offsets: int32 [experts + 1], rows offsets[e] to
    offsets[e + 1] being expert e's. Returns [rows, outputs] of x's type.

    context: of the Triton kernels; None computes in PyTorch, which reads the offsets on the host.
    """
    if context is None:
        return _one_by_one(x, weights, expert_offsets)
    from tightpack.torch_backend.kernels.grouped_matmul import grouped_dense, grouped_int4
    from tightpack.torch_backend.kernels.quantize_rows import quantize_rows

    if isinstance(weights, Int4Experts):
        y = x.new_empty((len(x), weights.packed.outputs))
        return grouped_int4(x, weights.packed, expert_offsets, y, context)
    if isinstance(weights, EightBitExperts):
        y = x.new_empty((len(x), weights.codes.shape[1]))
        rounded = quantize_rows(x, weights.activation, context)
        return grouped_dense(rounded, weights.codes, weights.scales, expert_offsets, y, context)
    y = x.new_empty((len(x), weights.weights.shape[1]))
    return grouped_dense(x, weights.weights, None, expert_offsets, y, context)


def _one_by_one(x: Tensor, weights: ExpertWeights, expert_offsets: Tensor) -> Tensor:
    expert_of, outputs = _reference(x, weights)
    y = x.new_empty((len(x), outputs))
    bounds = expert_offsets.tolist()
    for expert, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            y[start:end] = expert_of(expert, x[start:end])
    return y


def _reference(x: Tensor, weights: ExpertWeights) -> tuple[Callable[[int, Tensor], Tensor], int]:
    """What computes one expert's rows, and the outputs."""
    if isinstance(weights, DenseExperts):
        dense = weights.weights
        return lambda expert, rows: functional.linear(rows, dense[expert]), dense.shape[1]
    if isinstance(weights, Int4Experts):
        packed = weights.packed
        return lambda e, rows: functional.linear(rows, unpack_int4(packed, e).to(x.dtype)), packed.outputs

    def eight_bit(expert: int, rows: Tensor) -> Tensor:
        rounded = round_input(rows, weights.activation)
        product = rounded.codes.float() @ weights.codes[expert].float().t()
        return product.mul_(rounded.scales).mul_(weights.scales[expert]).to(x.dtype)

    return eight_bit, weights.codes.shape[1]
