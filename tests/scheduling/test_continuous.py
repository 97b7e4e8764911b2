from __future__ import annotations

import pytest

from tightpack.scheduling.continuous import ContinuousPolicy


def test_prompts_join_whole_beside_the_decodes(new_limits, new_request, run_step):
    policy = ContinuousPolicy(new_limits(max_num_seqs=2))
    for name, prompt, output in (("a", 10, 2), ("b", 20, 4), ("c", 5, 3)):
        policy.add(new_request(prompt, output, name=name))
    assert run_step(policy) == {"a": (0, 10), "b": (0, 20)}  # two sequences are the limit
    assert run_step(policy) == {"a": (10, 1), "b": (20, 1)}  # a has its two tokens
    assert run_step(policy) == {"b": (21, 1), "c": (0, 5)}  # c takes its place at the very next step
    assert run_step(policy) == {"b": (22, 1), "c": (5, 1)}
    assert run_step(policy) == {"c": (6, 1)}
    assert run_step(policy) == {}
    assert (policy.num_running, policy.num_waiting, policy.kv_usage) == (0, 0, 0.0)


def test_a_prompt_beyond_the_budget_waits_and_none_overtakes_it(new_limits, new_request, run_step):
    policy = ContinuousPolicy(new_limits(max_num_batched_tokens=64))
    for name, prompt in (("a", 40), ("b", 30), ("c", 2)):
        policy.add(new_request(prompt, 3, name=name))
    assert run_step(policy) == {"a": (0, 40)}
    assert run_step(policy) == {"a": (40, 1), "b": (0, 30), "c": (0, 2)}


def test_an_admission_leaves_a_block_for_each_running_request(new_limits, new_request, run_step):
    policy = ContinuousPolicy(new_limits(num_blocks=16, max_model_len=64))
    for name, prompt in (("a", 20), ("b", 20), ("c", 21), ("d", 4)):  # 5, 5, 6 and 1 blocks
        policy.add(new_request(prompt, 3, name=name))
    assert run_step(policy) == {"a": (0, 20), "b": (0, 20)}  # c would leave none
    assert policy.kv_usage == 10 / 16
    run_step(policy)
    run_step(policy)  # a and b end
    assert run_step(policy) == {"c": (0, 21), "d": (0, 4)}


def test_a_lone_request_may_fill_the_whole_pool(new_limits, new_request, run_step):
    policy = ContinuousPolicy(new_limits(num_blocks=16, max_model_len=64))
    policy.add(new_request(62, 2, name="a"))
    assert run_step(policy) == {"a": (0, 62)}
    assert run_step(policy) == {"a": (62, 1)}
    assert policy.kv_usage == 0


def test_a_cached_prefix_is_not_computed_again(new_limits, new_request, run_step):
    policy = ContinuousPolicy(new_limits())
    policy.add(new_request(list(range(10)), 5, name="a"))
    run_step(policy)
    policy.add(new_request([*range(10), 50, 51], 5, name="b"))
    assert run_step(policy) == {"a": (10, 1), "b": (8, 4)}
    assert (policy.prefix_cache_queries, policy.prefix_cache_hits) == (22, 8)


def test_a_step_that_was_not_executed_is_planned_again(new_limits, new_request, run_step):
    policy = ContinuousPolicy(new_limits())
    policy.add(new_request(10, 3, name="a"))
    lost = policy.plan(0.0)
    again = policy.plan(0.0)
    assert lost == again
    assert run_step(policy) == {"a": (0, 10)}


@pytest.mark.parametrize("closed", [False, True])
def test_it_waits_for_nothing(new_limits, new_request, closed):
    policy = ContinuousPolicy(new_limits(max_wait=9.0))
    if closed:
        policy.close_intake()
    assert policy.next_wakeup(3.0) is None
    request = new_request(4)
    policy.add(request)
    assert policy.next_wakeup(3.0) == 3.0
    assert policy.plan(3.0)
    assert policy.may_publish(request)
