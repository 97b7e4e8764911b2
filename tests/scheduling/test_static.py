from __future__ import annotations

import pytest

from tightpack.scheduling.static import StaticPolicy


@pytest.fixture
def policy(new_limits):
    return StaticPolicy(new_limits(max_num_seqs=2, max_wait=1.0))


def test_a_full_batch_runs_to_its_end_and_nobody_joins(policy, new_request, run_step):
    policy.add(new_request(5, 1, name="a"))
    assert run_step(policy) == {}
    policy.add(new_request(6, 3, name="b"))
    policy.add(new_request(7, 1, name="c"))
    policy.add(new_request(8, 1, name="d"))
    assert run_step(policy) == {"a": (0, 5), "b": (0, 6)}
    assert run_step(policy) == {"b": (6, 1)}  # a's place stays empty
    assert run_step(policy) == {"b": (7, 1)}
    assert run_step(policy) == {"c": (0, 7), "d": (0, 8)}


def test_nothing_is_shown_before_the_whole_batch_is_done(policy, new_request, run_step):
    a, b, c = new_request(5, 1), new_request(5, 3), new_request(5, 1)
    for request in (a, b, c):
        policy.add(request)
    run_step(policy)
    run_step(policy)
    assert [policy.may_publish(r) for r in (a, b, c)] == [False, False, True]  # c is no member
    run_step(policy)
    assert [policy.may_publish(r) for r in (a, b)] == [True, True]


def test_an_aborted_member_counts_as_done(policy, new_request, run_step):
    a, b = new_request(5, 1), new_request(5, 9)
    policy.add(a)
    policy.add(b)
    run_step(policy)
    assert not policy.may_publish(a)
    policy.remove(b)
    assert policy.may_publish(a)
    assert policy.kv_usage == 0


def test_a_partial_batch_leaves_when_nothing_arrived_for_a_while(policy, new_request, run_step, new_limits):
    policy = StaticPolicy(new_limits(max_num_seqs=3, max_wait=1.0))
    policy.add(new_request(5, name="a", arrival=10.0))
    assert policy.next_wakeup(10.0) == 11.0
    policy.add(new_request(5, name="b", arrival=10.75))
    assert policy.next_wakeup(10.75) == 11.75  # every arrival begins the wait anew
    assert run_step(policy, 11.5) == {}
    assert run_step(policy, 11.75) == {"a": (0, 5), "b": (0, 5)}


def test_a_partial_batch_leaves_at_once_when_no_more_is_expected(policy, new_request, run_step):
    policy.add(new_request(5, name="a", arrival=0.0))
    policy.close_intake()
    assert policy.next_wakeup(0.25) == 0.25
    assert run_step(policy, 0.25) == {"a": (0, 5)}


def test_an_arrival_reopens_the_intake(policy, new_request, run_step):
    policy.close_intake()
    policy.add(new_request(5, arrival=0.0))
    assert run_step(policy, 0.5) == {}


def test_a_batch_beyond_the_token_budget_enters_over_several_steps(new_limits, new_request, run_step):
    policy = StaticPolicy(new_limits(max_num_seqs=3, max_num_batched_tokens=64))
    for name in "abc":
        policy.add(new_request(30, 3, name=name))
    assert run_step(policy) == {"a": (0, 30), "b": (0, 30)}
    assert run_step(policy) == {"a": (30, 1), "b": (30, 1), "c": (0, 30)}


def test_a_queue_shorter_than_a_batch_makes_the_batch_full(new_limits, new_request, run_step):
    policy = StaticPolicy(new_limits(max_num_seqs=4, max_queue=2))
    policy.add(new_request(5, name="a"))
    policy.add(new_request(5, name="b"))
    assert run_step(policy) == {"a": (0, 5), "b": (0, 5)}


def test_an_idle_policy_has_no_wakeup(policy):
    assert policy.next_wakeup(5.0) is None
    assert not policy.plan(5.0)
