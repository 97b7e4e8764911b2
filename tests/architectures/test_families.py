"""Each family's ModelSpec against the model that transformers builds from the same configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tightpack.architectures.config_fields import ConfigError
from tightpack.architectures.model_spec import ModelSpec
from tightpack.architectures.registry import model_spec

TINY: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "llama": transformers.LlamaConfig(**TINY),
    "llama tied": transformers.LlamaConfig(**TINY, tie_word_embeddings=True, head_dim=16),
    "llama with biases": transformers.LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "mistral": transformers.MistralConfig(**TINY, sliding_window=16),
    "qwen2": transformers.Qwen2Config(
        **TINY, use_sliding_window=True, sliding_window=16, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**TINY, head_dim=16),
    "qwen3 with biases": transformers.Qwen3Config(**TINY, head_dim=16, attention_bias=True),
    "gemma3": transformers.Gemma3TextConfig(**TINY, head_dim=16, sliding_window=16, layer_types=None),
}


def saved(config: transformers.PreTrainedConfig) -> dict[str, Any]:
    """As save_pretrained writes it next to a causal language model."""
    model_class = type(causal_model(config)).__name__
    return {**config.to_dict(), "architectures": [model_class]}


def causal_model(config: transformers.PreTrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_are_those_of_transformers(name: str) -> None:
    config = CONFIGS[name]
    state = {key: tuple(value.shape) for key, value in causal_model(config).state_dict().items()}
    spec = model_spec(saved(config))
    if spec.tied_embeddings:
        del state["lm_head.weight"]
    assert spec.tensor_shapes() == state


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_fields(name: str) -> None:
    config = CONFIGS[name]
    spec = model_spec(saved(config))
    assert spec.family == name.split()[0]
    assert spec.num_layers == 3
    assert spec.norm_eps == config.rms_norm_eps
    assert spec.max_position_embeddings == 512
    assert spec.kv_bytes_per_token() == 2 * 3 * 2 * spec.head_dim * 2


def windows(spec: ModelSpec) -> list[int | None]:
    return [layer.window for layer in spec.layers]


def test_windows() -> None:
    assert windows(model_spec(saved(CONFIGS["llama"]))) == [None] * 3
    assert windows(model_spec(saved(CONFIGS["mistral"]))) == [16] * 3
    assert windows(model_spec(saved(CONFIGS["qwen2"]))) == [None, 16, 16]
    gemma = transformers.Gemma3TextConfig(**{**TINY, "num_hidden_layers": 13}, sliding_window=16)
    assert windows(model_spec(saved(gemma))) == ([16] * 5 + [None]) * 2 + [16]


def test_windows_that_a_configuration_names_without_using() -> None:
    config = saved(CONFIGS["qwen2"]) | {"use_sliding_window": False}
    assert windows(model_spec(config)) == [None] * 3
    assert windows(model_spec(saved(CONFIGS["mistral"]) | {"sliding_window": None})) == [None] * 3


def test_older_styles_of_windows() -> None:
    """transformers 4 gave the rule, not the layers."""
    qwen = saved(CONFIGS["qwen2"])
    del qwen["layer_types"]
    assert windows(model_spec(qwen)) == [None, 16, 16]
    assert windows(model_spec(qwen | {"max_window_layers": 0})) == [16] * 3
    gemma = saved(CONFIGS["gemma3"]) | {"sliding_window_pattern": 2}
    del gemma["layer_types"]
    assert windows(model_spec(gemma)) == [16, None, 16]


def test_gemma3_details() -> None:
    spec = model_spec(saved(CONFIGS["gemma3"]))
    assert spec.attention_scale == 256**-0.5
    assert spec.norm_weight_offset == 1
    assert spec.activation == "gelu_tanh"
    assert spec.embedding_scale == np.float32(32**0.5)
    assert spec.qk_norm
    assert spec.sandwich_norms
    rounded = model_spec(saved(CONFIGS["gemma3"]) | {"dtype": "bfloat16"})
    assert rounded.embedding_scale == torch.tensor(32**0.5).bfloat16().item()


def test_gemma3_rope_of_both_kinds_in_both_styles() -> None:
    old = saved(CONFIGS["gemma3"]) | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 20_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    del old["rope_parameters"]
    new = old | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
        }
    }
    for name in ("rope_theta", "rope_local_base_freq", "rope_scaling"):
        del new[name]
    spec = model_spec(new)
    assert model_spec(old) == spec
    pairs = np.arange(0, 16, 2) / 16
    np.testing.assert_allclose(spec.layers[0].rotary.inverse_frequencies, 20_000.0**-pairs, rtol=1e-6)
    np.testing.assert_allclose(spec.layers[1].rotary.inverse_frequencies, 1e6**-pairs / 8, rtol=1e-6)


def test_multimodal_gemma3_stands_for_its_text() -> None:
    text = saved(CONFIGS["gemma3"])
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
        "eos_token_id": [1, 106],
    }
    spec = model_spec(config)
    assert spec.tensor_shapes() == model_spec(text).tensor_shapes()
    assert spec.eos_token_ids == (1, 106)


def test_sparse_multimodal_configuration_means_the_defaults() -> None:
    """gemma-3-4b-it's text_config leaves out heads, vocabulary and length."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240, "sliding_window":
    1024,
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}  # fmt: skip
    spec = model_spec({"model_type": "gemma3", "text_config": text})
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (8, 4, 256, 262_208)


