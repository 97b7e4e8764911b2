from __future__ import annotations

import itertools
import statistics

import pytest

from tightpack.benchmarking.workload import (
    RequestShape,
    arrive_at_once,
    arrive_poisson,
    build_workload,
    fixed_lengths,
    mixed_lengths,
    shapes,
)

VOCABULARY = list(range(100, 1100))


def test_fixed_lengths_at_once() -> None:
    workload = build_workload("w", shapes(fixed_lengths(3, 5, 7), arrive_at_once(3)), VOCABULARY, 64, seed=0)
    assert [one.shape for one in workload.requests] == [RequestShape(0.0, 5, 7)] * 3
    assert all(len(one.prompt_token_ids) == 5 for one in workload.requests)
    assert (workload.num_input_tokens, workload.num_output_tokens, workload.num_clipped) == (15, 21, 0)


def test_prompts_are_of_the_vocabulary_and_differ() -> None:
    workload = build_workload(
        "w", shapes(fixed_lengths(20, 30, 1), arrive_at_once(20)), VOCABULARY, 64, seed=0
    )
    prompts = [one.prompt_token_ids for one in workload.requests]
    assert len(set(prompts)) == 20
    assert all(100 <= token < 1100 for prompt in prompts for token in prompt)


def test_a_seed_means_the_same_workload() -> None:
    def build(seed: int) -> object:
        drawn = shapes(mixed_lengths(10, 40, 20, seed), arrive_poisson(10, 3.0, seed))
        return build_workload("w", drawn, VOCABULARY, 512, seed)

    assert build(1) == build(1)
    assert build(1) != build(2)


def test_a_seed_means_the_same_numbers_everywhere() -> None:
    """The first draws, written down: results are compared across machines and versions."""
    assert mixed_lengths(4, 128, 64, seed=0) == [(31, 44), (148, 113), (254, 21), (173, 64)]
    assert arrive_poisson(3, 2.0, seed=0) == pytest.approx([0.0, 0.9200573775986443, 1.3904800376765514])


def test_mixed_lengths_have_the_asked_mean_and_a_long_tail() -> None:
    drawn = mixed_lengths(20_000, 200, 100, seed=3)
    for lengths, mean in ((sorted(i for i, _ in drawn), 200), (sorted(o for _, o in drawn), 100)):
        assert statistics.fmean(lengths) == pytest.approx(mean, rel=0.05)
        assert lengths[len(lengths) // 2] < 0.8 * mean
        assert lengths[-200] > 3 * mean
        assert lengths[0] >= 1
        assert lengths[-1] <= 8 * mean


def test_poisson_arrivals_come_at_the_rate() -> None:
    times = arrive_poisson(5000, 10.0, seed=0)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert min(gaps) >= 0
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.1)  # exponential: deviation equals mean


def test_lengths_stay_when_arrivals_change() -> None:
    one = build_workload(
        "w", shapes(mixed_lengths(8, 20, 10, 0), arrive_poisson(8, 1.0, 0)), VOCABULARY, 512, 0
    )
    two = build_workload("w", shapes(mixed_lengths(8, 20, 10, 0), arrive_at_once(8)), VOCABULARY, 512, 0)
    assert [r.prompt_token_ids for r in one.requests] == [r.prompt_token_ids for r in two.requests]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((60, 40), (60, 40)),  # fits exactly
        ((60, 80), (60, 40)),  # output gives way
        ((90, 80), (75, 25)),  # down to a quarter, then the prompt
        ((900, 10), (90, 10)),  # a short output stays whole
        ((10, 500), (10, 90)),
    ],
)
def test_long_requests_are_clipped_to_the_context_and_counted(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    workload = build_workload("w", [RequestShape(0.0, *before)], VOCABULARY, 100, seed=0)
    [request] = workload.requests
    assert (request.shape.input_len, request.shape.output_len) == after
    assert len(request.prompt_token_ids) == after[0]
    assert workload.num_clipped == (before != after)


def test_requests_are_sorted_by_arrival() -> None:
    workload = build_workload("w", [RequestShape(2.0, 1, 1), RequestShape(0.5, 2, 2)], VOCABULARY, 9, seed=0)
    assert [one.shape.arrival_s for one in workload.requests] == [0.5, 2.0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: fixed_lengths(0, 1, 1), "at least 1 request, got 0"),
        (lambda: mixed_lengths(-2, 1, 1, 0), "at least 1 request, got -2"),
        (lambda: arrive_poisson(3, 0.0, 0), "rate must be above 0"),
        (lambda: arrive_poisson(3, float("inf"), 0), "rate must be above 0"),
        (lambda: RequestShape(-1.0, 1, 1), "0 or more seconds after the start"),
        (lambda: RequestShape(0.0, 0, 1), "input length must be at least 1"),
        (lambda: RequestShape(0.0, 1, 0), "output length must be at least 1"),
        (lambda: build_workload("w", [RequestShape(0.0, 1, 1)], [], 9, 0), "needs a vocabulary"),
        (lambda: build_workload("w", [RequestShape(0.0, 1, 1)], VOCABULARY, 1, 0), "no room for a prompt"),
    ],
)
def test_refusals(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]
