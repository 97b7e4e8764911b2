from __future__ import annotations

from typing import Any

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
