"""Experts' weights as the kernels' grouped product reads them: one tensor for all of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight, QuantizedLinear
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.quantized_weights import stack_rows
from tightpack.torch_backend.triton_kernels import backend_module

_EIGHT_BITS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def pack_experts(
    experts: Sequence[Sequence[QuantizedLinear]], *, dtype: torch.dtype, device: torch.device
) -> Any | None:
    """`grouped_matmul.ExpertWeights`, or None where no kernel multiplies them as they are.

    experts: for each, the linears that read its input.
    """
    every = [part for parts in experts for part in parts]
    activation = every[0].activation
    if any(part.activation != activation for part in every):
        return None
    kinds = backend_module("grouped_matmul")
    if all(isinstance(part.weight, DenseWeight) for part in every):
        stacked = torch.stack([_dense_rows(parts, dtype, device) for parts in experts])
        return kinds.DenseExperts(stacked)
    if activation is None:
        packed = _int4([[part.weight for part in parts] for parts in experts], device)
        return None if packed is None else kinds.Int4Experts(packed)
    grouped = activation.per == "group" and activation.scale is None
    if grouped or activation.outlier_threshold is not None:
        return None
    if not all(_scaled_by_row(part.weight, activation.precision) for part in every):
        return None
    codes = [[as_tensor(_codes(part)).view(torch.int8) for part in parts] for parts in experts]
    scales = [[_row_scales(part.weight) for part in parts] for parts in experts]
    return kinds.EightBitExperts(
        torch.stack([stack_rows(each, torch.int8, device) for each in codes]).view(
            _EIGHT_BITS[activation.precision]
        ),
        torch.stack([stack_rows(each, torch.float32, device) for each in scales]),
        activation,
    )


def _scaled_by_row(weight: Any, precision: str) -> bool:
    """Whether the weight is of the precision, symmetric, with scales that are whole rows'."""
    if isinstance(weight, Fp8Weight):
        return precision == "fp8" and weight.block[1] >= weight.shape[1]
    return (
        isinstance(weight, IntWeight)
        and precision == "int8"
        and weight.bits == 8
        and weight.symmetric
        and weight.scales.shape[1] == 1
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


def _int4(experts: Sequence[Sequence[Any]], device: torch.device) -> Any | None:
    packing = backend_module("packed_weights")
    every = [weight for weights in experts for weight in weights]
    if not all(isinstance(weight, IntWeight) for weight in every):
        return None
    if len({packing.int4_key(weight) for weight in every}) > 1 or not all(map(packing.int4_fits, every)):
        return None
    packed = [packing.pack_int4(weights, [_as_it_is] * len(weights), device) for weights in experts]
    return None if packed[0].order is not None else packing.stack_experts(packed)


def _dense_rows(parts: Sequence[QuantizedLinear], dtype: torch.dtype, device: torch.device) -> Tensor:
    arrays = [part.weight.values for part in parts if isinstance(part.weight, DenseWeight)]
    return stack_rows([as_tensor(array) for array in arrays], dtype, device)


def _as_it_is(rows: Tensor) -> Tensor:
    return rows
