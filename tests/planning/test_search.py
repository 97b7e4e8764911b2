from __future__ import annotations

from itertools import product

import pytest

from tightpack.planning.bounds import fewest_replicas, reason_against
from tightpack.planning.candidate import capacity, simulate
from tightpack.planning.search import search

BUDGET = 200_000


def test_the_cheapest_is_what_trying_everything_finds(llama8b, new_load, new_deployments):
    load = new_load(rate=60.0, input_len=512)
    deployments = new_deployments(llama8b, ("l40s", "h100-sxm"), ("bf16", "fp8"), sizes=(1, 2))
    policies = ("chunked-prefill", "continuous")
    found = search(deployments, load, policies, most_tokens=BUDGET)
    cheapest = float("inf")
    for deployment, policy in product(deployments, policies):
        for replicas in range(1, 9):
            if deployment.usd_per_hour * replicas >= cheapest:
                break
            if simulate(deployment, policy, replicas, load)[0].meets_slo:
                cheapest = deployment.usd_per_hour * replicas
    best = found.best
    assert best.usd_per_hour == pytest.approx(cheapest)
    assert best.meets_slo
    assert best.attainment >= 0.99
    assert best.goodput_rps == pytest.approx(60.0, rel=0.01)
    assert [one.usd_per_hour for one in found.settled] == sorted(one.usd_per_hour for one in found.settled)


def test_one_replica_less_does_not_do(llama8b, new_load, new_deployments):
    load = new_load(rate=150.0, input_len=512)
    [deployment] = new_deployments(llama8b, ("l40s",), ("bf16",), sizes=(1,))
    best = search([deployment], load, ("chunked-prefill",), most_tokens=BUDGET).best
    assert best.replicas > fewest_replicas(deployment, load) >= 2
    assert not simulate(deployment, "chunked-prefill", best.replicas - 1, load)[0].meets_slo
    assert best.usd_per_hour == pytest.approx(best.replicas * deployment.usd_per_hour)
    tokens_an_hour = best.goodput_rps * 16 * 3600
    assert best.usd_per_million == pytest.approx(best.usd_per_hour / tokens_an_hour * 1e6)


def test_capacity_lies_at_or_above_the_load_and_is_not_met_far_above(llama8b, new_load, new_deployments):
    load = new_load(rate=10.0, input_len=512)
    [deployment] = new_deployments(llama8b, ("l40s",), ("bf16",), sizes=(1,))
    best = search([deployment], load, ("chunked-prefill",), most_tokens=BUDGET).best
    most = capacity(best, load)
    assert most >= 10.0
    beyond = new_load(rate=1.3 * most, input_len=512)
    assert not simulate(deployment, "chunked-prefill", 1, beyond)[0].meets_slo


def test_no_replicas_help_where_a_request_alone_misses(llama70b, new_load, new_deployments):
    load = new_load()
    reasons = {
        one.tensor_parallel_size: reason_against(one, load, None)
        for one in new_deployments(llama70b, ("a100-80gb",), ("bf16",))
    }
    assert reasons[1].binds == reasons[2].binds == "memory"
    assert reasons[8] is None
    quick = new_load(tpot=0.005)
    tpot = [reason_against(one, quick, None) for one in new_deployments(llama70b, ("a100-80gb",), ("int4",))]
    assert {pruned.binds for pruned in tpot} == {"TPOT"}
    long = new_load(ttft=0.05, input_len=1500)
    [ttft] = [
        reason_against(one, long, None)
        for one in new_deployments(llama70b, ("a100-80gb",), ("bf16",), sizes=(8,))
    ]
    assert ttft.binds == "TTFT"
    assert "a prompt of 1,500 tokens alone takes" in ttft.reason


def test_nothing_is_found_where_nothing_can_be(llama70b, new_load, new_deployments):
    found = search(new_deployments(llama70b, ("t4",), sizes=(1, 2)), new_load())
    assert found.best is None
    assert not found.settled
    assert {pruned.binds for pruned in found.pruned} <= {"memory", "TPOT", "TTFT"}


def test_max_kl_leaves_out_what_diverges_more(llama8b, new_load, new_deployments):
    found = search(new_deployments(llama8b, sizes=(1,)), new_load(), max_kl=0.01, most_tokens=BUDGET)
    assert {one.deployment.weights.name for one in found.settled} == {"bf16", "w8a8", "int8"}
    assert {pruned.deployment.weights.name for pruned in found.pruned} == {"fp8", "int4"}
    assert all(pruned.binds == "KL" for pruned in found.pruned)


def test_the_front_holds_who_is_beaten_by_none(llama8b, new_load, new_deployments):
    found = search(new_deployments(llama8b, ("h100-sxm", "l4"), sizes=(1,)), new_load(), most_tokens=BUDGET)

    def values(one):
        return one.usd_per_hour, one.deployment.kl, one.ttft_p99_s, one.tpot_p99_s

    for one in found.settled:
        beaten = any(
            values(other) != values(one)
            and all(a <= b for a, b in zip(values(other), values(one), strict=True))
            for other in found.settled
        )
        assert one.on_front == (not beaten)
    assert found.best.on_front


def test_capacity_is_of_all_replicas_and_no_less_than_was_promised(llama8b, new_load, new_deployments):
    load = new_load(rate=150.0, input_len=512)
    [deployment] = new_deployments(llama8b, ("l40s",), ("bf16",), sizes=(1,))
    found = search([deployment], load, ("chunked-prefill",), most_tokens=BUDGET)
    assert found.best.replicas > 1
    assert found.capacity_rps >= 150.0
    # With one replica less it was not kept, so that a replica's part is not far above what it carries.
    assert found.capacity_rps < 150.0 * found.best.replicas / (found.best.replicas - 1) * 1.1


def test_max_replicas_is_kept(llama8b, new_load, new_deployments):
    load = new_load(rate=400.0, input_len=1024)
    [deployment] = new_deployments(llama8b, ("l4",), ("bf16",), sizes=(1,))
    assert search([deployment], load, ("continuous",), max_replicas=2, most_tokens=BUDGET).best is None


def test_parts_of_the_load_are_all_of_it_dealt_out(new_load):
    load = new_load(rate=30.0)
    part = load.part(3)
    assert part.rate == pytest.approx(10.0)
    times = [one.shape.arrival_s for one in part.requests]
    assert len(times) / (times[-1] - times[0]) == pytest.approx(10.0, rel=0.15)
    assert times == sorted(times)
    assert {one.shape.service_class.ttft_s for one in part.requests} == {0.5}
