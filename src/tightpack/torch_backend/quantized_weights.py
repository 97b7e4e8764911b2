"""From quantized linears as numbers to the layers that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight, QuantizedLinear
from tightpack.torch_backend.arrays import as_tensor
from tightpack.torch_backend.kernel_linear import build_kernel_linear
from tightpack.torch_backend.linear import Linear, LinearLayer
from tightpack.torch_backend.rounded_linear import GroupRoundedLinear, RoundedLinear, SideBySide
from tightpack.torch_backend.row_order import RowOrder
from tightpack.torch_backend.saturation_guard import GuardedLinear
from tightpack.torch_backend.triton_kernels import KernelContext


def build_linear(
    parts: Sequence[QuantizedLinear],
    orders: Sequence[RowOrder],
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    context: KernelContext | None = None,
    names: Sequence[str] = (),
    guarded: dict[str, GuardedLinear] | None = None,
) -> LinearLayer:
    """One layer for linears that read the same input, their outputs one after the other.

    orders: what permutes each part's rows. bias: of all parts, permuted already, on the device.
    They are one product unless they round their input differently. Weights are rounded to `dtype` once, here,
    where the input is not rounded; else see `rounded_linear`. context: of the kernels, which take those that
    they compute as they are stored. names: of the parts, under which `guarded` takes a layer with a static
    input scale, to be watched over (see `saturation_guard`).
    """
    activation = parts[0].activation
    if any(part.activation != activation for part in parts):
        sizes = [part.weight.shape[0] for part in parts]
        biases = [None] * len(parts) if bias is None else torch.split_with_sizes(bias, sizes)
        return SideBySide(
            [
                build_linear(
                    [part],
                    [order],
                    own,
                    dtype=dtype,
                    device=device,
                    context=context,
                    names=names[index : index + 1],
                    guarded=guarded,
                )
                for index, (part, order, own) in enumerate(zip(parts, orders, biases, strict=True))
            ]
        )
    layer: LinearLayer | None = None
    if context is not None:
        layer = build_kernel_linear(parts, orders, bias, dtype=dtype, device=device, context=context)
    if layer is None:
        layer = _reference_linear(parts, orders, bias, dtype=dtype, device=device)
    if activation is None or activation.scale is None:
        return layer

    def unrounded() -> LinearLayer:
        plain = [replace(part, activation=None) for part in parts]
        return build_linear(plain, orders, bias, dtype=dtype, device=device, context=context)

    guard = GuardedLinear(layer, activation, parts[0].weight.shape[1], unrounded, device)
    if guarded is not None:
        guarded[_together(names)] = guard
    return guard


def _together(names: Sequence[str]) -> str:
    """model.layers.0.self_attn.q_proj, k_proj, v_proj"""
    return ", ".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])


def _reference_linear(
    parts: Sequence[QuantizedLinear],
    orders: Sequence[RowOrder],
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> LinearLayer:
    activation = parts[0].activation
    if activation is None:
        return Linear(_stacked(map(_dense, parts), orders, dtype, device), bias)
    by_row = [_scaled_by_row(part) for part in parts]
    if activation.per == "group" or any(pair is None for pair in by_row):
        weight = _stacked(map(_dense, parts), orders, dtype, device)
        return GroupRoundedLinear(weight, activation, bias=bias)
    codes = [pair[0] for pair in by_row if pair is not None]
    scales = [pair[1] for pair in by_row if pair is not None]
    common = codes[0].dtype if len({c.dtype for c in codes}) == 1 else torch.float32
    return RoundedLinear(
        _stacked(codes, orders, common, device),
        _stacked(scales, orders, torch.float32, device),
        activation,
        dtype=dtype,
        bias=bias,
    )


def stack_rows(sources: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensors one below the other, cast and copied once into place."""
    rows = sum(len(source) for source in sources)
    out = torch.empty((rows, *sources[0].shape[1:]), dtype=dtype, device=device)
    start = 0
    for source in sources:
        out[start : start + len(source)].copy_(source)
        start += len(source)
    return out


def dense_rows(parts: Sequence[QuantizedLinear], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[outputs, inputs] of linears in floating point, one below the other."""
    arrays = [part.weight.values for part in parts if isinstance(part.weight, DenseWeight)]
    return stack_rows([as_tensor(array) for array in arrays], dtype, device)


def _stacked(
    sources: Sequence[Tensor] | map[Tensor],
    orders: Sequence[RowOrder],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return stack_rows([order(s) for s, order in zip(sources, orders, strict=True)], dtype, device)


def _dense(part: QuantizedLinear) -> Tensor:
    """[outputs, inputs], as stored or dequantized to float32."""
    weight = part.weight
    if isinstance(weight, DenseWeight):
        return as_tensor(weight.values)
    if isinstance(weight, IntWeight) and weight.group_of_input is None:
        outputs, groups = weight.scales.shape
        if groups * weight.group_size == weight.shape[1]:
            # The oracle's arithmetic, step by step, in a fraction of its time, most of that of loading.
            values = as_tensor(weight.codes).float().view(outputs, groups, -1)
            if weight.zeros is not None:
                values -= as_tensor(weight.zeros).float().unsqueeze(-1)
            values *= as_tensor(weight.scales).unsqueeze(-1)
            if weight.minimums is not None:
                values += as_tensor(weight.minimums).unsqueeze(-1)
            return values.view(weight.shape)
    return as_tensor(weight.dequantize())


def _scaled_by_row(part: QuantizedLinear) -> tuple[Tensor, Tensor] | None:
    """Codes [outputs, inputs] and scales float32 [outputs], or None where a scale is not a whole row's.

    Codes with zero points become floating, of at most 9 bits.
    """
    weight = part.weight
    outputs, inputs = weight.shape
    if isinstance(weight, IntWeight) and weight.scales.shape[1] == 1 and weight.minimums is None:
        codes = as_tensor(weight.codes)
        if weight.zeros is not None:
            codes = codes.float() - as_tensor(weight.zeros).float()
        return codes, as_tensor(weight.scales).view(outputs)
    if isinstance(weight, Fp8Weight) and weight.block[1] >= inputs:
        scales = as_tensor(weight.scales).view(-1).repeat_interleave(weight.block[0])[:outputs]
        return as_tensor(weight.codes), scales
    return None
