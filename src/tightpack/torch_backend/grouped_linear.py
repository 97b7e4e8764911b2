"""Linears of which each row takes one: the experts of a mixture, over rows sorted by expert."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tightpack.schemes.quantized import DenseWeight, QuantizedLinear
from tightpack.torch_backend.grouped_matmul import ExpertWeights, grouped_matmul
from tightpack.torch_backend.kernel_experts import pack_experts
from tightpack.torch_backend.linear import LinearLayer
from tightpack.torch_backend.quantized_weights import build_linear, dense_rows
from tightpack.torch_backend.row_order import as_it_is
from tightpack.torch_backend.saturation_guard import GuardedLinear
from tightpack.torch_backend.triton_kernels import KernelContext

# What CUDA's grouped product wants rows to be a multiple of, in bytes.
_ALIGNMENT = 16


class GroupedLinear(Protocol):
    """Any way to compute one linear an expert. capturable: no call waits for the GPU, so that it may be
    recorded in a CUDA graph."""

    @property
    def capturable(self) -> bool: ...

    def __call__(self, x: Tensor, offsets: Tensor, /) -> Tensor:
        """x [rows, inputs], the rows of expert e from offsets[e] to offsets[e + 1]; offsets int32
        [experts + 1], on x's device. Returns [rows, outputs] in x's dtype."""


def build_grouped_linear(
    experts: Sequence[Sequence[QuantizedLinear]],
    *,
    dtype: torch.dtype,
    device: torch.device,
    context: KernelContext | None = None,
    names: Sequence[Sequence[str]] = (),
    guarded: dict[str, GuardedLinear] | None = None,
) -> GroupedLinear:
    """experts: for each, the linears that read its input; their outputs lie one after the other.

    context: of the kernels, which take those that they compute as they are stored. names, guarded: as
    `build_linear`'s, for each expert; one launch for all of them is not watched over.
    """
    if context is not None:
        weights = pack_experts(experts, dtype=dtype, device=device)
        if weights is not None:
            return KernelExperts(weights, context)
    dense = all(isinstance(part.weight, DenseWeight) for parts in experts for part in parts)
    width = experts[0][0].weight.shape[1]
    outputs = sum(part.weight.shape[0] for part in experts[0])
    aligned = width * dtype.itemsize % _ALIGNMENT == 0 and outputs * dtype.itemsize % _ALIGNMENT == 0
    if device.type == "cuda" and dense and aligned and dtype == torch.bfloat16:
        return StackedLinear(
            torch.stack([dense_rows(parts, dtype, device) for parts in experts])  # [experts, outputs, inputs]
        )
    return OneByOne(
        [
            build_linear(
                parts,
                [as_it_is] * len(parts),
                None,
                dtype=dtype,
                device=device,
                names=own,
                guarded=guarded,
            )
            for parts, own in zip(experts, names or [()] * len(experts), strict=True)
        ]
    )


class StackedLinear:
    """Weights [experts, outputs, inputs] in one grouped product, which reads the offsets on the device."""

    capturable = True

    def __init__(self, weights: Tensor) -> None:
        self._transposed = weights.transpose(1, 2)

    def __call__(self, x: Tensor, offsets: Tensor) -> Tensor:
        return functional.grouped_mm(x, self._transposed, offs=offsets[1:])


class KernelExperts:
    """One launch of a Triton kernel for all experts."""

    capturable = True

    def __init__(self, weights: ExpertWeights, context: KernelContext) -> None:
        self._weights, self._context = weights, context

    def __call__(self, x: Tensor, offsets: Tensor) -> Tensor:
        return grouped_matmul(x, self._weights, offsets, context=self._context)


class OneByOne:
    """A product for each expert that has rows; on a CPU, and of weights that nothing multiplies in groups."""

    capturable = False

    def __init__(self, experts: Sequence[LinearLayer]) -> None:
        self._experts = tuple(experts)

    def __call__(self, x: Tensor, offsets: Tensor) -> Tensor:
        spans = pairwise(offsets.tolist())
        parts = [
            expert(x[start:end])
            for expert, (start, end) in zip(self._experts, spans, strict=True)
            if end > start
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
