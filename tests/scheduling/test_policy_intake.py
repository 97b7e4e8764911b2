"""What every policy does alike at its door: refusing, bounding the queue, letting go of the dropped."""

from __future__ import annotations

import pytest

from tightpack.scheduling.policy import QueueFullError
from tightpack.scheduling.registry import POLICY_NAMES, make_policy


@pytest.fixture(params=POLICY_NAMES)
def make(request, new_limits):
    return lambda **changes: make_policy(request.param, new_limits(**changes))


def test_a_request_that_could_never_run_is_refused_with_the_numbers(make, new_request):
    policy = make(max_model_len=32)
    policy.add(new_request(20, 12))
    with pytest.raises(
        ValueError, match=r"21 prompt tokens and up to 12 output .* 33, more than max_model_len=32"
    ):
        policy.add(new_request(21, 12))
    assert policy.num_waiting == 1


def test_the_queue_is_bounded(make, new_request):
    policy = make(max_queue=2)
    policy.add(new_request(4))
    policy.add(new_request(4))
    with pytest.raises(QueueFullError, match="max_queue=2"):
        policy.add(new_request(4))
    policy.plan(100.0)  # both run now
    policy.add(new_request(4))
    assert (policy.num_running, policy.num_waiting) == (2, 1)


def test_the_same_request_is_not_added_twice(make, new_request):
    policy = make()
    request = new_request(4, name="twin")
    policy.add(request)
    with pytest.raises(ValueError, match="twin was added before"):
        policy.add(request)


def test_removing_frees_blocks_and_place_at_once(make, new_request, run_step):
    policy = make()
    running = new_request(9)
    policy.add(running)
    run_step(policy, 100.0)
    waiting = new_request(9, arrival=100.0)
    policy.add(waiting)
    policy.remove(waiting)
    policy.remove(running)
    assert (policy.num_running, policy.num_waiting, policy.kv_usage) == (0, 0, 0.0)
    policy.remove(running)
    policy.remove(new_request(3))
    assert not policy.plan(200.0)


def test_a_request_removed_before_the_commit_is_passed_over(make, new_request):
    policy = make()
    request = new_request(9)
    policy.add(request)
    plan = policy.plan(100.0)
    policy.remove(request)
    policy.commit(plan)
    assert request.num_computed_tokens == 0
    again = new_request(list(request.prompt_token_ids))
    policy.add(again)
    assert policy.plan(200.0).chunks[0].first_token == 0, "what was not committed is not shared"
