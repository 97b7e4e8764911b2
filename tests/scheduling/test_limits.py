from __future__ import annotations

import pytest

from tightpack.scheduling.continuous import ContinuousPolicy
from tightpack.scheduling.limits import SchedulerLimits


def test_valid_limits_keep_their_numbers(new_limits):
    limits = new_limits(max_queue=3)
    assert (limits.max_num_seqs, limits.max_queue, limits.enable_prefix_caching) == (4, 3, True)


@pytest.mark.parametrize(
    "name",
    ["max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size", "num_blocks", "max_queue"],
)
def test_counts_below_one_are_refused_by_name(new_limits, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        new_limits(**{name: 0})


@pytest.mark.parametrize("max_wait", [-0.1, float("nan"), float("inf")])
def test_a_wait_that_is_no_duration_is_refused(new_limits, max_wait):
    with pytest.raises(ValueError, match="max_wait must be 0 or more seconds"):
        new_limits(max_wait=max_wait)


def test_the_pool_must_hold_the_longest_request_and_the_error_says_how_many_blocks_do(new_limits):
    assert new_limits(max_model_len=33, num_blocks=9)
    with pytest.raises(ValueError, match=r"num_blocks=8 .* takes num_blocks=9; or lower max_model_len to 32"):
        new_limits(max_model_len=33, num_blocks=8)


def test_every_running_request_must_be_able_to_decode_in_one_step(new_limits):
    with pytest.raises(ValueError, match="max_num_batched_tokens=7 must be at least max_num_seqs=8"):
        new_limits(max_num_seqs=8, max_num_batched_tokens=7)


def test_unknown_arguments_are_refused_with_the_nearest_valid_one():
    with pytest.raises(TypeError, match="no argument 'max_num_seq'; did you mean 'max_num_seqs'"):
        SchedulerLimits(max_num_seq=4)  # type: ignore[call-arg]


def test_whole_prompts_need_a_budget_for_the_longest_one(new_limits):
    ContinuousPolicy(new_limits(max_num_batched_tokens=64, max_model_len=64))
    with pytest.raises(
        ValueError, match=r"'continuous' .*=63 must be at least max_model_len=64; .*chunked-prefill"
    ):
        ContinuousPolicy(new_limits(max_num_batched_tokens=63, max_model_len=64))
