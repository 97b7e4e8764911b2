"""The production loop, policies and block manager on the simulated executor."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from tightpack.benchmarking.driver import Drive, drive
from tightpack.benchmarking.scenarios import Scenario, long_prompt, mixed
from tightpack.benchmarking.workload import (
    Workload,
    WorkloadRequest,
    arrive_poisson,
    build_workload,
    mixed_lengths,
    shapes,
)
from tightpack.latency.summary import LatencySummary, duration, summarize, throughput
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.simulated.catalogue import load_catalogue
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.roofline import RooflineCostModel
from tightpack.simulated.virtual_clock import VirtualClock

POLICIES = ("static", "dynamic", "continuous", "chunked-prefill")


def play(cost_model, limits: SchedulerLimits, policy: str, workload: Workload) -> Drive:
    clock = VirtualClock()
    return drive(make_simulated_loop(cost_model, limits, policy, clock), workload)


def figures(driven: Drive) -> tuple[LatencySummary, float]:
    latencies = [outcome.latency for outcome in driven.outcomes]
    summary = summarize(latencies)
    return summary, throughput(summary.num_output_tokens, duration(latencies))


@pytest.fixture
def run(cpu_model, new_limits):
    def play_scenario(scenario: Scenario, policy: str) -> tuple[LatencySummary, float]:
        budget = scenario.limits(policy)["max_num_batched_tokens"]
        limits = new_limits(
            max_num_seqs=scenario.max_num_seqs,
            max_num_batched_tokens=budget or scenario.max_model_len + scenario.max_num_seqs,
            max_wait=1.0 if policy == "static" else 0.05,
        )
        workload = build_workload(
            scenario.name, scenario.requests, range(100, 9000), scenario.max_model_len, 0
        )
        return figures(play(cpu_model, limits, policy, workload))

    return play_scenario


def test_the_policies_keep_the_order_that_real_runs_have(run):
    # At 12 requests a second: with every queue full all the time, static and dynamic are the same.
    calmer = [replace(one, arrival_s=one.arrival_s * 40 / 12) for one in mixed().requests[:36]]
    scenario = replace(mixed(), requests=tuple(calmer))
    seen = {policy: run(scenario, policy) for policy in POLICIES}
    summaries = {policy: summary for policy, (summary, _) in seen.items()}
    tokens_per_s = {policy: rate for policy, (_, rate) in seen.items()}
    assert tokens_per_s["static"] < tokens_per_s["dynamic"] < tokens_per_s["continuous"]
    assert tokens_per_s["chunked-prefill"] > tokens_per_s["dynamic"]
    waits = {policy: summary.ttft_s.p99 for policy, summary in summaries.items()}
    assert waits["static"] > waits["dynamic"] > 2 * max(waits["continuous"], waits["chunked-prefill"])


def test_chunks_smooth_the_gaps_while_long_prompts_arrive(run):
    whole, _ = run(long_prompt(), "continuous")
    chunked, _ = run(long_prompt(), "chunked-prefill")
    assert chunked.itl_s.p99 < whole.itl_s.p99 / 2


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_times_to_the_last_bit(cpu_model, new_limits, policy):
    def times() -> list[list[float]]:
        lengths = mixed_lengths(30, 64, 32, seed=3)
        workload = build_workload(
            "twice", shapes(lengths, arrive_poisson(30, 6.0, seed=3)), range(9000), 2048, 3
        )
        driven = play(cpu_model, new_limits(num_blocks=150), policy, workload)
        return [outcome.token_times for outcome in driven.outcomes]

    first = times()
    assert all(first)
    assert times() == first


def test_every_request_ends_when_the_pool_runs_short(cpu_model, new_limits):
    lengths = [(100, 150)] * 20
    workload = build_workload("short of blocks", shapes(lengths, [0.0] * 20), range(9000), 256, 0)
    limits = new_limits(max_model_len=256, num_blocks=40)
    driven = play(cpu_model, limits, "chunked-prefill", workload)
    assert driven.stats.preemptions > 0
    assert all(outcome.completed for outcome in driven.outcomes)


def test_a_70b_on_eight_gpus_is_simulated_far_faster_than_it_runs(llama70b, make_plan):
    cost_model = RooflineCostModel(llama70b, load_catalogue()["h100"], tensor_parallel_size=8)
    limits = SchedulerLimits(
        max_num_seqs=128,
        max_num_batched_tokens=2048,
        max_model_len=8192,
        block_size=16,
        num_blocks=cost_model.num_blocks(16),
        enable_prefix_caching=False,
    )
    rng = random.Random(0)
    lengths = [(rng.randint(200, 2000), rng.randint(50, 400)) for _ in range(200)]
    prompt = tuple(range(2000))
    requests = tuple(
        WorkloadRequest(shape, prompt[: shape.input_len])
        for shape in shapes(lengths, arrive_poisson(200, 8.0, seed=0))
    )
    started = time.process_time()
    driven = play(cost_model, limits, "chunked-prefill", Workload("70b", requests))
    took = time.process_time() - started
    summary, tokens_per_s = figures(driven)
    assert summary.num_requests == 200
    # A batch of n reads the weights once for all: well above one request's rate, below n times it.
    alone = 1 / cost_model.step_seconds(make_plan((999, 1)))
    assert 5 * alone < tokens_per_s < 128 * alone
    # 10,000 requests of the public conversation trace take 11 s; this is a fiftieth of them.
    assert took < 10
