"""Mixtures of experts: routing, products by group, and quantized experts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tightpack.architectures.model_spec import ExpertsSpec
from tightpack.engine_args import ON_LOAD_METHODS
from tightpack.on_load import quantize_on_load
from tightpack.schemes.quantized import DenseWeight, QuantizedLinear
from tightpack.torch_backend.grouped_linear import OneByOne, StackedLinear, build_grouped_linear
from tightpack.torch_backend.mlp import MixtureOfExperts

CPU = torch.device("cpu")
COUNT, WIDTH, INNER = 5, 32, 24


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        router=torch.randn(COUNT, WIDTH, generator=generator),
        gate=torch.randn(COUNT, INNER, WIDTH, generator=generator) / 8,
        up=torch.randn(COUNT, INNER, WIDTH, generator=generator) / 8,
        down=torch.randn(COUNT, WIDTH, INNER, generator=generator) / 8,
        x=torch.randn(9, WIDTH, generator=generator),
    )


def grouped(*roles, dtype=torch.float32):
    experts = [[QuantizedLinear(DenseWeight(role[e].numpy())) for role in roles] for e in range(COUNT)]
    return build_grouped_linear(experts, dtype=dtype, device=CPU)


@pytest.mark.parametrize(("per_token", "normalized"), [(1, True), (2, True), (3, False), (5, False)])
def test_a_mixture_is_the_weighted_sum_of_its_experts(weights, per_token, normalized):
    spec = ExpertsSpec(
        count=COUNT, experts_per_token=per_token, intermediate_size=INNER, normalized=normalized
    )
    mixture = MixtureOfExperts(
        spec,
        lambda x: x @ weights.router.T,
        grouped(weights.gate, weights.up),
        grouped(weights.down),
        "silu",
    )
    found = mixture(weights.x)
    for x, row in zip(weights.x, found, strict=True):
        shares = (weights.router @ x).softmax(0)
        chosen = shares.argsort(descending=True)[:per_token]
        total = shares[chosen].sum() if normalized else 1
        wanted = sum(
            shares[e]
            / total
            * (weights.down[e] @ (functional.silu(weights.gate[e] @ x) * (weights.up[e] @ x)))
            for e in chosen
        )
        torch.testing.assert_close(row, wanted, rtol=1e-5, atol=1e-5)
    for row in range(len(found)):
        torch.testing.assert_close(mixture(weights.x[row : row + 1])[0], found[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counts", [[2, 0, 3, 1, 3], [0, 0, 9, 0, 0], [1, 1, 1, 1, 5]])
def test_products_by_group(weights, counts):
    """The one that CUDA takes and the one for everything else, also where experts have no rows."""
    stacked, one_by_one = (
        StackedLinear(weights.gate),
        OneByOne([lambda x, w=w: x @ w.T for w in weights.gate]),
    )
    offsets = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
    found = stacked(weights.x, offsets)
    torch.testing.assert_close(found, one_by_one(weights.x, offsets))
    start = 0
    for expert, count in enumerate(counts):
        rows = slice(start, start + count)
        torch.testing.assert_close(found[rows], weights.x[rows] @ weights.gate[expert].T)
        start += count
    assert stacked.capturable
    assert not one_by_one.capturable


@pytest.mark.parametrize("method", ON_LOAD_METHODS)
@pytest.mark.parametrize("family", ["mixtral"], indirect=True)
def test_quantized_experts(family, method, make_executor, make_request, sequencer):
    """On loading, as checkpoints hold them; the router stays."""
    quantized = quantize_on_load(family.checkpoint, method, llm_int8_threshold=6.0)
    assert not set(quantized.spec.router_names()) & quantized.quantization.linears.keys()
    executor = make_executor(quantized)
    tokens = family.tokens(30)
    logits = executor.logits([sequencer(executor).chunk(make_request(tokens))])
    reference = family.reference_logits(tokens)
    error = (logits - reference).norm() / reference.norm()
    assert 0 < error < (0.6 if method == "int4" else 0.3)
