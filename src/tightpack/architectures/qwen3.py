"""Qwen3, dense: RMSNorm on each query and key head, no biases, head_dim apart from hidden_size / heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tightpack.architectures.common import ACTIVATIONS, sizes
from tightpack.architectures.config_fields import Fields
from tightpack.architectures.model_spec import LayerSpec, ModelSpec
from tightpack.architectures.qwen2 import layer_windows
from tightpack.architectures.rotary import rope_parameters, rotary_spec


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Raises ConfigError naming the field that is missing or cannot be honoured."""
    fields, shared = Fields(config), sizes(config, head_dim=128)
    rotary = rotary_spec(rope_parameters(config), shared["head_dim"], shared["max_position_embeddings"])
    bias = fields.flag("attention_bias", False)
    return ModelSpec(
        family="qwen3",
        **shared,
        layers=tuple(LayerSpec(rotary, window) for window in layer_windows(config)),
        attention_scale=shared["head_dim"] ** -0.5,
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
    )
