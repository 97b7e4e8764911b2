"""From a configuration to the ModelSpec of its family."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tightpack.architectures import gemma3, llama, mistral, mixtral, qwen2, qwen3, qwen3_moe
from tightpack.architectures.config_fields import ConfigError
from tightpack.architectures.model_spec import ModelSpec

# model_type -> (the class of transformers that a config.json names, how to read the configuration)
FAMILIES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], ModelSpec]]] = MappingProxyType(
    {
        "llama": ("LlamaForCausalLM", llama.model_spec),
        "mistral": ("MistralForCausalLM", mistral.model_spec),
        "mixtral": ("MixtralForCausalLM", mixtral.model_spec),
        "qwen2": ("Qwen2ForCausalLM", qwen2.model_spec),
        "qwen3": ("Qwen3ForCausalLM", qwen3.model_spec),
        "qwen3_moe": ("Qwen3MoeForCausalLM", qwen3_moe.model_spec),
        "gemma3_text": ("Gemma3ForCausalLM", gemma3.model_spec),
        "gemma3": ("Gemma3ForConditionalGeneration", gemma3.model_spec),
    }
)


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The ModelSpec for a Hugging Face config.json, of transformers 4 or 5.

    Raises ConfigError naming the field that is missing, unknown or cannot be honoured.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"config field 'model_type' is missing; supported: {', '.join(FAMILIES)}")
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=1)
        hint = f"the nearest supported is {near[0]!r}" if near else f"supported: {', '.join(FAMILIES)}"
        raise ConfigError(
            f"config field 'model_type' is {model_type!r}, an architecture not known here; {hint}"
        )
    class_name, read = FAMILIES[model_type]
    classes = config.get("architectures")
    if classes and class_name not in classes:
        raise ConfigError(
            f"config field 'architectures' is {classes!r}; for {model_type!r} it must be {class_name}"
        )
    return read(config)
