"""Drives on a virtual clock, where every latency can be worked out by hand.

A step takes 1 s and an eighth more for each prompt token beyond a chunk's first.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tightpack.benchmarking.driver import drive
from tightpack.benchmarking.outcomes import Drive, Outcome, Progress
from tightpack.latency.summary import duration
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams


def token_times(result: Drive, start: float = 100.0) -> list[list[float]]:
    return [[time - start for time in one.token_times] for one in result.outcomes]


def test_one_request(make_loop, workload, clock) -> None:
    result = drive(make_loop(), workload((0.0, 9, 3)))
    [outcome] = result.outcomes
    assert token_times(result) == [[2.0, 3.0, 4.0]]  # a prompt of 9 takes 1 + 8/8 s
    assert outcome.latency.ttft_s == 2.0
    assert outcome.latency.tpot_s == 1.0
    assert outcome.completed
    assert (result.stats.steps, result.stats.generation_tokens) == (3, 3)


def test_an_arrival_during_a_step_waits_from_when_it_was_due(make_loop, workload, clock) -> None:
    """No coordinated omission: the second request is due at 0.5 s, in the middle of the first step."""
    result = drive(make_loop(), workload((0.0, 1, 3), (0.5, 1, 2)))
    assert token_times(result) == [[1.0, 2.0, 3.0], [2.0, 3.0]]
    assert result.outcomes[1].latency.ttft_s == 1.5


def test_waiting_in_the_queue_is_in_the_ttft(make_loop, workload, clock) -> None:
    result = drive(make_loop(max_num_seqs=1), workload((0.0, 1, 2), (0.0, 1, 2)))
    assert token_times(result) == [[1.0, 2.0], [3.0, 4.0]]
    assert [one.latency.ttft_s for one in result.outcomes] == [1.0, 3.0]


def test_sleeps_until_the_next_arrival_when_idle(make_loop, workload, clock) -> None:
    result = drive(make_loop(), workload((2.0, 1, 1), (10.0, 1, 1)))
    assert clock.slept == [2.0, 7.0]
    assert token_times(result) == [[3.0], [11.0]]
    assert duration([one.latency for one in result.outcomes]) == 9.0


def test_static_shows_a_batch_when_all_of_it_is_done(make_loop, workload, clock) -> None:
    result = drive(make_loop("static", max_wait=9), workload((0.0, 1, 1), (0.5, 1, 3), (0.75, 1, 1)))
    # The first two leave together at 0.5 s and take 3 steps; the third, the last to come, follows alone.
    assert token_times(result) == [[3.5], [3.5, 3.5, 3.5], [4.5]]
    assert [one.latency.ttft_s for one in result.outcomes] == [3.5, 3.0, 3.75]


def test_the_last_batch_leaves_at_once_as_nobody_else_comes(make_loop, workload, clock) -> None:
    result = drive(make_loop("static", max_num_seqs=4), workload((0.0, 1, 1)))
    assert token_times(result) == [[1.0]]
    assert clock.slept == []


def test_dynamic_leaves_when_its_oldest_waited_long_enough(make_loop, workload, clock) -> None:
    result = drive(
        make_loop("dynamic", max_num_seqs=4, max_wait=0.25),
        workload((0.0, 1, 1), (5.0, 1, 1)),
    )
    assert token_times(result) == [[1.25], [6.0]]  # the second is the last and need not wait


def test_chunks_bound_the_gap_that_a_long_prompt_leaves(make_loop, workload, clock) -> None:
    requests = workload((0.0, 1, 8), (1.5, 33, 1))
    whole = drive(make_loop("continuous"), requests)
    chunked = drive(make_loop("chunked-prefill", max_num_batched_tokens=10), requests)
    assert max(whole.outcomes[0].latency.itl_s) == 5.0  # 1 + 32/8 s
    assert (
        max(chunked.outcomes[0].latency.itl_s) == 2.0
    )  # beside the decode, 9 prompt tokens a step: 1 + 8/8 s


def test_refused_requests_are_outcomes_too(make_loop, workload, clock) -> None:
    loop = make_loop(max_num_seqs=1, max_queue=1)
    result = drive(loop, workload((0.0, 1, 1), (0.0, 1, 1), (0.0, 1, 1)))
    assert [one.completed for one in result.outcomes] == [True, False, False]
    assert "max_queue=1" in (result.outcomes[2].error or "")
    assert result.outcomes[2].token_times == []
    assert result.outcomes[2].served.latency.ttft_s is None


def test_a_failed_request_fails_alone(make_loop, workload, clock, executor) -> None:
    executor.failing.add("bench-0")
    result = drive(make_loop(), workload((0.0, 1, 2), (0.0, 1, 2)))
    assert [one.error for one in result.outcomes] == ["it was told to", None]
    assert [one.completed for one in result.outcomes] == [False, True]


def test_progress_ends_complete(make_loop, workload, clock) -> None:
    seen: list[Progress] = []
    drive(make_loop(), workload((0.0, 1, 2), (4.0, 1, 1)), on_progress=seen.append)
    assert seen[0] == Progress(arrived=1, ended=0, total=2, output_tokens=1, elapsed_s=1.0)
    assert seen[-1] == Progress(arrived=2, ended=2, total=2, output_tokens=3, elapsed_s=5.0)


def test_requests_are_greedy_and_of_exactly_the_wanted_length(make_loop, workload, clock) -> None:
    loop = make_loop()
    added: list[Request] = []
    plain_add = loop.add
    loop.add = lambda request: (added.append(request), plain_add(request))
    planned = workload((0.5, 5, 4))
    drive(loop, planned)
    [request] = added
    assert request.params == SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    assert request.prompt_token_ids == planned.requests[0].prompt_token_ids
    assert request.eos_token_ids == frozenset()
    assert request.arrival_time == 100.5
    assert request.num_output_tokens == 4


def test_a_used_loop_is_refused(make_loop, workload, clock) -> None:
    loop = make_loop()
    drive(loop, workload((0.0, 1, 1)))
    with pytest.raises(ValueError, match="fresh serving loop"):
        drive(loop, workload((0.0, 1, 1)))


def test_a_policy_that_will_never_go_on_is_an_error(make_loop, workload, clock) -> None:
    class Stuck:
        def __init__(self, inner) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def plan(self, now: float) -> tuple[()]:
            return ()

        def next_wakeup(self, now: float) -> None:
            return None

    loop = make_loop()
    loop.policy = Stuck(loop.policy)
    with pytest.raises(RuntimeError, match="1 waiting and 0 running"):
        drive(loop, workload((0.0, 1, 1)))


def test_clients_send_when_they_are_answered(make_loop, workload, clock) -> None:
    """Closed loop: arrivals (here at 50 s) are ignored, and waiting for oneself is no latency."""
    closed = replace(workload((50.0, 1, 2), (50.0, 1, 1), (50.0, 1, 3)), clients=2)
    result = drive(make_loop(), closed)
    assert token_times(result) == [[1.0, 2.0], [1.0], [2.0, 3.0, 4.0]]
    assert [one.arrival_time - result.start for one in result.outcomes] == [0.0, 0.0, 1.0]
    assert clock.slept == []


def test_one_client_has_one_request_under_way(make_loop, workload) -> None:
    closed = replace(workload((0.0, 1, 2), (0.0, 1, 2), (0.0, 1, 2)), clients=1)
    result = drive(make_loop(), closed)
    assert [one.latency.ttft_s for one in result.outcomes] == [1.0, 1.0, 1.0]
    assert max(step.decodes for step in result.steps) == 1


def test_each_step_is_on_record(make_loop, workload, executor) -> None:
    loop = make_loop("chunked-prefill", max_num_batched_tokens=6)
    result = drive(loop, workload((0.0, 1, 4), (0.5, 9, 2)))
    assert [(one.start_s - result.start, one.prompt_tokens, one.decodes) for one in result.steps] == [
        (0.0, 1, 0),
        (1.0, 5, 1),
        (2.5, 4, 1),
        (3.875, 0, 2),
    ]
    assert [one.elapsed_s for one in result.steps] == [1.0, 1.5, 1.375, 1.0]
    assert loop.executor is executor


class GivesUpAfter:
    """Gives up when so many requests have ended."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.waits: list[float | None] = []

    def ended(self, outcome: Outcome) -> None:
        self.left -= 1

    def gives_up(self, now: float, waiting_since: float | None) -> bool:
        self.waits.append(None if waiting_since is None else now - waiting_since)
        return self.left <= 0


def test_a_watch_ends_a_drive_early(make_loop, workload) -> None:
    loop = make_loop(max_num_seqs=1)
    watch = GivesUpAfter(1)
    result = drive(loop, workload((0.0, 1, 2), (0.5, 1, 9), (90.0, 1, 1)), watch=watch)
    assert result.given_up
    assert [one.completed for one in result.outcomes] == [True, False, False]
    assert [one.finish_reason for one in result.outcomes[1:]] == ["abort", None]
    assert watch.waits == [None, 1.5]  # the second request, in the queue since 0.5 s, is taken in at 1 s
    assert not loop.has_unfinished
