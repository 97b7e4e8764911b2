from __future__ import annotations

import pytest

from tightpack.scheduling.kv_blocks import KVBlocks, block_digest


@pytest.fixture
def blocks():
    return KVBlocks(num_blocks=8, block_size=4)


def start(blocks, request, **options):
    """Start a request with what the cache has, as a policy does; whether there was room."""
    hit = blocks.lookup(request)
    if not blocks.start(request, hit, **options):
        return False
    request.num_computed_tokens = len(hit) * blocks.block_size
    return True


def compute(blocks, request, num_tokens=None):
    request.num_computed_tokens = len(request.token_ids) if num_tokens is None else num_tokens
    blocks.commit(request)


def test_a_request_starts_with_blocks_for_all_its_tokens_or_none(blocks, new_request):
    big, small = new_request(29), new_request(5)
    assert start(blocks, big)
    assert len(blocks.block_table(big)) == 8
    assert (blocks.num_free, blocks.usage) == (0, 1.0)
    assert not start(blocks, small)
    blocks.forget(big)
    assert start(blocks, small)
    assert (len(blocks.block_table(small)), blocks.usage) == (2, 0.25)


def test_start_leaves_the_blocks_it_was_told_to_keep_free(blocks, new_request):
    request = new_request(24)
    assert not start(blocks, request, keep_free=3)
    assert blocks.num_free == 8
    assert start(blocks, request, keep_free=2)


def test_extend_is_all_or_nothing_and_the_table_stays_the_same_object_until_it_grows(blocks, new_request):
    request = new_request(4)
    start(blocks, request)
    before = blocks.block_table(request)
    assert blocks.extend(request, 4)
    assert blocks.block_table(request) is before
    assert not blocks.extend(request, 33)
    assert blocks.block_table(request) is before
    assert blocks.extend(request, 32)
    assert blocks.block_table(request)[:1] == before
    assert len(set(blocks.block_table(request))) == 8


def test_a_computed_prefix_is_shared_and_the_rest_is_not(blocks, new_request):
    first, second = new_request(list(range(10))), new_request([*range(8), 98, 99])
    start(blocks, first)
    compute(blocks, first)
    start(blocks, second)
    assert second.num_computed_tokens == 8
    assert blocks.block_table(second)[:2] == blocks.block_table(first)[:2]
    assert blocks.block_table(second)[2] != blocks.block_table(first)[2]
    assert blocks.num_shared(first) == blocks.num_shared(second) == 2
    assert blocks.usage == 4 / 8
    blocks.forget(first)
    assert (blocks.num_shared(second), blocks.usage) == (0, 3 / 8)


def test_blocks_are_shared_only_once_they_are_computed(blocks, new_request):
    first = new_request(list(range(12)))
    start(blocks, first)
    assert blocks.lookup(new_request(list(range(12)))) == ()
    compute(blocks, first, 7)  # the second block lacks a token
    assert blocks.lookup(new_request(list(range(12)))) == blocks.block_table(first)[:1]


def test_one_token_is_always_left_to_compute(blocks, new_request):
    first = new_request(list(range(8)))
    start(blocks, first)
    compute(blocks, first)
    assert len(blocks.lookup(new_request(list(range(8))))) == 1
    assert len(blocks.lookup(new_request(list(range(9))))) == 2


def test_a_block_is_found_only_behind_the_same_head(blocks, new_request):
    first = new_request([1, 2, 3, 4, 5, 6, 7, 8, 9])
    start(blocks, first)
    compute(blocks, first)
    assert blocks.lookup(new_request([0, 2, 3, 4, 5, 6, 7, 8, 9])) == ()
    assert len(blocks.lookup(new_request([1, 2, 3, 4, 0, 6, 7, 8, 9]))) == 1
    assert block_digest(b"", [5, 6, 7, 8]) != block_digest(block_digest(b"", [1, 2, 3, 4]), [5, 6, 7, 8])


