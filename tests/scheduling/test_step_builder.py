from __future__ import annotations

import pytest

from tightpack.scheduling.kv_blocks import KVBlocks
from tightpack.scheduling.queues import RequestQueues
from tightpack.scheduling.step_builder import StepBuilder


@pytest.fixture
def queues():
    return RequestQueues()


@pytest.fixture
def blocks():
    return KVBlocks(num_blocks=8, block_size=4)


@pytest.fixture
def step(new_limits, queues, blocks):
    limits = new_limits(num_blocks=8, max_model_len=32, max_num_batched_tokens=32)
    return lambda: StepBuilder(limits, queues, blocks)


@pytest.fixture
def decoding(new_request, queues, blocks):
    """Put a request with a computed prompt and its first output token on the running list."""

    def make(prompt, name):
        request = new_request(prompt, name=name)
        queues.add(request)
        assert blocks.start(request, ())
        queues.start(request)
        request.num_computed_tokens = prompt
        request.token_ids.append(7)
        return request

    return make


def test_a_victims_chunk_is_taken_back_out_and_its_tokens_return_to_the_budget(
    step, decoding, queues, blocks
):
    old, cheap, dear = decoding(13, "old"), decoding(3, "cheap"), decoding(12, "dear")
    assert blocks.num_free == 0
    builder = step()
    builder.compute(old, 1)
    builder.compute(cheap, 1)
    assert builder.tokens_left == 30
    builder.compute(dear, 1)  # its thirteenth position needs a block
    plan = builder.plan()
    assert plan.evicted == (cheap,)
    assert [chunk.request for chunk in plan.chunks] == [old, dear]
    assert builder.tokens_left == 30
    assert list(queues.waiting) == [cheap]
    assert cheap.num_computed_tokens == 0


def test_who_was_preempted_on_the_way_is_not_visited(step, decoding):
    for prompt, name in ((12, "a"), (8, "b"), (8, "c")):
        decoding(prompt, name)
    builder = step()
    visited = []
    for request in builder.running():  # a takes the last free block, b one of c's
        visited.append(request.request_id)
        builder.compute(request, 1)
    assert visited == ["a", "b"]
    assert [request.request_id for request in builder.plan().evicted] == ["c"]


def test_nobody_is_admitted_in_a_step_that_preempted(step, decoding, new_request, queues):
    for prompt, name in ((12, "a"), (8, "b"), (8, "c")):
        decoding(prompt, name)
    queues.add(new_request(1, name="new"))
    builder = step()
    builder.compute_all_running()
    assert not builder.admit(queues.waiting[-1], whole=True)
