"""The roofline of a mixture of experts."""

from __future__ import annotations

import pytest

from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.roofline import Efficiency, Experts, RooflineCostModel

H100 = load_catalogue()["h100"]
IDEAL = Efficiency(linear=1, attention=1, memory=1, link=1, overhead_s=0)
# As many weights a token as Llama 3 70B's MLP, in eight times as many.
EXPERTS = Experts(count=16, per_token=2, intermediate_size=14336)


def test_all_experts_take_memory_and_a_token_goes_through_its_own(llama70b, make_plan):
    dense = RooflineCostModel(llama70b, H100, efficiency=IDEAL)
    mixture = RooflineCostModel(llama70b, H100, efficiency=IDEAL, experts=EXPERTS)
    mlps = 2 * 80 * 3 * 8192 * 28672
    assert mixture.weight_bytes == pytest.approx(dense.weight_bytes + 7 * mlps)
    # One token reads two experts of half the width: as much as the dense MLP.
    one = make_plan((0, 1))
    assert mixture.step_seconds(one) == pytest.approx(dense.step_seconds(one), rel=1e-3)
    # A long prompt computes as much as the dense model.
    prompt = make_plan((0, 8192))
    linears = dense.seconds_by_operation(prompt)["linears"]
    assert mixture.seconds_by_operation(prompt)["linears"] == pytest.approx(linears, rel=0.01)


def test_decodes_together_read_more_experts_than_one_and_no_more_than_there_are(llama70b, make_plan):
    mixture = RooflineCostModel(llama70b, H100, efficiency=IDEAL, experts=EXPERTS)

    def linears(count: int) -> float:
        return mixture.seconds_by_operation(make_plan(*[(99, 1)] * count))["linears"]

    assert linears(4) > 2.5 * linears(1)
    assert linears(128) < 1.05 * linears(64)
    assert EXPERTS.touched(1) == pytest.approx(2)
    assert EXPERTS.touched(10_000) == pytest.approx(16)


def test_tensor_parallel_divides_the_columns_of_each_expert(llama70b):
    with pytest.raises(ValueError, match="does not divide 100 MLP columns"):
        RooflineCostModel(
            llama70b,
            H100,
            tensor_parallel_size=8,
            experts=Experts(count=4, per_token=1, intermediate_size=100),
        )
    with pytest.raises(ValueError, match="cannot go through 5 of 4"):
        Experts(count=4, per_token=5, intermediate_size=8)
