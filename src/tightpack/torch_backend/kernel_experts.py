"""Experts' weights as the kernels' grouped product reads them: one tensor for all of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight, QuantizedLinear
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.grouped_matmul import DenseExperts, EightBitExperts, ExpertWeights, Int4Experts
from tightpack.torch_backend.packed_weights import (
    PackedInt4,
    int4_fits,
    int4_key,
    pack_int4,
    scaled_by_row,
    stack_experts,
)
from tightpack.torch_backend.quantized_weights import dense_rows, stack_rows
from tightpack.torch_backend.row_order import as_it_is

_EIGHT_BITS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def pack_experts(
    experts: Sequence[Sequence[QuantizedLinear]], *, dtype: torch.dtype, device: torch.device
) -> ExpertWeights | None:
    """None where no kernel multiplies them as they are.

    experts: for each, the linears that read its input.
    """
    every = [part for parts in experts for part in parts]
    activation = every[0].activation
    if any(part.activation != activation for part in every):
        return None
    if all(isinstance(part.weight, DenseWeight) for part in every):
        stacked = torch.stack([dense_rows(parts, dtype, device) for parts in experts])
        return DenseExperts(stacked)
    if activation is None:
        packed = _int4(experts, device)
        return None if packed is None else Int4Experts(packed)
    grouped = activation.per == "group" and activation.scale is None
    if grouped or activation.outlier_threshold is not None:
        return None
    if not all(scaled_by_row(part.weight, activation.precision) for part in every):
        return None
    codes = [[as_tensor(_codes(part)).view(torch.int8) for part in parts] for parts in experts]
    scales = [[_row_scales(part.weight) for part in parts] for parts in experts]
    return EightBitExperts(
        torch.stack([stack_rows(each, torch.int8, device) for each in codes]).view(
            _EIGHT_BITS[activation.precision]
        ),
        torch.stack([stack_rows(each, torch.float32, device) for each in scales]),
        activation,
    )


def _codes(part: QuantizedLinear) -> NDArray[Any]:
    assert not isinstance(part.weight, DenseWeight)
    return part.weight.codes


def _row_scales(weight: Any) -> Tensor:
    """float32 [outputs]."""
    scales = as_tensor(weight.scales).view(-1)
    if isinstance(weight, Fp8Weight):
        return scales.repeat_interleave(weight.block[0])[: weight.shape[0]]
    return scales


def _int4(experts: Sequence[Sequence[QuantizedLinear]], device: torch.device) -> PackedInt4 | None:
    integers = [[part.weight for part in parts if isinstance(part.weight, IntWeight)] for parts in experts]
    every = [weight for weights in integers for weight in weights]
    if len(every) < sum(map(len, experts)):
        return None
    if len({int4_key(weight) for weight in every}) > 1 or not all(map(int4_fits, every)):
        return None
    packed = [pack_int4(weights, [as_it_is] * len(weights), device) for weights in integers]
    return None if packed[0].order is not None else stack_experts(packed)
