"""Steps launched before the tokens of the one before are read, against steps one after the other."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
import torch

from tightpack.engine_args import EngineArgs
from tightpack.executors import make_executor
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.clock import MonotonicClock
from tightpack.serving_loop.loop import ServingLoop
from tightpack.torch_backend import draw
from tightpack.torch_backend import executor as executor_module
from tightpack.torch_backend.sampler import ChosenTokens

EOS = frozenset({5, 6})


def random_requests(family, rng, count):
    requests = []
    shared = family.tokens(9, rng.randint(0, 99))
    for index in range(count):
        params = SamplingParams(
            max_tokens=rng.choice([1, 2, 12, 25]),
            temperature=rng.choice([0.0, 0.0, 1.0, 2.0]),
            top_k=rng.choice([0, 0, 7]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.0, 0.01]),
            presence_penalty=rng.choice([0.0, 0.0, 0.0, 1.0]),
            logit_bias=rng.choice([{}, {}, {3: 2.0}]),
            logprobs=rng.choice([None, 0, 3]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
            seed=index,
        )
        prompt = shared[: rng.choice([0, 9])] + family.tokens(rng.randint(1, 12), index)
        requests.append(
            Request(
                request_id=f"r{index}",
                prompt_token_ids=tuple(prompt),
                params=replace(params, min_tokens=min(params.max_tokens, rng.choice([0, 4]))),
                seed=index,
                max_output_tokens=params.max_tokens,
                eos_token_ids=EOS,
            )
        )
    return requests


def serve(executor, requests, rng):
    """The requests, some arriving later; how many steps were launched behind others, and misled one."""
    limits = SchedulerLimits(
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_model_len=256,
        block_size=executor.block_size,
        num_blocks=executor.num_blocks,
    )
    launch, collect = type(executor).launch, type(executor).collect
    counts = {"behind": 0, "misled": 0}

    def counted_launch(plan, after=None):
        counts["behind"] += after is not None
        return launch(executor, plan, after)

    def counted_collect(step):
        result = collect(executor, step)
        counts["misled"] += result.misled_next
        return result

    executor.launch, executor.collect = counted_launch, counted_collect
    loop = ServingLoop(make_policy("chunked-prefill", limits), executor, MonotonicClock())
    waiting = list(requests)
    while waiting or loop.has_unfinished:
        if waiting and (rng.random() < 0.3 or not loop.has_unfinished):
            loop.add(waiting.pop(0))
        loop.step()
    assert loop.policy.kv_usage == 0
    return counts["behind"], counts["misled"]


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids, one.request_id
        assert one.finish_reason == other.finish_reason
        for name in ("logprobs", "prompt_logprobs"):
            mine, wanted = getattr(one, name), getattr(other, name)
            assert [entry.token_id for entry in mine] == [entry.token_id for entry in wanted]
            assert [entry.rank for entry in mine] == [entry.rank for entry in wanted]
            assert [entry.logprob for entry in mine] == pytest.approx([e.logprob for e in wanted], abs=1e-4)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("tier", [4, 128])
def test_outputs_are_those_of_steps_one_by_one(llama, static, tier, monkeypatch):
    """With draws that end among those looked at (128 is the whole vocabulary), and some that do not."""
    monkeypatch.setattr(draw, "_TIERS", (tier,))
    monkeypatch.setattr(executor_module, "_DRAWN_AT_ONCE", {"cpu": tier})
    ahead = llama.executor(static_decode=static, async_scheduling=True, max_num_seqs=4)
    one_by_one = llama.executor(static_decode=static, max_num_seqs=4)
    behind = misled = 0
    for seed in range(4):
        ours = random_requests(llama, random.Random(seed), 7)
        theirs = random_requests(llama, random.Random(seed), 7)
        counts = serve(ahead, ours, random.Random(seed))
        behind, misled = behind + counts[0], misled + counts[1]
        serve(one_by_one, theirs, random.Random(seed))
        same(ours, theirs)
    assert behind > 20
    assert bool(misled) == (tier == 4)


def running(executor, make_request, sequencer, count=3, **params):
    """Requests that decode, their step, and that step launched."""
    blocks = sequencer(executor)
    requests = [make_request([3 + i, 4, 9 + i], f"r{i}", max_tokens=20, **params) for i in range(count)]
    first = executor.execute(StepPlan(tuple(blocks.chunk(r) for r in requests)))
    for request in requests:
        request.token_ids.append(first.sampled[request.request_id].token_id)
    plan = StepPlan(tuple(blocks.chunk(r) for r in requests))
    return blocks, requests, executor.launch(plan)


def launch_behind(executor, blocks, requests, step):
    for request in requests:
        request.token_ids.append(-1)
    plan = StepPlan(tuple(blocks.chunk(request) for request in requests))
    behind = executor.launch(plan, step)
    for request in requests:
        request.token_ids.pop()
    return behind


@pytest.mark.parametrize("static", [True, False])
def test_tokens_are_taken_where_they_were_sampled(llama, make_request, sequencer, static):
    executor = llama.executor(static_decode=static, async_scheduling=True)
    blocks, requests, step = running(executor, make_request, sequencer)
    # Two of the three go on, in another order.
    behind = launch_behind(executor, blocks, [requests[2], requests[0]], step)
    first = executor.collect(step)
    second = executor.collect(behind)
    for request in requests:
        request.token_ids.append(first.sampled[request.request_id].token_id)
    for request in (requests[2], requests[0]):
        wanted = llama.reference_logits(request.token_ids)[-1].argmax()
        assert second.sampled[request.request_id].token_id == wanted
    assert set(second.sampled) == {"r0", "r2"}


def test_nothing_goes_on_behind_a_step_that_was_computed_in_parts(
    llama, make_request, sequencer, monkeypatch
):
    executor = llama.executor(async_scheduling=True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    forward = executor._runner._decoder.forward

    def limited(inputs, *others):
        if inputs.num_tokens == 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return forward(inputs, *others)

    blocks, requests, step = running(executor, make_request, sequencer, count=2)
    monkeypatch.setattr(executor._runner._decoder, "forward", limited)
    assert launch_behind(executor, blocks, requests, step) is None, "no room behind it"
    assert set(executor.collect(step).sampled) == {"r0", "r1"}
    for request in requests:
        request.num_computed_tokens = len(request.token_ids) - 1
    parts = executor.launch(StepPlan(tuple(blocks.chunk(request) for request in requests)))
    assert launch_behind(executor, blocks, requests, parts) is None
    assert set(executor.collect(parts).sampled) == {"r0", "r1"}


def test_a_row_that_is_not_finite_fails_alone(llama, make_request, sequencer):
    executor = llama.executor(async_scheduling=True)
    _, requests, step = running(executor, make_request, sequencer, temperature=1.0, seed=1)
    with torch.inference_mode():
        poisoned = ChosenTokens(
            torch.tensor([[0.0, 1.0, float("inf")], [float("nan")] * 3, [9.0, 0.0, 0.0]]), requests
        )
    tokens, misled = poisoned.read()
    assert [token is None for token in tokens] == [True, True, False]
    assert not misled
    assert all(0 <= token < 3 for token in poisoned.ids.tolist()), "what the next step takes is a token"
    executor.collect(step)


def test_time_in_which_the_step_before_was_running_does_not_count(
    llama, make_request, sequencer, monkeypatch
):
    executor = llama.executor(async_scheduling=True)
    blocks, requests, _ = running(executor, make_request, sequencer)
    later = time.perf_counter() + 100
    clock = iter([later, later + 1, later + 7, later + 9])
    for request in requests:
        request.num_computed_tokens = len(request.token_ids) - 1
    monkeypatch.setattr(executor_module.time, "perf_counter", lambda: next(clock))
    step = executor.launch(StepPlan(tuple(blocks.chunk(request) for request in requests)))
    behind = launch_behind(executor, blocks, requests, step)
    assert executor.collect(step).elapsed_s == pytest.approx(7)
    assert executor.collect(behind).elapsed_s == pytest.approx(2)


def test_who_asks_for_it_gets_it(tmp_path, llama):
    args = EngineArgs(device="cpu", dtype="float32", max_model_len=64, num_blocks=32)
    for given, wanted in ((None, False), (True, True), (False, False)):
        changed = replace(args, executor="torch", async_scheduling=given)
        executor = make_executor(llama.checkpoint, changed, 64)
        assert executor.async_scheduling is wanted
        assert executor.description["async_scheduling"] == ("on" if wanted else "off")
    with pytest.raises(ValueError, match="async_scheduling needs tensor_parallel_size=1, got 2"):
        llama.executor(tensor_parallel_size=2, async_scheduling=True)
    with pytest.raises(ValueError, match="async_scheduling needs executor='torch'"):
        make_executor(
            llama.checkpoint, replace(args, executor="native", dtype="auto", async_scheduling=True), 64
        )
