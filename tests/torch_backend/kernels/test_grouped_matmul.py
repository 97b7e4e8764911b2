"""Rows with their experts' weights, whatever the routing, against one product an expert."""

from __future__ import annotations

import pytest
import torch

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.grouped_matmul import DenseExperts, EightBitExperts, Int4Experts, grouped_matmul
from tightpack.torch_backend.kernels.quantize_rows import quantize_rows
from tightpack.torch_backend.packed_weights import pack_int4, stack_experts

CPU = torch.device("cpu")
# Rows of each expert: none, some, one that has all, more experts than rows.
ROUTINGS = [(3, 0, 17, 1), (0, 0, 0, 40), (1, 0, 0, 0), (0, 1, 0, 0, 1, 0, 0, 0, 0)]


def offsets_of(routing):
    return torch.tensor([0, *routing], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def by_expert(x, weights, routing):
    parts = x.double().split(list(routing))
    return torch.cat([part @ weight.double().t() for part, weight in zip(parts, weights, strict=True)])


def rows_of(routing, inputs):
    return torch.randn(sum(routing), inputs, generator=torch.Generator().manual_seed(2)).bfloat16()


def assert_close(ours, exact):
    largest = exact.abs().amax(1, keepdim=True)
    assert ((ours.double() - exact).abs() / largest).max() < 1e-2


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("outputs", "inputs"), [(130, 128), (64, 200)])
def test_dense(context, routing, outputs, inputs):
    x = rows_of(routing, inputs)
    weights = torch.randn(
        len(routing), outputs, inputs, generator=torch.Generator().manual_seed(0)
    ).bfloat16()
    for kernels in (context, None):
        ours = grouped_matmul(x, DenseExperts(weights), offsets_of(routing), context=kernels)
        assert_close(ours, by_expert(x, weights, routing))


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_eight_bits(context, routing, precision):
    x = rows_of(routing, 160)
    rounded = quantize_rows(x, ActivationFormat(precision=precision), context)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(len(routing), 70, 160, generator=generator) * 50
    codes = codes.to(torch.float8_e4m3fn) if precision == "fp8" else codes.clamp(-127, 127).to(torch.int8)
    scales = torch.rand(len(routing), 70, generator=generator) + 0.5
    exact = by_expert(rounded.codes.float() * rounded.scales, codes.float() * scales.unsqueeze(-1), routing)
    experts = EightBitExperts(codes, scales, ActivationFormat(precision=precision))
    for kernels in (context, None):
        assert_close(grouped_matmul(x, experts, offsets_of(routing), context=kernels), exact)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("kind", ["symmetric", "zeros"])
def test_int4(random_int_weight, context, routing, kind):
    each = [random_int_weight(100, 160, 32, kind=kind, seed=i) for i in range(len(routing))]
    packed = stack_experts([pack_int4([weight], [lambda rows: rows], CPU) for weight in each])
    x = rows_of(routing, 160)
    exact = by_expert(x, [torch.from_numpy(weight.dequantize()) for weight in each], routing)
    assert_close(grouped_matmul(x, Int4Experts(packed), offsets_of(routing), context=context), exact)


def test_no_rows(context):
    weights = torch.zeros(2, 64, 32, dtype=torch.bfloat16)
    x = torch.zeros(0, 32, dtype=torch.bfloat16)
    for kernels in (context, None):
        assert grouped_matmul(x, DenseExperts(weights), offsets_of((0, 0)), context=kernels).shape == (0, 64)
