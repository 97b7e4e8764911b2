"""Llama 2 and 3.x, and all that share their architecture: SmolLM2, TinyLlama, ... (`model_type: llama`)."""

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
    rotary = rotary_spec(rope_parameters(config), shared["head_dim"], shared["max_position_embeddings"])
    bias = fields.flag("attention_bias", False)
    return ModelSpec(
        family="llama",
        **shared,
        layers=(LayerSpec(rotary),) * num_layers(config),
        attention_scale=shared["head_dim"] ** -0.5,
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
    )
