"""Mistral 7B, Nemo and Small's text models: Llama with one attention window for all layers, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tightpack.architectures.common import ACTIVATIONS, num_layers, sizes
from tightpack.architectures.config_fields import Fields
from tightpack.architectures.model_spec import LayerSpec, ModelSpec
from tightpack.architectures.rotary import rope_parameters, rotary_spec


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Raises ConfigError naming the field that is missing or cannot be honoured."""
    fields, shared = Fields(config), sizes(config)
    fields.refuse("attention_bias", False)
    rotary = rotary_spec(rope_parameters(config), shared["head_dim"], shared["max_position_embeddings"])
    layer = LayerSpec(rotary, window=fields.optional_integer("sliding_window"))
    return ModelSpec(
        family="mistral",
        **shared,
        layers=(layer,) * num_layers(config),
        attention_scale=shared["head_dim"] ** -0.5,
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
    )
