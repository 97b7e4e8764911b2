"""Mixtral 8x7B and 8x22B (Jiang et al. 2024): Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tightpack.architectures.common import ACTIVATIONS, num_layers, read_experts, sizes
from tightpack.architectures.config_fields import Fields
from tightpack.architectures.model_spec import LayerSpec, ModelSpec
from tightpack.architectures.rotary import rope_parameters, rotary_spec


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Raises ConfigError naming the field that is missing or cannot be honoured."""
    fields, shared = Fields(config), sizes(config)
    fields.refuse("attention_bias", False)
    # transformers 5's default; the published configurations give 1e6.
    parameters = rope_parameters(config, default_theta=1e6)
    layer = LayerSpec(
        rotary_spec(parameters, shared["head_dim"], shared["max_position_embeddings"]),
        window=fields.optional_integer("sliding_window"),
        experts=read_experts(
            config,
            count=fields.integer("num_local_experts", 8),
            experts_per_token=fields.integer("num_experts_per_tok", 2),
            intermediate_size=shared["intermediate_size"],
            normalized=True,
            router="block_sparse_moe.gate",
            gate="block_sparse_moe.experts.{}.w1",
            up="block_sparse_moe.experts.{}.w3",
            down="block_sparse_moe.experts.{}.w2",
        ),
    )
    return ModelSpec(
        family="mixtral",
        **shared,
        layers=(layer,) * num_layers(config),
        attention_scale=shared["head_dim"] ** -0.5,
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
    )
