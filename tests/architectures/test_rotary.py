"""Frequencies against those that transformers computes, for every type of scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tightpack.architectures.config_fields import ConfigError
from tightpack.architectures.rotary import rope_parameters, rotary_spec

TRAINED = 8192
FACTORS = [1.0 + 0.1 * n for n in range(32)]
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
    "yarn with attention_factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
        "attention_factor": 1.5,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
        "short_factor": FACTORS,
        "long_factor": FACTORS,
    },
}


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str, theta: float) -> None:
    parameters = {**SCALINGS[name], "rope_theta": theta}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=4 * TRAINED,
        rope_parameters=dict(parameters),
    )
    theirs = LlamaRotaryEmbedding(config)
    ours = rotary_spec(rope_parameters({"rope_parameters": parameters}), 64, 4 * TRAINED)
    # One unit in the last place of a float32 is 1.2e-7.
    np.testing.assert_allclose(ours.inverse_frequencies, theirs.inv_freq.numpy(), rtol=2.5e-7)
    assert ours.magnitude == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_plain_frequencies_are_bit_equal() -> None:
    theirs = LlamaRotaryEmbedding(LlamaConfig(hidden_size=256, num_attention_heads=4, rope_theta=10_000.0))
    ours = rotary_spec({"rope_type": "default", "rope_theta": 10_000.0}, 64, 2048)
    assert ours.inverse_frequencies == tuple(theirs.inv_freq.tolist())


@pytest.mark.parametrize("name", SCALINGS)
def test_both_styles_of_configuration_say_the_same(name: str) -> None:
    old = {"rope_theta": 5e5, "rope_scaling": dict(SCALINGS[name])}
    oldest = {"rope_theta": 5e5, "rope_scaling": dict(SCALINGS[name])}
    oldest["rope_scaling"]["type"] = oldest["rope_scaling"].pop("rope_type")
    new = {"rope_parameters": {**SCALINGS[name], "rope_theta": 5e5}}
    specs = [rotary_spec(rope_parameters(config), 64, 4 * TRAINED) for config in (old, oldest, new)]
    assert specs[0] == specs[1] == specs[2]


def test_absent_parameters_mean_the_default() -> None:
    assert rope_parameters({}) == {"rope_type": "default", "rope_theta": 10_000.0}
    assert rope_parameters({"rope_scaling": None, "rope_theta": 7.0})["rope_theta"] == 7.0


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'rope_type' is 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "'factor' must be a positive number"),
        ({"rope_scaling": {**SCALINGS["llama3"], "high_freq_factor": 1.0}}, "'high_freq_factor'"),
        ({"rope_scaling": {**SCALINGS["longrope"], "long_factor": [2.0] * 32}}, "'long_factor' differs"),
        ({"rope_scaling": {**SCALINGS["longrope"], "short_factor": [2.0]}}, "'short_factor' must list 32"),
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor' is 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "'full_attention'"),
        ({"rope_parameters": 3}, "'rope_parameters' must be an object"),
    ],
)
def test_what_cannot_be_honoured_is_named(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        rotary_spec(rope_parameters(config), 64, 4 * TRAINED)
