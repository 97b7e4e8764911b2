from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tightpack.simulated.step_work import StepWork


def test_the_counts_of_a_mixed_step(make_plan):
    plan = make_plan((99, 1), (9, 1), (0, 4), (10, 3, False))
    assert StepWork.of(plan.chunks) == StepWork(
        tokens=9,
        samples=3,
        decodes=2,
        prompts=2,
        decode_context=100 + 10,
        prompt_context=10,
        own_pairs=(1 + 2 + 3 + 4) + (1 + 2 + 3),
        cached_pairs=3 * 10,
    )


@given(
    first=st.integers(0, 60),
    count=st.integers(1, 60),
    window=st.none() | st.integers(1, 80),
)
def test_pairs_and_positions_are_those_that_a_mask_would_show(make_plan, first, count, window):
    seen = [
        (query, key)
        for query in range(first, first + count)
        for key in range(query + 1)
        if window is None or key > query - window
    ]
    work = StepWork.of(make_plan((first, count)).chunks, window)
    if count == 1:
        assert work.decode_context == len(seen)
        assert work.own_pairs == work.cached_pairs == work.prompt_context == 0
    else:
        assert work.own_pairs == sum(key >= first for _, key in seen)
        assert work.cached_pairs == sum(key < first for _, key in seen)
        assert work.prompt_context == len({key for _, key in seen if key < first})
