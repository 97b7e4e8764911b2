"""Sampling against a straightforward oracle in numpy: one row at a time, everything sorted, float64."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from tightpack.requests.random_stream import uniform
from tightpack.torch_backend.ordered import ordered_top
from tightpack.torch_backend.sampler import sample

VOCABULARY = 500


def oracle_distribution(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """(token ids by descending probability, their probabilities) after min_p, top_k and top_p."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p[p < min_p * p.max()] = 0
    order = np.lexsort((np.arange(len(p)), -p))
    p = p[order] / p.sum()
    if top_k > 0:
        p[top_k:] = 0
        p /= p.sum()
    if top_p < 1:
        p[np.searchsorted(np.cumsum(p), top_p) + 1 :] = 0
        p /= p.sum()
    return order[p > 0], p[p > 0]


def oracle_draw(logits, number, **filters):
    ids, p = oracle_distribution(logits, **filters)
    return int(ids[min(np.searchsorted(np.cumsum(p), number, side="right"), len(ids) - 1)])


def random_logits(seed, rows=1, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, VOCABULARY, generator=generator) * scale


def with_output(request, tokens):
    request.token_ids += tokens
    return request


@pytest.fixture
def one(make_request):
    """The token that one request gets from one row of logits."""

    def token(logits, output=(), prompt=(1,), eos=(), **params):
        request = with_output(make_request(prompt, **params), list(output))
        request.eos_token_ids = frozenset(eos)
        [sampled] = sample(logits.reshape(1, -1).clone(), [request])
        return sampled.token_id

    return token


FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 30.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 300},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 1.7, "top_k": 60, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 25.0, "top_k": 400, "top_p": 0.9, "min_p": 0.2},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_the_token_is_the_oracles(filters, make_request):
    logits = random_logits(1, rows=60)
    requests = [make_request([1], **({"temperature": 1.0} | filters | {"seed": seed})) for seed in range(60)]
    ours = [s.token_id for s in sample(logits.clone(), requests)]
    theirs = [oracle_draw(row, uniform(seed, 0), **filters) for seed, row in enumerate(logits.numpy())]
    assert ours == theirs


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_equal_logits_are_ordered_by_id(filters, make_request):
    """bf16 heads give many equal logits; which of them a filter keeps must not be left to chance."""
    logits = (random_logits(2, rows=40) * 2).round() / 2
    requests = [make_request([1], **({"temperature": 1.0} | filters | {"seed": seed})) for seed in range(40)]
    ours = [s.token_id for s in sample(logits.clone(), requests)]
    theirs = [oracle_draw(row, uniform(seed, 0), **filters) for seed, row in enumerate(logits.numpy())]
    assert ours == theirs


@pytest.mark.parametrize("vocabulary", [3, 128, 129, 5000])
def test_draws_from_flat_rows_reach_the_whole_vocabulary(vocabulary, make_request):
    """Nothing among the likeliest few settles these: the tail is looked at."""
    numbers = [uniform(seed, 0) for seed in range(40)]
    requests = [make_request([1], temperature=1.0, seed=seed) for seed in range(40)]
    tokens = [s.token_id for s in sample(torch.zeros(40, vocabulary), requests)]
    assert tokens == [int(number * vocabulary) for number in numbers]


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.7}, {"top_k": 3}, {"min_p": 0.3}], ids=str)
def test_frequencies_follow_the_filtered_distribution(filters, make_request):
    logits = torch.tensor([1.0, 0.5, 2.0, -1.0, 1.5, 0.0])
    count = 8_000
    drawn = np.zeros(6)
    for seed in range(0, count, 2000):
        batch = [
            make_request([1], **({"temperature": 1.0, "seed": s} | filters)) for s in range(seed, seed + 2000)
        ]
        for s in sample(logits.repeat(2000, 1), batch):
            drawn[s.token_id] += 1
    ids, p = oracle_distribution(logits.numpy(), **filters)
    expected = np.zeros(6)
    expected[ids] = p
    assert set(np.flatnonzero(drawn)) == set(ids)
    # Five standard deviations of a binomial count.
    assert (np.abs(drawn - expected * count) <= 5 * np.sqrt(count * expected * (1 - expected)) + 1e-9).all()


