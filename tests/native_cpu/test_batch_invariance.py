"""Batching never changes the answer: a request's logits and tokens are the same bits alone and in any
company, under any policy, chunking, preemption, prefix-cache hit and number of threads."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightpack import _native
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.engine_args import ON_LOAD_METHODS
from tightpack.native_cpu.executor import NativeExecutor
from tightpack.on_load import quantize_on_load
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.registry import POLICY_NAMES, make_policy
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.serving_loop.loop import ServingLoop

NUM_BLOCKS = 14
MAX_MODEL_LEN = 128
CALIBRATED = KVCacheFormat(precision="int8", key_scales=(0.05,) * 3, value_scales=(0.03,) * 3)
CACHES = {name: KVCacheFormat(precision=name) for name in ("bf16", "fp8", "int8")} | {
    "int8 static": CALIBRATED,
    "fp8 static": replace(CALIBRATED, precision="fp8"),
}
# Every scheme and every cache; every family with the kernels that only it uses.
COMBINATIONS = [
    ("llama", "none", "bf16", "auto"),
    ("llama", "int4", "bf16", "auto"),
    ("llama", "int4", "fp8", "bfloat16"),
    ("mistral", "int8", "int8", "auto"),
    ("mistral", "w8a8", "int8 static", "auto"),
    ("qwen2", "llm.int8", "bf16", "auto"),
    ("qwen3", "fp8", "fp8", "auto"),
    ("gemma3", "none", "int8", "auto"),
    ("capped", "int4", "int8 static", "auto"),
    ("qwen2", "int4 minimums", "bf16", "auto"),
    ("llama", "int8 zeros", "fp8", "auto"),
    ("qwen3", "w8a8 static", "bf16", "auto"),
    ("llama", "fp8 static", "int8", "auto"),
    ("qwen2", "fp8 blocks", "bf16", "auto"),
    ("llama", "fp8 tensor", "fp8 static", "auto"),
    ("mixtral", "none", "bf16", "auto"),
    ("qwen3_moe", "int4", "int8", "auto"),
    ("mixtral", "w8a8 static", "bf16", "auto"),
    ("qwen3_moe", "fp8 blocks", "fp8", "auto"),
    ("mixtral", "llm.int8", "bf16", "auto"),
]


@dataclass(frozen=True)
class Engines:
    """One checkpoint on one thread, and on more; the second's blocks hold what others left there."""

    alone: NativeExecutor
    shared: tuple[NativeExecutor, ...]
    long_alone: NativeExecutor
    long_shared: NativeExecutor


def engines_of(checkpoint: Checkpoint, **options: Any) -> Engines:
    def build(
        threads: int, num_blocks: int = NUM_BLOCKS, max_model_len: int = MAX_MODEL_LEN
    ) -> NativeExecutor:
        return NativeExecutor(
            checkpoint,
            num_blocks=num_blocks,
            max_num_seqs=8,
            max_model_len=max_model_len,
            num_threads=threads,
            **options,
        )

    return Engines(build(1), (build(1), build(2), build(3)), build(1, 48, 768), build(2, 48, 768))


@pytest.fixture(scope="module", params=COMBINATIONS, ids=" ".join)
def engines(request, tiny_checkpoint, rewritten):
    family, method, cache, activation_dtype = request.param
    checkpoint = tiny_checkpoint(family)
    if method in ON_LOAD_METHODS:
        checkpoint = quantize_on_load(checkpoint, method, llm_int8_threshold=2.0)
    elif method != "none":
        checkpoint = rewritten(checkpoint, method)
    return engines_of(checkpoint, kv_cache=CACHES[cache], activation_dtype=activation_dtype)


@pytest.fixture(scope="module", params=_native.instruction_sets())
def engines_of_each_set(request, tiny_checkpoint):
    checkpoint = quantize_on_load(tiny_checkpoint("qwen3"), "int4", llm_int8_threshold=6.0)
    return engines_of(checkpoint, instruction_set=request.param)


token_ids = st.integers(0, 95)
prompts = st.lists(st.lists(token_ids, min_size=1, max_size=40), min_size=1, max_size=4)


