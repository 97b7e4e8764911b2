from __future__ import annotations

import pytest

from tightpack.scheduling.chunked_prefill import ChunkedPrefillPolicy


@pytest.fixture
def policy(new_limits):
    return ChunkedPrefillPolicy(new_limits(max_num_batched_tokens=8))


def test_decodes_come_first_and_prompts_share_what_the_budget_has_left(policy, new_request, run_step):
    policy.add(new_request(5, 4, name="a"))
    policy.add(new_request(12, 4, name="b"))
    policy.add(new_request(3, 4, name="c"))
    assert run_step(policy) == {"a": (0, 5), "b": (0, 3)}
    assert run_step(policy) == {"a": (5, 1), "b": (3, 7)}
    assert run_step(policy) == {"a": (6, 1), "b": (10, 2), "c": (0, 3)}
    assert run_step(policy) == {"a": (7, 1), "b": (12, 1), "c": (3, 1)}


def test_a_long_prompt_delays_no_decode(policy, new_request, run_step):
    policy.add(new_request(2, 9, name="a"))
    run_step(policy)
    policy.add(new_request(30, 2, name="long"))
    steps = [run_step(policy) for _ in range(5)]
    assert all(step["a"][1] == 1 for step in steps)
    assert [step["long"] for step in steps] == [(0, 7), (7, 7), (14, 7), (21, 7), (28, 2)]


def test_a_running_prompt_is_continued_before_a_new_one_starts(policy, new_request, run_step):
    policy.add(new_request(20, 2, name="old"))
    policy.add(new_request(2, 2, name="new"))
    assert run_step(policy) == {"old": (0, 8)}
    assert run_step(policy) == {"old": (8, 8)}
    assert run_step(policy) == {"old": (16, 4), "new": (0, 2)}


def test_a_prompt_gets_all_its_blocks_when_it_starts(policy, new_request):
    policy.add(new_request(20, 2))
    (chunk,) = policy.plan(0.0).chunks
    assert (chunk.num_tokens, len(chunk.block_table)) == (8, 5)
    assert not chunk.samples


def test_the_last_token_of_a_prompt_counts_as_a_decode(policy, new_request, run_step):
    policy.add(new_request(9, 2, name="a"))
    policy.add(new_request(8, 2, name="b"))
    assert run_step(policy) == {"a": (0, 8)}
    assert run_step(policy) == {"a": (8, 1), "b": (0, 7)}
    assert run_step(policy) == {"a": (9, 1), "b": (7, 1)}


def test_a_prompt_longer_than_the_budget_is_no_reason_to_refuse_the_limits(new_limits):
    assert ChunkedPrefillPolicy(new_limits(max_num_batched_tokens=4, max_num_seqs=4))
