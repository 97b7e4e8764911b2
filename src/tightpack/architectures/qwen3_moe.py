"""Qwen3 with experts (30B-A3B, 235B-A22B): Qwen3's attention, and a mixture in all layers or some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tightpack.architectures import qwen3
from tightpack.architectures.common import num_layers, read_experts
from tightpack.architectures.config_fields import ConfigError, Fields
from tightpack.architectures.model_spec import ModelSpec


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Raises ConfigError naming the field that is missing or cannot be honoured."""
    fields = Fields(config)
    # transformers 5 writes the second name.
    count = "num_experts" if config.get("num_experts") is not None else "num_local_experts"
    experts = read_experts(
        config,
        count=fields.integer(count),
        experts_per_token=fields.integer("num_experts_per_tok"),
        intermediate_size=fields.integer("moe_intermediate_size"),
        normalized=fields.flag("norm_topk_prob", False),
    )
    dense = qwen3.model_spec(config)
    sparse = _sparse_layers(config)
    return replace(
        dense,
        family="qwen3_moe",
        layers=tuple(
            replace(layer, experts=experts if index in sparse else None)
            for index, layer in enumerate(dense.layers)
        ),
    )


def _sparse_layers(config: Mapping[str, Any]) -> set[int]:
    """Every `decoder_sparse_step`-th layer but those in `mlp_only_layers`."""
    step, total = Fields(config).integer("decoder_sparse_step", 1), num_layers(config)
    plain = config.get("mlp_only_layers") or ()
    if not isinstance(plain, list | tuple) or not all(
        isinstance(index, int) and not isinstance(index, bool) and 0 <= index < total for index in plain
    ):
        raise ConfigError(
            f"config field 'mlp_only_layers' must list layers from 0 to {total - 1}, not {plain!r}"
        )
    return {index for index in range(total) if (index + 1) % step == 0 and index not in plain}
