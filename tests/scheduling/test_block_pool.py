from __future__ import annotations

from tightpack.scheduling.block_pool import BlockPool


def test_taken_blocks_are_distinct_and_come_back():
    pool = BlockPool(3)
    blocks = pool.take(3)
    assert sorted(blocks) == [0, 1, 2]
    assert pool.num_free == 0
    pool.release(blocks[:2])
    assert pool.num_free == 2
    assert set(pool.take(2)) == set(blocks[:2])


def test_a_shared_block_is_free_when_its_last_holder_lets_go():
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.register(block, b"x")
    pool.share(block)
    pool.release([block])
    assert (pool.num_holders(block), pool.num_free) == (1, 1)
    pool.release([block])
    assert (pool.num_holders(block), pool.num_free) == (0, 2)


def test_a_released_block_is_found_until_it_is_reused():
    pool = BlockPool(2)
    a, b = pool.take(2)
    pool.register(a, b"a")
    pool.release([a, b])
    assert pool.find(b"a") == a
    assert pool.take(1) == (b,), "blank blocks are given out before cached ones"
    assert pool.find(b"a") == a
    assert pool.take(1) == (a,)
    assert pool.find(b"a") is None


def test_cached_blocks_are_given_up_in_the_order_of_their_release():
    pool = BlockPool(3)
    blocks = pool.take(3)
    for block, name in zip(blocks, (b"0", b"1", b"2"), strict=True):
        pool.register(block, name)
    pool.release([blocks[1], blocks[0], blocks[2]])
    pool.share(blocks[0])  # used again, so now the most recent
    pool.release([blocks[0]])
    assert [pool.take(1)[0] for _ in range(3)] == [blocks[1], blocks[2], blocks[0]]


def test_of_two_blocks_with_the_same_contents_the_first_is_found_and_the_second_becomes_blank():
    pool = BlockPool(3)
    a, b = pool.take(2)
    pool.register(a, b"same")
    pool.register(b, b"same")
    assert pool.find(b"same") == a
    pool.release([a, b])
    assert set(pool.take(2)) == {b, ({0, 1, 2} - {a, b}).pop()}
    assert pool.find(b"same") == a