def test_digests_are_sixteen_bytes_and_tell_large_token_ids_apart():
    assert len(block_digest(b"", [1, 2])) == 16
    assert block_digest(b"", [1, 256]) != block_digest(b"", [257, 0])


def test_freed_blocks_serve_later_requests_until_the_tail_and_then_the_head_is_given_up(blocks, new_request):
    prompt = list(range(17))
    first = new_request(prompt)
    start(blocks, first)
    compute(blocks, first)
    table = blocks.block_table(first)
    blocks.forget(first)
    assert blocks.lookup(new_request(prompt)) == table[:4]
    filler = new_request(4 * 5)  # three blank blocks, the half-filled tail, and then one cached block
    start(blocks, filler)
    assert blocks.lookup(new_request(prompt)) == table[:3]
    blocks.extend(filler, 4 * 7)
    assert blocks.lookup(new_request(prompt)) == table[:1]


def test_a_revived_hit_takes_room_and_is_not_given_up_for_the_new_blocks_beside_it(blocks, new_request):
    prompt = list(range(17))
    first = new_request(prompt)
    start(blocks, first)
    compute(blocks, first)
    blocks.forget(first)
    other = new_request(12)
    start(blocks, other)
    again = new_request([*prompt, *range(50, 54)])  # 6 blocks, 4 of them cached; 5 are free
    assert not start(blocks, again)
    short = new_request(prompt)
    assert start(blocks, short)
    assert short.num_computed_tokens == 16
    assert blocks.num_free == 0


def test_a_preempted_request_finds_its_own_outputs_again(blocks, new_request):
    request = new_request([1, 2, 3])
    start(blocks, request)
    request.token_ids += [4, 5, 6, 7, 8, 9]
    blocks.extend(request, 9)
    compute(blocks, request, 8)
    blocks.free(request)
    assert blocks.usage == 0
    start(blocks, request)
    assert request.num_computed_tokens == 8


def test_queried_and_hit_tokens_are_counted_when_a_request_starts(blocks, new_request):
    first = new_request(list(range(10)))
    start(blocks, first)
    compute(blocks, first)
    assert (blocks.num_queried_tokens, blocks.num_hit_tokens) == (10, 0)
    assert not start(blocks, new_request(list(range(10))), keep_free=8)
    assert (blocks.num_queried_tokens, blocks.num_hit_tokens) == (10, 0)
    start(blocks, new_request(list(range(11))))
    assert (blocks.num_queried_tokens, blocks.num_hit_tokens) == (21, 8)


def test_prompt_logprobs_need_every_position_so_nothing_is_looked_up_or_counted(blocks, new_request):
    first = new_request(list(range(10)))
    start(blocks, first)
    compute(blocks, first)
    second = new_request(list(range(10)), prompt_logprobs=0)
    start(blocks, second)
    assert second.num_computed_tokens == 0
    assert blocks.num_queried_tokens == 10


def test_without_prefix_caching_nothing_is_shared(new_request):
    blocks = KVBlocks(num_blocks=8, block_size=4, enable_prefix_caching=False)
    first, second = new_request(list(range(10))), new_request(list(range(10)))
    start(blocks, first)
    compute(blocks, first)
    start(blocks, second)
    assert not set(blocks.block_table(first)) & set(blocks.block_table(second))
    assert blocks.num_queried_tokens == 0


def test_two_that_computed_the_same_prefix_side_by_side_keep_their_own_blocks(blocks, new_request):
    first, second = new_request(list(range(9))), new_request(list(range(9)))
    start(blocks, first)
    start(blocks, second)
    compute(blocks, first)
    compute(blocks, second)
    assert not set(blocks.block_table(first)) & set(blocks.block_table(second))
    assert blocks.lookup(new_request(list(range(9)))) == blocks.block_table(first)[:2]


def test_forgetting_a_stranger_is_harmless(blocks, new_request):
    blocks.forget(new_request(3))
    assert blocks.num_free == 8