def check_logits(engines, make_request, sequencer, data):
    """Requests in random chunks, several a step, in blocks in random order, against each whole and alone."""
    given = data.draw(prompts)
    alone = engines.alone
    wanted = [alone.logits([sequencer(alone).chunk(make_request(tokens))]) for tokens in given]
    executor = engines.shared[data.draw(st.integers(0, 2))]
    blocks = sequencer(executor, seed=data.draw(st.integers(0, 99)))
    requests = [make_request(tokens, name=str(index)) for index, tokens in enumerate(given)]
    found: list[list[np.ndarray]] = [[] for _ in requests]
    while left := [r for r in requests if r.num_pending_tokens]:
        together = data.draw(st.permutations(left))[: data.draw(st.integers(1, len(left)))]
        counts = [data.draw(st.integers(1, r.num_pending_tokens)) for r in together]
        chunks = [blocks.chunk(r, count) for r, count in zip(together, counts, strict=True)]
        rows = np.split(executor.logits(chunks), np.cumsum(counts)[:-1])
        for request, logits in zip(together, rows, strict=True):
            found[int(request.request_id)].append(logits.copy())
    for index, parts in enumerate(found):
        np.testing.assert_array_equal(np.concatenate(parts).view(np.uint32), wanted[index].view(np.uint32))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_logits_are_the_same_bits(engines, make_request, sequencer, data):
    check_logits(engines, make_request, sequencer, data)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_logits_are_the_same_bits_on_every_instruction_set(
    engines_of_each_set, make_request, sequencer, data
):
    check_logits(engines_of_each_set, make_request, sequencer, data)


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_long_contexts_too(engines, make_request, sequencer, data):
    """Where attention sums over more than one partition of the positions, on one thread or several."""
    tokens = [(11 * i + i * i // 7) % 96 for i in range(data.draw(st.integers(257, 700)))]
    executors = (engines.long_alone, engines.long_shared)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens) - 1), max_size=4)))
    parts = []
    for executor, ends in zip(executors, ([len(tokens)], [*cuts, len(tokens)]), strict=True):
        blocks, request = sequencer(executor, seed=data.draw(st.integers(0, 9))), make_request(tokens)
        counts = np.diff([0, *ends])
        parts.append([executor.logits([blocks.chunk(request, int(count))]).copy() for count in counts])
    wanted, found = (np.concatenate(logits) for logits in parts)
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


class Ticks:
    """A clock on which every look takes a while, so that policies which wait for company end."""

    def __init__(self) -> None:
        self._times = itertools.count()

    def now(self) -> float:
        return next(self._times) * 0.01


def run(executor: NativeExecutor, policy: str, requests: list[Request], budget: int) -> int:
    """Serve the requests; returns how many preemptions that took."""
    limits = SchedulerLimits(
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        max_model_len=MAX_MODEL_LEN,
        block_size=16,
        num_blocks=NUM_BLOCKS,
    )
    loop = ServingLoop(make_policy(policy, limits), executor, Ticks())
    for request in requests:
        loop.add(request)
    loop.close_intake()
    while loop.has_unfinished:
        loop.step()
    return loop.stats.preemptions


sampling = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.8]),
        "top_p": st.sampled_from([1.0, 0.9]),
        "top_k": st.sampled_from([0, 7]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "seed": st.integers(0, 9),
        "max_tokens": st.integers(1, 45),
        "logprobs": st.just(2),
    }
)
# Some share their beginnings, for the prefix cache.
served = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 35), st.lists(token_ids, min_size=1, max_size=20), sampling),
    min_size=2,
    max_size=6,
)


def make(index: int, shared: int, length: int, own: list[int], params: dict[str, Any]) -> Request:
    beginning = [(shared * 31 + 7 * i) % 96 for i in range(length)]
    return Request(
        request_id=str(index),
        prompt_token_ids=tuple(beginning + own),
        params=SamplingParams(**params),
        seed=params["seed"],
        max_output_tokens=params["max_tokens"],
    )


@settings(max_examples=8, deadline=None)
@given(
    given_requests=served,
    policy=st.sampled_from(POLICY_NAMES),
    budget=st.integers(4, 40),
    which=st.integers(0, 2),
)
def test_outputs_are_the_same_under_any_policy(engines, given_requests, policy, budget, which):
    together = [make(index, *each) for index, each in enumerate(given_requests)]
    whole_prompts = policy != "chunked-prefill"
    run(engines.shared[which], policy, together, MAX_MODEL_LEN + 4 if whole_prompts else budget)
    for index, each in enumerate(given_requests):
        alone = make(index, *each)
        run(engines.alone, "continuous", [alone], MAX_MODEL_LEN + 4)
        assert together[index].error is None
        assert together[index].output_token_ids == alone.output_token_ids
        assert together[index].logprobs == alone.logprobs


def test_preemption_happens_here(engines):
    """What the property above is meant to cover."""
    long = {"max_tokens": 45, "temperature": 0.0, "seed": 0, "logprobs": 2}
    each = [make(index, index, 35, [index], long) for index in range(6)]
    assert run(engines.shared[1], "chunked-prefill", each, 24) > 0
    for index, request in enumerate(each):
        alone = make(index, index, 35, [index], long)
        run(engines.alone, "continuous", [alone], MAX_MODEL_LEN + 4)
        assert request.logprobs == alone.logprobs
