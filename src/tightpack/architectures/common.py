"""What every family's configuration says under the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from tightpack.architectures.config_fields import ConfigError, Fields
from tightpack.architectures.model_spec import Activation, ExpertsSpec

ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


MAX_LAYERS = 1_000  # Llama 3.1 405B has 126
MAX_HEAD_DIM = 65_536
MAX_EXPERTS = 4_096  # DeepSeek-V3 has 256


class Sizes(TypedDict):
    """ModelSpec's fields that all families share."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def sizes(config: Mapping[str, Any], *, head_dim: int | None = None) -> Sizes:
    """Read the shared fields; `head_dim` is the family's default, hidden_size / heads when None."""
    fields = Fields(config)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ConfigError(
            f"config field 'num_key_value_heads' ({kv_heads}) must divide 'num_attention_heads' ({heads})"
        )
    if config.get("head_dim") is None and head_dim is None and hidden % heads:
        raise ConfigError(
            f"config field 'hidden_size' ({hidden}) is no multiple of 'num_attention_heads' ({heads}), "
            "and 'head_dim' is missing"
        )
    return Sizes(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", head_dim or hidden // heads, maximum=MAX_HEAD_DIM),
        norm_eps=fields.number("rms_norm_eps"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def num_layers(config: Mapping[str, Any]) -> int:
    return Fields(config).integer("num_hidden_layers", maximum=MAX_LAYERS)


def layer_types(config: Mapping[str, Any], default: Sequence[str]) -> tuple[str, ...]:
    """`layer_types`, one of full_attention or sliding_attention a layer, or `default` where it is absent."""
    given = config.get("layer_types")
    if given is None:
        return tuple(default)
    if not isinstance(given, list | tuple) or len(given) != len(default):
        raise ConfigError(f"config field 'layer_types' must list {len(default)} layers, not {given!r}")
    for kind in given:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(
                f"config field 'layer_types' has {kind!r}; supported: full_attention, sliding_attention"
            )
    return tuple(given)


def read_experts(
    config: Mapping[str, Any],
    *,
    count: int,
    experts_per_token: int,
    intermediate_size: int,
    normalized: bool,
    **names: str,
) -> ExpertsSpec:
    """The experts of a layer; names: as ExpertsSpec has them, where they are not the usual ones."""
    if not experts_per_token <= count <= MAX_EXPERTS:
        raise ConfigError(
            f"config field 'num_experts_per_tok' is {experts_per_token} of {count} experts; it must be no "
            f"more than there are, and they no more than {MAX_EXPERTS:,}"
        )
    Fields(config).refuse("shared_expert_intermediate_size", 0)
    return ExpertsSpec(
        count=count,
        experts_per_token=experts_per_token,
        intermediate_size=intermediate_size,
        normalized=normalized,
        **names,
    )
