"""Opening a Hugging Face directory: config.json, safetensors, tokenizer.json, generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tightpack.architectures import gemma3
from tightpack.architectures.config_fields import ConfigError, Fields
from tightpack.architectures.registry import model_spec
from tightpack.checkpoints.checkpoint import Checkpoint, CheckpointError, GenerationDefaults, TensorSource
from tightpack.checkpoints.fused_experts import FusedExperts
from tightpack.checkpoints.huggingface_tokenizer import huggingface_tokenizer
from tightpack.checkpoints.json_file import read_object, read_optional_object
from tightpack.checkpoints.quantized_tensors import QuantizedTensors
from tightpack.checkpoints.safetensors_shards import SafetensorsShards
from tightpack.checkpoints.validation import validate_tensors
from tightpack.schemes.layout import LayoutError, Recipe
from tightpack.schemes.registry import read_recipe

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
# Where the text model's tensors are in a multimodal checkpoint, by transformers' version, and where they
# belong.
_TEXT_PREFIXES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
)
_OLD_FILES = MappingProxyType({"quantize_config.json": "gptq", "quant_config.json": "awq"})
_OTHER_MODALITIES = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


def open_directory(directory: Path, name: str) -> Checkpoint:
    """Raises CheckpointError naming the file and the tensor or field at fault.

    No code of the checkpoint is run: `auto_map` is ignored for the architectures known here, and others are
    refused.
    """
    config_path = directory / CONFIG
    config = read_object(config_path)
    try:
        spec = model_spec(config)
    except ConfigError as error:
        raise CheckpointError(f"{config_path}: {error}{_remote_code(config)}") from error
    multimodal = config["model_type"] == "gemma3"
    shards = SafetensorsShards(directory, _text_part if multimodal else _unchanged)
    tensors = FusedExperts(spec, shards) if spec.is_mixture else shards
    if multimodal and not tensors.infos:
        raise CheckpointError(
            f"{directory}: no tensor of a text model (language_model.*) in this multimodal checkpoint"
        )
    recipe = _recipe(directory, config)
    source: TensorSource = tensors
    quantization = kv_cache_format = None
    if recipe is None:
        validate_tensors(spec, tensors, directory, tensors.stored_name)
    else:
        source = quantized = QuantizedTensors(
            spec, tensors, recipe, directory, _aliases if multimodal else _no_aliases, tensors.stored_name
        )
        quantization, kv_cache_format = quantized.quantization, quantized.kv_cache_format
    tokenizer = huggingface_tokenizer(
        directory,
        bos_token_id=spec.bos_token_id,
        eos_token_ids=[*_end_tokens(directory), *spec.eos_token_ids],
    )
    return Checkpoint(
        name=name,
        spec=replace(spec, bos_token_id=tokenizer.bos_token_id, eos_token_ids=tokenizer.eos_token_ids),
        tensors=source,
        tokenizer=tokenizer,
        config=_text_only(config) if multimodal else config,
        generation_defaults=_defaults(directory),
        quantization=quantization,
        kv_cache_format=kv_cache_format,
    )


def _recipe(directory: Path, config: Mapping[str, Any]) -> Recipe | None:
    """The quantization that config.json states, or the file that AutoGPTQ or AutoAWQ put beside it."""
    path, field, quantization = directory / CONFIG, "quantization_config", config.get("quantization_config")
    if not quantization and isinstance(config.get("text_config"), Mapping):
        quantization = config["text_config"].get("quantization_config")
    if not quantization and config.get("compression_config"):
        field, quantization = "compression_config", config["compression_config"]
    for name, method in _OLD_FILES.items():
        if not quantization and (directory / name).is_file():
            path, field = directory / name, ""
            quantization = {"quant_method": method, **read_object(path)}
    if not quantization:
        return None
    where = f"{path}: field {field!r}" if field else str(path)
    if not isinstance(quantization, Mapping):
        raise CheckpointError(f"{where} must hold an object, not {quantization!r}")
    try:
        return read_recipe(quantization)
    except LayoutError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _end_tokens(directory: Path) -> tuple[int, ...]:
    path = directory / GENERATION_CONFIG
    try:
        return Fields(read_optional_object(path)).token_ids("eos_token_id")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _defaults(directory: Path) -> GenerationDefaults:
    """`do_sample: false` means greedy, whatever else the file holds."""
    path = directory / GENERATION_CONFIG
    config = read_optional_object(path)
    if config.get("do_sample") is False:
        return GenerationDefaults()
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        value = config.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise CheckpointError(f"{path}: field {name!r} must be a number, not {value!r}")
    top_k = config.get("top_k")
    return GenerationDefaults(
        temperature=config.get("temperature"),
        top_p=config.get("top_p"),
        top_k=None if top_k is None else int(top_k),
        repetition_penalty=config.get("repetition_penalty"),
    )


def _remote_code(config: Mapping[str, Any]) -> str:
    if "auto_map" not in config:
        return ""
    return ". (Field 'auto_map' points to code inside the checkpoint, which is never run.)"


def _no_aliases(name: str) -> Sequence[str]:
    return ()


def _aliases(name: str) -> Sequence[str]:
    """What a linear of the text model is called in a multimodal checkpoint."""
    return [prefix + name.removeprefix(place) for prefix, place in _TEXT_PREFIXES if name.startswith(place)]


def _unchanged(name: str) -> str | None:
    return name


def _text_part(name: str) -> str | None:
    for prefix, place in _TEXT_PREFIXES:
        if name.startswith(prefix):
            return place + name.removeprefix(prefix)
    return None if name.startswith(_OTHER_MODALITIES) else name


def _text_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the text model alone, with the family's defaults spelled out."""
    text = {**gemma3.DEFAULTS, **gemma3.text_config(config)}
    dtype = config.get("dtype") or config.get("torch_dtype")
    return {
        **text,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **({"torch_dtype": dtype} if dtype else {}),
    }