def test_published_llama_configuration() -> None:
    """Llama 3.2 1B Instruct's, in transformers 4's style."""
    spec = model_spec(
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": 128256,
        }
    )
    assert sum(int(np.prod(shape)) for shape in spec.tensor_shapes().values()) == 1_235_814_400
    assert spec.kv_bytes_per_token() == 32 * 1024
    assert spec.eos_token_ids == (128001, 128008, 128009)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "lama"}, "'model_type' is 'lama'.*nearest supported is 'llama'"),
        ({"model_type": "mamba2"}, "'model_type' is 'mamba2'"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "must be LlamaForCausalLM"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"rms_norm_eps": None}, "'rms_norm_eps' is missing"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' must be a positive whole number, not 0"),
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1,000,000,000, beyond any model"),
        ({"head_dim": 10**9}, "'head_dim' is 1,000,000,000, beyond any model"),
        ({"vocab_size": "many"}, "'vocab_size' must be a positive whole number"),
        ({"num_key_value_heads": 3}, "'num_key_value_heads' \\(3\\) must divide"),
        ({"hidden_act": "relu"}, "'hidden_act' is 'relu'; supported: gelu_pytorch_tanh, silu, swish"),
        ({"attention_bias": "yes"}, "'attention_bias' must be true or false"),
        ({"head_dim": 7}, "'head_dim' must be even"),
        ({"hidden_size": 33, "head_dim": None}, "no multiple of 'num_attention_heads'"),
        ({"eos_token_id": "</s>"}, "'eos_token_id' must be a token id"),
    ],
)
def test_bad_fields_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        model_spec(saved(CONFIGS["llama"]) | change)


def test_bad_fields_of_other_families_are_named() -> None:
    gemma = saved(CONFIGS["gemma3"])
    with pytest.raises(ConfigError, match="'use_bidirectional_attention' is True"):
        model_spec(gemma | {"use_bidirectional_attention": True})
    with pytest.raises(ConfigError, match="'layer_types' must list 3 layers"):
        model_spec(gemma | {"layer_types": ["full_attention"]})
    with pytest.raises(ConfigError, match="'layer_types' has 'linear_attention'"):
        model_spec(gemma | {"layer_types": ["linear_attention"] * 3})
    with pytest.raises(ConfigError, match="'text_config' is missing"):
        model_spec({"model_type": "gemma3"})


MIXTURES: dict[str, transformers.PreTrainedConfig] = {
    "mixtral": transformers.MixtralConfig(**TINY, num_local_experts=6, num_experts_per_tok=3),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **TINY,
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_have_the_numbers_of_transformers(name: str) -> None:
    """Tensors for each expert here, one for all there."""
    model = causal_model(MIXTURES[name])
    spec = model_spec(saved(MIXTURES[name]))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(int(np.prod(shape)) for shape in spec.tensor_shapes().values()) == total
    dense = {key for key in model.state_dict() if "experts" not in key and ".mlp.gate.weight" not in key}
    assert dense <= spec.tensor_shapes().keys()
    assert [layer.experts is not None for layer in spec.layers] == [True, name == "mixtral", True]
    experts = spec.layers[0].experts
    assert experts is not None
    assert (experts.count, experts.experts_per_token) == (6, 3)
    assert experts.intermediate_size == (40 if name == "mixtral" else 24)
    assert experts.normalized == (name == "mixtral")
    assert spec.tensor_shapes()[f"{spec.router_names()[0]}.weight"] == (6, 32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_experts_per_tok": 9}, "'num_experts_per_tok' is 9 of 6 experts"),
        ({"mlp_only_layers": [3]}, "'mlp_only_layers' must list layers from 0 to 2"),
        ({"num_experts": None, "num_local_experts": None}, "'num_local_experts' is missing"),
        ({"shared_expert_intermediate_size": 64}, "'shared_expert_intermediate_size' is 64"),
    ],
)
def test_bad_fields_of_mixtures_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        model_spec({**saved(MIXTURES["qwen3_moe"]), **change})
