"""The sampler in C++ against PyTorch's: the same token for the same logits, request and seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tightpack import _native
from tightpack.native_cpu.sampling import Sampler
from tightpack.requests.random_stream import uniform
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.torch_backend.logprobs import token_logprobs
from tightpack.torch_backend.sampler import sample

VOCABULARY = 700
SETS = _native.instruction_sets()
Floats = NDArray[np.float32]


def request(
    name: str = "r", prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), **params: Any
) -> Request:
    made = Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(**{"max_tokens": 1000} | params),
        seed=params.get("seed") or 0,
        max_output_tokens=10_000,
        eos_token_ids=frozenset({5}),
    )
    made.token_ids += output
    return made


def random_logits(seed: int, rows: int, scale: float = 2.0, vocabulary: int = VOCABULARY) -> Floats:
    return (np.random.default_rng(seed).normal(0, scale, (rows, vocabulary))).astype(np.float32)


def sampler(instruction_set: str = "auto", threads: int = 2) -> Sampler:
    return Sampler(_native.ThreadTeam(threads), instruction_set)


PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-9, 0.3, 0.8, 1.0, 3.0, 30.0]),
        "top_k": st.sampled_from([0, -1, 1, 7, 300, 5000]),
        "top_p": st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-6]),
        "min_p": st.sampled_from([0.0, 0.0, 0.01, 0.2, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3, 0.7]),
        "presence_penalty": st.sampled_from([0.0, 0.0, 1.5, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, 0.5, -1.0]),
        "min_tokens": st.sampled_from([0, 0, 50]),
        "logit_bias": st.sampled_from([{}, {}, {3: 5.0, 9: -100.0}]),
        "seed": st.integers(0, 10**6),
    }
)
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=12).map(tuple)


@pytest.mark.parametrize("instruction_set", SETS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.01, 1.0, 6.0]),
    rounded=st.booleans(),
    rows=st.lists(st.tuples(PARAMS, TOKENS), min_size=1, max_size=5),
)
def test_the_token_is_the_torch_samplers(
    instruction_set: str,
    seed: int,
    scale: float,
    rounded: bool,
    rows: list[tuple[dict[str, Any], tuple[int, ...]]],
) -> None:
    logits = random_logits(seed, len(rows), scale)
    if rounded:  # many equals, as of a bf16 head
        logits = (logits * 2).round() / 2
    requests = [request(str(i), output=output, **params) for i, (params, output) in enumerate(rows)]
    theirs = sample(torch.from_numpy(logits.copy()), requests)
    assert sampler(instruction_set).sample(logits, requests) == theirs


@pytest.mark.parametrize("vocabulary", [3, 128, 129, 5000])
def test_draws_from_flat_rows_reach_the_whole_vocabulary(vocabulary: int) -> None:
    requests = [request(str(s), temperature=1.0, seed=s) for s in range(40)]
    tokens = sampler().sample(np.zeros((40, vocabulary), np.float32), requests)
    assert [t.token_id if t else None for t in tokens] == [int(uniform(s, 0) * vocabulary) for s in range(40)]


@pytest.mark.parametrize("instruction_set", SETS)
def test_greedy_takes_the_first_of_equals(instruction_set: str) -> None:
    logits = random_logits(3, 4, vocabulary=1000)
    for row, places in enumerate(([999, 0], [63, 64], [640, 998], [7])):
        logits[row, places] = 50
    tokens = sampler(instruction_set).sample(logits, [request(str(i), temperature=0) for i in range(4)])
    assert [t.token_id if t else None for t in tokens] == [0, 63, 640, 7]


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("poison", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_gives_none_and_harms_no_other(
    poison: float, temperature: float, instruction_set: str
) -> None:
    logits = random_logits(4, 3)
    logits[1, 400] = poison
    logits[0, 30] = -np.inf
    requests = [request(str(i), temperature=temperature, seed=1) for i in range(3)]
    first, second, third = sampler(instruction_set).sample(logits, requests)
    assert second is None
    assert [first, third] == sample(torch.from_numpy(logits[[0, 2]].copy()), [requests[0], requests[2]])


def test_a_row_gives_the_same_token_alone_and_in_any_batch() -> None:
    logits = random_logits(5, 64, vocabulary=5000)
    requests = [request(str(s), temperature=1.2, top_p=0.95, seed=s) for s in range(64)]
    together = sampler(threads=3).sample(logits, requests)
    one = sampler(threads=1)
    alone = [one.sample(logits[i : i + 1], [requests[i]])[0] for i in range(64)]
    assert together == alone


def test_penalties_follow_the_output_as_it_grows() -> None:
    ours = sampler()
    growing = request(temperature=0, frequency_penalty=1.0, presence_penalty=0.5, repetition_penalty=1.2)
    for step in range(30):
        logits = random_logits(step, 1, scale=0.5)
        [token] = sample(torch.from_numpy(logits.copy()), [growing])
        assert ours.sample(logits, [growing]) == [token]
        assert token is not None
        growing.token_ids.append(token.token_id)


def test_requests_that_share_a_name_do_not_share_penalties() -> None:
    ours = sampler()
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, 7] = 1
    used = request("same", output=(7, 7, 7), temperature=0, frequency_penalty=2.0)
    fresh = request("same", temperature=0, frequency_penalty=2.0)
    assert ours.sample(logits, [used]) != ours.sample(logits, [fresh])


def test_states_of_finished_requests_are_dropped() -> None:
    from tightpack.requests.request import FinishReason

    ours = sampler()
    logits = random_logits(8, 1)
    for index in range(500):
        made = request(str(index), temperature=1.0)
        ours.sample(logits, [made])
        made.finish_reason = FinishReason.STOP
    assert len(ours._states) <= 65


@pytest.mark.parametrize("instruction_set", SETS)
def test_logprobs_are_of_the_models_own_distribution(instruction_set: str) -> None:
    logits = random_logits(6, 8, scale=3.0)
    targets, counts = [int(t) for t in logits.argsort(-1)[:, 300]], [0, 1, 2, 5, 20, 3, 0, 20]
    ours = sampler(instruction_set).token_logprobs(logits, targets, counts)
    theirs = token_logprobs(torch.from_numpy(logits), targets, counts)
    for own, other in zip(ours, theirs, strict=True):
        assert (own.token_id, own.rank) == (other.token_id, other.rank)
        assert own.logprob == pytest.approx(other.logprob, abs=2e-6)
        assert [t for t, _ in own.top] == [t for t, _ in other.top]
        assert [v for _, v in own.top] == pytest.approx([v for _, v in other.top], abs=2e-6)


def test_sampled_tokens_carry_logprobs_where_asked() -> None:
    logits = random_logits(9, 3)
    requests = [
        request("a", temperature=0, logprobs=2),
        request("b", temperature=0),
        request("c", logprobs=0),
    ]
    first, second, third = sampler().sample(logits, requests)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.logprobs is not None
    assert first.logprobs.rank == 1
    assert first.logprobs.top[0][0] == first.token_id
    assert second.logprobs is None
    assert third.logprobs is not None
    assert third.logprobs.top == ()


def test_what_does_not_fit_is_refused() -> None:
    native = _native.Sampler(_native.ThreadTeam(1))
    with pytest.raises(ValueError, match="2 rows are described and 3 rows of logits given"):
        native.sample(random_logits(0, 3), [None, None])
    with pytest.raises(ValueError, match="token id 700, outside the vocabulary of 700"):
        native.token_logprobs(random_logits(0, 1), [700], [1])
