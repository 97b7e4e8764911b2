from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tightpack.requests.random_stream import uniform
from tightpack.requests.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temprature": 0}, "SamplingParams has no argument 'temprature'; did you mean 'temperature'"),
        ({"max_new_tokens": 5}, "did you mean 'max_tokens'"),
        ({"zzz": 1}, "it takes "),
    ],
)
def test_an_unknown_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"n": 0}, "n must"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {5: 101}}, "logit_bias"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1.0}, "n must be an integer, got 1.0"),
        ({"n": True}, "n must be an integer, got True"),
        ({"max_tokens": "3"}, "max_tokens must be an integer, got '3'"),
        ({"max_tokens": 3.5}, "max_tokens must be an integer, got 3.5"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"top_p": None}, "top_p must be a number, got None"),
        ({"logit_bias": {5: "a"}}, "logit_bias must be a number, got 'a'"),
        ({"stop": [3]}, "stop must be a string or strings, got 3"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids must be an integer, got 'a'"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SamplingParams(**arguments)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(
        n=np.int32(2), max_tokens=np.int64(4), temperature=np.float32(0.5), stop_token_ids=np.array([7])
    )
    assert params == SamplingParams(n=2, max_tokens=4, temperature=0.5, stop_token_ids=[7])
    assert (type(params.n), type(params.temperature)) == (int, float)


def test_stop_may_be_one_string_or_none() -> None:
    assert SamplingParams(stop="x").stop == ("x",)
    assert SamplingParams(stop=None).stop == ()


def test_uniform_numbers_depend_on_seed_and_position_alone_and_fill_the_interval() -> None:
    draws = [uniform(seed, position) for seed in range(40) for position in range(50)]
    assert draws == [uniform(seed, position) for seed in range(40) for position in range(50)]
    assert len(set(draws)) == len(draws)
    assert all(0 <= draw < 1 for draw in draws)
    for low in range(10):
        assert 140 < sum(low / 10 <= draw < (low + 1) / 10 for draw in draws) < 260
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)  # seeds are taken modulo 2**64