def test_a_row_gives_the_same_token_alone_and_in_any_batch(make_request):
    rng = random.Random(5)
    logits = random_logits(3, rows=48, scale=3.0)
    requests = []
    for row in range(48):
        params = {
            "temperature": rng.choice([0.0, 0.6, 1.0, 20.0]),
            "top_k": rng.choice([0, 5, 200]),
            "top_p": rng.choice([1.0, 0.9]),
            "min_p": rng.choice([0.0, 0.05]),
            "presence_penalty": rng.choice([0.0, 0.5]),
            "repetition_penalty": rng.choice([1.0, 1.3]),
            "logprobs": rng.choice([None, 0, 3]),
        }
        request = make_request([1, 2, 3], f"r{row}", **params, seed=row)
        requests.append(with_output(request, rng.choices(range(VOCABULARY), k=row)))
    together = sample(logits.clone(), requests)
    alone = [sample(logits[row : row + 1].clone(), [r])[0] for row, r in enumerate(requests)]
    order = rng.sample(range(48), 20)
    some = sample(logits[order].clone(), [requests[row] for row in order])
    assert together == alone
    assert some == [together[row] for row in order]


def test_the_seed_and_the_position_make_the_draw(one):
    logits = torch.zeros(VOCABULARY)
    tokens = [one(logits, temperature=1.0, seed=11, output=[1] * n) for n in range(30)]
    assert tokens == [one(logits, temperature=1.0, seed=11, output=[2] * n) for n in range(30)]
    assert tokens != [one(logits, temperature=1.0, seed=12, output=[1] * n) for n in range(30)]
    assert len(set(tokens)) > 20


def test_greedy_takes_the_first_of_equals(one):
    logits = torch.zeros(VOCABULARY)
    logits[[40, 7, 300]] = 5.0
    assert one(logits) == 7


def test_hardly_any_temperature_is_greedy(one):
    logits = random_logits(9)[0] * 50
    assert one(logits, temperature=1e-300) == int(logits.argmax())
    assert one(logits, temperature=1e-6, top_p=0.9) == int(logits.argmax())


def test_logit_bias_is_added(one):
    logits = torch.zeros(VOCABULARY)
    logits[3] = 4.0
    assert one(logits, logit_bias={8: 4.5}) == 8
    assert one(logits, logit_bias={8: 3.5}) == 3
    assert one(logits, logit_bias={3: -100.0, 9: 1.0}) == 9
    assert one(logits, logit_bias={8: 100.0}, temperature=1.0, seed=1) == 8


def test_min_tokens_holds_back_every_ending(one):
    logits = torch.zeros(VOCABULARY)
    logits[2], logits[5], logits[6], logits[8] = 9.0, 8.0, 7.0, 1.0
    params = {"eos": [2, 6], "stop_token_ids": [5], "min_tokens": 2}
    assert one(logits, **params) == 8
    assert one(logits, output=[8], **params) == 8
    assert one(logits, output=[8, 8], **params) == 2
    assert one(logits, **params, temperature=1.0, logit_bias={2: 100.0}, seed=3) not in (2, 5, 6)


def test_presence_penalty_counts_a_token_once_and_leaves_the_prompt(one):
    logits = torch.zeros(VOCABULARY)
    logits[3], logits[4] = 2.0, 1.0
    assert one(logits, output=[3], presence_penalty=0.9) == 3
    assert one(logits, output=[3, 3, 3], presence_penalty=0.9) == 3
    assert one(logits, output=[3], presence_penalty=1.1) == 4
    assert one(logits, prompt=[3], presence_penalty=1.1) == 3
    assert one(logits, output=[4], presence_penalty=-1.5) == 4


