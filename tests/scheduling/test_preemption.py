"""Preemption by recomputation: who loses its blocks when they run out, and how it comes back."""

from __future__ import annotations

import pytest

from tightpack.scheduling.chunked_prefill import ChunkedPrefillPolicy
from tightpack.scheduling.continuous import ContinuousPolicy
from tightpack.scheduling.dynamic import DynamicPolicy


def run_until_eviction(policy, run_step, plans):
    """Step until a plan evicts; that plan's requests by id."""
    original = policy.plan

    def recording(now):
        plans.append(original(now))
        return plans[-1]

    policy.plan = recording
    for _ in range(100):
        step = run_step(policy)
        if plans[-1].evicted:
            return step
    raise AssertionError("nothing was ever evicted")


def drain(policy, run_step):
    """Step until nothing is left; the steps."""
    steps = []
    while policy.num_running or policy.num_waiting:
        steps.append(run_step(policy, 100.0))
        assert len(steps) < 500, "it does not end"
    return steps


@pytest.fixture
def tight(new_limits):
    """Sixteen blocks of four: one request of 64 tokens, or a few short ones that outgrow them."""
    return new_limits(num_blocks=16, max_model_len=64, enable_prefix_caching=False)


def test_least_work_is_lost_and_the_victim_comes_back_before_who_never_ran(tight, new_request, run_step):
    policy = ContinuousPolicy(tight)
    old, long, short = new_request(8, 40, name="old"), new_request(20, 40, name="long"), new_request(12, 40)
    late = new_request(4, 4, name="late")
    for request in (old, long, short):
        policy.add(request)
    plans = []
    step = run_until_eviction(policy, run_step, plans)
    policy.add(late)
    assert plans[-1].evicted == (short,)
    assert set(step) == {"old", "long"}
    assert short.num_preemptions == 1
    assert short.num_computed_tokens == 0
    assert short.num_output_tokens > 0, "what was sampled stays"
    assert (policy.num_running, policy.num_waiting) == (2, 2)
    order = [name for step in drain(policy, run_step) for name in step if name in (short.request_id, "late")]
    assert list(dict.fromkeys(order)) == [short.request_id, "late"]


def test_of_equal_losses_the_youngest_goes(tight, new_request, run_step):
    policy = ContinuousPolicy(tight)
    requests = [new_request(16, 40) for _ in range(3)]
    for request in requests:
        policy.add(request)
    plans = []
    run_until_eviction(policy, run_step, plans)
    assert plans[-1].evicted == (requests[2],)


def test_the_oldest_is_spared_though_it_would_lose_least(tight, new_request, run_step):
    policy = ContinuousPolicy(tight)
    old, young = new_request(4, 50), new_request(40, 20)
    policy.add(old)
    policy.add(young)
    plans = []
    run_until_eviction(policy, run_step, plans)
    assert plans[-1].evicted == (young,)
    drain(policy, run_step)
    assert (old.num_preemptions, old.num_output_tokens, young.num_output_tokens) == (0, 50, 20)


def test_the_one_in_need_may_be_its_own_victim(tight, new_request, run_step):
    policy = ContinuousPolicy(tight)
    old, big, small = new_request(14, 30), new_request(27, 30), new_request(8, 30)
    for request in (old, big, small):
        policy.add(request)
    plans = []
    step = run_until_eviction(policy, run_step, plans)
    assert plans[-1].evicted == (small,)
    assert set(step) == {old.request_id, big.request_id}


def test_a_victims_chunk_leaves_the_plan_and_its_budget_returns(new_limits, new_request, run_step):
    policy = ContinuousPolicy(
        new_limits(num_blocks=8, max_model_len=32, max_num_batched_tokens=32, enable_prefix_caching=False)
    )
    old, cheap, dear = new_request(9, 20), new_request(4, 20), new_request(11, 20)
    for request in (old, cheap, dear):
        policy.add(request)
    plans = []
    run_until_eviction(policy, run_step, plans)
    plan = plans[-1]
    assert cheap in plan.evicted
    assert cheap not in [chunk.request for chunk in plan.chunks]
    assert plan.num_tokens == len(plan.chunks)


def test_what_others_hold_too_is_not_lost(new_limits, new_request, run_step):
    policy = ContinuousPolicy(new_limits(num_blocks=16, max_model_len=64))
    shared = list(range(16))
    old = new_request([*shared, 1], 40, name="old")
    policy.add(old)
    run_step(policy)
    sharer = new_request([*shared, 2, 3, 4], 40, name="sharer")  # 19 tokens, of which 3 would be lost
    alone = new_request(12, 40, name="alone")
    policy.add(sharer)
    policy.add(alone)
    plans = []
    run_until_eviction(policy, run_step, plans)
    assert plans[-1].evicted == (sharer,)


def test_a_preempted_request_takes_up_what_the_cache_still_has(new_limits, new_request, run_step):
    policy = ContinuousPolicy(new_limits(num_blocks=16, max_model_len=64))
    old, young = new_request(30, 16, name="old"), new_request(26, 20, name="young")
    policy.add(old)
    policy.add(young)
    run_until_eviction(policy, run_step, [])
    num_known = len(young.token_ids)
    first, count = next(step["young"] for step in drain(policy, run_step) if "young" in step)
    assert first >= 16, "the blocks that nobody needed meanwhile still hold its head"
    assert first + count == num_known


def test_a_half_computed_prompt_goes_before_a_decode_with_more_behind_it(new_limits, new_request, run_step):
    policy = ChunkedPrefillPolicy(
        new_limits(num_blocks=18, max_model_len=64, max_num_batched_tokens=4, enable_prefix_caching=False)
    )
    old, decode = new_request(15, 40, name="old"), new_request(15, 40, name="decode")
    policy.add(old)
    policy.add(decode)
    for _ in range(9):
        run_step(policy)
    prompt = new_request(20, 10, name="prompt")
    policy.add(prompt)
    plans = []
    run_until_eviction(policy, run_step, plans)
    assert plans[-1].evicted == (prompt,)


def test_a_preempted_member_comes_back_to_its_own_batch(new_limits, new_request, run_step):
    policy = DynamicPolicy(
        new_limits(num_blocks=8, max_model_len=32, max_num_seqs=2, enable_prefix_caching=False)
    )
    a, b, c = new_request(10, 12, name="a"), new_request(10, 12, name="b"), new_request(4, 2, name="c")
    for request in (a, b, c):
        policy.add(request)
    plans = []
    run_until_eviction(policy, run_step, plans)
    assert plans[-1].evicted == (b,)
    seen = [set(step) for step in drain(policy, run_step)]
    first_of_c = seen.index({"c"})
    assert {"b"} in seen[:first_of_c]
    assert all("c" not in step for step in seen[:first_of_c])
    assert all("b" not in step for step in seen[first_of_c:])


def test_preempted_requests_do_not_count_against_the_queue(new_limits, new_request, run_step):
    policy = ContinuousPolicy(
        new_limits(num_blocks=8, max_model_len=32, max_queue=2, enable_prefix_caching=False)
    )
    policy.add(new_request(10, 12))
    policy.add(new_request(10, 12))
    run_until_eviction(policy, run_step, [])
    policy.add(new_request(4))
    policy.add(new_request(4))
    assert policy.num_waiting == 3
