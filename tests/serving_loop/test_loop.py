"""Plan, execute, commit: what a request gets, and what is freed when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tightpack.requests.outputs import Update
from tightpack.requests.request import Request
from tightpack.scheduling.policy import QueueFullError
from tightpack.serving_loop.loop import ServingLoop

MakeLoop = Callable[..., ServingLoop]
MakeRequest = Callable[..., Request]


def run(loop: ServingLoop, max_steps: int = 100) -> dict[str, list[Update]]:
    updates: dict[str, list[Update]] = {}
    for _ in range(max_steps):
        if not loop.has_unfinished:
            return updates
        for update in loop.step():
            updates.setdefault(update.request_id, []).append(update)
    raise AssertionError(f"not done after {max_steps} steps")


def test_tokens_are_published_as_they_come_and_the_last_update_says_why_it_ended(
    make_loop: MakeLoop, make_request: MakeRequest
) -> None:
    loop = make_loop()
    loop.add(make_request("a"))
    updates = run(loop)["a"]
    assert [u.token_ids for u in updates] == [(5,), (6,), (7,)]
    assert [u.time for u in updates] == [1.0, 2.0, 3.0]
    assert [u.finish_reason for u in updates] == [None, None, "length"]
    assert loop.policy.kv_usage == 0


def test_end_of_sequence_and_stop_tokens_end_a_request_but_not_before_min_tokens(
    make_loop: MakeLoop, make_request: MakeRequest
) -> None:
    loop = make_loop()
    loop.add(make_request("eos", max_tokens=9, eos={6}))
    loop.add(make_request("stop", max_tokens=9, stop_token_ids=[6]))
    loop.add(make_request("min", max_tokens=9, eos={5, 7}, min_tokens=3))
    last = {name: updates[-1] for name, updates in run(loop).items()}
    assert (last["eos"].token_ids, last["eos"].finish_reason, last["eos"].stop_reason) == ((6,), "stop", None)
    assert (last["stop"].finish_reason, last["stop"].stop_reason) == ("stop", 6)
    assert last["min"].token_ids == (7,)


def test_static_shows_nothing_until_its_whole_batch_is_done(
    make_loop: MakeLoop, make_request: MakeRequest
) -> None:
    loop = make_loop("static")
    loop.add(make_request("short", max_tokens=1))
    loop.add(make_request("long", max_tokens=4))
    loop.close_intake()
    updates = run(loop)
    assert [(u.token_ids, u.time) for u in updates["short"]] == [((5,), 4.0)]
    assert [(u.token_ids, u.time) for u in updates["long"]] == [((5, 6, 7, 8), 4.0)]


def test_a_request_that_fails_fails_alone(
    make_loop: MakeLoop, make_request: MakeRequest, executor: Any
) -> None:
    loop = make_loop()
    executor.fail["bad"] = "its logits are not finite"
    loop.add(make_request("good"))
    loop.add(make_request("bad"))
    updates = run(loop)
    assert [(u.finish_reason, u.error) for u in updates["bad"]] == [("error", "its logits are not finite")]
    assert [t for u in updates["good"] for t in u.token_ids] == [5, 6, 7]
    assert loop.policy.kv_usage == 0


def test_an_aborted_request_frees_its_blocks_before_the_next_step(
    make_loop: MakeLoop, make_request: MakeRequest
) -> None:
    loop = make_loop()
    loop.add(make_request("a", max_tokens=50))
    loop.step()
    assert loop.policy.kv_usage > 0
    loop.abort("a")
    assert loop.policy.kv_usage == 0
    assert [u.finish_reason for u in loop.step()] == ["abort"]
    assert not loop.has_unfinished
    loop.abort("a")  # and again: nothing happens
    assert loop.step() == []


def test_logprobs_come_with_their_tokens_and_those_of_the_prompt_once(
    make_loop: MakeLoop, make_request: MakeRequest
) -> None:
    loop = make_loop("chunked-prefill", max_num_batched_tokens=4)
    loop.add(make_request("a", prompt=range(10), logprobs=0, prompt_logprobs=0))
    updates = run(loop)["a"]
    assert [[e.token_id for e in u.logprobs] for u in updates] == [[10], [11], [12]]
    assert updates[0].prompt_logprobs is not None
    assert [e.token_id for e in updates[0].prompt_logprobs] == list(range(1, 10))
    assert all(u.prompt_logprobs is None for u in updates[1:])


def test_a_preempted_request_gets_each_prompt_logprob_and_each_token_once(
    make_loop: MakeLoop, make_request: MakeRequest
) -> None:
    loop = make_loop(num_blocks=6, max_model_len=24, max_num_batched_tokens=32)
    for name in ("a", "b"):
        loop.add(make_request(name, prompt=range(8), max_tokens=12, prompt_logprobs=0))
    updates = run(loop)
    assert loop.stats.preemptions > 0
    for name in ("a", "b"):
        assert [t for u in updates[name] for t in u.token_ids] == list(range(8, 20))
        assert [e.token_id for e in updates[name][0].prompt_logprobs or ()] == list(range(1, 8))


def test_a_shared_prefix_is_computed_once_and_counted(make_loop: MakeLoop, make_request: MakeRequest) -> None:
    loop = make_loop()
    loop.add(make_request("a", prompt=range(9)))
    run(loop)
    loop.add(make_request("b", prompt=range(9)))
    updates = run(loop)["b"]
    assert updates[0].num_cached_prompt_tokens == 8
    assert (loop.stats.prefix_cache_queries, loop.stats.prefix_cache_hits) == (18, 8)
    assert [t for u in updates for t in u.token_ids] == [9, 10, 11]


def test_an_executor_that_raises_leaves_a_loop_that_can_go_on(
    make_loop: MakeLoop, make_request: MakeRequest, executor: Any
) -> None:
    loop = make_loop()
    loop.add(make_request("a"))
    executor.raises = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        loop.step()
    assert [(u.finish_reason, u.error) for u in loop.fail_all("boom")] == [("error", "boom")]
    executor.raises = None
    loop.add(make_request("b"))
    assert [t for u in run(loop)["b"] for t in u.token_ids] == [5, 6, 7]


def test_a_full_queue_and_a_used_id_are_refused(make_loop: MakeLoop, make_request: MakeRequest) -> None:
    loop = make_loop(max_queue=1)
    loop.add(make_request("a"))
    with pytest.raises(ValueError, match="'a' is in use"):
        loop.add(make_request("a"))
    with pytest.raises(QueueFullError, match="max_queue=1"):
        loop.add(make_request("b"))
    assert set(run(loop)) == {"a"}
