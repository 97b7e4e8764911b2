"""Gemma 3 text (Gemma Team 2025): five windowed layers to a full one, each kind with its own rotary base;
norms before and after; 1 + w in every norm; a scaled embedding.

A multimodal configuration (`model_type: gemma3`) stands for its `text_config`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tightpack.architectures.common import ACTIVATIONS, layer_types, num_layers, sizes
from tightpack.architectures.config_fields import ConfigError, Fields
from tightpack.architectures.model_spec import LayerSpec, ModelSpec
from tightpack.architectures.rotary import rope_parameters, rotary_spec

# Published multimodal configurations leave out what equals these (gemma-3-4b-it gives six fields in all).
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
DTYPES: Mapping[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Raises ConfigError naming the field that is missing or cannot be honoured."""
    text = text_config(config)
    full = {**DEFAULTS, **{name: value for name, value in text.items() if value is not None}}
    fields, shared = Fields(full), sizes(full, head_dim=256)
    fields.refuse("use_bidirectional_attention", False)
    head_dim, length = shared["head_dim"], shared["max_position_embeddings"]
    window = fields.integer("sliding_window", 4096)
    wide = rope_parameters(full, default_theta=1e6, layer_type="full_attention")
    by_kind = {
        "full_attention": LayerSpec(rotary_spec(wide, head_dim, length)),
        "sliding_attention": LayerSpec(rotary_spec(_local_rope(full), head_dim, length), window),
    }
    period = fields.integer("sliding_window_pattern", 6)
    default = [
        "sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(num_layers(full))
    ]
    bias = fields.flag("attention_bias", False)
    return ModelSpec(
        family="gemma3",
        **shared,
        layers=tuple(by_kind[kind] for kind in layer_types(full, default)),
        attention_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        activation=fields.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        norm_weight_offset=1.0,
        embedding_scale=_embedding_scale(shared["hidden_size"], config),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        sandwich_norms=True,
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        attention_softcap=fields.optional_number("attn_logit_softcapping"),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text part of a multimodal configuration, or the configuration itself."""
    if config.get("model_type") != "gemma3":
        return config
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise ConfigError("config field 'text_config' is missing from a multimodal gemma3 configuration")
    inherited = {
        name: config[name] for name in ("bos_token_id", "eos_token_id") if config.get(name) is not None
    }
    return {**text, **inherited}


def _local_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Windowed layers: in transformers 4's style their own base and never scaled; in 5's, nested
    parameters."""
    nested = config.get("rope_parameters")
    theta = config.get("rope_local_base_freq") or 10_000.0
    if isinstance(nested, Mapping) and "sliding_attention" in nested:
        return rope_parameters(
            {"rope_parameters": nested, "rope_theta": theta}, layer_type="sliding_attention"
        )
    return {"rope_type": "default", "rope_theta": theta}


def _embedding_scale(hidden_size: int, config: Mapping[str, Any]) -> float:
    """sqrt(hidden_size), rounded to the dtype of the weights as in training: bf16 moves it by up to 0.4%."""
    text = text_config(config)
    names = [source.get(name) for source in (text, config) for name in ("dtype", "torch_dtype")]
    dtype = DTYPES.get(next((str(name) for name in names if name), "float32"), np.float32)
    return float(np.asarray(math.sqrt(hidden_size), dtype=dtype))
