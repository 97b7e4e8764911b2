"""Qwen2 and Qwen2.5: biases on queries, keys and values; later layers may attend within a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tightpack.architectures.common import ACTIVATIONS, layer_types, num_layers, sizes
from tightpack.architectures.config_fields import Fields
from tightpack.architectures.model_spec import LayerSpec, ModelSpec
from tightpack.architectures.rotary import rope_parameters, rotary_spec


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Raises ConfigError naming the field that is missing or cannot be honoured."""
    fields, shared = Fields(config), sizes(config)
    rotary = rotary_spec(rope_parameters(config), shared["head_dim"], shared["max_position_embeddings"])
    return ModelSpec(
        family="qwen2",
        **shared,
        layers=tuple(LayerSpec(rotary, window) for window in layer_windows(config)),
        attention_scale=shared["head_dim"] ** -0.5,
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        qkv_bias=True,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
    )


def layer_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The window of each layer: those from `max_window_layers` on, or those that `layer_types` names, and
    only when `use_sliding_window` is set (Qwen's configurations give `sliding_window` even where it is
    unused)."""
    fields = Fields(config)
    count = num_layers(config)
    if not fields.flag("use_sliding_window", False) or config.get("sliding_window") is None:
        return (None,) * count
    window = fields.integer("sliding_window")
    # 0 is a legal value of max_window_layers (all layers slide), and 28 is the default of both Qwen2 and
    # Qwen3.
    first = 28 if config.get("max_window_layers") is None else int(config["max_window_layers"])
    default = ["sliding_attention" if layer >= first else "full_attention" for layer in range(count)]
    kinds = layer_types(config, default)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
