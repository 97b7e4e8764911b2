from __future__ import annotations

from itertools import combinations
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightpack.scheduling import triage
from tightpack.scheduling.standing import Standing, Tier
from tightpack.scheduling.triage import left_out

deadline = attrgetter("deadline")


def standings(jobs):
    """jobs: (seconds of work, deadline). The request is not looked at."""
    made = [
        Standing(None, age, deadline, deadline, Tier.CHOSEN, 0.0) for age, (_, deadline) in enumerate(jobs)
    ]
    work = {standing: jobs[standing.age][0] for standing in made}
    return sorted(made, key=lambda s: (s.deadline, s.age)), work


def all_in_time(order, work):
    now = 0
    for standing in order:
        now += work[standing]
        if now > standing.deadline:
            return False
    return True


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), max_size=7))
def test_as_many_deadlines_are_made_as_can_be(jobs):
    order, work = standings(jobs)
    out = left_out(order, work.__getitem__, lambda seconds, places: seconds, deadline, much_longer=1.0)
    kept = [standing for standing in order if standing not in out]
    assert all_in_time(kept, work)
    best = max(
        count
        for count in range(len(jobs) + 1)
        for some in combinations(order, count)
        if all_in_time(some, work)
    )
    assert len(kept) == best


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), max_size=9))
def test_whoever_is_kept_is_in_time_and_a_feasible_set_is_kept_whole(jobs):
    order, work = standings(jobs)
    out = left_out(order, work.__getitem__, lambda seconds, places: seconds, deadline)
    assert all_in_time([standing for standing in order if standing not in out], work)
    assert all_in_time(order, work) == (not out)
    assert triage.all_in_time(order, work.__getitem__, lambda seconds, places: seconds) == (not out)


@pytest.mark.parametrize(("long", "gives_way"), [(9, True), (7, False)])
def test_a_prompt_gives_way_if_it_is_much_longer_than_the_one_that_would_be_late(long, gives_way):
    order, work = standings([(long, 10), (4, 10.5)])
    out = left_out(order, work.__getitem__, lambda seconds, places: seconds, deadline)
    assert [standing.age for standing in out] == [0 if gives_way else 1]


@pytest.mark.parametrize(("begun", "gives_way"), [(True, 0), (False, 1)])
def test_prompts_that_have_not_begun_give_way_to_one_that_has(begun, gives_way):
    order, work = standings([(9, 10), (5, 12)])
    order[1].waiting = not begun
    out = left_out(order, work.__getitem__, lambda seconds, places: seconds, deadline)
    assert [standing.age for standing in out] == [gives_way]


def test_a_prompt_that_has_begun_and_would_be_late_alone_takes_nobody_along():
    order, work = standings([(5, 10), (13, 12)])
    order[1].waiting = False
    out = left_out(order, work.__getitem__, lambda seconds, places: seconds, deadline)
    assert {standing.age for standing in out} == {1}
