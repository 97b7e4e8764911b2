"""The roofline of a mixture of experts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tightpack.architectures.model_spec import ExpertsSpec, ModelSpec
from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.roofline import Efficiency, RooflineCostModel

H100 = load_catalogue()["h100"]
IDEAL = Efficiency(linear=1, attention=1, memory=1, link=1, overhead_s=0)


@pytest.fixture(scope="module")
def mixture70b(llama70b) -> ModelSpec:
    """As many weights a token as Llama 3 70B's MLP, in eight times as many."""
    return with_experts(llama70b, ExpertsSpec(count=16, experts_per_token=2, intermediate_size=14336))


def with_experts(spec: ModelSpec, experts: ExpertsSpec, first: int = 0) -> ModelSpec:
    layers = (replace(layer, experts=experts) for layer in spec.layers[first:])
    return replace(spec, layers=(*spec.layers[:first], *layers))


def test_all_experts_take_memory_and_a_token_goes_through_its_own(llama70b, mixture70b, make_plan):
    dense = RooflineCostModel(llama70b, H100, efficiency=IDEAL)
    mixture = RooflineCostModel(mixture70b, H100, efficiency=IDEAL)
    mlps = 2 * 80 * 3 * 8192 * 28672
    assert mixture.weight_bytes == pytest.approx(dense.weight_bytes + 7 * mlps)
    # One token reads two experts of half the width: as much as the dense MLP.
    one = make_plan((0, 1))
    assert mixture.step_seconds(one) == pytest.approx(dense.step_seconds(one), rel=1e-3)
    # A long prompt computes as much as the dense model.
    prompt = make_plan((0, 8192))
    linears = dense.seconds_by_operation(prompt)["linears"]
    assert mixture.seconds_by_operation(prompt)["linears"] == pytest.approx(linears, rel=0.01)


def test_decodes_together_read_more_experts_than_one_and_no_more_than_there_are(mixture70b, make_plan):
    mixture = RooflineCostModel(mixture70b, H100, efficiency=IDEAL)

    def linears(count: int) -> float:
        return mixture.seconds_by_operation(make_plan(*[(99, 1)] * count))["linears"]

    # Four tokens of 2 in 16 each meet 16 x (1 - (7/8)^4) = 6.6 experts, instead of 2.
    assert linears(4) > 2.5 * linears(1)
    assert linears(128) < 1.05 * linears(64)


def test_layers_with_and_without_experts_each_count_as_what_they_are(llama70b, make_plan):
    experts = ExpertsSpec(count=8, experts_per_token=1, intermediate_size=28672)
    half = RooflineCostModel(with_experts(llama70b, experts, first=40), H100, efficiency=IDEAL)
    dense = RooflineCostModel(llama70b, H100, efficiency=IDEAL)
    layer = 2 * 3 * 8192 * 28672
    assert half.weight_bytes == pytest.approx(dense.weight_bytes + 40 * 7 * layer)
    one = make_plan((0, 1))
    assert half.step_seconds(one) == pytest.approx(dense.step_seconds(one), rel=1e-6)


def test_tensor_parallel_divides_the_columns_of_each_expert(llama70b):
    odd = with_experts(llama70b, ExpertsSpec(count=4, experts_per_token=1, intermediate_size=100))
    with pytest.raises(ValueError, match="does not divide 100 MLP columns"):
        RooflineCostModel(odd, H100, tensor_parallel_size=8)
