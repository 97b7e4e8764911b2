from __future__ import annotations

import pytest

from tightpack.scheduling.dynamic import DynamicPolicy


@pytest.fixture
def policy(new_limits):
    return DynamicPolicy(new_limits(max_num_seqs=3, max_wait=1.0))


def test_a_full_batch_leaves_at_once(policy, new_request, run_step):
    for name in "abc":
        policy.add(new_request(5, name=name, arrival=10.0))
    assert policy.next_wakeup(10.0) == 10.0
    assert set(run_step(policy, 10.0)) == {"a", "b", "c"}


def test_a_partial_batch_leaves_when_its_oldest_has_waited_long_enough(policy, new_request, run_step):
    policy.add(new_request(5, name="a", arrival=10.0))
    policy.add(new_request(5, name="b", arrival=10.75))
    assert policy.next_wakeup(10.75) == 11.0  # later arrivals do not put it off
    assert run_step(policy, 10.9) == {}
    assert set(run_step(policy, 11.0)) == {"a", "b"}


def test_the_next_batch_collects_while_one_runs(policy, new_request, run_step):
    policy.add(new_request(5, 2, name="a", arrival=0.0))
    run_step(policy, 1.0)
    for name in "bcde":
        policy.add(new_request(5, 1, name=name, arrival=1.1))
    assert set(run_step(policy, 5.0)) == {"a"}  # though they waited for long
    assert set(run_step(policy, 5.1)) == {"b", "c", "d"}
    assert set(run_step(policy, 5.2)) == {"e"}


def test_a_partial_batch_leaves_at_once_when_no_more_is_expected(policy, new_request, run_step):
    policy.add(new_request(5, name="a", arrival=0.0))
    policy.close_intake()
    assert set(run_step(policy, 0.0)) == {"a"}


def test_tokens_are_shown_as_they_come(policy, new_request, run_step):
    a, b = new_request(5, 1), new_request(5, 5)
    policy.add(a)
    policy.add(b)
    run_step(policy, 1.0)
    assert policy.may_publish(a)
    assert policy.may_publish(b)


def test_the_wait_ends_with_the_oldest_that_is_still_there(policy, new_request):
    a, b = new_request(5, arrival=10.0), new_request(5, arrival=10.5)
    policy.add(a)
    policy.add(b)
    policy.remove(a)
    assert policy.next_wakeup(10.6) == 11.5