def test_frequency_penalty_counts_every_time(one):
    logits = torch.zeros(VOCABULARY)
    logits[3], logits[4] = 2.0, 1.0
    assert one(logits, output=[3], frequency_penalty=0.6) == 3
    assert one(logits, output=[3, 3], frequency_penalty=0.6) == 4
    assert one(logits, prompt=[3, 3], frequency_penalty=0.6) == 3
    assert one(logits, output=[3], frequency_penalty=0.6, presence_penalty=0.5) == 4


def test_repetition_penalty_divides_positive_and_multiplies_negative(one):
    logits = torch.full((VOCABULARY,), -10.0)
    logits[3], logits[4] = 3.0, 2.0
    assert one(logits, prompt=[3], repetition_penalty=1.4) == 3
    assert one(logits, prompt=[3], repetition_penalty=1.6) == 4
    assert one(logits, output=[3, 3, 3], repetition_penalty=1.4) == 3
    logits[3], logits[4] = -1.0, -2.0
    assert one(logits, output=[3], repetition_penalty=1.9) == 3
    assert one(logits, output=[3], repetition_penalty=2.1) == 4
    assert one(logits, output=[4], repetition_penalty=0.4) == 4


def test_penalties_join_sampling(one):
    logits = torch.zeros(VOCABULARY)
    logits[3], logits[4] = 60.0, 40.0
    drawn = one(logits, output=[3], repetition_penalty=2.0, temperature=1.0, seed=1)
    assert drawn == 4


def test_logprobs_are_of_the_models_own_distribution(make_request):
    logits = random_logits(4, rows=2)
    plain = make_request([1], "a", logprobs=4)
    bent = make_request(
        [1], "b", logprobs=0, temperature=0.5, top_k=1, logit_bias={17: 100.0}, repetition_penalty=1.5
    )
    first, second = sample(logits.clone(), [plain, bent])
    expected = logits.double().log_softmax(-1)
    order = expected.sort(-1, descending=True).indices
    assert first.token_id == order[0, 0]
    assert first.logprobs.rank == 1
    assert [token for token, _ in first.logprobs.top] == order[0, :4].tolist()
    for token, value in first.logprobs.top:
        assert math.isclose(value, expected[0, token], abs_tol=1e-5)
    assert first.logprobs.logprob == first.logprobs.top[0][1]
    assert second.token_id == second.logprobs.token_id == 17
    assert math.isclose(second.logprobs.logprob, expected[1, 17], abs_tol=1e-5)
    assert second.logprobs.rank == order[1].tolist().index(17) + 1
    assert second.logprobs.top == ()


def test_no_logprobs_unless_asked(make_request):
    logits = random_logits(4, rows=2)
    first, second = sample(logits, [make_request([1], "a"), make_request([1], "b", logprobs=0)])
    assert first.logprobs is None
    assert second.logprobs is not None


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_not_finite_gives_none_and_harms_no_other(poison, make_request):
    logits = random_logits(6, rows=3)
    requests = [make_request([1], str(row), temperature=1.0, seed=row, logprobs=2) for row in range(3)]
    expected = sample(logits.clone(), requests)
    logits[1, 77] = poison
    assert sample(logits, requests) == [expected[0], None, expected[2]]


def test_forbidden_tokens_are_never_drawn(make_request):
    """Minus infinity is a probability of zero, not a failure."""
    logits = torch.full((50, VOCABULARY), -math.inf)
    logits[:, [10, 20]] = 0.0
    requests = [make_request([1], temperature=1.0, seed=seed) for seed in range(50)]
    assert {s.token_id for s in sample(logits, requests)} == {10, 20}


@pytest.mark.parametrize("count", [1, 5, 40, 64])
def test_ordered_top_sorts_by_value_then_id(count):
    values = torch.tensor([random.Random(1).choices(range(200), k=64)], dtype=torch.float32)
    top, ids = ordered_top(values, count)
    order = sorted(range(64), key=lambda token: (-values[0, token].item(), token))
    assert top[0].tolist() == [values[0, token].item() for token in order[:count]]
    certain = (top[0] > top[0, -1]).sum().item() if count < 64 else 64
    assert ids[0].tolist()[:certain] == order[:certain]
